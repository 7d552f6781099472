//! What the frontend said about a vring, and the check that makes a virtqueue of it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringRwLock, VringT};
use vm_memory::GuestMemoryMmap;

use super::error::RequestError;
use super::features::{VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX};
use crate::memory::{
    Access, AreaError, Gpa, Iotlb, Iova, IovaRange, Lookaside, MemoryTable, Miss, PAGE_BITS,
    Questions, Uva,
};
use crate::virtqueue::{RingAreas, RingConfig, Virtqueue};

/// The most descriptors of a ring.
const MAX_SIZE: u16 = 32768;

/// The first descriptor, in the first turn of a packed ring (VIRTIO 1.2, 2.8.1).
const PACKED_START: u16 = 1 << 15;

/// Why no virtqueue comes out.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no memory yet.
    #[error("ring enabled but no memory table; is guest memory shared (share=on)?")]
    NoMemory,
    /// `SET_VRING_NUM` has not come.
    #[error("ring enabled but its size is not known")]
    NoSize,
    /// `SET_VRING_ADDR` has not come.
    #[error("ring enabled but its addresses are not known")]
    NoAddresses,
    /// An area is not usable.
    #[error("{0}")]
    Area(#[from] AreaError),
    /// What an address of an area means is not known yet.
    #[error("waits for the translation of {:#x}", .0.iova.0)]
    Miss(Miss),
    /// An area whose translations do not lie side by side.
    #[error("{len} bytes at I/O virtual {iova:#x} lie in pieces, or cannot be reached")]
    Scattered {
        /// First address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// What a vring behind an IOMMU needs beside its setup. The addresses of its areas are I/O virtual
/// ones then.
#[derive(Debug)]
pub struct Translated {
    /// All that is known.
    pub iotlb: Arc<Iotlb>,
    /// What the vring does with its buffers.
    pub need: Access,
    /// Where it asks for what is not known.
    pub questions: Arc<Questions>,
}

fn iovas(areas: RingAreas) -> [Iova; 3] {
    [areas.descriptors, areas.available, areas.used].map(|at| Iova(at.0))
}

impl Translated {
    /// Where the areas lie in the frontend's address space.
    fn areas(&self, config: &RingConfig, memory: &MemoryTable) -> Result<RingAreas, SetupError> {
        let mut found = [Uva(0); 3];
        let areas = iovas(config.areas).into_iter().zip(config.needs());
        for ((at, (len, need)), found) in areas.zip(&mut found) {
            *found = self.area(at, len, need, memory)?;
        }
        let [descriptors, available, used] = found;
        Ok(RingAreas {
            descriptors,
            available,
            used,
        })
    }

    fn area(
        &self,
        at: Iova,
        len: u64,
        need: Access,
        memory: &MemoryTable,
    ) -> Result<Uva, SetupError> {
        let scattered = SetupError::Scattered { iova: at.0, len };
        let Some(extent) = self.iotlb.extent(at, len, need) else {
            return Err(SetupError::Miss(Miss { iova: at, need }));
        };
        let skip = at.0.wrapping_sub(extent.iova.0);
        let there = extent.len.saturating_sub(skip);
        if there < len {
            let next = Iova(at.0.wrapping_add(there));
            return Err(match self.iotlb.knows(next, need) {
                true => scattered,
                false => SetupError::Miss(Miss { iova: next, need }),
            });
        }
        let gpa = Gpa(extent.gpa.0.wrapping_add(skip));
        memory.uva(gpa).ok_or(scattered)
    }

    /// Where writes to the used ring are logged, which the frontend told as an I/O virtual address.
    pub(super) fn log(&self, at: Gpa) -> Result<Gpa, SetupError> {
        let (iova, need) = (Iova(at.0), Access::BOTH);
        let extent = self.iotlb.extent(iova, 1, need);
        let extent = extent.ok_or(SetupError::Miss(Miss { iova, need }))?;
        let skip = iova.0.wrapping_sub(extent.iova.0);
        Ok(Gpa(extent.gpa.0.wrapping_add(skip)))
    }

    fn lookaside(&self, memory: &Arc<MemoryTable>) -> Lookaside {
        Lookaside::new(
            Arc::clone(memory),
            Arc::clone(&self.iotlb),
            self.need,
            Arc::clone(&self.questions),
        )
    }
}

/// Where the driver's kicks come from.
#[derive(Debug)]
enum Kick {
    /// `SET_VRING_KICK` has not come.
    Unknown,
    /// The frontend does not kick.
    None,
    File(Arc<File>),
}

/// A vring as the frontend set it up.
///
/// Next index and the enabled flag are in the state object of the `vhost-user-backend` crate, which
/// also checks the size of a split ring. Its addresses are guest-physical ones, while
/// `SET_VRING_ADDR` tells the frontend's own, so these are kept here.
pub struct VringSetup {
    state: VringRwLock<Arc<GuestMemoryMmap<()>>>,
    /// Beside the state's size, which cannot be that of every packed ring.
    size: Option<u16>,
    /// The state's next index is the frontend's or a stopped virtqueue's.
    based: bool,
    areas: Option<RingAreas>,
    /// Where writes to the used ring are logged, if at all.
    used_log: Option<Gpa>,
    kick: Kick,
    call: Option<Arc<File>>,
    call_known: bool,
}

impl VringSetup {
    /// A vring that the frontend has not mentioned yet.
    pub(super) fn new() -> io::Result<Self> {
        let state = VringRwLock::new(Arc::new(GuestMemoryMmap::new()), MAX_SIZE);
        Ok(Self {
            state: state.map_err(io::Error::other)?,
            size: None,
            based: false,
            areas: None,
            used_log: None,
            kick: Kick::Unknown,
            call: None,
            call_known: false,
        })
    }

    /// The number of descriptors; `None` before `SET_VRING_NUM`.
    pub(super) fn size(&self) -> Option<u16> {
        self.size
    }

    /// `SET_VRING_NUM`; whether the size is a possible one. A packed ring need not be a power of
    /// two long.
    pub(super) fn set_size(&mut self, size: u32, packed: bool) -> bool {
        let Ok(size) = u16::try_from(size) else {
            return false;
        };
        let accepted = if packed {
            (1..=MAX_SIZE).contains(&size)
        } else {
            let mut state = self.state.get_mut();
            state.get_queue_mut().try_set_size(size).is_ok()
        };
        if accepted {
            self.size = Some(size);
        }
        accepted
    }

    /// `SET_VRING_ADDR`. `used_log` is where writes to the used ring are logged, if at all; a bad
    /// address is as good as none.
    pub(super) fn set_areas(&mut self, areas: RingAreas, used_log: Option<Gpa>) {
        self.areas = Some(areas);
        self.used_log = used_log;
    }

    /// Where it lies; `None` while `SET_VRING_ADDR` has to come.
    pub(super) fn areas(&self) -> Option<RingAreas> {
        self.areas
    }

    /// Where writes to the used ring are logged.
    pub(super) fn used_log(&self) -> Option<Gpa> {
        self.used_log
    }

    /// Where the ring starts or goes on. A fresh packed ring begins with its wrap counter set.
    pub(super) fn base(&self, packed: bool) -> u16 {
        match self.based {
            false if packed => PACKED_START,
            _ => self.state.queue_next_avail(),
        }
    }

    /// `SET_VRING_BASE`, or what a stopped virtqueue told.
    pub(super) fn set_base(&mut self, base: u16) {
        self.state.set_queue_next_avail(base);
        self.based = true;
    }

    /// Whether the frontend wants the ring to run.
    pub(super) fn enabled(&self) -> bool {
        self.state.get_ref().is_enabled()
    }

    /// `SET_VRING_ENABLE`.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.state.set_enabled(enabled);
    }

    /// `SET_VRING_KICK`; without a file the driver does not kick.
    pub(super) fn set_kick(&mut self, kick: Option<File>) {
        self.kick = kick.map_or(Kick::None, |kick| Kick::File(Arc::new(kick)));
    }

    /// The kick eventfd.
    pub(super) fn kick(&self) -> Option<&Arc<File>> {
        match &self.kick {
            Kick::File(file) => Some(file),
            _ => None,
        }
    }

    /// `SET_VRING_CALL`; without a file the driver polls.
    pub(super) fn set_call(&mut self, call: Option<File>) {
        self.call = call.map(Arc::new);
        self.call_known = true;
    }

    /// Whether the frontend has said all that a ring needs to be tried.
    pub(super) fn complete(&self) -> bool {
        self.enabled() && self.call_known && !matches!(self.kick, Kick::Unknown)
    }

    /// Wakes both sides, so that neither sleeps over what happened while nobody served the ring.
    pub(super) fn wake(&self) {
        for eventfd in self.call.iter().chain(self.kick()) {
            let mut eventfd: &File = eventfd;
            // A counter at its end is a wake-up that was not seen yet; other failures have no
            // remedy.
            let _ = eventfd.write(&1_u64.to_ne_bytes());
        }
    }

    /// Forgets what `GET_VRING_BASE` makes stale: addresses, kick and call. The ring stays enabled,
    /// and keeps size and base.
    pub(super) fn forget(&mut self) {
        self.areas = None;
        self.kick = Kick::Unknown;
        self.call = None;
        self.call_known = false;
    }

    /// Back to the beginning, but for the call eventfd (`RESET_OWNER`).
    pub(super) fn reset(&mut self) {
        self.areas = None;
        self.kick = Kick::Unknown;
        self.size = None;
        self.set_base(0);
        self.based = false;
        self.set_enabled(false);
    }

    /// Checks what the frontend sent; the virtqueue that comes out can be polled.
    ///
    /// # Errors
    ///
    /// Something is missing, or an area is not inside one memory region.
    pub fn activate(
        &self,
        memory: Option<&Arc<MemoryTable>>,
        features: u64,
        translated: Option<&Translated>,
    ) -> Result<Virtqueue, SetupError> {
        let memory = memory.filter(|memory| !memory.regions().is_empty());
        let memory = memory.ok_or(SetupError::NoMemory)?;
        let mut config = self.config(features)?;
        if let Some(translated) = translated {
            config.areas = translated.areas(&config, memory)?;
        }
        let mut virtqueue = Virtqueue::map(config, memory, features, self.call.clone())?;
        if let Some(translated) = translated {
            virtqueue.lookaside = Some(Box::new(translated.lookaside(memory)));
        }
        Ok(virtqueue)
    }

    /// What is not known yet of where the areas lie behind an IOMMU, page by page.
    pub(super) fn unknown(&self, features: u64, translated: &Translated) -> Vec<Miss> {
        let Ok(config) = self.config(features) else {
            return Vec::new();
        };
        let areas = iovas(config.areas).into_iter().zip(config.needs());
        let pages = areas.flat_map(|(at, (len, need))| {
            let range = IovaRange::new(at, len);
            let pages = range.into_iter().flat_map(|range| range.pages(PAGE_BITS));
            let iova = move |page| Iova(at.0.max(page << PAGE_BITS));
            pages.map(move |page| Miss {
                iova: iova(page),
                need,
            })
        });
        let known = |miss: &Miss| translated.iotlb.knows(miss.iova, miss.need);
        let unknown = pages.filter(|miss| !known(miss)).collect::<Vec<_>>();
        // Two areas may share a page.
        let spared = |miss: &Miss| {
            let page = miss.iova.0 >> PAGE_BITS;
            let mut others = unknown.iter().filter(|other| other.need != miss.need);
            others.any(|other| other.iova.0 >> PAGE_BITS == page && other.need.covers(miss.need))
        };
        unknown
            .iter()
            .filter(|miss| !spared(miss))
            .copied()
            .collect()
    }

    fn config(&self, features: u64) -> Result<RingConfig, SetupError> {
        let packed = features & VIRTIO_F_RING_PACKED != 0;
        Ok(RingConfig {
            size: self.size().ok_or(SetupError::NoSize)?,
            areas: self.areas.ok_or(SetupError::NoAddresses)?,
            base: self.base(packed),
            packed,
            event_idx: features & VIRTIO_RING_F_EVENT_IDX != 0,
        })
    }

    /// Where the areas lie behind an IOMMU.
    pub(super) fn lies_in(&self, features: u64) -> Vec<IovaRange> {
        let Ok(config) = self.config(features) else {
            return Vec::new();
        };
        let needs = config.needs();
        let areas = iovas(config.areas).into_iter().zip(needs);
        // What is logged of the used ring has an address of its own.
        let [.., used] = needs;
        let log = self.used_log.map(|at| (Iova(at.0), used));
        areas
            .chain(log)
            .filter_map(|(at, (len, _))| IovaRange::new(at, len))
            .collect()
    }
}

/// The eventfd among `files`, made such that a write never waits; `None` when there is no file.
///
/// Anything else is refused: a pipe or a socket could block whoever writes to it, or raise a signal.
pub(super) fn eventfd(index: u16, file: Option<File>) -> Result<Option<File>, RequestError> {
    let Some(file) = file else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let found = std::fs::read_link(link)?;
    if found.as_os_str() != "anon_inode:[eventfd]" {
        let found = found.display().to_string();
        return Err(RequestError::NotAnEventfd { index, found });
    }
    let flags = fcntl_getfl(&file).map_err(io::Error::from)?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(Some(file))
}
