//! The addresses of devices: which their IOMMU has, and which are taken.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use vfio_bindings::bindings::vfio as uapi;

/// An address space of devices.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// What devices can use.
    usable: Vec<RangeInclusive<u64>>,
    /// First address of each range that is taken, and its last.
    taken: BTreeMap<u64, u64>,
}

/// Above this, addresses are ours to choose; below are windows that are not memory.
const FIRST_FREE: u64 = 4 << 30;

/// The largest pages of IOMMUs first: a device's address and ours differ by a multiple of what both
/// may be in.
const PAGES: [u64; 3] = [1 << 30, 1 << 21, 1 << 12];

impl Space {
    /// Devices can use what the kernel's answer to `VFIO_IOMMU_GET_INFO` tells; everything, when it
    /// does not say.
    pub(super) fn limit(&mut self, info: &[u8]) {
        self.usable = ranges(info).unwrap_or_else(|| vec![0..=u64::MAX]);
    }

    /// A device address for `len` bytes at `va`: the same if the IOMMU can, else the highest free
    /// one. DPDK's memory begins at 4 GB, where it usually finds its own addresses free, then.
    pub(super) fn place(&self, va: u64, len: u64) -> Option<u64> {
        let rest = len.checked_sub(1)?;
        let is_usable = |last| {
            self.usable
                .iter()
                .any(|r| r.contains(&va) && r.contains(&last))
        };
        if let Some(last) = va.checked_add(rest)
            && is_usable(last)
            && self.lowest_of(va, last).is_none()
        {
            return Some(va);
        }
        let page = PAGES.into_iter().find(|page| *page <= len).unwrap_or(1);
        let mut best = None;
        for range in &self.usable {
            best = best.max(self.highest(range, rest, va, page));
        }
        best
    }

    /// The highest free address in a range that has room for `rest` bytes behind it, and differs
    /// from `va` by a multiple of `page`.
    fn highest(&self, range: &RangeInclusive<u64>, rest: u64, va: u64, page: u64) -> Option<u64> {
        let floor = FIRST_FREE.max(*range.start());
        let mut last = *range.end();
        loop {
            let start = last.checked_sub(rest)?;
            let start = start.checked_sub(start.wrapping_sub(va) & (page - 1))?;
            if start < floor {
                return None;
            }
            match self.lowest_of(start, start + rest) {
                Some(first) => last = first.checked_sub(1)?,
                None => return Some(start),
            }
        }
    }

    /// Where the last of the taken ranges begins that have something of `first` to `last`.
    fn lowest_of(&self, first: u64, last: u64) -> Option<u64> {
        let (&start, &end) = self.taken.range(..=last).next_back()?;
        (end >= first).then_some(start)
    }

    /// Nobody else gets these any more.
    pub(super) fn take(&mut self, iova: u64, len: u64) {
        if let Some(last) = len.checked_sub(1).and_then(|rest| iova.checked_add(rest)) {
            self.taken.insert(iova, last);
        }
    }

    /// The range that begins there is free again.
    pub(super) fn give_back(&mut self, iova: u64) {
        self.taken.remove(&iova);
    }
}

