//! The arrays and words of which rings are made.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::{Descriptor, GuestRange};
use crate::memory::{AreaError, MemoryTable, Uva};

/// Maps `len` bytes at `at` with an alignment.
fn area(table: &MemoryTable, at: Uva, len: u64, align: usize) -> Result<NonNull<u8>, AreaError> {
    let range = table.area(at, len)?;
    if !range.start.addr().get().is_multiple_of(align) {
        return Err(AreaError::Unaligned { at, align });
    }
    Ok(range.start)
}

macro_rules! shared_with_a_guest {
    ($($name:ident),*) => {$(
        // SAFETY: the pointer stays mapped while the table is held, wherever the value moves.
        unsafe impl Send for $name {}
        // SAFETY: all access is by atomics.
        unsafe impl Sync for $name {}
    )*};
}
shared_with_a_guest!(GuestTable, GuestU16s, GuestWord, GuestPacked);

/// The split ring's descriptor table.
#[derive(Debug)]
pub struct GuestTable {
    start: NonNull<[AtomicU64; 2]>,
    size: u16,
    _table: Arc<MemoryTable>,
}

impl GuestTable {
    /// The table of `size` descriptors at `at`.
    pub fn map(table: &Arc<MemoryTable>, at: Uva, size: u16) -> Result<Self, AreaError> {
        let start = area(table, at, u64::from(size) * 16, 16)?;
        Ok(Self {
            start: start.cast(),
            size,
            _table: Arc::clone(table),
        })
    }

    /// The table, for a burst.
    #[inline(always)]
    pub fn entries(&self) -> GuestTableEntries<'_> {
        GuestTableEntries {
            start: self.start,
            size: self.size,
            table: PhantomData,
        }
    }

    /// Copies entry `index` out, as [`GuestTableEntries::get`].
    #[inline(always)]
    pub fn get(&self, index: u16) -> Option<Descriptor> {
        self.entries().get(index)
    }

    /// Asks for the line of entry `index`.
    #[inline(always)]
    pub fn prefetch(&self, index: u16) {
        let range = GuestRange {
            start: self.start.cast(),
            len: 0,
            table: PhantomData,
        };
        range.prefetch(usize::from(index) * Descriptor::SIZE);
    }
}

/// The split ring's descriptor table as a value, which can stay in registers while stores to guest
/// memory make the compiler read everything else anew.
#[derive(Clone, Copy, Debug)]
pub struct GuestTableEntries<'r> {
    start: NonNull<[AtomicU64; 2]>,
    size: u16,
    table: PhantomData<&'r GuestTable>,
}

impl GuestTableEntries<'_> {
    /// Copies entry `index` out; `None` when the driver named one outside.
    #[inline(always)]
    pub fn get(self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: `index < size`, and `map` checked that `size` entries are in one mapping.
        let entry = unsafe { self.start.add(usize::from(index)) };
        // SAFETY: mapped while the ring holds its table, 16-byte aligned (`map`); atomics may be
        // shared with a peer that writes.
        let words = unsafe { entry.as_ref() };
        let words = words.each_ref().map(|word| word.load(Ordering::Relaxed));
        Some(Descriptor::from_words(words))
    }
}

/// The packed ring's descriptors, which both sides write (VIRTIO 1.2, 2.8.13).
#[derive(Debug, Clone)]
pub struct GuestPacked {
    start: NonNull<[AtomicU64; 2]>,
    size: u16,
    _table: Arc<MemoryTable>,
}

impl GuestPacked {
    /// The ring of `size` descriptors at `at`.
    pub fn map(table: &Arc<MemoryTable>, at: Uva, size: u16) -> Result<Self, AreaError> {
        let start = area(table, at, u64::from(size) * 16, 16)?;
        Ok(Self {
            start: start.cast(),
            size,
            _table: Arc::clone(table),
        })
    }

    /// The entries from `first` on, at most `most` and not past the end of the ring.
    #[inline(always)]
    pub fn run(&self, first: u16, most: u16) -> GuestPackedRun<'_> {
        let skip = first.min(self.size);
        GuestPackedRun {
            // SAFETY: `skip <= size`, and `map` checked that `size` entries are in one mapping.
            start: unsafe { self.start.add(usize::from(skip)) },
            len: most.min(self.size - skip),
            ring: PhantomData,
        }
    }

    /// Copies entry `index` out, as [`GuestPackedRun::get`].
    #[inline(always)]
    pub fn get(&self, index: u16) -> Option<Descriptor> {
        self.run(index, 1).get(0)
    }

    /// The flags of entry `index` alone.
    #[inline(always)]
    pub fn flags(&self, index: u16) -> Option<u16> {
        let [_, rest] = self.run(index, 1).words(0)?;
        Some(Descriptor::from_packed_words([0, rest.load(Ordering::Acquire)]).flags)
    }

    /// Makes entry `index` a used one, as [`GuestPackedRun::set_used`].
    #[inline(always)]
    pub fn set_used(&self, index: u16, id: u16, len: u32, flags: u16) {
        self.run(index, 1).set_used(0, id, len, flags);
    }

    /// All entries.
    pub fn range(&self) -> GuestRange<'_> {
        GuestRange {
            start: self.start.cast(),
            len: usize::from(self.size) * Descriptor::SIZE,
            table: PhantomData,
        }
    }

    /// Host address of the flags of entry `index`, for a CPU that waits on them.
    pub fn flags_ptr(&self, index: u16) -> *const u16 {
        let entry = self.start.as_ptr().cast_const().cast::<u16>();
        entry.wrapping_add(usize::from(index % self.size.max(1)) * 8 + 7)
    }
}

