//! Postcopy migration: a guest whose pages come when they are touched. The frontend of these tests
//! is in the process of the backend, which makes no difference to the kernel.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, mpsc};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::port::{DEADLINE, Event, Port};
use crate::raw::*;
use crate::{Place, until};
use rte_net_vhost::memory::{Gpa, Region, RegionConfig, Uva};
use rte_net_vhost::session::Endpoint;
use rte_net_vhost::session::features::*;
use rte_net_vhost::virtqueue::{Ring, SplitRing};

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;
const PAGEFAULT: u64 = VHOST_USER_PROTOCOL_F_PAGEFAULT | VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;

/// The host that the guest comes from: it has all pages, and sends those that are asked for.
struct Source {
    /// Offsets in the guest's memory of the faults so far.
    faults: Arc<Mutex<Vec<u64>>>,
    over: Option<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Source {
    /// Serves page faults that come on `userfault` for memory that was mapped at `base`, as long as
    /// this lives. All pages have `page` bytes and are full of `content`.
    fn new(userfault: File, base: u64, page: usize, content: u8) -> Self {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&faults);
        let over = event();
        let watched = over.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let bytes = vec![content; page];
            loop {
                let mut fds = [
                    PollFd::new(&userfault, PollFlags::IN),
                    PollFd::new(&watched, PollFlags::IN),
                ];
                poll(&mut fds, None::<&Timespec>).unwrap();
                if !fds[1].revents().is_empty() {
                    return;
                }
                // `struct uffd_msg`: the event, then the flags and the address of the fault.
                let mut message = [0; 32];
                if rustix::io::read(&userfault, &mut message).is_err() {
                    continue;
                }
                assert_eq!(message[0], 0x12, "not a page fault");
                let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
                seen.lock().unwrap().push(address - base);
                fill(&userfault, address & !(page as u64 - 1), &bytes);
            }
        });
        Self {
            faults,
            over: Some(over),
            thread: Some(thread),
        }
    }

    fn faults(&self) -> Vec<u64> {
        let mut faults = self.faults.lock().unwrap().clone();
        faults.sort_unstable();
        faults.dedup();
        faults
    }
}

