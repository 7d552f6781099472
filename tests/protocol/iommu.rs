//! Behind an IOMMU: what is asked on the backend channel, and what an answer or an invalidation does to
//! rings and to buffers.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rte_net_vhost::datapath::{QueueCounters, Release, select_dequeue, select_enqueue};
use rte_net_vhost::session::features::*;
use rte_net_vhost::session::{Endpoint, SessionConfig};
use rte_net_vhost::testing::{FakePacket, FakePool};

use crate::port::{DEADLINE, Event, Port};
use crate::raw::*;
use crate::{Place, until};

const FEATURES: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1 | VIRTIO_F_IOMMU_PLATFORM;

/// I/O virtual address of guest-physical 0, where the rings lie.
const IOVA: u64 = 0x10_0000_0000;
/// Where buffers lie, in both kinds of addresses; far from each other.
const BUFFERS: u64 = 0xff_f000_0000;
const BUFFERS_GPA: u64 = 0x2_0000;
const PAGE: u64 = 0x1000;

const READ: u8 = 1;
const BOTH: u8 = 3;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// A frontend with an IOMMU.
struct Iommu {
    frontend: Frontend,
    channel: UnixStream,
}

fn config(place: &Place) -> SessionConfig {
    SessionConfig {
        features: offered() | VIRTIO_F_IOMMU_PLATFORM,
        ..place.config()
    }
}

fn serve(place: &Place) -> (Endpoint, Arc<Port>) {
    place.serve_with(config(place), Port::default())
}

fn message_of(iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) -> Vec<u8> {
    let mut body = u64s(&[iova, size, uaddr]);
    body.extend([perm, kind, 0, 0, 0, 0, 0, 0]);
    body
}

impl Iommu {
    /// With 1 MB of memory, room for 64 vrings; the channel is handed over.
    fn connect(place: &Place) -> Self {
        let frontend = Frontend::connect(&place.path(), 64);
        frontend.negotiate(FEATURES, VHOST_USER_PROTOCOL_F_BACKEND_REQ);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        frontend.raw.ok(SET_BACKEND_REQ_FD, &[], &[&theirs]);
        Self {
            frontend,
            channel: ours,
        }
    }

    /// The next question: address and access.
    #[track_caller]
    fn question(&self) -> (u64, u8) {
        let mut bytes = [0; 44];
        (&self.channel).read_exact(&mut bytes).unwrap();
        let expected = message(1, 0, &message_of(0, 0, 0, bytes[36], 1));
        let iova = u64::from_ne_bytes(bytes[12..20].try_into().unwrap());
        bytes[12..20].fill(0);
        assert_eq!(bytes[..], expected[..], "a miss and nothing else");
        (iova, bytes[36])
    }

