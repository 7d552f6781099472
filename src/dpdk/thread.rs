//! EAL control threads: not pinned to the lcore that makes them, and known to DPDK.

use core::ffi::{CStr, c_int, c_void};
use std::io;

#[cfg(not(dpdk_22_11))]
use super::sys::{rte_thread_create_control, rte_thread_join, rte_thread_t};

/// What a thread runs. It must not unwind: the thread begins in C, so Rust would abort.
pub type Body = Box<dyn FnOnce() + Send>;

/// Longest name of a thread, the final NUL not counted.
pub const MAX_NAME: usize = 15;

/// A running control thread. It goes on by itself when this is dropped, and leaves nothing behind.
#[derive(Debug)]
pub struct ControlThread(Id);

#[cfg(dpdk_22_11)]
type Id = libc::pthread_t;
#[cfg(not(dpdk_22_11))]
type Id = rte_thread_t;

#[cfg(dpdk_22_11)]
type Returned = *mut c_void;
#[cfg(not(dpdk_22_11))]
type Returned = u32;

const DONE: Returned = {
    #[cfg(dpdk_22_11)]
    {
        core::ptr::null_mut()
    }
    #[cfg(not(dpdk_22_11))]
    {
        0
    }
};

unsafe extern "C" fn start(argument: *mut c_void) -> Returned {
    // SAFETY: `spawn` passes a box of this type, once.
    let body = unsafe { Box::from_raw(argument.cast::<Body>()) };
    body();
    DONE
}

/// Runs `body` in a new thread. Longer names than [`MAX_NAME`] are refused.
pub fn spawn(name: &CStr, body: Body) -> io::Result<ControlThread> {
    if name.count_bytes() > MAX_NAME {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let argument = Box::into_raw(Box::new(body));
    match create(name, argument.cast()) {
        Ok(id) => Ok(ControlThread(id)),
        Err(result) => {
            // SAFETY: no thread was made, so the box is still ours alone.
            drop(unsafe { Box::from_raw(argument) });
            Err(io::Error::from_raw_os_error(result.saturating_abs()))
        }
    }
}

/// Our threads are shallow, and an application that has called mlockall(2) pays for each byte of each
/// stack. Later versions of DPDK do not let us choose.
#[cfg(dpdk_22_11)]
const STACK: usize = 256 * 1024;

#[cfg(dpdk_22_11)]
fn create(name: &CStr, argument: *mut c_void) -> Result<Id, c_int> {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: initialises what it is given.
    let known = unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } == 0
        // SAFETY: initialised, since `&&` is lazy.
        && unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK) } == 0;
    if known {
        let result = create_with(name, attributes.as_ptr(), argument);
        // SAFETY: initialised above; threads keep nothing of it.
        unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
        // An application may have more thread-local data than fits into such a stack.
        if !matches!(result, Err(error) if error.saturating_abs() == libc::EINVAL) {
            return result;
        }
    }
    create_with(name, core::ptr::null(), argument)
}

#[cfg(dpdk_22_11)]
fn create_with(
    name: &CStr,
    attributes: *const libc::pthread_attr_t,
    argument: *mut c_void,
) -> Result<Id, c_int> {
    let mut id: Id = 0;
    // SAFETY: EAL copies the name; the attributes are initialised, or null for the usual ones; `start`
    // gets its box (caller of `create`).
    let result = unsafe {
        super::sys::rte_ctrl_thread_create(
            &raw mut id,
            name.as_ptr(),
            attributes.cast(),
            Some(start),
            argument,
        )
    };
    if result == 0 { Ok(id) } else { Err(result) }
}

#[cfg(not(dpdk_22_11))]
fn create(name: &CStr, argument: *mut c_void) -> Result<Id, c_int> {
    let mut id = rte_thread_t { opaque_id: 0 };
    // SAFETY: EAL copies the name; `start` gets its box (caller of this function).
    let result =
        unsafe { rte_thread_create_control(&raw mut id, name.as_ptr(), Some(start), argument) };
    if result == 0 { Ok(id) } else { Err(result) }
}

impl ControlThread {
    /// Whether the caller is this thread, which cannot wait for itself.
    pub fn is_current(&self) -> bool {
        // SAFETY: no condition.
        let current = unsafe { libc::pthread_self() };
        self.id() == current
    }

    fn id(&self) -> libc::pthread_t {
        #[cfg(dpdk_22_11)]
        let id = self.0;
        #[cfg(not(dpdk_22_11))]
        let id = self.0.opaque_id as libc::pthread_t;
        id
    }

    /// Waits until the thread has ended.
    pub fn join(self) -> io::Result<()> {
        #[cfg(dpdk_22_11)]
        // SAFETY: a joinable thread that nobody joined yet, as `self` is used up.
        let result = unsafe { libc::pthread_join(self.0, core::ptr::null_mut()) };
        #[cfg(not(dpdk_22_11))]
        // SAFETY: as above.
        let result = unsafe { rte_thread_join(self.0, core::ptr::null_mut()) };
        core::mem::forget(self);
        match result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.saturating_abs())),
        }
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        // SAFETY: a joinable thread: nobody joined it, as `join` does not come here. The only failure
        // is that there is no such thread.
        unsafe { libc::pthread_detach(self.id()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_linux_would_cut_is_refused() {
        let result = spawn(c"sixteen-letters-", Box::new(|| {}));

        assert_eq!(
            result.err().and_then(|error| error.raw_os_error()),
            Some(libc::ENAMETOOLONG)
        );
    }
}
