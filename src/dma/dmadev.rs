//! Any dmadev of DPDK's.
//!
//! Its library is not linked: whoever has a dmadev has loaded it, so its functions are looked up by
//! name. The calls of the data path are inline in C, over an array of function pointers whose
//! elements begin alike in all lines of DPDK; their size differs.

mod library;
mod setup;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use super::channel::OpenError;
use super::vfio::{Container, Reach};
use library::{FastPath, Library, STRIDE};

use super::{Addr, Engine, Halted, Health, Outcome, PATIENCE, THREAD_PATIENCE, Tag, Transfer};

/// Capability: memory to memory.
const MEM_TO_MEM: u64 = 1 << 0;
/// Capability: takes virtual addresses.
const SVA: u64 = 1 << 4;
/// Capability: copies.
const COPY: u64 = 1 << 32;
/// Flag of a copy: the destination should be in the last-level cache.
const LLC: u64 = 1 << 2;

/// What is asked in one call of `completed`.
const MOST_REPORTS: u16 = 256;

/// What to open.
#[derive(Clone, Copy)]
pub struct Wanted<'n> {
    /// Its name.
    pub name: &'n str,
    /// A channel that the application has set up, memory to memory, and leaves to this driver.
    pub vchan: Option<u16>,
    /// Copies that it should have room for.
    pub ring_size: u32,
    /// Its driver's stop is no proof that copies have ended.
    pub stops_in_name_only: bool,
    /// Where devices reach memory that do not take virtual addresses.
    pub container: fn() -> Arc<dyn Container>,
}

/// Names of devices that are threads begin like this.
const SKELETON: &str = "dma_skeleton";

/// A dmadev, or one of its channels.
pub struct Dmadev {
    library: Library,
    id: i16,
    vchan: u16,
    object: *const FastPath,
    /// What it reaches; `None`: it takes virtual addresses.
    reach: Option<Reach>,
    /// Started here, so stopped here.
    ours: bool,
    stops_in_name_only: bool,
    /// It is DPDK's thread that stands for a device.
    is_thread: bool,
    /// It was stopped; whether that worked.
    stopped: Option<bool>,
    /// Copies under way, oldest at `reported`; a power of two.
    tags: Box<[Tag]>,
    staged: u32,
    reported: u32,
    /// What the device calls the copy at `reported`, once there was one.
    index: Option<u16>,
    /// Copies that it refused; to be reported.
    refused: Vec<Tag>,
    broken: bool,
}

// SAFETY: a dmadev's channel may be used by any thread, one at a time (rte_dmadev.h), as `Engine` is.
unsafe impl Send for Dmadev {}

/// Whether there is a dmadev of that name.
pub fn exists(name: &str) -> bool {
    let (Some(library), Ok(name)) = (Library::find(), CString::new(name)) else {
        return false;
    };
    // SAFETY: a string.
    unsafe { (library.id_by_name)(name.as_ptr()) >= 0 }
}

impl Dmadev {
    /// Sets up and starts the dmadev that is `wanted`.
    ///
    /// # Errors
    ///
    /// There is none of that name, it cannot copy, or somebody else has started it.
    pub fn open(wanted: Wanted<'_>) -> Result<Self, OpenError> {
        let library = Library::find()
            .ok_or_else(|| OpenError::Unusable("no dmadev driver is loaded".into()))?;
        Self::open_in(library, wanted)
    }

