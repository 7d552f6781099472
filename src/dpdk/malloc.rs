//! Memory that all processes of the application share.

use core::ffi::{CStr, c_int};
use core::ptr::NonNull;

use super::sys::{rte_free, rte_zmalloc_socket};

/// Zeroed memory for one `T` on memory node `socket`, aligned to at least a cache line.
pub fn zeroed<T>(name: &CStr, socket: c_int) -> Option<NonNull<T>> {
    let align = align_of::<T>().max(64);
    let align = u32::try_from(align).ok()?;
    // SAFETY: the name is a string that is only looked at during the call.
    let memory = unsafe { rte_zmalloc_socket(name.as_ptr(), size_of::<T>(), align, socket) };
    NonNull::new(memory.cast())
}

/// Gives memory back.
///
/// # Safety
///
/// It came from [`zeroed`], and nobody uses it any more, in any process.
pub unsafe fn free<T>(memory: NonNull<T>) {
    // SAFETY: see above.
    unsafe { rte_free(memory.as_ptr().cast()) };
}
