//! What only a split ring has.
#![forbid(unsafe_code)]

#[path = "both.rs"]
mod both;

use both::{assert_arrives, assert_dropped, bad_desc, cut, modern};

use crate::testing::{Buffer, FakeDriver, Frame};

fn ring(size: u16) -> FakeDriver {
    FakeDriver::split(size)
}

const SIZES: &[u16] = &[
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768,
];

#[test]
fn the_legacy_header_has_10_bytes() {
    let mut driver = FakeDriver::split(8);
    let frame = Frame::new(64, 1);
    let mut bytes = vec![0xee; 10];
    bytes.extend(&frame.0);
    assert_arrives(&mut driver, &[Buffer::holding(bytes)], &frame);
}

#[test]
fn a_chain_that_leads_outside_the_table_is_handed_back_unused() {
    let mut driver = modern(8);
    driver.describe(0, Buffer::readable(1500).next(8)); // the table ends at 7
    driver.make_available(0);
    assert_dropped(&mut driver, 0, bad_desc);
}

#[test]
fn a_head_outside_the_table_is_handed_back_unused() {
    for head in [8, 9, 0x7fff, 0xffff] {
        let mut driver = modern(8);
        driver.make_available(head);
        assert_dropped(&mut driver, head, bad_desc);
    }
}

#[test]
fn a_chain_that_loops_is_handed_back_unused() {
    let mut driver = modern(8);
    driver.describe(0, Buffer::readable(100).next(1));
    driver.describe(1, Buffer::readable(100).next(0));
    driver.make_available(0);
    assert_dropped(&mut driver, 0, bad_desc);
}

#[test]
fn a_descriptor_that_leads_to_itself_is_handed_back_unused() {
    let mut driver = modern(8);
    driver.describe(3, Buffer::readable(100).next(3));
    driver.make_available(3);
    assert_dropped(&mut driver, 3, bad_desc);
}

#[test]
fn a_loop_of_empty_buffers_ends_too() {
    let mut driver = modern(8);
    driver.describe(3, Buffer::readable(0).next(3));
    driver.make_available(3);
    assert_dropped(&mut driver, 3, bad_desc);
}

#[test]
fn a_table_may_be_linked_in_any_order() {
    let mut driver = modern(8);
    let frame = Frame::new(300, 1);
    let bytes = driver.with_header(&frame);
    let table = driver.indirect(&[
        Buffer::holding(&bytes[..12]).next(2),
        Buffer::holding(&bytes[100..]),
        Buffer::holding(&bytes[12..100]).next(1),
    ]);
    // The last entry of the table links back to entry 1, which `indirect` linked to 2.
    driver
        .memory
        .write(driver.table_entry(&table, 1) + 12, &[0; 4]);
    assert_arrives(&mut driver, &[table], &frame);
}

#[test]
fn a_table_that_links_outside_itself_is_refused() {
    let mut driver = modern(8);
    let table = driver.indirect(&[Buffer::readable(100).next(2), Buffer::readable(100)]);
    let head = driver.offer(&[table]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn a_table_that_loops_is_refused() {
    let mut driver = modern(8);
    let table = driver.indirect(&[
        Buffer::readable(100),
        Buffer::readable(100).next(0),
        Buffer::readable(100),
    ]);
    let head = driver.offer(&[table]);
    assert_dropped(&mut driver, head, bad_desc);
}

#[test]
fn next_beside_indirect_means_nothing() {
    let mut driver = modern(8);
    let frame = Frame::new(200, 1);
    let buffers = cut(&driver.with_header(&frame), &[12]);
    let table = driver.indirect(&buffers);
    driver.describe(0, table.next(9));
    driver.make_available(0);
    assert_eq!(driver.dequeue(32), [frame]);
}

#[test]
fn indices_wrap_at_65536() {
    let mut driver = modern(8).starting_at(0xfffd);
    for round in 0..3 {
        let frames = [1, 2, 3, 4, 5].map(|seed| Frame::new(64, seed + round));
        for frame in &frames {
            driver.send(frame);
        }
        assert_eq!(driver.dequeue(32), frames);
        assert_eq!(driver.used().len(), 5);
    }
    assert_eq!(driver.stop(), 12);
}

#[test]
fn an_available_index_beyond_the_ring_is_cut_to_its_size() {
    let mut driver = modern(8);
    for seed in 0..8 {
        driver.send(&Frame::new(64, seed));
    }
    driver.set_available_index(9);
    let received = driver.dequeue(8);
    assert_eq!(received.len(), 8);
    assert_eq!(driver.used().len(), 8);
    assert_eq!(driver.pool.live(), 0);
}