    /// Whether nothing is asked, all messages being dealt with.
    #[track_caller]
    fn no_question(&self) {
        self.frontend.raw.sync();
        self.channel.set_nonblocking(true).unwrap();
        let mut bytes = [0; 44];
        let read = (&self.channel).read(&mut bytes);
        self.channel.set_nonblocking(false).unwrap();
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            other => panic!("asked: {other:?} {bytes:x?}"),
        }
    }

    #[track_caller]
    fn update(&self, iova: u64, size: u64, gpa: u64, perm: u8) {
        let body = message_of(iova, size, UVA + gpa, perm, UPDATE);
        self.frontend.raw.ok(IOTLB_MSG, &body, &[]);
    }

    #[track_caller]
    fn invalidate(&self, iova: u64, size: u64) {
        let body = message_of(iova, size, 0, 0, INVALIDATE);
        self.frontend.raw.ok(IOTLB_MSG, &body, &[]);
    }

    #[track_caller]
    fn refused(&self, iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) {
        let body = message_of(iova, size, uaddr, perm, kind);
        self.frontend.raw.refused(IOTLB_MSG, &body, &[]);
    }

    /// Answers a question about a page of the rings.
    #[track_caller]
    fn answer_ring(&self, iova: u64) {
        let page = iova & !(PAGE - 1);
        self.update(page, PAGE, page - IOVA, BOTH);
    }

    /// Sets vring `index` up with its addresses behind the IOMMU, and enables it.
    fn start(&self, index: u32) {
        let Frontend {
            raw, kicks, calls, ..
        } = &self.frontend;
        let nth = index as usize;
        raw.ok(SET_VRING_NUM, &u32s(&[index, RING_SIZE]), &[]);
        raw.ok(SET_VRING_BASE, &u32s(&[index, 0]), &[]);
        raw.ok(SET_VRING_ADDR, &areas(index), &[]);
        raw.ok(SET_VRING_KICK, &u64s(&[index.into()]), &[&kicks[nth]]);
        raw.ok(SET_VRING_CALL, &u64s(&[index.into()]), &[&calls[nth]]);
        self.frontend.enable(index, 1);
    }

    /// Starts vrings 0 and 1 with all that they need to run.
    fn start_pair(&self, port: &Port) {
        self.update(IOVA, 2 * RING_ROOM, 0, BOTH);
        self.start(0);
        self.start(1);
        until(|| port.given() == [0, 1]);
        self.no_question();
    }

    /// Writes descriptor `nth` of vring `index`.
    fn describe(&self, index: u64, nth: u16, addr: u64, len: u32, flags: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0; 2]);
        let memory = &self.frontend.memory;
        let at = index * RING_ROOM + 16 * u64::from(nth);
        memory.write_all_at(&bytes, at).unwrap();
        let head = index * RING_ROOM + 0x1004 + 2 * u64::from(nth);
        memory.write_all_at(&nth.to_le_bytes(), head).unwrap();
    }

    /// Makes the first `count` descriptors available, each as a chain.
    fn offer(&self, index: u64, count: u16) {
        let at = index * RING_ROOM + 0x1002;
        let memory = &self.frontend.memory;
        memory.write_all_at(&count.to_le_bytes(), at).unwrap();
    }
}

/// `SET_VRING_ADDR` behind the IOMMU.
fn areas(index: u32) -> Vec<u8> {
    let at = IOVA + u64::from(index) * RING_ROOM;
    let mut body = u32s(&[index, 0]);
    body.extend(u64s(&[at, at + 0x2000, at + 0x1000, 0]));
    body
}

/// One burst of vring `index` for at most `count` packets.
fn dequeue(port: &Port, index: u16, count: usize) -> Vec<Vec<u8>> {
    let pool = FakePool::new(2048);
    let counters = QueueCounters::default();
    let mut packets = vec![FakePacket::default(); count];
    let received = port.poll(index, |virtqueue| {
        select_dequeue(virtqueue, u16::MAX)(virtqueue, &pool, &mut packets, &counters)
    });
    packets.truncate(received);
    let bytes = packets.iter().map(|packet| packet.to_vec()).collect();
    pool.release(&packets);
    bytes
}

/// One burst of a packet to vring `index`; whether it was taken.
fn enqueue(port: &Port, index: u16, bytes: &[u8]) -> bool {
    let mut pool = FakePool::new(2048);
    let counters = QueueCounters::default();
    let packet = pool.packet(&[bytes]);
    let sent = port.poll(index, |virtqueue| {
        select_enqueue(virtqueue, u16::MAX)(virtqueue, &pool, &[packet], &counters)
    });
    if sent == 0 {
        pool.release(&[packet]);
    }
    sent == 1
}

#[test]
fn a_ring_starts_when_its_areas_are_known_which_are_asked_for_together() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start(1);
    let at = IOVA + RING_ROOM;
    let areas = [(at, READ), (at + 0x1000, READ), (at + 0x2000, BOTH)];
    for expected in areas {
        assert_eq!(iommu.question(), expected);
    }
    for (iova, _) in areas {
        iommu.no_question();
        assert_eq!(port.events(), []);
        iommu.answer_ring(iova);
    }
    assert_eq!(port.wait_for(1), [Event::Queue(1, true)]);
    iommu.no_question();
}

