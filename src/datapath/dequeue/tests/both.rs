//! What holds for both layouts. `super` says which ring it is.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small or wrap on purpose"
)]

use std::sync::atomic::AtomicU64;

use super::{SIZES, ring};
use crate::datapath::{QueueCounters, Release};
use crate::testing::{APART, BUFFERS, Buffer, FakeDriver, Frame, NEXT, UNMAPPED, Used};
use crate::virtio_net::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use crate::virtqueue::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};

pub(super) fn modern(size: u16) -> FakeDriver {
    ring(size).feature(VIRTIO_F_VERSION_1)
}

/// What the driver sends in `buffers` arrives as `frame`, and its chain comes back.
pub(super) fn assert_arrives(driver: &mut FakeDriver, buffers: &[Buffer], frame: &Frame) {
    let head = u32::from(driver.offer(buffers));
    assert_eq!(driver.dequeue(32), std::slice::from_ref(frame));
    assert_eq!(driver.used(), [Used { head, len: 0 }]);
    assert_eq!(driver.pool.live(), 0);
}

/// The chain at `head` comes back unused and counted, and does not stop a good one behind it.
pub(super) fn assert_dropped(
    driver: &mut FakeDriver,
    head: u16,
    which: fn(&QueueCounters) -> &AtomicU64,
) {
    let frame = Frame::new(64, 9);
    let good = driver.send(&frame);
    assert_eq!(driver.dequeue(32), [frame]);
    let [head, good] = [head, good].map(|head| Used {
        head: head.into(),
        len: 0,
    });
    assert_eq!(driver.used(), [head, good]);
    assert_eq!(driver.counted(which), 1);
    assert_eq!(driver.counted(|c| &c.packets), 1);
    assert_eq!(driver.pool.live(), 0);
}

pub(super) fn bad_desc(counters: &QueueCounters) -> &AtomicU64 {
    &counters.drop_bad_desc
}

fn short(counters: &QueueCounters) -> &AtomicU64 {
    &counters.drop_short
}

/// Cuts `bytes` into a buffer for each of `lens`, and one for the rest.
pub(super) fn cut(bytes: &[u8], lens: &[usize]) -> Vec<Buffer> {
    let mut rest = bytes;
    let mut buffers = Vec::new();
    for &len in lens {
        let (part, more) = rest.split_at(len);
        buffers.push(Buffer::holding(part));
        rest = more;
    }
    buffers.push(Buffer::holding(rest));
    buffers
}

#[test]
fn a_frame_in_one_buffer_arrives_without_its_header() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let buffer = Buffer::holding(driver.with_header(&frame));
    assert_arrives(&mut driver, &[buffer], &frame);
}

#[test]
fn an_empty_ring_gives_nothing_and_takes_no_packet() {
    let mut driver = modern(8);
    driver.pool.limit(0);
    assert_eq!(driver.dequeue(32), []);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 0);
}

#[test]
fn a_burst_of_no_packets_takes_nothing() {
    let mut driver = modern(8);
    driver.send(&Frame::new(64, 1));
    assert_eq!(driver.dequeue(0), []);
    assert_eq!(driver.used(), []);
}

#[test]
fn runts_are_delivered() {
    for len in 1..14 {
        let mut driver = modern(8);
        let frame = Frame::new(len, 1);
        let buffer = Buffer::holding(driver.with_header(&frame));
        assert_arrives(&mut driver, &[buffer], &frame);
    }
}

#[test]
fn a_chain_no_longer_than_the_header_is_handed_back_and_counted() {
    for len in [0, 1, 11, 12] {
        let mut driver = modern(8);
        let head = driver.offer(&[Buffer::readable(len)]);
        assert_dropped(&mut driver, head, short);
    }
}

#[test]
fn a_chain_of_several_buffers_no_longer_than_the_header_is_handed_back() {
    let mut driver = modern(8);
    let head = driver.offer(&[Buffer::readable(5), Buffer::readable(7)]);
    assert_dropped(&mut driver, head, short);
}

#[test]
fn header_and_frame_may_lie_in_buffers_of_their_own() {
    let mut driver = modern(8);
    let frame = Frame::new(700, 1);
    let buffers = cut(&driver.with_header(&frame), &[12]);
    assert_arrives(&mut driver, &buffers, &frame);
}