/// Puts a page where it is missing, and wakes who waits for it.
fn fill(userfault: &File, address: u64, bytes: &[u8]) {
    // `struct uffdio_copy`: to, from, length, mode, and the bytes that were copied.
    let (from, length) = (
        bytes.as_ptr().expose_provenance() as u64,
        bytes.len() as u64,
    );
    let mut copy = [address, from, length, 0, 0];
    const COPY: Opcode = opcode::read_write::<[u64; 5]>(0xaa, 3);
    // SAFETY: the operation reads and writes a `struct uffdio_copy`: five words.
    let operation = unsafe { Updater::<COPY, [u64; 5]>::new(&mut copy) };
    // SAFETY: `bytes` are valid for the length; they are copied to shared guest memory only.
    match unsafe { ioctl(userfault, operation) } {
        // It came in the meantime.
        Ok(()) | Err(Errno::EXIST) => (),
        Err(error) => panic!("UFFDIO_COPY: {error}"),
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(over) = self.over.take() {
            rustix::io::write(&over, &1_u64.to_ne_bytes()).unwrap();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A frontend that has negotiated, but has no memory yet.
fn connect(place: &Place) -> Frontend {
    let frontend = Frontend::connect(&place.path(), 2);
    let raw = &frontend.raw;
    raw.ok(SET_OWNER, &[], &[]);
    raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    raw.ok(SET_PROTOCOL_FEATURES, &u64s(&[PAGEFAULT]), &[]);
    frontend
}

fn advise(frontend: &Frontend) -> File {
    frontend.raw.tell(POSTCOPY_ADVISE, &[], &[]);
    frontend.raw.answer_file(POSTCOPY_ADVISE).unwrap()
}

/// Advises and listens.
fn listen(frontend: &Frontend) -> File {
    let userfault = advise(frontend);
    frontend.raw.ok(POSTCOPY_LISTEN, &[], &[]);
    userfault
}

fn whole(frontend: &Frontend) -> [u64; 4] {
    [0, frontend.size(), UVA, 0]
}

fn single(region: [u64; 4]) -> Vec<u8> {
    let mut body = u64s(&[0]);
    body.extend(u64s(&region));
    body
}

/// Shares all memory; where it was mapped.
fn share(frontend: &Frontend) -> u64 {
    let body = table(&[whole(frontend)]);
    frontend.raw.tell(SET_MEM_TABLE, &body, &[&frontend.memory]);
    told_base(&body, &frontend.raw.answer(SET_MEM_TABLE))
}

/// The answer is the message, but for the address of the first region.
#[track_caller]
fn told_base(asked: &[u8], answer: &[u8]) -> u64 {
    assert_eq!(
        (&answer[..24], &answer[32..]),
        (&asked[..24], &asked[32..]),
        "more than the address differs"
    );
    let base = u64::from_ne_bytes(answer[24..32].try_into().unwrap());
    assert_ne!(base, UVA);
    base
}

fn acknowledge(frontend: &Frontend, request: u32) {
    frontend.raw.tell(request, &u64s(&[0]), &[]);
    frontend.raw.sync();
}

/// Pages of the memory file that are there.
fn pages(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512 / PAGE
}

#[test]
fn a_ring_starts_with_the_pages_that_come_when_they_are_touched() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = connect(&place);
    let userfault = listen(&frontend);
    let base = share(&frontend);
    let source = Source::new(userfault, base, PAGE_BYTES, 7);
    acknowledge(&frontend, SET_MEM_TABLE);

    frontend.start(0..2);

    assert!(matches!(port.wait_for(3)[2], Event::Up(_)));
    // Where the used rings end is read from pages that were not there.
    for index in 0..2 {
        assert_eq!(port.poll(index, |virtqueue| virtqueue.position()), 0x0707);
    }
    let used = [0x2000, RING_ROOM + 0x2000];
    let faults = source.faults();
    assert!(used.iter().all(|page| faults.contains(page)), "{faults:x?}");
    assert!(pages(&frontend.memory) < 8, "a page came without need");

    frontend.raw.tell(POSTCOPY_END, &[], &[]);
    assert_eq!(frontend.raw.answer_u64(POSTCOPY_END), 0);

    // From here on nobody waits any more, and memory is shared as usual.
    drop(source);
    let mut more = whole(&frontend);
    more[0] += 0x100_0000;
    more[2] += 0x100_0000;
    frontend
        .raw
        .ok(ADD_MEM_REG, &single(more), &[&frontend.memory]);
    assert_eq!(port.given(), [0, 1]);
    drop((endpoint, frontend, port));
    place.no_file_left();
}

#[test]
fn huge_pages_come_as_a_whole() {
    const HUGE: u32 = 2 << 20;
    let place = Place::new();
    let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB | MemfdFlags::CLOEXEC;
    let reserved = memfd_create("guest", huge).is_ok_and(|file| {
        let fits = ftruncate(&file, HUGE.into()).is_ok();
        // A mapping takes its pages out of the reserve.
        let config = RegionConfig {
            gpa: Gpa(0),
            uva: Uva(UVA),
            size: HUGE.into(),
            offset: 0,
        };
        fits && Region::map(config, file.into()).is_ok()
    });
    if !reserved {
        println!("SKIPPED huge_pages_come_as_a_whole: no huge page is free");
        return;
    }
    let (endpoint, port) = place.serve();
    let mut frontend = connect(&place);
    frontend.memory = memfd_create("guest", huge).unwrap().into();
    ftruncate(&frontend.memory, HUGE.into()).unwrap();
    let userfault = listen(&frontend);
    let base = share(&frontend);
    let source = Source::new(userfault, base, HUGE as usize, 7);
    acknowledge(&frontend, SET_MEM_TABLE);
    frontend.start(0..2);
    assert!(matches!(port.wait_for(3)[2], Event::Up(_)));
    for index in 0..2 {
        assert_eq!(port.poll(index, |virtqueue| virtqueue.position()), 0x0707);
    }
    assert_eq!(source.faults().len(), 1);
    drop((endpoint, frontend, port, source));
    place.no_file_left();
}

#[test]
fn nobody_touches_memory_before_the_acknowledgement() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = connect(&place);
    let userfault = listen(&frontend);
    let base = share(&frontend);
    frontend.start(0..2);
    frontend.raw.sync();
    assert!(port.given().is_empty());
    assert!(port.events().is_empty());
    assert_eq!(pages(&frontend.memory), 0);

    let source = Source::new(userfault, base, PAGE_BYTES, 0);
    acknowledge(&frontend, SET_MEM_TABLE);

    assert_eq!(port.wait_for(3).len(), 3);
    assert_eq!(port.given(), [0, 1]);
    drop((endpoint, frontend, source, port));
    place.no_file_left();
}

#[test]
fn single_regions_are_told_one_by_one_and_acknowledged_together() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = connect(&place);
    let userfault = listen(&frontend);
    let add = |region: [u64; 4]| {
        let body = single(region);
        frontend.raw.tell(ADD_MEM_REG, &body, &[&frontend.memory]);
        told_base(&body, &frontend.raw.answer(ADD_MEM_REG))
    };
    // The rings of vring 0 and of vring 1.
    let first = add([0, RING_ROOM, UVA, 0]);
    let second = add([RING_ROOM, RING_ROOM, UVA + RING_ROOM, RING_ROOM]);
    frontend.start(0..2);
    frontend.raw.sync();
    assert!(port.given().is_empty());
    // Only the second one is filled, so a fault in the first one would be seen as nonsense.
    let memory = &frontend.memory;
    memory.write_all_at(&[0; 4 * PAGE_BYTES], 0).unwrap();
    let source = Source::new(userfault, second - RING_ROOM, PAGE_BYTES, 0);
    acknowledge(&frontend, ADD_MEM_REG);
    assert_eq!(port.wait_for(3).len(), 3);
    assert!(source.faults().contains(&(RING_ROOM + 0x2000)));

    // QEMU says the same once more for each queue pair.
    assert_eq!(add([0, RING_ROOM, UVA, 0]), first);
    acknowledge(&frontend, ADD_MEM_REG);
    assert_eq!(port.given(), [0, 1]);
    assert_eq!(port.events().len(), 3);
    // One that goes is acknowledged, too, under its own number.
    let body = single([0x100_0000, PAGE, UVA + 0x100_0000, 0]);
    frontend.raw.tell(ADD_MEM_REG, &body, &[&frontend.memory]);
    frontend.raw.answer(ADD_MEM_REG);
    frontend.raw.ok(REM_MEM_REG, &body, &[]);
    acknowledge(&frontend, REM_MEM_REG);
    until(|| port.given() == [0, 1]);
    drop((endpoint, frontend, source, port));
    place.no_file_left();
}