#[test]
fn what_was_told_before_the_ring_was_set_up_counts() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    assert_eq!(port.gives(), 2);
}

#[test]
fn a_ring_that_lies_in_several_translations_runs() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    // In pieces of 256 bytes, the last first.
    for piece in (0..RING_ROOM / 0x100).rev() {
        iommu.update(IOVA + piece * 0x100, 0x100, piece * 0x100, BOTH);
    }
    iommu.start(0);
    assert_eq!(port.wait_for(1), [Event::Queue(0, true)]);
}

#[test]
fn a_ring_whose_translations_lie_apart_is_not_ready() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.update(IOVA, 0x800, 0, BOTH);
    iommu.update(IOVA + 0x800, 0x3000, 0x8000, BOTH);
    iommu.start(0);
    iommu.no_question();
    assert_eq!(port.events(), []);
}

#[test]
fn an_invalidation_of_a_rings_area_stops_it_and_an_update_brings_it_back() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    port.forget();
    // The last byte of the used ring.
    iommu.invalidate(IOVA + 0x2000 + 4 + 8 * 256 - 1, 1);
    // One update told of both rings, so both went with it. Only one of them lies there.
    assert_eq!(port.wait_for(1), [Event::Queue(0, false)]);
    assert_eq!(port.given(), [1]);
    let (asked, _) = iommu.question();
    assert_eq!(asked, IOVA);
    iommu.update(IOVA, RING_ROOM, 0, BOTH);
    assert_eq!(
        port.wait_for(2),
        [Event::Queue(0, false), Event::Queue(0, true)]
    );
    assert_eq!(port.given(), [0, 1]);
}

#[test]
fn an_invalidation_elsewhere_disturbs_no_ring() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    let events = port.events();
    iommu.invalidate(IOVA + 2 * RING_ROOM, 1 << 40);
    iommu.invalidate(0, IOVA);
    iommu.invalidate(u64::MAX, 1);
    iommu.frontend.raw.sync();
    assert_eq!((port.events(), port.gives()), (events, 2));
}

#[test]
fn an_invalidation_without_a_size_or_past_the_end_is_of_all() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    for size in [0, u64::MAX] {
        let iommu = Iommu::connect(&place);
        iommu.start_pair(&port);
        iommu.invalidate(1, size);
        until(|| port.given().is_empty());
        assert_eq!(iommu.question(), (IOVA, READ));
        drop(iommu);
        until(|| port.events().last() == Some(&Event::Down));
        port.forget();
    }
}

/// Has vring 1 ask for 8 frames, each in a page of its own; what they are.
fn ask_for_frames(iommu: &Iommu, port: &Port) -> Vec<Vec<u8>> {
    for nth in 0..8_u8 {
        let page = u64::from(nth) * PAGE;
        let fill = [0x40 + nth; 0x100];
        let memory = &iommu.frontend.memory;
        memory.write_all_at(&fill, BUFFERS_GPA + page).unwrap();
        iommu.describe(1, nth.into(), BUFFERS + page, 12 + 60, 0);
    }
    iommu.offer(1, 8);
    for _ in 0..100 {
        assert!(dequeue(port, 1, 32).is_empty());
    }
    for nth in 0..8 {
        assert_eq!(iommu.question(), (BUFFERS + nth * PAGE, READ));
    }
    iommu.no_question();
    (0..8).map(|nth| vec![0x40 + nth; 60]).collect()
}

#[test]
fn a_burst_asks_once_for_all_that_waits_and_loses_nothing() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    let expected = ask_for_frames(&iommu, &port);
    port.forget();
    let mut frames = Vec::new();
    for nth in 0..8 {
        assert!(dequeue(&port, 1, 32).is_empty());
        iommu.update(BUFFERS + nth * PAGE, PAGE, BUFFERS_GPA + nth * PAGE, READ);
        frames.append(&mut dequeue(&port, 1, 32));
    }
    // Whoever sleeps is told.
    assert!(port.wait_for(1).contains(&Event::LookAgain(1)));
    assert_eq!(frames, expected);
    iommu.no_question();
}

