//! What the burst bodies ask of packets, so that they run without DPDK too.
#![forbid(unsafe_code)]

use std::mem::MaybeUninit;

use crate::virtio_net::{Asked, Datagram, Headers, Little};

/// How a pool's owner wants to hear of what drivers leave to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RxRules {
    /// As marks; nothing is done to the frame.
    #[default]
    Mark,
    /// As marks, but the checksum of the transport is made here.
    Complete,
    /// As requests for whoever sends the frame on (`legacy-ol-flags=1`).
    Request,
}

/// What a received frame is marked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What the frame begins with.
    pub headers: Headers,
    /// The checksum of the transport.
    pub checksum: Checksum,
    /// Payload bytes of the packets that the frame stands for; 0: it is one packet.
    pub segment_size: u16,
    /// Of UDP: what those packets are.
    pub datagram: Datagram,
}

/// What is known of the checksum of a received frame's transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing.
    Unknown,
    /// It is missing; the data is good.
    Missing,
    /// It is right.
    Good,
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

    /// The bytes, when they are one segment.
    fn whole(&self) -> Option<&[u8]>;

    /// What is asked of whoever sends the packet; `None`: nothing.
    fn asked(&self) -> Option<Asked>;

    /// The same, when it is no more than that, or nothing.
    fn little(&self) -> Option<Little> {
        match self.asked() {
            None => Some(Little::default()),
            Some(asked) => asked.little(),
        }
    }

    /// Whether nothing is asked and the packet is marked: the transport's checksum is missing.
    fn is_only_marked(&self) -> bool {
        self.little()
            .is_some_and(|little| little.marked && little.tag.is_none())
    }

    /// The bytes of each segment, in order.
    fn segments(&self) -> impl Iterator<Item = &[u8]>;
}

/// Where packets go back to.
pub trait Release {
    /// The packets.
    type Packet: Packet;

    /// Gives back `packets` with all their segments.
    fn release(&self, packets: &[Self::Packet]);
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
    fn allocate(&self, out: &mut [Self::Packet]) -> bool;

    /// One fresh packet, if there is one.
    fn one(&self) -> Option<Self::Packet>;

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
        &self,
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

    /// Makes fresh packets one of `len` bytes, which are written by now: each of `segments` is full,
    /// but for the last one.
    fn finish_all(&self, segments: &mut [Self::Packet], len: u32);

    /// How marks are wanted.
    fn rules(&self) -> RxRules;

    /// Writes `value` at offset `at` of a finished packet; false when the packet ends before.
    fn store(&self, packet: &mut Self::Packet, at: usize, value: [u8; 2]) -> bool;

    /// Marks a finished packet.
    fn mark(&self, packet: &mut Self::Packet, marks: Marks);

    /// Makes a finished packet ask for something when it is sent on.
    fn ask(&self, packet: &mut Self::Packet, asked: Asked);
}
