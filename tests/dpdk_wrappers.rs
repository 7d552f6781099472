//! The wrappers of `dpdk` against a real EAL, which needs neither huge pages nor rights.

#![cfg(feature = "dpdk")]

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

use rte_net_vhost::dpdk::eal::{self, Lcore};
use rte_net_vhost::dpdk::intr::RxInterrupts;
use rte_net_vhost::dpdk::mbuf::{self, Mbuf, RxFields, RxTemplate};
use rte_net_vhost::dpdk::memory::{self, Change, Memory};
use rte_net_vhost::dpdk::mempool::Mempool;
use rte_net_vhost::dpdk::sys::{rte_mempool, rte_mempool_cache};
use rte_net_vhost::dpdk::{malloc, thread as control};

unsafe extern "C" {
    fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    fn rte_pktmbuf_pool_create(
        name: *const c_char,
        count: c_uint,
        cache_size: c_uint,
        private_size: u16,
        data_room: u16,
        socket: c_int,
    ) -> *mut rte_mempool;
    fn rte_mempool_avail_count(pool: *const rte_mempool) -> c_uint;
}

const MBUFS: u32 = 1023;
const CACHE: u32 = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on EAL's main lcore, a thread that all tests of this process share.
fn on_lcore(job: impl FnOnce() + Send + 'static) {
    static LCORE: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let lcore = LCORE.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let (started, ready) = channel();
        thread::spawn(move || {
            init_eal();
            started.send(()).unwrap();
            jobs.iter().for_each(|job| job());
        });
        ready.recv().unwrap();
        Mutex::new(sender)
    });
    let (done, result) = channel();
    let job = move || {
        let _ = done.send(panic::catch_unwind(AssertUnwindSafe(job)));
    };
    lcore.lock().unwrap().send(Box::new(job)).unwrap();
    if let Err(payload) = result.recv().unwrap() {
        panic::resume_unwind(payload);
    }
}

fn init_eal() {
    let arguments = "test -l 0 --no-huge -m 64 --no-pci --no-shconf --no-telemetry -d \
                     librte_mempool_ring.so --file-prefix dpdk-wrappers";
    let arguments: Vec<_> = arguments
        .split_whitespace()
        .map(|text| CString::new(text).unwrap().into_raw())
        .collect();
    let mut arguments = arguments;
    let count = c_int::try_from(arguments.len()).unwrap();
    // SAFETY: an array of strings that live for ever.
    let result = unsafe { rte_eal_init(count, arguments.as_mut_ptr()) };
    assert!(result >= 0, "rte_eal_init failed");
}

/// A pool of [`MBUFS`] mbufs, which lives for ever.
fn pool(name: &CStr, cache_size: u32) -> Mempool {
    // SAFETY: a string that is copied, and plain numbers.
    let pool = unsafe {
        rte_pktmbuf_pool_create(name.as_ptr(), MBUFS, cache_size, 0, 2176, eal::ANY_SOCKET)
    };
    // SAFETY: just made, and never freed.
    unsafe { Mempool::from_ptr(pool) }.expect("no pool")
}

/// Objects in the pool and all its caches.
fn available(pool: Mempool) -> u32 {
    // SAFETY: a live pool.
    unsafe { rte_mempool_avail_count(pool.as_ptr()) }
}

/// Objects in the cache of the calling lcore.
fn cached(pool: Mempool, lcore: Lcore) -> u32 {
    // SAFETY: a live pool.
    let caches: *mut rte_mempool_cache = unsafe { (*pool.as_ptr()).local_cache };
    let cache = caches.wrapping_add(lcore.index().unwrap());
    // SAFETY: the pools with caches have one for each lcore.
    unsafe { (*cache).len }
}