#[test]
fn answers_in_another_order_are_as_good() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    let expected = ask_for_frames(&iommu, &port);
    // All wait for the first.
    for nth in (0..8).rev() {
        assert!(dequeue(&port, 1, 32).is_empty());
        iommu.update(BUFFERS + nth * PAGE, PAGE, BUFFERS_GPA + nth * PAGE, READ);
    }
    assert_eq!(dequeue(&port, 1, 32), expected);
}

#[test]
fn a_buffer_that_may_only_be_read_is_not_written() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.describe(0, 0, BUFFERS, 2048, 2);
    iommu.offer(0, 1);
    assert!(!enqueue(&port, 0, &[7; 60]));
    assert_eq!(iommu.question(), (BUFFERS, BOTH));
    iommu.update(BUFFERS, PAGE, BUFFERS_GPA, READ);
    assert!(!enqueue(&port, 0, &[7; 60]));
    // As a driver maps it for a device to fill.
    iommu.update(BUFFERS, PAGE, BUFFERS_GPA, 2);
    assert!(enqueue(&port, 0, &[7; 60]));
    let mut bytes = [0; 72];
    let memory = &iommu.frontend.memory;
    memory.read_exact_at(&mut bytes, BUFFERS_GPA).unwrap();
    assert_eq!(bytes[12..], [7; 60]);
}

#[test]
fn a_question_without_an_answer_is_asked_again() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.describe(1, 0, BUFFERS, 72, 0);
    iommu.offer(1, 1);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                dequeue(&port, 1, 1);
                std::thread::yield_now();
            }
        });
        for _ in 0..3 {
            assert_eq!(iommu.question(), (BUFFERS, READ));
        }
        ended.store(true, Ordering::Relaxed);
    });
    // A ring's area, too.
    iommu.start(4);
    for _ in 0..2 {
        for area in [0, 0x1000, 0x2000] {
            let asked = loop {
                let (iova, _) = iommu.question();
                if iova != BUFFERS {
                    break iova;
                }
            };
            assert_eq!(asked, IOVA + 4 * RING_ROOM + area);
        }
    }
}

/// Questions that are under way at the same time after a flush, if none of them is about a ring.
const UNDER_WAY: u64 = 16;

/// Has vring 0 ask for 128 buffers, of which the first few are under way when this returns: there was a
/// flush before, but not of the rings.
fn ask_for_many(iommu: &Iommu, port: &Port) {
    iommu.invalidate(1 << 41, 1 << 40);
    for nth in 0..128_u16 {
        let at = BUFFERS + u64::from(nth) * PAGE;
        iommu.describe(0, nth, at, 2048, 2);
    }
    iommu.offer(0, 128);
    assert!(!enqueue(port, 0, &[7; 60]));
    for nth in 0..UNDER_WAY {
        assert_eq!(iommu.question(), (BUFFERS + nth * PAGE, BOTH));
    }
    iommu.no_question();
}

#[test]
fn few_questions_are_under_way_and_each_answer_lets_another_one_go() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    ask_for_many(&iommu, &port);
    let answer = |nth| iommu.update(BUFFERS + nth * PAGE, PAGE, BUFFERS_GPA, BOTH);
    for nth in UNDER_WAY..32 {
        answer(nth - UNDER_WAY);
        assert_eq!(iommu.question(), (BUFFERS + nth * PAGE, BOTH));
        iommu.no_question();
    }
    // The frontend has nothing to say to some: it is done with those that came before.
    answer(31);
    for nth in 32..48 {
        assert_eq!(iommu.question(), (BUFFERS + nth * PAGE, BOTH));
    }
    iommu.no_question();
}

