//! The dirty log against memory itself: after each burst, the pages that changed are compared with the
//! log bit by bit, both ways.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ops::Range;

use proptest::prelude::*;
use rte_net_vhost::datapath::Release;
use rte_net_vhost::testing::{
    APART, BUFFERS, Buffer, FakeDriver, FakeLog, Frame, LOG_PAGE, LogRing, NEXT, RINGS,
};
use rte_net_vhost::virtio_net::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// What buffers are filled with before they are posted. No byte of a header or of a frame is like it.
const FRESH: u8 = 0xa5;
/// Where buffers lie.
const PLACES: [Range<u64>; 4] = [
    RINGS.start..RINGS.start + 0x4_0000,
    BUFFERS.end - 0x8_0000..BUFFERS.end,
    NEXT.start..NEXT.start + 0x8_0000,
    APART.start..APART.start + 0x4_0000,
];
/// Elsewhere than anything that is written.
const LOG_AT: u64 = APART.start + 0x20_0000;

/// What a driver and its ring are like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    packed: bool,
    size: u16,
    start: u16,
    mergeable: bool,
    modern: bool,
    in_order: bool,
    ring: LogRing,
}

fn kinds() -> impl Strategy<Value = Kind> {
    let sizes = prop_oneof![
        (0_u32..=11).prop_map(|shift| (false, 1 << shift)),
        (1_u16..1200).prop_map(|size| (true, size)),
    ];
    let rings = prop_oneof![
        4 => Just(LogRing::AsItLies),
        1 => Just(LogRing::Nowhere),
        1 => Just(LogRing::At(LOG_AT)),
        // Beyond the log, and beyond all addresses.
        1 => Just(LogRing::At(1 << 40)),
        1 => Just(LogRing::At(u64::MAX)),
    ];
    let features = (any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, any::<u16>(), features, rings).prop_map(
        |((packed, size), start, (mergeable, modern, in_order), ring)| Kind {
            packed,
            size,
            start,
            mergeable,
            modern,
            in_order,
            ring,
        },
    )
}

fn driver(kind: Kind) -> FakeDriver {
    let mut driver = match kind.packed {
        true => FakeDriver::packed(kind.size),
        false => FakeDriver::split(kind.size),
    };
    for (acked, bit) in [
        (kind.mergeable, VIRTIO_NET_F_MRG_RXBUF),
        (kind.modern, VIRTIO_F_VERSION_1),
        (kind.in_order, VIRTIO_F_IN_ORDER),
    ] {
        if acked {
            driver = driver.feature(bit);
        }
    }
    driver.starting_at(kind.start)
}

/// Gives out room for buffers, here and there, across pages and regions.
#[derive(Debug)]
struct Room {
    next: [u64; 3],
    turn: usize,
}

impl Room {
    fn new() -> Self {
        let starts = [BUFFERS.end - 0x8_0000, NEXT.start + 0x1_0000, APART.start];
        Self {
            next: starts.map(|start| start + 0x40),
            turn: 0,
        }
    }

    fn take(&mut self, len: u32, gap: u64) -> u64 {
        let len = u64::from(len);
        let ends = [BUFFERS.end, NEXT.start + 0x8_0000, APART.start + 0x4_0000];
        self.turn += 1;
        let place = self.turn / 3 % 3;
        let mut at = self.next[place] + gap;
        if at + len > ends[place] {
            at = [BUFFERS.end - 0x8_0000, NEXT.start + 0x1_0000, APART.start][place] + gap;
        }
        self.next[place] = at + len;
        at
    }
}

/// A frame without the byte that fresh buffers have.
fn frame(len: usize, seed: u8) -> Frame {
    let mut frame = Frame::new(len, seed);
    frame.0.iter_mut().for_each(|byte| *byte &= 0x7f);
    frame
}

/// The pages of `len` bytes at `at`.
fn pages(at: u64, len: u64) -> BTreeSet<u64> {
    match len {
        0 => BTreeSet::new(),
        _ => (at / LOG_PAGE..=(at + len - 1) / LOG_PAGE).collect(),
    }
}

/// Bytes of the used ring, or of a packed ring's descriptors.
fn ring_bytes(driver: &FakeDriver) -> u64 {
    let size = u64::from(driver.size());
    match driver.is_packed() {
        true => 16 * size,
        false => 4 + 8 * size,
    }
}

