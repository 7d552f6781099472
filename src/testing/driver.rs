//! A virtio driver with a ring of either layout, and the device side that polls it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use super::iommu::FakeIommu;
use super::packed::PackedSide;
use super::split::SplitSide;
use super::{BUFFERS, Buffer, FakeLog, FakeMemory, FakePacket, FakePool, Frame, LogRing, Used};
use crate::datapath::{QueueCounters, Release, select_dequeue, select_enqueue};
use crate::memory::{Access, Gpa, Miss};
use crate::virtio_net::{
    VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
};
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
    side: Side,
    features: u64,
    /// Where the ring is taken up.
    base: u16,
    next_buffer: u64,
    calls: Option<File>,
    /// While the guest is migrated.
    log: Option<(FakeLog, LogRing)>,
    virtqueue: Option<Virtqueue>,
    iommu: Option<FakeIommu>,
    bursts: u64,
}

/// The driver's side of a ring.
#[derive(Debug)]
enum Side {
    Split(SplitSide),
    Packed(PackedSide),
}

/// Runs the same words on the side of either layout.
macro_rules! either {
    ($driver:expr, $side:ident => $work:expr) => {
        match &$driver.side {
            Side::Split($side) => $work,
            Side::Packed($side) => $work,
        }
    };
    (mut $driver:expr, $side:ident => $work:expr) => {
        match &mut $driver.side {
            Side::Split($side) => $work,
            Side::Packed($side) => $work,
        }
    };
}

/// A chain that was offered.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Its descriptors in the ring.
    pub(super) descriptors: Vec<u16>,
    /// Its buffers: address and length.
    pub(super) parts: Vec<(u64, u32)>,
}

/// What the words of a descriptor say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) at: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// `next` in a split ring, the buffer id in a packed one.
    pub(super) link: u16,
}

impl FakeDriver {
    /// A driver with a split ring of `size` descriptors and no features.
    pub fn split(size: u16) -> Self {
        Self::new(Side::Split(SplitSide::new(size)), 0, 0)
    }

    /// A driver with a packed ring of `size` descriptors.
    pub fn packed(size: u16) -> Self {
        let features = 1 << VIRTIO_F_RING_PACKED;
        let side = PackedSide::new(size);
        let base = side.position();
        Self::new(Side::Packed(side), features, base)
    }

    fn new(side: Side, features: u64, base: u16) -> Self {
        Self {
            memory: FakeMemory::new(),
            pool: FakePool::new(2048),
            counters: QueueCounters::default(),
            side,
            features,
            base,
            next_buffer: BUFFERS.start,
            calls: None,
            log: None,
            virtqueue: None,
            iommu: None,
            bursts: 0,
        }
    }

    /// Acks feature `bit`.
    #[must_use]
    pub fn feature(mut self, bit: u32) -> Self {
        self.features |= 1 << bit;
        if bit == VIRTIO_F_IN_ORDER {
            either!(mut self, side => side.in_order());
        }
        self
    }

    /// Has an eventfd for calls; otherwise the driver polls.
    #[must_use]
    pub fn with_calls(mut self) -> Self {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        self.calls = Some(eventfd(0, flags).unwrap().into());
        self
    }

    /// Is behind an IOMMU that knows nothing at first, and forgets again. Bursts are made until they
    /// ask for nothing more.
    #[must_use]
    pub fn behind_iommu(mut self) -> Self {
        self.iommu = Some(FakeIommu::new());
        self
    }

    /// What was asked of the IOMMU.
    pub fn asked(&self) -> &[Miss] {
        self.iommu.as_ref().map_or(&[], |iommu| &iommu.asked)
    }

    /// Has used the ring before, up to `index`. For a packed ring that is a position, with the wrap
    /// counter in bit 15; an index outside the ring is brought inside.
    #[must_use]
    pub fn starting_at(mut self, index: u16) -> Self {
        self.base = either!(mut self, side => side.start_at(&self.memory, index));
        self
    }

    /// Has packets of `room` bytes on the host.
    #[must_use]
    pub fn packet_room(mut self, room: usize) -> Self {
        self.pool = FakePool::new(room);
        self
    }

