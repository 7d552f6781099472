//! The only dereference of guest memory.
//!
//! A guest writes its memory while we read it, so nothing here makes a reference to it but to
//! atomics, and every word is read once into a local. Lengths are checked when a range or an array
//! is made; after that, use is safe.

mod arrays;

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::{Gpa, Iova, MemoryTable, Region};

pub use arrays::{
    GuestPacked, GuestPackedRun, GuestTable, GuestTableEntries, GuestU16s, GuestU16sRun, GuestUsed,
    GuestUsedRun, GuestWord,
};

/// Bytes of guest memory inside one mapping; the table it came from keeps it mapped.
#[derive(Clone, Copy, Debug)]
pub struct GuestRange<'m> {
    start: NonNull<u8>,
    len: usize,
    table: PhantomData<&'m MemoryTable>,
}

impl<'m> GuestRange<'m> {
    /// `len` bytes of `region`, `skip` bytes after its begin; `None` when they are not all inside.
    pub(super) fn of(region: &'m Region, skip: u64, len: u64) -> Option<Self> {
        let size = region.config().size;
        if skip > size || len > size - skip {
            return None;
        }
        let skip = usize::try_from(skip).ok()?;
        // SAFETY: `skip <= size`, and `host` is followed by `size` mapped bytes (`Region::map`).
        let start = unsafe { region.host().add(skip) };
        Some(Self {
            start,
            len: usize::try_from(len).ok()?,
            table: PhantomData,
        })
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The first byte; `len` bytes from here are mapped as long as the table lives, and may change
    /// under the reader.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The first `len` bytes, or all when there are fewer.
    #[inline(always)]
    #[must_use]
    pub fn first(self, len: usize) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }

    /// What follows the first `len` bytes; empty when there are no more.
    #[inline(always)]
    #[must_use]
    pub fn after(self, len: usize) -> Self {
        let len = len.min(self.len);
        Self {
            // SAFETY: `len` is at most the length of the range.
            start: unsafe { self.start.add(len) },
            len: self.len - len,
            table: PhantomData,
        }
    }

    /// The two words of entry `nth` of the table of descriptors that begins here, each read once; they
    /// need not be aligned. `None` when they are not all inside.
    #[inline(always)]
    pub fn descriptor_words(self, nth: usize) -> Option<[u64; 2]> {
        /// A number at any address.
        #[derive(Clone, Copy)]
        #[repr(C, packed)]
        struct Unaligned(u64);
        if nth >= self.len / Descriptor::SIZE {
            return None;
        }
        // SAFETY: entry `nth` and all before it are inside the range (above).
        let first = unsafe { self.start.add(nth * Descriptor::SIZE) };
        // SAFETY: as above.
        let second = unsafe { first.add(Descriptor::SIZE / 2) };
        // SAFETY: as above. Volatile: what is checked later must be what was read here, and the driver
        // may write at any time.
        let first = unsafe { first.cast::<Unaligned>().read_volatile() }.0;
        // SAFETY: as above.
        let second = unsafe { second.cast::<Unaligned>().read_volatile() }.0;
        Some([first, second])
    }

    /// Whether the range begins where a cache line does.
    #[inline(always)]
    pub fn begins_line(self) -> bool {
        self.start.addr().get().is_multiple_of(64)
    }

    /// The address `offset` bytes into the range, or that of its last byte when it ends before: the
    /// line behind a short packet is somebody else's.
    #[inline(always)]
    fn line(self, offset: usize) -> *mut u8 {
        let last = self.len.wrapping_sub(1);
        self.start.as_ptr().wrapping_add(offset.min(last))
    }

