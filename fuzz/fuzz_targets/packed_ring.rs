//! A guest that writes what it likes into a packed ring, between bursts in both directions.
//!
//! Each command of the input is 8 bytes: what to do, and numbers for it. `cargo xtask fuzz
//! packed_ring`.
#![no_main]

#[path = "common.rs"]
mod common;

use common::{address, commands, features, length};
use libfuzzer_sys::fuzz_target;
use rte_net_vhost::testing::{BUFFERS, FakeDriver, Frame};
use rte_net_vhost::virtqueue::{VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED};

fuzz_target!(|data: &[u8]| {
    let Some((&[size, acked], rest)) = data.split_first_chunk() else {
        return;
    };
    let driver = FakeDriver::packed(u16::from(size) + 1).packet_room(256);
    let mut driver = features(driver, acked);
    driver.pool.limit(64);
    for &[what, a, b, c, d, e, f, g] in commands(rest) {
        match what % 8 {
            // A descriptor, in the ring or in the bytes that tables are made of.
            0..=2 => {
                let to = match what & 1 {
                    0 => driver.table() + 16 * u64::from(a) % (16 * u64::from(driver.size())),
                    _ => BUFFERS.start + 16 * u64::from(a),
                };
                let mut bytes = [0; 16];
                let addr = address(b, u16::from_le_bytes([c, d]));
                bytes[..8].copy_from_slice(&addr.to_le_bytes());
                bytes[8..12].copy_from_slice(&length(e).to_le_bytes());
                bytes[12] = g;
                bytes[14] = f;
                bytes[15] = g & 0x80;
                driver.memory.write(to, &bytes);
            }
            // Marks for the descriptors that the device takes next.
            3 | 4 => {
                let position = driver.virtqueue().position();
                for nth in 0..=u16::from(a % 8) {
                    let index = (position & 0x7fff) + nth % driver.size();
                    let turn = (position & 0x8000 != 0) ^ (index >= driver.size());
                    let mark = match turn {
                        true => VRING_PACKED_DESC_F_AVAIL,
                        false => VRING_PACKED_DESC_F_USED,
                    };
                    let at = driver.table() + 16 * u64::from(index % driver.size()) + 14;
                    let more = u16::from(b >> (nth % 8) & 1) | u16::from(c & 6);
                    driver.memory.write(at, &(mark | more).to_le_bytes());
                }
            }
            // The driver's event suppression.
            5 => driver
                .memory
                .write(driver.available(), &[a, b, c % 5, d & 1]),
            6 => {
                driver.dequeue(usize::from(a % 70));
            }
            _ if a == 0xff => {
                driver.stop();
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
