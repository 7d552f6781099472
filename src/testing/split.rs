//! The driver's side of a split ring.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use super::driver::{Chain, Words};
use super::{FakeMemory, RINGS, Used};
use crate::virtqueue::VRING_DESC_F_NEXT;

/// Ring and descriptors, as a driver sees them.
#[derive(Debug)]
pub(super) struct SplitSide {
    pub(super) size: u16,
    /// Guest-physical addresses of table, available ring and used ring.
    pub(super) areas: [u64; 3],
    /// What was offered, by head; kept after it came back, so that it can be read.
    pub(super) chains: HashMap<u16, Chain>,
    available_index: u16,
    used_seen: u16,
    free: VecDeque<u16>,
    /// Heads that were made available and did not come back, in order.
    in_flight: VecDeque<u16>,
    in_order: bool,
    /// Used entries that were read.
    pub(super) entries: usize,
}

impl SplitSide {
    pub(super) fn new(size: u16) -> Self {
        let n = u64::from(size);
        let table = RINGS.start;
        let available = table + 16 * n;
        // 6 bytes of flags, index and event; and aligned to 4 bytes, as is the least allowed.
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        Self {
            size,
            areas: [table, available, used],
            chains: HashMap::new(),
            available_index: 0,
            used_seen: 0,
            free: (0..size).collect(),
            in_flight: VecDeque::new(),
            in_order: false,
            entries: 0,
        }
    }

    pub(super) fn in_order(&mut self) {
        self.in_order = true;
    }

    pub(super) fn start_at(&mut self, memory: &FakeMemory, index: u16) -> u16 {
        self.available_index = index;
        self.used_seen = index;
        memory.write(self.areas[1] + 2, &index.to_le_bytes());
        memory.write(self.areas[2] + 2, &index.to_le_bytes());
        index
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn write(&self, memory: &FakeMemory, to: u64, words: Words) {
        let rest =
            u64::from(words.len) | u64::from(words.flags) << 32 | u64::from(words.link) << 48;
        memory.write(to, &words.at.to_le_bytes());
        memory.write(to + 8, &rest.to_le_bytes());
    }

    pub(super) fn describe(&mut self, memory: &FakeMemory, index: u16, words: Words) {
        self.free.retain(|&free| free != index);
        self.write(memory, self.areas[0] + 16 * u64::from(index), words);
    }

    pub(super) fn make_available(&mut self, memory: &FakeMemory, head: u16) {
        let slot = self.available_index & (self.size - 1);
        let at = self.areas[1] + 4 + 2 * u64::from(slot);
        memory.write(at, &head.to_le_bytes());
        self.in_flight.push_back(head);
        self.set_available_index(memory, self.available_index.wrapping_add(1));
    }

    pub(super) fn set_available_index(&mut self, memory: &FakeMemory, index: u16) {
        self.available_index = index;
        memory.write(self.areas[1] + 2, &index.to_le_bytes());
    }

    pub(super) fn offer(
        &mut self,
        memory: &FakeMemory,
        chain: &[Words],
        parts: Vec<(u64, u32)>,
    ) -> u16 {
        let descriptors: Vec<u16> = self.free.drain(..chain.len()).collect();
        for (nth, &(mut words)) in chain.iter().enumerate() {
            if let Some(&next) = descriptors.get(nth + 1) {
                words.flags |= VRING_DESC_F_NEXT;
                words.link = next;
            }
            let to = self.areas[0] + 16 * u64::from(descriptors[nth]);
            self.write(memory, to, words);
        }
        let head = descriptors[0];
        self.chains.insert(head, Chain { descriptors, parts });
        self.make_available(memory, head);
        head
    }

    pub(super) fn used(&mut self, memory: &FakeMemory) -> Vec<Used> {
        let index = memory.read(self.areas[2] + 2, 2);
        let index = u16::from_le_bytes(index.try_into().unwrap());
        let mut used = Vec::new();
        while self.used_seen != index {
            let slot = u64::from(self.used_seen & (self.size - 1));
            let element = memory.read(self.areas[2] + 4 + 8 * slot, 8);
            let element = u64::from_le_bytes(element.try_into().unwrap());
            let last = (element & 0xffff_ffff) as u32;
            let len = (element >> 32) as u32;
            self.entries += 1;
            if self.in_order {
                // One element for a batch: it names the last head, and stands at the first place.
                let most = index.wrapping_sub(self.used_seen);
                for _ in 1..most {
                    match self.in_flight.front() {
                        Some(&head) if u32::from(head) != last => {
                            self.take_back(head, 0, &mut used)
                        }
                        _ => break,
                    }
                }
            }
            self.take_back(last as u16, len, &mut used);
            if let Some(element) = used.last_mut() {
                element.head = last;
            }
        }
        used
    }

    fn take_back(&mut self, head: u16, len: u32, used: &mut Vec<Used>) {
        used.push(Used {
            head: head.into(),
            len,
        });
        if let Some(nth) = self.in_flight.iter().position(|&other| other == head) {
            self.in_flight.remove(nth);
        }
        if let Some(chain) = self.chains.get_mut(&head) {
            self.free.extend(chain.descriptors.drain(..));
        }
        self.used_seen = self.used_seen.wrapping_add(1);
    }

    pub(super) fn call_after(&self, memory: &FakeMemory, index: u16) {
        let at = self.areas[1] + 4 + 2 * u64::from(self.size);
        memory.write(at, &index.to_le_bytes());
    }

    pub(super) fn set_flags(&self, memory: &FakeMemory, flags: u16) {
        memory.write(self.areas[1], &flags.to_le_bytes());
    }

    pub(super) fn used_flags(&self, memory: &FakeMemory) -> u16 {
        let flags = memory.read(self.areas[2], 2);
        u16::from_le_bytes(flags.try_into().unwrap())
    }

    pub(super) fn kick_after(&self, memory: &FakeMemory) -> u16 {
        let at = self.areas[2] + 4 + 8 * u64::from(self.size);
        u16::from_le_bytes(memory.read(at, 2).try_into().unwrap())
    }
}
