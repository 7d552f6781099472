//! Both layouts, in order or not, with engines of all kinds of faults. Numbers in comments are those of
//! the fault table in docs/dma.md.
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
use crate::datapath::{Checksum, DmaCounters};
use crate::testing::dma::{Fault, Faults, Faulty, SimEngine};
use crate::testing::{
    BUFFERS, Buffer, Build, FakeDriver, FakeLog, FakePacket, FakePool, Frame, LogRing, NEXT, RINGS,
    Used,
};
use crate::virtio_net::{
    Ip, Transport, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
};

/// A driver, its virtqueue with engines, and what it sent.
struct Bench {
    driver: FakeDriver,
    queue: Option<OffloadedDequeue<FakePool>>,
    channels: Vec<Arc<Channel>>,
    /// Frames that were sent and not received.
    expected: VecDeque<Frame>,
    /// Packets of a drain.
    kept: VecDeque<FakePacket>,
    /// Chains that came back.
    used: Vec<Used>,
    seed: u8,
}

impl Bench {
    fn new(driver: FakeDriver, channels: Vec<Arc<Channel>>) -> Self {
        Self::with_threshold(driver, channels, 1024)
    }

    fn with_threshold(mut driver: FakeDriver, channels: Vec<Arc<Channel>>, threshold: u32) -> Self {
        let queue = OffloadedDequeue::new(driver.start(), &channels, threshold, 512);
        Self {
            driver,
            queue: Some(queue),
            channels,
            expected: VecDeque::new(),
            kept: VecDeque::new(),
            used: Vec::new(),
            seed: 0,
        }
    }

    fn queue(&mut self) -> &mut OffloadedDequeue<FakePool> {
        self.queue.as_mut().unwrap()
    }

    fn dma(&self, which: impl Fn(&DmaCounters) -> &AtomicU64) -> u64 {
        self.driver.counted(|counters| which(&counters.dma))
    }

    fn frame(&mut self, len: usize) -> Frame {
        self.seed = self.seed.wrapping_add(1);
        Frame::new(len, self.seed)
    }

    /// The driver sends `count` frames of `len` bytes, each in one buffer.
    fn send(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            let frame = self.frame(len);
            self.driver.send(&frame);
            self.expected.push_back(frame);
        }
    }

    /// The driver sends a frame in buffers of these lengths, the header in the first of them; in a
    /// table, or not.
    fn send_in(&mut self, lens: &[usize], indirect: bool) {
        let all: usize = lens.iter().sum();
        let frame = self.frame(all - self.driver.header_len());
        let mut bytes = self.driver.with_header(&frame);
        let buffers: Vec<_> = lens
            .iter()
            .map(|&len| Buffer::holding(bytes.drain(..len).collect::<Vec<_>>()))
            .collect();
        let buffers = match indirect {
            true => vec![self.driver.indirect(&buffers)],
            false => buffers,
        };
        self.driver.offer(&buffers);
        self.expected.push_back(frame);
    }

    /// A burst; how many packets it gave: what was sent, whole, in order, once.
    fn receive(&mut self, most: usize) -> usize {
        let Self {
            driver,
            queue,
            kept,
            ..
        } = self;
        let mut packets = vec![FakePacket::default(); most];
        let old = most.min(kept.len());
        for (to, from) in packets.iter_mut().zip(kept.drain(..old)) {
            *to = from;
        }
        let queue = queue.as_mut().unwrap();
        let new = queue.receive(&driver.pool, &mut packets[old..], &driver.counters);
        packets.truncate(old + new);
        for packet in &packets {
            let frame = Frame(packet.to_vec());
            assert_eq!(Some(frame), self.expected.pop_front());
        }
        self.driver.pool.release(&packets);
        self.take_used();
        packets.len()
    }

    /// Chains that came back since this was last asked.
    fn take_used(&mut self) -> usize {
        let used = self.driver.used();
        assert!(used.iter().all(|used| used.len == 0));
        self.used.extend(&used);
        used.len()
    }

    fn reap(&mut self) {
        let Self {
            driver,
            queue,
            kept,
            ..
        } = self;
        let mut keep = |packets: &[FakePacket]| kept.extend(packets);
        let queue = queue.as_mut().unwrap();
        queue.reap(&driver.pool, &mut keep, &driver.counters);
    }

    fn drain(&mut self) -> bool {
        let Self {
            driver,
            queue,
            kept,
            ..
        } = self;
        let mut keep = |packets: &[FakePacket]| kept.extend(packets);
        let queue = queue.as_mut().unwrap();
        queue.drain(&driver.pool, &mut keep, &driver.counters)
    }

    /// Polls until all has been received.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.receive(8);
            if self.queue().is_empty() && self.expected.is_empty() {
                break;
            }
        }
        self.assert_all_arrived();
    }

    fn assert_all_arrived(&mut self) {
        assert!(self.queue().is_empty(), "packets are still under way");
        while !self.kept.is_empty() {
            self.receive(8);
        }
        assert_eq!(self.expected, [], "frames are lost");
        self.take_used();
        assert_eq!(
            self.driver.free_descriptors(),
            usize::from(self.driver.size())
        );
        assert_eq!(self.driver.pool.live(), 0, "packets leak");
        assert!(self.driver.memory.canaries_are_whole());
        assert_eq!(self.dma(|c| &c.inflight), 0);
    }
}

