//! One PCI function: its registers, its configuration space, its reset.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vfio_bindings::bindings::vfio as uapi;

use super::{Container, ioctl, is_bdf};

/// The registers in BAR 0. Outside of them, and of a function that is gone, all bits read as ones.
pub trait Registers {
    /// Reads 8 bits.
    fn read8(&self, at: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, at: usize) -> u16;
    /// Reads 32 bits.
    fn read32(&self, at: usize) -> u32;
    /// Reads 64 bits.
    fn read64(&self, at: usize) -> u64;
    /// Writes 8 bits.
    fn write8(&self, at: usize, value: u8);
    /// Writes 16 bits.
    fn write16(&self, at: usize, value: u16);
    /// Writes 32 bits.
    fn write32(&self, at: usize, value: u32);
    /// Writes 64 bits.
    fn write64(&self, at: usize, value: u64);
}

/// A PCI function that is ours.
pub trait Function: Registers + Send {
    /// Reads its configuration space.
    ///
    /// # Errors
    ///
    /// The system's; also when the function was released.
    fn config_read(&self, at: u16, into: &mut [u8]) -> io::Result<()>;

    /// Writes its configuration space.
    ///
    /// # Errors
    ///
    /// The system's; also when the function was released.
    fn config_write(&self, at: u16, from: &[u8]) -> io::Result<()>;

    /// Resets the function; whether that was possible. It then writes no more.
    fn reset(&mut self) -> bool;

    /// Gives it back to the kernel, which takes its right to access memory; whether that is sure.
    fn release(&mut self) -> bool;
}

/// Lets a function read and write memory, and answer for its registers; turns relaxed ordering
/// off, under which a completion could be seen before the data.
///
/// # Errors
///
/// The configuration space cannot be read or written.
pub fn enable(function: &impl Function) -> io::Result<()> {
    const COMMAND: u16 = 0x04;
    const MEMORY_AND_BUS_MASTER: u16 = 0x6;
    const DEVICE_CONTROL: u16 = 8;
    const RELAXED_ORDERING: u16 = 1 << 4;

    let command = config_read16(function, COMMAND)?;
    let enabled = command | MEMORY_AND_BUS_MASTER;
    function.config_write(COMMAND, &enabled.to_le_bytes())?;
    if let Some(pcie) = express_capability(function)? {
        let at = pcie + DEVICE_CONTROL;
        let control = config_read16(function, at)? & !RELAXED_ORDERING;
        function.config_write(at, &control.to_le_bytes())?;
    }
    Ok(())
}

fn config_read16(function: &impl Function, at: u16) -> io::Result<u16> {
    let mut bytes = [0; 2];
    function.config_read(at, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// Where the PCI Express capability is. The list is the device's: it may be a loop.
fn express_capability(function: &impl Function) -> io::Result<Option<u16>> {
    const FIRST: u16 = 0x34;
    const EXPRESS: u8 = 0x10;
    const MOST: usize = 48;

    let mut byte = [0];
    function.config_read(FIRST, &mut byte)?;
    let [mut at] = byte;
    for _ in 0..MOST {
        at &= 0xfc;
        if at < 0x40 {
            break;
        }
        let [id, next] = config_read16(function, at.into())?.to_le_bytes();
        if id == EXPRESS {
            return Ok(Some(at.into()));
        }
        at = next;
    }
    Ok(None)
}

/// Who made a function, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciId {
    /// 0x8086 is Intel.
    pub vendor: u16,
    /// The vendor's number for it.
    pub device: u16,
}

/// Asks the kernel what is at `bdf`.
///
/// # Errors
///
/// `NotFound`: nothing.
pub fn pci_id(bdf: &str) -> io::Result<PciId> {
    if !is_bdf(bdf) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let number = |name: &str| -> io::Result<u16> {
        let text = fs::read_to_string(format!("/sys/bus/pci/devices/{bdf}/{name}"))?;
        let digits = text.trim().trim_start_matches("0x");
        u16::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
    };
    Ok(PciId {
        vendor: number("vendor")?,
        device: number("device")?,
    })
}

/// Bits of the addresses that the IOMMU of the function at `bdf` translates, as Intel's tell; `None`
/// when it does not say.
pub fn iommu_bits(bdf: &str) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{bdf}/iommu/intel-iommu/cap");
    let capabilities = is_bdf(bdf).then(|| fs::read_to_string(path).ok())??;
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).ok()?;
    // Maximum guest address width (VT-d, 11.4.2).
    u32::try_from(1 + (capabilities >> 16 & 0x3f)).ok()
}

/// A function that VFIO lends us.
pub struct Device {
    bdf: String,
    container: Arc<dyn Container>,
    /// Both `None` once it is released. The mapping refers to the file, so it goes first.
    registers: Option<Bar>,
    file: Option<File>,
    can_reset: bool,
    /// Whether it was certainly released.
    is_back: bool,
}

