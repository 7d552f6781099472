//! The memory table: which guest address lies where in our address space.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

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
    /// A packed ring cannot begin there.
    #[error("base {base} is outside a ring of {size}")]
    Base {
        /// The index that the frontend sent.
        base: u16,
        /// Number of descriptors.
        size: u16,
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
    /// The region that a cursor looked for last: one of `regions`, which never change; or null.
    last: AtomicPtr<Region>,
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
        Ok(Self::sorted(regions))
    }

    /// This table and one more region; the others stay mapped where they are.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with(&self, region: Arc<Region>) -> Result<Self, TableError> {
        let count = self.regions.len() + 1;
        if count > Self::MAX_REGIONS {
            return Err(TableError::TooMany(count));
        }
        // The others were compared with each other before.
        if let Some(other) = self.regions.iter().find(|other| region.overlaps(other)) {
            let (new, old) = (region.config().gpa, other.config().gpa);
            return Err(TableError::Overlap(new, old));
        }
        let gpa = region.config().gpa;
        let nth = self.regions.partition_point(|r| r.config().gpa < gpa);
        let mut regions = self.regions.to_vec();
        regions.insert(nth, region);
        Ok(Self::sorted(regions))
    }

    /// This table without the region of the same addresses and size as `config`; `None` when there
    /// is none.
    pub fn without(&self, config: RegionConfig) -> Option<Self> {
        let place = |config: RegionConfig| (config.gpa, config.uva, config.size);
        let found = |region: &Arc<Region>| place(region.config()) == place(config);
        let nth = self.regions.iter().position(found)?;
        let mut regions = self.regions.to_vec();
        regions.remove(nth);
        Some(Self::sorted(regions))
    }

    fn sorted(regions: Vec<Arc<Region>>) -> Self {
        let first = regions.first().map_or(std::ptr::null(), Arc::as_ptr);
        Self {
            regions: regions.into(),
            last: AtomicPtr::new(first.cast_mut()),
        }
    }

    /// This table for one queue: where its buffers lie is remembered apart from where others do.
    #[must_use]
    pub fn for_a_queue(&self) -> Self {
        Self::sorted(self.regions.to_vec())
    }

    /// The regions, sorted by guest-physical address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Whether a region of this table and one of `other` map the same file.
    pub fn shares_a_file_with(&self, other: &Self) -> bool {
        let files: Vec<_> = other.regions.iter().map(|region| region.file()).collect();
        let mut ours = self.regions.iter().map(|region| region.file());
        ours.any(|file| file.is_some() && files.contains(&file))
    }

    /// The region that holds `at`.
    fn find(&self, at: Gpa) -> Option<&Arc<Region>> {
        let after = self.regions.partition_point(|r| r.config().gpa <= at);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let config = region.config();
        (at.0 - config.gpa.0 < config.size).then_some(region)
    }

    /// The same, and new cursors begin there from now on.
    pub(super) fn find_for_long(&self, at: Gpa) -> Option<&Region> {
        let region = self.find(at)?;
        self.last
            .store(Arc::as_ptr(region).cast_mut(), Ordering::Relaxed);
        Some(region)
    }

    /// The region to begin with: one of this table, or null when it has none.
    #[inline(always)]
    pub(super) fn last_found(&self) -> *const Region {
        self.last.load(Ordering::Relaxed)
    }

    /// Where frontend address `at` lies, and how many bytes its region has from there on.
    pub fn gpa(&self, at: Uva) -> Option<(Gpa, u64)> {
        self.regions.iter().find_map(|region| {
            let config = region.config();
            let skip = at.0.wrapping_sub(config.uva.0);
            (skip < config.size).then(|| (Gpa(config.gpa.0 + skip), config.size - skip))
        })
    }

    /// The frontend's address of `at`.
    pub fn uva(&self, at: Gpa) -> Option<Uva> {
        let config = self.find(at)?.config();
        Some(Uva(at.0 - config.gpa.0 + config.uva.0))
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering::Relaxed;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::memory::{GuestWord, MapError};

    const HUGE: u64 = 2 << 20;

    fn file(length: u64, flags: MemfdFlags) -> File {
        let file = memfd_create("memory", flags | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, length).unwrap();
        file.into()
    }

    fn config(gpa: u64, uva: u64, size: u64, offset: u64) -> RegionConfig {
        RegionConfig {
            gpa: Gpa(gpa),
            uva: Uva(uva),
            size,
            offset,
        }
    }

    fn region(gpa: u64, uva: u64, size: u64) -> Arc<Region> {
        let file = file(size, MemfdFlags::empty());
        Arc::new(Region::map(config(gpa, uva, size, 0), file).unwrap())
    }

    #[test]
    fn regions_may_touch_but_not_overlap() {
        let table = MemoryTable::new(vec![region(0x2000, 0x2000, 0x1000)]).unwrap();
        for (gpa, uva) in [(0x1000, 0x1000), (0x3000, 0x3000)] {
            table.with(region(gpa, uva, 0x1000)).unwrap();
        }
        for (gpa, uva) in [(0x1001, 0x8000), (0x2fff, 0x8000), (0x8000, 0x1001)] {
            let error = table.with(region(gpa, uva, 0x1000)).unwrap_err();
            assert!(matches!(error, TableError::Overlap(..)));
        }
    }

    #[test]
    fn a_region_is_removed_by_its_addresses_and_its_size() {
        let table = vec![region(0, 0, 0x1000), region(0x5000, 0x5000, 0x1000)];
        let table = MemoryTable::new(table).unwrap();
        assert!(table.without(config(0, 0, 0x800, 0)).is_none());
        assert!(table.without(config(0, 0x1000, 0x1000, 0)).is_none());
        let rest = table.without(config(0, 0, 0x1000, 0)).unwrap();
        assert_eq!(rest.regions()[0].config().gpa, Gpa(0x5000));
        assert_eq!(rest.regions().len(), 1);
    }

    #[test]
    fn a_range_is_cut_where_its_region_ends() {
        let table = vec![region(0x1000, 0x9000, 0x1000), region(0, 0x8000, 0x1000)];
        let table = MemoryTable::new(table).unwrap();
        let mut cursor = table.cursor();
        assert_eq!(cursor.piece(Gpa(0xff0), 0x20).unwrap().len(), 0x10);
        assert!(cursor.whole(Gpa(0xff0), 0x20).is_none());
        assert_eq!(cursor.piece(Gpa(0x1000), 0x20).unwrap().len(), 0x20);
        assert_eq!(cursor.piece(Gpa(0x1ff0), 0x20).unwrap().len(), 0x10);
        assert!(cursor.piece(Gpa(0x2000), 1).is_none());
        assert!(cursor.piece(Gpa(u64::MAX), 2).is_none());
        assert!(table.area(Uva(0x8ff0), 0x10).is_ok());
        assert!(table.area(Uva(0x8ff0), 0x11).is_err());
        assert!(table.area(Uva(0x9000), u64::MAX).is_err());
    }

    #[test]
    fn a_cursor_begins_where_the_one_before_had_to_look() {
        let table = vec![region(0, 0, 0x1000), region(0x5000, 0x5000, 0x1000)];
        let table = MemoryTable::new(table).unwrap();
        let (queue, other) = (table.for_a_queue(), table.for_a_queue());
        let begins = |queue: &MemoryTable| {
            let begins = |r: &&Arc<Region>| Arc::as_ptr(r) == queue.last_found();
            table.regions().iter().find(begins).unwrap().config().gpa
        };
        assert!(queue.cursor().whole(Gpa(0x5010), 16).is_some());
        assert_eq!(begins(&queue), Gpa(0x5000));
        assert_eq!(begins(&other), Gpa(0));
        assert!(queue.cursor().whole(Gpa(0x1000), 1).is_none());
        assert_eq!(begins(&queue), Gpa(0x5000));
        assert!(queue.cursor().whole(Gpa(0), 1).is_some());
        assert_eq!(begins(&queue), Gpa(0));
    }

    #[test]
    fn a_region_that_is_longer_than_its_file_is_refused() {
        for (length, offset) in [(0x1001, 0), (0x1000, 1), (1, 0x1000)] {
            let file = file(0x1000, MemfdFlags::empty());
            let error = Region::map(config(0, 0, length, offset), file).unwrap_err();
            assert!(matches!(error, MapError::PastEndOfFile { .. }), "{error}");
        }
    }

    #[test]
    fn extents_that_are_empty_or_overflow_are_refused() {
        for (gpa, uva, size, offset) in [
            (0, 0, 0, 0),
            (u64::MAX, 0, 2, 0),
            (0, u64::MAX, 2, 0),
            (0, 0, 2, u64::MAX),
        ] {
            let file = file(0x1000, MemfdFlags::empty());
            let error = Region::map(config(gpa, uva, size, offset), file).unwrap_err();
            assert!(matches!(error, MapError::Extent(_)), "{error}");
        }
    }

    /// Maps all of `file`, and the part of it from `offset` on at address `high`; what is written
    /// through the one must be seen through the other.
    fn two_views(file: &File, length: u64, offset: u64, high: u64) {
        let all = Region::map(config(0, 0, length, 0), file.try_clone().unwrap()).unwrap();
        let part = config(high, high, length - offset, offset);
        let part = Region::map(part, file.try_clone().unwrap()).unwrap();
        let table = Arc::new(MemoryTable::new(vec![Arc::new(all), Arc::new(part)]).unwrap());
        for at in [0, 0x100, length - offset - 2] {
            let seen = GuestWord::map(&table, Uva(high + at)).unwrap();
            let written = GuestWord::map(&table, Uva(offset + at)).unwrap();
            written.store(0x1234, Relaxed);
            assert_eq!(seen.load(Relaxed), 0x1234);
        }
    }

    #[test]
    fn an_offset_need_not_be_aligned() {
        let file = file(0x5000, MemfdFlags::empty());
        two_views(&file, 0x5000, 0x1110, 0x1000_0000);
    }

    #[test]
    fn an_offset_into_huge_pages_need_not_be_aligned() {
        let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let length = 2 * HUGE;
        let Ok(probe) = memfd_create("memory", huge) else {
            return;
        };
        // There may be no huge pages on this machine, or none left.
        let whole = config(0, 0, length, 0);
        if ftruncate(&probe, length).is_err() || Region::map(whole, probe.into()).is_err() {
            return;
        }
        let file = file(length, huge);
        two_views(&file, length, 0x1000, 0x1000_0000);
        two_views(&file, length, HUGE + 0x3000, 0x1000_0000);
    }

    /// Tells, when it is dropped, whether there is a mapping at this address still.
    struct Tenant(usize, std::sync::mpsc::Sender<bool>);

    impl Drop for Tenant {
        fn drop(&mut self) {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let mapped = maps
                .lines()
                .any(|line| line.starts_with(&format!("{:x}-", self.0)));
            self.1.send(mapped).unwrap();
        }
    }

    #[test]
    fn who_was_told_of_a_mapping_goes_before_it() {
        let region = region(0, 0, 0x40_0000);
        let (at, _) = region.mapping();
        let (sender, told) = std::sync::mpsc::channel();
        let admit = |name| {
            let sender = sender.clone();
            region.admit(name, || Box::new(Tenant(at.addr(), sender)));
        };
        for name in [1, 2, 1] {
            admit(name);
        }
        region.evict(|name| name == 1);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [true]);
        admit(1);
        drop(region);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [true, true]);
    }

    #[test]
    fn a_table_shares_files_with_one_of_other_regions() {
        let (one, other) = (region(0, 0, 0x1000), region(0x1000, 0x1000, 0x1000));
        let table = |regions: &[&Arc<Region>]| {
            MemoryTable::new(regions.iter().map(|&region| Arc::clone(region)).collect()).unwrap()
        };
        let (first, second, both) = (table(&[&one]), table(&[&other]), table(&[&one, &other]));
        assert!(first.shares_a_file_with(&both) && both.shares_a_file_with(&second));
        assert!(!first.shares_a_file_with(&second));
        assert!(!first.shares_a_file_with(&table(&[])));
    }

    #[test]
    fn a_region_knows_its_file() {
        let (one, other) = (
            file(0x1000, MemfdFlags::empty()),
            file(0x1000, MemfdFlags::empty()),
        );
        let config = config(0, 0, 0x1000, 0);
        let region = Region::map(config, one.try_clone().unwrap()).unwrap();
        assert!(region.is(config, &one));
        assert!(!region.is(config, &other));
        assert!(!region.is(RegionConfig { size: 8, ..config }, &one));
    }
}
