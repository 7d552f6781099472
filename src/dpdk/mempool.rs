//! Mempools: the hot path of getting and putting objects, as DPDK's inline functions do it.
//!
//! Both sides of the C API share the per-lcore caches, so their rules hold here: a cache belongs to
//! one lcore, and its newest objects are at the end. Lines up to 25.11 let a put leave one and a
//! half times `size` objects in a cache; later ones assume `size` at most. Never leaving more than
//! `size` behind is right for all.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use super::eal::Lcore;
use super::sys::{
    RTE_MAX_LCORE, RTE_MEMPOOL_CACHE_MAX_SIZE, RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF, rte_mempool,
    rte_mempool_cache, rte_mempool_ops, rte_mempool_ops_table, rte_pktmbuf_pool_private,
};

/// More than this goes past the caches. Less may well be more than a cache's size: what it holds is
/// used, since a pool's last objects may all be there.
const LONGEST_GET: usize = RTE_MEMPOOL_CACHE_MAX_SIZE as usize;

/// An object as mempools see it.
pub type Object = *mut c_void;

/// A mempool that outlives the handle: the application keeps a pool while queues refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mempool(NonNull<rte_mempool>);

// SAFETY: pools are made for use by all threads; what is not shared is the cache, which is reached
// only through the `Lcore` of the calling thread.
unsafe impl Send for Mempool {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mempool {}

impl Mempool {
    /// The pool behind a pointer from ethdev or an mbuf.
    ///
    /// # Safety
    ///
    /// A mempool that exists for as long as the handle is used.
    #[inline(always)]
    pub unsafe fn from_ptr(pool: *mut rte_mempool) -> Option<Self> {
        NonNull::new(pool).map(Self)
    }

    /// The pointer that DPDK knows the pool by.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut rte_mempool {
        self.0.as_ptr()
    }

    /// This lcore's cache; `None` for a pool without caches or a thread without lcore id.
    #[inline(always)]
    pub fn cache(self, lcore: Lcore) -> Option<MempoolCache> {
        let index = lcore.index()?;
        // SAFETY: a live pool (invariant of the handle), whose settings do not change.
        let size = unsafe { (*self.as_ptr()).cache_size };
        if size == 0 {
            return None;
        }
        // SAFETY: as above.
        let caches = unsafe { (*self.as_ptr()).local_cache };
        // SAFETY: a pool with caches has one for each possible lcore id, which `index` is.
        let cache = unsafe { caches.add(index) };
        NonNull::new(cache).map(MempoolCache)
    }

    /// Bytes of data room, headroom included, in each mbuf of a pktmbuf pool.
    ///
    /// # Safety
    ///
    /// The pool was made by `rte_pktmbuf_pool_create` or one of its kind.
    pub unsafe fn data_room(self) -> u16 {
        // SAFETY: see above.
        unsafe { (*self.pktmbuf_private()).mbuf_data_room_size }
    }

    /// Whether the mbufs of a pktmbuf pool have external buffers for good
    /// (`rte_pktmbuf_pool_create_extbuf`).
    ///
    /// # Safety
    ///
    /// As for [`Mempool::data_room`].
    pub unsafe fn has_pinned_buffers(self) -> bool {
        // SAFETY: see above.
        let flags = unsafe { (*self.pktmbuf_private()).flags };
        flags & RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF != 0
    }

    /// A pool's private area follows its header and its caches.
    fn pktmbuf_private(self) -> *const rte_pktmbuf_pool_private {
        let caches = match self.cache_size() {
            0 => 0,
            _ => size_of::<rte_mempool_cache>() * RTE_MAX_LCORE as usize,
        };
        let offset = size_of::<rte_mempool>() + caches;
        self.as_ptr().cast::<u8>().wrapping_add(offset).cast()
    }

    fn cache_size(self) -> u32 {
        // SAFETY: a live pool (invariant of the handle), whose settings do not change.
        unsafe { (*self.as_ptr()).cache_size }
    }

    /// Fills `objects`, all or none.
    #[inline(always)]
    pub fn get_bulk(
        self,
        cache: Option<MempoolCache>,
        objects: &mut [MaybeUninit<Object>],
    ) -> bool {
        match cache {
            Some(cache) if objects.len() <= LONGEST_GET => self.get_cached(cache, objects),
            _ => self.dequeue(objects.as_mut_ptr().cast(), objects.len()),
        }
    }

