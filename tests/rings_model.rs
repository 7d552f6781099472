//! Any sequence of legal driver steps gives what a naive model gives.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::sample::Index;
use rte_net_vhost::testing::{Buffer, FakeDriver, Frame, Used};
use rte_net_vhost::virtio_net::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// How a driver lays out a chain.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Direct,
    Indirect,
    /// Some direct buffers, then a table with the rest.
    Both,
    /// A table with all but the first and the last; as `Both` where a table ends the chain.
    Inside,
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![
        3 => Just(Layout::Direct),
        2 => Just(Layout::Indirect),
        1 => Just(Layout::Both),
        1 => Just(Layout::Inside),
    ]
}

/// Lengths around those that matter.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1_usize..200,
        2 => 1_usize..3000,
        1 => 0_usize..70_000,
    ]
}

/// A chain that was offered.
#[derive(Clone, Copy, Debug)]
struct Offered {
    head: u32,
    /// Steps of the index that counts what is available.
    slots: usize,
}

/// Offers a chain of `buffers`, when there are descriptors for it.
fn offer(driver: &mut FakeDriver, mut buffers: Vec<Buffer>, layout: Layout) -> Option<Offered> {
    if buffers.len() > usize::from(driver.size()) {
        return None;
    }
    let (direct, behind) = match layout {
        Layout::Direct => (buffers.len(), 0),
        Layout::Indirect => (0, 0),
        Layout::Inside if driver.is_packed() && buffers.len() > 2 => (1, 1),
        Layout::Both | Layout::Inside => (buffers.len() / 2, 0),
    };
    let mut rest = buffers.split_off(direct);
    let behind = rest.split_off(rest.len() - behind);
    if !rest.is_empty() {
        buffers.push(driver.indirect(&rest));
    }
    buffers.extend(behind);
    let slots = if driver.is_packed() { buffers.len() } else { 1 };
    (buffers.len() <= driver.free_descriptors()).then(|| Offered {
        head: driver.offer(&buffers).into(),
        slots,
    })
}

/// What a driver and its ring are like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    packed: bool,
    size: u16,
    start: u16,
    modern: bool,
    mergeable: bool,
    in_order: bool,
    behind_iommu: bool,
}

fn kinds() -> impl Strategy<Value = Kind> {
    let sizes = prop_oneof![
        (0_u32..=7).prop_map(|shift| (false, 1 << shift)),
        (1_u16..130).prop_map(|size| (true, size)),
    ];
    let features = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, any::<u16>(), features).prop_map(
        |((packed, size), start, (modern, mergeable, in_order, behind_iommu))| Kind {
            packed,
            size,
            start,
            modern,
            mergeable,
            in_order,
            behind_iommu,
        },
    )
}

fn driver(kind: Kind) -> FakeDriver {
    let driver = match kind.packed {
        true => FakeDriver::packed(kind.size),
        false => FakeDriver::split(kind.size),
    };
    let mut driver = driver.starting_at(kind.start).packet_room(1024);
    if kind.behind_iommu {
        driver = driver.behind_iommu();
    }
    let features = [
        (kind.modern, VIRTIO_F_VERSION_1),
        (kind.mergeable, VIRTIO_NET_F_MRG_RXBUF),
        (kind.in_order, VIRTIO_F_IN_ORDER),
    ];
    for (acked, bit) in features {
        if acked {
            driver = driver.feature(bit);
        }
    }
    driver
}

#[derive(Clone, Debug)]
enum Sending {
    /// A frame of this length, cut at these places, header included.
    Send(usize, Vec<Index>, Layout),
    Poll(usize),
    Collect,
    Restart,
}

fn sending() -> impl Strategy<Value = Sending> {
    let cuts = proptest::collection::vec(any::<Index>(), 0..6);
    prop_oneof![
        8 => (lengths(), cuts, layouts()).prop_map(|(len, cuts, how)| Sending::Send(len, cuts, how)),
        3 => (0_usize..70).prop_map(Sending::Poll),
        2 => Just(Sending::Collect),
        1 => Just(Sending::Restart),
    ]
}

#[derive(Clone, Debug)]
enum Receiving {
    /// A chain of buffers of these lengths.
    Offer(Vec<u32>, Layout),
    /// Frames of these lengths, in segments of this size.
    Enqueue(Vec<usize>, usize),
    Collect,
    Restart,
}

