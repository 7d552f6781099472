//! EAL's own memory: what there is of it, and what comes and goes while the application runs.

use core::ffi::{CStr, c_int, c_void};
use core::ptr;

use super::eal;
use super::sys::{
    RTE_MEM_EVENT_ALLOC, RTE_MEMSEG_FLAG_DO_NOT_FREE, rte_mem_event,
    rte_mem_event_callback_register, rte_mem_virt2memseg, rte_mem_virt2memseg_list, rte_memseg,
    rte_memseg_list, rte_memseg_walk,
};

/// A piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins for us.
    pub va: usize,
    /// Bytes.
    pub len: usize,
    /// Where devices find it in EAL's container.
    pub iova: u64,
}

/// The piece at `va`, of the memory that EAL has mapped for devices. Not what the application only
/// registered.
pub fn segment(va: usize) -> Option<Segment> {
    let list = list(va)?;
    // SAFETY: only looks the address up, in the list that has it.
    let found = unsafe { rte_mem_virt2memseg(ptr::without_provenance(va), list) };
    if found.is_null() {
        return None;
    }
    // SAFETY: an entry of that list.
    let found = unsafe { found.read_unaligned() };
    let len = found.len;
    if !len.is_power_of_two() || found.iova == u64::MAX {
        return None;
    }
    Some(Segment {
        // Pages begin at multiples of their size.
        va: va & !(len - 1),
        len,
        iova: found.iova,
    })
}

/// EAL's list of the pages around an address, if they are EAL's own.
fn list(va: usize) -> Option<*const rte_memseg_list> {
    // SAFETY: only looks the address up; takes no lock.
    let list = unsafe { rte_mem_virt2memseg_list(ptr::without_provenance(va)) };
    if list.is_null() {
        return None;
    }
    // SAFETY: one of EAL's lists, an array in its configuration, which is never freed.
    let external = unsafe { (*list).external };
    (external == 0).then_some(list.cast_const())
}

/// A page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it begins.
    pub va: usize,
    /// Bytes.
    pub len: usize,
    /// It is never given back to the system.
    pub stays: bool,
}

/// Shows all pages there are, by rising address where they are neighbours, until `see` says no.
/// Meanwhile none comes or goes, so `see` must not ask EAL for memory, nor give some back, and must
/// not panic.
pub fn walk(mut see: impl FnMut(Page) -> bool) {
    let mut see: &mut dyn FnMut(Page) -> bool = &mut see;
    // SAFETY: EAL calls `show` with that argument until this returns, in this thread.
    unsafe { rte_memseg_walk(Some(show), (&raw mut see).cast()) };
}

/// # Safety
///
/// For `walk` only: EAL's list and its entry, and the argument of `walk`.
unsafe extern "C" fn show(
    list: *const rte_memseg_list,
    segment: *const rte_memseg,
    see: *mut c_void,
) -> c_int {
    // SAFETY: EAL's list (caller).
    if unsafe { (*list).external } != 0 {
        return 0;
    }
    // SAFETY: an entry of that list (caller).
    let segment = unsafe { segment.read_unaligned() };
    // SAFETY: what `walk` passed, which nobody else uses now.
    let see = unsafe { &mut *see.cast::<&mut dyn FnMut(Page) -> bool>() };
    // SAFETY: an address, in both of the union's forms.
    let va = unsafe { segment.__bindgen_anon_1.addr };
    let page = Page {
        va: va.addr(),
        len: segment.len,
        stays: segment.flags & RTE_MEMSEG_FLAG_DO_NOT_FREE != 0,
    };
    c_int::from(!see(page))
}

/// Whether memory comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there now.
    Came,
    /// It will be gone next.
    Goes,
}

/// Who is told what comes and goes.
pub trait Watcher {
    /// A name that nobody else has.
    const NAME: &'static CStr;

    /// Pages of `page` bytes each, together `len`, at `va`.
    ///
    /// In whatever thread allocates or frees, with EAL's locks held: must not ask EAL for memory,
    /// walk through it, wait for somebody who may, or panic.
    fn changed(change: Change, va: usize, len: usize, page: usize);
}

/// Whether anything can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The watcher is told, for as long as the process lives.
    Changes,
    /// Never: EAL takes all memory when it starts.
    Stays,
}

/// Lets a watcher know from now on. A second time is an error.
///
/// # Errors
///
/// The number in `rte_errno`.
pub fn watch<W: Watcher>() -> Result<Memory, c_int> {
    // SAFETY: a string that is copied, and a function for as long as the library is loaded; a
    // driver is never unloaded.
    let result = unsafe {
        rte_mem_event_callback_register(W::NAME.as_ptr(), Some(tell::<W>), ptr::null_mut())
    };
    match (result, eal::errno()) {
        (0, _) => Ok(Memory::Changes),
        (_, libc::ENOTSUP) => Ok(Memory::Stays),
        (_, errno) => Err(errno),
    }
}

/// # Safety
///
/// For EAL only: pages of one of its lists.
unsafe extern "C" fn tell<W: Watcher>(
    event: rte_mem_event,
    start: *const c_void,
    len: usize,
    _: *mut c_void,
) {
    let va = start.addr();
    let Some(list) = list(va) else {
        return;
    };
    // SAFETY: one of EAL's lists, an array in its configuration, which is never freed.
    let page = unsafe { (*list).page_sz };
    let change = match event {
        RTE_MEM_EVENT_ALLOC => Change::Came,
        _ => Change::Goes,
    };
    if let Ok(page @ 1..) = usize::try_from(page) {
        W::changed(change, va, len, page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_eal_there_is_no_memory() {
        assert_eq!(segment(0x1000), None);
    }
}