#[test]
fn a_header_may_be_spread_over_any_number_of_buffers() {
    let mut driver = modern(16);
    let frame = Frame::new(64, 1);
    let bytes = driver.with_header(&frame);
    for lens in [&[1; 12][..], &[5, 6], &[11, 3], &[4, 4, 4], &[2, 20]] {
        assert_arrives(&mut driver, &cut(&bytes, lens), &frame);
    }
}

#[test]
fn buffers_of_no_bytes_are_passed_over() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let bytes = driver.with_header(&frame);
    assert_arrives(&mut driver, &cut(&bytes, &[0, 12, 0, 30, 0]), &frame);
    assert_arrives(&mut driver, &cut(&bytes, &[76]), &frame);
}

#[test]
fn a_buffer_that_the_device_may_write_is_read_all_the_same() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let bytes = driver.with_header(&frame);
    let one = [Buffer::holding(bytes.clone()).flags(VRING_DESC_F_WRITE)];
    assert_arrives(&mut driver, &one, &frame);
    let many: Vec<_> = cut(&bytes, &[12, 8])
        .into_iter()
        .map(|buffer| buffer.flags(VRING_DESC_F_WRITE))
        .collect();
    assert_arrives(&mut driver, &many, &frame);
}

#[test]
fn a_chain_may_take_the_whole_ring() {
    for &size in SIZES {
        let mut driver = modern(size);
        let parts = usize::from(size);
        let frame = Frame::new(parts + 100, 1);
        let bytes = driver.with_header(&frame);
        let buffers = cut(&bytes, &vec![1; parts - 1]);
        assert_eq!(buffers.len(), parts);
        assert_arrives(&mut driver, &buffers, &frame);
    }
}

#[test]
fn an_unmapped_buffer_is_handed_back_unused() {
    for at in [0, UNMAPPED, u64::MAX, u64::MAX - 100, NEXT.end] {
        let mut driver = modern(8);
        let head = driver.offer(&[Buffer::readable(200).at(at)]);
        assert_dropped(&mut driver, head, bad_desc);
    }
}