    /// Asks for the line `offset` bytes into the range, for reading; never faults.
    #[inline(always)]
    pub fn prefetch(self, offset: usize) {
        let line = self.line(offset);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch of any address is only a hint.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// [Asks to own](prefetch_for_write) the line `offset` bytes into the range, for writing.
    #[inline(always)]
    pub fn prefetch_for_write(self, offset: usize) {
        prefetch_for_write(self.line(offset));
    }
}

/// Asks to own the line of any address, for writing; never faults.
///
/// The intrinsic with the "exclusive" hint compiles to `prefetcht0`, which fetches the line
/// shared and makes each store wait for ownership; hence the instruction itself.
#[inline(always)]
pub fn prefetch_for_write(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is only a hint, and a no-op on CPUs without it.
    unsafe {
        std::arch::asm!("prefetchw [{0}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Where a range lies in our address space, for whoever keeps its table in another way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(NonNull<u8>);

// SAFETY: an address; `Place::range` asks for the table.
unsafe impl Send for Place {}
// SAFETY: as for `Send`.
unsafe impl Sync for Place {}

impl Place {
    /// A place that no range has.
    pub(super) const NOWHERE: Self = Self(NonNull::dangling());

    /// Where `range` begins.
    pub(super) fn of(range: GuestRange<'_>) -> Self {
        Self(range.start)
    }

    /// `len` bytes, `skip` bytes after this place.
    ///
    /// # Safety
    ///
    /// This is where a range of `table` begins that has at least `skip + len` bytes.
    #[inline(always)]
    pub(super) unsafe fn range(
        self,
        skip: usize,
        len: usize,
        _table: &MemoryTable,
    ) -> GuestRange<'_> {
        GuestRange {
            // SAFETY: inside that range (caller).
            start: unsafe { self.0.add(skip) },
            len,
            table: PhantomData,
        }
    }
}

/// Translates guest-physical addresses, remembering the last region in registers. It begins with the
/// region that the one before had to look for: a queue's buffers mostly lie in one, which need not be the
/// first.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'m> {
    table: &'m MemoryTable,
    window: Window,
}

/// Where one region lies. A value without a reference to it, so that it stays in registers.
#[derive(Clone, Copy, Debug)]
struct Window {
    gpa: u64,
    size: u64,
    /// At offsets below this, at least [`EASY`] bytes follow.
    easy: u64,
    /// `size` bytes are mapped from here on as long as the table lives.
    host: *mut u8,
}

/// More than a packet of one buffer, so that most are translated by one comparison.
const EASY: usize = 1 << 17;

impl Window {
    /// No address is in it.
    const NOTHING: Self = Self {
        gpa: 0,
        size: 0,
        easy: 0,
        host: std::ptr::null_mut(),
    };

    #[inline(always)]
    fn of(region: &Region) -> Self {
        let config = region.config();
        Self {
            gpa: config.gpa.0,
            size: config.size,
            easy: config.size.saturating_sub(EASY as u64),
            host: region.host().as_ptr(),
        }
    }

    #[cold]
    #[inline(never)]
    fn around(table: &MemoryTable, at: Gpa) -> Option<Self> {
        table.find_for_long(at).map(Self::of)
    }
}

impl<'m> Cursor<'m> {
    #[inline(always)]
    pub(super) fn new(table: &'m MemoryTable) -> Self {
        // SAFETY: null, or a region that the table holds and never changes (`MemoryTable::last`).
        let region = unsafe { table.last_found().as_ref() };
        let window = region.map(Window::of);
        Self {
            table,
            window: window.unwrap_or(Window::NOTHING),
        }
    }

    /// All `len` bytes at `at`; `None` when they are not mapped, or not in one region: then
    /// [`piece`](Self::piece) tells which.
    #[inline(always)]
    pub fn whole(&mut self, at: Gpa, len: usize) -> Option<GuestRange<'m>> {
        let skip = at.0.wrapping_sub(self.window.gpa);
        if skip < self.window.easy && len <= EASY {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "a region is mapped, so any offset in it fits an address"
            )]
            let skip = skip as usize;
            // SAFETY: `skip + EASY <= size`, and `host` is followed by `size` mapped bytes
            // (`Region::map`).
            let start = unsafe { self.window.host.add(skip) };
            return Some(GuestRange {
                // SAFETY: inside a mapping, so not null.
                start: unsafe { NonNull::new_unchecked(start) },
                len,
                table: PhantomData,
            });
        }
        let (start, left) = self.locate(at)?;
        (len <= left).then_some(GuestRange {
            start,
            len,
            table: PhantomData,
        })
    }

    /// The part of the `len` bytes at `at` that lies in one region: ask again for the rest. `None`
    /// when the first byte is not mapped.
    #[inline(always)]
    pub fn piece(&mut self, at: Gpa, len: usize) -> Option<GuestRange<'m>> {
        let (start, left) = self.locate(at)?;
        Some(GuestRange {
            start,
            len: len.min(left),
            table: PhantomData,
        })
    }

    /// Where `at` is mapped, and how many bytes follow there in its region; at least one.
    #[inline(always)]
    fn locate(&mut self, at: Gpa) -> Option<(NonNull<u8>, usize)> {
        if at.0.wrapping_sub(self.window.gpa) >= self.window.size {
            self.window = Window::around(self.table, at)?;
        }
        let skip = at.0.wrapping_sub(self.window.gpa);
        let left = self.window.size - skip;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a region is mapped, so its size and any offset in it fit an address"
        )]
        let (skip, left) = (skip as usize, left as usize);
        // SAFETY: `skip < size`, and `host` is followed by `size` mapped bytes (`Region::map`).
        let start = unsafe { self.window.host.add(skip) };
        // SAFETY: inside a mapping, so not null.
        Some((unsafe { NonNull::new_unchecked(start) }, left))
    }

    /// The two words at `at`, a descriptor, read once; they need not be aligned, and may cross from
    /// one region to the next.
    #[inline]
    pub(super) fn descriptor_words(&mut self, at: Gpa) -> Option<[u64; 2]> {
        match self.whole(at, Descriptor::SIZE) {
            Some(range) => range.descriptor_words(0),
            None => self.scattered_words(at),
        }
    }

    #[cold]
    fn scattered_words(&mut self, at: Gpa) -> Option<[u64; 2]> {
        words(|filled, wanted| {
            let from = Gpa(at.0.checked_add(filled as u64)?);
            self.piece(from, wanted)
        })
    }
}