/// The drivers whose rings have burst bodies of their own.
fn drivers(size: u16) -> Vec<FakeDriver> {
    let split = || FakeDriver::split(size);
    let modern = [split(), FakeDriver::packed(size)].map(|ring| ring.feature(VIRTIO_F_VERSION_1));
    let in_order = [split(), FakeDriver::packed(size)].map(|ring| ring.feature(VIRTIO_F_VERSION_1));
    let in_order = in_order.map(|ring| ring.feature(VIRTIO_F_IN_ORDER));
    modern
        .into_iter()
        .chain(in_order)
        .chain([split()])
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
fn a_chain_is_the_drivers_again_when_its_copies_have_ended() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(8, 1500);
        assert_eq!(bench.receive(32), 0, "nothing has ended yet");
        assert_eq!(bench.used, []);
        assert_eq!(bench.driver.pool.live(), 8);
        assert_eq!(bench.driver.counted(|c| &c.packets), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 8);
        assert_eq!(bench.receive(32), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.used.len(), 8);
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
        bench.send(8, 1000);
        assert_eq!(bench.receive(32), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.copies), 0);
        assert_eq!(bench.dma(|c| &c.cpu_small), 8);
    }
}

#[test]
fn a_few_copies_are_not_worth_a_doorbell() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).per_poll(1))]);
        bench.send(3, 1500);
        assert_eq!(bench.receive(32), 3);
        bench.send(4, 1500);
        assert_eq!(bench.receive(32), 0);
        bench.send(1, 1500);
        assert_eq!(bench.receive(32), 1, "behind others it is");
        assert_eq!(bench.dma(|c| &c.copies), 5);
        bench.settle();
    }
}

#[test]
fn small_packets_wait_behind_large_ones_and_not_before_them() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(2, 64);
        bench.send(4, 1500);
        bench.send(3, 64);
        assert_eq!(bench.receive(32), 2, "those at the front are here at once");
        assert_eq!(bench.used.len(), 2);
        assert_eq!(bench.dma(|c| &c.inflight), 7);
        assert_eq!(bench.receive(32), 7);
        bench.assert_all_arrived();
    }
}

#[test]
fn frames_of_many_buffers_and_segments_are_put_together() {
    for indirect in [false, true] {
        for driver in drivers(64) {
            let header = driver.header_len();
            let engine = SimEngine::new(256).shuffled(3);
            let mut bench = Bench::new(driver, vec![channel(engine)]);
            for _ in 0..4 {
                // The header alone, in pieces, and with data behind it.
                bench.send_in(&[header, 1500], indirect);
                bench.send_in(&[3, header - 3, 700, 3000, 1], indirect);
                bench.send_in(&[header + 2500, 1900, 4000], indirect);
            }
            assert_eq!(bench.receive(32), 0);
            assert!(bench.dma(|c| &c.copies) > 16);
            assert!(bench.dma(|c| &c.cpu_small) > 0);
            bench.settle();
        }
    }
}

