//! A virtio driver with a split ring, and the device side that polls it.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use super::{BUFFERS, Buffer, FakeMemory, FakePacket, FakePool, Frame, RINGS, Used};
use crate::datapath::{QueueCounters, Release, select_dequeue, select_enqueue};
use crate::virtio_net::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF};
use crate::virtqueue::{
    RingAreas, RingConfig, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, Virtqueue,
};

/// A driver with its ring in fake guest memory, and a virtqueue that is polled by the test.
///
/// Descriptors are written by `describe` (any descriptor, any content) or by `offer` (a chain in
/// free descriptors). The device side starts with the first burst.
#[derive(Debug)]
pub struct FakeDriver {
    /// The guest's memory.
    pub memory: FakeMemory,
    /// Where packets come from and go to.
    pub pool: FakePool,
    /// What the device side counted.
    pub counters: QueueCounters,
    size: u16,
    features: u64,
    /// Index at which the ring is taken up.
    base: u16,
    /// Guest-physical addresses of table, available ring and used ring.
    areas: [u64; 3],
    available_index: u16,
    used_seen: u16,
    free: VecDeque<u16>,
    chains: HashMap<u16, Chain>,
    next_buffer: u64,
    calls: Option<File>,
    virtqueue: Option<Virtqueue>,
}

/// A chain that was offered.
#[derive(Debug)]
struct Chain {
    descriptors: Vec<u16>,
    parts: Vec<(u64, u32)>,
}

impl FakeDriver {
    /// A driver with a split ring of `size` descriptors and no features.
    pub fn split(size: u16) -> Self {
        let n = u64::from(size);
        let table = RINGS.start;
        let available = table + 16 * n;
        // 6 bytes of flags, index and event; and aligned to 4 bytes, as is the least allowed.
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        Self {
            memory: FakeMemory::new(),
            pool: FakePool::new(2048),
            counters: QueueCounters::default(),
            size,
            features: 0,
            base: 0,
            areas: [table, available, used],
            available_index: 0,
            used_seen: 0,
            free: (0..size).collect(),
            chains: HashMap::new(),
            next_buffer: BUFFERS.start,
            calls: None,
            virtqueue: None,
        }
    }

    /// Acks feature `bit`.
    #[must_use]
    pub fn feature(mut self, bit: u32) -> Self {
        self.features |= 1 << bit;
        self
    }

    /// Has an eventfd for calls; otherwise the driver polls.
    #[must_use]
    pub fn with_calls(mut self) -> Self {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        self.calls = Some(eventfd(0, flags).unwrap().into());
        self
    }

    /// Has used the ring before, up to `index`.
    #[must_use]
    pub fn starting_at(mut self, index: u16) -> Self {
        self.base = index;
        self.available_index = index;
        self.used_seen = index;
        self.memory.write(self.areas[1] + 2, &index.to_le_bytes());
        self.memory.write(self.areas[2] + 2, &index.to_le_bytes());
        self
    }

