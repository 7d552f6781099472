//! What only a split ring has.
#![forbid(unsafe_code)]

#[path = "asking.rs"]
mod asking;
#[path = "both.rs"]
mod both;

use both::{assert_refused, mergeable, modern};

use crate::testing::{Buffer, FakeDriver, Frame, Used};
use crate::virtqueue::VRING_DESC_F_WRITE;

fn ring(size: u16) -> FakeDriver {
    FakeDriver::split(size)
}

const SIZES: &[u16] = &[
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768,
];

#[test]
fn a_frame_of_64_bytes_is_used_with_74_for_a_legacy_driver() {
    let mut driver = FakeDriver::split(8);
    let head = u32::from(driver.offer(&[Buffer::writable(2048)]));
    assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 1);
    assert_eq!(driver.used(), [Used { head, len: 74 }]);
}

#[test]
fn the_legacy_header_has_no_count() {
    let mut driver = FakeDriver::split(8);
    let at = driver.describe(0, Buffer::holding([0xee; 100]).flags(VRING_DESC_F_WRITE));
    driver.make_available(0);
    assert_eq!(driver.enqueue(&[Frame(vec![0x42; 60])]), 1);
    let bytes = driver.memory.read(at, 100);
    assert_eq!(bytes[..10], [0; 10]);
    assert_eq!(bytes[10..70], [0x42; 60]);
    assert_eq!(bytes[70..], [0xee; 30]);
}

#[test]
fn a_head_outside_the_table_is_refused() {
    for mut driver in [FakeDriver::split(8), modern(8), mergeable(8)] {
        driver.make_available(8);
        assert_refused(&mut driver, 8);
    }
}

#[test]
fn a_chain_that_leads_outside_the_table_is_refused() {
    for mut driver in [FakeDriver::split(8), modern(8), mergeable(8)] {
        driver.describe(0, Buffer::writable(1500).next(8));
        driver.make_available(0);
        assert_refused(&mut driver, 0);
    }
}

#[test]
fn a_chain_that_loops_is_refused() {
    for mut driver in [FakeDriver::split(8), modern(8), mergeable(8)] {
        driver.describe(0, Buffer::writable(10).next(1));
        driver.describe(1, Buffer::writable(10).next(0));
        driver.make_available(0);
        assert_refused(&mut driver, 0);
    }
}

#[test]
fn indices_wrap_at_65536() {
    let mut driver = mergeable(8).starting_at(0xfffd);
    for round in 0..3 {
        for _ in 0..5 {
            driver.offer(&[Buffer::writable(100)]);
        }
        let frames = [(60, 1), (200, 2), (60, 3)].map(|(len, seed)| Frame::new(len, seed + round));
        assert_eq!(driver.enqueue(&frames), 3);
        assert_eq!(driver.frames(), frames);
    }
    assert_eq!(driver.stop(), 12);
}

#[test]
fn an_available_index_beyond_the_ring_is_cut_to_its_size() {
    let mut driver = modern(8);
    for _ in 0..8 {
        driver.offer(&[Buffer::writable(100)]);
    }
    driver.set_available_index(0x7000);
    let frames = vec![Frame::new(64, 1); 8];
    assert_eq!(driver.enqueue(&frames), 8);
    assert_eq!(driver.frames().len(), 8);
}
