//! Guest memory: mapped regions, the table that translates addresses, and the only types through
//! which the rest of the crate reaches bytes that a guest may change at any moment.
//!
//! A [`MemoryTable`] is immutable and shared by [`Arc`](std::sync::Arc): whoever can translate an
//! address also keeps the mapping alive. Nothing here takes a lock.

mod dirty_log;
mod iotlb;
mod lookaside;
mod region;
mod shared;
mod table;
mod translate;
mod uffd;

pub use dirty_log::{DirtyLog, DirtyPages};
pub use iotlb::{Access, Extent, Iotlb, IovaRange, Miss, PAGE_BITS};
pub use lookaside::{IotlbCursor, Lookaside, Questions, Translated};
pub use region::{MapError, Region, RegionConfig};
pub use shared::{
    Cursor, Descriptor, GuestPacked, GuestPackedRun, GuestRange, GuestTable, GuestTableEntries,
    GuestU16s, GuestU16sRun, GuestUsed, GuestUsedRun, GuestWord, prefetch_for_write,
};
pub use table::{AreaError, MemoryTable, TableError};
pub use translate::{Ahead, Fault, Lookups, Physical, Piece, Space, Translate};
pub use uffd::Userfault;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// An address as a driver writes it into a descriptor: guest-physical, or behind an IOMMU, if there
/// is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// An address in the frontend's own address space, as `SET_VRING_ADDR` and the memory table use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uva(pub u64);