    fn open_in(library: Library, wanted: Wanted<'_>) -> Result<Self, OpenError> {
        let unusable = |why: &str| OpenError::Unusable(why.into());
        let name =
            CString::new(wanted.name).map_err(|error| OpenError::Unusable(error.to_string()))?;
        // SAFETY: a string.
        let id = unsafe { (library.id_by_name)(name.as_ptr()) };
        let id = i16::try_from(id)
            .ok()
            .filter(|id| *id >= 0)
            .ok_or_else(|| unusable("there is no dmadev of that name"))?;
        let info = setup::info(&library, id)?;
        if info.capabilities & (MEM_TO_MEM | COPY) != MEM_TO_MEM | COPY {
            return Err(unusable("the dmadev does not copy memory to memory"));
        }
        let most = u32::from(info.max_desc.max(1));
        let least = u32::from(info.min_desc).max(2);
        // The largest power of two that the device takes.
        let size = wanted.ring_size.clamp(least, most);
        let size = match size.is_power_of_two() {
            true => size,
            false if size.next_power_of_two() <= most => size.next_power_of_two(),
            false => size.next_power_of_two() / 2,
        };
        let size = match wanted.vchan {
            None => setup::set_up(&library, id, size)?,
            Some(vchan) => {
                setup::expect_ready(&library, id, vchan, info.nb_vchans)?;
                size
            }
        };
        // SAFETY: the library's variable, which it fills when its first device is made.
        let objects = unsafe { library.objects.read() };
        if objects.is_null() {
            return Err(unusable("the dmadev library has no devices"));
        }
        let nth = usize::from(id.unsigned_abs());
        let object = objects.wrapping_add(nth * STRIDE).cast::<FastPath>();
        Ok(Self {
            library,
            id,
            vchan: wanted.vchan.unwrap_or(0),
            object,
            reach: match info.capabilities & SVA {
                0 => Some(Reach::new((wanted.container)())),
                _ => None,
            },
            ours: wanted.vchan.is_none(),
            stops_in_name_only: wanted.stops_in_name_only,
            is_thread: wanted.name.starts_with(SKELETON),
            stopped: None,
            tags: vec![
                Tag {
                    serial: 0,
                    place: 0
                };
                size as usize
            ]
            .into(),
            staged: 0,
            reported: 0,
            index: None,
            refused: Vec::new(),
            broken: false,
        })
    }

    fn object(&self) -> &FastPath {
        // SAFETY: the element of a device that exists: an application that takes a device away
        // while a port uses it breaks the contract of its owner. The library never frees the array.
        unsafe { &*self.object }
    }

    fn outstanding(&self) -> u32 {
        self.staged.wrapping_sub(self.reported)
    }

    fn place(&self, at: u32) -> usize {
        (at as usize) & (self.tags.len() - 1)
    }

    /// Reports the oldest copy.
    fn report(&mut self, done: &mut dyn FnMut(Tag, Outcome), outcome: Outcome) {
        if let Some(&tag) = self.tags.get(self.place(self.reported)) {
            done(tag, outcome);
        }
        self.reported = self.reported.wrapping_add(1);
        self.index = self.index.map(|index| index.wrapping_add(1));
    }

    /// Whether `count` more reports, up to the copy that the device calls `last`, can be true.
    fn believes(&self, count: u16, last: u16) -> bool {
        let expected = self
            .index
            .map(|index| index.wrapping_add(count).wrapping_sub(1));
        u32::from(count) <= self.outstanding() && (count == 0 || expected == Some(last))
    }

    /// Takes the statuses behind a failed copy, until there are no more: without this the device
    /// reports nothing any more.
    #[cold]
    #[inline(never)]
    fn take_statuses(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> bool {
        let Some(completed_status) = self.object().completed_status else {
            return false;
        };
        let private = self.object().private;
        let mut statuses = [0; MOST_REPORTS as usize];
        while self.outstanding() != 0 {
            let most = u16::try_from(self.outstanding()).unwrap_or(u16::MAX);
            let mut last = 0;
            // SAFETY: the device's own function, with its data, and room for `most` statuses.
            let count = unsafe {
                completed_status(
                    private,
                    self.vchan,
                    most.min(MOST_REPORTS),
                    &raw mut last,
                    statuses.as_mut_ptr(),
                )
            };
            if count == 0 {
                break;
            }
            if !self.believes(count, last) || count > MOST_REPORTS {
                return false;
            }
            for &status in statuses.iter().take(count.into()) {
                let outcome = if status == 0 {
                    Outcome::Copied
                } else {
                    Outcome::Failed
                };
                self.report(done, outcome);
            }
        }
        true
    }
}

impl Engine for Dmadev {
    fn room(&self) -> usize {
        let object = self.object();
        let capacity = object.burst_capacity.map_or(0, |capacity| {
            // SAFETY: the device's own function, with its data.
            unsafe { capacity(object.private, self.vchan) }
        });
        let free = self.tags.len() - self.outstanding() as usize - self.refused.len();
        if self.broken {
            0
        } else {
            free.min(capacity.into())
        }
    }

