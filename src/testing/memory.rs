//! Guest memory as a guest has it: files that we map and the driver writes.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::LOG_PAGE;
use crate::memory::{Gpa, MemoryTable, Region, RegionConfig, Uva};

const PAGE: usize = LOG_PAGE as usize;

/// Guest-physical addresses of the region that holds the rings.
pub const RINGS: Range<u64> = 0x1000_0000..0x1010_07c0;
/// The region that holds buffers, unless a test says otherwise.
pub const BUFFERS: Range<u64> = 0x4000_0000..0x4100_0000;
/// The region that begins where [`BUFFERS`] ends, but is another mapping.
pub const NEXT: Range<u64> = 0x4100_0000..0x4140_07c0;
/// A region with no neighbour.
pub const APART: Range<u64> = 0x8000_0000..0x8040_0010;
/// An address that no region holds.
pub const UNMAPPED: u64 = 0xdead_0000_0000;

/// Where a region begins in its file. Not on a page: bytes before and after the region are mapped
/// with it, and nobody may touch them.
const OFFSET: u64 = 0x1340;
/// Bytes in the file after the region.
const TAIL: u64 = 0x1000;
const CANARY: u8 = 0xc5;

#[derive(Debug)]
struct Backing {
    file: File,
    config: RegionConfig,
}

impl Backing {
    fn new(nth: u64, range: &Range<u64>) -> Self {
        let config = RegionConfig {
            gpa: Gpa(range.start),
            // In another order than the guest-physical ones.
            uva: Uva(0x7f00_0000_0000 - nth * 0x10_0000_0000),
            size: range.end - range.start,
            offset: OFFSET,
        };
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(OFFSET + config.size + TAIL).unwrap();
        let canary = [CANARY; OFFSET as usize];
        file.write_all_at(&canary, 0).unwrap();
        file.write_all_at(&canary[..TAIL as usize], OFFSET + config.size)
            .unwrap();
        Self { file, config }
    }

    fn map(&self) -> Arc<Region> {
        Arc::new(Region::map(self.config, self.file.try_clone().unwrap()).unwrap())
    }

    /// The part of `len` bytes at `at` in this region: offset in the file, and length.
    fn part(&self, at: u64, len: usize) -> Option<(u64, usize)> {
        let skip = at.checked_sub(self.config.gpa.0)?;
        let left = self.config.size.checked_sub(skip)?;
        let left = usize::try_from(left).unwrap();
        (left > 0).then_some((OFFSET + skip, len.min(left)))
    }

    fn canary_is_whole(&self) -> bool {
        let mut before = [0; OFFSET as usize];
        self.file.read_exact_at(&mut before, 0).unwrap();
        let mut after = [0; TAIL as usize];
        self.file
            .read_exact_at(&mut after, OFFSET + self.config.size)
            .unwrap();
        before.iter().chain(&after).all(|&byte| byte == CANARY)
    }
}

/// The memory of a guest; a clone is the same memory, for another thread of the guest.
#[derive(Clone, Debug)]
pub struct FakeMemory {
    regions: Arc<[Backing]>,
}

/// What was in guest memory at some time.
#[derive(Debug)]
pub struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    /// The numbers of the pages that are not as in `before`, which is of the same ranges.
    pub fn changed_since(&self, before: &Self) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        for ((at, now), (_, then)) in self.0.iter().zip(&before.0) {
            let pages = now.chunks(PAGE).zip(then.chunks(PAGE));
            for (nth, (now, then)) in (at / LOG_PAGE..).zip(pages) {
                if now != then {
                    changed.insert(nth);
                }
            }
        }
        changed
    }
}

impl Default for FakeMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeMemory {
    /// The four regions, all zero.
    pub fn new() -> Self {
        let ranges = [NEXT, APART, RINGS, BUFFERS];
        Self {
            regions: (0..)
                .zip(&ranges)
                .map(|(n, r)| Backing::new(n, r))
                .collect(),
        }
    }

    /// Maps the regions as a backend does.
    pub fn table(&self) -> Arc<MemoryTable> {
        let regions = self.regions.iter().map(Backing::map).collect();
        Arc::new(MemoryTable::new(regions).unwrap())
    }

    /// The frontend's address of guest-physical `at`.
    pub fn uva(&self, at: u64) -> Uva {
        let config = self
            .regions
            .iter()
            .find(|region| region.part(at, 1).is_some())
            .unwrap()
            .config;
        Uva(at - config.gpa.0 + config.uva.0)
    }

    /// Calls `each` with file, offset and part of the `len` bytes at `at`, region by region.
    fn pieces(&self, at: u64, len: usize, mut each: impl FnMut(&File, u64, Range<usize>)) {
        let mut done = 0;
        while done < len {
            let from = at + done as u64;
            let (file, (offset, part)) = self
                .regions
                .iter()
                .find_map(|r| Some((&r.file, r.part(from, len - done)?)))
                .unwrap_or_else(|| panic!("the driver has no memory at {from:#x}"));
            each(file, offset, done..done + part);
            done += part;
        }
    }

    /// Writes `bytes` at guest-physical `at`, across regions where need be.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.pieces(at, bytes.len(), |file, offset, part| {
            file.write_all_at(&bytes[part], offset).unwrap();
        });
    }

    /// The `len` bytes at guest-physical `at`.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pieces(at, len, |file, offset, part| {
            file.read_exact_at(&mut bytes[part], offset).unwrap();
        });
        bytes
    }

    /// What is in `ranges`, each of whole pages but for its end.
    pub fn snapshot(&self, ranges: &[Range<u64>]) -> Snapshot {
        let read = |range: &Range<u64>| {
            let len = (range.end - range.start) as usize;
            (range.start, self.read(range.start, len))
        };
        Snapshot(ranges.iter().map(read).collect())
    }

    /// Whether all bytes that are mapped beside the regions are as they were.
    pub fn canaries_are_whole(&self) -> bool {
        self.regions.iter().all(Backing::canary_is_whole)
    }
}
