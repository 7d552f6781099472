//! A dirty log as a frontend has it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::memory::{DirtyLog, Gpa};

/// Bytes of guest memory for which there is one bit.
pub const LOG_PAGE: u64 = 4096;

/// Where writes to the used ring are to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRing {
    /// Nowhere.
    Nowhere,
    /// Where the ring lies; in a packed ring that is where the descriptors lie.
    AsItLies,
    /// At this guest-physical address.
    At(u64),
}

/// A log that covers all guest memory.
#[derive(Clone, Debug)]
pub struct FakeLog {
    file: Arc<File>,
    /// The frontend's own mapping of it.
    words: Arc<MmapRegion>,
    pages: u64,
}

impl FakeLog {
    /// A clean log for addresses below `end`.
    pub fn new(end: u64) -> Self {
        let pages = end.div_ceil(LOG_PAGE);
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        let bytes = pages.div_ceil(64) * 8;
        file.set_len(bytes).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let words = MmapRegion::from_file(mapped, bytes as usize).unwrap();
        Self {
            file: Arc::new(file),
            words: Arc::new(words),
            pages,
        }
    }

    /// Maps it as a backend does.
    pub fn map(&self) -> Arc<DirtyLog> {
        let file = self.file.try_clone().unwrap();
        let log = DirtyLog::map(file, self.pages.div_ceil(8), 0).unwrap();
        assert!(log.end() >= Gpa(self.pages * LOG_PAGE));
        Arc::new(log)
    }

    /// The numbers of all pages that are marked.
    pub fn marked(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.pages.div_ceil(8) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let in_byte = |(nth, byte): (u64, u8)| {
            let set = (0..8).filter(move |bit| byte & 1 << bit != 0);
            set.map(move |bit| 8 * nth + bit)
        };
        let bytes = (0..).zip(bytes).filter(|(_, byte)| *byte != 0);
        bytes.flat_map(in_byte).collect()
    }

    /// Whether a page is marked now.
    pub fn is_marked(&self, page: u64) -> bool {
        let word = self
            .words
            .get_atomic_ref::<AtomicU64>(page as usize / 64 * 8);
        word.unwrap().load(Ordering::Acquire) & 1 << (page % 64) != 0
    }

    /// Clears the log while the backend runs; the numbers of the pages that were marked.
    pub fn take(&self) -> Vec<u64> {
        let mut taken = Vec::new();
        for nth in 0..self.pages.div_ceil(64) {
            let word = self.words.get_atomic_ref::<AtomicU64>(nth as usize * 8);
            let word = word.unwrap();
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::SeqCst);
                let set = (0..64).filter(|bit| bits & 1 << bit != 0);
                taken.extend(set.map(|bit| 64 * nth + bit));
            }
        }
        taken
    }

    /// Clears the log.
    pub fn clear(&self) {
        let bytes = vec![0; self.pages.div_ceil(8) as usize];
        self.file.write_all_at(&bytes, 0).unwrap();
    }
}
