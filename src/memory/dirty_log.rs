//! The dirty log: which pages of the guest we wrote, for live migration (vhost-user, "Migration").
//!
//! A bit of the log covers a page of 4096 bytes of guest-physical memory. The frontend reads and clears
//! the log while we run: it clears a bit, then sends the page. So a bit must be set after the page
//! was written, or else the old content could be sent and the new one never.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use super::{Gpa, GuestRange, MapError, MemoryTable, Region, RegionConfig, Uva};

/// Bits for an address that are not the page's number.
const PAGE_SHIFT: u32 = 12;
/// Pages of one word of the log.
const WORD_PAGES: u64 = 64;
/// Words that are collected before they are written to the log.
const COLLECTED: usize = 64;

/// A log that the frontend shares with us.
#[derive(Debug)]
pub struct DirtyLog {
    region: Region,
}

impl DirtyLog {
    /// Maps `size` bytes at `offset` of `file`.
    ///
    /// # Errors
    ///
    /// As [`Region::map`]: an empty log, or one that overflows or is longer than its file.
    pub fn map(file: File, size: u64, offset: u64) -> Result<Self, MapError> {
        let config = RegionConfig {
            gpa: Gpa(0),
            uva: Uva(0),
            size,
            offset,
        };
        Ok(Self {
            region: Region::map(config, file)?,
        })
    }

    /// The first guest-physical address that the log has no bit for.
    pub fn end(&self) -> Gpa {
        let pages = self.region.config().size.saturating_mul(8);
        Gpa(pages.saturating_mul(1 << PAGE_SHIFT))
    }

    /// Sets `bits` of word `nth`; those outside the log are ignored. The caller has made a full fence
    /// since the pages were written.
    fn set(&self, nth: u64, bits: u64) {
        let Some(at) = nth.checked_mul(8).and_then(|at| usize::try_from(at).ok()) else {
            return;
        };
        if let Some(word) = self.region.atomic::<AtomicU64>(at) {
            set_bits(word, bits.to_le());
            return;
        }
        // A log need not be aligned, nor end with a whole word.
        for (at, bits) in (at..).zip(bits.to_le_bytes()) {
            if bits != 0
                && let Some(byte) = self.region.atomic::<AtomicU8>(at)
            {
                byte.fetch_or(bits, Ordering::Release);
            }
        }
    }
}

/// A word that the frontend clears with one exchange.
trait Word {
    fn load(&self) -> u64;
    fn or(&self, bits: u64);
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn or(&self, bits: u64) {
        self.fetch_or(bits, Ordering::Release);
    }
}

/// Sets `bits` of `word`, after a full fence behind the writes that they tell of.
///
/// Bits that are set already are left alone, which spares a locked access to a line that other lcores
/// mark, too. When the fence is between our write and this load, and the frontend's exchange between
/// its clearing and its reading, then either we see the bit cleared, or the frontend reads what we
/// wrote.
#[inline(always)]
fn set_bits(word: &impl Word, bits: u64) {
    if word.load() & bits != bits {
        word.or(bits);
    }
}

/// A word of the log with the bits that are to be set in it.
#[derive(Clone, Copy, Debug, Default)]
struct Collected {
    nth: u64,
    bits: u64,
}

/// Pages that were written and are not in the log yet. Most pages of a burst share a few words.
#[derive(Debug)]
pub struct DirtyPages {
    log: Arc<DirtyLog>,
    table: Arc<MemoryTable>,
    /// The region of the last range: its address here, its size, and its guest-physical address.
    host: usize,
    size: u64,
    gpa: u64,
    /// Each word has one place where it can be.
    words: [Collected; COLLECTED],
    /// The places that are taken.
    taken: u64,
}

impl DirtyPages {
    /// Nothing yet, for ranges of `table`.
    pub fn new(log: Arc<DirtyLog>, table: Arc<MemoryTable>) -> Self {
        Self {
            log,
            table,
            host: 0,
            size: 0,
            gpa: 0,
            words: [Collected::default(); COLLECTED],
            taken: 0,
        }
    }

