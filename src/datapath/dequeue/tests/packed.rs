//! What only a packed ring has.
#![forbid(unsafe_code)]

#[path = "both.rs"]
mod both;

use both::{assert_arrives, assert_dropped, bad_desc, cut, modern};

use crate::testing::{Buffer, FakeDriver, Frame, UNMAPPED, Used};
use crate::virtqueue::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

fn ring(size: u16) -> FakeDriver {
    FakeDriver::packed(size)
}

const SIZES: &[u16] = &[1, 2, 5, 255, 256, 1025, 32768];

#[test]
fn chains_cross_the_wrap_at_every_place() {
    for size in [3_u16, 5, 8] {
        for start in 0..size {
            let mut driver = modern(size).starting_at(0x8000 | start);
            for nth in 0..4 * size {
                let frame = Frame::new(100, nth.to_le_bytes()[0]);
                let parts = usize::from(nth % size);
                let buffers = cut(&driver.with_header(&frame), &vec![9; parts]);
                assert_arrives(&mut driver, &buffers, &frame);
            }
        }
    }
}

#[test]
fn the_wrap_counter_turns_with_each_round() {
    let mut driver = modern(5);
    let positions = [
        0x8001, 0x8002, 0x8003, 0x8004, 0, 1, 2, 3, 4, 0x8000, 0x8001,
    ];
    for (seed, position) in (0..).zip(positions) {
        driver.send(&Frame::new(64, seed));
        assert_eq!(driver.dequeue(32), [Frame::new(64, seed)]);
        assert_eq!(driver.used().len(), 1);
        assert_eq!(driver.stop(), position);
    }
}

#[test]
fn a_ring_is_taken_up_in_either_turn() {
    for position in [0x8000, 0x8003, 0, 3] {
        let mut driver = modern(5).starting_at(position);
        let frames = [1, 2, 3, 4].map(|seed| Frame::new(64, seed));
        assert_eq!(driver.dequeue(32), []);
        for frame in &frames {
            driver.send(frame);
        }
        assert_eq!(driver.dequeue(32), frames);
        assert_eq!(driver.used().len(), 4);
    }
}

#[test]
fn a_burst_may_be_larger_than_the_ring() {
    for &size in SIZES.iter().filter(|&&size| size < 500) {
        let mut driver = modern(size);
        for round in 0..3 {
            for _ in 0..size {
                driver.send(&Frame::new(64, round));
            }
            assert_eq!(driver.dequeue(1000).len(), usize::from(size));
            assert_eq!(driver.used().len(), usize::from(size));
        }
    }
}

#[test]
fn a_table_may_stand_anywhere_in_a_chain() {
    let frame = Frame::new(900, 1);
    for first in 0..4 {
        let mut driver = modern(8);
        let mut buffers = cut(&driver.with_header(&frame), &[12, 100, 200, 300, 20]);
        let rest = buffers.split_off(first + 2);
        let table = driver.indirect(&buffers.split_off(first));
        buffers.push(table);
        buffers.extend(rest);
        assert_arrives(&mut driver, &buffers, &frame);
    }
}

#[test]
fn a_chain_may_be_of_tables_alone() {
    let mut driver = modern(8);
    let frame = Frame::new(900, 1);
    let buffers = cut(&driver.with_header(&frame), &[12, 100, 200, 300, 20]);
    let tables: Vec<_> = buffers
        .chunks(2)
        .map(|part| driver.indirect(part))
        .collect();
    assert_arrives(&mut driver, &tables, &frame);
}

#[test]
fn links_in_a_table_mean_nothing() {
    let mut driver = modern(8);
    let frame = Frame::new(300, 1);
    let buffers = cut(&driver.with_header(&frame), &[12, 100]);
    let buffers: Vec<_> = buffers.into_iter().map(|buffer| buffer.next(77)).collect();
    let table = driver.indirect(&buffers);
    // Nor does it matter that nothing is linked.
    for nth in 0..2 {
        let flags = driver.table_entry(&table, nth) + 14;
        driver.memory.write(flags, &[0, 0]);
    }
    assert_arrives(&mut driver, &[table], &frame);
}