fn alloc(pool: Mempool, lcore: Lcore, count: usize) -> Option<Vec<Mbuf>> {
    let mut mbufs = vec![MaybeUninit::uninit(); count];
    // SAFETY: a pktmbuf pool, and the cache of this thread.
    let filled = unsafe { mbuf::alloc_bulk(pool, pool.cache(lcore), &mut mbufs) };
    filled.then(|| {
        let taken = mbufs.into_iter();
        // SAFETY: `alloc_bulk` says that all are filled.
        taken.map(|mbuf| unsafe { mbuf.assume_init() }).collect()
    })
}

fn free(mbufs: &[Mbuf], lcore: Lcore) {
    // SAFETY: the tests do not use them any more.
    unsafe { mbuf::free_bulk(mbufs, lcore) };
}

/// Takes and gives in bursts of many sizes, in a fixed disorder.
fn churn(pool: Mempool, lcore: Lcore, check: impl Fn()) {
    let mut held: Vec<Mbuf> = Vec::new();
    let mut random = 1u32;
    for _ in 0..5000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let count = (random >> 24) as usize % 100 + 1;
        if random >> 20 & 1 == 0 {
            held.extend(alloc(pool, lcore, count).unwrap_or_default());
        } else {
            let rest = held.len().saturating_sub(count);
            free(&held.split_off(rest), lcore);
        }
        let distinct: HashSet<_> = held.iter().map(|mbuf| mbuf.as_ptr()).collect();
        assert_eq!(distinct.len(), held.len());
        assert_eq!(available(pool) as usize + held.len(), MBUFS as usize);
        check();
    }
    free(&held, lcore);
    assert_eq!(available(pool), MBUFS);
}

#[test]
fn no_mbuf_is_lost_and_the_cache_never_holds_more_than_its_size() {
    on_lcore(|| {
        let lcore = Lcore::current();
        let pool = pool(c"churn", CACHE);
        churn(pool, lcore, || assert!(cached(pool, lcore) <= CACHE));
        assert!(cached(pool, lcore) > 0);
    });
}

#[test]
fn a_pool_without_caches_works() {
    on_lcore(|| churn(pool(c"no-cache", 0), Lcore::current(), || {}));
}

#[test]
fn a_thread_without_lcore_works() {
    on_lcore(|| {
        let pool = pool(c"no-lcore", CACHE);
        let churned = thread::spawn(move || {
            assert_eq!(Lcore::current(), Lcore::NONE);
            churn(pool, Lcore::current(), || {});
        });
        churned.join().unwrap();
    });
}

#[test]
fn the_last_mbufs_of_a_pool_can_be_taken() {
    on_lcore(|| {
        let lcore = Lcore::current();
        let pool = pool(c"drain", CACHE);

        let all: Vec<_> = std::iter::from_fn(|| alloc(pool, lcore, 3))
            .flatten()
            .collect();

        assert_eq!(all.len(), MBUFS as usize);
        assert_eq!(alloc(pool, lcore, 1), None);
        free(&all, lcore);
        assert_eq!(available(pool), MBUFS);
    });
}

#[test]
fn packets_of_all_kinds_find_their_way_back() {
    on_lcore(|| {
        let lcore = Lcore::current();
        let (first, second) = (pool(c"kinds-1", CACHE), pool(c"kinds-2", 0));
        let mut packets = alloc(first, lcore, 8).unwrap();
        packets.extend(alloc(second, lcore, 8).unwrap());
        // A chain over both pools.
        let [head, tail] = [packets[3], packets[12]];
        packets.remove(12);
        head.set_next(Some(tail));
        head.set_nb_segs(2);
        // A packet with a second owner.
        let shared = packets[5];
        shared.add_reference();

        free(&packets, lcore);

        assert_eq!((available(first), available(second)), (MBUFS - 1, MBUFS));
        assert_eq!(shared.refcnt(), 1);
        free(&[shared], lcore);
        assert_eq!(available(first), MBUFS);
        assert_eq!((head.next(), head.nb_segs(), head.refcnt()), (None, 1, 1));
    });
}