    /// What the device writes from now on is noted in `log`, and where that says for the used ring.
    pub fn set_log(&mut self, log: Option<(&FakeLog, LogRing)>) {
        self.stop();
        self.log = log.map(|(log, ring)| (log.clone(), ring));
    }

    /// Whether the ring is a packed one.
    pub fn is_packed(&self) -> bool {
        matches!(self.side, Side::Packed(_))
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        either!(self, side => side.size)
    }

    /// Guest-physical address of the descriptors.
    pub fn table(&self) -> u64 {
        self.areas()[0]
    }

    /// Guest-physical address of the available ring, or of the driver's event suppression.
    pub fn available(&self) -> u64 {
        self.areas()[1]
    }

    /// Guest-physical address of what the device writes to give a chain back.
    pub fn used_ring(&self) -> u64 {
        let [descriptors, _, used] = self.areas();
        if self.is_packed() { descriptors } else { used }
    }

    /// Guest-physical addresses of the three areas of the ring.
    fn areas(&self) -> [u64; 3] {
        either!(self, side => side.areas)
    }

    /// Length of the virtio-net header.
    pub fn header_len(&self) -> usize {
        let long =
            1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_F_RING_PACKED;
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

    /// What a descriptor for `buffer` says.
    fn words(&mut self, buffer: &Buffer) -> Words {
        Words {
            at: self.place(buffer),
            len: buffer.len,
            flags: buffer.flags,
            link: buffer.next,
        }
    }

    /// Writes descriptor `index`; where its buffer lies. In a packed ring its buffer id is `index`.
    pub fn describe(&mut self, index: u16, buffer: Buffer) -> u64 {
        let words = self.words(&buffer);
        either!(mut self, side => side.describe(&self.memory, index, words));
        words.at
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
            let words = self.words(&buffer);
            let to = at + 16 * u64::from(nth);
            either!(self, side => side.write(&self.memory, to, words));
            parts.push((words.at, buffer.len));
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

    /// Makes the chain that begins at descriptor `head` available. In a packed ring only the chain
    /// at the driver's place can be.
    pub fn make_available(&mut self, head: u16) {
        either!(mut self, side => side.make_available(&self.memory, head));
    }

    /// Writes the available index of a split ring.
    pub fn set_available_index(&mut self, index: u16) {
        match &mut self.side {
            Side::Split(side) => side.set_available_index(&self.memory, index),
            Side::Packed(_) => panic!("a packed ring has no available index"),
        }
    }

    /// Number of descriptors that no chain takes.
    pub fn free_descriptors(&self) -> usize {
        either!(self, side => side.free())
    }

    /// Makes a chain of `buffers` in free descriptors available; its head, or its buffer id.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let mut parts = Vec::new();
        let mut chain = Vec::new();
        for buffer in buffers {
            let words = self.words(buffer);
            if buffer.flags & VRING_DESC_F_INDIRECT != 0 {
                parts.extend(&buffer.parts);
            } else {
                parts.push((words.at, words.len));
            }
            chain.push(words);
        }
        either!(mut self, side => side.offer(&self.memory, &chain, parts))
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

    /// The chains that the device gave back since the last call. Their descriptors are free.
    pub fn used(&mut self) -> Vec<Used> {
        either!(mut self, side => side.used(&self.memory))
    }

    /// How many entries told the driver of the chains that [`used`](Self::used) gave so far: fewer
    /// when they are used in order.
    pub fn used_entries(&self) -> usize {
        either!(self, side => side.entries)
    }

    /// The first `used.len` bytes of the chain that was offered at `used.head`.
    pub fn written(&self, used: Used) -> Vec<u8> {
        let head = u16::try_from(used.head).unwrap();
        let chain = either!(self, side => &side.chains[&head]);
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

    /// Asks for a call when `index` has been used (`used_event`); in a packed ring that is a
    /// position.
    pub fn call_after(&mut self, index: u16) {
        either!(self, side => side.call_after(&self.memory, index));
    }

    /// Writes the flags of the available ring, or of the driver's event suppression.
    pub fn set_flags(&mut self, flags: u16) {
        either!(self, side => side.set_flags(&self.memory, flags));
    }

    /// The flags of the used ring, or of the device's event suppression.
    pub fn used_flags(&self) -> u16 {
        either!(self, side => side.used_flags(&self.memory))
    }

    /// The index after which the device wants a kick (`avail_event`); in a packed ring a position.
    pub fn kick_after(&self) -> u16 {
        either!(self, side => side.kick_after(&self.memory))
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
        let [descriptors, available, used] = self.areas().map(|at| self.memory.uva(at));
        RingConfig {
            size: self.size(),
            areas: RingAreas {
                descriptors,
                available,
                used,
            },
            base: self.base,
            packed: self.is_packed(),
            event_idx: self.features & 1 << VIRTIO_F_EVENT_IDX != 0,
        }
    }

    /// The running virtqueue.
    pub fn virtqueue(&mut self) -> &mut Virtqueue {
        let config = self.config();
        let own = self.used_ring();
        self.virtqueue.get_or_insert_with(|| {
            let call = self.calls.as_ref();
            let call = call.map(|call| Arc::new(call.try_clone().unwrap()));
            let virtqueue = Virtqueue::map(config, &self.memory.table(), self.features, call);
            let virtqueue = virtqueue.unwrap();
            let Some((log, ring)) = &self.log else {
                return virtqueue;
            };
            let used = match *ring {
                LogRing::Nowhere => None,
                LogRing::AsItLies => Some(Gpa(own)),
                LogRing::At(at) => Some(Gpa(at)),
            };
            virtqueue.logged(log.map(), used)
        })
    }

    /// A virtqueue of its own for the caller, who gives it back to [`stop_at`](Self::stop_at).
    pub fn start(&mut self) -> Virtqueue {
        self.virtqueue();
        self.virtqueue.take().unwrap()
    }

    /// Ends a virtqueue that the caller had; the next one starts where it ended.
    pub fn stop_at(&mut self, virtqueue: Virtqueue) -> u16 {
        self.virtqueue = Some(virtqueue);
        self.stop()
    }

    /// Ends the virtqueue; the next burst starts another where it ended.
    pub fn stop(&mut self) -> u16 {
        if let Some(virtqueue) = self.virtqueue.take() {
            self.base = virtqueue.stop();
        }
        self.base
    }

    /// What the next burst may use of the CPU: everything, or what every CPU has, in turn.
    fn simd_bits(&mut self) -> u16 {
        self.bursts += 1;
        if self.bursts.is_multiple_of(2) {
            128
        } else {
            u16::MAX
        }
    }

    /// One burst of at most `count` packets, which the caller releases.
    pub fn dequeue_packets(&mut self, count: usize) -> Vec<FakePacket> {
        let mut packets = vec![FakePacket::default(); count];
        let mut received = 0;
        loop {
            self.before_a_burst(Access::READ);
            let simd_bits = self.simd_bits();
            let virtqueue = self.virtqueue.as_mut().unwrap();
            let burst = select_dequeue::<FakePool>(virtqueue, simd_bits);
            let rest = &mut packets[received..];
            received += burst(virtqueue, &self.pool, rest, &self.counters);
            if !self.answered() {
                break;
            }
        }
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
        let mut taken = 0;
        loop {
            self.before_a_burst(Access::WRITE);
            let simd_bits = self.simd_bits();
            let virtqueue = self.virtqueue.as_mut().unwrap();
            let burst = select_enqueue::<FakePool>(virtqueue, simd_bits);
            let rest = &packets[taken..];
            taken += burst(virtqueue, &self.pool, rest, &self.counters);
            if !self.answered() {
                return taken;
            }
        }
    }

    fn before_a_burst(&mut self, need: Access) {
        self.virtqueue();
        if let Some(iommu) = &mut self.iommu {
            iommu.before_a_burst(self.virtqueue.as_mut().unwrap(), need);
        }
    }

    /// Whether the burst asked for something, which is known now.
    fn answered(&mut self) -> bool {
        let iommu = self.iommu.as_mut();
        iommu.is_some_and(|iommu| iommu.answer(self.virtqueue.as_ref().unwrap()))
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