/// The two words of a descriptor, out of the pieces that `find` gives: it is asked for what follows the
/// bytes so far, and how many are left. `None` when it has none.
pub(super) fn words<'m>(
    mut find: impl FnMut(usize, usize) -> Option<GuestRange<'m>>,
) -> Option<[u64; 2]> {
    let mut bytes = [0; Descriptor::SIZE];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..)?;
        let piece = find(filled, rest.len())?.first(rest.len());
        if piece.len == Descriptor::SIZE {
            return piece.descriptor_words(0);
        }
        for (nth, byte) in rest.iter_mut().take(piece.len).enumerate() {
            // SAFETY: `nth` is inside the piece.
            let at = unsafe { piece.start.add(nth) };
            // SAFETY: as above, so mapped. Volatile, as in `GuestRange::descriptor_words`.
            *byte = unsafe { at.read_volatile() };
        }
        filled += piece.len;
    }
    let (addr, rest) = bytes.split_at(8);
    let word = |half: &[u8]| half.try_into().map(u64::from_ne_bytes).ok();
    Some([word(addr)?, word(rest)?])
}

/// A descriptor as the driver wrote it, copied out (VIRTIO 1.2, 2.7.5 and 2.8.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the buffer lies.
    pub addr: Iova,
    /// Its length in bytes.
    pub len: u32,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor; the buffer id in a packed ring.
    pub next: u16,
}

impl Descriptor {
    /// Size in memory, in bytes.
    pub const SIZE: usize = 16;
    /// [`SIZE`](Self::SIZE) for arithmetic on lengths in descriptors.
    pub const SIZE_U32: u32 = 16;

    /// A descriptor of a packed ring, whose words have another order: id before flags.
    #[inline(always)]
    pub fn from_packed_words(words: [u64; 2]) -> Self {
        let swapped = Self::from_words(words);
        Self {
            flags: swapped.next,
            next: swapped.flags,
            ..swapped
        }
    }

    /// A descriptor from its two little-endian words.
    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "each field is the part of the word that the specification gives it"
    )]
    pub fn from_words([addr, rest]: [u64; 2]) -> Self {
        let rest = u64::from_le(rest);
        Self {
            addr: Iova(u64::from_le(addr)),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}
