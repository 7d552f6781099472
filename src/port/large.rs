//! Buffers for frames that do not fit one mbuf (`ext-buffer=1`).
//!
//! An rx queue has a pool of them from its setup on; an mbuf takes one as its external buffer.
//! Whoever drops the last reference to it gives the buffer back, on any thread, and also when queue
//! and port are gone by then: the memory goes with the last buffer.
//!
//! The pool is two lists. The polling lcore takes from one that is its own. Others push to a second
//! one, which the lcore takes over whole when the first is empty, so no entry of a shared list is
//! ever popped alone and none can come back under a popper's feet.

use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

use crate::dpdk::malloc;
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::sys::{RTE_PKTMBUF_HEADROOM, rte_mbuf_ext_shared_info};
use crate::guard;

/// Bytes of a buffer, headroom included: as many as an mbuf can tell.
const LEN: u16 = u16::MAX;
/// From one buffer to the next. Not a power of two, or all would fall into the same cache sets.
const STRIDE: usize = 68 * 1024 + 64;
/// Least and most buffers of a queue.
const COUNT: (u16, u16) = (32, 256);
/// The longest frame that fits.
pub(super) const LONGEST: u16 = LEN - RTE_PKTMBUF_HEADROOM;

#[repr(C, align(64))]
struct Bytes([u8; STRIDE]);

/// What is kept of a buffer, beside its bytes.
#[repr(C, align(64))]
struct Buffer {
    /// Counts the mbufs that have the buffer.
    shared: rte_mbuf_ext_shared_info,
    pool: NonNull<Pool>,
    /// The next one in the list that this one is in.
    next: AtomicPtr<Buffer>,
    start: NonNull<Bytes>,
    iova: u64,
}

#[repr(C, align(64))]
struct Pool {
    /// Belongs to the polling lcore.
    free: AtomicPtr<Buffer>,
    bytes: NonNull<Bytes>,
    buffers: NonNull<Buffer>,
    others: Others,
}

/// What threads beside the polling lcore write.
#[repr(C, align(64))]
struct Others {
    returned: AtomicPtr<Buffer>,
    /// The queue, and each buffer that is out. Who takes the last one away frees the memory.
    users: AtomicU32,
}

/// The large buffers of an rx queue.
#[derive(Clone, Copy, Debug)]
pub struct LargeBuffers(NonNull<Pool>);

impl LargeBuffers {
    /// Buffers for a queue of `descriptors` on memory node `socket`; fewer when memory is scarce.
    pub(super) fn new(descriptors: u16, socket: c_int) -> Option<Self> {
        let mut count = usize::from(descriptors.clamp(COUNT.0, COUNT.1));
        let bytes = loop {
            match malloc::zeroed_array::<Bytes>(c"net_vhost large", count, socket) {
                Some(bytes) => break bytes,
                None if count / 2 < usize::from(COUNT.0) => return None,
                None => count /= 2,
            }
        };
        let pool = malloc::zeroed::<Pool>(c"net_vhost large pool", socket);
        let buffers = malloc::zeroed_array::<Buffer>(c"net_vhost large info", count, socket);
        let (Some(pool), Some(buffers)) = (pool, buffers) else {
            // SAFETY: fresh memory that nobody else has.
            unsafe { malloc::free(bytes) };
            for memory in [pool.map(NonNull::cast::<u8>), buffers.map(NonNull::cast)] {
                // SAFETY: as above.
                memory
                    .into_iter()
                    .for_each(|memory| unsafe { malloc::free(memory) });
            }
            return None;
        };
        let mut free = ptr::null_mut();
        for index in (0..count).rev() {
            // SAFETY: below `count`, so within the array.
            let start = unsafe { bytes.add(index) };
            let Some(iova) = whole(start) else {
                continue;
            };
            // SAFETY: as above.
            let buffer = unsafe { buffers.add(index) };
            let value = Buffer {
                shared: rte_mbuf_ext_shared_info {
                    free_cb: Some(give_back),
                    fcb_opaque: buffer.as_ptr().cast(),
                    refcnt: 0,
                },
                pool,
                next: AtomicPtr::new(free),
                start,
                iova,
            };
            // SAFETY: fresh memory of that size and alignment.
            unsafe { buffer.write(value) };
            free = buffer.as_ptr();
        }
        let value = Pool {
            free: AtomicPtr::new(free),
            bytes,
            buffers,
            others: Others {
                returned: AtomicPtr::new(ptr::null_mut()),
                users: AtomicU32::new(1),
            },
        };
        // SAFETY: fresh memory of that size and alignment.
        unsafe { pool.write(value) };
        Some(Self(pool))
    }