#[test]
fn a_ring_with_many_questions_does_not_keep_the_other_one_waiting() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    ask_for_many(&iommu, &port);
    let other = BUFFERS + 1000 * PAGE;
    iommu.describe(1, 0, other, 72, 0);
    iommu.offer(1, 1);
    assert!(dequeue(&port, 1, 1).is_empty());
    iommu.no_question();
    let mut asked = Vec::new();
    for nth in 0..2 {
        iommu.update(BUFFERS + nth * PAGE, PAGE, BUFFERS_GPA, BOTH);
        asked.push(iommu.question());
    }
    assert!(asked.contains(&(other, READ)), "{asked:x?}");
}

/// A frontend has no answer when nothing is mapped, as when a driver has taken its buffer back; the
/// address may be in use again at once.
#[test]
fn a_question_that_was_passed_over_is_asked_again_at_once() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    for nth in 0..3 {
        iommu.describe(1, nth, BUFFERS + u64::from(nth) * PAGE, 72, 0);
    }
    iommu.offer(1, 3);
    let begin = Instant::now();
    assert!(dequeue(&port, 1, 1).is_empty());
    for nth in 0..3 {
        assert_eq!(iommu.question(), (BUFFERS + nth * PAGE, READ));
    }
    iommu.update(BUFFERS + PAGE, PAGE, BUFFERS_GPA, READ);
    assert!(dequeue(&port, 1, 1).is_empty());
    // The third one still has its answer to come.
    assert_eq!(iommu.question(), (BUFFERS, READ));
    iommu.no_question();
    iommu.update(BUFFERS, PAGE, BUFFERS_GPA, READ);
    assert_eq!(dequeue(&port, 1, 32).len(), 2);
    // Nothing waited for patience to run out.
    assert!(begin.elapsed() < Duration::from_millis(900));
}

/// A guest that flushes all that its IOMMU knew, as Linux does a hundred times a second by default.
#[test]
fn after_a_flush_the_rings_come_before_all_buffers() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    ask_for_many(&iommu, &port);
    iommu.invalidate(0, 0);
    assert!(port.given().is_empty());
    flushed_rings(&iommu);
    iommu.no_question();
    iommu.update(IOVA, 2 * RING_ROOM, 0, BOTH);
    until(|| port.given() == [0, 1]);
    // What was under way is answered as it is now.
    assert!(!enqueue(&port, 0, &[7; 60]));
    for nth in 0..UNDER_WAY {
        iommu.update(BUFFERS + nth * PAGE, PAGE, BUFFERS_GPA + nth * PAGE, BOTH);
    }
    assert!(enqueue(&port, 0, &[7; 60]));
}

/// Reads the questions for the areas of vrings 0 and 1.
#[track_caller]
fn flushed_rings(iommu: &Iommu) {
    for ring in [0, RING_ROOM] {
        for (area, need) in [(0, READ), (0x1000, READ), (0x2000, BOTH)] {
            assert_eq!(iommu.question(), (IOVA + ring + area, need));
        }
    }
}

#[test]
fn a_flushed_ring_is_looked_through_twice_as_far_as_it_came() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.update(BUFFERS, 128 * PAGE, BUFFERS_GPA, BOTH);
    for nth in 0..128_u16 {
        let at = BUFFERS + u64::from(nth) * PAGE;
        iommu.describe(0, nth, at, 2048, 2);
    }
    iommu.offer(0, 128);
    let asked_and_answered = |nth: u64| {
        let at = nth * PAGE;
        assert_eq!(iommu.question(), (BUFFERS + at, BOTH));
        iommu.update(BUFFERS + at, PAGE, BUFFERS_GPA + at, BOTH);
    };
    let take = || assert!(enqueue(&port, 0, &[7; 60]));
    (0..3).for_each(|_| take());
    let (mut next, mut ahead) = (3, 6);
    for taken in [4, 8, 0, 1] {
        iommu.invalidate(0, 0);
        flushed_rings(&iommu);
        iommu.update(IOVA, 2 * RING_ROOM, 0, BOTH);
        until(|| port.given() == [0, 1]);
        (next..next + ahead).for_each(asked_and_answered);
        iommu.no_question();
        for _ in 0..taken {
            take();
            asked_and_answered(next + ahead);
            next += 1;
        }
        ahead = (2 * taken).max(4);
    }
    iommu.no_question();
}

