//! Memory that all processes of the application share.

use core::ffi::{CStr, c_int};
use core::ptr::NonNull;

use super::sys::{rte_free, rte_mem_virt2iova, rte_zmalloc_socket};

/// Zeroed memory for one `T` on memory node `socket`, aligned to at least a cache line.
pub fn zeroed<T>(name: &CStr, socket: c_int) -> Option<NonNull<T>> {
    zeroed_array(name, 1, socket)
}

/// The same for `count` of them, one behind the other.
pub fn zeroed_array<T>(name: &CStr, count: usize, socket: c_int) -> Option<NonNull<T>> {
    let align = align_of::<T>().max(64);
    let align = u32::try_from(align).ok()?;
    let size = size_of::<T>().checked_mul(count)?;
    // SAFETY: the name is a string that is only looked at during the call.
    let memory = unsafe { rte_zmalloc_socket(name.as_ptr(), size, align, socket) };
    NonNull::new(memory.cast())
}

/// Where devices find an address of this memory; `None` when they cannot.
pub fn iova<T>(memory: NonNull<T>) -> Option<u64> {
    // SAFETY: only looks the address up.
    let iova = unsafe { rte_mem_virt2iova(memory.as_ptr().cast()) };
    (iova != u64::MAX).then_some(iova)
}

/// Gives memory back.
///
/// # Safety
///
/// It came from this module, and nobody uses it any more, in any process.
pub unsafe fn free<T>(memory: NonNull<T>) {
    // SAFETY: see above.
    unsafe { rte_free(memory.as_ptr().cast()) };
}