    fn depth(&self) -> usize {
        // A device keeps one descriptor free. What it takes at once (idxd: a batch) may be far less.
        self.tags.len() - 1
    }

    unsafe fn stage(&mut self, copy: Transfer, tag: Tag) {
        let object = self.object();
        let index = object.copy.map_or(-libc::ENOTSUP, |function| {
            // SAFETY: the device's own function, with its data; the addresses are the caller's
            // promise.
            unsafe {
                function(
                    object.private,
                    self.vchan,
                    copy.from.0,
                    copy.to.0,
                    copy.len,
                    LLC,
                )
            }
        });
        let Ok(index) = u16::try_from(index) else {
            self.refused.push(tag);
            return;
        };
        #[allow(clippy::cast_possible_truncation, reason = "indices wrap in 16 bits")]
        let ahead = self.outstanding() as u16;
        let first = self.index.map_or(index, |first| first.wrapping_add(ahead));
        self.broken |= first != index;
        if self.index.is_none() {
            self.index = Some(index);
        }
        let place = self.place(self.staged);
        if let Some(place) = self.tags.get_mut(place) {
            *place = tag;
        }
        self.staged = self.staged.wrapping_add(1);
    }

    fn submit(&mut self) {
        let object = self.object();
        if let Some(submit) = object.submit {
            // SAFETY: the device's own function, with its data.
            unsafe { submit(object.private, self.vchan) };
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        for tag in self.refused.drain(..) {
            done(tag, Outcome::Failed);
        }
        if self.broken || self.stopped.is_some() {
            return Health::Dead;
        }
        let Some(completed) = self.object().completed else {
            return Health::Dead;
        };
        let private = self.object().private;
        while self.outstanding() != 0 {
            let most = u16::try_from(self.outstanding()).unwrap_or(u16::MAX);
            let (mut last, mut error) = (0, false);
            // SAFETY: the device's own function, with its data, and places for what it says.
            let count = unsafe {
                completed(
                    private,
                    self.vchan,
                    most.min(MOST_REPORTS),
                    &raw mut last,
                    &raw mut error,
                )
            };
            if !self.believes(count, last) {
                return Health::Dead;
            }
            for _ in 0..count {
                self.report(done, Outcome::Copied);
            }
            if error {
                let before = self.outstanding();
                // A copy has failed, so there is one to be told of. Without it this would never end.
                if !self.take_statuses(done) || count == 0 && self.outstanding() == before {
                    return Health::Dead;
                }
            } else if count < MOST_REPORTS {
                break;
            }
        }
        Health::Running
    }

    fn nudge(&mut self) -> Health {
        self.submit();
        Health::Running
    }

    fn recover(&mut self) -> bool {
        // A dmadev goes on by itself.
        true
    }

    fn halt(&mut self) -> Halted {
        let stopped = match self.stopped {
            Some(stopped) => stopped,
            // SAFETY: a device that was started here, and not stopped since.
            None => self.ours && unsafe { (self.library.stop)(self.id) } == 0,
        };
        self.stopped = Some(stopped);
        if self.outstanding() == 0 || stopped && !self.stops_in_name_only {
            Halted::Proven
        } else {
            Halted::Unproven
        }
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        match &self.reach {
            None => Some(Addr(va.expose_provenance() as u64)),
            Some(reach) => reach.translate(va.addr(), len as usize),
        }
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        self.reach.as_mut()
    }

    fn max_copy(&self) -> u32 {
        // More than a segment of a packet has; every device takes that.
        1 << 16
    }

    fn patience(&self) -> Duration {
        match self.is_thread {
            true => THREAD_PATIENCE,
            false => PATIENCE,
        }
    }
}

impl Drop for Dmadev {
    fn drop(&mut self) {
        self.halt();
    }
}