#[test]
fn without_a_channel_nothing_is_asked_until_there_is_one() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let frontend = Frontend::connect(&place.path(), 64);
    frontend.negotiate(FEATURES, VHOST_USER_PROTOCOL_F_BACKEND_REQ);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let iommu = Iommu {
        frontend,
        channel: ours,
    };
    iommu.start(0);
    iommu.no_question();
    iommu.frontend.raw.ok(SET_BACKEND_REQ_FD, &[], &[&theirs]);
    assert_eq!(iommu.question(), (IOVA, READ));
    iommu.update(IOVA, RING_ROOM, 0, BOTH);
    assert_eq!(port.wait_for(1), [Event::Queue(0, true)]);
}

#[test]
fn a_channel_that_nobody_reads_holds_nothing_up() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let mut iommu = Iommu::connect(&place);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 1).unwrap();
    iommu.frontend.raw.ok(SET_BACKEND_REQ_FD, &[], &[&theirs]);
    iommu.channel = ours;
    iommu.start_pair(&port);
    // Each round asks for other addresses.
    for round in 0..100_u64 {
        for nth in 0..128_u16 {
            let page = round * 128 + u64::from(nth);
            iommu.describe(1, nth, BUFFERS + page * PAGE, 72, 0);
        }
        iommu.offer(1, 128);
        assert!(dequeue(&port, 1, 32).is_empty());
        iommu.frontend.raw.sync();
    }
    // What comes through, from here on, is whole messages.
    for _ in 0..20 {
        let (iova, access) = iommu.question();
        assert_eq!((iova % PAGE, access), (0, READ));
    }
}

#[test]
fn a_channel_that_was_hung_up_holds_nothing_up() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.channel.shutdown(std::net::Shutdown::Both).unwrap();
    iommu.start(0);
    iommu.frontend.raw.sync();
    iommu.update(IOVA, RING_ROOM, 0, BOTH);
    assert_eq!(port.wait_for(1), [Event::Queue(0, true)]);
}

#[test]
fn a_new_memory_table_forgets_all_translations() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.describe(1, 0, BUFFERS, 72, 0);
    iommu.update(BUFFERS, PAGE, BUFFERS_GPA, READ);
    port.forget();
    let half = iommu.frontend.size() / 2;
    iommu.frontend.share(&[[0, half, UVA, 0]]);
    until(|| port.given().is_empty());
    assert_eq!(iommu.question(), (IOVA, READ));
    iommu.update(IOVA, 2 * RING_ROOM, 0, BOTH);
    until(|| port.given() == [0, 1]);
    iommu.offer(1, 1);
    assert!(dequeue(&port, 1, 1).is_empty());
    loop {
        // The other ring's first question may still be under way.
        if iommu.question() == (BUFFERS, READ) {
            break;
        }
    }
}

#[test]
fn the_end_of_a_ring_forgets_all_translations() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.frontend.raw.vring_base(0);
    assert_eq!(port.given(), [1]);
    iommu.start(0);
    assert_eq!(iommu.question(), (IOVA, READ));
}