    #[inline(always)]
    fn get_cached(self, cache: MempoolCache, objects: &mut [MaybeUninit<Object>]) -> bool {
        let len = cache.len();
        if objects.len() > len {
            return self.get_and_refill(cache, objects);
        }
        cache.take(len - objects.len(), objects);
        true
    }

    #[cold]
    fn get_and_refill(self, cache: MempoolCache, objects: &mut [MaybeUninit<Object>]) -> bool {
        let len = cache.len();
        let missing = objects.len() - len;
        // Half a cache stays for the next time, and leaves room for as much to be put. The array has
        // room for the largest request and half the largest cache.
        let fetched = missing + cache.size() / 2;
        if self.dequeue(cache.slot(len), fetched) {
            let total = len + fetched;
            cache.take(total - objects.len(), objects);
            return true;
        }
        // The pool is nearly empty: only what is asked for, and from the cache what it has.
        let Some((from_cache, from_pool)) = objects.split_at_mut_checked(len) else {
            return false;
        };
        if !self.dequeue(from_pool.as_mut_ptr().cast(), missing) {
            return false;
        }
        cache.take(0, from_cache);
        true
    }

    /// Gives objects back.
    ///
    /// # Safety
    ///
    /// They come from this pool and nobody uses them any more.
    #[inline(always)]
    pub unsafe fn put_bulk(self, cache: Option<MempoolCache>, objects: &[Object]) {
        match cache {
            Some(cache) if objects.len() <= cache.size() => {
                let mut len = cache.len();
                if len + objects.len() > cache.size() {
                    len = self.flush(cache, len, objects.len());
                }
                cache.append(len, objects);
            }
            _ => self.enqueue(objects.as_ptr(), objects.len()),
        }
    }

    /// Makes room for `coming` objects, and returns how many stay. Half a cache is left after the
    /// put, so that the next gets and puts need not go to the pool.
    #[cold]
    fn flush(self, cache: MempoolCache, len: usize, coming: usize) -> usize {
        let keep = (cache.size() / 2).saturating_sub(coming);
        self.enqueue(cache.slot(keep), len - keep);
        keep
    }

    #[inline(always)]
    fn ops(self) -> &'static rte_mempool_ops {
        // SAFETY: a live pool (invariant of the handle), whose settings do not change.
        let index = unsafe { (*self.as_ptr()).ops_index };
        let table = (&raw const rte_mempool_ops_table).cast::<u8>();
        let offset = core::mem::offset_of!(super::sys::rte_mempool_ops_table, ops);
        let first = table.wrapping_add(offset).cast::<rte_mempool_ops>();
        // SAFETY: a pool's index was given out by the table; ops are registered before pools use
        // them and never change after that.
        unsafe { &*first.wrapping_add(index.cast_unsigned() as usize) }
    }

    fn dequeue(self, objects: *mut Object, count: usize) -> bool {
        let (Some(dequeue), Ok(count)) = (self.ops().dequeue, count.try_into()) else {
            return false;
        };
        // SAFETY: a live pool, and room for `count` pointers, as both callers see to.
        let result: c_int = unsafe { dequeue(self.as_ptr(), objects, count) };
        result == 0
    }

    fn enqueue(self, objects: *const Object, count: usize) {
        let (Some(enqueue), Ok(count)) = (self.ops().enqueue, count.try_into()) else {
            return;
        };
        // SAFETY: a live pool and `count` objects of it, as both callers see to. It cannot be full:
        // it has room for all objects that it ever gave out.
        unsafe { enqueue(self.as_ptr(), objects, count) };
    }
}

/// The calling lcore's cache of one pool. Looked up once per burst; not `Send`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct MempoolCache(NonNull<rte_mempool_cache>);

impl MempoolCache {
    #[inline(always)]
    fn size(self) -> usize {
        // SAFETY: a live cache that only this lcore uses.
        unsafe { (*self.0.as_ptr()).size as usize }
    }

    #[inline(always)]
    fn len(self) -> usize {
        // SAFETY: a live cache that only this lcore uses.
        unsafe { (*self.0.as_ptr()).len as usize }
    }