/// Reads the IOVA ranges out of the kernel's answer: a chain of capabilities behind the struct.
fn ranges(info: &[u8]) -> Option<Vec<RangeInclusive<u64>>> {
    const CAP_OFFSET: usize = 16;
    const IDENTITY: usize = 0;
    const NEXT: usize = 4;
    const COUNT: usize = 8;
    const FIRST: usize = 16;
    // More than the kernel has kinds of capability, so that a loop ends.
    const MOST: usize = 64;

    let word = |at: usize| -> Option<u32> {
        let bytes = info.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let long = |at: usize| -> Option<u64> {
        let bytes = info.get(at..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    let mut at = usize::try_from(word(CAP_OFFSET)?).ok()?;
    for _ in 0..MOST {
        if at == 0 {
            return None;
        }
        // The lower half; the upper is a version.
        if word(at + IDENTITY)? & 0xffff == uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = usize::try_from(word(at + COUNT)?).ok()?;
            let start = at + FIRST;
            return (0..count)
                .map(|nth| Some(long(start + 16 * nth)?..=long(start + 16 * nth + 8)?))
                .collect();
        }
        at = usize::try_from(word(at + NEXT)?).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;
    const GB: u64 = 1 << 30;

    fn space(last: u64) -> Space {
        Space {
            // As kernels say: all but the window of interrupts.
            usable: vec![0..=0xfedf_ffff, 0xfef0_0000..=last],
            taken: BTreeMap::new(),
        }
    }

    fn narrow() -> Space {
        space((1 << 39) - 1)
    }

    #[test]
    fn addresses_stay_the_same_where_the_iommu_can() {
        let mut space = space((1 << 48) - 1);

        assert_eq!(space.place(0x7f00_0000_0000, MB), Some(0x7f00_0000_0000));

        // Nor does DPDK's memory move for what had to.
        let mut moved = narrow();
        let at = moved.place(0x7f00_0000_0000, GB).unwrap();
        moved.take(at, GB);
        assert_eq!(moved.place(0x1_0000_0000, GB), Some(0x1_0000_0000));

        space.take(0x7f00_0000_0000, MB);
        assert_ne!(space.place(0x7f00_0000_0000, MB), Some(0x7f00_0000_0000));
    }

    #[test]
    fn a_narrow_iommu_gets_the_highest_free_addresses_above_4_gb() {
        let mut space = narrow();
        let mut place_and_take = |va, len| {
            let iova = space.place(va, len)?;
            space.take(iova, len);
            Some(iova)
        };

        assert_eq!(
            place_and_take(0x7f00_0000_0000, 0x3000),
            Some((1 << 39) - 0x3000)
        );
        assert_eq!(
            place_and_take(0x7f10_0000_0000, 0x1000),
            Some((1 << 39) - 0x4000)
        );
        assert_eq!(place_and_take(0x7f20_0000_0000, 1 << 40), None);
        assert_eq!(place_and_take(0x7f20_0000_0000, (1 << 39) - 4 * GB), None);
        assert_eq!(place_and_take(0x7f20_0000_0000, 0), None);
    }

    #[test]
    fn large_pages_stay_large_pages() {
        let space = narrow();

        let pages = space.place(0x7f00_0060_0000, 6 * MB).unwrap();
        let huge = space.place(0x7f00_8060_0000, 3 * GB).unwrap();

        assert_eq!(pages % (2 * MB), 0);
        assert_eq!(huge % GB, 0x60_0000);
    }

    #[test]
    fn a_hole_that_was_given_back_is_used_again() {
        let mut space = narrow();
        let mut at = [0; 3];
        for at in &mut at {
            *at = space.place(0x7f00_0000_0000, 0x1000).unwrap();
            space.take(*at, 0x1000);
        }
        space.give_back(at[1]);

        assert_eq!(space.place(0x7f00_0000_0000, 0x2000), Some(at[2] - 0x2000));
        assert_eq!(space.place(0x7f00_0000_0000, 0x1000), Some(at[1]));
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let mut info = vec![0_u8; 128];
        let mut word = |at: usize, value: u32| {
            info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        word(16, 24); // first capability
        word(24, 3); // maps available
        word(28, 40);
        word(40, 1 | 1 << 16); // ranges, version 1
        word(48, 2);
        word(56, 0x1000);
        word(64, 0x1fff);
        word(72, 0x8000);
        word(80, 0xffff);

        assert_eq!(ranges(&info), Some(vec![0x1000..=0x1fff, 0x8000..=0xffff]));
    }

    #[test]
    fn an_answer_that_makes_no_sense_says_nothing_of_ranges() {
        let mut loops = vec![0_u8; 64];
        loops[16..20].copy_from_slice(&24_u32.to_ne_bytes());
        loops[24..28].copy_from_slice(&7_u32.to_ne_bytes());
        loops[28..32].copy_from_slice(&24_u32.to_ne_bytes());
        assert_eq!(ranges(&loops), None);

        let mut long = loops.clone();
        long[24..28].copy_from_slice(&1_u32.to_ne_bytes());
        long[32..36].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(ranges(&long), None);
        assert_eq!(ranges(&[]), None);
        let mut space = Space::default();
        assert_eq!(space.place(0x1000, 0x1000), None);
        space.limit(&long);
        assert_eq!(space.place(0x1000, 0x1000), Some(0x1000));
    }
}
