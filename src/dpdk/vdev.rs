//! The vdev bus: our driver's registration, and the devices that it is asked to probe.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::ptr::{self, NonNull};

use super::abi::{
    TailqEntry, VdevProbe, rte_device, rte_driver, rte_vdev_device, rte_vdev_driver,
    rte_vdev_register,
};

/// A vdev driver that EAL can keep for ever.
#[repr(transparent)]
pub struct VdevDriver(UnsafeCell<rte_vdev_driver>);

// SAFETY: EAL alone writes it after `register`, from the thread that loads drivers, and the list is
// only read afterwards.
unsafe impl Sync for VdevDriver {}

impl VdevDriver {
    /// A driver for devices whose name begins with `name` or `alias`.
    pub const fn new(
        name: &'static CStr,
        alias: &'static CStr,
        probe: VdevProbe,
        remove: VdevProbe,
    ) -> Self {
        Self(UnsafeCell::new(rte_vdev_driver {
            next: TailqEntry {
                next: ptr::null_mut(),
                previous: ptr::null_mut(),
            },
            driver: rte_driver {
                next: TailqEntry {
                    next: ptr::null_mut(),
                    previous: ptr::null_mut(),
                },
                name: name.as_ptr(),
                alias: alias.as_ptr(),
            },
            probe: Some(probe),
            remove: Some(remove),
            dma_map: None,
            dma_unmap: None,
            drv_flags: 0,
        }))
    }

    /// Makes the driver known to the bus. Called once, before EAL probes devices.
    pub fn register(&'static self) {
        // SAFETY: lives for ever, and nobody else uses it before this call.
        unsafe { rte_vdev_register(self.0.get()) };
    }

    /// Whether a driver of the same name is in the list before this one, so that the bus will use
    /// that one and never ours.
    pub fn is_shadowed(&'static self) -> bool {
        let own = self.0.get().cast_const();
        // SAFETY: our own driver, which nobody writes after `register`.
        let name = unsafe { (*own).driver.name };
        // SAFETY: `new` made it of a static `CStr`.
        let name = unsafe { CStr::from_ptr(name) };
        let mut current = own;
        while let Some(before) = previous(current) {
            // SAFETY: an entry of the bus's list, where drivers stay while their library is loaded.
            let other = unsafe { before.as_ref() };
            // SAFETY: drivers have a name, ended by NUL, as the bus itself compares it.
            if unsafe { CStr::from_ptr(other.driver.name) } == name {
                return true;
            }
            current = before.as_ptr();
        }
        false
    }
}

/// The entry before `driver` in its TAILQ. The list's head is not exported, but it looks like an
/// entry's links, so the list can be walked backwards without it (TAILQ_PREV of sys/queue.h).
fn previous(driver: *const rte_vdev_driver) -> Option<NonNull<rte_vdev_driver>> {
    // SAFETY: an entry of the list; its links are set by TAILQ_INSERT_TAIL.
    let back = unsafe { (*driver).next.previous };
    if back.is_null() {
        return None; // not registered
    }
    // `back` points at the `next` field of the entry before, or of the head: the first field of
    // either, so its second field is that entry's own back pointer, or the head's end of list.
    let links = back.cast::<TailqEntry<rte_vdev_driver>>();
    // SAFETY: links of a list entry or the head, see above.
    let before_that = unsafe { (*links).previous };
    // SAFETY: points at the `next` field that leads to the entry before, or at the last `next` of
    // the list, which is null.
    NonNull::new(unsafe { *before_that })
}

/// A device that the bus hands to `probe` and `remove`.
#[derive(Clone, Copy, Debug)]
pub struct VdevDevice(NonNull<rte_vdev_device>);

impl VdevDevice {
    /// The device behind the pointer of `probe` or `remove`.
    ///
    /// # Safety
    ///
    /// `device` is what the vdev bus passed, and is used during that call only.
    pub unsafe fn from_ptr(device: *mut rte_vdev_device) -> Option<Self> {
        NonNull::new(device).map(Self)
    }

    /// The generic device inside.
    pub fn device(self) -> *mut rte_device {
        // SAFETY: a live device (invariant of the handle).
        unsafe { &raw mut (*self.0.as_ptr()).device }
    }

    /// The name, such as `net_vhost0`.
    pub fn name(&self) -> &CStr {
        // SAFETY: a live device (invariant of the handle).
        let name = unsafe { (*self.device()).name };
        string(name)
    }

    /// The arguments after the name; empty when there are none.
    pub fn args(&self) -> &CStr {
        // SAFETY: a live device (invariant of the handle).
        let devargs = unsafe { (*self.device()).devargs };
        if devargs.is_null() {
            return c"";
        }
        // SAFETY: devargs of a live device.
        let text = unsafe { (*devargs).__bindgen_anon_1 };
        // SAFETY: both names of the union are for the same pointer to text.
        string(unsafe { text.args })
    }

    /// Memory node that the device was given, or negative.
    pub fn numa_node(self) -> c_int {
        // SAFETY: a live device (invariant of the handle).
        unsafe { (*self.device()).numa_node }
    }

    /// Notes where the device's memory is.
    ///
    /// # Safety
    ///
    /// Called in `probe`.
    pub unsafe fn set_numa_node(self, node: c_int) {
        // SAFETY: a live device (invariant of the handle) that only `probe` uses now (caller).
        unsafe { (*self.device()).numa_node = node };
    }
}

fn string<'a>(text: *const c_char) -> &'a CStr {
    if text.is_null() {
        return c"";
    }
    // SAFETY: the bus's names and arguments end with NUL and live as long as the device.
    unsafe { CStr::from_ptr(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn refuse(_device: *mut rte_vdev_device) -> c_int {
        -libc::ENOTSUP
    }

    /// A TAILQ of `drivers` with its head, linked as TAILQ_INSERT_TAIL does.
    fn link(head: &mut TailqEntry<rte_vdev_driver>, drivers: &[&'static VdevDriver]) {
        head.next = ptr::null_mut();
        head.previous = &raw mut head.next;
        for driver in drivers {
            let entry = driver.0.get();
            // SAFETY: only this test uses the driver, on one thread.
            let links = unsafe { &mut (*entry).next };
            links.next = ptr::null_mut();
            links.previous = head.previous;
            // SAFETY: the last `next` field of this list.
            unsafe { *head.previous = entry };
            head.previous = &raw mut links.next;
        }
    }

    fn driver(name: &'static CStr) -> &'static VdevDriver {
        Box::leak(Box::new(VdevDriver::new(
            name,
            c"eth_vhost",
            refuse,
            refuse,
        )))
    }

    #[test]
    fn a_driver_of_the_same_name_before_ours_is_seen() {
        let mut head = TailqEntry {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
        };
        let (first, other, ours) = (
            driver(c"net_vhost"),
            driver(c"net_null"),
            driver(c"net_vhost"),
        );

        link(&mut head, &[first, other, ours]);

        assert!(ours.is_shadowed());
        assert!(!first.is_shadowed());
    }

    #[test]
    fn a_driver_of_the_same_name_after_ours_does_not_matter() {
        let mut head = TailqEntry {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
        };
        let (other, ours, last) = (
            driver(c"net_null"),
            driver(c"net_vhost"),
            driver(c"net_vhost"),
        );

        link(&mut head, &[other, ours, last]);

        assert!(!ours.is_shadowed());
    }
}
