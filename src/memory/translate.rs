//! From the addresses that a driver writes into descriptors to bytes.
#![forbid(unsafe_code)]

use super::{Cursor, Descriptor, Gpa, GuestRange, Iova, Lookaside, MemoryTable};

/// Why an address has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no memory, or a descriptor that makes no sense.
    Malformed,
    /// Nobody has said yet what is there; ask again later. Only behind an IOMMU.
    Miss,
}

/// The first bytes of a buffer, as far as they lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they lie.
    pub gpa: Gpa,
    /// How many there are; 0 only when no more were wanted.
    pub len: usize,
}

/// How far a ring was looked through, ahead of what is taken from it.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// The position behind the last slot that was looked at.
    pub until: Option<u16>,
    /// For so many more slots it is worth while.
    pub slots: u32,
    /// How many slots to look ahead.
    pub window: u16,
}

impl Ahead {
    /// The most slots to look ahead.
    pub const FAR: u16 = 256;
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            until: None,
            slots: 0,
            window: Self::FAR,
        }
    }
}

/// How often a burst looked for a translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// It was known.
    pub hits: u64,
    /// It was not.
    pub misses: u64,
}

/// Finds what the addresses in descriptors mean, for one direction of the ring.
pub trait Translate<'m> {
    /// All `len` bytes at `at`; `None` when they do not lie side by side, or are not there
    /// ([`piece`](Self::piece) tells).
    fn whole(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>>;

    /// As [`whole`](Self::whole), of what can be told at once: nothing is asked.
    fn known(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>>;

    /// The same for an indirect table.
    fn known_table(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>>;

    /// The part of the `len` bytes at `at` that lies side by side: ask again for the rest.
    ///
    /// # Errors
    ///
    /// The first byte is not there.
    fn piece(&mut self, at: Iova, len: usize) -> Result<Piece, Fault>;

    /// The two words at `at`, an entry of an indirect table, read once. The table need not be
    /// aligned, and may cross from one piece to the next.
    ///
    /// # Errors
    ///
    /// A byte is not there.
    fn descriptor_words(&mut self, at: Iova) -> Result<[u64; 2], Fault>;

    /// For what is already known to be guest-physical.
    fn memory(&mut self) -> &mut Cursor<'m>;

    /// How far the ring was looked through for what has to be asked; `None` when nothing ever has.
    #[inline(always)]
    fn ahead(&mut self) -> Option<&mut Ahead> {
        None
    }

    /// Whether this burst has asked for something that nobody asked for before.
    #[inline(always)]
    fn asked(&self) -> bool {
        false
    }

    /// Whether it is of use to ask more in this burst.
    #[inline(always)]
    fn may_ask(&self) -> bool {
        false
    }

    /// The descriptor at `at` in an indirect table.
    ///
    /// # Errors
    ///
    /// As for [`descriptor_words`](Self::descriptor_words).
    fn descriptor(&mut self, at: Iova) -> Result<Descriptor, Fault> {
        self.descriptor_words(at).map(Descriptor::from_words)
    }

    /// The same in a table of a packed ring.
    ///
    /// # Errors
    ///
    /// As for [`descriptor_words`](Self::descriptor_words).
    fn packed_descriptor(&mut self, at: Iova) -> Result<Descriptor, Fault> {
        self.descriptor_words(at).map(Descriptor::from_packed_words)
    }
}

/// Without an IOMMU: what the driver writes is guest-physical.
impl<'m> Translate<'m> for Cursor<'m> {
    #[inline(always)]
    fn whole(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        Cursor::whole(self, Gpa(at.0), len)
    }

    #[inline(always)]
    fn known(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        Cursor::whole(self, Gpa(at.0), len)
    }

    #[inline(always)]
    fn known_table(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        Cursor::whole(self, Gpa(at.0), len)
    }

    #[inline(always)]
    fn piece(&mut self, at: Iova, len: usize) -> Result<Piece, Fault> {
        let gpa = Gpa(at.0);
        match Cursor::piece(self, gpa, len) {
            Some(range) => Ok(Piece {
                gpa,
                len: range.len(),
            }),
            None => Err(Fault::Malformed),
        }
    }

    #[inline(always)]
    fn descriptor_words(&mut self, at: Iova) -> Result<[u64; 2], Fault> {
        Cursor::descriptor_words(self, Gpa(at.0)).ok_or(Fault::Malformed)
    }

    #[inline(always)]
    fn memory(&mut self) -> &mut Cursor<'m> {
        self
    }
}

/// What addresses in descriptors are, as a type: each has burst bodies of its own.
pub trait Space {
    /// Whether what is not known is asked for. Then a burst is a single [`hold`](Self::hold): a second
    /// one would miss what the first one has asked for, and look no further.
    const ASKS: bool;
    /// What a burst needs in order to translate them.
    type Held<'m>;
    /// Translates them.
    type Cursor<'h, 'm: 'h>: Translate<'m>;

    /// For a ring whose buffers lie in `memory`; `None` when it is another space's ring, by its
    /// `lookaside`.
    fn hold<'m>(
        memory: &'m MemoryTable,
        lookaside: &'m mut Option<Box<Lookaside>>,
    ) -> Option<Self::Held<'m>>;

    /// A cursor for a part of the burst. One that is made where it is used can stay in registers.
    fn cursor<'h, 'm: 'h>(held: &'h mut Self::Held<'m>) -> Self::Cursor<'h, 'm>;

    /// Ends the burst: the questions go out.
    fn release(held: Self::Held<'_>) -> Lookups;
}

/// In another function.
impl<'m, T: Translate<'m>> Translate<'m> for &mut T {
    #[inline(always)]
    fn whole(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        T::whole(self, at, len)
    }

    #[inline(always)]
    fn known(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        T::known(self, at, len)
    }

    #[inline(always)]
    fn known_table(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        T::known_table(self, at, len)
    }

    #[inline(always)]
    fn piece(&mut self, at: Iova, len: usize) -> Result<Piece, Fault> {
        T::piece(self, at, len)
    }

    #[inline(always)]
    fn descriptor_words(&mut self, at: Iova) -> Result<[u64; 2], Fault> {
        T::descriptor_words(self, at)
    }

    #[inline(always)]
    fn memory(&mut self) -> &mut Cursor<'m> {
        T::memory(self)
    }

    #[inline(always)]
    fn ahead(&mut self) -> Option<&mut Ahead> {
        T::ahead(self)
    }

    #[inline(always)]
    fn asked(&self) -> bool {
        T::asked(self)
    }

    #[inline(always)]
    fn may_ask(&self) -> bool {
        T::may_ask(self)
    }
}

/// Guest-physical addresses.
#[derive(Debug)]
pub enum Physical {}

impl Space for Physical {
    const ASKS: bool = false;
    type Held<'m> = &'m MemoryTable;
    type Cursor<'h, 'm: 'h> = Cursor<'m>;

    #[inline(always)]
    fn hold<'m>(
        memory: &'m MemoryTable,
        _lookaside: &'m mut Option<Box<Lookaside>>,
    ) -> Option<&'m MemoryTable> {
        Some(memory)
    }

    #[inline(always)]
    fn cursor<'h, 'm: 'h>(memory: &'h mut &'m MemoryTable) -> Cursor<'m> {
        memory.cursor()
    }

    #[inline(always)]
    fn release(_memory: &MemoryTable) -> Lookups {
        Lookups::default()
    }
}
