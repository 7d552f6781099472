//! Packets on the heap, from a pool that counts them and watches over their use.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::datapath::{Marks, Packet, PacketPool, Release, RxRules};
use crate::virtio_net::Asked;

/// Bytes after a segment's room that nobody may touch.
const RED_ZONE: usize = 64;
const RED: u8 = 0x5a;

/// Bytes for data, with a red zone behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    start: NonNull<u8>,
    len: usize,
}

impl Room {
    fn new(len: usize) -> Self {
        let bytes = vec![RED; len + RED_ZONE].into_boxed_slice();
        let start = NonNull::from(Box::leak(bytes)).cast();
        Self { start, len }
    }

    /// # Safety
    ///
    /// Made by `new`, and not used any more.
    unsafe fn free(self) {
        let bytes = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len + RED_ZONE);
        // SAFETY: leaked from such a box by `new`.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

/// Memory of one segment; lives as long as its pool.
#[derive(Debug)]
struct Segment {
    /// `room + RED_ZONE` bytes.
    own: Room,
    /// The same again, or a large buffer.
    data: Cell<Room>,
    live: Cell<bool>,
    len: Cell<u32>,
    /// Bytes of the whole packet; of its first segment only.
    total: Cell<u32>,
    next: Cell<FakePacket>,
    asked: Cell<Option<Asked>>,
    marks: Cell<Option<Marks>>,
}

/// A handle of a fake packet. Any use of a packet that was released panics.
///
/// A handle must not be used after its pool is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakePacket(Option<NonNull<Segment>>);

impl FakePacket {
    fn segment<'p>(self) -> &'p Segment {
        let segment = self.0.expect("no packet was ever put here");
        // SAFETY: the pool keeps the segment (its owner outlives the handle, see the type), and
        // all that changes in it is in cells.
        let segment = unsafe { segment.as_ref() };
        assert!(segment.live.get(), "a packet is used after its release");
        segment
    }

    fn bytes<'p>(self) -> &'p [u8] {
        let segment = self.segment();
        let len = segment.len.get() as usize;
        let data = segment.data.get();
        assert!(len <= data.len);
        // SAFETY: so many bytes were allocated and initialised with it, `len` is not more, and a
        // packet is written only by the one who made it, before it is finished.
        unsafe { std::slice::from_raw_parts(data.start.as_ptr(), len) }
    }

    fn chain<'p>(self) -> impl Iterator<Item = &'p [u8]> {
        let next =
            |packet: &FakePacket| Some(packet.segment().next.get()).filter(|p| p.0.is_some());
        std::iter::successors(Some(self), next).map(FakePacket::bytes)
    }

    /// All bytes of the packet.
    pub fn to_vec(self) -> Vec<u8> {
        let bytes: Vec<u8> = self.chain().flatten().copied().collect();
        assert_eq!(bytes.len(), self.segment().total.get() as usize);
        bytes
    }

    /// The length of each segment.
    pub fn segment_lens(self) -> Vec<usize> {
        self.chain().map(<[u8]>::len).collect()
    }

    /// Whether the packet has a large buffer.
    pub fn is_large(self) -> bool {
        let segment = self.segment();
        segment.data.get() != segment.own
    }

    /// The packet asks for something.
    #[must_use]
    pub fn asking(self, asked: Asked) -> Self {
        self.segment().asked.set(Some(asked));
        self
    }

    /// What the packet was marked with.
    pub fn marks(self) -> Option<Marks> {
        self.segment().marks.get()
    }
}

impl Packet for FakePacket {
    fn len(&self) -> u32 {
        self.segment().total.get()
    }

    fn plain(&self) -> Option<&[u8]> {
        let segment = self.segment();
        let plain = segment.asked.get().is_none() && segment.next.get().0.is_none();
        plain.then(|| self.bytes())
    }

    fn whole(&self) -> Option<&[u8]> {
        let alone = self.segment().next.get().0.is_none();
        alone.then(|| self.bytes())
    }

    fn asked(&self) -> Option<Asked> {
        self.segment().asked.get()
    }

    fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.chain()
    }
}

/// A pool of fake packets.
#[derive(Debug)]
pub struct FakePool {
    room: usize,
    limit: usize,
    chains: bool,
    rules: RxRules,
    /// Room of a large buffer, and how many are left.
    large: Cell<(usize, usize)>,
    live: Cell<usize>,
    free: RefCell<Vec<NonNull<Segment>>>,
    all: RefCell<Vec<NonNull<Segment>>>,
}

impl FakePool {
    /// A pool whose packets have `room` bytes each, and which never runs dry.
    pub fn new(room: usize) -> Self {
        Self {
            room,
            limit: usize::MAX,
            chains: true,
            rules: RxRules::default(),
            large: Cell::default(),
            live: Cell::default(),
            free: RefCell::default(),
            all: RefCell::default(),
        }
    }

    /// From now on a burst gets no packet while `limit` are out.
    pub fn limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// From now on a frame must fit into one packet.
    pub fn linear(&mut self) {
        self.chains = false;
    }

    /// From now on marks are wanted like this.
    pub fn set_rules(&mut self, rules: RxRules) {
        self.rules = rules;
    }

    /// From now on there are `count` large buffers with `room` bytes each.
    pub fn large(&mut self, room: usize, count: usize) {
        self.large.set((room, count));
    }

    /// Segments that are not in the pool.
    pub fn live(&self) -> usize {
        self.live.get()
    }

    fn take(&self) -> FakePacket {
        let free = self.free.borrow_mut().pop();
        let segment = free.unwrap_or_else(|| self.make());
        self.live.update(|live| live + 1);
        // SAFETY: made by `make`, and freed only when the pool is dropped.
        let fresh = unsafe { segment.as_ref() };
        fresh.live.set(true);
        fresh.len.set(0);
        fresh.total.set(0);
        fresh.next.set(FakePacket::default());
        fresh.asked.set(None);
        fresh.marks.set(None);
        FakePacket(Some(segment))
    }

    fn make(&self) -> NonNull<Segment> {
        let own = Room::new(self.room);
        let segment = Box::new(Segment {
            own,
            data: Cell::new(own),
            live: Cell::new(false),
            len: Cell::new(0),
            total: Cell::new(0),
            next: Cell::new(FakePacket::default()),
            asked: Cell::new(None),
            marks: Cell::new(None),
        });
        let segment = NonNull::from(Box::leak(segment));
        self.all.borrow_mut().push(segment);
        segment
    }

    /// A packet with a segment for each of `parts`; it need not keep to the limit.
    pub fn packet(&mut self, parts: &[&[u8]]) -> FakePacket {
        let mut packet = FakePacket::default();
        let mut last = FakePacket::default();
        for (nth, part) in parts.iter().enumerate() {
            let mut segment = self.take();
            for (to, &from) in self.space(&mut segment)[..part.len()].iter_mut().zip(*part) {
                to.write(from);
            }
            let len = u32::try_from(part.len()).unwrap();
            if nth == 0 {
                self.finish(&mut segment, len);
                packet = segment;
            } else {
                self.append(&mut packet, &mut last, segment, len);
            }
            last = segment;
        }
        packet
    }
}

impl Release for FakePool {
    type Packet = FakePacket;

    fn release(&self, packets: &[FakePacket]) {
        for &packet in packets {
            let mut at = packet;
            while let Some(pointer) = at.0 {
                let segment = at.segment();
                let data = segment.data.replace(segment.own);
                for nth in 0..RED_ZONE {
                    // SAFETY: the red zone follows the room in the same allocation.
                    let byte = unsafe { data.start.add(data.len + nth) };
                    // SAFETY: as above; initialised by `new`.
                    let byte = unsafe { byte.read() };
                    assert_eq!(byte, RED, "somebody wrote behind a segment");
                }
                if data != segment.own {
                    // SAFETY: the segment has its own room again.
                    unsafe { data.free() };
                    self.large.update(|(room, count)| (room, count + 1));
                }
                at = segment.next.get();
                segment.live.set(false);
                self.free.borrow_mut().push(pointer);
                self.live.update(|live| live - 1);
            }
        }
    }
}

