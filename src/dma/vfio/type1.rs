//! An address space of devices of our own: `/dev/vfio/vfio` with the type 1 IOMMU driver.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use vfio_bindings::bindings::vfio as uapi;

use super::pieces::Mapped;
use super::{Block, Container, Piece, ioctl, is_bdf};

/// A container of our own, for when DPDK's cannot be had. The first device that is opened decides
/// which addresses there are; nothing can be mapped before.
pub struct Type1 {
    file: File,
    state: Mutex<State>,
    /// What [`add`](Self::add) mapped. Read for copies of all engines.
    ours: RwLock<Vec<Piece>>,
}

#[derive(Default)]
struct State {
    /// By number. A group can be opened only once.
    groups: BTreeMap<u32, File>,
    /// Open devices, and their groups.
    devices: BTreeMap<String, u32>,
    /// What devices can use, once there is one.
    usable: Vec<RangeInclusive<u64>>,
    mapped: Mapped,
}

impl Type1 {
    /// A new container.
    ///
    /// # Errors
    ///
    /// There is no VFIO, or none with the type 1 driver.
    pub fn new() -> io::Result<Self> {
        let file = open("/dev/vfio/vfio")?;
        let version = ioctl::api_version(&file)?;
        if version.cast_unsigned() != uapi::VFIO_API_VERSION || !ioctl::has_type1v2(&file)? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            file,
            state: Mutex::default(),
            ours: RwLock::default(),
        })
    }

    /// Maps memory that stays for as long as there is a device, such as that of a packet pool.
    ///
    /// # Errors
    ///
    /// As for [`Container::map`].
    pub fn add(&self, va: usize, len: usize) -> io::Result<()> {
        let pieces = self.map(va, len)?;
        let mut ours = self.ours.write().unwrap_or_else(PoisonError::into_inner);
        ours.extend(pieces);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the next call that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, state: &mut State, number: u32) -> io::Result<()> {
        if state.groups.contains_key(&number) {
            return Ok(());
        }
        let group = open(&format!("/dev/vfio/{number}"))?;
        // Every device of the group must be bound to VFIO, or to nothing.
        if ioctl::group_status(&group)? & uapi::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        ioctl::group_set_container(&group, &self.file)?;
        if state.groups.is_empty() {
            ioctl::set_type1v2(&self.file)?;
            state.usable = usable(&ioctl::iommu_info(&self.file)?);
        }
        state.groups.insert(number, group);
        Ok(())
    }

    /// Closes groups without an open device.
    fn leave(&self, state: &mut State) {
        let State {
            groups, devices, ..
        } = state;
        groups.retain(|number, _| devices.values().any(|used| used == number));
        // With its last group a container loses the IOMMU driver, and all that was mapped.
        if groups.is_empty() {
            state.mapped.clear();
            state.usable.clear();
            let mut ours = self.ours.write().unwrap_or_else(PoisonError::into_inner);
            ours.clear();
        }
    }
}

