//! Rx interrupts: an interrupt handle with one epoll fd per rx queue.
//!
//! Applications get the epoll fds from ethdev before any frontend is there, and they stay the same
//! while frontends come and go; the kick eventfd of the connection is added to them and removed.
//! Beside it stands an eventfd of our own, for wake-ups that no kick brings.

use core::ffi::c_int;
use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::sys::{
    RTE_INTR_HANDLE_VDEV, RTE_INTR_INSTANCE_F_PRIVATE, RTE_INTR_VEC_RXTX_OFFSET,
    RTE_MAX_RXTX_INTR_VEC_ID, rte_intr_efd_counter_size_set, rte_intr_efds_index_set,
    rte_intr_handle, rte_intr_instance_alloc, rte_intr_instance_free, rte_intr_max_intr_set,
    rte_intr_nb_efd_set, rte_intr_type_set, rte_intr_vec_list_alloc, rte_intr_vec_list_free,
    rte_intr_vec_list_index_set,
};

/// The interrupts of a port's rx queues.
#[derive(Debug)]
pub struct RxInterrupts {
    handle: NonNull<rte_intr_handle>,
    queues: Vec<Queue>,
}

/// What the waiters of one queue wait for.
#[derive(Debug)]
struct Queue {
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Queue {
    fn new() -> io::Result<Self> {
        let queue = Self {
            epoll: epoll()?,
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        };
        queue.control(libc::EPOLL_CTL_ADD, queue.wake.as_fd(), Some(READABLE))?;
        Ok(queue)
    }

    fn control(
        &self,
        operation: c_int,
        fd: BorrowedFd<'_>,
        event: Option<libc::epoll_event>,
    ) -> io::Result<()> {
        let mut event = event;
        let event = event
            .as_mut()
            .map_or(core::ptr::null_mut(), |event| &raw mut *event);
        // SAFETY: two open fds; `event` is null or a whole event of this function.
        let result =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd.as_raw_fd(), event) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

const READABLE: libc::epoll_event = libc::epoll_event {
    events: libc::EPOLLIN as u32,
    u64: 0,
};

// SAFETY: the handle is only changed by `new` and `drop`, which have it alone.
unsafe impl Send for RxInterrupts {}
// SAFETY: as for `Send`; the rest are file descriptors.
unsafe impl Sync for RxInterrupts {}

impl RxInterrupts {
    /// Interrupts for `count` rx queues; needs an initialised EAL.
    pub fn new(count: u16) -> io::Result<Self> {
        let count = c_int::from(count);
        // EAL's handle has room for so many vectors, and one stands before those of queues.
        if count.cast_unsigned() >= RTE_MAX_RXTX_INTR_VEC_ID {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let queues = (0..count)
            .map(|_| Queue::new())
            .collect::<io::Result<Vec<_>>>()?;
        // SAFETY: no condition.
        let handle = unsafe { rte_intr_instance_alloc(RTE_INTR_INSTANCE_F_PRIVATE) };
        let handle = NonNull::new(handle).ok_or(io::ErrorKind::OutOfMemory)?;
        let interrupts = Self { handle, queues };
        interrupts.describe(count)?;
        Ok(interrupts)
    }

    fn describe(&self, count: c_int) -> io::Result<()> {
        let handle = self.handle.as_ptr();
        // SAFETY: our live handle; the name is only used for the memory's label.
        check(unsafe { rte_intr_vec_list_alloc(handle, c"net_vhost".as_ptr(), count) })?;
        for (index, queue) in (0..count).zip(&self.queues) {
            let vector = RTE_INTR_VEC_RXTX_OFFSET + index;
            // SAFETY: our live handle, with a list of `count` vectors.
            check(unsafe { rte_intr_vec_list_index_set(handle, index, vector) })?;
            // SAFETY: our live handle, with room for more than `count` fds (checked by `new`).
            check(unsafe { rte_intr_efds_index_set(handle, index, queue.epoll.as_raw_fd()) })?;
        }
        // SAFETY: our live handle.
        check(unsafe { rte_intr_nb_efd_set(handle, count) })?;
        // SAFETY: our live handle.
        check(unsafe { rte_intr_max_intr_set(handle, count + 1) })?;
        // EAL must not read from an epoll fd.
        // SAFETY: our live handle.
        check(unsafe { rte_intr_efd_counter_size_set(handle, 0) })?;
        // SAFETY: our live handle.
        check(unsafe { rte_intr_type_set(handle, RTE_INTR_HANDLE_VDEV) })
    }

    /// What ethdev wants as the port's interrupt handle, for as long as this lives.
    pub fn as_ptr(&self) -> *mut rte_intr_handle {
        self.handle.as_ptr()
    }

    /// How many queues have interrupts.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Makes the kick eventfd of queue `index` wake its waiters.
    pub fn add(&self, index: u16, kick: BorrowedFd<'_>) -> io::Result<()> {
        self.queue(index)?
            .control(libc::EPOLL_CTL_ADD, kick, Some(READABLE))
    }

    /// Takes the kick eventfd of queue `index` out again.
    pub fn remove(&self, index: u16, kick: BorrowedFd<'_>) -> io::Result<()> {
        self.queue(index)?.control(libc::EPOLL_CTL_DEL, kick, None)
    }

    /// The epoll fd of queue `index`, which ethdev hands to the application.
    pub fn queue_fd(&self, index: u16) -> Option<BorrowedFd<'_>> {
        self.queues
            .get(usize::from(index))
            .map(|queue| queue.epoll.as_fd())
    }

    /// Wakes the waiters of queue `index`, until [`rest`](Self::rest).
    pub fn wake(&self, index: u16) {
        if let Ok(queue) = self.queue(index) {
            // It fails when the counter is at its end, and then they are awake.
            let _ = rustix::io::write(&queue.wake, &1_u64.to_ne_bytes());
        }
    }

    /// Takes back what [`wake`](Self::wake) did.
    pub fn rest(&self, index: u16) {
        if let Ok(queue) = self.queue(index) {
            // It fails when nobody was woken.
            let _ = rustix::io::read(&queue.wake, &mut [0_u8; 8]);
        }
    }

    fn queue(&self, index: u16) -> io::Result<&Queue> {
        let queue = self.queues.get(usize::from(index));
        queue.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for RxInterrupts {
    fn drop(&mut self) {
        let handle = self.handle.as_ptr();
        // SAFETY: our live handle, which nobody else has: the owner took it from the port before.
        unsafe { rte_intr_vec_list_free(handle) };
        // SAFETY: as above, and not used after this.
        unsafe { rte_intr_instance_free(handle) };
    }
}

/// Reads an eventfd's count away. It never waits, whatever the peer does with its own copy: the fd's
/// own flag is the peer's to change, so the call itself says so.
pub fn drain(kick: BorrowedFd<'_>) {
    let mut count = 0_u64;
    let buffer = libc::iovec {
        iov_base: (&raw mut count).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: an open fd, and one buffer of 8 bytes. Offset -1: wherever the file stands. When it
    // fails there was nothing to read, or the kernel is older than 5.8 and kicks stay counted.
    unsafe { libc::preadv2(kick.as_raw_fd(), &raw const buffer, 1, -1, libc::RWF_NOWAIT) };
}

fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: no condition.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result.saturating_abs()))
    }
}
