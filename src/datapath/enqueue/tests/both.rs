//! What holds for both layouts. `super` says which ring it is.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small or wrap on purpose"
)]

use super::{SIZES, ring};
use crate::datapath::Release;
use crate::testing::{APART, BUFFERS, Buffer, FakeDriver, Frame, NEXT, UNMAPPED, Used};
use crate::virtio_net::{Asked, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};
use crate::virtqueue::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};

pub(super) fn modern(size: u16) -> FakeDriver {
    ring(size).feature(VIRTIO_F_VERSION_1)
}

pub(super) fn mergeable(size: u16) -> FakeDriver {
    modern(size).feature(VIRTIO_NET_F_MRG_RXBUF)
}

/// `frame` arrives in `buffers`, one chain, whose used length is header and frame.
fn assert_arrives_in(driver: &mut FakeDriver, buffers: &[Buffer], frame: &Frame) {
    let head = u32::from(driver.offer(buffers));
    assert_eq!(driver.enqueue(std::slice::from_ref(frame)), 1);
    let len = (driver.header_len() + frame.0.len()) as u32;
    let used = driver.used();
    assert_eq!(used, [Used { head, len }]);
    let bytes = driver.written(used[0]);
    assert_eq!(Frame(bytes[driver.header_len()..].to_vec()), *frame);
    assert_eq!(driver.pool.live(), 0);
    assert!(driver.memory.canaries_are_whole());
}

/// The chain at `head` comes back unused and counted, and the frame goes into the next one.
pub(super) fn assert_refused(driver: &mut FakeDriver, head: u16) {
    let frame = Frame::new(64, 9);
    let good = u32::from(driver.offer(&[Buffer::writable(1600)]));
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    let len = (driver.header_len() + 64) as u32;
    let head = u32::from(head);
    assert_eq!(
        driver.used(),
        [Used { head, len: 0 }, Used { head: good, len }]
    );
    assert_eq!(driver.counted(|c| &c.drop_bad_desc), 1);
    assert_eq!(driver.counted(|c| &c.packets), 1);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn a_frame_of_64_bytes_is_used_with_76() {
    for mut driver in [modern(8), mergeable(8)] {
        let head = u32::from(driver.offer(&[Buffer::writable(2048)]));
        assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 1);
        assert_eq!(driver.used(), [Used { head, len: 76 }]);
    }
}

#[test]
fn the_header_asks_for_nothing_and_names_one_buffer() {
    for mut driver in [modern(8), mergeable(8)] {
        let at = driver.describe(0, Buffer::holding([0xee; 100]).flags(VRING_DESC_F_WRITE));
        driver.make_available(0);
        assert_eq!(driver.enqueue(&[Frame(vec![0x42; 60])]), 1);
        let bytes = driver.memory.read(at, 100);
        assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[12..72], [0x42; 60]);
        assert_eq!(bytes[72..], [0xee; 28], "beyond what was used");
    }
}

#[test]
fn a_header_is_whole_whatever_stood_there() {
    let right = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for burst in 1..=3 {
        for odd in 0..=right.len() {
            let mut driver = mergeable(8);
            let mut before = right;
            if let Some(byte) = before.get_mut(odd) {
                *byte ^= 0x5a;
            }
            let bytes = [before.as_slice(), &[0xee; 88]].concat();
            let places: Vec<u64> = (0..burst)
                .map(|nth| {
                    let buffer = Buffer::holding(bytes.clone()).flags(VRING_DESC_F_WRITE);
                    let at = driver.describe(nth, buffer);
                    driver.make_available(nth);
                    at
                })
                .collect();
            let frames = vec![Frame(vec![0x42; 60]); places.len()];
            assert_eq!(driver.enqueue(&frames), frames.len());
            for at in places {
                assert_eq!(driver.memory.read(at, 12), right, "byte {odd} was wrong");
            }
        }
    }
}

#[test]
fn a_tag_stands_behind_the_addresses_of_a_packet_of_any_length() {
    for mut driver in [modern(8), mergeable(8)] {
        let lens = (12..=330).chain([1000, 1518]);
        for (nth, len) in lens.enumerate() {
            let burst = nth % 3 + 1;
            let frame = Frame::new(len, nth as u8);
            let asked = Asked {
                vlan: Some(0x2345),
                ..Asked::default()
            };
            let mut packets = Vec::new();
            for _ in 0..burst {
                driver.offer(&[Buffer::writable(1600)]);
                packets.push(driver.packet(&frame).asking(asked));
            }
            assert_eq!(driver.enqueue_packets(&packets), burst);
            let (addresses, rest) = frame.0.split_at(12);
            let tagged = [addresses, &[0x81, 0x00, 0x23, 0x45], rest].concat();
            assert_eq!(driver.frames(), vec![Frame(tagged); burst], "{len} bytes");
            assert!(driver.memory.canaries_are_whole());
        }
        assert_eq!(driver.pool.live(), 0);
    }
}

