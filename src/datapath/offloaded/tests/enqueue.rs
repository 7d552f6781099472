//! What only packets to the guest do.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::Enqueue;
use super::bench::{self, Way, channel, fault, faulty, faulty_benches, lens, offer_again};
use crate::testing::dma::{Fault, SimEngine};
use crate::testing::{BUFFERS, Buffer, FakeDriver, FakeLog, FakePool, LogRing, NEXT, RINGS, Used};

type ToGuest = Enqueue<FakePool>;
type Bench = bench::Bench<ToGuest>;

#[test]
fn small_packets_wait_behind_large_ones() {
    for driver in ToGuest::drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(32, 2048);
        assert_eq!(bench.send(4, 1500), 4);
        assert_eq!(bench.send(4, 64), 4);
        // The second burst polled the engine before it took its packets.
        assert_eq!(bench.receive(), 8);
        bench.assert_all_arrived();
    }
    for driver in ToGuest::drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).per_poll(1))]);
        bench.offer(8, 2048);
        assert_eq!(bench.send(4, 1500), 4);
        assert_eq!(bench.send(4, 64), 4);
        assert_eq!(bench.receive(), 1);
        assert_eq!(bench.dma(|c| &c.inflight), 7);
        bench.settle();
    }
}

#[test]
fn packets_of_many_segments_and_chains_are_put_together() {
    for driver in ToGuest::drivers(64) {
        let mergeable = driver.header_len() == 12 && !driver.is_packed();
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).shuffled(3))]);
        for _ in 0..10 {
            // Long enough for the whole frame, in pieces that fit nothing.
            bench.driver.offer(&[
                Buffer::writable(700),
                Buffer::writable(3000),
                Buffer::writable(2900),
                Buffer::writable(1900),
            ]);
        }
        // Five segments in the pool's packets.
        assert_eq!(bench.send(4, 8200), 4, "mergeable split: {mergeable}");
        assert!(bench.dma(|c| &c.copies) > 8);
        assert!(bench.dma(|c| &c.cpu_small) > 0);
        bench.settle();
    }
}

#[test]
fn mergeable_packets_take_as_many_buffers_as_they_need() {
    for driver in ToGuest::drivers(64).into_iter().skip(1).step_by(2) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).shuffled(9))]);
        bench.offer(40, 1600);
        assert_eq!(bench.send(5, 9000), 5);
        assert_eq!(bench.queue().way.flight.len(), 5);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.packets), 5);
    }
}

#[test]
fn a_full_ring_stops_the_burst_and_goes_on_when_buffers_come() {
    for driver in ToGuest::drivers(8) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(8, 2048);
        assert_eq!(bench.send(20, 1500), 8);
        assert_eq!(bench.send(20, 1500), 0);
        assert_eq!(bench.receive(), 8, "the second burst polled");
        bench.offer(8, 2048);
        assert_eq!(bench.send(20, 1500), 8);
        bench.settle();
    }
}

#[test]
fn rings_of_any_size_turn_many_times() {
    for size in [8, 32] {
        for driver in ToGuest::drivers(size) {
            let engines = [7, 64].map(|depth| channel(SimEngine::new(depth).shuffled(77)));
            let mut bench = Bench::new(driver, engines.into());
            for round in 0..300 {
                let free = bench.driver.free_descriptors();
                bench.offer(free, 2048);
                bench.send(1 + round % 9, [64, 1500, 2000][round % 3]);
                if round % 4 != 0 {
                    bench.reap(usize::MAX);
                }
                bench.receive();
            }
            bench.settle();
            assert!(bench.dma(|c| &c.copies) > 100);
        }
    }
}

#[test]
fn a_chain_that_is_malformed_goes_back_in_its_turn() {
    for driver in ToGuest::drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(4, 2048);
        let bad = bench.driver.offer(&[Buffer::readable(2048)]);
        bench.offer(2, 2048);
        assert_eq!(bench.send(5, 1500), 5);
        assert_eq!(bench.driver.used(), []);
        bench.reap(usize::MAX);
        let used = bench.driver.used();
        assert_eq!(used.len(), 6);
        let bad = Used {
            head: bad.into(),
            len: 0,
        };
        assert_eq!(used[4], bad);
        assert!(used.iter().all(|used| *used == bad || used.len == 1512));
        assert_eq!(bench.driver.pool.live(), 0);
        assert_eq!(bench.driver.counted(|c| &c.drop_bad_desc), 1);
    }
}

