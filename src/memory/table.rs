//! The memory table: which guest address lies where in our address space.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{Cursor, Gpa, GuestRange, Region, RegionConfig, Uva};

/// Why a set of regions is no memory table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// Two regions share an address.
    #[error("regions at {0:x?} and {1:x?} overlap")]
    Overlap(Gpa, Gpa),
    /// More regions than [`MemoryTable::MAX_REGIONS`].
    #[error("{0} regions, at most {max}", max = MemoryTable::MAX_REGIONS)]
    TooMany(usize),
}

/// Why a ring area is not usable.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AreaError {
    /// Not, or not wholly, inside one region.
    #[error("{len} bytes at {at:x?} are not inside one memory region")]
    Unmapped {
        /// First address asked for.
        at: Uva,
        /// Length in bytes.
        len: u64,
    },
    /// Not aligned as the virtio specification asks.
    #[error("{at:x?} is not aligned to {align} bytes")]
    Unaligned {
        /// The address.
        at: Uva,
        /// The alignment wanted, in bytes.
        align: usize,
    },
}

/// All regions of a frontend, sorted by guest-physical address; immutable.
#[derive(Debug, Default)]
pub struct MemoryTable {
    regions: Box<[Arc<Region>]>,
}

impl MemoryTable {
    /// The most regions a table holds (`GET_MAX_MEM_SLOTS`).
    pub const MAX_REGIONS: usize = 509;

    /// A table of `regions`, in any order.
    ///
    /// # Errors
    ///
    /// Too many regions, or two that overlap.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, TableError> {
        if regions.len() > Self::MAX_REGIONS {
            return Err(TableError::TooMany(regions.len()));
        }
        // 509 regions are few enough to compare each with each.
        for (nth, a) in regions.iter().enumerate() {
            if let Some(b) = regions.iter().skip(nth + 1).find(|b| a.overlaps(b)) {
                return Err(TableError::Overlap(a.config().gpa, b.config().gpa));
            }
        }
        regions.sort_by_key(|region| region.config().gpa);
        Ok(Self {
            regions: regions.into(),
        })
    }

    /// This table and one more region; the others stay mapped where they are.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with(&self, region: Arc<Region>) -> Result<Self, TableError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        Self::new(regions)
    }

    /// This table without the region of the same addresses and size as `config`; `None` when there
    /// is none.
    pub fn without(&self, config: RegionConfig) -> Option<Self> {
        let place = |config: RegionConfig| (config.gpa, config.uva, config.size);
        let found = |region: &Arc<Region>| place(region.config()) == place(config);
        let nth = self.regions.iter().position(found)?;
        let mut regions = self.regions.to_vec();
        regions.remove(nth);
        Some(Self {
            regions: regions.into(),
        })
    }

    /// The regions, sorted by guest-physical address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The region that holds `at`.
    pub(super) fn find(&self, at: Gpa) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.config().gpa <= at);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let config = region.config();
        (at.0 - config.gpa.0 < config.size).then_some(region)
    }

    /// A cursor for translating many addresses; it remembers the region of the last one.
    #[inline(always)]
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor::new(self)
    }

    /// The `len` bytes at frontend address `at`, which must lie in one region.
    pub fn area(&self, at: Uva, len: u64) -> Result<GuestRange<'_>, AreaError> {
        let inside = |region: &&Arc<Region>| {
            let config = region.config();
            let skip = at.0.wrapping_sub(config.uva.0);
            skip < config.size && len <= config.size - skip
        };
        let unmapped = AreaError::Unmapped { at, len };
        let region = self.regions.iter().find(inside).ok_or(unmapped)?;
        let skip = at.0.wrapping_sub(region.config().uva.0);
        GuestRange::of(region, skip, len).ok_or(unmapped)
    }
}