#[test]
fn frames_are_taken_two_bursts_ahead() {
    for driver in drivers(128) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).per_poll(0))]);
        bench.send(100, 1500);
        assert_eq!(bench.receive(16), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 32);
        assert_eq!(bench.receive(32), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 64);
    }
}

#[test]
fn no_more_is_handed_out_than_there_is_room_for() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(20, 1500);
        assert_eq!(bench.receive(8), 0);
        assert_eq!(bench.receive(5), 5);
        assert_eq!(bench.receive(0), 0);
        assert_eq!(bench.receive(8), 8);
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
                bench.send(free.min(1 + round % 9), [64, 1500, 2000][round % 3]);
                if round % 4 == 0 {
                    bench.reap();
                } else {
                    bench.receive(1 + round % 13);
                }
                bench.take_used();
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
        bench.send(4, 1500);
        let bad = bench.driver.offer(&[Buffer::readable(2048).at(1 << 50)]);
        bench.send(2, 1500);
        assert_eq!(bench.receive(32), 0);
        assert_eq!(bench.used, []);
        assert_eq!(bench.receive(32), 6);
        assert_eq!(bench.used.len(), 7);
        assert_eq!(bench.used[4].head, u32::from(bad));
        bench.assert_all_arrived();
        assert_eq!(bench.driver.counted(|c| &c.drop_bad_desc), 1);
        assert_eq!(bench.driver.counted(|c| &c.packets), 6);
    }
}

#[test]
fn frames_that_are_too_short_or_too_long_are_dropped_and_counted() {
    for mut driver in drivers(64) {
        driver.pool.linear();
        let header = driver.header_len();
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(4, 1500);
        bench.driver.offer(&[Buffer::readable(header as u32)]);
        bench.driver.offer(&[Buffer::readable(3000)]);
        bench.send(1, 1500);
        bench.settle();
        assert_eq!(bench.driver.counted(|c| &c.drop_short), 1);
        assert_eq!(bench.driver.counted(|c| &c.drop_oversize), 1);
        assert_eq!(bench.used.len(), 7);
    }
}

#[test]
fn long_frames_get_large_buffers_while_there_are_any() {
    for mut driver in drivers(64) {
        driver.pool.linear();
        FakePool::large(&mut driver.pool, 10_000, 2);
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).shuffled(7))]);
        bench.send(4, 9000);
        // The third and the fourth find none; a frame behind them does not wait for them.
        bench.expected.truncate(2);
        bench.send(1, 1500);
        bench.settle();
        assert_eq!(bench.driver.counted(|c| &c.drop_no_mbuf), 2);
        assert_eq!(bench.driver.counted(|c| &c.mbuf_alloc_failed), 2);
    }
}

#[test]
fn a_pool_that_is_dry_leaves_the_chains_where_they_are() {
    for mut driver in drivers(64) {
        driver.pool.limit(5);
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(12, 1500);
        assert_eq!(bench.receive(32), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 5);
        assert!(bench.driver.counted(|c| &c.mbuf_alloc_failed) > 0);
        assert_eq!(bench.driver.counted(|c| &c.drop_no_mbuf), 0);
        bench.settle();
    }
}

#[test]
fn a_frame_in_which_the_pool_runs_dry_is_dropped_whole() {
    for mut driver in drivers(64) {
        driver.pool.limit(6);
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
        bench.send(4, 1500);
        // Four segments of 2048 bytes.
        bench.send(1, 8000);
        bench.expected.pop_back();
        bench.send(1, 1500);
        assert_eq!(bench.receive(32), 0);
        assert_eq!(bench.dma(|c| &c.copies), 4, "nothing of it was begun");
        bench.settle();
        assert_eq!(bench.driver.counted(|c| &c.drop_no_mbuf), 1);
        assert_eq!(bench.used.len(), 6);
    }
}