impl PacketPool for FakePool {
    fn room(&self) -> usize {
        self.room
    }

    fn chains(&self) -> bool {
        self.chains
    }

    fn allocate(&self, out: &mut [FakePacket]) -> bool {
        if out.len() > self.limit.saturating_sub(self.live()) {
            return false;
        }
        out.fill_with(|| self.take());
        true
    }

    fn one(&self) -> Option<FakePacket> {
        let mut packet = [FakePacket::default()];
        self.allocate(&mut packet).then_some(packet[0])
    }

    fn space<'p>(&self, packet: &'p mut FakePacket) -> &'p mut [MaybeUninit<u8>] {
        let data = packet.segment().own;
        // SAFETY: these bytes are this segment's alone, and a fresh packet has one user, who gave
        // its handle exclusively.
        unsafe { std::slice::from_raw_parts_mut(data.start.as_ptr().cast(), data.len) }
    }

    fn longest_segment(&self) -> usize {
        self.room.max(self.large.get().0)
    }

    fn large<'p>(
        &self,
        packet: &'p mut FakePacket,
        len: usize,
    ) -> Option<&'p mut [MaybeUninit<u8>]> {
        let (room, count) = self.large.get();
        let left = count.checked_sub(1).filter(|_| len <= room)?;
        self.large.set((room, left));
        let data = Room::new(room);
        packet.segment().data.set(data);
        // SAFETY: as for `space`.
        Some(unsafe { std::slice::from_raw_parts_mut(data.start.as_ptr().cast(), len) })
    }

    fn finish(&self, packet: &mut FakePacket, len: u32) {
        let segment = packet.segment();
        segment.len.set(len);
        segment.total.set(len);
    }

    fn append(&self, head: &mut FakePacket, last: &mut FakePacket, segment: FakePacket, len: u32) {
        segment.segment().len.set(len);
        last.segment().next.set(segment);
        let first = head.segment();
        first.total.set(first.total.get() + len);
    }

    fn finish_all(&self, segments: &mut [FakePacket], len: u32) {
        let mut left = len as usize;
        let (mut head, mut last) = (segments[0], segments[0]);
        for (nth, &mut mut segment) in segments.iter_mut().enumerate() {
            let part = left.min(self.room);
            assert!(part > 0, "a segment of no bytes");
            left -= part;
            let part = u32::try_from(part).unwrap();
            if nth == 0 {
                self.finish(&mut segment, part);
            } else {
                self.append(&mut head, &mut last, segment, part);
            }
            last = segment;
        }
        assert_eq!(left, 0, "bytes without a segment");
    }

    fn rules(&self) -> RxRules {
        self.rules
    }

    fn store(&self, packet: &mut FakePacket, at: usize, value: [u8; 2]) -> bool {
        for (at, value) in (at..).zip(value) {
            let mut left = at;
            let mut segment = *packet;
            while left >= segment.segment().len.get() as usize {
                left -= segment.segment().len.get() as usize;
                segment = segment.segment().next.get();
                if segment.0.is_none() {
                    return false;
                }
            }
            if let Some(byte) = self.space(&mut segment).get_mut(left) {
                byte.write(value);
            }
        }
        true
    }

    fn mark(&self, packet: &mut FakePacket, marks: Marks) {
        packet.segment().marks.set(Some(marks));
    }

    fn ask(&self, packet: &mut FakePacket, asked: Asked) {
        packet.segment().asked.set(Some(asked));
    }
}

impl Drop for FakePool {
    fn drop(&mut self) {
        for segment in self.all.get_mut().drain(..) {
            // SAFETY: leaked from a box by `make`, and dropped only here.
            let segment = unsafe { Box::from_raw(segment.as_ptr()) };
            let data = segment.data.get();
            if data != segment.own {
                // SAFETY: made for this segment alone, which is gone.
                unsafe { data.free() };
            }
            // SAFETY: as above.
            unsafe { segment.own.free() };
        }
    }
}