#[test]
fn an_unmapped_buffer_of_no_bytes_is_handed_back_unused() {
    let mut driver = modern(8);
    let head = driver.offer(&[Buffer::readable(100), Buffer::readable(0).at(UNMAPPED)]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn an_unmapped_buffer_behind_good_ones_spoils_the_chain() {
    let mut driver = modern(8);
    let head = driver.offer(&[Buffer::readable(100), Buffer::readable(64).at(UNMAPPED)]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn a_buffer_with_an_unmapped_end_is_handed_back_unused() {
    for end in [NEXT.end, APART.end] {
        let mut driver = modern(8);
        let head = driver.offer(&[Buffer::readable(200).at(end - 199)]);
        assert_dropped(&mut driver, head, bad_desc);
    }
}

#[test]
fn a_buffer_up_to_the_last_mapped_byte_is_fine() {
    let mut driver = modern(8);
    let frame = Frame::new(188, 1);
    let buffer = Buffer::holding(driver.with_header(&frame)).at(NEXT.end - 200);
    assert_arrives(&mut driver, &[buffer], &frame);
}

#[test]
fn a_buffer_may_cross_from_one_region_to_its_neighbour() {
    for before in [1, 11, 12, 13, 40, 111] {
        let mut driver = modern(8);
        let frame = Frame::new(100, 1);
        let buffer = Buffer::holding(driver.with_header(&frame)).at(BUFFERS.end - before);
        assert_arrives(&mut driver, &[buffer], &frame);
    }
}

#[test]
fn buffers_of_one_chain_may_lie_in_different_regions() {
    let mut driver = modern(8);
    let frame = Frame::new(300, 1);
    let bytes = driver.with_header(&frame);
    let buffers = [
        Buffer::holding(&bytes[..50]).at(APART.start),
        Buffer::holding(&bytes[50..200]).at(NEXT.start + 7),
        Buffer::holding(&bytes[200..]).at(BUFFERS.start),
    ];
    assert_arrives(&mut driver, &buffers, &frame);
}

#[test]
fn an_indirect_table_is_walked() {
    let mut driver = modern(8);
    let frame = Frame::new(900, 1);
    let buffers = cut(&driver.with_header(&frame), &[12, 100, 0, 300]);
    let table = driver.indirect(&buffers);
    assert_arrives(&mut driver, &[table], &frame);
}

#[test]
fn an_indirect_table_of_one_entry_is_walked() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let buffers = cut(&driver.with_header(&frame), &[]);
    let table = driver.indirect(&buffers);
    assert_arrives(&mut driver, &[table], &frame);
}

#[test]
fn direct_buffers_may_come_before_an_indirect_table() {
    let mut driver = modern(8);
    let frame = Frame::new(900, 1);
    let mut buffers = cut(&driver.with_header(&frame), &[12, 100, 300]);
    let table = driver.indirect(&buffers.split_off(2));
    buffers.push(table);
    assert_arrives(&mut driver, &buffers, &frame);
}

#[test]
fn a_table_as_long_as_the_ring_is_walked() {
    for &size in SIZES {
        let mut driver = modern(size);
        let parts = usize::from(size);
        let frame = Frame::new(parts + 100, 1);
        let buffers = cut(&driver.with_header(&frame), &vec![1; parts - 1]);
        let table = driver.indirect(&buffers);
        assert_arrives(&mut driver, &[table], &frame);
    }
}

#[test]
fn a_table_longer_than_the_ring_is_refused() {
    let mut driver = modern(8);
    let table = driver.indirect(&vec![Buffer::readable(20); 9]);
    let head = driver.offer(&[table]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn a_table_inside_a_table_is_refused() {
    let mut driver = modern(8);
    let inner = driver.indirect(&[Buffer::readable(100)]);
    let outer = driver.indirect(&[Buffer::readable(100), inner]);
    let head = driver.offer(&[outer]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn a_table_of_no_whole_number_of_entries_is_refused() {
    for len in [0, 1, 15, 17, 33] {
        let mut driver = modern(8);
        let at = driver.reserve(64);
        driver.indirect_at(at, &[Buffer::readable(100)]);
        let buffer = Buffer::readable(len).at(at).flags(VRING_DESC_F_INDIRECT);
        let head = driver.offer(&[buffer]);
        assert_dropped(&mut driver, head, bad_desc);
    }
}

#[test]
fn an_unmapped_table_is_refused() {
    for at in [
        UNMAPPED,
        u64::MAX - 15,
        u64::MAX - 20,
        APART.end - 15,
        APART.end - 16,
    ] {
        let mut driver = modern(8);
        let buffer = Buffer::readable(32).at(at).flags(VRING_DESC_F_INDIRECT);
        if at == APART.end - 16 {
            // Its first entry is mapped and leads on.
            driver.indirect_at(at, &[Buffer::readable(100).next(1)]);
        }
        let head = driver.offer(&[buffer]);
        assert_dropped(&mut driver, head, bad_desc);
    }
}

#[test]
fn a_table_need_not_be_aligned() {
    for skew in 1..16 {
        let mut driver = modern(8);
        let frame = Frame::new(200, 1);
        let buffers = cut(&driver.with_header(&frame), &[12, 50]);
        let at = APART.start + skew;
        let table = driver.indirect_at(at, &buffers);
        assert_arrives(&mut driver, &[table], &frame);
    }
}

#[test]
fn a_table_may_cross_regions() {
    for before in 1..48 {
        let mut driver = modern(8);
        let frame = Frame::new(200, 1);
        let buffers = cut(&driver.with_header(&frame), &[12, 50]);
        let table = driver.indirect_at(BUFFERS.end - before, &buffers);
        assert_arrives(&mut driver, &[table], &frame);
    }
}

#[test]
fn a_frame_that_is_longer_than_a_packet_fills_segments() {
    let mut driver = modern(8).packet_room(1000);
    let frame = Frame::new(2500, 1);
    driver.send(&frame);
    let packets = driver.dequeue_packets(32);
    assert_eq!(packets[0].segment_lens(), [1000, 1000, 500]);
    assert_eq!(Frame(packets[0].to_vec()), frame);
    assert_eq!(driver.pool.live(), 3);
    driver.pool.release(&packets);
}

#[test]
fn a_frame_that_just_fits_is_one_segment() {
    for (len, segments) in [(999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3)] {
        for parts in [&[][..], &[12], &[500]] {
            let mut driver = modern(8).packet_room(1000);
            let frame = Frame::new(len, 1);
            let buffers = cut(&driver.with_header(&frame), parts);
            driver.offer(&buffers);
            let packets = driver.dequeue_packets(1);
            assert_eq!(packets[0].segment_lens().len(), segments, "{len} bytes");
            assert_eq!(Frame(packets[0].to_vec()), frame);
            driver.pool.release(&packets);
            assert_eq!(driver.pool.live(), 0);
        }
    }
}

#[test]
fn a_frame_of_64_kb_in_small_packets_arrives() {
    let mut driver = modern(256).packet_room(128);
    let frame = Frame::new(65_550, 1);
    let buffers = cut(&driver.with_header(&frame), &[12, 4096, 4096, 4096, 30_000]);
    assert_arrives(&mut driver, &buffers, &frame);
}

#[test]
fn nothing_is_consumed_when_the_pool_is_empty() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let head = u32::from(driver.send(&frame));
    driver.pool.limit(0);
    assert_eq!(driver.dequeue(32), []);
    assert_eq!(driver.used(), []);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
    driver.pool.limit(1);
    assert_eq!(driver.dequeue(32), [frame]);
    assert_eq!(driver.used(), [Used { head, len: 0 }]);
}

#[test]
fn as_many_frames_arrive_as_the_pool_has_packets() {
    let frames: Vec<_> = (0..13).map(|seed| Frame::new(64, seed)).collect();
    for free in 1..frames.len() {
        let mut driver = modern(16);
        for frame in &frames {
            driver.send(frame);
        }
        driver.pool.limit(free);
        assert_eq!(driver.dequeue(32), frames[..free]);
        assert_eq!(driver.used().len(), free);
        assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
        driver.pool.limit(frames.len());
        assert_eq!(driver.dequeue(32), frames[free..]);
        assert_eq!(driver.used().len(), frames.len() - free);
    }
}

#[test]
fn a_frame_is_dropped_when_the_pool_runs_dry_in_its_middle() {
    let mut driver = modern(8).packet_room(1000);
    let head = driver.send(&Frame::new(2500, 1));
    driver.pool.limit(2);
    assert_eq!(driver.dequeue(1), []);
    let head = head.into();
    assert_eq!(driver.used(), [Used { head, len: 0 }]);
    assert_eq!(driver.counted(|c| &c.drop_no_mbuf), 1);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn frames_behind_one_that_found_the_pool_dry_arrive() {
    let mut driver = modern(8).packet_room(1000);
    let frames = [1, 2, 3].map(|seed| Frame::new(64, seed));
    driver.send(&frames[0]);
    driver.send(&Frame::new(9000, 1));
    driver.send(&frames[1]);
    driver.send(&frames[2]);
    driver.pool.limit(5);
    let mut received = driver.dequeue(32);
    received.extend(driver.dequeue(32));
    assert_eq!(received, frames);
    assert_eq!(driver.used().len(), 4);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn a_pool_that_does_not_chain_gets_only_frames_that_fit() {
    let mut driver = modern(8).packet_room(1000);
    driver.pool.linear();
    let fits = Frame::new(1000, 1);
    driver.send(&Frame::new(1001, 1));
    driver.send(&fits);
    assert_eq!(driver.dequeue(32), [fits]);
    assert_eq!(driver.used().len(), 2);
    assert_eq!(driver.counted(|c| &c.drop_oversize), 1);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn a_frame_that_is_too_long_for_a_packet_gets_a_large_buffer() {
    for lens in [&[12, 100, 3000][..], &[5, 9000], &[]] {
        let mut driver = modern(8).packet_room(1000);
        driver.pool.large(9000, 1);
        let frame = Frame::new(9000, 1);
        let bytes = driver.with_header(&frame);
        driver.offer(&cut(&bytes, lens));
        let packets = driver.dequeue_packets(32);
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].segment_lens(), [9000]);
        assert!(packets[0].is_large());
        assert_eq!(packets[0].to_vec(), frame.0);
        driver.pool.release(&packets);
        assert_eq!(driver.used().len(), 1);
        assert_eq!(driver.pool.live(), 0);
    }
}

#[test]
fn a_frame_that_fits_a_packet_gets_no_large_buffer() {
    let mut driver = modern(8).packet_room(1000);
    driver.pool.large(9000, 1);
    let frame = Frame::new(1000, 1);
    let bytes = driver.with_header(&frame);
    driver.offer(&cut(&bytes, &[12, 500]));
    let packets = driver.dequeue_packets(32);
    assert_eq!(packets[0].to_vec(), frame.0);
    assert!(!packets[0].is_large());
    driver.pool.release(&packets);
}

#[test]
fn a_frame_is_chained_when_no_large_buffer_is_left_or_long_enough() {
    let mut driver = modern(64).packet_room(1000);
    driver.pool.large(9000, 1);
    let frames = [9000, 2500, 9001].map(|len| Frame::new(len, 1));
    for frame in &frames {
        driver.send(frame);
    }
    let packets = driver.dequeue_packets(32);
    let received: Vec<_> = packets
        .iter()
        .map(|packet| Frame(packet.to_vec()))
        .collect();
    assert_eq!(received, frames);
    assert_eq!(packets[0].segment_lens(), [9000]);
    assert_eq!(packets[1].segment_lens(), [1000, 1000, 500]);
    assert_eq!(packets[2].segment_lens().len(), 10);
    driver.pool.release(&packets);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn without_chains_a_frame_that_finds_no_large_buffer_is_dropped() {
    let mut driver = modern(8).packet_room(1000);
    driver.pool.linear();
    driver.pool.large(9000, 1);
    let frames = [9000, 9000, 1000].map(|len| Frame::new(len, 1));
    for frame in &frames {
        driver.send(frame);
    }
    assert_eq!(driver.dequeue(32), [frames[0].clone(), frames[2].clone()]);
    assert_eq!(driver.used().len(), 3);
    assert_eq!(driver.counted(|c| &c.drop_no_mbuf), 1);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
    assert_eq!(driver.pool.live(), 0);
    driver.send(&frames[1]);
    assert_eq!(driver.dequeue(32), frames[1..2]);
}

#[test]
fn without_chains_a_frame_that_no_large_buffer_holds_is_dropped() {
    let mut driver = modern(8).packet_room(1000);
    driver.pool.linear();
    driver.pool.large(9000, 8);
    let head = driver.send(&Frame::new(9001, 1));
    assert_dropped(&mut driver, head, |c| &c.drop_oversize);
}

#[test]
fn a_frame_of_more_than_256_kb_is_dropped_and_counted() {
    let mut driver = modern(8);
    let head = driver.offer(&vec![Buffer::readable(70_000); 4]);
    assert_dropped(&mut driver, head, |c| &c.drop_oversize);
}

#[test]
fn a_chain_of_4_gb_buffers_is_dropped_and_does_not_overflow() {
    let mut driver = modern(8);
    driver.describe(0, Buffer::readable(u32::MAX).at(BUFFERS.start));
    driver.make_available(0);
    assert_dropped(&mut driver, 0, bad_desc);
}

#[test]
fn frames_come_in_order_around_odd_ones() {
    let mut driver = modern(256);
    let frames: Vec<Frame> = (0..100)
        .map(|nth| Frame::new(60 + usize::from(nth), nth))
        .collect();
    for (nth, frame) in frames.iter().enumerate() {
        let bytes = driver.with_header(frame);
        match nth % 7 {
            2 => driver.offer(&cut(&bytes, &[12])),
            5 => {
                let table = driver.indirect(&cut(&bytes, &[12, 20]));
                driver.offer(&[table])
            }
            6 => {
                driver.offer(&[Buffer::readable(5)]);
                driver.offer(&[Buffer::holding(bytes)])
            }
            _ => driver.offer(&[Buffer::holding(bytes)]),
        };
    }
    assert_eq!(driver.dequeue(300), frames);
    assert_eq!(driver.counted(|c| &c.drop_short), 14);
}

#[test]
fn bursts_of_one_take_one_frame_each_whatever_it_is_made_of() {
    for in_order in [false, true] {
        let mut driver = modern(16);
        if in_order {
            driver = driver.feature(VIRTIO_F_IN_ORDER);
        }
        for nth in 0..100 {
            let frame = Frame::new(60 + usize::from(nth), nth);
            let bytes = driver.with_header(&frame);
            match nth % 4 {
                2 => driver.offer(&cut(&bytes, &[12])),
                3 => {
                    driver.offer(&[Buffer::readable(5)]);
                    driver.offer(&[Buffer::holding(bytes)])
                }
                _ => driver.offer(&[Buffer::holding(bytes)]),
            };
            assert_eq!(driver.dequeue(1), [frame]);
            assert!(!driver.used().is_empty());
            assert_eq!(driver.dequeue(1), []);
        }
        assert_eq!(driver.counted(|c| &c.packets), 100);
        assert_eq!(driver.counted(|c| &c.drop_short), 25);
    }
}

#[test]
fn a_lone_frame_that_finds_the_pool_dry_is_counted_once() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    driver.send(&frame);
    driver.pool.limit(0);
    assert_eq!(driver.dequeue(1), []);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
    driver.pool.limit(1);
    assert_eq!(driver.dequeue(1), [frame]);
    assert_eq!(driver.counted(|c| &c.packets), 1);
}

#[test]
fn any_size_of_burst_takes_as_many_frames() {
    let mut driver = modern(512);
    let (mut sent, mut received) = (0_usize, 0_usize);
    for burst in 1..=300 {
        while sent < received + 310 {
            driver.send(&Frame::new(64, sent as u8));
            sent += 1;
        }
        let expected: Vec<Frame> = (received..received + burst)
            .map(|nth| Frame::new(64, nth as u8))
            .collect();
        assert_eq!(driver.dequeue(burst), expected);
        assert_eq!(driver.used().len(), burst);
        assert_eq!(driver.pool.live(), 0);
        received += burst;
    }
}

#[test]
fn every_ring_size_works_and_the_ring_goes_round() {
    for &size in SIZES {
        let mut driver = modern(size);
        for round in 0..3 {
            for nth in 0..size {
                driver.send(&Frame::new(64, (nth ^ round) as u8));
            }
            for nth in 0..size {
                if nth % 256 == 0 {
                    let received = driver.dequeue(usize::from(size - nth).min(256));
                    for (more, frame) in (0..).zip(&received) {
                        assert_eq!(*frame, Frame::new(64, ((nth + more) ^ round) as u8));
                    }
                    assert_eq!(received.len(), usize::from(size - nth).min(256));
                }
            }
            assert_eq!(driver.used().len(), usize::from(size));
        }
    }
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let mut driver = modern(8);
    driver.send(&Frame::new(64, 1));
    driver.send(&Frame::new(64, 2));
    assert_eq!(driver.dequeue(1), [Frame::new(64, 1)]);
    assert_eq!(driver.stop() & 0x7fff, 1);
    assert_eq!(driver.dequeue(32), [Frame::new(64, 2)]);
}

#[test]
fn packets_bytes_and_sizes_are_counted() {
    let mut driver = modern(32);
    for len in [60, 64, 65, 200, 300, 600, 1500, 1519, 1519] {
        driver.send(&Frame::new(len, 0));
    }
    driver.send(&Frame(vec![0xff; 64]));
    driver.send(&Frame([&[1, 0, 0x5e, 0, 0, 1][..], &[0; 60]].concat()));
    let long = driver.with_header(&Frame([&[0xff; 6][..], &[0; 3000]].concat()));
    driver.offer(&cut(&long, &[12]));
    assert_eq!(driver.dequeue(32).len(), 12);
    assert_eq!(driver.counted(|c| &c.packets), 12);
    assert_eq!(driver.counted(|c| &c.bytes), 5827 + 64 + 66 + 3006);
    assert_eq!(driver.counted(|c| &c.broadcast), 2);
    assert_eq!(driver.counted(|c| &c.multicast), 1);
    let bins: Vec<u64> = (0..8)
        .map(|bin| driver.counted(|c| &c.sizes[bin]))
        .collect();
    assert_eq!(bins, [1, 2, 2, 1, 1, 1, 1, 3]);
}

#[test]
fn the_work_of_a_burst_is_bounded_whatever_the_chains_are() {
    // All chains lead to one table of empty entries that loops: nearly 2^30 steps in all.
    let mut driver = modern(32768);
    let mut entries = vec![Buffer::readable(0).at(BUFFERS.start); 32767];
    entries.push(Buffer::readable(0).at(BUFFERS.start).next(0));
    let table = driver.indirect(&entries);
    // The same table, of which the driver does not remember every entry every time.
    let at = driver.table_entry(&table, 0);
    let table = Buffer::readable(16 * 32768)
        .at(at)
        .flags(VRING_DESC_F_INDIRECT);
    for _ in 0..32767 {
        driver.offer(std::slice::from_ref(&table));
    }
    let begin = std::time::Instant::now();
    assert_eq!(driver.dequeue(32), []);
    assert!(begin.elapsed().as_millis() < 1000, "{:?}", begin.elapsed());
    assert_ne!(driver.used(), [], "the burst makes progress");
}

#[test]
fn a_burst_that_is_used_in_order_comes_back_in_one_entry() {
    for &size in SIZES.iter().filter(|&&size| size >= 8) {
        let mut driver = modern(size).feature(VIRTIO_F_IN_ORDER);
        for round in 0..5 {
            let frames = [1, 2, 3, 4, 5].map(|seed| Frame::new(300, seed + round));
            let mut heads = Vec::new();
            for (nth, frame) in frames.iter().enumerate() {
                let bytes = driver.with_header(frame);
                // Chains of one descriptor and more, and one without a frame.
                let lens = if nth % 2 == 1 { &[12][..] } else { &[] };
                heads.push(driver.offer(&cut(&bytes, lens)));
            }
            heads.push(driver.offer(&[Buffer::readable(3)]));
            assert_eq!(driver.dequeue(32), frames);
            let expected = heads.into_iter().map(|head| Used {
                head: head.into(),
                len: 0,
            });
            assert_eq!(driver.used(), expected.collect::<Vec<_>>());
            assert_eq!(driver.used_entries(), usize::from(round) + 1);
            assert_eq!(driver.counted(short), u64::from(round) + 1);
        }
    }
}

#[test]
fn chains_of_any_number_of_buffers_arrive_in_one_burst() {
    let mut driver = modern(1024).packet_room(1000);
    let mut frames = Vec::new();
    for (seed, parts) in (0..).zip([2, 31, 32, 33, 2, 1, 1, 40, 3, 1, 32, 32, 32, 32, 32, 5]) {
        let frame = Frame::new(parts + 1500, seed);
        let buffers = cut(&driver.with_header(&frame), &vec![1; parts - 1]);
        if seed % 2 == 0 {
            driver.offer(&buffers);
        } else {
            let table = driver.indirect(&buffers);
            driver.offer(&[table]);
        }
        frames.push(frame);
    }
    assert_eq!(driver.dequeue(32), frames);
    assert_eq!(driver.used().len(), frames.len());
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn a_burst_of_chains_ends_where_it_should_and_goes_on_there() {
    for burst in [1, 2, 3, 7, 31] {
        let mut driver = modern(64).packet_room(1000);
        for round in 0..40 {
            let frames: Vec<_> = (0..10)
                .map(|nth| Frame::new(1 + usize::from(nth) * 700, round ^ nth))
                .collect();
            let mut heads = Vec::new();
            for frame in &frames {
                let bytes = driver.with_header(frame);
                heads.push(driver.offer(&cut(&bytes, &[12])));
            }
            let mut received = Vec::new();
            while received.len() < frames.len() {
                let more = driver.dequeue(burst);
                assert_eq!(more.len(), burst.min(frames.len() - received.len()));
                received.extend(more);
            }
            assert_eq!(received, frames);
            let used = heads.into_iter().map(|head| Used {
                head: head.into(),
                len: 0,
            });
            assert_eq!(driver.used(), used.collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_bad_chain_among_good_ones_is_dropped_alone() {
    let mut driver = modern(64);
    let frames: Vec<_> = (0..6).map(|seed| Frame::new(2000, seed)).collect();
    for (nth, frame) in frames.iter().enumerate() {
        match nth {
            2 => driver.offer(&[Buffer::readable(12), Buffer::readable(64).at(UNMAPPED)]),
            3 => driver.offer(&[Buffer::readable(5), Buffer::readable(7)]),
            4 => driver.offer(&vec![Buffer::readable(70_000); 4]),
            _ => 0,
        };
        let bytes = driver.with_header(frame);
        driver.offer(&cut(&bytes, &[12, 1000]));
    }
    assert_eq!(driver.dequeue(32), frames);
    assert_eq!(driver.used().len(), 9);
    assert_eq!(driver.counted(bad_desc), 1);
    assert_eq!(driver.counted(short), 1);
    assert_eq!(driver.counted(|c| &c.drop_oversize), 1);
}

#[test]
fn long_frames_arrive_as_far_as_the_pool_goes() {
    let mut driver = modern(64).packet_room(1000);
    let frames = [1, 2, 3, 4].map(|seed| Frame::new(2500, seed));
    for frame in &frames {
        let bytes = driver.with_header(frame);
        driver.offer(&cut(&bytes, &[12, 700]));
    }
    driver.pool.limit(8);
    assert_eq!(driver.dequeue(32), frames[..2]);
    assert_eq!(driver.used().len(), 3);
    assert_eq!(driver.counted(|c| &c.drop_no_mbuf), 1);
    assert_eq!(driver.counted(|c| &c.mbuf_alloc_failed), 1);
    assert_eq!(driver.dequeue(32), frames[3..]);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn headers_apart_and_others_may_come_in_one_burst() {
    for &size in SIZES.iter().filter(|&&size| size >= 2) {
        let mut driver = modern(size).packet_room(1000);
        let mut seed = 0_u8;
        for round in 0..20 {
            let (mut frames, mut heads) = (Vec::new(), Vec::new());
            while driver.free_descriptors() >= usize::from(size.min(3)) && frames.len() < 70 {
                seed = seed.wrapping_add(1);
                let len = [1, 60, 64, 300, 999, 1000, 1001][usize::from(seed) % 7];
                let frame = Frame::new(len, seed);
                let bytes = driver.with_header(&frame);
                let pair = cut(&bytes, &[12]);
                heads.push(match (seed ^ round) % 11 {
                    0 => driver.send(&frame),
                    1 if size >= 3 => driver.offer(&cut(&bytes, &[11, 1])),
                    2 => driver.offer(&cut(&bytes, &[13])),
                    3 => driver.offer(&cut(&bytes, &[11])),
                    4..=6 => driver.offer(&pair),
                    _ => {
                        let table = driver.indirect(&pair);
                        driver.offer(&[table])
                    }
                });
                frames.push(frame);
            }
            assert_eq!(driver.dequeue(100), frames);
            let used = heads.into_iter().map(|head| Used {
                head: head.into(),
                len: 0,
            });
            assert_eq!(driver.used(), used.collect::<Vec<_>>());
            assert_eq!(driver.pool.live(), 0);
        }
    }
}

#[test]
fn a_header_apart_that_is_not_one_spoils_its_frame_alone() {
    for bad in [
        [Buffer::readable(12).at(UNMAPPED), Buffer::readable(64)],
        [Buffer::readable(12), Buffer::readable(64).at(UNMAPPED)],
        [Buffer::readable(12), Buffer::readable(0)],
        [Buffer::readable(11), Buffer::readable(1)],
    ] {
        let mut driver = modern(64);
        let frames = [1, 2].map(|seed| Frame::new(64, seed));
        let [first, last] = [&frames[0], &frames[1]].map(|frame| driver.with_header(frame));
        let table = driver.indirect(&cut(&first, &[12]));
        driver.offer(&[table]);
        driver.offer(&bad);
        let table = driver.indirect(&bad);
        driver.offer(&[table]);
        driver.offer(&cut(&last, &[12]));
        assert_eq!(driver.dequeue(32), frames);
        assert_eq!(driver.used().len(), 4);
        assert_eq!(driver.counted(bad_desc) + driver.counted(short), 2);
    }
}
