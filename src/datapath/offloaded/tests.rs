//! Both layouts, with and without mergeable buffers, with engines of all kinds of faults. Numbers
//! in comments are those of the fault table in docs/dma.md.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small or wrap on purpose"
)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::datapath::DmaCounters;
use crate::testing::dma::{Fault, Faults, Faulty, SimEngine};
use crate::testing::{
    BUFFERS, Buffer, FakeDriver, FakeLog, FakePacket, FakePool, Frame, LogRing, NEXT, RINGS, Used,
};
use crate::virtio_net::{VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// A driver, its virtqueue with engines, and what was sent.
struct Bench {
    driver: FakeDriver,
    queue: Option<Offloaded<FakePool>>,
    channels: Vec<Arc<Channel>>,
    /// Frames that were taken and not seen by the driver.
    expected: VecDeque<Frame>,
    seed: u8,
}

impl Bench {
    fn new(mut driver: FakeDriver, channels: Vec<Arc<Channel>>) -> Self {
        let queue = Offloaded::new(driver.start(), &channels, 1024, 512);
        Self {
            driver,
            queue: Some(queue),
            channels,
            expected: VecDeque::new(),
            seed: 0,
        }
    }

    fn queue(&mut self) -> &mut Offloaded<FakePool> {
        self.queue.as_mut().unwrap()
    }

    fn dma(&self, which: impl Fn(&DmaCounters) -> &AtomicU64) -> u64 {
        self.driver.counted(|counters| which(&counters.dma))
    }

    fn offer(&mut self, buffers: usize, len: u32) {
        for _ in 0..buffers {
            self.driver.offer(&[Buffer::writable(len)]);
        }
    }

    fn send_packets(&mut self, packets: &[FakePacket], frames: &[Frame]) -> usize {
        let Self { driver, queue, .. } = self;
        let queue = queue.as_mut().unwrap();
        let taken = queue.send(&driver.pool, packets, &driver.counters);
        driver.pool.release(&packets[taken..]);
        self.expected.extend(frames[..taken].iter().cloned());
        taken
    }

    /// Sends `count` frames of `len` bytes; how many were taken.
    fn send(&mut self, count: usize, len: usize) -> usize {
        let frames: Vec<_> = (0..count)
            .map(|_| {
                self.seed = self.seed.wrapping_add(1);
                Frame::new(len, self.seed)
            })
            .collect();
        let packets: Vec<_> = frames.iter().map(|f| self.driver.packet(f)).collect();
        self.send_packets(&packets, &frames)
    }

    fn reap(&mut self) -> usize {
        let Self { driver, queue, .. } = self;
        let queue = queue.as_mut().unwrap();
        queue.reap(&driver.pool, usize::MAX, &driver.counters)
    }

    fn drain(&mut self) -> bool {
        let Self { driver, queue, .. } = self;
        let queue = queue.as_mut().unwrap();
        queue.drain(&driver.pool, &driver.counters)
    }

    /// The driver takes what it got: what was sent, whole, in order, once. How many frames.
    fn receive(&mut self) -> usize {
        let frames = self.driver.frames();
        for frame in &frames {
            assert_eq!(Some(frame), self.expected.pop_front().as_ref());
        }
        frames.len()
    }

    /// Reaps until nothing is under way; all has arrived then.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.reap();
            self.receive();
            if self.queue().is_empty() {
                break;
            }
        }
        self.assert_all_arrived();
    }

    fn assert_all_arrived(&mut self) {
        assert!(self.queue().is_empty(), "packets are still under way");
        self.receive();
        assert_eq!(self.expected, [], "frames are lost");
        assert_eq!(self.driver.pool.live(), 0, "packets leak");
        assert!(self.driver.memory.canaries_are_whole());
        assert_eq!(self.dma(|c| &c.inflight), 0);
    }
}

fn drivers(size: u16) -> Vec<FakeDriver> {
    let both = [FakeDriver::split(size), FakeDriver::packed(size)];
    both.into_iter()
        .flat_map(|_| [false, true])
        .zip([false, false, true, true])
        .map(|(mergeable, packed)| {
            let ring = match packed {
                false => FakeDriver::split(size),
                true => FakeDriver::packed(size),
            };
            let modern = ring.feature(VIRTIO_F_VERSION_1);
            match mergeable {
                false => modern,
                true => modern.feature(VIRTIO_NET_F_MRG_RXBUF),
            }
        })
        .collect()
}

