//! What an address translation that is known costs: bursts with and without an IOMMU, in turn, in one
//! process and on one core. The driver and the packets are fake ones, so only differences tell.
//!
//! `cargo bench --no-default-features --features testing --bench iommu`

use std::sync::Arc;
use std::time::{Duration, Instant};

use rte_net_vhost::datapath::{QueueCounters, Release, select_dequeue, select_enqueue};
use rte_net_vhost::memory::{Access, Gpa, Iotlb, Iova, IovaRange, Lookaside, Questions};
use rte_net_vhost::testing::{BUFFERS, Buffer, FakeDriver, FakePacket, FakePool};
use rte_net_vhost::virtio_net::VIRTIO_F_VERSION_1;

const RING: u16 = 256;
const BURST: usize = 32;
const ROUNDS: usize = 8;
const BURSTS: usize = 1000;
const LEN: u32 = 12 + 64;

/// What is between the driver and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nothing,
    OneTranslation,
    OneForEachPage,
}

const MODES: [Mode; 3] = [Mode::Nothing, Mode::OneTranslation, Mode::OneForEachPage];

struct Bench {
    driver: FakeDriver,
    pool: FakePool,
    counters: QueueCounters,
    next: u64,
    writes: bool,
    times: Vec<Duration>,
}

impl Bench {
    fn new(packed: bool, writes: bool, mode: Mode) -> Self {
        let driver = match packed {
            true => FakeDriver::packed(RING),
            false => FakeDriver::split(RING),
        };
        let mut driver = driver.feature(VIRTIO_F_VERSION_1);
        if mode != Mode::Nothing {
            let iotlb = Arc::new(Iotlb::default());
            let count = match mode {
                Mode::OneForEachPage => (BUFFERS.end - BUFFERS.start) / 4096,
                _ => 1,
            };
            let size = (BUFFERS.end - BUFFERS.start) / count;
            for nth in 0..count {
                let first = BUFFERS.start + nth * size;
                let range = IovaRange::new(Iova(first), size).unwrap();
                iotlb.insert(range, Gpa(first), Access::BOTH);
            }
            let need = if writes { Access::WRITE } else { Access::READ };
            let virtqueue = driver.virtqueue();
            let questions = Arc::new(Questions::new(|| ()));
            let table = Arc::clone(&virtqueue.memory);
            let lookaside = Lookaside::new(table, iotlb, need, questions);
            virtqueue.lookaside = Some(Box::new(lookaside));
        }
        Self {
            driver,
            pool: FakePool::new(2048),
            counters: QueueCounters::default(),
            next: 0,
            writes,
            times: Vec::new(),
        }
    }

    /// One burst, each packet in a page of its own.
    fn burst(&mut self) -> Duration {
        for _ in 0..BURST {
            let at = BUFFERS.start + 4096 * (self.next % 512) + 64;
            self.next += 1;
            let buffer = match self.writes {
                true => Buffer::writable(2048),
                false => Buffer::readable(LEN),
            };
            self.driver.offer(&[buffer.at(at)]);
        }
        let mut packets = [FakePacket::default(); BURST];
        let virtqueue = self.driver.virtqueue();
        let time = if self.writes {
            packets.fill_with(|| self.pool.packet(&[&[2; 64]]));
            let burst = select_enqueue::<FakePool>(virtqueue, u16::MAX);
            let start = Instant::now();
            let taken = burst(virtqueue, &self.pool, &packets, &self.counters);
            let time = start.elapsed();
            assert_eq!(taken, BURST);
            time
        } else {
            let burst = select_dequeue::<FakePool>(virtqueue, u16::MAX);
            let start = Instant::now();
            let taken = burst(virtqueue, &self.pool, &mut packets, &self.counters);
            let time = start.elapsed();
            assert_eq!(taken, BURST);
            self.pool.release(&packets);
            time
        };
        assert_eq!(self.driver.used().len(), BURST);
        time
    }

    /// Nanoseconds a packet: a low one of all bursts, since nothing else makes a burst shorter.
    fn result(&mut self) -> f64 {
        self.times.sort_unstable();
        self.times[self.times.len() / 10].as_secs_f64() * 1e9 / BURST as f64
    }
}

fn main() {
    println!("ns a packet, 64 bytes, bursts of {BURST}: {MODES:?}");
    for (packed, writes) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut benches = MODES.map(|mode| Bench::new(packed, writes, mode));
        for _ in 0..ROUNDS {
            for bench in &mut benches {
                for _ in 0..BURSTS / 10 {
                    bench.burst();
                }
                for _ in 0..BURSTS {
                    let time = bench.burst();
                    bench.times.push(time);
                }
            }
        }
        let [nothing, one, pages] = benches.each_mut().map(Bench::result);
        let layout = if packed { "packed" } else { "split" };
        let direction = if writes { "enqueue" } else { "dequeue" };
        println!(
            "{layout} {direction}: {nothing:.2}, {one:.2} ({:+.2}), {pages:.2} ({:+.2})",
            one - nothing,
            pages - nothing
        );
    }
}