fn receiving() -> impl Strategy<Value = Receiving> {
    let lens = prop_oneof![
        2 => proptest::collection::vec(0_u32..300, 0..5),
        1 => proptest::collection::vec(0_u32..20_000, 0..3),
    ];
    let frames = proptest::collection::vec(lengths(), 0..20);
    prop_oneof![
        8 => (lens, layouts()).prop_map(|(lens, how)| Receiving::Offer(lens, how)),
        3 => (frames, 1_usize..1024).prop_map(|(lens, cut)| Receiving::Enqueue(lens, cut)),
        2 => Just(Receiving::Collect),
        1 => Just(Receiving::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_driver_sends_arrives_once_and_in_order(
        kind in kinds(),
        steps in proptest::collection::vec(sending(), 1..60),
    ) {
        let mut driver = driver(kind);
        // Heads in the order of the ring, with what is in the chain when it is a frame.
        let mut waiting: VecDeque<(u32, Option<Frame>)> = VecDeque::new();
        let mut taken: VecDeque<u32> = VecDeque::new();
        let mut seed = 0_u8;
        for step in steps.into_iter().chain([Sending::Poll(200), Sending::Collect]) {
            match step {
                Sending::Send(len, cuts, layout) => {
                    seed = seed.wrapping_add(1);
                    let frame = Frame::new(len, seed);
                    let bytes = driver.with_header(&frame);
                    let mut cuts: Vec<_> = cuts.iter().map(|at| at.index(bytes.len())).collect();
                    cuts.sort_unstable();
                    let ends = cuts.iter().copied().chain([bytes.len()]);
                    let starts = [0].into_iter().chain(cuts.iter().copied());
                    let buffers = starts
                        .zip(ends)
                        .map(|(from, to)| Buffer::holding(&bytes[from..to]))
                        .collect();
                    if let Some(chain) = offer(&mut driver, buffers, layout) {
                        waiting.push_back((chain.head, (len > 0).then_some(frame)));
                    }
                }
                Sending::Poll(count) => {
                    let received = driver.dequeue(count);
                    let mut expected = Vec::new();
                    while expected.len() < count
                        && let Some((head, frame)) = waiting.pop_front()
                    {
                        taken.push_back(head);
                        expected.extend(frame);
                    }
                    prop_assert_eq!(received, expected);
                    prop_assert_eq!(driver.pool.live(), 0);
                }
                Sending::Collect => {
                    let expected: Vec<Used> = taken
                        .drain(..)
                        .map(|head| Used { head, len: 0 })
                        .collect();
                    prop_assert_eq!(driver.used(), expected);
                }
                Sending::Restart => {
                    driver.stop();
                }
            }
        }
        prop_assert!(waiting.is_empty());
        prop_assert!(driver.memory.canaries_are_whole());
    }

    #[test]
    fn what_is_enqueued_reaches_the_driver_once_and_in_order(
        kind in kinds(),
        steps in proptest::collection::vec(receiving(), 1..60),
    ) {
        let Kind { size, mergeable, .. } = kind;
        let mut driver = driver(kind);
        let header = driver.header_len();
        // The chains that wait, and their bytes.
        let mut waiting: VecDeque<(Offered, usize)> = VecDeque::new();
        let mut sent: Vec<Frame> = Vec::new();
        let mut used: Vec<Used> = Vec::new();
        let mut seed = 0_u8;
        for step in steps.into_iter().chain([Receiving::Collect]) {
            match step {
                Receiving::Offer(mut lens, layout) => {
                    // A driver posts no buffer that is shorter than the header.
                    lens.push(12);
                    let room = lens.iter().sum::<u32>() as usize;
                    let buffers = lens.into_iter().map(Buffer::writable).collect();
                    if let Some(chain) = offer(&mut driver, buffers, layout) {
                        waiting.push_back((chain, room));
                    }
                }
                Receiving::Enqueue(lens, cut) => {
                    let frames: Vec<Frame> = lens
                        .iter()
                        .map(|&len| {
                            seed = seed.wrapping_add(1);
                            Frame::new(len, seed)
                        })
                        .collect();
                    let packets: Vec<_> = frames
                        .iter()
                        .map(|frame| {
                            let parts: Vec<&[u8]> = frame.0.chunks(cut).collect();
                            driver.pool.packet(if parts.is_empty() { &[&[]] } else { &parts })
                        })
                        .collect();
                    let mut expected = 0;
                    for frame in &frames {
                        let need = header + frame.0.len();
                        let most = if mergeable { waiting.len() } else { waiting.len().min(1) };
                        let mut room = 0;
                        let chains = (0..most)
                            .find(|&nth| {
                                room += waiting[nth].1;
                                room >= need
                            })
                            .map(|last| last + 1);
                        let slots: usize = waiting.iter().map(|(chain, _)| chain.slots).sum();
                        let never = most > 0 && (!mergeable || slots == usize::from(size));
                        match chains {
                            Some(chains) => {
                                let mut left = need;
                                for (Offered { head, .. }, room) in waiting.drain(..chains) {
                                    let len = room.min(left);
                                    left -= len;
                                    used.push(Used { head, len: u32::try_from(len).unwrap() });
                                }
                                sent.push(frame.clone());
                            }
                            None if never => {}
                            None => break,
                        }
                        expected += 1;
                    }
                    let taken = driver.enqueue_packets(&packets);
                    prop_assert_eq!(taken, expected);
                    use rte_net_vhost::datapath::Release;
                    driver.pool.release(&packets[taken..]);
                    prop_assert_eq!(driver.pool.live(), 0);
                }
                Receiving::Collect => {
                    let mut seen = Vec::new();
                    prop_assert_eq!(driver.frames_and_used(&mut seen), sent.split_off(0));
                    prop_assert_eq!(seen, used.split_off(0));
                }
                Receiving::Restart => {
                    driver.stop();
                }
            }
        }
        prop_assert!(driver.memory.canaries_are_whole());
    }
}