#[test]
fn each_queue_pair_may_advise_listen_and_end() {
    let place = Place::new();
    let (endpoint, _port) = place.serve();
    let frontend = connect(&place);
    let files = crate::open_files();
    let (first, second) = (advise(&frontend), advise(&frontend));
    for _ in 0..2 {
        frontend.raw.ok(POSTCOPY_LISTEN, &[], &[]);
    }
    drop((first, second));
    for _ in 0..2 {
        frontend.raw.tell(POSTCOPY_END, &[], &[]);
        assert_eq!(frontend.raw.answer_u64(POSTCOPY_END), 0);
    }
    until(|| crate::open_files() == files);
    // And once more from the beginning.
    for _ in 0..50 {
        advise(&frontend);
    }
    frontend.raw.ok(RESET_OWNER, &[], &[]);
    until(|| crate::open_files() == files);
    drop((endpoint, frontend));
    place.no_file_left();
}

#[test]
fn engines_forget_what_they_know_of_the_memory_before() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = connect(&place);
    frontend.share(&[whole(&frontend)]);
    frontend.start(0..2);
    port.wait_for(3);
    let known = Arc::new(());
    port.poll(0, |virtqueue| {
        let known = Arc::clone(&known);
        virtqueue.memory.regions()[0].admit(7, || Box::new(known));
    });
    assert_eq!(Arc::strong_count(&known), 2);

    advise(&frontend);

    assert_eq!(Arc::strong_count(&known), 1);
}

#[test]
fn what_is_not_negotiated_or_out_of_order_is_refused() {
    let place = Place::new();
    let (endpoint, _port) = place.serve();
    let frontend = connect(&place);
    let raw = &frontend.raw;
    raw.refused(POSTCOPY_LISTEN, &[], &[]);
    raw.refused(POSTCOPY_ADVISE, &[], &[&frontend.memory]);
    frontend.share(&[whole(&frontend)]);
    advise(&frontend);
    raw.refused(POSTCOPY_LISTEN, &[], &[]);
    raw.ok(SET_MEM_TABLE, &u64s(&[0]), &[]);
    raw.ok(POSTCOPY_LISTEN, &[], &[]);
    // A table that cannot be mapped is an error as always.
    raw.refused(SET_MEM_TABLE, &table(&[whole(&frontend)]), &[]);
    let outside = [0, frontend.size() + PAGE, UVA, 0];
    raw.refused(SET_MEM_TABLE, &table(&[outside]), &[&frontend.memory]);

    let plain = Frontend::connect(&place.path(), 2);
    plain.negotiate(PLAIN, 0);
    for request in [POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END] {
        plain.raw.refused(request, &[], &[]);
    }
    drop((endpoint, frontend, plain));
    place.no_file_left();
}

