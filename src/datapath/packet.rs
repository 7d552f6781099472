//! What the burst bodies ask of packets, so that they run without DPDK too.
#![forbid(unsafe_code)]

use std::mem::MaybeUninit;

/// What came of [`Packet::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The packet can be sent as it is now.
    Ready,
    /// What it asks for cannot be done; it is dropped and counted.
    Refused,
}

/// A handle of a packet: one or more segments, owned by whoever holds the handle's place in the
/// burst's array.
pub trait Packet: Copy {
    /// Bytes of the whole packet.
    fn len(&self) -> u32;

    /// Whether the packet has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, when they are one segment and nothing is asked of the driver.
    fn plain(&self) -> Option<&[u8]>;

    /// Does what the packet asks for before its bytes are read. Doing it twice is doing it once:
    /// a packet that finds no room comes again.
    fn prepare(&mut self) -> Prepared;

    /// The bytes of each segment, in order.
    fn segments(&self) -> impl Iterator<Item = &[u8]>;
}

/// Where packets go back to.
pub trait Release {
    /// The packets.
    type Packet: Packet;

    /// Gives back `packets` with all their segments.
    fn release(&mut self, packets: &[Self::Packet]);
}

/// Where fresh packets come from.
pub trait PacketPool: Release {
    /// Bytes of data that a fresh packet has room for.
    fn room(&self) -> usize;

    /// Whether a frame may be longer than [`room`](Self::room), and take several packets' buffers.
    fn chains(&self) -> bool {
        true
    }

    /// Fills `out` with fresh packets, all or none.
    fn allocate(&mut self, out: &mut [Self::Packet]) -> bool;

    /// The room for data in a fresh packet; its contents mean nothing.
    fn space<'p>(&self, packet: &'p mut Self::Packet) -> &'p mut [MaybeUninit<u8>];

    /// Makes a fresh packet one of `len` bytes, which are written by now.
    fn finish(&self, packet: &mut Self::Packet, len: u32);

    /// The longest frame that can be one segment: more than [`room`](Self::room) when there are large
    /// buffers.
    fn longest_segment(&self) -> usize {
        self.room()
    }

    /// Gives a fresh packet a large buffer, with room for a frame of `len` bytes, which are then
    /// written there. `None` when there are none, or not so large, or all are in use.
    fn large<'p>(
        &mut self,
        packet: &'p mut Self::Packet,
        len: usize,
    ) -> Option<&'p mut [MaybeUninit<u8>]> {
        let _ = (packet, len);
        None
    }

    /// As [`finish`](Self::finish) for a packet with a large buffer.
    fn finish_large(&self, packet: &mut Self::Packet, len: u32) {
        self.finish(packet, len);
    }

    /// Appends the fresh packet `segment` with `len` bytes written to the finished packet `head`,
    /// whose last segment is `last`.
    fn append(
        &self,
        head: &mut Self::Packet,
        last: &mut Self::Packet,
        segment: Self::Packet,
        len: u32,
    );
}
