//! A guest that writes what it likes into a split ring, between bursts in both directions.
//!
//! Each command of the input is 8 bytes: what to do, and numbers for it. `cargo xtask fuzz
//! split_ring`.
#![no_main]

#[path = "common.rs"]
mod common;

use common::{address, commands, features, length};
use libfuzzer_sys::fuzz_target;
use rte_net_vhost::testing::{BUFFERS, FakeDriver, Frame};

fuzz_target!(|data: &[u8]| {
    let Some((&[shift, acked], rest)) = data.split_first_chunk() else {
        return;
    };
    let driver = FakeDriver::split(1 << (shift % 8)).packet_room(256);
    let mut driver = features(driver, acked);
    driver.pool.limit(64);
    for &[what, a, b, c, d, e, f, g] in commands(rest) {
        match what % 8 {
            // A descriptor, in the ring or in the bytes that tables are made of.
            0..=3 => {
                let to = match what & 1 {
                    0 => driver.table() + 16 * u64::from(a) % (16 * u64::from(driver.size())),
                    _ => BUFFERS.start + 16 * u64::from(a),
                };
                let mut bytes = [0; 16];
                let addr = address(b, u16::from_le_bytes([c, d]));
                bytes[..8].copy_from_slice(&addr.to_le_bytes());
                bytes[8..12].copy_from_slice(&length(e).to_le_bytes());
                bytes[12] = f;
                bytes[14] = g;
                driver.memory.write(to, &bytes);
            }
            4 => driver.make_available(u16::from_le_bytes([a, b & c & d])),
            5 => driver.set_available_index(u16::from_le_bytes([a, b])),
            6 => {
                driver.dequeue(usize::from(a % 70));
            }
            _ => {
                let frames = [a, b, c].map(|len| Frame::new(usize::from(len) * 5, d));
                driver.enqueue(&frames);
            }
        }
    }
    assert_eq!(driver.pool.live(), 0);
    assert!(driver.memory.canaries_are_whole());
});