fn channel(engine: SimEngine) -> Arc<Channel> {
    Arc::new(Channel::new("sim", Box::new(engine)))
}

fn faulty(engine: SimEngine) -> (Arc<Channel>, Arc<Mutex<Faults>>) {
    let (engine, faults) = Faulty::new(engine);
    (Arc::new(Channel::new("faulty", Box::new(engine))), faults)
}

/// A bench of each kind with one faulty engine.
fn faulty_benches(faults: impl Fn(&mut Faults)) -> Vec<(Bench, Arc<Mutex<Faults>>)> {
    drivers(64)
        .into_iter()
        .map(|driver| {
            let (channel, state) = faulty(SimEngine::new(256));
            faults(&mut state.lock().unwrap());
            (Bench::new(driver, vec![channel]), state)
        })
        .collect()
}

#[test]
fn large_copies_are_the_engines_and_arrive_when_they_have_ended() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(16, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        assert_eq!(bench.receive(), 0, "nothing has ended yet");
        assert_eq!(bench.driver.pool.live(), 8);
        assert_eq!(bench.driver.counted(|c| &c.packets), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 8);
        assert_eq!(bench.reap(), 8);
        assert_eq!(bench.receive(), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.driver.counted(|c| &c.packets), 8);
        assert_eq!(bench.driver.counted(|c| &c.bytes), 12_000);
        assert_eq!(bench.dma(|c| &c.copies), 8);
        assert_eq!(bench.dma(|c| &c.packets), 8);
        assert_eq!(bench.dma(|c| &c.bytes), 12_000);
    }
}

#[test]
fn small_packets_take_the_plain_way_when_nothing_is_under_way() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(16, 2048);
        assert_eq!(bench.send(8, 1023), 8);
        assert_eq!(bench.receive(), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.copies), 0);
        assert_eq!(bench.dma(|c| &c.cpu_small), 8);
    }
}

#[test]
fn a_few_copies_are_not_worth_a_doorbell() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(16, 2048);
        assert_eq!(bench.send(3, 1500), 3);
        assert_eq!(bench.receive(), 3);
        assert_eq!(bench.send(4, 1500), 4);
        assert_eq!(bench.send(1, 1500), 1, "behind others it is");
        assert_eq!(bench.dma(|c| &c.copies), 5);
        bench.settle();
    }
}

