//! EAL's VFIO container, and how devices in it reach memory.

use core::ffi::{CStr, c_int};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use super::eal;
use super::sys::{
    RTE_IOVA_VA, RTE_VFIO_DEFAULT_CONTAINER_FD, rte_eal_iova_mode, rte_vfio_container_dma_map,
    rte_vfio_container_dma_unmap, rte_vfio_is_enabled, rte_vfio_release_device,
    rte_vfio_setup_device,
};

const PCI_DEVICES: &CStr = c"/sys/bus/pci/devices";

/// Whether EAL has a container: it found VFIO when it started.
pub fn is_enabled() -> bool {
    // SAFETY: a string that lives through the call.
    unsafe { rte_vfio_is_enabled(c"vfio".as_ptr()) != 0 }
}

/// Opens a PCI device, whose group joins the container; `None` when it is not bound to VFIO.
///
/// # Errors
///
/// The number in `rte_errno`; 0 for an error that has none, of which only the log tells more.
pub fn open(bdf: &CStr) -> Result<Option<OwnedFd>, c_int> {
    let mut fd: c_int = -1;
    // A `vfio_device_info`, longer than any, which begins with its size; nobody looks at it.
    let mut info = [0_u64; 16];
    if let Some(argsz) = info.first_mut() {
        *argsz = 16 * 8;
    }
    // It leaves that of an earlier call in place.
    eal::set_errno(0);
    // SAFETY: two strings that live through the call, and room for both answers.
    let result = unsafe {
        rte_vfio_setup_device(
            PCI_DEVICES.as_ptr(),
            bdf.as_ptr(),
            &raw mut fd,
            info.as_mut_ptr().cast(),
        )
    };
    match result {
        // SAFETY: EAL opened it for us, and closes it only in `close`, by number.
        0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        1.. => Ok(None),
        _ => Err(eal::errno()),
    }
}

/// Gives a device back. EAL closes the descriptor; whether it certainly has.
pub fn close(bdf: &CStr, device: OwnedFd) -> bool {
    let device = device.into_raw_fd();
    // SAFETY: two strings that live through the call, and a descriptor that is EAL's from now on.
    unsafe { rte_vfio_release_device(PCI_DEVICES.as_ptr(), bdf.as_ptr(), device) == 0 }
}

fn errno_or(otherwise: c_int) -> c_int {
    match eal::errno() {
        errno @ 1.. => errno,
        _ => otherwise,
    }
}

/// Lets devices reach `len` bytes at `va` as `iova`.
///
/// # Errors
///
/// The number in `rte_errno`: ENODEV before the first device has joined.
pub fn map(va: u64, iova: u64, len: u64) -> Result<(), c_int> {
    // SAFETY: makes memory of this process reachable for devices that EAL or we drive; what they
    // do with it is up to their drivers.
    match unsafe { rte_vfio_container_dma_map(RTE_VFIO_DEFAULT_CONTAINER_FD, va, iova, len) } {
        0 => Ok(()),
        _ => Err(errno_or(libc::EIO)),
    }
}

/// Undoes [`map`] of the very same range.
///
/// # Errors
///
/// The number in `rte_errno`.
pub fn unmap(va: u64, iova: u64, len: u64) -> Result<(), c_int> {
    // SAFETY: takes a range away from devices; it was mapped by us, or the call fails.
    match unsafe { rte_vfio_container_dma_unmap(RTE_VFIO_DEFAULT_CONTAINER_FD, va, iova, len) } {
        0 => Ok(()),
        _ => Err(errno_or(libc::EIO)),
    }
}

/// Whether devices use our virtual addresses.
pub fn addresses_are_ours() -> bool {
    // SAFETY: no condition.
    unsafe { rte_eal_iova_mode() == RTE_IOVA_VA }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_eal_there_is_no_container() {
        assert!(!is_enabled());
        assert!(map(0x1000, 0x1000, 0x1000).is_err());
        assert!(unmap(0x1000, 0x1000, 0x1000).is_err());
    }
}