/// Entries of a packed ring that stand side by side. A value, which can stay in registers while the
/// ordered accesses to the ring make the compiler read everything else anew.
#[derive(Clone, Copy, Debug)]
pub struct GuestPackedRun<'r> {
    start: NonNull<[AtomicU64; 2]>,
    len: u16,
    ring: PhantomData<&'r GuestPacked>,
}

impl<'r> GuestPackedRun<'r> {
    /// Number of entries.
    #[inline(always)]
    pub fn len(self) -> u16 {
        self.len
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn words(self, nth: usize) -> Option<&'r [AtomicU64; 2]> {
        if nth >= usize::from(self.len) {
            return None;
        }
        // SAFETY: `nth < len`, and `len` entries of the ring follow `start` (`GuestPacked::run`).
        let entry = unsafe { self.start.add(nth) };
        // SAFETY: mapped while the ring holds its table, 16-byte aligned (`GuestPacked::map`);
        // atomics may be shared with a peer that writes.
        Some(unsafe { entry.as_ref() })
    }

    /// Copies entry `nth` out, the half with the flags first: when those say that it is available,
    /// the rest was written before (2.8.6). `None` outside the run.
    #[inline(always)]
    pub fn get(self, nth: usize) -> Option<Descriptor> {
        let [addr, rest] = self.words(nth)?;
        let rest = rest.load(Ordering::Acquire);
        let addr = addr.load(Ordering::Relaxed);
        Some(Descriptor::from_packed_words([addr, rest]))
    }

    /// Makes entry `nth` a used one, in one store that all earlier ones come before.
    #[inline(always)]
    pub fn set_used(self, nth: usize, id: u16, len: u32, flags: u16) {
        if let Some([_, rest]) = self.words(nth) {
            let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
            rest.store(word.to_le(), Ordering::Release);
        }
    }
}

/// A power-of-two array of little-endian 16-bit words: the heads in the driver area.
#[derive(Debug)]
pub struct GuestU16s {
    start: NonNull<AtomicU16>,
    mask: u16,
    _table: Arc<MemoryTable>,
}

impl GuestU16s {
    /// The array of `size` words at `at`; `None` as size error when `size` is no power of two.
    pub fn map(table: &Arc<MemoryTable>, at: Uva, size: u16) -> Result<Self, AreaError> {
        let align = if size.is_power_of_two() {
            2
        } else {
            usize::MAX
        };
        let start = area(table, at, u64::from(size) * 2, align)?;
        Ok(Self {
            start: start.cast(),
            mask: size.wrapping_sub(1),
            _table: Arc::clone(table),
        })
    }

    /// The words from free-running index `first` on, at most `most` and not past the end of the array.
    #[inline(always)]
    pub fn run(&self, first: u16, most: u16) -> GuestU16sRun<'_> {
        let skip = first & self.mask;
        GuestU16sRun {
            // SAFETY: masked by the size minus one (`map`), so inside the array.
            start: unsafe { self.start.add(usize::from(skip)) },
            len: most.min((self.mask - skip).saturating_add(1)),
            ring: PhantomData,
        }
    }

    /// The word at free-running `index`.
    #[inline(always)]
    pub fn get(&self, index: u16) -> u16 {
        // SAFETY: masked by the size minus one (`map`), so inside the array.
        let word = unsafe { self.start.add(usize::from(index & self.mask)) };
        // SAFETY: mapped while `_table` is held, aligned (`map`), and an atomic.
        u16::from_le(unsafe { word.as_ref() }.load(Ordering::Relaxed))
    }
}

/// Words that stand side by side, as a value that can stay in registers.
#[derive(Clone, Copy, Debug)]
pub struct GuestU16sRun<'r> {
    start: NonNull<AtomicU16>,
    len: u16,
    ring: PhantomData<&'r GuestU16s>,
}

