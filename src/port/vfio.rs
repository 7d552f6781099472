//! The VFIO containers of the engines that we drive ourselves: EAL's, else one of our own.
//!
//! EAL's is the rule: its own memory is mapped there already, and stays so, and only guest memory is
//! mapped by us.

mod own;
mod physical;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::dma::vfio::pieces::Mapped;
use crate::dma::vfio::{Block, Container, Device, Piece, iommu_bits};
use crate::dpdk::{eal, malloc, memory, vfio};
use crate::log::PORT;

use physical::{PageMap, pieces};

/// EAL's container. One object for all engines: it counts who mapped what.
static EAL: LazyLock<Arc<EalContainer>> = LazyLock::new(Arc::default);

/// EAL's container, in which DPDK's drivers have their devices.
pub(super) fn of_eal() -> Arc<dyn Container> {
    Arc::clone(&*EAL) as Arc<dyn Container>
}

/// Bits of the addresses that this process may have.
const OUR_BITS: u32 = 47;

/// Opens a device in EAL's container; in one of our own when EAL has none, when it refuses, and when
/// guests would be out of the device's reach, since its IOMMU is too narrow for the addresses that
/// EAL uses.
///
/// # Errors
///
/// `NotFound`: it is not bound to VFIO. Anything else: both refused.
pub(super) fn open(bdf: &str) -> io::Result<Device> {
    let bits = iommu_bits(bdf).filter(|bits| *bits < OUR_BITS && vfio::addresses_are_ours());
    let refusal = match (vfio::is_enabled(), bits) {
        (false, _) => "it found no VFIO when it started".to_owned(),
        (true, Some(bits)) => format!("its addresses are too wide for an IOMMU of {bits} bits"),
        (true, None) => match Device::open(bdf, of_eal()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => error.to_string(),
            done => return done,
        },
    };
    let error = match own::open(bdf) {
        Ok(device) => {
            log::info!(
                target: PORT,
                "{bdf} is in a VFIO container of this driver's own, not in EAL's: {refusal}"
            );
            return Ok(device);
        }
        Err(error) => error,
    };
    // EAL may have its group already. Then the engine reaches what it can.
    if bits.is_some()
        && vfio::is_enabled()
        && let Ok(device) = Device::open(bdf, of_eal())
    {
        return Ok(device);
    }
    let both = format!("{error}; EAL's VFIO container: {refusal}");
    Err(io::Error::new(error.kind(), both))
}

/// EAL's container.
#[derive(Default)]
struct EalContainer {
    mapped: Mutex<Mapped>,
    losses: Arc<AtomicU64>,
}

impl EalContainer {
    /// Some of EAL's memory goes.
    fn lost_memory(&self) {
        self.losses.fetch_add(1, Ordering::Release);
    }
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn name(bdf: &str) -> io::Result<CString> {
    CString::new(bdf).map_err(io::Error::from)
}

/// Brings in pages that are not there yet: only then do they have an address. Kernels before 5.14
/// cannot.
fn bring_in(va: usize, len: usize) {
    let start = std::ptr::without_provenance_mut(va);
    // SAFETY: what is there is not changed, and of what is not mapped the kernel says so.
    unsafe { libc::madvise(start, len, libc::MADV_POPULATE_WRITE) };
}

fn unmap_all(pieces: &[Piece]) {
    for piece in pieces {
        let (va, len) = (piece.va as u64, piece.len as u64);
        if let Err(errno) = vfio::unmap(va, piece.iova, len) {
            let error = error(errno);
            log::error!(
                target: PORT,
                "VFIO: {len} bytes at {va:#x} cannot be taken from the devices: {error}"
            );
        }
    }
}

impl Container for EalContainer {
    fn open(&self, bdf: &str) -> io::Result<OwnedFd> {
        match vfio::open(&name(bdf)?) {
            Ok(Some(device)) => Ok(device),
            Ok(None) => {
                let kind = io::ErrorKind::NotFound;
                Err(io::Error::new(kind, "it is not bound to VFIO"))
            }
            Err(0) => Err(io::Error::other("it refuses, as its log says")),
            Err(errno) => Err(error(errno)),
        }
    }

    fn close(&self, bdf: &str, device: OwnedFd) -> bool {
        name(bdf).is_ok_and(|bdf| vfio::close(&bdf, device))
    }

    fn map(&self, va: usize, len: usize) -> io::Result<Vec<Piece>> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pieces) = mapped.again(va, len) {
            return Ok(pieces);
        }
        let pieces = match vfio::addresses_are_ours() {
            true => vec![Piece {
                va,
                len,
                iova: va as u64,
            }],
            false => {
                bring_in(va, len);
                let mut pages = PageMap::open()?;
                pieces(va, len, |va| pages.address(va))?
            }
        };
        for (done, piece) in pieces.iter().enumerate() {
            if let Err(errno) = vfio::map(piece.va as u64, piece.iova, piece.len as u64) {
                unmap_all(pieces.get(..done).unwrap_or_default());
                return Err(error(errno));
            }
        }
        mapped.insert(va, len, pieces.clone());
        Ok(pieces)
    }

    fn unmap(&self, va: usize, len: usize) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        unmap_all(&mapped.remove(va, len).unwrap_or_default());
    }

    fn known(&self, va: usize, len: usize) -> Option<Piece> {
        let first = memory::segment(va)?;
        let mut piece = Piece {
            va: first.va,
            len: first.len,
            iova: first.iova,
        };
        // A packet may lie across pages, if devices see them side by side, too.
        let end = va.checked_add(len)?;
        while piece.va.checked_add(piece.len)? < end {
            let next = memory::segment(piece.va + piece.len)?;
            if next.iova != piece.iova.checked_add(piece.len as u64)? {
                return None;
            }
            piece.len = piece.len.checked_add(next.len)?;
        }
        Some(piece)
    }

    fn losses(&self) -> Arc<AtomicU64> {
        // Without it addresses may go stale only where they are physical, and memory goes.
        if let Err(error) = own::watch() {
            log::warn!(target: PORT, "DPDK does not tell what memory goes: {error}");
        }
        Arc::clone(&self.losses)
    }

    fn allocate(&self, len: usize) -> io::Result<Block> {
        let memory = malloc::zeroed_array::<u64>(c"net_vhost dma", len / 8, eal::ANY_SOCKET);
        let memory = memory.ok_or_else(|| error(libc::ENOMEM))?;
        let va = memory.addr().get();
        match self.known(va, len).and_then(|piece| piece.address(va, len)) {
            // SAFETY: just allocated, zeroed, aligned to a cache line, and nobody else's.
            Some(at) => Ok(unsafe { Block::new(memory.cast(), len, at.0) }),
            None => {
                // SAFETY: allocated just above, and not used.
                unsafe { malloc::free(memory) };
                Err(error(libc::ENOMEM))
            }
        }
    }

    fn free(&self, block: Block) {
        // SAFETY: `allocate` took it from there, and no device uses it (contract of `free`).
        unsafe { malloc::free(block.into_start()) };
    }
}