#[test]
fn all_descriptors_of_a_chain_with_a_bad_one_come_back() {
    for bad in 0..4 {
        let mut driver = modern(8);
        let mut buffers = vec![Buffer::readable(50); 4];
        buffers[bad] = Buffer::readable(50).at(UNMAPPED);
        let id = driver.offer(&buffers);
        assert_dropped(&mut driver, id, bad_desc);
        assert_eq!(driver.free_descriptors(), 8);
        assert_eq!(driver.stop(), 0x8005);
    }
}

#[test]
fn a_bad_table_in_a_chain_does_not_hide_the_rest_of_it() {
    let mut driver = modern(8);
    let table = Buffer::readable(17).flags(VRING_DESC_F_INDIRECT);
    let id = driver.offer(&[Buffer::readable(12), table, Buffer::readable(100)]);
    assert_dropped(&mut driver, id, bad_desc);
    assert_eq!(driver.stop(), 0x8004);
}

/// Writes the flags of the descriptor at `index`.
fn set_flags(driver: &FakeDriver, index: u16, flags: u16) {
    let at = driver.table() + 16 * u64::from(index) + 14;
    driver.memory.write(at, &flags.to_le_bytes());
}

fn flags(driver: &FakeDriver, index: u16) -> u16 {
    let at = driver.table() + 16 * u64::from(index) + 14;
    u16::from_le_bytes(driver.memory.read(at, 2).try_into().unwrap())
}

#[test]
fn a_chain_that_goes_on_in_what_is_not_available_is_handed_back() {
    let mut driver = modern(8);
    driver.describe(0, Buffer::readable(100).flags(VRING_DESC_F_NEXT));
    driver.describe(1, Buffer::readable(100).flags(VRING_DESC_F_NEXT));
    driver.describe(2, Buffer::readable(100));
    driver.make_available(0);
    set_flags(&driver, 2, 0);
    assert_eq!(driver.dequeue(32), []);
    assert_eq!(driver.counted(bad_desc), 1);
    assert_eq!(
        flags(&driver, 0),
        0x8080,
        "used, at the chain's first place"
    );
    assert_eq!(driver.stop(), 0x8002);
}

#[test]
fn a_chain_of_more_descriptors_than_the_ring_has_is_handed_back() {
    for &size in SIZES.iter().filter(|&&size| size < 2000) {
        let mut driver = modern(size);
        for index in 0..size {
            driver.describe(index, Buffer::readable(20).flags(VRING_DESC_F_NEXT));
        }
        driver.make_available(0);
        assert_eq!(driver.dequeue(32), []);
        assert_eq!(driver.counted(bad_desc), 1);
        assert_eq!(driver.stop(), 0, "{size}: one whole turn");
    }
}

#[test]
fn a_used_descriptor_names_the_chain_by_its_id_and_claims_no_bytes() {
    let mut driver = modern(8);
    let frame = Frame::new(64, 1);
    let buffers = cut(&driver.with_header(&frame), &[12, 20]);
    let head = u32::from(driver.offer(&buffers));
    driver.send(&frame);
    assert_eq!(driver.dequeue(32).len(), 2);
    let used = driver.used();
    assert_eq!(used[0], Used { head, len: 0 });
    // Second chain: its used descriptor stands behind all three of the first.
    assert_eq!(flags(&driver, 3), 0x8080);
    assert_eq!(flags(&driver, 1) & 0x8000, 0, "not written");
}

#[test]
fn descriptors_of_the_turn_before_are_not_taken_again() {
    let mut driver = modern(4);
    for round in 0..10 {
        for seed in 0..3 {
            driver.send(&Frame::new(64, seed + round));
        }
        assert_eq!(driver.dequeue(32).len(), 3);
        assert_eq!(driver.dequeue(32), []);
        driver.used();
    }
}