#[test]
fn nonsense_is_refused() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let raw = Raw::connect(&place.path());
    let update = message_of(0, PAGE, UVA, BOTH, UPDATE);
    raw.refused(IOTLB_MSG, &update, &[]);
    drop(raw);
    let iommu = Iommu::connect(&place);
    let raw = &iommu.frontend.raw;
    for kind in [0, 1, 4, 5, 255] {
        iommu.refused(0, PAGE, UVA, BOTH, kind);
    }
    for perm in [0, 4, 255] {
        iommu.refused(0, PAGE, UVA, perm, UPDATE);
    }
    iommu.refused(0, 0, UVA, BOTH, UPDATE);
    iommu.refused(2, u64::MAX, UVA, BOTH, UPDATE);
    iommu.refused(u64::MAX, 2, UVA, BOTH, UPDATE);
    for uaddr in [0, UVA - 1, UVA + iommu.frontend.size(), u64::MAX] {
        iommu.refused(0, PAGE, uaddr, BOTH, UPDATE);
    }
    raw.refused(IOTLB_MSG, &update[..31], &[]);
    raw.refused(IOTLB_MSG, &update, &[&event()]);
    // Longer than its region: cut.
    iommu.update(IOVA, u64::MAX - IOVA, 0, BOTH);
    iommu.start(0);
    until(|| port.given() == [0]);
    iommu.describe(0, 0, IOVA + iommu.frontend.size() - 8, 2048, 2);
    iommu.offer(0, 1);
    assert!(!enqueue(&port, 0, &[7; 60]));
    assert_eq!(iommu.question(), (IOVA + iommu.frontend.size(), BOTH));
}

#[test]
fn more_translations_than_there_is_room_for_are_no_error() {
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    for page in 0..5_000 {
        let update = message_of(BUFFERS + page * PAGE, PAGE, UVA + BUFFERS_GPA, BOTH, UPDATE);
        iommu.frontend.raw.tell(IOTLB_MSG, &update, &[]);
    }
    iommu.frontend.raw.sync();
    // Those that this little memory has room for, and the last ones in any case.
    iommu.describe(1, 0, BUFFERS + 4_999 * PAGE, 72, 0);
    iommu.offer(1, 1);
    assert_eq!(dequeue(&port, 1, 1).len(), 1);
}

/// What an lcore reads is what a translation says that was valid when its burst began.
#[test]
fn after_an_invalidation_no_burst_reads_the_old_place() {
    const POISON: u8 = 0xdd;
    let place = Place::new();
    let (_endpoint, port) = serve(&place);
    let iommu = Iommu::connect(&place);
    iommu.start_pair(&port);
    iommu.describe(1, 0, BUFFERS, 12 + 1000, 0);
    let head = |slot: u64| RING_ROOM + 0x1004 + 2 * slot;
    for slot in 0..u64::from(RING_SIZE) {
        let memory = &iommu.frontend.memory;
        memory.write_all_at(&[0; 2], head(slot)).unwrap();
    }
    let fill = |page: u64, with: u8| {
        let at = BUFFERS_GPA + page * PAGE;
        let memory = &iommu.frontend.memory;
        memory.write_all_at(&[with; 0x1000], at).unwrap();
    };
    let ended = AtomicBool::new(false);
    let frames = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let lcore = scope.spawn(|| {
            let mut available = 0_u16;
            let mut waits = false;
            while !ended.load(Ordering::Relaxed) {
                if !waits {
                    available = available.wrapping_add(1);
                    iommu.offer(1, available);
                }
                let burst = dequeue(&port, 1, 1);
                waits = burst.is_empty();
                for frame in burst {
                    let first = frame[0];
                    assert_ne!(first, POISON, "read where nothing was mapped any more");
                    assert!(frame.iter().all(|&byte| byte == first), "half a page");
                    frames.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 0..500_u64 {
            let page = round % 3;
            fill(page, (round % 200) as u8);
            iommu.update(BUFFERS, PAGE, BUFFERS_GPA + page * PAGE, READ);
            let before = frames.load(Ordering::Relaxed);
            until(|| frames.load(Ordering::Relaxed) > before || lcore.is_finished());
            if round % 2 == 0 {
                iommu.invalidate(BUFFERS, PAGE);
            } else {
                // News without an invalidation counts at once, too.
                fill(3, 0x55);
                iommu.update(BUFFERS, PAGE, BUFFERS_GPA + 3 * PAGE, READ);
            }
            fill(page, POISON);
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(frames.load(Ordering::Relaxed) >= 500);
}