#[test]
fn without_buffers_nothing_is_taken() {
    let mut driver = modern(8);
    assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 0);
    assert_eq!(driver.used(), []);
    assert_eq!(driver.counted(|c| &c.packets), 0);
}

#[test]
fn a_burst_of_no_packets_does_nothing() {
    let mut driver = modern(8);
    driver.offer(&[Buffer::writable(2048)]);
    assert_eq!(driver.enqueue(&[]), 0);
    assert_eq!(driver.used(), []);
}

#[test]
fn a_buffer_that_just_fits_is_used() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        let len = driver.header_len() as u32 + 64;
        assert_arrives_in(&mut driver, &[Buffer::writable(len)], &Frame::new(64, 1));
    }
}

#[test]
fn header_and_frame_may_go_to_buffers_of_their_own() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        let header = Buffer::writable(driver.header_len() as u32);
        let buffers = [header, Buffer::writable(1518)];
        assert_arrives_in(&mut driver, &buffers, &Frame::new(700, 1));
    }
}

#[test]
fn a_header_may_be_spread_over_any_number_of_buffers() {
    for lens in [&[1; 12][..], &[5, 6], &[11, 3], &[4, 4, 4], &[0, 2, 0, 20]] {
        for mut driver in [ring(16), modern(16), mergeable(16)] {
            let mut buffers: Vec<_> = lens.iter().map(|&len| Buffer::writable(len)).collect();
            buffers.push(Buffer::writable(1500));
            assert_arrives_in(&mut driver, &buffers, &Frame::new(64, 1));
        }
    }
}

#[test]
fn a_chain_may_take_the_whole_ring() {
    for &size in SIZES {
        let mut driver = modern(size);
        let mut buffers = vec![Buffer::writable(1); usize::from(size) - 1];
        buffers.push(Buffer::writable(200));
        let frame = Frame::new(usize::from(size) + 100, 1);
        assert_arrives_in(&mut driver, &buffers, &frame);
    }
}

#[test]
fn an_indirect_table_is_filled() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        let table = driver.indirect(&[12, 100, 0, 900].map(Buffer::writable));
        assert_arrives_in(&mut driver, &[table], &Frame::new(800, 1));
    }
}

#[test]
fn direct_buffers_may_come_before_an_indirect_table() {
    let mut driver = modern(8);
    let table = driver.indirect(&[100, 900].map(Buffer::writable));
    let buffers = [Buffer::writable(12), Buffer::writable(30), table];
    assert_arrives_in(&mut driver, &buffers, &Frame::new(800, 1));
}

#[test]
fn a_buffer_may_cross_from_one_region_to_its_neighbour() {
    for before in [1, 11, 12, 13, 40, 111] {
        for mut driver in [ring(8), modern(8), mergeable(8)] {
            let buffer = Buffer::writable(112).at(BUFFERS.end - before);
            assert_arrives_in(&mut driver, &[buffer], &Frame::new(100, 1));
        }
    }
}

#[test]
fn a_buffer_up_to_the_last_mapped_byte_is_fine() {
    for end in [NEXT.end, APART.end] {
        let mut driver = modern(8);
        let buffer = Buffer::writable(112).at(end - 112);
        assert_arrives_in(&mut driver, &[buffer], &Frame::new(100, 1));
    }
}

#[test]
fn a_buffer_with_an_unmapped_end_is_used_only_as_far_as_the_frame_needs_it() {
    let mut driver = modern(8);
    let buffer = Buffer::writable(2048).at(APART.end - 112);
    let head = u32::from(driver.offer(&[buffer]));
    assert_eq!(driver.enqueue(&[Frame::new(100, 1)]), 1);
    assert_eq!(driver.used(), [Used { head, len: 112 }]);
    assert!(driver.memory.canaries_are_whole());
}

#[test]
fn a_buffer_that_ends_unmapped_inside_the_frame_is_refused() {
    let mut driver = modern(8);
    let head = driver.offer(&[Buffer::writable(2048).at(APART.end - 70)]);
    assert_refused(&mut driver, head);
    assert!(driver.memory.canaries_are_whole());
}

#[test]
fn a_buffer_that_the_device_may_not_write_is_refused() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        let head = driver.offer(&[Buffer::holding([0xee; 2048])]);
        assert_refused(&mut driver, head);
    }
}

