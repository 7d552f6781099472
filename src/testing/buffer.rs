//! Frames, and the buffers in which a driver holds them.
#![forbid(unsafe_code)]

use std::fmt;

use crate::virtqueue::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// First descriptor of the chain; the buffer id in a packed ring.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A frame on the wire: no virtio-net header.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// A frame to a unicast address; other `seed`s give other bytes.
    pub fn new(len: usize, seed: u8) -> Self {
        let bytes = (0..len).map(|nth| {
            let byte = (nth as u8).wrapping_mul(31) ^ (nth >> 8) as u8;
            byte.wrapping_add(seed.wrapping_mul(2))
        });
        Self(bytes.collect())
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.0[..self.0.len().min(8)];
        write!(f, "Frame({} bytes: {start:02x?}..)", self.0.len())
    }
}

/// A buffer that a descriptor names.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    pub(super) at: Option<u64>,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
    pub(super) bytes: Vec<u8>,
    /// Of an indirect table: the buffers that it names.
    pub(super) parts: Vec<(u64, u32)>,
}

impl Buffer {
    /// `len` bytes for the device to read.
    pub fn readable(len: u32) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }

    /// `len` bytes for the device to write.
    pub fn writable(len: u32) -> Self {
        Self::readable(len).flags(VRING_DESC_F_WRITE)
    }

    /// Bytes for the device to read.
    pub fn holding(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self {
            len: u32::try_from(bytes.len()).unwrap(),
            bytes,
            ..Self::default()
        }
    }

    /// At this guest-physical address; otherwise where there is room.
    #[must_use]
    pub fn at(self, at: u64) -> Self {
        Self {
            at: Some(at),
            ..self
        }
    }

    /// With `flags` added.
    #[must_use]
    pub fn flags(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// The chain goes on at descriptor `next`.
    #[must_use]
    pub fn next(self, next: u16) -> Self {
        Self {
            next,
            ..self.flags(VRING_DESC_F_NEXT)
        }
    }
}
