//! What a virtqueue notes in the dirty log while its guest is migrated.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::{Layout, Ring};
use crate::memory::{DirtyLog, DirtyPages, Gpa, MemoryTable};

/// What a burst wrote to the ring itself, in bytes from the start of the used ring (of a packed one:
/// of its descriptors). Notification suppression is not in the log: the next backend begins
/// it anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingWrites {
    /// Used entries; two ranges when they go past the end of the ring.
    pub entries: [Range<u32>; 2],
    /// What [`Ring::publish_used`] writes.
    pub last: [Range<u32>; 2],
}

/// Bytes of `count` entries of `size` bytes from entry `first` on, in a ring of `ring` entries that
/// begins at byte `start`.
pub(super) fn entries(
    (start, size, ring): (u32, u32, u16),
    first: u16,
    count: u16,
) -> [Range<u32>; 2] {
    let (first, count, ring) = (first.into(), u32::from(count), u32::from(ring));
    let at = |nth: u32| start + size * nth;
    let end = first + count;
    [
        at(first)..at(end.min(ring)),
        at(0)..at(end.saturating_sub(ring)),
    ]
}

/// The pages that a virtqueue wrote.
#[derive(Debug)]
pub struct QueueLog {
    /// Those of buffers.
    pub pages: DirtyPages,
    /// Where the ring's own writes are noted.
    ring: [Option<Gpa>; 2],
}

impl QueueLog {
    /// For a ring in `table`. `used` is where writes to the used ring are noted, if at all
    /// (`VHOST_VRING_F_LOG`).
    pub(super) fn new(
        log: Arc<DirtyLog>,
        table: &Arc<MemoryTable>,
        layout: &Layout,
        used: Option<Gpa>,
    ) -> Self {
        let mut pages = DirtyPages::new(log, Arc::clone(table));
        let own = match layout {
            Layout::Split(_) => None,
            // QEMU names the address of the device's event suppression here, as that stands where
            // a split ring has its used ring; what we write are the descriptors.
            Layout::Packed(ring) => pages.address(ring.descriptors()),
        };
        let own = own.filter(|own| used.is_some() && used != Some(*own));
        Self {
            pages,
            ring: [used, own],
        }
    }

    fn mark(&mut self, bytes: &Range<u32>) {
        for ring in self.ring.into_iter().flatten() {
            if let Some(at) = ring.0.checked_add(bytes.start.into()) {
                self.pages.mark_at(Gpa(at), bytes.len() as u64);
            }
        }
    }

    /// Makes all that was given back visible to the driver, as [`Ring::publish_used`], with all that
    /// the burst wrote in the log before.
    pub fn publish<R: Ring>(&mut self, ring: &mut R) -> bool {
        let writes = ring.writes();
        writes.entries.iter().for_each(|bytes| self.mark(bytes));
        self.pages.flush();
        if !ring.publish_used() {
            return false;
        }
        writes.last.iter().for_each(|bytes| self.mark(bytes));
        self.pages.flush();
        true
    }
}