#[test]
fn a_chain_with_one_buffer_that_the_device_may_not_write_is_refused() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        let at = APART.start;
        let head = driver.offer(&[
            Buffer::writable(12),
            Buffer::holding([0xee; 100]).at(at),
            Buffer::writable(2048),
        ]);
        assert_refused(&mut driver, head);
        assert_eq!(driver.memory.read(at, 100), [0xee; 100]);
    }
}

#[test]
fn a_chain_shorter_than_the_header_is_refused() {
    for mut driver in [ring(8), mergeable(8)] {
        let head = driver.offer(&[Buffer::writable(5), Buffer::writable(3)]);
        assert_refused(&mut driver, head);
    }
}

#[test]
fn an_unmapped_buffer_is_refused() {
    for at in [0, UNMAPPED, u64::MAX - 100, NEXT.end] {
        for mut driver in [ring(8), modern(8), mergeable(8)] {
            let head = driver.offer(&[Buffer::writable(2048).at(at)]);
            assert_refused(&mut driver, head);
        }
    }
}

#[test]
fn a_nested_table_is_refused() {
    let mut driver = modern(8);
    let inner = driver.indirect(&[Buffer::writable(1000)]);
    let outer = driver.indirect(&[Buffer::writable(12), inner]);
    let head = driver.offer(&[outer]);
    assert_refused(&mut driver, head);
}

#[test]
fn a_table_longer_than_the_ring_is_refused() {
    let mut driver = modern(8);
    let table = driver.indirect(&vec![Buffer::writable(200); 9]);
    let head = driver.offer(&[table]);
    assert_refused(&mut driver, head);
}