#[test]
fn a_driver_that_offers_again_what_is_under_way_gets_nothing_early() {
    for (mut bench, _) in faulty_benches::<ToGuest>(|faults| faults.every = Some(Fault::Lost)) {
        let under_way = bench.driver.size() - 3;
        bench.offer(under_way.into(), 2048);
        assert_eq!(bench.send(under_way.into(), 1500), usize::from(under_way));
        offer_again(&mut bench.driver, under_way);
        for _ in 0..3 {
            assert_eq!(bench.send(1, 1500), 0);
            assert!(bench.queue().len() <= u32::from(bench.driver.size()));
        }
        assert_eq!(bench.driver.pool.live(), usize::from(under_way));
        assert_eq!(bench.driver.counted(|c| &c.packets), 0);

        assert!(bench.drain());
        assert_eq!(bench.driver.pool.live(), 0);
        let sent = bench.driver.counted(|c| &c.packets);
        assert_eq!(sent, u64::from(under_way));
        assert!(bench.driver.memory.canaries_are_whole());
    }
}

#[test]
fn no_more_is_released_than_was_asked_for() {
    for driver in ToGuest::drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(16, 2048);
        bench.send(8, 1500);
        let Bench { driver, queue, .. } = &mut bench;
        let queue = queue.as_mut().unwrap();
        let first = queue.first();
        assert_eq!(queue.reap(&driver.pool, 3, &driver.counters), 3);
        assert_eq!(queue.first(), first + 3);
        assert_eq!(driver.pool.live(), 5);
        bench.settle();
    }
}

/// 15: packets are back in their pool before it may go.
#[test]
fn after_a_drain_no_packet_is_out() {
    for (mut bench, _) in faulty_benches::<ToGuest>(|faults| faults.copies.push((3, Fault::Lost))) {
        bench.offer(64, 2048);
        bench.send(32, 1500);
        assert!(bench.drain());
        assert_eq!(bench.driver.pool.live(), 0);
        bench.settle();
    }
}

/// 16: a region is too long for the engine; the others are its own.
#[test]
fn memory_that_cannot_be_mapped_is_the_cpus() {
    for (mut bench, faults) in faulty_benches::<ToGuest>(|faults| faults.longest_mapping = 8 << 20)
    {
        assert_eq!(
            faults.lock().unwrap().refusals,
            1,
            "told once, of one region"
        );
        for nth in 0..16 {
            let buffer = Buffer::writable(2048);
            // Every other one in a short region.
            let buffer = match nth % 2 {
                0 => buffer,
                _ => buffer.at(NEXT.start + nth * 2048),
            };
            bench.driver.offer(&[buffer]);
        }
        assert_eq!(bench.send(16, 1500), 16);
        assert_eq!(bench.dma(|c| &c.copies), 8);
        assert_eq!(bench.dma(|c| &c.cpu_noaddr), 8);
        bench.settle();
        assert_eq!(faults.lock().unwrap().refusals, 1);
        let mapped = faults.lock().unwrap().mappings;
        assert!(mapped > 0);
        drop(bench);
        assert_eq!(faults.lock().unwrap().mappings, 0);
    }
}