    #[inline(always)]
    fn set_len(self, len: usize) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "at most the array's 1024 entries"
        )]
        let len = len as u32;
        // SAFETY: a live cache that only this lcore uses.
        unsafe { (*self.0.as_ptr()).len = len };
    }

    /// Where object `index` is kept. The array has room for twice the largest cache size.
    #[inline(always)]
    fn slot(self, index: usize) -> *mut Object {
        // SAFETY: a live cache; only the address is made.
        let objects = unsafe { &raw mut (*self.0.as_ptr()).objs };
        objects.cast::<Object>().wrapping_add(index)
    }

    /// Moves the objects from `start` on, as many as `out` has room for, out of the cache.
    #[inline(always)]
    fn take(self, start: usize, out: &mut [MaybeUninit<Object>]) {
        // SAFETY: the cache holds these entries, as both callers counted; `out` is not in it.
        unsafe { copy_pointers(out.as_mut_ptr().cast(), self.slot(start), out.len()) };
        self.set_len(start);
    }

    /// Adds objects after the first `len`.
    #[inline(always)]
    fn append(self, len: usize, objects: &[Object]) {
        // SAFETY: `len + objects.len() <= size`, as the caller made sure; `objects` is not in it.
        unsafe { copy_pointers(self.slot(len), objects.as_ptr(), objects.len()) };
        self.set_len(len + objects.len());
    }
}

/// Copies `count` pointers in line: for a short burst a call of libc costs more than it does.
///
/// # Safety
///
/// `count` pointers readable at `src` and writable at `dst`, not overlapping.
#[inline(always)]
unsafe fn copy_pointers(dst: *mut Object, src: *const Object, count: usize) {
    let mut done = 0;
    while count - done >= 8 {
        // SAFETY: eight more are left.
        unsafe { copy_group::<8>(dst, src, done) };
        done += 8;
    }
    while done < count {
        // SAFETY: one more is left.
        unsafe { copy_group::<1>(dst, src, done) };
        done += 1;
    }
}

/// `N` pointers from number `at` on.
///
/// # Safety
///
/// `at + N` pointers readable at `src` and writable at `dst`.
#[inline(always)]
unsafe fn copy_group<const N: usize>(dst: *mut Object, src: *const Object, at: usize) {
    // SAFETY: inside the source (caller).
    let src = unsafe { src.add(at) };
    // SAFETY: as above, and aligned as an array of pointers is.
    let group = unsafe { src.cast::<[Object; N]>().read() };
    // SAFETY: inside the destination (caller).
    let dst = unsafe { dst.add(at) };
    // SAFETY: as above.
    unsafe { dst.cast::<[Object; N]>().write(group) };
}

#[cfg(test)]
mod tests {
    use core::ptr;

    use super::*;

    /// A cache of `size` that holds the objects 1..=`len`.
    fn cache(size: u32, len: u32) -> Box<rte_mempool_cache> {
        // SAFETY: integers and pointers, for which zero is a value.
        let mut cache: Box<rte_mempool_cache> = unsafe { Box::new_zeroed().assume_init() };
        cache.size = size;
        cache.len = len;
        for index in 0..len as usize {
            cache.objs[index] = ptr::without_provenance_mut(index + 1);
        }
        cache
    }

    #[test]
    fn taken_objects_are_the_newest() {
        let mut memory = cache(8, 5);
        let handle = MempoolCache(NonNull::from(memory.as_mut()));
        let mut out = [MaybeUninit::uninit(); 2];

        handle.take(3, &mut out);

        // SAFETY: `take` fills all.
        let out = out.map(|object| unsafe { object.assume_init() }.addr());
        assert_eq!(out, [4, 5]);
        assert_eq!(memory.len, 3);
    }

    #[test]
    fn appended_objects_come_last() {
        let mut memory = cache(8, 2);
        let handle = MempoolCache(NonNull::from(memory.as_mut()));

        handle.append(
            2,
            &[
                ptr::without_provenance_mut(7),
                ptr::without_provenance_mut(9),
            ],
        );

        assert_eq!(memory.len, 4);
        assert_eq!(
            memory.objs[..4]
                .iter()
                .map(|object| object.addr())
                .collect::<Vec<_>>(),
            [1, 2, 7, 9]
        );
    }
}
