//! The environment: which process and lcore this is, and where its memory should be.

use core::ffi::{CStr, c_int};

use super::sys::{
    RTE_MAX_LCORE, RTE_PROC_PRIMARY, SOCKET_ID_ANY, rte_eal_process_type, rte_socket_id,
    rte_vect_get_max_simd_bitwidth, rte_version,
};

/// The calling thread's copy of a thread-local variable of EAL.
///
/// Stable Rust has no extern thread-locals. This is the dynamic model by descriptors, which holds also
/// in programs that load DPDK late; in others, where EAL is there from the start, the call only reads
/// a constant from the descriptor.
macro_rules! thread_local_address {
    ($symbol:literal) => {{
        let offset: usize;
        let thread: *mut u8;
        // SAFETY: the resolver behind the descriptor reads the thread's tables, and may make the
        // block of EAL on the thread's first call. It keeps most registers by its own convention,
        // but versions of it did not; so all are given up that a C function may change, and the
        // stack is aligned (no `nostack`).
        unsafe {
            core::arch::asm!(
                concat!("leaq ", $symbol, "@tlsdesc(%rip), %rax"),
                concat!("call *", $symbol, "@tlscall(%rax)"),
                "movq %fs:0, %rcx",
                out("rax") offset,
                out("rcx") thread,
                clobber_abi("C"),
                options(att_syntax),
            );
        }
        thread.wrapping_add(offset)
    }};
}

/// Whether this process made the shared memory; a secondary attaches to what the primary has.
pub fn is_primary() -> bool {
    // SAFETY: no condition.
    unsafe { rte_eal_process_type() == RTE_PROC_PRIMARY }
}

/// The memory node of the calling thread, or [`ANY_SOCKET`].
pub fn socket_id() -> c_int {
    // SAFETY: no condition.
    unsafe { rte_socket_id() }.cast_signed()
}

/// The memory node of the page at `address`; `None` when it is not there, or the kernel does not
/// tell. Nothing is brought in for that.
pub fn node_of<T>(address: *const T) -> Option<c_int> {
    let pages = [address];
    let mut node: c_int = -1;
    let no_move = core::ptr::null::<c_int>();
    // SAFETY: asks about one page of this process: an array of one address, no nodes to move to, and
    // one place for the answer. The address itself is only looked up.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            no_move,
            &raw mut node,
            0,
        )
    };
    (result == 0 && node >= 0).then_some(node)
}

/// No preference for a memory node.
pub const ANY_SOCKET: c_int = SOCKET_ID_ANY;

/// The running DPDK, such as `DPDK 22.11.11`.
pub fn version() -> &'static str {
    // SAFETY: no condition.
    let text = unsafe { rte_version() };
    // SAFETY: EAL's own static text, made once by its first call, ends with NUL.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("DPDK")
}

/// Widest vectors, in bits, that the application allows (`--force-max-simd-bitwidth`).
pub fn max_simd_bits() -> u16 {
    // SAFETY: no condition.
    unsafe { rte_vect_get_max_simd_bitwidth() }
}

/// The id of the calling thread as an lcore, for this burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Lcore(u32);

impl Lcore {
    /// A thread without lcore id (`LCORE_ID_ANY`), as any thread is that EAL does not know.
    pub const NONE: Self = Self(u32::MAX);

    /// The calling thread. A call of the thread-local storage's runtime: once per burst.
    #[inline(always)]
    pub fn current() -> Self {
        let id = thread_local_address!("per_lcore__lcore_id").cast::<u32>();
        // SAFETY: EAL's own thread-local integer, which only this thread writes.
        Self(unsafe { id.read() })
    }

    /// The index in arrays of `RTE_MAX_LCORE`, such as a pool's caches.
    #[inline(always)]
    pub fn index(self) -> Option<usize> {
        (self.0 < RTE_MAX_LCORE).then_some(self.0 as usize)
    }
}

/// Sets `rte_errno` of the calling thread.
pub fn set_errno(errno: c_int) {
    let address = thread_local_address!("per_lcore__rte_errno").cast::<c_int>();
    // SAFETY: EAL's own thread-local integer, which only this thread uses.
    unsafe { address.write(errno) };
}

/// `rte_errno` of the calling thread.
pub fn errno() -> c_int {
    let address = thread_local_address!("per_lcore__rte_errno").cast::<c_int>();
    // SAFETY: EAL's own thread-local integer, which only this thread uses.
    unsafe { address.read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_eal_does_not_know_has_no_lcore() {
        assert_eq!(Lcore::current(), Lcore::NONE);
        assert_eq!(Lcore::NONE.index(), None);
    }

    #[test]
    fn errno_can_be_set_in_each_thread() {
        set_errno(libc::ENOTSUP);

        assert_eq!(errno(), libc::ENOTSUP);
    }

    #[test]
    fn a_page_that_is_not_mapped_has_no_node() {
        assert_eq!(node_of(core::ptr::null::<u8>()), None);

        // Where the kernel tells (a sandbox may forbid it), this thread's stack has one.
        let here = 0_u8;
        assert!(node_of(&raw const here).is_none_or(|node| node < 1024));
    }

    #[test]
    fn the_linked_dpdk_tells_its_version() {
        assert!(version().starts_with("DPDK 2"));
    }
}
