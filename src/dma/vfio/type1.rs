//! An address space of devices of our own: `/dev/vfio/vfio` with the type 1 IOMMU driver.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use vfio_bindings::bindings::vfio as uapi;

use super::pieces::Mapped;
use super::space::Space;
use super::{Block, Container, Piece, ioctl, is_bdf};

/// A container of our own, for when DPDK's cannot be had. The first device that is opened decides
/// which addresses there are; nothing can be mapped before.
///
/// Nothing in here waits for a lock of DPDK's: it is called with those of DPDK's memory held.
pub struct Type1 {
    file: File,
    state: Mutex<State>,
    /// What [`add`](Self::add) mapped, by our address. Read for copies of all engines; only changed
    /// with `state` locked.
    known: RwLock<BTreeMap<usize, Piece>>,
    losses: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    /// By number. A group can be opened only once.
    groups: BTreeMap<u32, File>,
    /// Open devices, and their groups.
    devices: BTreeMap<String, u32>,
    /// Empty until there is a device.
    space: Space,
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
            known: RwLock::default(),
            losses: Arc::default(),
        })
    }

    /// Maps memory that is there for all devices until [`remove`](Self::remove), or until the last of
    /// them is closed; what is mapped already stays as it is. Later it is known or unmapped by its
    /// whole ranges only.
    ///
    /// # Errors
    ///
    /// As for [`Container::map`].
    pub fn add(&self, va: usize, len: usize) -> io::Result<()> {
        let mut state = self.state();
        if self.known(va, len).is_some() {
            return Ok(());
        }
        let pieces = self.map_with(&mut state, va, len)?;
        let pieces = pieces.into_iter().map(|piece| (piece.va, piece));
        self.known_mut().extend(pieces);
        Ok(())
    }

    /// Takes from the devices what [`add`](Self::add) gave them, and has anything of `len` bytes at
    /// `va`. There may be nothing.
    pub fn remove(&self, va: usize, len: usize) {
        let mut state = self.state();
        let end = va.saturating_add(len);
        let mut gone = Vec::new();
        {
            let mut known = self.known_mut();
            while let Some((&start, &piece)) = known.range(..end).next_back()
                && start.saturating_add(piece.len) > va
            {
                known.remove(&start);
                gone.push(piece);
            }
        }
        self.losses.fetch_add(1, Ordering::Release);
        for piece in gone {
            self.unmap_with(&mut state, piece.va, piece.len);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the next call that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<usize, Piece>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, state: &mut State, number: u32) -> io::Result<()> {
        if state.groups.contains_key(&number) {
            return Ok(());
        }
        let group = open(&format!("/dev/vfio/{number}"))?;
        // Every device of the group must be bound to VFIO, or to nothing.
        if ioctl::group_status(&group)? & uapi::VFIO_GROUP_FLAGS_VIABLE == 0 {
            let why = format!("not every device of IOMMU group {number} is bound to VFIO");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        ioctl::group_set_container(&group, &self.file)?;
        if state.groups.is_empty() {
            ioctl::set_type1v2(&self.file)?;
        }
        // One more device may be able to use less.
        state.space.limit(&ioctl::iommu_info(&self.file)?);
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
            state.space = Space::default();
            self.known_mut().clear();
            self.losses.fetch_add(1, Ordering::Release);
        }
    }

    fn map_with(&self, state: &mut State, va: usize, len: usize) -> io::Result<Vec<Piece>> {
        if let Some(pieces) = state.mapped.again(va, len) {
            return Ok(pieces);
        }
        if state.groups.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let Some(iova) = state.space.place(va as u64, len as u64) else {
            return Err(io::Error::other("the IOMMU has no room for it"));
        };
        let piece = Piece { va, len, iova };
        ioctl::map_dma(&self.file, &piece).map_err(with_remedy)?;
        state.space.take(iova, len as u64);
        state.mapped.insert(va, len, vec![piece]);
        Ok(vec![piece])
    }

    fn unmap_with(&self, state: &mut State, va: usize, len: usize) {
        for piece in state.mapped.remove(va, len).unwrap_or_default() {
            let done = ioctl::unmap_dma(&self.file, &piece);
            if matches!(done, Ok(size) if size == piece.len as u64) {
                state.space.give_back(piece.iova);
            } else {
                log::error!(
                    target: crate::log::PORT,
                    "VFIO: {len} bytes at {va:#x} cannot be taken from the devices: {done:?}"
                );
            }
        }
    }
}

/// What the system means when it refuses a mapping.
fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOMEM) => "the limit of locked memory (ulimit -l), perhaps",
        Some(libc::ENOSPC) => "the limit of mappings (dma_entry_limit of vfio_iommu_type1)",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {remedy}"))
}

fn open(path: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// The number of the IOMMU group of a device, which must be bound to vfio-pci.
fn group_of(bdf: &str) -> io::Result<u32> {
    if !is_bdf(bdf) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let folder = format!("/sys/bus/pci/devices/{bdf}");
    let driver = fs::read_link(format!("{folder}/driver"));
    if !driver.is_ok_and(|driver| driver.ends_with("vfio-pci")) {
        let why = "it is not bound to vfio-pci";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
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

    fn close(&self, bdf: &str, device: OwnedFd) -> bool {
        let mut state = self.state();
        // In this order: a group stays busy while it has an open device.
        drop(device);
        state.devices.remove(bdf);
        self.leave(&mut state);
        true
    }

    fn map(&self, va: usize, len: usize) -> io::Result<Vec<Piece>> {
        self.map_with(&mut self.state(), va, len)
    }

    fn unmap(&self, va: usize, len: usize) {
        self.unmap_with(&mut self.state(), va, len);
    }

    fn known(&self, va: usize, len: usize) -> Option<Piece> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let (_, &first) = known.range(..=va).next_back()?;
        first.address(va, 1)?;
        let mut piece = first;
        // A packet may lie across ranges, if devices see them side by side, too.
        let end = va.checked_add(len)?;
        while piece.va.checked_add(piece.len)? < end {
            let next = known.get(&(piece.va + piece.len))?;
            if next.iova != piece.iova.checked_add(piece.len as u64)? {
                return None;
            }
            piece.len = piece.len.checked_add(next.len)?;
        }
        piece.address(va, len).map(|_| piece)
    }

    fn losses(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.losses)
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