impl GuestU16sRun<'_> {
    /// Number of words.
    #[inline(always)]
    pub fn len(self) -> u16 {
        self.len
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The `nth` word; `None` outside the run.
    #[inline(always)]
    pub fn get(self, nth: usize) -> Option<u16> {
        if nth >= usize::from(self.len) {
            return None;
        }
        // SAFETY: `nth < len`, and `len` words of the array follow `start` (`GuestU16s::run`).
        let word = unsafe { self.start.add(nth) };
        // SAFETY: mapped while the ring holds its table, aligned (`map`), and an atomic.
        Some(u16::from_le(
            unsafe { word.as_ref() }.load(Ordering::Relaxed),
        ))
    }
}

/// The used elements of a split ring: a power of two of `{ id: u32, len: u32 }`.
#[derive(Debug)]
pub struct GuestUsed {
    start: NonNull<u8>,
    mask: u16,
    _table: Arc<MemoryTable>,
}

// SAFETY: the pointer stays mapped while the table is held, wherever the value moves. It is not
// `Sync`: elements are written by plain stores.
unsafe impl Send for GuestUsed {}

impl GuestUsed {
    /// The `size` elements at `at`, which the specification aligns to 4 bytes only.
    pub fn map(table: &Arc<MemoryTable>, at: Uva, size: u16) -> Result<Self, AreaError> {
        let align = if size.is_power_of_two() {
            4
        } else {
            usize::MAX
        };
        let start = area(table, at, u64::from(size) * 8, align)?;
        Ok(Self {
            start,
            mask: size.wrapping_sub(1),
            _table: Arc::clone(table),
        })
    }

    /// The elements from free-running index `first` on, at most `most` and not past the end of the
    /// ring.
    #[inline(always)]
    pub fn run(&self, first: u16, most: u16) -> GuestUsedRun<'_> {
        let skip = first & self.mask;
        GuestUsedRun {
            // SAFETY: masked by the size minus one (`map`), so inside the array.
            start: unsafe { self.start.add(usize::from(skip) * 8) },
            len: most.min((self.mask - skip).saturating_add(1)),
            ring: PhantomData,
        }
    }

    /// Writes the element at free-running `index`, as [`GuestUsedRun::set`].
    #[inline(always)]
    pub fn set(&self, index: u16, head: u16, len: u32) {
        self.run(index, 1).set(0, head, len);
    }
}

/// Used elements of a split ring that stand side by side, as a value that can stay in registers.
#[derive(Clone, Copy, Debug)]
pub struct GuestUsedRun<'r> {
    start: NonNull<u8>,
    len: u16,
    ring: PhantomData<&'r GuestUsed>,
}

impl GuestUsedRun<'_> {
    /// Number of elements.
    #[inline(always)]
    pub fn len(self) -> u16 {
        self.len
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Writes the `nth` element in one store, if it is in the run.
    #[inline(always)]
    pub fn set(self, nth: usize, head: u16, len: u32) {
        if nth >= usize::from(self.len) {
            return;
        }
        let element = u64::from(head) | u64::from(len) << 32;
        // SAFETY: `nth < len`, and `len` elements follow `start` (`GuestUsed::run`).
        let at = unsafe { self.start.add(nth * 8) };
        // SAFETY: mapped while the ring holds its table. Only we write used elements, from one thread
        // (a `GuestUsed` is not `Sync`); the driver reads one after the release store of the index
        // that covers it.
        unsafe { at.cast::<u64>().write_unaligned(element.to_le()) };
    }

    /// Asks to own the line of the `nth` element.
    #[inline(always)]
    pub fn prefetch(self, nth: usize) {
        let range = GuestRange {
            start: self.start,
            len: usize::from(self.len) * 8,
            table: PhantomData,
        };
        range.prefetch_for_write(nth * 8);
    }
}

/// One little-endian 16-bit word of a ring: an index, flags or an event index.
#[derive(Debug, Clone)]
pub struct GuestWord {
    word: NonNull<AtomicU16>,
    _table: Arc<MemoryTable>,
}

impl GuestWord {
    /// The word at `at`.
    pub fn map(table: &Arc<MemoryTable>, at: Uva) -> Result<Self, AreaError> {
        Ok(Self {
            word: area(table, at, 2, 2)?.cast(),
            _table: Arc::clone(table),
        })
    }

    /// Reads the word once.
    #[inline(always)]
    pub fn load(&self, order: Ordering) -> u16 {
        // SAFETY: mapped while `_table` is held, aligned (`map`), and an atomic.
        u16::from_le(unsafe { self.word.as_ref() }.load(order))
    }

    /// Writes the word.
    #[inline(always)]
    pub fn store(&self, value: u16, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe { self.word.as_ref() }.store(value.to_le(), order);
    }

    /// Asks to own the line of the word.
    #[inline(always)]
    pub fn prefetch_for_write(&self) {
        let range = GuestRange {
            start: self.word.cast(),
            len: 2,
            table: PhantomData,
        };
        range.prefetch_for_write(0);
    }

    /// Host address, for a CPU that waits on the word (`get_monitor_addr`).
    pub fn as_ptr(&self) -> *const u16 {
        self.word.as_ptr().cast_const().cast()
    }
}