#[test]
fn a_received_mbuf_has_dpdks_headroom() {
    on_lcore(|| {
        let lcore = Lcore::current();
        let pool = pool(c"headroom", CACHE);
        // SAFETY: a pktmbuf pool.
        let template = unsafe { RxTemplate::new(pool, 7) };
        let [mbuf] = alloc(pool, lcore, 1).unwrap()[..] else {
            panic!("one was asked for")
        };

        mbuf.init_rx(
            template,
            RxFields {
                pkt_len: 60,
                data_len: 60,
                ..RxFields::default()
            },
        );

        assert_eq!(mbuf.data(), mbuf.buf_addr().wrapping_add(128));
        assert_eq!(mbuf.tailroom(), 2176 - 128 - 60);
        assert_eq!(mbuf.pool(), Some(pool));
        assert_eq!((mbuf.port(), mbuf.next()), (7, None));
        free(&[mbuf], lcore);
        assert_eq!(available(pool), MBUFS);
    });
}

#[test]
fn a_control_thread_has_its_name_and_no_lcore() {
    on_lcore(|| {
        let (sender, seen) = channel();
        let body = move || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            sender.send((name, Lcore::current())).unwrap();
        };

        let thread = control::spawn(c"vhost-test", Box::new(body)).unwrap();

        assert!(!thread.is_current());
        let (name, lcore) = seen.recv().unwrap();
        thread.join().unwrap();
        assert_eq!(name.trim_end(), "vhost-test");
        assert_eq!(lcore, Lcore::NONE);
    });
}

#[test]
fn a_kick_wakes_only_its_queue() {
    on_lcore(|| {
        let interrupts = RxInterrupts::new(2).unwrap();
        // SAFETY: no condition.
        let kick = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC) };
        // SAFETY: just made.
        let kick = unsafe { OwnedFd::from_raw_fd(kick) };

        interrupts.add(1, kick.as_fd()).unwrap();

        assert_eq!(
            [0, 1].map(|queue| is_ready(&interrupts, queue)),
            [false, true]
        );
        interrupts.remove(1, kick.as_fd()).unwrap();
        assert!(!is_ready(&interrupts, 1));
        assert!(interrupts.add(2, kick.as_fd()).is_err());
    });
}

/// Whether an application that waits for the queue would wake.
fn is_ready(interrupts: &RxInterrupts, queue: u16) -> bool {
    let fd = interrupts.queue_fd(queue).unwrap().as_raw_fd();
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[test]
fn shared_memory_is_zeroed_and_aligned() {
    on_lcore(|| {
        let memory: NonNull<[u64; 100]> = malloc::zeroed(c"test", eal::ANY_SOCKET).unwrap();

        assert_eq!(memory.addr().get() % 64, 0);
        // SAFETY: just allocated, all zero.
        assert_eq!(unsafe { memory.read() }, [0; 100]);
        // SAFETY: not used any more.
        unsafe { malloc::free(memory) };
    });
}

struct Nobody;

impl memory::Watcher for Nobody {
    const NAME: &'static CStr = c"nobody";

    fn changed(_: Change, _: usize, _: usize, _: usize) {}
}

#[test]
fn memory_is_seen_page_by_page() {
    on_lcore(|| {
        let ours: NonNull<[u64; 100]> = malloc::zeroed(c"test", eal::ANY_SOCKET).unwrap();
        let at = ours.addr().get();
        let (mut bytes, mut with_ours, mut pages) = (0, 0, 0);
        memory::walk(|page| {
            let known = memory::segment(page.va).unwrap();
            assert_eq!((known.va, known.len), (page.va, page.len));
            bytes += page.len;
            with_ours += usize::from((page.va..page.va + page.len).contains(&at));
            true
        });
        assert_eq!((bytes, with_ours), (64 << 20, 1));
        memory::walk(|_| {
            pages += 1;
            pages < 3
        });
        assert_eq!(pages, 3);
        // Without huge pages all of it is there from the start.
        assert_eq!(memory::watch::<Nobody>(), Ok(Memory::Stays));
        // SAFETY: not used any more.
        unsafe { malloc::free(ours) };
    });
}
