//! The driver's side of a packed ring. It steps one descriptor at a time, on purpose.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use super::driver::{Chain, Words};
use super::{FakeMemory, RINGS, Used};
use crate::virtqueue::{
    VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC,
};

/// The wrap counter in a position.
const WRAP: u16 = 1 << 15;

/// Ring and buffer ids, as a driver sees them.
#[derive(Debug)]
pub(super) struct PackedSide {
    pub(super) size: u16,
    /// Guest-physical addresses of ring, driver's and device's event suppression.
    pub(super) areas: [u64; 3],
    /// What was offered, by id; kept after it came back, so that it can be read.
    pub(super) chains: HashMap<u16, Chain>,
    /// Where the next chain is made available.
    next: u16,
    /// Where the next one comes back.
    used: u16,
    /// Descriptors that are not in flight.
    free: u16,
    /// Free buffer ids. They have nothing to do with places in the ring, unless chains are used in
    /// order.
    ids: VecDeque<u16>,
    /// Ids that were made available and did not come back, in order.
    in_flight: VecDeque<u16>,
    in_order: bool,
    /// Used entries that were read.
    pub(super) entries: usize,
}

impl PackedSide {
    pub(super) fn new(size: u16) -> Self {
        let ring = RINGS.start;
        let driver = ring + 16 * u64::from(size);
        Self {
            size,
            areas: [ring, driver, driver + 4],
            chains: HashMap::new(),
            next: WRAP,
            used: WRAP,
            free: size,
            ids: (0..size).rev().map(|id| id ^ 0x2a5a).collect(),
            in_flight: VecDeque::new(),
            in_order: false,
            entries: 0,
        }
    }

    pub(super) fn in_order(&mut self) {
        self.in_order = true;
    }

    /// Where the driver makes the next chain available.
    pub(super) fn position(&self) -> u16 {
        self.next
    }

    fn after(&self, position: u16) -> u16 {
        let index = (position & !WRAP) + 1;
        if index == self.size {
            (position ^ WRAP) & WRAP
        } else {
            position & WRAP | index
        }
    }

    fn place(&self, position: u16) -> u64 {
        self.areas[0] + 16 * u64::from(position & !WRAP)
    }

    fn flags(&self, memory: &FakeMemory, position: u16) -> u16 {
        let flags = memory.read(self.place(position) + 14, 2);
        u16::from_le_bytes(flags.try_into().unwrap())
    }

    /// Every descriptor gets the marks that it would have after a life up to here.
    pub(super) fn start_at(&mut self, memory: &FakeMemory, position: u16) -> u16 {
        let wrap = position & WRAP;
        let index = (position & !WRAP) % self.size;
        for slot in 0..self.size {
            let used_in = if slot < index { wrap } else { wrap ^ WRAP };
            let flags = if used_in != 0 {
                VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED
            } else {
                0
            };
            memory.write(self.place(slot) + 14, &flags.to_le_bytes());
        }
        self.next = wrap | index;
        self.used = self.next;
        self.next
    }

    pub(super) fn free(&self) -> usize {
        self.free.into()
    }

    pub(super) fn write(&self, memory: &FakeMemory, to: u64, words: Words) {
        let rest =
            u64::from(words.len) | u64::from(words.link) << 32 | u64::from(words.flags) << 48;
        memory.write(to, &words.at.to_le_bytes());
        memory.write(to + 8, &rest.to_le_bytes());
    }

    pub(super) fn describe(&mut self, memory: &FakeMemory, index: u16, words: Words) {
        let marks = self.flags(memory, index) & !(VRING_DESC_F_NEXT | 0x7e);
        let words = Words {
            link: index,
            flags: words.flags | marks,
            ..words
        };
        self.write(memory, self.place(index), words);
    }