    /// Notes that `range`, of the table, was written.
    #[inline(always)]
    pub fn mark(&mut self, range: GuestRange<'_>) {
        if let Some(at) = self.address(range) {
            self.mark_at(at, range.len() as u64);
        }
    }

    /// The guest-physical address of `range`, which is of the table.
    #[inline(always)]
    pub fn address(&mut self, range: GuestRange<'_>) -> Option<Gpa> {
        let host = range.as_ptr().addr();
        if host.wrapping_sub(self.host) as u64 >= self.size {
            self.seek(host)?;
        }
        let skip = host.wrapping_sub(self.host) as u64;
        Some(Gpa(self.gpa.wrapping_add(skip)))
    }

    /// Remembers the region that holds `host`.
    #[cold]
    #[inline(never)]
    fn seek(&mut self, host: usize) -> Option<()> {
        let begin = |region: &Region| region.host().addr().get();
        let region = self.table.regions().iter().find(|region| {
            let skip = host.wrapping_sub(begin(region)) as u64;
            skip < region.config().size
        })?;
        self.host = begin(region);
        self.size = region.config().size;
        self.gpa = region.config().gpa.0;
        Some(())
    }

    /// Notes that `len` bytes at `at` were written.
    #[inline(always)]
    pub fn mark_at(&mut self, at: Gpa, len: u64) {
        if len == 0 {
            return;
        }
        let first = at.0 >> PAGE_SHIFT;
        let last = at.0.saturating_add(len - 1) >> PAGE_SHIFT;
        if first / WORD_PAGES == last / WORD_PAGES {
            self.collect(first / WORD_PAGES, bits(first, last));
        } else {
            self.mark_long(first, last);
        }
    }

    /// Notes pages of more than one word.
    #[cold]
    #[inline(never)]
    fn mark_long(&mut self, mut first: u64, last: u64) {
        while first <= last {
            let end = last.min(first | (WORD_PAGES - 1));
            self.collect(first / WORD_PAGES, bits(first, end));
            first = end + 1;
        }
    }

    #[inline(always)]
    fn collect(&mut self, nth: u64, bits: u64) {
        #[allow(clippy::cast_possible_truncation, reason = "less than COLLECTED")]
        let place = (nth % COLLECTED as u64) as usize;
        let taken = 1 << place;
        let Some(word) = self.words.get_mut(place) else {
            return;
        };
        if self.taken & taken == 0 {
            *word = Collected { nth, bits };
            self.taken |= taken;
        } else if word.nth == nth {
            word.bits |= bits;
        } else {
            let before = std::mem::replace(word, Collected { nth, bits });
            self.write(before);
        }
    }

    /// Another word needs the place.
    #[cold]
    #[inline(never)]
    fn write(&self, word: Collected) {
        fence(Ordering::SeqCst);
        self.log.set(word.nth, word.bits);
    }

    /// Puts all that was noted into the log. Stores that come later are seen later.
    pub fn flush(&mut self) {
        if self.taken == 0 {
            return;
        }
        // Ours of `set_bits`.
        fence(Ordering::SeqCst);
        while self.taken != 0 {
            let place = self.taken.trailing_zeros() as usize;
            if let Some(word) = self.words.get(place) {
                self.log.set(word.nth, word.bits);
            }
            self.taken &= self.taken - 1;
        }
    }
}

/// The bits of pages `first` to `last` in their word.
#[inline(always)]
fn bits(first: u64, last: u64) -> u64 {
    let from = u64::MAX << (first % WORD_PAGES);
    let to = u64::MAX >> (WORD_PAGES - 1 - last % WORD_PAGES);
    from & to
}

#[cfg(test)]
mod tests;

#[cfg(all(test, loom))]
mod model;
