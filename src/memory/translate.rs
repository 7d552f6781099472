//! From the addresses that a driver writes into descriptors to bytes.
#![forbid(unsafe_code)]

use super::{Cursor, Descriptor, Gpa, GuestRange, Iova, MemoryTable};

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

/// Finds what the addresses in descriptors mean, for one direction of the ring.
pub trait Translate<'m> {
    /// All `len` bytes at `at`; `None` when they do not lie side by side, or are not there
    /// ([`piece`](Self::piece) tells).
    fn whole(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>>;

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
    /// Translates them during a burst.
    type Cursor<'m>: Translate<'m>;

    /// A cursor for the descriptors of a ring whose buffers lie in `memory`.
    fn cursor(memory: &MemoryTable) -> Self::Cursor<'_>;
}

/// Guest-physical addresses.
#[derive(Debug)]
pub enum Physical {}

impl Space for Physical {
    type Cursor<'m> = Cursor<'m>;

    #[inline(always)]
    fn cursor(memory: &MemoryTable) -> Cursor<'_> {
        memory.cursor()
    }
}
