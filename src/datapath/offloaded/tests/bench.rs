//! A driver and its virtqueue with engines, of either direction.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::{Dequeue, Direction, Enqueue, Offloaded};
use crate::datapath::{DmaCounters, Release};
use crate::dma::channel::Channel;
use crate::testing::dma::{Fault, Faults, Faulty, SimEngine};
use crate::testing::{Buffer, FakeDriver, FakePacket, FakePool, Frame, Used};
use crate::virtio_net::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};
use crate::virtqueue::{VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, Virtqueue};

/// The most packets of a burst.
const BURST: usize = 32;

/// A direction, as a bench sees it.
pub(super) trait Way: Direction {
    /// The drivers whose rings have burst bodies of their own.
    fn drivers(size: u16) -> Vec<FakeDriver>;
    /// Sends all frames in a burst, without a poll behind it; what arrives.
    fn start(bench: &mut Bench<Self>, frames: &[Frame]) -> Vec<Frame>;
    /// Polls once; what arrives.
    fn poll(bench: &mut Bench<Self>) -> Vec<Frame>;
    /// Drains.
    fn drain(bench: &mut Bench<Self>) -> bool;
    /// What has landed, and has not arrived.
    fn landed(bench: &mut Bench<Self>) -> Vec<Frame>;
}

/// A driver, its virtqueue with engines, and what was sent.
pub(super) struct Bench<W: Way> {
    pub(super) driver: FakeDriver,
    pub(super) queue: Option<Offloaded<W>>,
    pub(super) channels: Vec<Arc<Channel>>,
    /// Frames that were taken and have not arrived.
    pub(super) expected: VecDeque<Frame>,
    /// Packets from the guest that a drain left.
    pub(super) kept: VecDeque<FakePacket>,
    /// Chains of the guest's that came back.
    pub(super) used: Vec<Used>,
    seed: u8,
}

impl<W: Way> Bench<W> {
    pub(super) fn new(driver: FakeDriver, channels: Vec<Arc<Channel>>) -> Self {
        Self::with_threshold(driver, channels, 1024)
    }

    pub(super) fn with_threshold(
        mut driver: FakeDriver,
        channels: Vec<Arc<Channel>>,
        threshold: u32,
    ) -> Self {
        Self {
            queue: Some(Offloaded::new(driver.start(), &channels, threshold, 512)),
            driver,
            channels,
            expected: VecDeque::new(),
            kept: VecDeque::new(),
            used: Vec::new(),
            seed: 0,
        }
    }

    /// With another queue, on the ring where the last one has left it, in memory that is mapped anew.
    pub(super) fn start_again(&mut self) {
        let virtqueue = self.driver.start();
        self.start_on(virtqueue);
    }

    /// With another queue, on a virtqueue that one had before.
    pub(super) fn start_on(&mut self, virtqueue: Virtqueue) {
        self.queue = Some(Offloaded::new(virtqueue, &self.channels, 1024, 512));
    }

    pub(super) fn queue(&mut self) -> &mut Offloaded<W> {
        self.queue.as_mut().unwrap()
    }

    pub(super) fn dma(&self, which: impl Fn(&DmaCounters) -> &AtomicU64) -> u64 {
        self.driver.counted(|counters| which(&counters.dma))
    }

    /// Another frame of `len` bytes than all before.
    pub(super) fn frame(&mut self, len: usize) -> Frame {
        self.seed = self.seed.wrapping_add(1);
        Frame::new(len, self.seed)
    }

    /// Frames arrive: what was sent, whole, in order, once. How many.
    pub(super) fn check(&mut self, frames: Vec<Frame>) -> usize {
        for frame in &frames {
            assert_eq!(Some(frame), self.expected.pop_front().as_ref());
        }
        frames.len()
    }

    /// Sends `count` frames of `len` bytes in a burst; how many frames arrive.
    pub(super) fn start(&mut self, count: usize, len: usize) -> usize {
        let frames: Vec<_> = (0..count).map(|_| self.frame(len)).collect();
        self.expected.extend(frames.iter().cloned());
        let arrived = W::start(self, &frames);
        self.check(arrived)
    }

    /// Polls once; how many frames arrive.
    pub(super) fn poll(&mut self) -> usize {
        let arrived = W::poll(self);
        self.check(arrived)
    }

    pub(super) fn drain(&mut self) -> bool {
        W::drain(self)
    }