#[test]
fn a_wrong_acknowledgement_ends_the_connection() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    for (shares, answer) in [(true, 1), (true, u64::MAX), (false, 0)] {
        let frontend = connect(&place);
        listen(&frontend);
        if shares {
            share(&frontend);
            frontend.start(0..2);
        }
        // Whatever its flags say, it is not answered.
        let bytes = message(SET_MEM_TABLE, NEED_REPLY, &u64s(&[answer]));
        frontend.raw.send(&bytes, &[]);
        frontend.raw.closed();
        assert!(port.given().is_empty());
        assert_eq!(pages(&frontend.memory), 0);
    }
    drop(endpoint);
    place.no_file_left();
}

/// An endpoint that may not be able to end: its end has a deadline.
struct Ending(Option<Endpoint>);

impl Drop for Ending {
    fn drop(&mut self) {
        let (endpoint, over) = (self.0.take(), mpsc::channel());
        std::thread::spawn(move || {
            drop(endpoint);
            // Nobody may be there to hear it any more.
            let _ = over.0.send(());
        });
        let ended = over.1.recv_timeout(DEADLINE).is_ok();
        assert!(ended || std::thread::panicking(), "the port does not close");
    }
}

/// A device whose connection waits for a page that nobody sends.
fn stuck(place: &Place) -> (Ending, Arc<Port>, Frontend, File) {
    let (endpoint, port) = place.serve();
    let endpoint = Ending(Some(endpoint));
    let frontend = connect(place);
    let userfault = listen(&frontend);
    share(&frontend);
    for index in 0..2 {
        frontend.set_up(index, 0);
    }
    acknowledge(&frontend, SET_MEM_TABLE);
    frontend.enable(0, 1);
    wait_for_a_fault(&userfault);
    (endpoint, port, frontend, userfault)
}

fn wait_for_a_fault(userfault: &File) {
    let mut fds = [PollFd::new(userfault, PollFlags::IN)];
    let patience = Timespec::try_from(DEADLINE).unwrap();
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "no fault");
}

#[test]
fn who_waits_for_a_page_goes_on_when_the_frontend_leaves() {
    let place = Place::new();
    let (endpoint, port, frontend, userfault) = stuck(&place);
    // Others are served meanwhile.
    let other = Raw::connect(&place.path());
    assert_eq!(other.get(GET_FEATURES), offered());
    // The userfaultfd stays open: a frontend that died may have passed it on.
    drop(frontend);
    until(|| port.given().is_empty() && port.events().len() % 2 == 0);
    drop((endpoint, other, userfault));
    place.no_file_left();
}

#[test]
fn who_waits_for_a_page_goes_on_when_the_port_is_closed() {
    let place = Place::new();
    let (endpoint, port, frontend, userfault) = stuck(&place);
    drop(endpoint);
    assert!(port.given().is_empty());
    frontend.raw.closed();
    drop((frontend, userfault));
    place.no_file_left();
}

#[test]
fn a_poller_that_waits_for_a_page_goes_on_when_the_frontend_leaves() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let endpoint = Ending(Some(endpoint));
    let frontend = connect(&place);
    let userfault = listen(&frontend);
    share(&frontend);
    // The used rings are here, the available ones are not.
    for index in 0..2 {
        let used = index * RING_ROOM + 0x2000;
        let page = [0; 2 * PAGE_BYTES];
        frontend.memory.write_all_at(&page, used).unwrap();
    }
    acknowledge(&frontend, SET_MEM_TABLE);
    frontend.start(0..2);
    port.wait_for(3);
    let (lcore, done) = (Arc::clone(&port), mpsc::channel());
    let poller = std::thread::spawn(move || {
        let waiting = lcore.poll(0, |virtqueue| {
            let ring = SplitRing::of(&mut virtqueue.ring).unwrap();
            ring.available(1)
        });
        done.0.send(waiting).unwrap();
    });
    wait_for_a_fault(&userfault);
    drop(frontend);
    // The page that did not come reads as zero.
    assert_eq!(done.1.recv_timeout(DEADLINE).unwrap(), 0);
    poller.join().unwrap();
    until(|| port.given().is_empty());
    drop((endpoint, userfault));
    place.no_file_left();
}

#[test]
fn a_frontend_may_vanish_in_any_state() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    type Step = fn(&Frontend);
    let steps: [Step; 5] = [
        |frontend| drop(advise(frontend)),
        |frontend| frontend.raw.ok(POSTCOPY_LISTEN, &[], &[]),
        |frontend| {
            share(frontend);
        },
        |frontend| acknowledge(frontend, SET_MEM_TABLE),
        |frontend| frontend.raw.tell(POSTCOPY_END, &[], &[]),
    ];
    let idle = crate::open_files();
    for last in 0..=steps.len() {
        let frontend = connect(&place);
        for step in &steps[..last] {
            step(&frontend);
        }
        drop(frontend);
        until(|| crate::open_files() == idle && port.given().is_empty());
    }
    drop(endpoint);
    place.no_file_left();
}
