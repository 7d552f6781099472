//! The model of an I/OAT channel as a PCI device of QEMU: a server of the vfio-user protocol.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rte_net_vhost::dma::vfio::{Function, Registers};
use rte_net_vhost::testing::dma::{DeviceMemory, IoatModel};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

/// Bytes of BAR 0.
const REGISTERS: u64 = 0x4000;
const CONFIG: u64 = 0x1000;
const BAR_0: usize = 0x10;

/// What the guest's IOMMU lets the device reach.
#[derive(Clone, Default)]
pub(crate) struct GuestMemory {
    state: Arc<Mutex<Maps>>,
}

#[derive(Default)]
struct Maps {
    /// Whole files of guest memory, mapped once, by their identity.
    files: BTreeMap<(u64, u64), usize>,
    /// By the device's address: length, and where it is in our memory.
    ranges: BTreeMap<u64, (u64, usize)>,
    /// Ranges that were ever mapped.
    count: usize,
}

impl GuestMemory {
    fn with<T>(&self, work: impl FnOnce(&mut Maps) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ranges that were ever mapped.
    pub(crate) fn count(&self) -> usize {
        self.with(|maps| maps.count)
    }
}

impl Maps {
    fn file(&mut self, file: &File) -> io::Result<usize> {
        let about = file.metadata()?;
        let key = (about.dev(), about.ino());
        if let Some(&start) = self.files.get(&key) {
            return Ok(start);
        }
        let len = usize::try_from(about.len()).map_err(io::Error::other)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing. It stays
        // for as long as the process.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.expose_provenance();
        self.files.insert(key, start);
        Ok(start)
    }
}

impl DeviceMemory for GuestMemory {
    fn host(&self, iova: u64, len: usize) -> Option<usize> {
        self.with(|maps| {
            let (&start, &(size, host)) = maps.ranges.range(..=iova).next_back()?;
            let skip = iova - start;
            let left = size.checked_sub(skip)?;
            (len as u64 <= left).then(|| host + usize::try_from(skip).unwrap_or(usize::MAX))
        })
    }
}

struct Backend {
    model: IoatModel,
    memory: GuestMemory,
    /// What was written to BAR 0 in the configuration space.
    bar: u64,
}

impl Backend {
    fn config_read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        for (byte, at) in data.iter_mut().zip(at..) {
            let at = usize::try_from(at).map_err(io::Error::other)?;
            *byte = match at {
                BAR_0..0x18 => self.bar.to_le_bytes()[at - BAR_0],
                0x0b => 0x08, // a system peripheral
                0x0a => 0x80,
                0x06 => 0x10, // has capabilities
                _ if at < 0x200 => {
                    let at = u16::try_from(at).map_err(io::Error::other)?;
                    let mut one = [0];
                    self.model.config_read(at, &mut one)?;
                    one[0]
                }
                _ => 0,
            };
        }
        Ok(())
    }

    fn config_write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        let first = usize::try_from(at).map_err(io::Error::other)?;
        if (BAR_0..0x18).contains(&first) {
            let mut bytes = self.bar.to_le_bytes();
            for (to, byte) in bytes[first - BAR_0..].iter_mut().zip(data) {
                *to = *byte;
            }
            // Only the address can be written; it is 64 bits wide.
            self.bar = u64::from_le_bytes(bytes) & !(REGISTERS - 1) | 0x4;
            return Ok(());
        }
        // The command, and the registers of the capabilities.
        if first == 4 || (0x40..0x200).contains(&first) {
            let at = u16::try_from(at).map_err(io::Error::other)?;
            return self.model.config_write(at, data);
        }
        Ok(())
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            return self.config_read(offset, data);
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        match data.len() {
            1 => data.copy_from_slice(&self.model.read8(at).to_le_bytes()),
            2 => data.copy_from_slice(&self.model.read16(at).to_le_bytes()),
            4 => {
                // A 64-bit register may be read in halves.
                let whole = self.model.read64(at & !7).to_le_bytes();
                match at % 8 {
                    4 if matches!(at & !7, 0x88 | 0x90 | 0x98) => data.copy_from_slice(&whole[4..]),
                    _ => data.copy_from_slice(&self.model.read32(at).to_le_bytes()),
                }
            }
            8 => data.copy_from_slice(&self.model.read64(at).to_le_bytes()),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if region == VFIO_PCI_CONFIG_REGION_INDEX {
            return self.config_write(offset, data);
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        if let Ok(bytes) = data.try_into() {
            self.model.write8(at, u8::from_le_bytes(bytes));
        } else if let Ok(bytes) = data.try_into() {
            self.model.write16(at, u16::from_le_bytes(bytes));
        } else if let Ok(bytes) = data.try_into() {
            self.model.write32(at, u32::from_le_bytes(bytes));
        } else if let Ok(bytes) = data.try_into() {
            self.model.write64(at, u64::from_le_bytes(bytes));
        } else {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        // What is no file is no memory: a window of another device.
        let Some(file) = file else {
            return Ok(());
        };
        self.memory.with(|maps| {
            let start = maps.file(&file)?;
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            maps.ranges.insert(address, (size, start + offset));
            maps.count += 1;
            Ok(())
        })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.memory.with(|maps| {
            let all = flags.contains(DmaUnmapFlags::UNMAP_ALL);
            let inside = |start: u64| start >= address && start - address < size;
            maps.ranges.retain(|&start, _| !all && !inside(start));
        });
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Function::reset(&mut self.model);
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

/// Serves the model at a socket, until QEMU hangs up.
pub(crate) fn serve(
    path: &Path,
    model: IoatModel,
    memory: GuestMemory,
) -> Result<JoinHandle<()>, String> {
    let size_of_info = u32::try_from(size_of::<vfio_region_info>()).unwrap_or(0);
    let regions = (0..VFIO_PCI_NUM_REGIONS).map(|index| {
        let size = match index {
            0 => REGISTERS,
            VFIO_PCI_CONFIG_REGION_INDEX => CONFIG,
            _ => 0,
        };
        let flags = match size {
            0 => 0,
            _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
        };
        ServerRegion {
            region_info: vfio_region_info {
                argsz: size_of_info,
                index,
                size,
                flags,
                ..Default::default()
            },
            sparse_areas: Vec::new(),
            mmap_fd: None,
        }
    });
    let irqs = (0..VFIO_PCI_NUM_IRQS).map(|index| IrqInfo {
        index,
        count: 0,
        flags: 0,
    });
    let server = Server::new(path, true, irqs.collect(), regions.collect());
    let server = server.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut backend = Backend {
        model,
        memory,
        bar: 0x4,
    };
    Ok(thread::spawn(move || {
        // A device does not wait for a processor of a busy machine; without the right to say so, it
        // does.
        // SAFETY: changes the priority of the calling thread, and touches no memory.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        if let Err(error) = server.run(&mut backend) {
            eprintln!("the device's server: {error}");
        }
    }))
}