/// Runs a burst and compares what it did with what it noted.
fn checked<T>(
    driver: &mut FakeDriver,
    log: &FakeLog,
    ring: LogRing,
    burst: impl FnOnce(&mut FakeDriver) -> T,
) -> Result<T, TestCaseError> {
    driver.virtqueue();
    log.clear();
    let before = driver.memory.snapshot(&PLACES);
    let result = burst(driver);
    let changed = driver.memory.snapshot(&PLACES).changed_since(&before);
    let marked = log.marked();

    let (own, len) = (driver.used_ring(), ring_bytes(driver));
    let own_pages = pages(own, len);
    let ring_changed: BTreeSet<u64> = changed.intersection(&own_pages).copied().collect();
    let mut of_ring: BTreeSet<u64> = marked.intersection(&own_pages).copied().collect();
    let data: BTreeSet<u64> = changed.difference(&own_pages).copied().collect();
    let mut of_data: BTreeSet<u64> = marked.difference(&own_pages).copied().collect();
    if let LogRing::At(at) = ring {
        let noted = pages(at, if at == LOG_AT { len } else { 0 });
        let there: BTreeSet<u64> = of_data.intersection(&noted).copied().collect();
        of_data = of_data.difference(&noted).copied().collect();
        if at == LOG_AT && !driver.is_packed() {
            // A page of the ring that changed has its mark there, and none here.
            let shift = |page: &u64| page * LOG_PAGE;
            let moved = ring_changed.iter().map(shift).flat_map(|page| {
                let from = page.max(own) - own + at;
                let to = (page + LOG_PAGE).min(own + len) - own + at;
                pages(from, to - from)
            });
            let moved: BTreeSet<u64> = moved.collect();
            prop_assert!(there.is_subset(&moved), "{there:x?} of {moved:x?}");
            prop_assert_eq!(there.is_empty(), ring_changed.is_empty());
            prop_assert_eq!(of_ring, BTreeSet::new());
            of_ring = ring_changed.clone();
        }
    }
    prop_assert_eq!(of_data, data, "buffers");
    match ring {
        LogRing::AsItLies => prop_assert!(
            ring_changed.is_subset(&of_ring),
            "{ring_changed:x?} of the ring changed, {of_ring:x?} were noted"
        ),
        LogRing::Nowhere => prop_assert_eq!(of_ring, BTreeSet::new()),
        LogRing::At(_) => {
            if driver.is_packed() {
                prop_assert!(ring_changed.is_subset(&of_ring));
            }
        }
    }
    // Used entries of a burst stand side by side: nothing else of the ring is noted.
    if ring_changed.is_empty() {
        prop_assert_eq!(marked, BTreeSet::new());
    }
    Ok(result)
}

#[derive(Clone, Debug)]
enum Step {
    /// Chains of buffers of these lengths, each after a gap, direct or in a table.
    Offer(Vec<Vec<(u32, u64)>>, bool),
    /// A chain that goes nowhere.
    Malformed,
    /// Frames of these lengths, in segments of this size.
    Burst(Vec<usize>, usize),
    Collect,
}

fn steps() -> impl Strategy<Value = Step> {
    let buffer = (
        prop_oneof![3 => 1_u32..2000, 1 => 1_u32..9000],
        prop_oneof![2 => 0_u64..64, 1 => 0_u64..5000],
    );
    let chain = proptest::collection::vec(buffer, 1..4);
    let lengths = prop_oneof![3 => 1_usize..1600, 1 => 1_usize..20_000];
    prop_oneof![
        6 => (proptest::collection::vec(chain, 1..40), any::<bool>())
            .prop_map(|(chains, table)| Step::Offer(chains, table)),
        1 => Just(Step::Malformed),
        6 => (proptest::collection::vec(lengths, 1..65), 200_usize..2048)
            .prop_map(|(lens, cut)| Step::Burst(lens, cut)),
        2 => Just(Step::Collect),
    ]
}

/// Offers a chain, when there is room in the ring.
fn offer(driver: &mut FakeDriver, mut buffers: Vec<Buffer>, table: bool) {
    if buffers.len() > usize::from(driver.size()) {
        return;
    }
    if table {
        buffers = vec![driver.indirect(&buffers)];
    }
    if buffers.len() <= driver.free_descriptors() {
        driver.offer(&buffers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_enqueued_is_noted_and_nothing_else(
        kind in kinds(),
        steps in proptest::collection::vec(steps(), 1..24),
    ) {
        let mut driver = driver(kind);
        let log = FakeLog::new(APART.end);
        driver.set_log(Some((&log, kind.ring)));
        let mut room = Room::new();
        let mut seed = 0_u8;
        for step in steps {
            match step {
                Step::Offer(chains, table) => {
                    for chain in chains {
                        let mut buffers = Vec::new();
                        for (nth, (len, gap)) in chain.into_iter().enumerate() {
                            // The first buffer holds the header.
                            let len = if nth == 0 { len.max(12) } else { len };
                            let at = room.take(len, gap);
                            driver.memory.write(at, &vec![FRESH; len as usize]);
                            buffers.push(Buffer::writable(len).at(at));
                        }
                        offer(&mut driver, buffers, table);
                    }
                }
                Step::Malformed => offer(&mut driver, vec![Buffer::readable(100)], false),
                Step::Burst(lens, cut) => {
                    let packets: Vec<_> = lens
                        .iter()
                        .map(|&len| {
                            seed = seed.wrapping_add(1);
                            let frame = frame(len, seed);
                            let parts: Vec<&[u8]> = frame.0.chunks(cut).collect();
                            driver.pool.packet(&parts)
                        })
                        .collect();
                    let taken = checked(&mut driver, &log, kind.ring, |driver| {
                        driver.enqueue_packets(&packets)
                    })?;
                    driver.pool.release(&packets[taken..]);
                }
                Step::Collect => {
                    driver.used();
                }
            }
        }
        prop_assert!(driver.memory.canaries_are_whole());
    }

    #[test]
    fn of_what_is_dequeued_only_the_used_ring_is_noted(
        kind in kinds(),
        steps in proptest::collection::vec(steps(), 1..24),
    ) {
        let mut driver = driver(kind);
        let log = FakeLog::new(APART.end);
        driver.set_log(Some((&log, kind.ring)));
        let mut room = Room::new();
        for step in steps {
            match step {
                Step::Offer(chains, table) => {
                    for chain in chains {
                        let buffers = chain
                            .into_iter()
                            .map(|(len, gap)| Buffer::readable(len).at(room.take(len, gap)))
                            .collect();
                        offer(&mut driver, buffers, table);
                    }
                }
                Step::Malformed => {
                    offer(&mut driver, vec![Buffer::readable(100).at(1 << 50)], false);
                }
                Step::Burst(lens, _) => {
                    checked(&mut driver, &log, kind.ring, |driver| driver.dequeue(lens.len()))?;
                }
                Step::Collect => {
                    driver.used();
                }
            }
        }
    }
}