/// 14: whoever copies the pages of the log again and again ends with the guest's memory.
#[test]
fn a_migrated_image_is_equal_to_memory() {
    for mut driver in ToGuest::drivers(64) {
        let log = FakeLog::new(BUFFERS.end);
        driver.set_log(Some((&log, LogRing::AsItLies)));
        let ranges = [RINGS, BUFFERS.start..BUFFERS.start + 0x40_0000];
        let (channel, faults) = faulty(SimEngine::new(256).per_poll(3).shuffled(4));
        let mut bench = Bench::new(driver, vec![channel]);
        bench.offer(32, 4096);
        let before = bench.driver.memory.snapshot(&ranges);
        let mut image = HashMap::new();
        let mut copy = |bench: &Bench| {
            for page in log.take() {
                let bytes = bench.driver.memory.read(page * 4096, 4096);
                image.insert(page, bytes);
            }
        };
        faults.lock().unwrap().copies.push((5, Fault::Partial));
        for count in [8, 1, 6] {
            assert_eq!(bench.send(count, 3900), count);
            copy(&bench);
            bench.reap(usize::MAX);
            copy(&bench);
        }
        assert!(bench.drain());
        copy(&bench);
        let now = bench.driver.memory.snapshot(&ranges);
        let changed = now.changed_since(&before);
        assert!(changed.len() > 10);
        for page in changed {
            let bytes = bench.driver.memory.read(page * 4096, 4096);
            assert!(image.get(&page) == Some(&bytes), "page {page:#x}");
        }
        bench.assert_all_arrived();
    }
}

/// The descriptors of a buffer.
#[derive(Clone, Copy, Debug)]
enum Shape {
    One,
    Two,
    Indirect,
}

impl Shape {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![Just(Self::One), Just(Self::Two), Just(Self::Indirect)]
    }

    fn offer(self, driver: &mut FakeDriver) {
        let two = [Buffer::writable(700), Buffer::writable(5400)];
        match self {
            Self::One => driver.offer(&[Buffer::writable(6100)]),
            Self::Two => driver.offer(&two),
            Self::Indirect => {
                let table = driver.indirect(&two);
                driver.offer(&[table])
            }
        };
    }
}

#[test]
fn packets_of_one_segment_find_their_bytes_in_buffers_of_any_shape() {
    for shapes in [
        [Shape::One, Shape::Two, Shape::One, Shape::Indirect],
        [Shape::Two, Shape::One, Shape::Indirect, Shape::One],
    ] {
        for mut bench in bench::benches::<ToGuest>(|| SimEngine::new(256).shuffled(5)) {
            for shape in shapes.into_iter().cycle().take(32) {
                shape.offer(&mut bench.driver);
            }
            assert_eq!(bench.send(4, 1500), 4);
            // Behind others small ones wait, too.
            assert_eq!(bench.send(8, 64), 8);
            assert_eq!(bench.send_all(&[1500, 64, 2000, 1023, 1024, 1500]), 6);
            assert!(bench.dma(|c| &c.copies) >= 4);
            bench.settle();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize, Shape),
    Send(Vec<usize>),
    Reap,
    Drain,
    Fault(u64, Fault),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..20_usize, Shape::any()).prop_map(|(count, shape)| Step::Offer(count, shape)),
        4 => lens().prop_map(Step::Send),
        2 => Just(Step::Reap),
        1 => Just(Step::Drain),
        1 => (0..16_u64, fault()).prop_map(|(nth, fault)| Step::Fault(nth, fault)),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        steps in steps(),
        kind in 0..4_usize,
        per_poll in 1..9_usize,
        seed in any::<u64>(),
    ) {
        let driver = ToGuest::drivers(32).swap_remove(kind);
        let engines = [seed, seed >> 7].map(|seed| {
            faulty(SimEngine::new(24).per_poll(per_poll).shuffled(seed))
        });
        let channels = engines.iter().map(|(channel, _)| Arc::clone(channel)).collect();
        let mut bench = Bench::new(driver, channels);
        for step in steps {
            match step {
                Step::Offer(count, shape) => {
                    let free = bench.driver.free_descriptors() / 2;
                    (0..count.min(free)).for_each(|_| shape.offer(&mut bench.driver));
                }
                Step::Send(lens) => { bench.send_all(&lens); }
                Step::Reap => { bench.reap(usize::MAX); }
                Step::Drain => prop_assert!(bench.drain()),
                Step::Fault(nth, fault) => {
                    let mut faults = engines[0].1.lock().unwrap();
                    let at = faults.staged + nth;
                    faults.copies.push((at, fault));
                }
            }
            bench.receive();
        }
        bench.settle();

    }
}
