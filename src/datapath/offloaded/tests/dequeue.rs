//! What only frames from the guest do.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::{Dequeue, Offloaded};
use super::bench::{self, Way, channel, fault, faulty, faulty_benches, lens, offer_again};
use crate::datapath::{Checksum, Release};
use crate::testing::dma::{Fault, SimEngine};
use crate::testing::{
    BUFFERS, Buffer, Build, FakeDriver, FakeLog, FakePacket, FakePool, Frame, LogRing, NEXT, RINGS,
};
use crate::virtio_net::{
    Header, Ip, Transport, VIRTIO_F_VERSION_1, VIRTIO_NET_F_CSUM, VIRTIO_NET_HDR_F_NEEDS_CSUM,
};

type FromGuest = Dequeue<FakePool>;
type Bench = bench::Bench<FromGuest>;

#[test]
fn small_packets_wait_behind_large_ones_and_not_before_them() {
    for driver in FromGuest::drivers(64) {
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
        for driver in FromGuest::drivers(64) {
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
    for driver in FromGuest::drivers(128) {
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
    for driver in FromGuest::drivers(64) {
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
        for driver in FromGuest::drivers(size) {
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
    for driver in FromGuest::drivers(64) {
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
fn a_driver_that_offers_again_what_is_under_way_gets_nothing_early() {
    for (mut bench, _) in faulty_benches::<FromGuest>(|faults| faults.every = Some(Fault::Lost)) {
        let size = bench.driver.size();
        let under_way = size - 3;
        bench.send(under_way.into(), 1500);
        let Bench { driver, queue, .. } = &mut bench;
        let queue = queue.as_mut().unwrap();
        let mut out = vec![FakePacket::default(); size.into()];
        while queue.len() < under_way.into() {
            assert_eq!(queue.receive(&driver.pool, &mut out, &driver.counters), 0);
        }
        offer_again(driver, under_way);
        for _ in 0..3 {
            assert_eq!(queue.receive(&driver.pool, &mut out, &driver.counters), 0);
            assert!(queue.len() <= size.into());
        }
        assert_eq!(driver.pool.live(), usize::from(under_way));

        assert!(bench.drain());
        let kept: Vec<_> = bench.kept.drain(..).collect();
        let frames: Vec<_> = kept.iter().map(|packet| Frame(packet.to_vec())).collect();
        assert!(frames.iter().eq(&bench.expected));
        bench.driver.pool.release(&kept);
        assert_eq!(bench.driver.pool.live(), 0);
    }
}

#[test]
fn frames_that_are_too_short_or_too_long_are_dropped_and_counted() {
    for mut driver in FromGuest::drivers(64) {
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
    for mut driver in FromGuest::drivers(64) {
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
    for mut driver in FromGuest::drivers(64) {
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
    for mut driver in FromGuest::drivers(64) {
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
fn what_the_driver_asks_for_is_done_when_the_bytes_are_there() {
    for layout in [FakeDriver::split(64), FakeDriver::packed(64)] {
        let modern = layout.feature(VIRTIO_F_VERSION_1);
        let mut driver = modern.feature(VIRTIO_NET_F_CSUM);
        let channels = [channel(SimEngine::new(256))];
        let mut queue = Offloaded::<FromGuest>::new(driver.start(), &channels, 1024, 512);
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

/// 14: what the device writes of the ring is in the log; frames are only read.
#[test]
fn a_migrated_image_is_equal_to_memory() {
    for mut driver in FromGuest::drivers(64) {
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

/// 16: a region is too long for the engine; the others are its own.
#[test]
fn memory_that_cannot_be_mapped_is_the_cpus() {
    for (mut bench, faults) in
        faulty_benches::<FromGuest>(|faults| faults.longest_mapping = 8 << 20)
    {
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

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<usize>, bool),
    Receive(usize),
    Reap,
    Drain,
    Fault(u64, Fault),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (lens(), any::<bool>()).prop_map(|(lens, whole)| Step::Send(lens, whole)),
        4 => (0..40_usize).prop_map(Step::Receive),
        1 => Just(Step::Reap),
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
        kind in 0..5_usize,
        per_poll in 1..9_usize,
        seed in any::<u64>(),
    ) {
        let driver = FromGuest::drivers(32).swap_remove(kind);
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