impl Device {
    /// Opens the function at `bdf` with its BAR 0.
    ///
    /// # Errors
    ///
    /// What [`Container::open`] says; BAR 0 cannot be mapped.
    pub fn open(bdf: &str, container: Arc<dyn Container>) -> io::Result<Self> {
        if !is_bdf(bdf) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = File::from(container.open(bdf)?);
        let mut device = Self {
            bdf: bdf.to_owned(),
            container,
            registers: None,
            can_reset: false,
            is_back: false,
            file: Some(file),
        };
        device.can_reset = match &device.file {
            Some(file) => ioctl::device_info(file)?.flags & uapi::VFIO_DEVICE_FLAGS_RESET != 0,
            None => false,
        };
        device.registers = Some(device.bar(0)?);
        Ok(device)
    }

    /// The container that it is in.
    pub fn container(&self) -> &Arc<dyn Container> {
        &self.container
    }

    /// Maps a whole BAR.
    fn bar(&self, index: u32) -> io::Result<Bar> {
        let region = self.region(index)?;
        self.bar_part(index, 0, region.size)
    }

    /// Maps part of a BAR. It must be dropped before the device is released.
    ///
    /// # Errors
    ///
    /// There is no such BAR, it is shorter, or it cannot be mapped.
    pub fn bar_part(&self, index: u32, at: u64, len: u64) -> io::Result<Bar> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let region = self.region(index)?;
        let end = at.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if end > region.size || len == 0 || region.flags & uapi::VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Bar::map(file, region.offset.saturating_add(at), len)
    }

    fn region(&self, index: u32) -> io::Result<uapi::vfio_region_info> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ioctl::region_info(file, index)
    }

    fn config(&self) -> io::Result<(&File, u64)> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // vfio-pci lays regions out at fixed offsets.
        Ok((file, u64::from(uapi::VFIO_PCI_CONFIG_REGION_INDEX) << 40))
    }
}

impl Function for Device {
    fn config_read(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        let (file, base) = self.config()?;
        file.read_exact_at(into, base + u64::from(at))
    }

    fn config_write(&self, at: u16, from: &[u8]) -> io::Result<()> {
        let (file, base) = self.config()?;
        file.write_all_at(from, base + u64::from(at))
    }

    fn reset(&mut self) -> bool {
        let file = self.file.as_ref().filter(|_| self.can_reset);
        file.is_some_and(|file| ioctl::device_reset(file).is_ok())
    }

    fn release(&mut self) -> bool {
        self.registers = None;
        if let Some(file) = self.file.take() {
            self.is_back = self.container.close(&self.bdf, OwnedFd::from(file));
        }
        self.is_back
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.release();
    }
}

macro_rules! registers_of_device {
    ($($read:ident $write:ident $type:ty),*) => {
        impl Registers for Device {
            $(
                #[inline]
                fn $read(&self, at: usize) -> $type {
                    let bar = self.registers.as_ref();
                    bar.and_then(|bar| bar.read(at)).unwrap_or(<$type>::MAX)
                }

                #[inline]
                fn $write(&self, at: usize, value: $type) {
                    if let Some(bar) = &self.registers {
                        bar.write(at, value);
                    }
                }
            )*
        }
    };
}
registers_of_device!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);

/// A register: an integer that the bus moves in one transaction.
pub trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// A mapped BAR.
#[derive(Debug)]
pub struct Bar {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the `Bar` and not to a thread.
unsafe impl Send for Bar {}

impl Bar {
    /// Maps `len` bytes at `offset` of a device file.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn map(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        Self::with_access(file, offset, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// The same for a file that may only be written.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn map_write_only(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        Self::with_access(file, offset, len, libc::PROT_WRITE)
    }

    fn with_access(file: &File, offset: u64, len: u64, access: i32) -> io::Result<Self> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(len).map_err(wrong)?;
        let offset = libc::off_t::try_from(offset).map_err(wrong)?;
        let (fd, kind) = (file.as_raw_fd(), libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// The word at `at`, if it is inside and aligned.
    fn pointer<T: Word>(&self, at: usize) -> Option<NonNull<T>> {
        let end = at.checked_add(size_of::<T>())?;
        if end > self.len || !at.is_multiple_of(size_of::<T>()) {
            return None;
        }
        // SAFETY: `at` is inside the mapping (checked).
        Some(unsafe { self.start.add(at) }.cast())
    }

    /// Reads a register.
    #[inline]
    pub fn read<T: Word>(&self, at: usize) -> Option<T> {
        // SAFETY: inside the mapping and aligned (`pointer`); a register has no other rules, and
        // volatile makes it one access.
        Some(unsafe { self.pointer(at)?.read_volatile() })
    }

    /// Writes a register; outside of the BAR there is none.
    #[inline]
    pub fn write<T: Word>(&self, at: usize, value: T) {
        if let Some(register) = self.pointer(at) {
            // SAFETY: as for `read`.
            unsafe { register.write_volatile(value) };
        }
    }

    /// A line of 64 bytes, for instructions that write one.
    pub fn line(&self, at: usize) -> Option<NonNull<u8>> {
        let end = at.checked_add(64)?;
        if end > self.len || !at.is_multiple_of(64) {
            return None;
        }
        // SAFETY: `at` is inside the mapping (checked).
        Some(unsafe { self.start.add(at) })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping of `with_access`, whole; pointers into it live no longer than `self`
        // by the contracts of those who ask for one.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