    /// Has packets of `room` bytes on the host.
    #[must_use]
    pub fn packet_room(mut self, room: usize) -> Self {
        self.pool = FakePool::new(room);
        self
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical address of the descriptor table.
    pub fn table(&self) -> u64 {
        self.areas[0]
    }

    /// Guest-physical address of the available ring.
    pub fn available(&self) -> u64 {
        self.areas[1]
    }

    /// Length of the virtio-net header.
    pub fn header_len(&self) -> usize {
        let long = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.features & long != 0 { 12 } else { 10 }
    }

    /// Room for `len` bytes in guest memory that no buffer takes.
    pub fn reserve(&mut self, len: u32) -> u64 {
        // A gap that nobody may touch, and no alignment to rely on.
        let mut at = self.next_buffer + 61;
        if at + u64::from(len) > BUFFERS.end {
            at = BUFFERS.start;
        }
        self.next_buffer = at + u64::from(len);
        assert!(self.next_buffer <= BUFFERS.end);
        at
    }

    /// Gives `buffer` its address and fills it.
    fn place(&mut self, buffer: &Buffer) -> u64 {
        let at = buffer.at.unwrap_or_else(|| self.reserve(buffer.len));
        if !buffer.bytes.is_empty() {
            self.memory.write(at, &buffer.bytes);
        }
        at
    }

    /// Writes a descriptor for `buffer` at address `to`; where the buffer lies.
    fn write_descriptor(&mut self, to: u64, buffer: &Buffer) -> u64 {
        let at = self.place(buffer);
        let rest =
            u64::from(buffer.len) | u64::from(buffer.flags) << 32 | u64::from(buffer.next) << 48;
        self.memory.write(to, &at.to_le_bytes());
        self.memory.write(to + 8, &rest.to_le_bytes());
        at
    }

    /// Writes descriptor `index`; where its buffer lies.
    pub fn describe(&mut self, index: u16, buffer: Buffer) -> u64 {
        self.free.retain(|&free| free != index);
        self.write_descriptor(self.areas[0] + 16 * u64::from(index), &buffer)
    }

    /// A table of descriptors that names `buffers`, as a buffer for the ring. Entries are linked in
    /// order, but for those that say themselves where they go on.
    pub fn indirect(&mut self, buffers: &[Buffer]) -> Buffer {
        let len = u32::try_from(16 * buffers.len()).unwrap();
        let at = self.reserve(len);
        self.indirect_at(at, buffers)
    }

    /// As [`indirect`](Self::indirect), with the table at `at`.
    pub fn indirect_at(&mut self, at: u64, buffers: &[Buffer]) -> Buffer {
        let mut parts = Vec::new();
        for (nth, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(nth) + 1 == buffers.len();
            let linked = buffer.flags & VRING_DESC_F_NEXT != 0;
            let buffer = match last || linked {
                true => buffer.clone(),
                false => buffer.clone().next(nth + 1),
            };
            let placed = self.write_descriptor(at + 16 * u64::from(nth), &buffer);
            parts.push((placed, buffer.len));
        }
        let table = Buffer::readable(u32::try_from(16 * buffers.len()).unwrap());
        Buffer {
            parts,
            ..table.at(at).flags(VRING_DESC_F_INDIRECT)
        }
    }

    /// Where entry `index` of an indirect table lies.
    pub fn table_entry(&self, table: &Buffer, index: u16) -> u64 {
        table.at.unwrap() + 16 * u64::from(index)
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.available_index & (self.size - 1);
        let at = self.areas[1] + 4 + 2 * u64::from(slot);
        self.memory.write(at, &head.to_le_bytes());
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        self.memory.write(self.areas[1] + 2, &index.to_le_bytes());
    }

    /// Number of descriptors that no chain takes.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of `buffers` in free descriptors available; its head.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let descriptors: Vec<u16> = self.free.drain(..buffers.len()).collect();
        let mut parts = Vec::new();
        for (nth, buffer) in buffers.iter().enumerate() {
            let buffer = match descriptors.get(nth + 1) {
                Some(&next) => buffer.clone().next(next),
                None => buffer.clone(),
            };
            let to = self.areas[0] + 16 * u64::from(descriptors[nth]);
            let at = self.write_descriptor(to, &buffer);
            if buffer.flags & VRING_DESC_F_INDIRECT != 0 {
                parts.extend(buffer.parts);
            } else {
                parts.push((at, buffer.len));
            }
        }
        let head = descriptors[0];
        self.chains.insert(head, Chain { descriptors, parts });
        self.make_available(head);
        head
    }

    /// `frame` behind a header full of nonsense, as no offload was negotiated.
    pub fn with_header(&self, frame: &Frame) -> Vec<u8> {
        let mut bytes = vec![0xee; self.header_len()];
        bytes.extend(&frame.0);
        bytes
    }

    /// Makes `frame` available in one buffer; its head.
    pub fn send(&mut self, frame: &Frame) -> u16 {
        let bytes = self.with_header(frame);
        self.offer(&[Buffer::holding(bytes)])
    }

