//! A guest that writes what it likes into a split ring, between bursts in both directions.
//!
//! Each command of the input is 8 bytes: what to do, and numbers for it. `cargo +nightly fuzz run
//! split_ring`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rte_net_vhost::testing::{APART, BUFFERS, FakeDriver, Frame, NEXT, RINGS};
use rte_net_vhost::virtio_net::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};

/// An address of one of the kinds that matter, so that a few bytes can name it.
fn address(kind: u8, skip: u16) -> u64 {
    let skip = u64::from(skip);
    match kind & 7 {
        0..=2 => BUFFERS.start + skip,
        3 => BUFFERS.end.wrapping_sub(skip & 0xff),
        4 => NEXT.end - (skip & 0xff),
        5 => APART.end - (skip & 0xff),
        6 => RINGS.start + skip,
        _ => skip << 48,
    }
}

/// A length, short ones more often.
fn length(code: u8) -> u32 {
    match code {
        0..=199 => code.into(),
        200..=247 => u32::from(code - 199) * 97,
        _ => u32::MAX >> (code & 7) * 3,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[shift, features], commands)) = data.split_first_chunk() else {
        return;
    };
    let mut driver = FakeDriver::split(1 << (shift % 8)).packet_room(256);
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_F_EVENT_IDX,
    ];
    for (nth, bit) in bits.into_iter().enumerate() {
        if features & 1 << nth != 0 {
            driver = driver.feature(bit);
        }
    }
    driver.pool.limit(64);
    for &[what, a, b, c, d, e, f, g] in commands.as_chunks::<8>().0 {
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