#[test]
fn the_driver_is_called_for_what_landed() {
    let driver = FakeDriver::split(64)
        .feature(VIRTIO_F_VERSION_1)
        .with_calls();
    let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256))]);
    bench.send(8, 1500);
    bench.receive(32);
    assert_eq!(bench.driver.calls(), 0);
    bench.receive(32);
    assert_eq!(bench.driver.calls(), 1);
    bench.settle();
}

#[test]
fn what_the_driver_asks_for_is_done_when_the_bytes_are_there() {
    for layout in [FakeDriver::split(64), FakeDriver::packed(64)] {
        let modern = layout.feature(VIRTIO_F_VERSION_1);
        let mut driver = modern.feature(VIRTIO_NET_F_CSUM);
        let channels = [channel(SimEngine::new(256))];
        let mut queue = OffloadedDequeue::new(driver.start(), &channels, 1024, 512);
        let frame = Frame(Build::new(Ip::V4, Transport::Tcp, 1400).frame());
        let header = Header {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 16,
            ..Header::default()
        };
        let mut bytes = header.to_bytes(0)[..driver.header_len()].to_vec();
        bytes.extend(&frame.0);
        for _ in 0..4 {
            driver.offer(&[Buffer::holding(bytes.clone())]);
        }
        let mut packets = vec![FakePacket::default(); 4];
        assert_eq!(
            queue.receive(&driver.pool, &mut packets, &driver.counters),
            0
        );
        // What the header says counts as it was when the frame was taken.
        assert_eq!(
            queue.receive(&driver.pool, &mut packets, &driver.counters),
            4
        );
        for packet in &packets {
            assert_eq!(packet.to_vec(), frame.0);
            assert_eq!(packet.marks().unwrap().checksum, Checksum::Missing);
        }
        driver.pool.release(&packets);
    }
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
            bench.send(8, 1500);
            bench.receive(8);
        }
        for bench in &mut benches {
            bench.settle();
        }
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
            bench.send(8, 1500);
            assert_eq!(bench.receive(32), 0);
            assert_eq!(bench.receive(32), if all { 0 } else { 2 });
            let began = Instant::now();
            assert!(bench.drain());
            assert!(began.elapsed() >= Duration::from_millis(100));
            bench.assert_all_arrived();
            assert!(faults.lock().unwrap().halted);
            assert_eq!(bench.dma(|c| &c.drain_timeouts), 1);
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            assert!(bench.dma(|c| &c.redone) >= 1);
            // The CPU goes on alone.
            bench.send(8, 1500);
            assert_eq!(bench.receive(32), 8);
            bench.assert_all_arrived();
            assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
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
        bench.send(8, 1500);
        bench.receive(32);
        assert!(!bench.drain());
        assert_eq!(bench.receive(32), 0);
        assert_eq!(bench.used, []);
        assert_eq!(bench.driver.pool.live(), 8);
        let memory = Arc::clone(&bench.queue().virtqueue.memory);
        assert!(bench.queue.take().unwrap().into_virtqueue().is_held());
        // The virtqueue has gone with what it had; one count stays for ever.
        assert!(Arc::strong_count(&memory) > 1);
        assert_eq!(bench.driver.pool.live(), 8);
    }
}