#[test]
fn a_frame_is_spread_over_chains_when_the_driver_merges() {
    let mut driver = mergeable(16);
    let lens = [100, 50, 1000, 2048];
    let heads = lens.map(|len| u32::from(driver.offer(&[Buffer::writable(len)])));
    let frame = Frame::new(1500, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    let used = driver.used();
    let expected = [(0, 100), (1, 50), (2, 1000), (3, 362)];
    assert_eq!(
        used,
        expected.map(|(nth, len)| Used {
            head: heads[nth],
            len
        })
    );
    let mut bytes: Vec<u8> = used.iter().flat_map(|&u| driver.written(u)).collect();
    assert_eq!(
        bytes.drain(..12).collect::<Vec<_>>(),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]
    );
    assert_eq!(Frame(bytes), frame);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn merged_chains_may_have_several_buffers_each() {
    let mut driver = mergeable(32);
    for _ in 0..3 {
        driver.offer(&[12, 0, 300].map(Buffer::writable));
        let table = driver.indirect(&[200, 200].map(Buffer::writable));
        driver.offer(&[table]);
    }
    let frames = [Frame::new(1000, 1), Frame::new(400, 2)];
    assert_eq!(driver.enqueue(&frames), 2);
    assert_eq!(driver.frames(), frames);
}

#[test]
fn a_frame_may_be_merged_over_256_chains_and_more() {
    let mut driver = mergeable(1024);
    for _ in 0..700 {
        driver.offer(&[Buffer::writable(100)]);
    }
    let frame = Frame::new(65_550, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn a_frame_may_be_merged_over_tables_of_small_buffers() {
    let mut driver = mergeable(16);
    for _ in 0..16 {
        let table = driver.indirect(&vec![Buffer::writable(20); 16]);
        driver.offer(&[table]);
    }
    let frame = Frame::new(5000, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn a_frame_that_lacks_buffers_takes_none() {
    let mut driver = mergeable(8);
    driver.offer(&[Buffer::writable(100)]);
    driver.offer(&[Buffer::writable(100)]);
    let frame = Frame::new(250, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 0);
    assert_eq!(driver.used(), []);
    driver.offer(&[Buffer::writable(100)]);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn a_small_frame_behind_one_that_lacks_buffers_waits_its_turn() {
    let mut driver = mergeable(8);
    driver.offer(&[Buffer::writable(100)]);
    let frames = [Frame::new(250, 1), Frame::new(60, 2)];
    assert_eq!(driver.enqueue(&frames), 0);
    assert_eq!(driver.used(), []);
}

#[test]
fn a_frame_that_the_whole_ring_cannot_hold_is_dropped() {
    let mut driver = mergeable(4);
    for _ in 0..4 {
        driver.offer(&[Buffer::writable(100)]);
    }
    let frames = [Frame::new(1000, 1), Frame::new(60, 2)];
    assert_eq!(driver.enqueue(&frames), 2);
    assert_eq!(driver.frames(), [Frame::new(60, 2)]);
    assert_eq!(driver.counted(|c| &c.drop_oversize), 1);
    assert_eq!(driver.counted(|c| &c.packets), 1);
}

#[test]
fn a_frame_too_long_for_the_buffer_is_dropped_when_the_driver_does_not_merge() {
    let mut driver = modern(8);
    driver.offer(&[Buffer::writable(100)]);
    driver.offer(&[Buffer::writable(2048)]);
    let frames = [Frame::new(89, 1), Frame::new(88, 2), Frame::new(89, 3)];
    assert_eq!(driver.enqueue(&frames), 3);
    assert_eq!(driver.frames(), frames[1..]);
    assert_eq!(driver.counted(|c| &c.drop_oversize), 1);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn a_malformed_chain_between_good_ones_of_a_merged_frame_is_passed_over() {
    let mut driver = mergeable(16);
    let first = u32::from(driver.offer(&[Buffer::writable(100)]));
    let bad = u32::from(driver.offer(&[Buffer::writable(100).at(UNMAPPED)]));
    driver.offer(&[Buffer::writable(100)]);
    driver.offer(&[Buffer::writable(200)]);
    let frame = Frame::new(250, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    assert_eq!(driver.counted(|c| &c.drop_bad_desc), 1);
    let used = driver.used();
    assert_eq!(
        used[0],
        Used {
            head: first,
            len: 0
        }
    );
    assert_eq!(used[1], Used { head: bad, len: 0 });
    let bytes: Vec<u8> = used[2..].iter().flat_map(|&u| driver.written(u)).collect();
    assert_eq!(bytes[10..12], [2, 0]);
    assert_eq!(Frame(bytes[12..].to_vec()), frame);
}

#[test]
fn a_merged_frame_that_loses_its_buffers_to_a_malformed_chain_waits() {
    let mut driver = mergeable(16);
    let first = u32::from(driver.offer(&[Buffer::writable(100)]));
    let bad = u32::from(driver.offer(&[Buffer::writable(100).at(UNMAPPED)]));
    driver.offer(&[Buffer::writable(100)]);
    let frame = Frame::new(150, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 0);
    let dropped = [first, bad].map(|head| Used { head, len: 0 });
    assert_eq!(driver.used(), dropped);
    driver.offer(&[Buffer::writable(100)]);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn packets_of_several_segments_are_copied_one_by_one() {
    for mut driver in [ring(8), modern(8), mergeable(8)] {
        driver.offer(&[Buffer::writable(2048)]);
        let frame = Frame::new(1400, 1);
        let (a, b) = frame.0.split_at(14);
        let (b, c) = b.split_at(600);
        let packet = driver.pool.packet(&[a, b, &[], c]);
        assert_eq!(driver.enqueue_packets(&[packet]), 1);
        assert_eq!(driver.frames(), [frame]);
        assert_eq!(driver.pool.live(), 0);
    }
}

#[test]
fn segments_and_buffers_need_not_meet() {
    let mut driver = mergeable(64);
    for _ in 0..20 {
        driver.offer(&[70, 30].map(Buffer::writable));
    }
    let frame = Frame::new(1900, 1);
    let parts: Vec<&[u8]> = frame.0.chunks(37).collect();
    let packet = driver.pool.packet(&parts);
    assert_eq!(driver.enqueue_packets(&[packet]), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn packets_that_are_not_taken_stay_the_callers() {
    let mut driver = modern(8);
    for _ in 0..3 {
        driver.offer(&[Buffer::writable(2048)]);
    }
    let frames = [1, 2, 3, 4, 5].map(|seed| Frame::new(64, seed));
    let packets = frames.clone().map(|frame| driver.packet(&frame));
    assert_eq!(driver.enqueue_packets(&packets), 3);
    assert_eq!(driver.pool.live(), 2);
    let kept = packets[3..].iter().map(|packet| Frame(packet.to_vec()));
    assert_eq!(kept.collect::<Vec<_>>(), frames[3..]);
    driver.pool.release(&packets[3..]);
    assert_eq!(driver.frames(), frames[..3]);
}

#[test]
fn a_packet_that_asks_for_something_is_prepared_and_sent() {
    let mut driver = modern(8);
    driver.offer(&[Buffer::writable(2048)]);
    let frame = Frame::new(64, 1);
    let packet = driver.packet(&frame).asking(Asked::default());
    assert_eq!(driver.enqueue_packets(&[packet]), 1);
    assert_eq!(driver.frames(), [frame]);
}

#[test]
fn a_packet_that_cannot_be_prepared_counts_as_taken() {
    let mut driver = modern(8);
    driver.offer(&[Buffer::writable(2048)]);
    driver.offer(&[Buffer::writable(2048)]);
    let frame = Frame::new(64, 2);
    let refused = driver.packet(&Frame::new(64, 1)).asking(Asked {
        unable: true,
        ..Asked::default()
    });
    let packets = [refused, driver.packet(&frame)];
    assert_eq!(driver.enqueue_packets(&packets), 2);
    assert_eq!(driver.frames(), [frame]);
    assert_eq!(driver.counted(|c| &c.drop_prepare), 1);
    assert_eq!(driver.pool.live(), 0);
}

#[test]
fn any_size_of_burst_fills_as_many_buffers() {
    let mut driver = mergeable(512);
    for burst in 1..=300 {
        while driver.free_descriptors() > 512 - 310 {
            driver.offer(&[Buffer::writable(100)]);
        }
        let frames: Vec<Frame> = (0..burst)
            .map(|nth| Frame::new(60 + nth % 20, nth as u8))
            .collect();
        assert_eq!(driver.enqueue(&frames), burst);
        assert_eq!(driver.frames(), frames);
        assert_eq!(driver.pool.live(), 0);
    }
}

#[test]
fn a_burst_ends_where_the_buffers_end() {
    for buffers in [1, 31, 32, 63, 64, 65, 127, 128, 129] {
        let mut driver = modern(256);
        for _ in 0..buffers {
            driver.offer(&[Buffer::writable(100)]);
        }
        let frames = vec![Frame::new(64, 1); 200];
        assert_eq!(driver.enqueue(&frames), buffers);
        assert_eq!(driver.frames().len(), buffers);
        assert_eq!(driver.pool.live(), 0);
    }
}

#[test]
fn every_ring_size_works_and_the_ring_goes_round() {
    for &size in SIZES {
        let mut driver = modern(size);
        let size = usize::from(size);
        for round in 0..3 {
            for _ in 0..size {
                driver.offer(&[Buffer::writable(80)]);
            }
            let frames: Vec<Frame> = (0..size)
                .map(|nth| Frame::new(60, (nth ^ round) as u8))
                .collect();
            assert_eq!(driver.enqueue(&frames), size);
            assert_eq!(driver.frames(), frames);
        }
    }
}

#[test]
fn packets_bytes_and_sizes_are_counted_without_the_header() {
    let mut driver = mergeable(16);
    for _ in 0..8 {
        driver.offer(&[Buffer::writable(1000)]);
    }
    let frames = [
        Frame::new(60, 0),
        Frame::new(64, 0),
        Frame::new(1519, 0),
        Frame(vec![0xff; 64]),
        Frame([&[1, 0, 0x5e, 0, 0, 1][..], &[0; 60]].concat()),
    ];
    assert_eq!(driver.enqueue(&frames), 5);
    assert_eq!(driver.counted(|c| &c.packets), 5);
    assert_eq!(driver.counted(|c| &c.bytes), 60 + 64 + 1519 + 64 + 66);
    assert_eq!(driver.counted(|c| &c.broadcast), 1);
    assert_eq!(driver.counted(|c| &c.multicast), 1);
    let bins: Vec<u64> = (0..8)
        .map(|bin| driver.counted(|c| &c.sizes[bin]))
        .collect();
    assert_eq!(bins, [1, 2, 1, 0, 0, 0, 0, 1]);
}

#[test]
fn the_work_of_a_burst_is_bounded_whatever_the_chains_are() {
    let mut driver = mergeable(32768);
    let mut entries = vec![Buffer::writable(0).at(BUFFERS.start); 32767];
    entries.push(Buffer::writable(0).at(BUFFERS.start).next(0));
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
    assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 0);
    assert!(begin.elapsed().as_millis() < 1000, "{:?}", begin.elapsed());
    assert_ne!(driver.used(), [], "the burst makes progress");
}

#[test]
fn the_work_for_a_packet_is_bounded_however_little_the_chains_hold() {
    // Each chain is 32767 empty buffers and one byte: a long packet would walk them all.
    let mut driver = mergeable(32768);
    let mut entries = vec![Buffer::writable(0).at(BUFFERS.start); 32767];
    entries.push(Buffer::writable(20).at(BUFFERS.start));
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
    driver.enqueue(&[Frame::new(60_000, 1)]);
    assert!(begin.elapsed().as_millis() < 1000, "{:?}", begin.elapsed());
    assert_eq!(driver.pool.live(), 0);
}
