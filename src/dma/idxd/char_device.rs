//! Work queues that the kernel's idxd driver lends to processes: `/dev/dsa/wqD.Q`.
//!
//! The device then works with our virtual addresses, so nothing is mapped for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::portal::{AnyPortal, Dedicated, Instructions, Lines, PAGE, Shared, Written};
use super::queue::{Access, Limits, Queue};
use super::sysfs::{Places, WorkQueue};
use crate::dma::Addr;
use crate::dma::vfio::Memory;
use crate::dma::vfio::function::Bar;

/// An open device file.
#[derive(Debug)]
pub struct CharDevice {
    /// `None` once it is closed.
    file: Option<Arc<File>>,
    /// Regular files, as tests have them, are always readable.
    tells_errors: bool,
}

/// Opens the queue `name` (`wq0.1`) with a ring of `ring` descriptors, rounded up to a power of two.
///
/// # Errors
///
/// `NotFound`: there is no such queue. `Unsupported`: it is not for us, with the reason. Anything
/// else: the system refused, such as `ResourceBusy` for a dedicated queue that somebody has open.
pub fn open_char_device(name: &str, ring: u32) -> io::Result<Queue<AnyPortal, CharDevice>> {
    // SAFETY: these are the instructions of this processor.
    unsafe {
        open_at(
            &Places::from_environment(),
            name,
            ring,
            Instructions::detect(),
        )
    }
}

/// The same with places and instructions of choice.
///
/// # Safety
///
/// The processor has these instructions, or something stands in for them.
///
/// # Errors
///
/// As for [`open_char_device`].
pub unsafe fn open_at(
    places: &Places,
    name: &str,
    ring: u32,
    instructions: Instructions,
) -> io::Result<Queue<AnyPortal, CharDevice>> {
    let queue = WorkQueue::read(&places.sysfs, name)?;
    let path = places.devices.join(name);
    let file = File::options().read(true).write(true).open(path)?;
    let tells_errors = file.metadata()?.file_type().is_char_device();
    let file = Arc::new(file);
    let has_instruction = match queue.shared {
        true => instructions.enqcmd,
        false => instructions.movdir64b,
    };
    let page = has_instruction.then(|| Bar::map_write_only(&file, 0, PAGE as u64));
    let portal = match page {
        Some(Ok(page)) if queue.shared => {
            // SAFETY: the processor has it (caller); the file is the queue's own, opened by us.
            AnyPortal::Shared(unsafe { Shared::new(Lines::new(page)) })
        }
        Some(Ok(page)) => {
            // SAFETY: the processor has it (caller).
            AnyPortal::Dedicated(unsafe { Dedicated::new(Lines::new(page)) })
        }
        refused => {
            if let Some(Err(error)) = refused {
                log::info!(
                    target: crate::log::CONFIG,
                    "{name}: the portal cannot be mapped ({error}): submitting by write"
                );
            }
            AnyPortal::Written(Written::new(Arc::clone(&file)))
        }
    };
    let written = matches!(portal, AnyPortal::Written(_));
    let limits = Limits {
        submissions: queue.size,
        // The kernel looks at what is written, and into no list.
        batch: match written && queue.version_1 {
            true => 1,
            false => queue.max_batch,
        },
        transfer: queue.max_transfer,
    };
    let device = CharDevice {
        file: Some(file),
        tells_errors,
    };
    Queue::new(portal, device, limits, ring)
}

impl Access for CharDevice {
    fn allocate(&self, len: usize) -> io::Result<Memory> {
        Memory::shared(len)
    }

    fn shares_addresses(&self) -> bool {
        true
    }

    fn translate(&self, va: *const u8, _: u32) -> Option<Addr> {
        Some(Addr(va.expose_provenance() as u64))
    }

    fn has_failed(&self) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.tells_errors) else {
            return self.file.is_none();
        };
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // The kernel makes the file readable when the device reports an error.
        let mut files = [PollFd::new(file, PollFlags::IN)];
        matches!(poll(&mut files, Some(&at_once)), Ok(1..))
    }

    fn stop(&mut self) -> bool {
        // The kernel drains the queue, or aborts what is in it, before close returns: the portal's
        // mapping, which also holds the file, is gone already.
        self.file = None;
        true
    }
}