    /// Polls until all has arrived.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            self.poll();
            if self.queue().is_empty() && self.expected.is_empty() {
                break;
            }
        }
        self.assert_all_arrived();
    }

    pub(super) fn assert_all_arrived(&mut self) {
        assert!(self.queue().is_empty(), "packets are still under way");
        let landed = W::landed(self);
        self.check(landed);
        assert_eq!(self.expected, [], "frames are lost");
        assert_eq!(self.driver.pool.live(), 0, "packets leak");
        assert!(self.driver.memory.canaries_are_whole());
        assert_eq!(self.dma(|c| &c.inflight), 0);
    }
}

impl Bench<Enqueue<FakePool>> {
    pub(super) fn offer(&mut self, buffers: usize, len: u32) {
        for _ in 0..buffers {
            self.driver.offer(&[Buffer::writable(len)]);
        }
    }

    fn send_frames(&mut self, frames: &[Frame]) -> usize {
        let packets: Vec<_> = frames.iter().map(|f| self.driver.packet(f)).collect();
        let Self { driver, queue, .. } = self;
        let queue = queue.as_mut().unwrap();
        let taken = queue.send(&driver.pool, &packets, &driver.counters);
        driver.pool.release(&packets[taken..]);
        taken
    }

    /// Sends a frame of each length in a burst; how many were taken.
    pub(super) fn send_all(&mut self, lens: &[usize]) -> usize {
        let frames: Vec<_> = lens.iter().map(|&len| self.frame(len)).collect();
        let taken = self.send_frames(&frames);
        self.expected.extend(frames.into_iter().take(taken));
        taken
    }

    /// Sends `count` frames of `len` bytes in a burst; how many were taken.
    pub(super) fn send(&mut self, count: usize, len: usize) -> usize {
        self.send_all(&vec![len; count])
    }

    pub(super) fn reap(&mut self, most: usize) -> usize {
        let Self { driver, queue, .. } = self;
        let queue = queue.as_mut().unwrap();
        queue.reap(&driver.pool, most, &driver.counters)
    }

    /// The driver takes what it got.
    pub(super) fn receive(&mut self) -> usize {
        let frames = self.driver.frames();
        self.check(frames)
    }
}

impl Way for Enqueue<FakePool> {
    fn drivers(size: u16) -> Vec<FakeDriver> {
        let all = [FakeDriver::split, FakeDriver::packed].map(|ring| {
            let modern = || ring(size).feature(VIRTIO_F_VERSION_1);
            [modern(), modern().feature(VIRTIO_NET_F_MRG_RXBUF)]
        });
        all.into_iter().flatten().collect()
    }

    fn start(bench: &mut Bench<Self>, frames: &[Frame]) -> Vec<Frame> {
        let longest = frames.iter().map(|frame| frame.0.len()).max().unwrap_or(0);
        let free = bench.driver.free_descriptors();
        bench.offer(free, longest as u32 + 96);
        assert_eq!(bench.send_frames(frames), frames.len());
        Self::landed(bench)
    }

    fn poll(bench: &mut Bench<Self>) -> Vec<Frame> {
        bench.reap(usize::MAX);
        Self::landed(bench)
    }

    fn drain(bench: &mut Bench<Self>) -> bool {
        let Bench { driver, queue, .. } = bench;
        let queue = queue.as_mut().unwrap();
        queue.drain(&driver.pool, &driver.counters)
    }

    fn landed(bench: &mut Bench<Self>) -> Vec<Frame> {
        bench.driver.frames()
    }
}