#[test]
fn small_packets_wait_behind_large_ones() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(32, 2048);
        assert_eq!(bench.send(4, 1500), 4);
        assert_eq!(bench.send(4, 64), 4);
        // The second burst polled the engine before it took its packets.
        assert_eq!(bench.receive(), 8);
        bench.assert_all_arrived();
    }
    for driver in drivers(64) {
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
    for driver in drivers(64) {
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
    for driver in drivers(64).into_iter().skip(1).step_by(2) {
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
    for driver in drivers(8) {
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
        for driver in drivers(size) {
            let engines = [7, 64].map(|depth| channel(SimEngine::new(depth).shuffled(77)));
            let mut bench = Bench::new(driver, engines.into());
            for round in 0..300 {
                let free = bench.driver.free_descriptors();
                bench.offer(free, 2048);
                bench.send(1 + round % 9, [64, 1500, 2000][round % 3]);
                if round % 4 != 0 {
                    bench.reap();
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
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.offer(4, 2048);
        let bad = bench.driver.offer(&[Buffer::readable(2048)]);
        bench.offer(2, 2048);
        assert_eq!(bench.send(5, 1500), 5);
        assert_eq!(bench.driver.used(), []);
        bench.reap();
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
fn no_more_is_released_than_was_asked_for() {
    for driver in drivers(64) {
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

#[test]
fn the_driver_is_called_for_what_landed() {
    let mut driver = FakeDriver::split(64)
        .feature(VIRTIO_F_VERSION_1)
        .with_calls();
    let queue = driver.start();
    let channels = vec![channel(SimEngine::new(256))];
    let mut bench = Bench {
        queue: Some(Offloaded::new(queue, &channels, 1024, 512)),
        driver,
        channels,
        expected: VecDeque::new(),
        seed: 0,
    };
    bench.offer(8, 2048);
    bench.send(8, 1500);
    assert_eq!(bench.driver.calls(), 0);
    bench.reap();
    assert_eq!(bench.driver.calls(), 1);
    bench.settle();
}

#[test]
fn one_engine_serves_many_queues_and_any_of_them_polls_it() {
    let shared = channel(SimEngine::new(256).shuffled(5));
    let mut benches: Vec<_> = drivers(64)
        .into_iter()
        .map(|driver| Bench::new(driver, vec![Arc::clone(&shared)]))
        .collect();
    for _ in 0..20 {
        for bench in &mut benches {
            let free = bench.driver.free_descriptors();
            bench.offer(free.min(8), 2048);
            bench.send(8, 1500);
        }
        // The first one polls for all; the others then find theirs landed.
        benches[0].reap();
        for bench in &mut benches {
            assert!(bench.queue().is_empty() || bench.queue().way.flight.lands());
            bench.reap();
            bench.receive();
            assert!(bench.queue().is_empty());
        }
    }
    for bench in &mut benches {
        bench.settle();
    }
}

/// 1: a copy that never ends, and all of them.
#[test]
fn copies_that_never_end_are_the_cpus_after_the_deadline() {
    for all in [false, true] {
        let set = |faults: &mut Faults| match all {
            false => faults.copies.push((2, Fault::Lost)),
            true => faults.every = Some(Fault::Lost),
        };
        for (mut bench, faults) in faulty_benches(set) {
            bench.offer(32, 2048);
            assert_eq!(bench.send(8, 1500), 8);
            bench.reap();
            assert_eq!(bench.receive(), if all { 0 } else { 2 });
            let began = Instant::now();
            assert!(bench.drain());
            assert!(began.elapsed() >= Duration::from_millis(100));
            bench.assert_all_arrived();
            assert!(faults.lock().unwrap().halted);
            assert_eq!(bench.dma(|c| &c.drain_timeouts), 1);
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            assert!(bench.dma(|c| &c.redone) >= 1);
            // The CPU goes on alone.
            assert_eq!(bench.send(8, 1500), 8);
            assert_eq!(bench.receive(), 8);
            bench.settle();
            assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
            assert_eq!(bench.dma(|c| &c.cpu_small), 0);
        }
    }
}

/// 1, with an engine that cannot be stopped.
#[test]
fn what_an_unstoppable_engine_has_is_never_given_back() {
    let set = |faults: &mut Faults| {
        faults.every = Some(Fault::Lost);
        faults.unproven = true;
    };
    for (mut bench, _) in faulty_benches(set) {
        bench.offer(32, 2048);
        bench.send(8, 1500);
        assert!(!bench.drain());
        assert_eq!(bench.receive(), 0);
        assert_eq!(bench.driver.pool.live(), 8);
        let memory = Arc::clone(&bench.queue().virtqueue.memory);
        let before = Arc::strong_count(&memory);
        assert!(bench.queue.take().unwrap().into_virtqueue().is_held());
        // The virtqueue has gone with what it had; one count stays for ever.
        assert!(Arc::strong_count(&memory) > 1, "of {before}");
        assert_eq!(bench.driver.pool.live(), 8);
    }
}

/// 2 and 3: any copy fails, with nothing or something done.
#[test]
fn a_copy_that_fails_is_done_again_by_the_cpu() {
    for fault in [Fault::Failed, Fault::Partial] {
        for nth in 0..8 {
            for (mut bench, _) in faulty_benches(|faults| faults.copies.push((nth, fault))) {
                bench.offer(32, 4096);
                assert_eq!(bench.send(4, 4000), 4);
                bench.settle();
                assert_eq!(bench.dma(|c| &c.errors), 1);
                assert!(bench.dma(|c| &c.redone) >= 1);
                assert_eq!(bench.dma(|c| &c.engine_dead), 0);
            }
        }
    }
}

/// 4: the channel halts, again and again.
#[test]
fn an_engine_that_halts_goes_on_three_times_and_then_no_more() {
    for (mut bench, faults) in faulty_benches(|_| {}) {
        for turn in 0..5_u64 {
            let staged = faults.lock().unwrap().staged;
            let place = staged + turn % 4;
            faults.lock().unwrap().copies.push((place, Fault::Halt));
            bench.offer(8, 2048);
            assert_eq!(bench.send(8, 1500), 8);
            bench.settle();
            assert_eq!(bench.dma(|c| &c.recoveries), (turn + 1).min(3));
            assert_eq!(bench.dma(|c| &c.engine_dead), u64::from(turn >= 3));
        }
        assert_eq!(faults.lock().unwrap().recoveries, 3);
    }
}

/// 5: and it does not go on.
#[test]
fn an_engine_that_does_not_recover_is_dead() {
    let set = |faults: &mut Faults| {
        faults.copies.push((1, Fault::Halt));
        faults.stays_halted = true;
    };
    for (mut bench, faults) in faulty_benches(set) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
        assert!(faults.lock().unwrap().halted);
        assert!(bench.channels[0].is_dead());
    }
}

/// 6: reports of copies that it does not have.
#[test]
fn an_engine_that_reports_too_much_is_dead_and_nothing_is_freed_twice() {
    let sets: [fn(&mut Faults); 2] = [
        |faults| faults.copies.push((1, Fault::Twice)),
        |faults| faults.invented = true,
    ];
    for set in sets {
        for (mut bench, _) in faulty_benches(set) {
            bench.offer(32, 2048);
            assert_eq!(bench.send(8, 1500), 8);
            bench.settle();
            assert!(bench.channels[0].is_dead());
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            bench.send(8, 1500);
            bench.settle();
        }
    }
}

/// 7: cannot be seen in production; here the driver's bytes tell.
#[test]
fn an_engine_that_lies_is_seen_by_the_bytes() {
    for (mut bench, _) in faulty_benches(|faults| faults.copies.push((1, Fault::Lie))) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(4, 1500), 4);
        bench.reap();
        let frames = bench.driver.frames();
        let wrong = frames.iter().zip(&bench.expected).filter(|(a, b)| a != b);
        assert_eq!(wrong.count(), 1);
    }
}

/// 8: the device is gone.
#[test]
fn a_removed_engine_is_dead_at_once() {
    for (mut bench, faults) in faulty_benches(|_| {}) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        faults.lock().unwrap().removed = true;
        bench.reap();
        assert!(bench.channels[0].is_dead());
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
    }
}

/// 9: a doorbell is lost once, and for ever.
#[test]
fn a_lost_doorbell_is_rung_once_more() {
    for (mut bench, _) in faulty_benches(|faults| faults.lost_doorbells = 1) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        assert!(bench.drain());
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.drain_timeouts), 0);
        assert!(!bench.channels[0].is_dead());
    }
    for (mut bench, _) in faulty_benches(|faults| faults.lost_doorbells = 2) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        assert!(bench.drain());
        bench.assert_all_arrived();
        assert!(bench.channels[0].is_dead());
    }
}

/// 9, without a drain.
#[test]
fn the_watchdog_ends_an_engine_that_stands_still() {
    for lost in [1, 2] {
        for (mut bench, _) in faulty_benches(|faults| faults.lost_doorbells = lost) {
            bench.offer(32, 2048);
            assert_eq!(bench.send(8, 1500), 8);
            let begin = Instant::now();
            for ms in [0, 1, 49, 51, 99] {
                bench.queue().watch(begin + Duration::from_millis(ms));
                bench.reap();
            }
            assert_eq!(bench.queue().is_empty(), lost == 1);
            bench.queue().watch(begin + Duration::from_millis(101));
            bench.reap();
            bench.assert_all_arrived();
            assert_eq!(bench.channels[0].is_dead(), lost == 2);
        }
    }
}

/// 10: no room in the engine.
#[test]
fn a_full_engine_leaves_the_copies_to_the_cpu() {
    for (mut bench, faults) in faulty_benches(|faults| faults.full = true) {
        bench.offer(32, 2048);
        assert_eq!(bench.send(8, 1500), 8);
        assert_eq!(bench.receive(), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
        faults.lock().unwrap().full = false;
        assert_eq!(bench.send(8, 1500), 8);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.copies), 8);
    }
    // A packet is the engine's as a whole, or not at all.
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(5))]);
        bench.offer(16, 4096);
        assert_eq!(bench.send(4, 3900), 4);
        assert_eq!(bench.dma(|c| &c.copies), 4);
        bench.settle();
    }
}

