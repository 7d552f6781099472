//! Which DSA devices this process has, and the way to one of their queues.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::portal::{Dedicated, Instructions, Lines, PAGE};
use super::queue::Queue;
use super::vfio::{Dsa, SharedDsa, VfioQueue};
use crate::dma::vfio::{self, Device};

/// A device, by address.
struct Open {
    bdf: String,
    device: Weak<Mutex<Dsa<Device>>>,
}

/// A device is opened for its first queue, and given back with its last.
static DEVICES: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// From the portals of one queue to those of the next.
const PORTALS: u64 = 0x4000;

/// Opens queue number `queue` of the device at `bdf` (`0000:e7:01.0`) with a ring of `ring`
/// descriptors, rounded up to a power of two. For its first queue `open` opens the device, in some
/// container.
///
/// # Errors
///
/// What `open` says. `Unsupported`: no DSA device, or the processor has no MOVDIR64B.
/// `NotFound`, `ResourceBusy`: no such queue, or somebody has it.
pub fn open_vfio(
    bdf: &str,
    queue: u32,
    ring: u32,
    open: impl FnOnce(&str) -> io::Result<Device>,
) -> io::Result<Queue<Dedicated, VfioQueue<Device>>> {
    if !Instructions::detect().movdir64b {
        let what = "this processor has no MOVDIR64B";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    if !super::is_known(vfio::pci_id(bdf)?) {
        let what = "not a DSA device";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let device = device(bdf, open)?;
    let container = {
        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(device.function().container())
    };
    let (access, limits) = VfioQueue::take(Arc::clone(&device), queue, container)?;
    let page = {
        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
        // Its first page: not limited, interrupts by message.
        device
            .function()
            .bar_part(2, u64::from(queue) * PORTALS, PAGE as u64)?
    };
    // SAFETY: the processor has it (checked above).
    let portal = unsafe { Dedicated::new(Lines::new(page)) };
    Queue::new(portal, access, limits, ring)
}

fn device(
    bdf: &str,
    open: impl FnOnce(&str) -> io::Result<Device>,
) -> io::Result<SharedDsa<Device>> {
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    devices.retain(|open| open.device.strong_count() > 0);
    let known = devices.iter().find(|open| open.bdf == bdf);
    if let Some(device) = known.and_then(|open| open.device.upgrade()) {
        return Ok(device);
    }
    let device = Dsa::start(open(bdf)?)?;
    let device = Arc::new(Mutex::new(device));
    devices.push(Open {
        bdf: bdf.to_owned(),
        device: Arc::downgrade(&device),
    });
    Ok(device)
}