fn open(path: &str) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// The number of the IOMMU group of a device, which must be bound to vfio-pci.
fn group_of(bdf: &str) -> io::Result<u32> {
    if !is_bdf(bdf) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let folder = format!("/sys/bus/pci/devices/{bdf}");
    let driver = fs::read_link(format!("{folder}/driver"))?;
    if !driver.ends_with("vfio-pci") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let group = fs::read_link(format!("{folder}/iommu_group"))?;
    let number = group.file_name().and_then(|name| name.to_str());
    let number = number.and_then(|name| name.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Container for Type1 {
    fn open(&self, bdf: &str) -> io::Result<OwnedFd> {
        let number = group_of(bdf)?;
        let mut state = self.state();
        if state.devices.contains_key(bdf) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.join(&mut state, number)?;
        let device = match state.groups.get(&number) {
            Some(group) => ioctl::group_device(group, bdf),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match &device {
            Ok(_) => drop(state.devices.insert(bdf.to_owned(), number)),
            Err(_) => self.leave(&mut state),
        }
        device
    }

    fn close(&self, bdf: &str, device: OwnedFd) {
        let mut state = self.state();
        // In this order: a group stays busy while it has an open device.
        drop(device);
        state.devices.remove(bdf);
        self.leave(&mut state);
    }

    fn map(&self, va: usize, len: usize) -> io::Result<Vec<Piece>> {
        let mut state = self.state();
        if let Some(pieces) = state.mapped.again(va, len) {
            return Ok(pieces);
        }
        let iova = place(va as u64, len as u64, &state.usable, &state.mapped);
        let iova = iova.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let piece = Piece { va, len, iova };
        ioctl::map_dma(&self.file, &piece)?;
        state.mapped.insert(va, len, vec![piece]);
        Ok(vec![piece])
    }

    fn unmap(&self, va: usize, len: usize) {
        let mut state = self.state();
        for piece in state.mapped.remove(va, len).unwrap_or_default() {
            let done = ioctl::unmap_dma(&self.file, &piece);
            if !matches!(done, Ok(size) if size == piece.len as u64) {
                log::error!(
                    target: crate::log::PORT,
                    "VFIO: {len} bytes at {va:#x} cannot be taken from the devices: {done:?}"
                );
            }
        }
    }

    fn known(&self, va: usize, len: usize) -> Option<Piece> {
        let ours = self.ours.read().unwrap_or_else(PoisonError::into_inner);
        let mut with = ours.iter().filter(|piece| piece.address(va, len).is_some());
        with.next().copied()
    }

    fn allocate(&self, len: usize) -> io::Result<Block> {
        let block = Block::pages(len)?;
        match self.map(block.va(), block.len()).as_deref() {
            Ok([piece]) => Ok(block.at(piece.iova)),
            refused => {
                let error = match refused {
                    Err(error) => io::Error::new(error.kind(), error.to_string()),
                    Ok(_) => io::ErrorKind::OutOfMemory.into(),
                };
                // SAFETY: it came from `pages`, just above.
                unsafe { block.unmap() };
                Err(error)
            }
        }
    }

    fn free(&self, block: Block) {
        self.unmap(block.va(), block.len());
        // SAFETY: `allocate` took it from `pages`.
        unsafe { block.unmap() };
    }
}

/// Above this, addresses are ours to choose; below are windows that are not memory.
const FIRST_FREE: u64 = 4 << 30;

/// A device address for `len` bytes at `va`: the same if the IOMMU can, else the lowest free one.
fn place(va: u64, len: u64, usable: &[RangeInclusive<u64>], mapped: &Mapped) -> Option<u64> {
    let fits = |start: u64| -> bool {
        let Some(last) = len.checked_sub(1).and_then(|rest| start.checked_add(rest)) else {
            return false;
        };
        let inside = |range: &RangeInclusive<u64>| range.contains(&start) && range.contains(&last);
        let free = |piece: &Piece| {
            let end = piece.iova.saturating_add(piece.len as u64);
            last < piece.iova || end <= start
        };
        usable.iter().any(inside) && mapped.pieces().all(free)
    };
    if fits(va) {
        return Some(va);
    }
    // The lowest free address begins a range, or follows a piece.
    let begins = usable.iter().map(|range| *range.start());
    let ends = mapped
        .pieces()
        .map(|piece| piece.iova.saturating_add(piece.len as u64));
    let places = begins.chain(ends).map(|start| start.max(FIRST_FREE));
    places.filter(|&start| fits(start)).min()
}

/// The ranges of addresses that devices can use; everything, when the kernel does not say.
fn usable(info: &[u8]) -> Vec<RangeInclusive<u64>> {
    ranges(info).unwrap_or_else(|| vec![0..=u64::MAX])
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

    /// What an IOMMU of 39 bits says.
    const NARROW: [RangeInclusive<u64>; 2] = [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff];

    #[test]
    fn addresses_stay_the_same_where_the_iommu_can() {
        let wide = [0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff];
        let mapped = Mapped::default();

        let at = place(0x7f00_0000_0000, 0x1000, &wide, &mapped);

        assert_eq!(at, Some(0x7f00_0000_0000));
    }

    #[test]
    fn a_narrow_iommu_gets_the_lowest_free_addresses_above_4_gb() {
        let mut mapped = Mapped::default();
        let mut place_and_map = |va: usize, len: usize| {
            let iova = place(va as u64, len as u64, &NARROW, &mapped)?;
            mapped.insert(va, len, vec![Piece { va, len, iova }]);
            Some(iova)
        };

        assert_eq!(place_and_map(0x7f00_0000_0000, 0x3000), Some(0x1_0000_0000));
        assert_eq!(place_and_map(0x7f10_0000_0000, 0x1000), Some(0x1_0000_3000));
        assert_eq!(place_and_map(0x7f20_0000_0000, 1 << 40), None);
    }

    #[test]
    fn a_hole_that_was_given_back_is_used_again() {
        let mut mapped = Mapped::default();
        for (va, iova) in [(0x10_0000, FIRST_FREE), (0x20_0000, FIRST_FREE + 0x2000)] {
            let len = 0x1000;
            mapped.insert(va, len, vec![Piece { va, len, iova }]);
        }

        let large = place(0x7f00_0000_0000, 0x2000, &NARROW, &mapped);
        let small = place(0x7f00_0000_0000, 0x1000, &NARROW, &mapped);

        assert_eq!(large, Some(FIRST_FREE + 0x3000));
        assert_eq!(small, Some(FIRST_FREE + 0x1000));
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
        assert_eq!(usable(&long), [0..=u64::MAX]);
        assert_eq!(ranges(&[]), None);
    }
}
