//! What a frontend told of its IOMMU: which I/O virtual addresses mean which guest-physical ones.
//!
//! The [`Iotlb`] of a device is written by the thread of its connection alone. Lcores read it when
//! their own cache ([`Lookaside`](super::Lookaside)) has no answer, and never wait: what another
//! thread has locked just now counts as not known yet.
#![forbid(unsafe_code)]

mod sorted;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use self::sorted::{Position, Sorted};
use super::{Gpa, Iova};

/// Bits of an address inside the smallest page of any IOMMU.
pub const PAGE_BITS: u32 = 12;

/// What a device may do with memory: bits for reading and writing, as in `IOTLB_MSG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Reading.
    pub const READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const BOTH: Self = Self(3);

    /// The access of these bits; `None` when there are none, or others.
    pub fn from_bits(bits: u8) -> Option<Self> {
        matches!(bits, 1..=3).then_some(Self(bits))
    }

    /// The bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// What either allows.
    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether this allows all that `need` does.
    #[inline(always)]
    pub fn covers(self, need: Self) -> bool {
        self.0 & need.0 == need.0
    }
}

/// I/O virtual addresses, the last one included: a range may end where addresses do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// All addresses.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// `size` bytes at `at`; `None` when that is none, or more than there are.
    pub fn new(at: Iova, size: u64) -> Option<Self> {
        let last = at.0.checked_add(size.checked_sub(1)?)?;
        Some(Self { first: at.0, last })
    }

    /// `at` and all behind it.
    pub fn from(at: Iova) -> Self {
        Self {
            first: at.0,
            last: u64::MAX,
        }
    }

    /// How many there are; for all of them, one fewer.
    pub fn size(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// The numbers of the pages of `1 << bits` bytes that it touches.
    pub fn pages(self, bits: u32) -> RangeInclusive<u64> {
        self.first >> bits..=self.last >> bits
    }

    /// Whether `at` is among them.
    pub fn contains(self, at: Iova) -> bool {
        (self.first..=self.last).contains(&at.0)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A question to the frontend: what is at this address?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Miss {
    /// The first byte that is not known.
    pub iova: Iova,
    /// What it is needed for.
    pub need: Access,
}

/// Bytes that lie side by side in both kinds of addresses, around the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first one.
    pub iova: Iova,
    /// Where that lies.
    pub gpa: Gpa,
    /// How many; at the end of addresses one fewer than there are.
    pub len: u64,
}

/// A translation. It begins at its key.
#[derive(Clone, Copy, Debug)]
struct Entry {
    last: u64,
    gpa: u64,
    access: Access,
}

impl Entry {
    /// What to add to an I/O virtual address, with wrapping.
    fn shift(self, first: u64) -> u64 {
        self.gpa.wrapping_sub(first)
    }
}

/// All translations, and how many there may be.
#[derive(Debug)]
pub(super) struct Entries {
    sorted: Sorted<Entry>,
    limit: usize,
    /// Where the search for an entry to give up goes on.
    hand: u64,
}

impl Entries {
    /// The entry that holds `at`.
    fn at(&self, at: u64) -> Option<(Position, u64, Entry)> {
        let position = self.sorted.until(at)?;
        let (first, entry) = self.sorted.get(position)?;
        (entry.last >= at).then_some((position, first, entry))
    }

    /// Whether `at` may be used for `need`.
    pub(super) fn knows(&self, at: Iova, need: Access) -> bool {
        self.at(at.0)
            .is_some_and(|(_, _, entry)| entry.access.covers(need))
    }

    /// What lies around `at`. When that ends before `want` bytes, up to `most` entries that go on
    /// where it ends are added. `None` when `at` is not known, or not for `need`.
    pub(super) fn extent(&self, at: Iova, want: u64, need: Access, most: usize) -> Option<Extent> {
        let (mut position, first, entry) = self.at(at.0)?;
        if !entry.access.covers(need) {
            return None;
        }
        let wanted = at.0.saturating_add(want.saturating_sub(1));
        let shift = entry.shift(first);
        let mut last = entry.last;
        for _ in 0..most {
            if last >= wanted {
                break;
            }
            let Some(next) = self.sorted.after(position) else {
                break;
            };
            let Some((key, entry)) = self.sorted.get(next) else {
                break;
            };
            let goes_on = last.checked_add(1) == Some(key)
                && entry.shift(key) == shift
                && entry.access.covers(need);
            if !goes_on {
                break;
            }
            (position, last) = (next, entry.last);
        }
        Some(Extent {
            iova: Iova(first),
            gpa: Gpa(entry.gpa),
            len: (last - first).saturating_add(1),
        })
    }

    /// Takes one entry out that overlaps `range`.
    fn take(&mut self, range: IovaRange) -> Option<(u64, Entry)> {
        let position = self.sorted.until(range.last)?;
        let (first, entry) = self.sorted.get(position)?;
        if entry.last < range.first {
            return None;
        }
        self.sorted.remove(position);
        Some((first, entry))
    }

    /// Gives up an entry, another one each time.
    fn evict(&mut self) {
        if let Some(position) = self.sorted.behind(self.hand)
            && let Some((first, _)) = self.sorted.get(position)
        {
            self.sorted.remove(position);
            self.hand = first;
        }
    }

    /// What is told now counts; what was told of the addresses beside it still holds. Of one and the
    /// same place both accesses are granted: only an invalidation takes one away.
    fn insert(&mut self, range: IovaRange, gpa: Gpa, access: Access) -> bool {
        let shift = gpa.0.wrapping_sub(range.first);
        let mut changed = false;
        let mut pieces = Vec::new();
        // From the end, as the old ones come.
        let mut rest = Some(range.last);
        while let Some((first, old)) = self.take(range) {
            if let Some(next) = range.last.checked_add(1).filter(|&next| next <= old.last) {
                pieces.push((next, old.last, old.shift(first), old.access));
            }
            let same = old.shift(first) == shift;
            changed |= !same;
            if same && !access.covers(old.access) {
                let (begin, end) = (first.max(range.first), old.last.min(range.last));
                if let Some(last) = rest.filter(|&last| end < last) {
                    pieces.push((end + 1, last, shift, access));
                }
                pieces.push((begin, end, shift, access.with(old.access)));
                rest = begin.checked_sub(1);
            }
            if let Some(last) = range.first.checked_sub(1).filter(|&last| first <= last) {
                pieces.push((first, last, old.shift(first), old.access));
            }
        }
        if let Some(last) = rest.filter(|&last| range.first <= last) {
            pieces.push((range.first, last, shift, access));
        }
        while self.sorted.len() >= self.limit {
            self.evict();
        }
        for (first, last, shift, access) in pieces {
            let gpa = first.wrapping_add(shift);
            self.sorted.insert(first, Entry { last, gpa, access });
        }
        changed
    }
}

/// The translations of a device.
#[derive(Debug)]
pub struct Iotlb {
    entries: Mutex<Entries>,
    /// Moves on whenever what was asked for may have to be asked for again.
    age: AtomicU64,
}

impl Default for Iotlb {
    fn default() -> Self {
        Self {
            entries: Mutex::new(Entries {
                sorted: Sorted::default(),
                limit: Self::LEAST,
                hand: 0,
            }),
            age: AtomicU64::new(0),
        }
    }
}

impl Iotlb {
    /// Translations that there is room for in any case.
    const LEAST: usize = 4096;
    /// How often an lcore tries to look.
    const TRIES: usize = 32;
    /// The most, which take some 50 MB.
    const MOST: usize = 1 << 20;

    // A panic elsewhere leaves entries, each of which is whole.

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `look` see the entries; `None` when another thread has them just now.
    pub(super) fn look<R>(&self, look: impl FnOnce(&Entries) -> R) -> Option<R> {
        // Others have them for less than a microsecond, unless they were put to sleep meanwhile.
        for _ in 0..Self::TRIES {
            match self.entries.try_lock() {
                Ok(entries) => return Some(look(&entries)),
                Err(TryLockError::Poisoned(error)) => return Some(look(&error.into_inner())),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// Notes that `range` begins at `gpa`, for `access`; whether an address of it was said to be
    /// somewhere else before. Then nobody may go on with what is cached: see
    /// [`Lookaside::forget`](super::Lookaside::forget).
    pub fn insert(&self, range: IovaRange, gpa: Gpa, access: Access) -> bool {
        self.entries().insert(range, gpa, access)
    }

    /// Removes each translation that has an address of `range`.
    pub fn remove(&self, range: IovaRange) {
        let mut entries = self.entries();
        while entries.take(range).is_some() {}
        drop(entries);
        self.ask_again();
    }

    /// Removes all, and takes `memory` bytes of guest memory as the measure of how many there may
    /// be: a translation for each 4 KB, within limits.
    pub fn clear(&self, memory: u64) {
        let limit = usize::try_from(memory / 4096).unwrap_or(usize::MAX);
        let mut entries = self.entries();
        let old = std::mem::take(&mut entries.sorted);
        entries.limit = limit.clamp(Self::LEAST, Self::MOST);
        drop(entries);
        // Freeing many takes its time; nobody should wait for it.
        drop(old);
        self.ask_again();
    }

    /// What lies around `at`, in as many entries as `want` bytes take. `None` when it is not known,
    /// or not for `need`.
    pub fn extent(&self, at: Iova, want: u64, need: Access) -> Option<Extent> {
        let entries = self.entries();
        entries.extent(at, want, need, usize::MAX)
    }

    /// Whether `at` may be used for `need`.
    pub fn knows(&self, at: Iova, need: Access) -> bool {
        self.entries().knows(at, need)
    }

    /// Number of translations.
    pub fn len(&self) -> usize {
        self.entries().sorted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has whoever misses something ask for it again, although it did before.
    pub fn ask_again(&self) {
        self.age.fetch_add(1, Ordering::Release);
    }

    /// Moves on with each [`ask_again`](Self::ask_again).
    pub(super) fn age(&self) -> u64 {
        self.age.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