    /// Gives a fresh mbuf a large buffer in the place of its own; where the data of the frame goes
    /// then, [`LONGEST`] bytes. `None` when all buffers are out.
    ///
    /// # Safety
    ///
    /// The queue is not released yet, only the lcore that polls it calls this, and the mbuf is of a
    /// pool without pinned buffers.
    pub(super) unsafe fn attach(self, mbuf: Mbuf) -> Option<NonNull<u8>> {
        // SAFETY: freed after the queue released it (caller).
        let pool = unsafe { self.0.as_ref() };
        let mut buffer = pool.free.load(Ordering::Relaxed);
        if buffer.is_null() {
            // Acquire: the links that others wrote.
            buffer = pool
                .others
                .returned
                .swap(ptr::null_mut(), Ordering::Acquire);
        }
        let buffer = NonNull::new(buffer)?.as_ptr();
        // SAFETY: a buffer of the pool, which this lcore has alone: it was in a list.
        let buffer = unsafe { &mut *buffer };
        let next = buffer.next.load(Ordering::Relaxed);
        pool.free.store(next, Ordering::Relaxed);
        pool.others.users.fetch_add(1, Ordering::Relaxed);
        buffer.shared.refcnt = 1;
        let start = buffer.start.cast::<u8>();
        // SAFETY: a fresh mbuf (caller); the buffer has more than `LEN` bytes, and both stay until
        // `give_back` ran.
        unsafe { mbuf.attach_external(start.as_ptr(), buffer.iova, LEN, &raw mut buffer.shared) };
        // SAFETY: the headroom is a part of the buffer.
        Some(unsafe { start.add(usize::from(RTE_PKTMBUF_HEADROOM)) })
    }

    /// The queue does without the buffers from now on. Those that are out stay valid.
    ///
    /// # Safety
    ///
    /// Called once, when nobody polls the queue any more.
    pub(super) unsafe fn release(self) {
        // SAFETY: the queue's share, which it gives up here (caller).
        unsafe { release(self.0) };
    }
}

/// Where devices find the bytes; `None` when they do not see them in one piece.
fn whole(start: NonNull<Bytes>) -> Option<u64> {
    // SAFETY: the last byte of the same buffer.
    let end = unsafe { start.cast::<u8>().add(usize::from(LEN) - 1) };
    match (malloc::iova(start), malloc::iova(end)) {
        (Some(first), Some(last)) => {
            (last.wrapping_sub(first) == u64::from(LEN) - 1).then_some(first)
        }
        // No device sees this memory anyway.
        _ => Some(u64::MAX),
    }
}

/// Takes one user away, and frees the memory after the last one.
///
/// # Safety
///
/// The caller is one of the pool's users, and is none any more after this.
unsafe fn release(pool: NonNull<Pool>) {
    let (bytes, buffers, last) = {
        // SAFETY: it lives as long as it has users (caller).
        let pool = unsafe { pool.as_ref() };
        // Release: what this user did with the pool, before another one frees it.
        let last = pool.others.users.fetch_sub(1, Ordering::Release) == 1;
        (pool.bytes, pool.buffers, last)
    };
    if last {
        fence(Ordering::Acquire);
        // SAFETY: there was no other user left.
        unsafe { malloc::free(bytes) };
        // SAFETY: as above.
        unsafe { malloc::free(buffers) };
        // SAFETY: as above.
        unsafe { malloc::free(pool) };
    }
}

/// Takes a buffer back when the last mbuf that had it was freed.
///
/// # Safety
///
/// DPDK calls it with what `fcb_opaque` says, once for each [`LargeBuffers::attach`].
unsafe extern "C" fn give_back(_bytes: *mut c_void, buffer: *mut c_void) {
    guard::catch((), || {
        let at = buffer.cast::<Buffer>();
        // SAFETY: a buffer of the pool; nobody has it now but us.
        let Some(buffer) = (unsafe { at.as_ref() }) else {
            return;
        };
        let pool = buffer.pool;
        {
            // SAFETY: this buffer's share keeps the pool until `release` below.
            let others = unsafe { &pool.as_ref().others };
            let mut first = others.returned.load(Ordering::Relaxed);
            loop {
                buffer.next.store(first, Ordering::Relaxed);
                // Release: the link above, and what was done with the bytes.
                let pushed = others.returned.compare_exchange_weak(
                    first,
                    at,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                match pushed {
                    Ok(_) => break,
                    Err(now) => first = now,
                }
            }
        }
        // SAFETY: this buffer's share.
        unsafe { release(pool) };
    });
}
