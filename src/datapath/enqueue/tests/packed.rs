//! What only a packed ring has.
#![forbid(unsafe_code)]

#[path = "asking.rs"]
mod asking;
#[path = "both.rs"]
mod both;

use both::{assert_refused, mergeable, modern};

use crate::testing::{Buffer, FakeDriver, Frame, UNMAPPED, Used};
use crate::virtqueue::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

fn ring(size: u16) -> FakeDriver {
    FakeDriver::packed(size)
}

const SIZES: &[u16] = &[1, 2, 5, 255, 256, 1025, 32768];

#[test]
fn packets_go_round_the_ring_in_chains_of_every_length() {
    for size in [3_u16, 5, 8, 31] {
        let mut driver = mergeable(size).starting_at(size - 1);
        for nth in 0..6 * size {
            let parts = usize::from(nth % size) + 1;
            let mut buffers = vec![Buffer::writable(7); parts - 1];
            buffers.push(Buffer::writable(120));
            driver.offer(&buffers);
            let frame = Frame::new(100, nth.to_le_bytes()[0]);
            assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
            assert_eq!(driver.frames(), [frame]);
        }
    }
}

#[test]
fn a_frame_is_merged_across_the_wrap() {
    for start in 0..6 {
        for wrap in [0, 0x8000] {
            let mut driver = mergeable(6).starting_at(wrap | start);
            for _ in 0..3 {
                driver.offer(&[100, 50].map(Buffer::writable));
            }
            let frame = Frame::new(400, 1);
            assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
            assert_eq!(driver.frames(), [frame]);
            assert_eq!(driver.stop(), (wrap | start) ^ 0x8000);
        }
    }
}

#[test]
fn a_chain_of_large_buffers_is_one_buffer() {
    for mut driver in [modern(16), mergeable(16)] {
        for _ in 0..4 {
            driver.offer(&vec![Buffer::writable(2048); 4]);
        }
        let frames = [1, 2, 3, 4].map(|seed| Frame::new(64, seed));
        assert_eq!(driver.enqueue(&frames), 4);
        assert_eq!(driver.frames(), frames);
    }
}

#[test]
fn a_table_is_never_taken_for_a_buffer() {
    for mut driver in [modern(16), mergeable(16)] {
        let mut tables = Vec::new();
        for _ in 0..4 {
            // Long enough, as bytes, to hold a packet.
            let table = driver.indirect(&vec![Buffer::writable(100); 16]);
            let at = driver.table_entry(&table, 0);
            tables.push((at, driver.memory.read(at, 256)));
            driver.offer(&[table.flags(VRING_DESC_F_WRITE)]);
        }
        let frames = [1, 2, 3, 4].map(|seed| Frame::new(64, seed));
        assert_eq!(driver.enqueue(&frames), 4);
        assert_eq!(driver.frames(), frames);
        for (at, bytes) in tables {
            assert_eq!(driver.memory.read(at, 256), bytes);
        }
    }
}

#[test]
fn tables_may_stand_anywhere_in_a_chain() {
    for mut driver in [modern(16), mergeable(16)] {
        let first = driver.indirect(&[5, 60].map(Buffer::writable));
        let second = driver.indirect(&[100, 0, 3].map(Buffer::writable));
        let chain = [
            Buffer::writable(3),
            first,
            Buffer::writable(40),
            second,
            Buffer::writable(500),
        ];
        driver.offer(&chain);
        let frame = Frame::new(600, 1);
        assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 1);
        assert_eq!(driver.frames(), [frame]);
        assert_eq!(driver.stop(), 0x8005);
    }
}

#[test]
fn all_descriptors_of_a_chain_with_a_bad_one_come_back() {
    for bad in 0..4 {
        let mut driver = mergeable(8);
        let mut buffers = vec![Buffer::writable(50); 4];
        buffers[bad] = Buffer::writable(50).at(UNMAPPED);
        let id = driver.offer(&buffers);
        assert_refused(&mut driver, id);
        assert_eq!(driver.free_descriptors(), 8);
    }
}

#[test]
fn a_chain_that_goes_on_in_what_is_not_available_comes_back_unused() {
    let mut driver = mergeable(8);
    driver.describe(0, Buffer::writable(100).flags(VRING_DESC_F_NEXT));
    driver.describe(1, Buffer::writable(100).flags(VRING_DESC_F_NEXT));
    driver.describe(2, Buffer::writable(100));
    driver.make_available(0);
    driver.memory.write(driver.table() + 16 * 2 + 14, &[0, 0]);
    assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 0);
    assert_eq!(driver.counted(|c| &c.drop_bad_desc), 1);
    assert_eq!(driver.stop(), 0x8002);
}

#[test]
fn used_descriptors_say_that_they_were_written() {
    let mut driver = modern(8);
    let table = driver.table();
    let flags = |driver: &FakeDriver, index: u64| {
        let flags = driver.memory.read(table + 16 * index + 14, 2);
        u16::from_le_bytes(flags.try_into().unwrap())
    };
    driver.offer(&[Buffer::readable(100)]);
    driver.offer(&[Buffer::writable(100)]);
    driver.offer(&[Buffer::writable(100)]);
    assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 1);
    assert_eq!(flags(&driver, 0), 0x8080, "given back unwritten");
    assert_eq!(flags(&driver, 1), 0x8080 | VRING_DESC_F_WRITE);
    assert_eq!(flags(&driver, 2), 0x80 | VRING_DESC_F_WRITE, "not used");
}

#[test]
fn a_burst_may_be_larger_than_the_ring() {
    for &size in SIZES.iter().filter(|&&size| size < 500) {
        let mut driver = modern(size);
        for round in 0..3 {
            for _ in 0..size {
                driver.offer(&[Buffer::writable(100)]);
            }
            let frames = vec![Frame::new(64, round); 600];
            assert_eq!(driver.enqueue(&frames), usize::from(size));
            assert_eq!(driver.frames().len(), usize::from(size));
        }
    }
}

#[test]
fn chains_that_were_not_enough_stay_the_devices() {
    let mut driver = mergeable(5).starting_at(0x8003);
    let ids = [0, 0].map(|_| driver.offer(&[Buffer::writable(100)]));
    let frame = Frame::new(250, 1);
    assert_eq!(driver.enqueue(std::slice::from_ref(&frame)), 0);
    assert_eq!(driver.used(), []);
    assert_eq!(driver.stop(), 0x8003);
    let short = Frame::new(150, 2);
    assert_eq!(driver.enqueue(std::slice::from_ref(&short)), 1);
    let lens = [100, 62];
    let used = [0, 1].map(|nth| Used {
        head: ids[nth].into(),
        len: lens[nth],
    });
    assert_eq!(driver.used(), used);
}