/// 2 and 3: any copy fails, with nothing or something done.
#[test]
fn a_copy_that_fails_is_done_again_by_the_cpu() {
    for fault in [Fault::Failed, Fault::Partial] {
        for nth in 0..8 {
            for (mut bench, _) in faulty_benches(|faults| faults.copies.push((nth, fault))) {
                bench.send(4, 4000);
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
            bench.send(8, 1500);
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
        bench.send(8, 1500);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
        assert!(faults.lock().unwrap().halted);
        assert!(bench.channels[0].is_dead());
    }
}

/// 6: reports of copies that it does not have.
#[test]
fn an_engine_that_reports_too_much_is_dead_and_nothing_is_handed_out_twice() {
    let sets: [fn(&mut Faults); 2] = [
        |faults| faults.copies.push((1, Fault::Twice)),
        |faults| faults.invented = true,
    ];
    for set in sets {
        for (mut bench, _) in faulty_benches(set) {
            bench.send(8, 1500);
            bench.settle();
            assert!(bench.channels[0].is_dead());
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            bench.send(8, 1500);
            bench.settle();
        }
    }
}

/// 7: cannot be seen in production; here the bytes tell.
#[test]
fn an_engine_that_lies_is_seen_by_the_bytes() {
    for (mut bench, _) in faulty_benches(|faults| faults.copies.push((1, Fault::Lie))) {
        bench.send(4, 1500);
        bench.receive(32);
        assert!(bench.drain());
        let wrong = bench.kept.iter().zip(&bench.expected);
        let wrong = wrong.filter(|(packet, frame)| packet.to_vec() != frame.0);
        assert_eq!(wrong.count(), 1);
    }
}

/// 8: the device is gone.
#[test]
fn a_removed_engine_is_dead_at_once() {
    for (mut bench, faults) in faulty_benches(|_| {}) {
        bench.send(8, 1500);
        bench.receive(32);
        faults.lock().unwrap().removed = true;
        assert_eq!(bench.receive(32), 8);
        assert!(bench.channels[0].is_dead());
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
    }
}

/// 9: a doorbell is lost once, and for ever; seen by a drain, and by the watchdog.
#[test]
fn a_lost_doorbell_is_rung_once_more() {
    for lost in [1, 2] {
        for (mut bench, _) in faulty_benches(|faults| faults.lost_doorbells = lost) {
            bench.send(8, 1500);
            bench.receive(32);
            assert!(bench.drain());
            bench.assert_all_arrived();
            assert_eq!(bench.channels[0].is_dead(), lost == 2);
        }
        for (mut bench, _) in faulty_benches(|faults| faults.lost_doorbells = lost) {
            bench.send(8, 1500);
            bench.receive(32);
            let begin = Instant::now();
            for ms in [0, 1, 49, 51, 99] {
                bench.queue().watch(begin + Duration::from_millis(ms));
                bench.receive(32);
            }
            assert_eq!(bench.queue().is_empty(), lost == 1);
            bench.queue().watch(begin + Duration::from_millis(101));
            bench.receive(32);
            bench.assert_all_arrived();
            assert_eq!(bench.channels[0].is_dead(), lost == 2);
        }
    }
}

/// 10: no room in the engine.
#[test]
fn a_full_engine_leaves_the_copies_to_the_cpu() {
    for (mut bench, faults) in faulty_benches(|faults| faults.full = true) {
        bench.send(8, 1500);
        assert_eq!(bench.receive(32), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
        faults.lock().unwrap().full = false;
        bench.send(8, 1500);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.copies), 8);
    }
    // A packet is the engine's as a whole, or not at all.
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(5))]);
        bench.send(4, 3900);
        bench.receive(32);
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
            bench.send(free, 1500);
            bench.receive(7);
        }
        bench.settle();
    }
}

/// 12: one copy a poll.
#[test]
fn a_slow_engine_is_only_slow() {
    for driver in drivers(64) {
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(64).per_poll(1))]);
        bench.send(32, 1500);
        assert_eq!(bench.receive(32), 0);
        for left in (0..32).rev() {
            assert_eq!(bench.receive(32), 1);
            assert_eq!(bench.dma(|c| &c.inflight), left);
        }
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 0);
    }
}

/// 13: whatever is under way has landed when a drain returns; the chains behind it are not touched.
#[test]
fn a_drain_empties_the_queue_at_any_fill() {
    for count in [4, 5, 31, 64] {
        for driver in drivers(64) {
            let engine = SimEngine::new(256).per_poll(3).shuffled(8);
            let mut bench = Bench::new(driver, vec![channel(engine)]);
            bench.send(count, 1500);
            assert_eq!(bench.receive(32), 0);
            assert!(bench.drain());
            assert_eq!(bench.take_used(), count);
            assert_eq!(bench.kept.len(), count);
            let packed = bench.driver.is_packed();
            let queue = bench.queue.take().unwrap().into_virtqueue();
            let at = bench.driver.stop_at(queue);
            let turns = match (packed, count) {
                (true, 64) => 0, // back at the beginning, in the next turn
                (true, _) => count as u16 | 1 << 15,
                (false, _) => count as u16,
            };
            assert_eq!(at, turns);
            // A queue that comes after it hands them out, and goes on.
            let channels = bench.channels.clone();
            let next = OffloadedDequeue::new(bench.driver.start(), &channels, 1024, 512);
            bench.queue = Some(next);
            bench.send(8, 1500);
            bench.settle();
        }
    }
}

