//! The ring of descriptors and the completion word: what is in memory, and how far it is.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::registers::{COPY, NOTHING};
use crate::dma::vfio::{Container, Memory};
use crate::dma::{Outcome, Tag, Transfer};

/// Bytes, and 8-byte words, of a descriptor.
const DESCRIPTOR: u64 = 64;
const WORDS: usize = 8;
const CONTROL_SHIFT: u32 = 32;
const NOBODY: Tag = Tag {
    serial: u32::MAX,
    place: u16::MAX,
};

/// Descriptors that point to each other in a circle, the completion word, and who waits for what.
/// Copies have sequence numbers that wrap at 2³².
pub(super) struct Ring {
    /// The descriptors, a cache line for the word, and the [lead](Self::lead).
    memory: Memory,
    tags: Box<[Tag]>,
    /// Size less one; the size is a power of two.
    mask: u32,
    staged: u32,
    started: u32,
    reported: u32,
    /// So many of the next to report nobody will finish.
    abandoned: u32,
    /// Where the doorbell counts from.
    base: u32,
}

impl Ring {
    pub(super) fn new(container: &Arc<dyn Container>, size: u32) -> io::Result<Self> {
        let entries = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = (entries + 2) * WORDS * size_of::<u64>();
        let ring = Self {
            memory: Memory::of(container, bytes)?,
            tags: vec![NOBODY; entries].into(),
            mask: size - 1,
            staged: 0,
            started: 0,
            reported: 0,
            abandoned: 0,
            base: 0,
        };
        for nth in 0..size {
            let [_, _, _, next, ..] = ring.descriptor(nth) else {
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            next.store(ring.address(nth.wrapping_add(1)), Relaxed);
        }
        Ok(ring)
    }

    /// The words of a descriptor; always eight of them.
    #[inline]
    fn descriptor(&self, sequence: u32) -> &[AtomicU64] {
        let at = (sequence & self.mask) as usize * WORDS;
        self.memory.words().get(at..at + WORDS).unwrap_or(&[])
    }

    /// Where the channel finds a descriptor.
    fn address(&self, sequence: u32) -> u64 {
        self.memory.iova() + u64::from(sequence & self.mask) * DESCRIPTOR
    }

    fn size(&self) -> u32 {
        self.mask + 1
    }

    /// A descriptor outside the circle that leads into it, for channels that must begin with one.
    fn lead_address(&self) -> u64 {
        self.word_address() + DESCRIPTOR
    }

    /// Where the channel writes the completion word.
    pub(super) fn word_address(&self) -> u64 {
        self.memory.iova() + u64::from(self.size()) * DESCRIPTOR
    }

    fn completion(&self) -> Option<&AtomicU64> {
        self.memory.words().get(self.size() as usize * WORDS)
    }

    /// The completion word. The data that it tells of is visible.
    #[inline]
    pub(super) fn word(&self) -> u64 {
        self.completion().map_or(0, |word| word.load(Acquire))
    }

    pub(super) fn set_word(&self, value: u64) {
        if let Some(word) = self.completion() {
            word.store(value, Release);
        }
    }

    /// One less than the size: the word could not tell a full ring from an empty one.
    #[inline]
    pub(super) fn room(&self) -> usize {
        let used = self.staged.wrapping_sub(self.reported);
        self.mask.saturating_sub(used) as usize
    }

    /// What was started and not reported.
    #[inline]
    pub(super) fn outstanding(&self) -> u32 {
        self.started.wrapping_sub(self.reported)
    }

    #[inline]
    pub(super) fn stage(&mut self, copy: Transfer, tag: Tag) {
        if let [size, from, to, ..] = self.descriptor(self.staged) {
            size.store(u64::from(copy.len) | COPY << CONTROL_SHIFT, Relaxed);
            from.store(copy.from.0, Relaxed);
            to.store(copy.to.0, Relaxed);
        }
        if let Some(owner) = self.tags.get_mut((self.staged & self.mask) as usize) {
            *owner = tag;
        }
        self.staged = self.staged.wrapping_add(1);
    }

    /// All that is staged is for the channel from now on.
    #[inline]
    pub(super) fn start_staged(&mut self) {
        self.started = self.staged;
    }

    /// What the doorbell has to say.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "it counts modulo 65536")]
    pub(super) fn count(&self) -> u16 {
        self.started.wrapping_sub(self.base) as u16
    }

    /// How many copies a completion word reports; `None` when it cannot be true.
    #[inline]
    pub(super) fn finished(&self, word: u64) -> Option<u32> {
        let last = word & !(DESCRIPTOR - 1);
        if last == 0 || last == self.lead_address() {
            return Some(0); // nothing since the start
        }
        let at = u32::try_from(last.checked_sub(self.memory.iova())? / DESCRIPTOR).ok()?;
        let finished = at.wrapping_add(1).wrapping_sub(self.reported) & self.mask;
        (at <= self.mask && finished <= self.outstanding()).then_some(finished)
    }

    /// Reports the next `count`.
    #[inline]
    pub(super) fn report(
        &mut self,
        count: u32,
        outcome: Outcome,
        done: &mut dyn FnMut(Tag, Outcome),
    ) {
        for _ in 0..count {
            if let Some(&tag) = self.tags.get((self.reported & self.mask) as usize) {
                done(tag, outcome);
            }
            self.reported = self.reported.wrapping_add(1);
        }
    }

    /// The channel forgot what was started.
    pub(super) fn abandon(&mut self) {
        self.abandoned = self.outstanding();
    }

    /// Reports what the channel forgot.
    #[inline]
    pub(super) fn report_abandoned(&mut self, done: &mut dyn FnMut(Tag, Outcome)) {
        if self.abandoned != 0 {
            let count = std::mem::take(&mut self.abandoned);
            self.report(count, Outcome::Failed, done);
        }
    }

    /// Where a chain begins that has nothing to do yet.
    pub(super) fn begin(&mut self) -> u64 {
        self.set_word(0);
        self.base = self.started;
        self.address(self.base)
    }

    /// The same with the lead in front, for which the doorbell says 1.
    pub(super) fn begin_with_lead(&mut self) -> u64 {
        let first = self.begin();
        self.base = self.base.wrapping_sub(1);
        let at = (self.size() as usize + 1) * WORDS;
        if let Some([size, from, to, next, ..]) = self.memory.words().get(at..) {
            // Not 0 bytes: that would be an error.
            size.store(8 | NOTHING << CONTROL_SHIFT, Relaxed);
            from.store(0, Relaxed);
            to.store(0, Relaxed);
            next.store(first, Relaxed);
        }
        self.lead_address()
    }

    /// Where the chain goes on behind what was reported.
    pub(super) fn begin_behind_reported(&mut self) -> u64 {
        self.set_word(0);
        self.base = self.reported;
        self.address(self.base)
    }

    /// Keeps the memory for ever: the channel may still write to it.
    pub(super) fn leak(self) {
        self.memory.leak();
    }
}