impl Bench<Dequeue<FakePool>> {
    /// The driver sends `count` frames of `len` bytes, each in one buffer.
    pub(super) fn send(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            let frame = self.frame(len);
            self.driver.send(&frame);
            self.expected.push_back(frame);
        }
    }

    /// The driver sends a frame in buffers of these lengths, the header in the first of them; in a
    /// table, or not.
    pub(super) fn send_in(&mut self, lens: &[usize], indirect: bool) {
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

    fn burst(&mut self, most: usize) -> Vec<Frame> {
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
        self.take_used();
        self.unpack(&packets)
    }

    fn unpack(&mut self, packets: &[FakePacket]) -> Vec<Frame> {
        let frames = packets.iter().map(|packet| Frame(packet.to_vec()));
        let frames = frames.collect();
        self.driver.pool.release(packets);
        frames
    }

    /// A burst; how many packets it gave.
    pub(super) fn receive(&mut self, most: usize) -> usize {
        let frames = self.burst(most);
        self.check(frames)
    }

    /// Chains that came back since this was last asked.
    pub(super) fn take_used(&mut self) -> usize {
        let used = self.driver.used();
        assert!(used.iter().all(|used| used.len == 0));
        self.used.extend(&used);
        used.len()
    }

    pub(super) fn reap(&mut self) {
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
}

impl Way for Dequeue<FakePool> {
    fn drivers(size: u16) -> Vec<FakeDriver> {
        let all = [FakeDriver::split, FakeDriver::packed].map(|ring| {
            let modern = || ring(size).feature(VIRTIO_F_VERSION_1);
            [modern(), modern().feature(VIRTIO_F_IN_ORDER)]
        });
        let legacy = FakeDriver::split(size);
        all.into_iter().flatten().chain([legacy]).collect()
    }

    fn start(bench: &mut Bench<Self>, frames: &[Frame]) -> Vec<Frame> {
        for frame in frames {
            bench.driver.send(frame);
        }
        bench.burst(BURST)
    }

    fn poll(bench: &mut Bench<Self>) -> Vec<Frame> {
        bench.burst(BURST)
    }

    fn drain(bench: &mut Bench<Self>) -> bool {
        let Bench {
            driver,
            queue,
            kept,
            ..
        } = bench;
        let mut keep = |packets: &[FakePacket]| kept.extend(packets);
        let queue = queue.as_mut().unwrap();
        queue.drain(&driver.pool, &mut keep, &driver.counters)
    }

    fn landed(bench: &mut Bench<Self>) -> Vec<Frame> {
        bench.take_used();
        // Nothing is under way, and all chains are the driver's.
        let size = usize::from(bench.driver.size());
        assert_eq!(bench.driver.free_descriptors(), size);
        let kept: Vec<_> = bench.kept.drain(..).collect();
        bench.unpack(&kept)
    }
}

pub(super) fn channel(engine: SimEngine) -> Arc<Channel> {
    Arc::new(Channel::new("sim", Box::new(engine)))
}

pub(super) fn faulty(engine: SimEngine) -> (Arc<Channel>, Arc<Mutex<Faults>>) {
    let (engine, faults) = Faulty::new(engine);
    (Arc::new(Channel::new("faulty", Box::new(engine))), faults)
}

/// A bench of each kind with one engine.
pub(super) fn benches<W: Way>(engine: impl Fn() -> SimEngine) -> impl Iterator<Item = Bench<W>> {
    let drivers = W::drivers(64).into_iter();
    drivers.map(move |driver| Bench::new(driver, vec![channel(engine())]))
}

/// A bench of each kind with one faulty engine.
pub(super) fn faulty_benches<W: Way>(
    faults: impl Fn(&mut Faults),
) -> Vec<(Bench<W>, Arc<Mutex<Faults>>)> {
    W::drivers(64)
        .into_iter()
        .map(|driver| {
            let (channel, state) = faulty(SimEngine::new(256));
            faults(&mut state.lock().unwrap());
            (Bench::new(driver, vec![channel]), state)
        })
        .collect()
}

/// Lengths of frames on both sides of the threshold.
pub(super) fn lens() -> impl Strategy<Value = Vec<usize>> {
    let len = prop_oneof![60..200_usize, 1000..1600_usize, 1600..6000_usize];
    prop::collection::vec(len, 1..12)
}

/// Faults after which an engine may go on.
pub(super) fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Failed),
        Just(Fault::Partial),
        Just(Fault::Halt),
        Just(Fault::Twice)
    ]
}

/// The rest of the ring, and then all of it once more, in chains of no bytes; what no driver may do while
/// chains are under way.
pub(super) fn offer_again(driver: &mut FakeDriver, under_way: u16) {
    let size = driver.size();
    for nth in 0..size {
        // Available in this turn of a packed ring, or in the next one.
        let flags = match (driver.is_packed(), nth < under_way) {
            (false, _) => 0,
            (true, true) => VRING_PACKED_DESC_F_USED,
            (true, false) => VRING_PACKED_DESC_F_AVAIL,
        };
        let words = u64::from(nth) << 32 | u64::from(flags) << 48;
        let at = driver.table() + 16 * u64::from(nth);
        driver.memory.write(at + 8, &words.to_le_bytes());
    }
    if !driver.is_packed() {
        driver.set_available_index(under_way.wrapping_add(size));
    }
}