/// 11: engines end out of order, within and across.
#[test]
fn packets_stay_in_order_whatever_the_engines_do() {
    for driver in drivers(64) {
        let engines = [1, 2, 3].map(|seed| {
            let engine = SimEngine::new(64).shuffled(seed * 977);
            channel(engine.per_poll(seed as usize))
        });
        let mut bench = Bench::new(driver, engines.into());
        for _ in 0..50 {
            let free = bench.driver.free_descriptors();
            bench.offer(free, 2048);
            bench.send(7, 1500);
            bench.receive();
        }
        bench.settle();
    }
}

/// 12: one copy a poll.
#[test]
fn a_slow_engine_is_only_slow() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(64).per_poll(1))]);
        bench.offer(64, 2048);
        assert_eq!(bench.send(32, 1500), 32);
        for left in (0..32).rev() {
            assert_eq!(bench.reap(), 1);
            assert_eq!(bench.dma(|c| &c.inflight), left);
        }
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 0);
    }
}

/// 13: whatever is under way has arrived when a drain returns.
#[test]
fn a_drain_empties_the_queue_at_any_fill() {
    for count in [1, 4, 31, 64] {
        for driver in drivers(64) {
            let engine = SimEngine::new(256).per_poll(3).shuffled(8);
            let mut bench = Bench::new(driver, vec![channel(engine)]);
            bench.offer(64, 2048);
            bench.send(count, 1500);
            assert!(bench.drain());
            bench.assert_all_arrived();
            let queue = bench.queue.take().unwrap().into_virtqueue();
            let at = bench.driver.stop_at(queue);
            let turns = if bench.driver.is_packed() && count == 64 {
                0 // back at the beginning, in the next turn
            } else if bench.driver.is_packed() {
                count as u16 | 1 << 15
            } else {
                count as u16
            };
            assert_eq!(at, turns);
        }
    }
}

