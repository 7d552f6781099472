//! What both ring targets read out of their input.

use rte_net_vhost::testing::{APART, BUFFERS, FakeDriver, NEXT, RINGS};
use rte_net_vhost::virtio_net::{
    VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF,
};

/// An address of one of the kinds that matter, so that a few bytes can name it.
pub(crate) fn address(kind: u8, skip: u16) -> u64 {
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
pub(crate) fn length(code: u8) -> u32 {
    match code {
        0..=199 => code.into(),
        200..=247 => u32::from(code - 199) * 97,
        _ => u32::MAX >> ((code & 7) * 3),
    }
}

/// `driver` with a feature for each bit, and calls for the highest.
pub(crate) fn features(mut driver: FakeDriver, acked: u8) -> FakeDriver {
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_F_IN_ORDER,
    ];
    for (nth, bit) in bits.into_iter().enumerate() {
        if acked & 1 << nth != 0 {
            driver = driver.feature(bit);
        }
    }
    match acked & 0x80 {
        0 => driver,
        _ => driver.with_calls(),
    }
}

/// The commands of an input, 8 bytes each. A long input is no better than two short ones.
pub(crate) fn commands(bytes: &[u8]) -> impl Iterator<Item = &[u8; 8]> {
    bytes.as_chunks::<8>().0.iter().take(512)
}
