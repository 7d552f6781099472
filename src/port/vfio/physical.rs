//! Where guest memory is, for devices that are given physical addresses.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::dma::vfio::Piece;

/// The size of the pages that are looked up.
const PAGE: usize = 4096;

/// The kernel's table of our pages, read in long parts: a guest has millions of them.
pub(super) struct PageMap {
    file: File,
    /// The page of the first entry that was read.
    first: usize,
    entries: Vec<u8>,
}

/// Bytes of an entry.
const ENTRY: usize = 8;
/// Entries that are read together.
const PART: usize = 8192;
/// The page is there.
const PRESENT: u64 = 1 << 63;
/// Its frame's number; 0 for those who may not know.
const FRAME: u64 = (1 << 55) - 1;

impl PageMap {
    /// The table of this process.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self::of(File::open("/proc/self/pagemap")?))
    }

    fn of(file: File) -> Self {
        Self {
            file,
            first: 0,
            entries: Vec::new(),
        }
    }

    /// The physical address of the page at `va`; `None` when it has none, or we may not know.
    pub(super) fn address(&mut self, va: usize) -> Option<u64> {
        let page = va / PAGE;
        let entry = match self.entry(page) {
            Some(entry) => entry,
            None => {
                self.read(page);
                self.entry(page)?
            }
        };
        let frame = entry & FRAME;
        (entry & PRESENT != 0 && frame != 0).then_some(frame * PAGE as u64)
    }

    fn entry(&self, page: usize) -> Option<u64> {
        let at = page.checked_sub(self.first)?.checked_mul(ENTRY)?;
        let entry = self.entries.get(at..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*entry))
    }

    fn read(&mut self, page: usize) {
        self.first = page;
        self.entries.resize(PART * ENTRY, 0);
        let from = self.file.read_at(&mut self.entries, (page * ENTRY) as u64);
        self.entries.truncate(from.unwrap_or(0));
    }
}

/// The pieces, for devices, of `len` bytes at `va`, where each page's address is what `address` says.
///
/// # Errors
///
/// A page has none.
pub(super) fn pieces(
    va: usize,
    len: usize,
    mut address: impl FnMut(usize) -> Option<u64>,
) -> io::Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for at in (va..va.saturating_add(len)).step_by(PAGE) {
        let page = address(at).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        match pieces.last_mut() {
            Some(last) if last.iova.checked_add(last.len as u64) == Some(page) => last.len += PAGE,
            _ => pieces.push(Piece {
                va: at,
                len: PAGE,
                iova: page,
            }),
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_side_by_side_for_devices_are_one_piece() {
        let iova = |va: usize| {
            Some(match va {
                0x1000..0x3000 => va as u64 + 0x10_0000,
                0x3000 => 0x8000,
                _ => 0x9000,
            })
        };

        let found = pieces(0x1000, 0x4000, iova).unwrap();

        let piece = |va, len, iova| Piece { va, len, iova };
        let expected = [
            piece(0x1000, 0x2000, 0x10_1000),
            piece(0x3000, 0x2000, 0x8000),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn memory_with_a_page_that_nobody_knows_is_not_mapped() {
        let found = pieces(0x1000, 0x4000, |va| (va < 0x3000).then_some(va as u64));
        assert_eq!(found.err().unwrap().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn a_page_has_an_address_when_it_is_there_and_we_may_know() {
        let file = rustix::fs::memfd_create("pagemap", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        let last = 3 * PART;
        let entries = [
            (1, PRESENT | 0x1234),
            (2, PRESENT),
            (3, 0x1234),
            (last, PRESENT | 1 << 61 | 7),
        ];
        for (page, entry) in entries {
            file.write_all_at(&u64::to_ne_bytes(entry), (page * ENTRY) as u64)
                .unwrap();
        }
        let mut map = PageMap::of(file);

        assert_eq!(map.address(PAGE), Some(0x123_4000));
        assert_eq!(map.address(2 * PAGE), None);
        assert_eq!(map.address(3 * PAGE), None);
        assert_eq!(map.address(last * PAGE), Some(0x7000));
        assert_eq!(map.address((last + 1) * PAGE), None);
        assert_eq!(map.address(PAGE), Some(0x123_4000));
    }
}
