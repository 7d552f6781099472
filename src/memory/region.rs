//! One mapped piece of guest memory.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{AtomicInteger, FileOffset, MmapRegion, VolatileMemory, mmap::MmapRegionBuilder};

use super::uffd::{Registration, Userfault};
use super::{Gpa, Uva};

/// Where a region lies, as the frontend described it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionConfig {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// First address in the frontend's address space.
    pub uva: Uva,
    /// Length in bytes.
    pub size: u64,
    /// Where the region begins in its file, in bytes; need not be aligned.
    pub offset: u64,
}

/// Why a region could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A size of zero, or a size, offset or address that overflows.
    #[error("bad extent: {0:x?}")]
    Extent(RegionConfig),
    /// The file ends before the region does; touching the rest would raise SIGBUS.
    #[error("region ends at byte {end:#x} of a file of {length:#x} bytes")]
    PastEndOfFile {
        /// First byte after the region, as an offset in the file.
        end: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// The system refused.
    #[error("{0}")]
    System(#[from] io::Error),
    /// The mapping failed.
    #[error("mmap: {0}")]
    Mmap(#[from] vm_memory::mmap::MmapRegionError),
}

/// Somebody who was told where a mapping is, such as a copy engine: a number that names him, and what has
/// him forget it when it is dropped.
type Tenant = (usize, Box<dyn Any + Send>);

/// One region of guest memory, mapped shared for reading and writing; unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    config: RegionConfig,
    /// Host address of the region's first byte; inside `mapping`.
    host: NonNull<u8>,
    /// Where it lies in `mapping`, in bytes.
    lead: usize,
    /// Who else knows the mapping. They go before it does.
    tenants: Mutex<Vec<Tenant>>,
    /// Goes before the mapping does.
    _faults: Option<Registration>,
    mapping: MmapRegion,
}

// SAFETY: `host` points into `mapping`, which is `Send`, moves with it and is never reallocated.
// The other fields are `Send`, and `Sync`, too.
unsafe impl Send for Region {}
// SAFETY: a `Region` gives out its address only as `GuestRange`, which is shared memory by design.
unsafe impl Sync for Region {}

/// `f_type` of hugetlbfs (statfs(2)).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The size of an ordinary page.
fn base_page() -> u64 {
    // SAFETY: no preconditions.
    let base = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(base).unwrap_or(4096)
}

/// Device and inode of `file`.
fn identity(file: &File) -> Option<(u64, u64)> {
    let about = file.metadata().ok()?;
    Some((about.dev(), about.ino()))
}

/// The page size that a mapping of `file` needs at both ends.
fn page_size(file: &File, block_size: u64) -> io::Result<u64> {
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open while `file` lives; `about` has room for the answer.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, so it filled the whole struct.
    let about = unsafe { about.assume_init() };
    let base = base_page();
    // hugetlbfs reports its page size as the block size, and refuses to unmap part of a page.
    let huge = about.f_type == HUGETLBFS_MAGIC && block_size.is_power_of_two();
    Ok(if huge { block_size.max(base) } else { base })
}

impl Region {
    /// Maps `size` bytes at `offset` of `file`. The file stays open as long as the mapping.
    ///
    /// # Errors
    ///
    /// An extent that is empty or overflows, a file that is shorter than the region, or what
    /// mmap(2) says.
    pub fn map(config: RegionConfig, file: File) -> Result<Self, MapError> {
        Self::map_with(config, file, None)
    }

    /// As [`map`](Self::map), for a guest whose memory is still on its way: whoever touches a page
    /// that has not come waits for it.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map), and when the range cannot be registered.
    pub fn map_awaited(
        config: RegionConfig,
        file: File,
        userfault: &Arc<Userfault>,
    ) -> Result<Self, MapError> {
        Self::map_with(config, file, Some(userfault))
    }

    fn map_with(
        config: RegionConfig,
        file: File,
        userfault: Option<&Arc<Userfault>>,
    ) -> Result<Self, MapError> {
        let bad = || MapError::Extent(config);
        let end = config.offset.checked_add(config.size).ok_or_else(bad)?;
        let fits = config.size != 0
            && config.gpa.0.checked_add(config.size).is_some()
            && config.uva.0.checked_add(config.size).is_some();
        if !fits {
            return Err(bad());
        }
        let about = file.metadata()?;
        if about.is_file() && about.len() < end {
            return Err(MapError::PastEndOfFile {
                end,
                length: about.len(),
            });
        }
        let page = page_size(&file, about.blksize())?;
        // Only whole pages can be mapped: begin at the page of the first byte.
        let start = config.offset & !(page - 1);
        let lead = usize::try_from(config.offset - start).map_err(|_| bad())?;
        let length = (end - start).checked_add(page - 1).ok_or_else(bad)? & !(page - 1);
        // On other file systems the tail of the last page need not be backed by the file.
        let length = if about.is_file() && start.saturating_add(length) > about.len() {
            end - start
        } else {
            length
        };
        let length = usize::try_from(length).map_err(|_| bad())?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // An application that has locked its memory (testpmd does) gets all pages of a new mapping
        // at once, zero, and those that are still to come would find no place. Not of one that
        // nobody may touch.
        let first_access = match userfault {
            Some(_) => libc::PROT_NONE,
            None => access,
        };
        // Not MAP_NORESERVE: on hugetlbfs a lack of pages must show here, not as SIGBUS in a burst.
        let mapping = MmapRegionBuilder::new(length)
            .with_file_offset(FileOffset::new(file, start))
            .with_mmap_prot(first_access)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()?;
        // SAFETY: `lead < length`, since the region is not empty and ends inside the mapping.
        let host = unsafe { mapping.as_ptr().add(lead) };
        let host = NonNull::new(host).ok_or_else(bad)?;
        // Guest memory has no place in a core dump; a kernel that refuses changes nothing else.
        // SAFETY: the range is exactly the mapping that was just made.
        unsafe { libc::madvise(mapping.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        let faults = match userfault {
            Some(userfault) => {
                let pages = length.next_multiple_of(base_page().try_into().map_err(|_| bad())?);
                let faults = userfault.register(mapping.as_ptr().addr(), pages)?;
                // SAFETY: the range is exactly the mapping that was just made.
                if unsafe { libc::mprotect(mapping.as_ptr().cast(), pages, access) } != 0 {
                    return Err(io::Error::last_os_error().into());
                }
                Some(faults)
            }
            None => None,
        };
        Ok(Self {
            config,
            host,
            lead,
            tenants: Mutex::default(),
            _faults: faults,
            mapping,
        })
    }

    /// Where the region lies.
    pub fn config(&self) -> RegionConfig {
        self.config
    }

    /// Whether this maps `config` of the very file behind `file`.
    pub fn is(&self, config: RegionConfig, file: &File) -> bool {
        let mapped = self.file();
        self.config == config && mapped.is_some() && mapped == identity(file)
    }

    /// Which file it maps.
    pub(super) fn file(&self) -> Option<(u64, u64)> {
        identity(self.mapping.file_offset()?.file())
    }

    /// Where the region begins in our address space, as a frontend needs to know it in order to
    /// recognise our page faults.
    pub fn base(&self) -> u64 {
        self.host.addr().get() as u64
    }

    /// Host address of the first byte.
    pub(super) fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// The number `skip` bytes into the region, for use beside a peer; `None` when it is not wholly
    /// inside, or not aligned.
    #[inline]
    pub(super) fn atomic<T: AtomicInteger>(&self, skip: usize) -> Option<&T> {
        let end = skip.checked_add(size_of::<T>())?;
        if end as u64 > self.config.size {
            return None;
        }
        self.mapping
            .get_atomic_ref(self.lead.checked_add(skip)?)
            .ok()
    }

    /// Whether `self` and `other` share a guest-physical or a frontend-virtual address.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let apart = |a: u64, a_len: u64, b: u64, b_len: u64| {
            a.wrapping_sub(b) >= b_len && b.wrapping_sub(a) >= a_len
        };
        let (a, b) = (self.config, other.config);
        !apart(a.gpa.0, a.size, b.gpa.0, b.size) || !apart(a.uva.0, a.size, b.uva.0, b.size)
    }

    /// Begin and length of the mapping, in which the region lies: whole pages.
    pub fn mapping(&self) -> (*const u8, usize) {
        (self.mapping.as_ptr().cast_const(), self.mapping.size())
    }

    /// Has `admit` tell `name` of the mapping, unless that was done. What it returns is dropped before the
    /// mapping goes.
    pub fn admit(&self, name: usize, admit: impl FnOnce() -> Box<dyn Any + Send>) {
        let mut tenants = self.tenants();
        if !tenants.iter().any(|(known, _)| *known == name) {
            tenants.push((name, admit()));
        }
    }

    /// Drops it now, for all names for which `which` holds.
    pub fn evict(&self, which: impl Fn(usize) -> bool) {
        self.tenants().retain(|(name, _)| !which(*name));
    }

    fn tenants(&self) -> MutexGuard<'_, Vec<Tenant>> {
        // After a panic in `admit` there is one entry less.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of the mapping in bytes, whole pages.
    pub fn mapped_bytes(&self) -> usize {
        self.mapping.size()
    }
}