    /// The used elements that the device published since the last call. Their descriptors are free.
    pub fn used(&mut self) -> Vec<Used> {
        let index = self.memory.read(self.areas[2] + 2, 2);
        let index = u16::from_le_bytes(index.try_into().unwrap());
        let mut used = Vec::new();
        while self.used_seen != index {
            let slot = u64::from(self.used_seen & (self.size - 1));
            let element = self.memory.read(self.areas[2] + 4 + 8 * slot, 8);
            let element = u64::from_le_bytes(element.try_into().unwrap());
            let head = (element & 0xffff_ffff) as u32;
            let len = (element >> 32) as u32;
            used.push(Used { head, len });
            if let Some(chain) = self.chains.get_mut(&(head as u16)) {
                self.free.extend(chain.descriptors.drain(..));
            }
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }

    /// The first `used.len` bytes of the chain that was offered at `used.head`.
    pub fn written(&self, used: Used) -> Vec<u8> {
        let chain = &self.chains[&u16::try_from(used.head).unwrap()];
        let mut left = used.len as usize;
        let mut bytes = Vec::new();
        for &(at, len) in &chain.parts {
            let len = left.min(len as usize);
            bytes.extend(self.memory.read(at, len));
            left -= len;
        }
        assert_eq!(left, 0, "{used:?} is longer than its buffers");
        bytes
    }

    /// The frames in the chains that came back, put together as a driver does; chains that came
    /// back unused are left out.
    pub fn frames(&mut self) -> Vec<Frame> {
        self.frames_and_used(&mut Vec::new())
    }

    /// As [`frames`](Self::frames); all elements that came back are appended to `seen`.
    pub fn frames_and_used(&mut self, seen: &mut Vec<Used>) -> Vec<Frame> {
        let used = self.used();
        seen.extend(&used);
        let mut used = used.into_iter().filter(|used| used.len != 0);
        let mut frames = Vec::new();
        while let Some(first) = used.next() {
            let mut bytes = self.written(first);
            let header: Vec<u8> = bytes.drain(..self.header_len()).collect();
            assert_eq!(header[..10], [0; 10], "nothing was asked of the driver");
            let more = match header.get(10..12) {
                Some(count) => u16::from_le_bytes(count.try_into().unwrap()) - 1,
                None => 0,
            };
            for _ in 0..more {
                bytes.extend(self.written(used.next().unwrap()));
            }
            frames.push(Frame(bytes));
        }
        frames
    }

    /// Asks for a call when `index` has been used (`used_event`).
    pub fn call_after(&mut self, index: u16) {
        let at = self.areas[1] + 4 + 2 * u64::from(self.size);
        self.memory.write(at, &index.to_le_bytes());
    }

    /// Writes the flags of the available ring.
    pub fn set_flags(&mut self, flags: u16) {
        self.memory.write(self.areas[1], &flags.to_le_bytes());
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        let flags = self.memory.read(self.areas[2], 2);
        u16::from_le_bytes(flags.try_into().unwrap())
    }

    /// The index after which the device wants a kick (`avail_event`).
    pub fn kick_after(&self) -> u16 {
        let at = self.areas[2] + 4 + 8 * u64::from(self.size);
        u16::from_le_bytes(self.memory.read(at, 2).try_into().unwrap())
    }

    /// Calls since this was last asked.
    pub fn calls(&mut self) -> u64 {
        let mut count = [0; 8];
        match self.calls.as_ref().unwrap().read(&mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            // Nothing was written.
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("eventfd: {error}"),
        }
    }

    /// What the vring looks like in vhost-user messages.
    pub fn config(&self) -> RingConfig {
        let [descriptors, available, used] = self.areas.map(|at| self.memory.uva(at));
        RingConfig {
            size: self.size,
            areas: RingAreas {
                descriptors,
                available,
                used,
            },
            base: self.base,
            packed: false,
            event_idx: self.features & 1 << VIRTIO_F_EVENT_IDX != 0,
        }
    }

    /// The running virtqueue.
    pub fn virtqueue(&mut self) -> &mut Virtqueue {
        let config = self.config();
        self.virtqueue.get_or_insert_with(|| {
            let call = self.calls.as_ref().map(|call| call.try_clone().unwrap());
            Virtqueue::map(config, &self.memory.table(), self.features, call).unwrap()
        })
    }

    /// Ends the virtqueue; the next burst starts another where it ended.
    pub fn stop(&mut self) -> u16 {
        if let Some(virtqueue) = self.virtqueue.take() {
            self.base = virtqueue.stop();
        }
        self.base
    }

    /// One burst of at most `count` packets, which the caller releases.
    pub fn dequeue_packets(&mut self, count: usize) -> Vec<FakePacket> {
        let mut packets = vec![FakePacket::default(); count];
        let burst = select_dequeue::<FakePool>(self.virtqueue());
        let virtqueue = self.virtqueue.as_mut().unwrap();
        let received = burst(virtqueue, &mut self.pool, &mut packets, &self.counters);
        packets.truncate(received);
        packets
    }

    /// One burst of at most `count` packets.
    pub fn dequeue(&mut self, count: usize) -> Vec<Frame> {
        let packets = self.dequeue_packets(count);
        let frames = packets
            .iter()
            .map(|packet| Frame(packet.to_vec()))
            .collect();
        self.pool.release(&packets);
        frames
    }

    /// One burst of `packets`; how many were taken. The others are still the caller's.
    pub fn enqueue_packets(&mut self, packets: &[FakePacket]) -> usize {
        let burst = select_enqueue::<FakePool>(self.virtqueue());
        let virtqueue = self.virtqueue.as_mut().unwrap();
        burst(virtqueue, &mut self.pool, packets, &self.counters)
    }

    /// One burst of `frames`, each a packet of one segment, or more when it is too long; how many
    /// were taken.
    pub fn enqueue(&mut self, frames: &[Frame]) -> usize {
        let packets: Vec<FakePacket> = frames.iter().map(|frame| self.packet(frame)).collect();
        let taken = self.enqueue_packets(&packets);
        self.pool.release(&packets[taken..]);
        taken
    }

    /// A packet that holds `frame`.
    pub fn packet(&mut self, frame: &Frame) -> FakePacket {
        use crate::datapath::PacketPool;
        let parts: Vec<&[u8]> = frame.0.chunks(self.pool.room()).collect();
        self.pool
            .packet(if parts.is_empty() { &[&[]] } else { &parts })
    }

    /// The value of one of the counters.
    pub fn counted(&self, which: impl Fn(&QueueCounters) -> &AtomicU64) -> u64 {
        which(&self.counters).load(Ordering::Relaxed)
    }
}