/// 14: what the device writes of the ring is in the log; frames are only read.
#[test]
fn a_migrated_image_is_equal_to_memory() {
    for mut driver in drivers(64) {
        let log = FakeLog::new(BUFFERS.end);
        driver.set_log(Some((&log, LogRing::AsItLies)));
        let ranges = [RINGS, BUFFERS.start..BUFFERS.start + 0x40_0000];
        let mut bench = Bench::new(driver, vec![channel(SimEngine::new(256).per_poll(3))]);
        bench.send(32, 1900);
        let before = bench.driver.memory.snapshot(&ranges);
        let mut image = HashMap::new();
        let mut copy = |bench: &Bench| {
            for page in log.take() {
                let bytes = bench.driver.memory.read(page * 4096, 4096);
                image.insert(page, bytes);
            }
        };
        for _ in 0..6 {
            bench.receive(4);
            copy(&bench);
        }
        assert!(bench.drain());
        copy(&bench);
        let now = bench.driver.memory.snapshot(&ranges);
        let changed = now.changed_since(&before);
        assert!(!changed.is_empty());
        for page in changed {
            let bytes = bench.driver.memory.read(page * 4096, 4096);
            assert!(image.get(&page) == Some(&bytes), "page {page:#x}");
        }
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
            let frame = bench.frame(1500);
            let buffer = Buffer::holding(bench.driver.with_header(&frame));
            // Every other one in a short region.
            let buffer = match nth % 2 {
                0 => buffer,
                _ => buffer.at(NEXT.start + nth * 2048),
            };
            bench.driver.offer(&[buffer]);
            bench.expected.push_back(frame);
        }
        assert_eq!(bench.receive(32), 1, "the first is the CPU's");
        assert_eq!(bench.dma(|c| &c.copies), 8);
        assert_eq!(bench.dma(|c| &c.cpu_noaddr), 8);
        bench.settle();
        assert_eq!(faults.lock().unwrap().refusals, 1);
    }
}

#[test]
fn every_packet_is_the_engines_with_a_threshold_of_0() {
    for driver in drivers(64) {
        let channels = vec![channel(SimEngine::new(256))];
        let mut bench = Bench::with_threshold(driver, channels, 0);
        bench.send(1, 60);
        assert_eq!(bench.receive(1), 0);
        assert_eq!(bench.dma(|c| &c.copies), 1);
        bench.settle();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<usize>, bool),
    Receive(usize),
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
    let lens = || prop::collection::vec(len.clone(), 1..12);
    let step = prop_oneof![
        4 => (lens(), any::<bool>()).prop_map(|(lens, whole)| Step::Send(lens, whole)),
        4 => (0..40_usize).prop_map(Step::Receive),
        1 => Just(Step::Reap),
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
        kind in 0..5_usize,
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
                Step::Send(lens, whole) => for len in lens {
                    // In a chain: a header in two pieces, and two pieces of the frame.
                    let header = bench.driver.header_len();
                    if bench.driver.free_descriptors() < 4 {
                        break;
                    }
                    match whole {
                        true => bench.send(1, len),
                        false => bench.send_in(&[1, header - 1 + len / 3, len - len / 3], false),
                    }
                },
                Step::Receive(most) => { bench.receive(most); }
                Step::Reap => bench.reap(),
                Step::Drain => prop_assert!(bench.drain()),
                Step::Fault(nth, fault) => {
                    let mut faults = engines[0].1.lock().unwrap();
                    let at = faults.staged + nth;
                    faults.copies.push((at, fault));
                }
            }
            bench.take_used();
        }
        bench.settle();
    }
}