/// 15: packets are back in their pool before it may go.
#[test]
fn after_a_drain_no_packet_is_out() {
    for (mut bench, _) in faulty_benches(|faults| faults.copies.push((3, Fault::Lost))) {
        bench.offer(64, 2048);
        bench.send(32, 1500);
        assert!(bench.drain());
        assert_eq!(bench.driver.pool.live(), 0);
        bench.settle();
    }
}

/// 16: memory that the engine does not reach.
#[test]
fn mappings_come_and_go_with_the_queue() {
    for (bench, faults) in faulty_benches(|_| {}) {
        assert!(faults.lock().unwrap().mappings > 0);
        drop(bench);
        assert_eq!(faults.lock().unwrap().mappings, 0);
    }
}

/// 16: a region is too long for the engine; the others are its own.
#[test]
fn memory_that_cannot_be_mapped_is_the_cpus() {
    for (mut bench, faults) in faulty_benches(|faults| faults.longest_mapping = 8 << 20) {
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
    for mut driver in drivers(64) {
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
            bench.reap();
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

#[test]
fn every_packet_is_the_engines_with_a_threshold_of_0() {
    for mut driver in drivers(64) {
        let channels = vec![channel(SimEngine::new(256))];
        let queue = Offloaded::new(driver.start(), &channels, 0, 512);
        let mut bench = Bench {
            driver,
            queue: Some(queue),
            channels,
            expected: VecDeque::new(),
            seed: 0,
        };
        bench.offer(8, 2048);
        assert_eq!(bench.send(1, 60), 1);
        assert_eq!(bench.dma(|c| &c.copies), 1);
        bench.settle();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize),
    Send(Vec<usize>),
    Reap,
    Drain,
    Fault(u64, Fault),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![60..200_usize, 1000..1600_usize, 1600..6000_usize];
    let fault = prop_oneof![
        Just(Fault::Failed),
        Just(Fault::Partial),
        Just(Fault::Halt),
        Just(Fault::Twice)
    ];
    let step = prop_oneof![
        3 => (1..20_usize).prop_map(Step::Offer),
        4 => prop::collection::vec(len, 1..12).prop_map(Step::Send),
        2 => Just(Step::Reap),
        1 => Just(Step::Drain),
        1 => (0..16_u64, fault).prop_map(|(nth, fault)| Step::Fault(nth, fault)),
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
        let driver = drivers(32).swap_remove(kind);
        let engines = [seed, seed >> 7].map(|seed| {
            faulty(SimEngine::new(24).per_poll(per_poll).shuffled(seed))
        });
        let channels = engines.iter().map(|(channel, _)| Arc::clone(channel)).collect();
        let mut bench = Bench::new(driver, channels);
        for step in steps {
            match step {
                Step::Offer(count) => {
                    let free = bench.driver.free_descriptors();
                    bench.offer(count.min(free), 6100);
                }
                Step::Send(lens) => {
                    let frames: Vec<_> = lens.iter().map(|&len| {
                        bench.seed = bench.seed.wrapping_add(1);
                        Frame::new(len, bench.seed)
                    }).collect();
                    let packets: Vec<_> = frames.iter().map(|f| bench.driver.packet(f)).collect();
                    bench.send_packets(&packets, &frames);
                }
                Step::Reap => { bench.reap(); }
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