    pub(super) fn make_available(&mut self, memory: &FakeMemory, head: u16) {
        assert_eq!(self.next & !WRAP, head, "not the driver's place");
        let mut places = vec![self.next];
        while let Some(&last) = places.last()
            && self.flags(memory, last) & VRING_DESC_F_NEXT != 0
            && places.len() < usize::from(self.size)
        {
            places.push(self.after(last));
        }
        let last = places[places.len() - 1];
        let id = memory.read(self.place(last) + 12, 2);
        let id = u16::from_le_bytes(id.try_into().unwrap());
        let descriptors = places.iter().map(|place| place & !WRAP).collect();
        let chain = self.chains.entry(id).or_default();
        chain.descriptors = descriptors;
        self.in_flight.push_back(id);
        self.free -= u16::try_from(places.len()).unwrap();
        self.next = self.after(last);
        // The first one last: the device looks there.
        for &place in places.iter().rev() {
            let marks = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED;
            let mark = if place & WRAP != 0 {
                VRING_PACKED_DESC_F_AVAIL
            } else {
                VRING_PACKED_DESC_F_USED
            };
            let flags = self.flags(memory, place) & !marks | mark;
            memory.write(self.place(place) + 14, &flags.to_le_bytes());
        }
    }

    pub(super) fn offer(
        &mut self,
        memory: &FakeMemory,
        chain: &[Words],
        parts: Vec<(u64, u32)>,
    ) -> u16 {
        assert!(chain.len() <= usize::from(self.free), "the ring is full");
        let head = self.next & !WRAP;
        let id = if self.in_order {
            head
        } else {
            self.ids.pop_front().unwrap()
        };
        let mut place = self.next;
        for (nth, &words) in chain.iter().enumerate() {
            let last = nth + 1 == chain.len();
            let words = Words {
                // Only the last one's id counts (2.8.6).
                link: if last { id } else { !id },
                flags: words.flags | if last { 0 } else { VRING_DESC_F_NEXT },
                ..words
            };
            let marks =
                self.flags(memory, place) & (VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED);
            let flags = words.flags | marks;
            self.write(memory, self.place(place), Words { flags, ..words });
            place = self.after(place);
        }
        let descriptors = Vec::new();
        self.chains.insert(id, Chain { descriptors, parts });
        self.make_available(memory, head);
        id
    }

    pub(super) fn used(&mut self, memory: &FakeMemory) -> Vec<Used> {
        let mut used = Vec::new();
        while !self.in_flight.is_empty() {
            let both = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED;
            let flags = self.flags(memory, self.used);
            let marks = if self.used & WRAP != 0 { both } else { 0 };
            if flags & both != marks {
                break;
            }
            let words = memory.read(self.place(self.used) + 8, 8);
            let words = u64::from_le_bytes(words.try_into().unwrap());
            let last = (words >> 32) as u16;
            // Without the flag the length has no meaning (2.8.6).
            let len = match flags & VRING_DESC_F_WRITE {
                0 => 0,
                _ => (words & 0xffff_ffff) as u32,
            };
            self.entries += 1;
            if self.in_order {
                // One descriptor for a batch: it names the last id, and stands at the first place.
                while let Some(&id) = self.in_flight.front()
                    && id != last
                {
                    self.take_back(id, 0, &mut used);
                }
            }
            self.take_back(last, len, &mut used);
        }
        used
    }

    fn take_back(&mut self, id: u16, len: u32, used: &mut Vec<Used>) {
        used.push(Used {
            head: id.into(),
            len,
        });
        if let Some(nth) = self.in_flight.iter().position(|&other| other == id) {
            self.in_flight.remove(nth);
        }
        let slots = match self.chains.get_mut(&id) {
            Some(chain) => std::mem::take(&mut chain.descriptors).len().max(1),
            None => 1,
        };
        for _ in 0..slots {
            self.used = self.after(self.used);
            self.free = self.size.min(self.free + 1);
        }
        if !self.in_order {
            self.ids.push_back(id);
        }
    }

    pub(super) fn call_after(&self, memory: &FakeMemory, position: u16) {
        memory.write(self.areas[1], &position.to_le_bytes());
        self.set_flags(memory, VRING_PACKED_EVENT_FLAG_DESC);
    }

    pub(super) fn set_flags(&self, memory: &FakeMemory, flags: u16) {
        memory.write(self.areas[1] + 2, &flags.to_le_bytes());
    }

    pub(super) fn used_flags(&self, memory: &FakeMemory) -> u16 {
        let flags = memory.read(self.areas[2] + 2, 2);
        u16::from_le_bytes(flags.try_into().unwrap())
    }

    pub(super) fn kick_after(&self, memory: &FakeMemory) -> u16 {
        u16::from_le_bytes(memory.read(self.areas[2], 2).try_into().unwrap())
    }
}
