//! The dirty log against memory itself: after each burst, the pages that changed are compared with the
//! log bit by bit, both ways.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rte_net_vhost::datapath::Release;
use rte_net_vhost::testing::{
    APART, BUFFERS, Buffer, FakeDriver, FakeLog, FakeMemory, Frame, LOG_PAGE, LogRing, NEXT, RINGS,
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
    let (own, len) = (driver.used_ring(), ring_bytes(driver));
    let ring_len = usize::try_from(len).unwrap();
    let ring_before = driver.memory.read(own, ring_len);
    let before = driver.memory.snapshot(&PLACES);
    let result = burst(driver);
    let changed = driver.memory.snapshot(&PLACES).changed_since(&before);
    let marked = log.marked();

    let own_pages = pages(own, len);
    let ring_changed: BTreeSet<u64> = changed.intersection(&own_pages).copied().collect();
    let of_ring: BTreeSet<u64> = marked.intersection(&own_pages).copied().collect();
    let data: BTreeSet<u64> = changed.difference(&own_pages).copied().collect();
    let mut of_data: BTreeSet<u64> = marked.difference(&own_pages).copied().collect();
    if let LogRing::At(at) = ring {
        let noted = pages(at, if at == LOG_AT { len } else { 0 });
        let there: BTreeSet<u64> = of_data.intersection(&noted).copied().collect();
        of_data = of_data.difference(&noted).copied().collect();
        if at == LOG_AT {
            let after = driver.memory.read(own, ring_len);
            let bytes = ring_before.iter().zip(&after).zip(at..);
            let written = bytes.filter(|((then, now), _)| then != now);
            let written: BTreeSet<u64> = written.map(|(_, at)| at / LOG_PAGE).collect();
            prop_assert!(
                written.is_subset(&there),
                "{written:x?} of the ring changed, {there:x?} were noted"
            );
        }
    }
    prop_assert_eq!(of_data, data, "buffers");
    match ring {
        LogRing::AsItLies => prop_assert!(
            ring_changed.is_subset(&of_ring),
            "{ring_changed:x?} of the ring changed, {of_ring:x?} were noted"
        ),
        // Frontends name another address for what is written to a packed ring.
        LogRing::At(_) if driver.is_packed() => prop_assert!(ring_changed.is_subset(&of_ring)),
        LogRing::At(_) | LogRing::Nowhere => prop_assert_eq!(of_ring, BTreeSet::new()),
    }
    if ring_changed.is_empty() {
        prop_assert_eq!(marked, BTreeSet::new(), "nothing was given back");
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

/// A packet of 100 bytes in one segment, or in two.
fn packet_of_100(driver: &mut FakeDriver, segments: usize) -> rte_net_vhost::testing::FakePacket {
    let frame = frame(100, 1);
    let parts: Vec<&[u8]> = frame.0.chunks(100 / segments).collect();
    driver.pool.packet(&parts)
}

#[test]
fn a_single_byte_on_a_page_is_noted() {
    let page = BUFFERS.end - 0x4_0000;
    for driver in [
        || FakeDriver::split(8),
        || FakeDriver::packed(8).feature(VIRTIO_F_VERSION_1),
    ] {
        let header = driver().header_len() as u64;
        // Where the page ends: around the first byte, the header's last, and the frame's last.
        let cuts = [1, header - 1, header, header + 1, header + 99, header + 100];
        for (cut, segments, chain) in cuts
            .iter()
            .flat_map(|&cut| [(cut, 1, false), (cut, 2, false), (cut, 1, true)])
        {
            let mut driver = driver();
            let log = FakeLog::new(APART.end);
            driver.set_log(Some((&log, LogRing::AsItLies)));
            let at = page - cut;
            driver.memory.write(at - 64, &[FRESH; 2048]);
            let buffers = match chain {
                false => vec![Buffer::writable(1024).at(at)],
                true => vec![
                    Buffer::writable(20).at(at),
                    Buffer::writable(1000).at(at + 20),
                ],
            };
            driver.offer(&buffers);
            let packet = packet_of_100(&mut driver, segments);
            let taken = checked(&mut driver, &log, LogRing::AsItLies, |driver| {
                driver.enqueue_packets(&[packet])
            });
            assert_eq!(taken.unwrap(), 1);
            let both: BTreeSet<u64> = pages(at, header + 100);
            assert!(both.is_subset(&log.marked()), "cut at {cut}");
        }
    }
}

#[test]
fn nothing_is_noted_before_a_log_is_there_and_after_it_is_gone() {
    let mut driver = FakeDriver::split(8);
    let log = FakeLog::new(APART.end);
    for logged in [false, true, false, true] {
        driver.set_log(logged.then_some((&log, LogRing::AsItLies)));
        log.clear();
        driver.offer(&[Buffer::writable(1024)]);
        assert_eq!(driver.enqueue(&[frame(100, 1)]), 1);
        assert_eq!(log.marked().is_empty(), !logged);
        driver.used();
    }
}

/// What a frontend that migrates a guest has sent of each page.
#[derive(Debug, Default)]
struct Sent(BTreeMap<u64, Vec<u8>>);

impl Sent {
    /// Sends each page that is marked, after it has cleared the mark.
    fn send(&mut self, memory: &FakeMemory, log: &FakeLog) {
        for page in log.take() {
            let bytes = memory.read(page * LOG_PAGE, 4096);
            self.0.insert(page, bytes);
        }
    }

    /// The `len` bytes at `at`, as they are at the other end.
    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| {
            let page = self.0.get(&(at / LOG_PAGE));
            page.map_or(0, |page| page[(at % LOG_PAGE) as usize])
        };
        (at..at + len as u64).map(byte).collect()
    }
}

#[test]
fn a_log_that_is_cleared_at_any_moment_loses_nothing() {
    for mut driver in [FakeDriver::split(256), FakeDriver::packed(256)] {
        let log = FakeLog::new(RINGS.end.max(BUFFERS.end));
        driver.set_log(Some((&log, LogRing::AsItLies)));
        let stop = AtomicBool::new(false);
        let (memory, seen) = (driver.memory.clone(), log.clone());
        let sent = std::thread::scope(|scope| {
            let frontend = scope.spawn(|| {
                let mut sent = Sent::default();
                while !stop.load(Ordering::Acquire) {
                    sent.send(&memory, &seen);
                }
                sent.send(&memory, &seen);
                sent
            });
            for turn in 0..400_u32 {
                let room = u8::try_from(driver.free_descriptors().min(64)).unwrap();
                let seed = u8::try_from(turn % 256).unwrap();
                for nth in 0..room {
                    // Few pages, so that both sides are at the same ones all the time.
                    let at = BUFFERS.start + 512 * ((u64::from(turn) * 5 + u64::from(nth)) % 64);
                    driver.offer(&[Buffer::writable(400).at(at)]);
                }
                let frames: Vec<Frame> = (0..room).map(|n| frame(300, seed ^ n)).collect();
                assert_eq!(driver.enqueue(&frames), frames.len());
                driver.used();
            }
            stop.store(true, Ordering::Release);
            frontend.join().unwrap()
        });
        assert!(!sent.0.is_empty());
        let len = 0x9000;
        let lost = sent.read(BUFFERS.start, len) != driver.memory.read(BUFFERS.start, len);
        assert!(!lost, "the other end has old bytes");
        if !driver.is_packed() {
            // The driver's own writes to the rings are not ours to note.
            let (used, len) = (driver.used_ring() + 2, 2 + 8 * 256);
            assert_eq!(sent.read(used, len), driver.memory.read(used, len));
        }
    }
}

#[test]
fn who_sees_a_used_index_sees_the_marks_of_what_it_tells_of() {
    const BURSTS: u16 = 2000;
    let mut driver = FakeDriver::split(256);
    let log = FakeLog::new(BUFFERS.end);
    driver.set_log(Some((&log, LogRing::AsItLies)));
    // A page for each burst.
    let place = |nth: u16| BUFFERS.start + u64::from(nth) * LOG_PAGE;
    let (memory, seen, index) = (driver.memory.clone(), log.clone(), driver.used_ring() + 2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut checked = 0;
            while checked < BURSTS {
                let used = memory.read(index, 2);
                let used = u16::from_le_bytes(used.try_into().unwrap());
                for nth in checked..used {
                    assert!(seen.is_marked(place(nth) / LOG_PAGE), "burst {nth}");
                }
                checked = used;
            }
        });
        for nth in 0..BURSTS {
            driver.offer(&[Buffer::writable(2048).at(place(nth))]);
            assert_eq!(driver.enqueue(&[frame(1500, 1)]), 1);
            driver.used();
        }
    });
}
