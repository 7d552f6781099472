//! Frontends that vanish, and what the next one finds.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::port::{Event, Port};
use crate::raw::*;
use crate::{Place, until};
use rte_net_vhost::session::features::*;
use rte_net_vhost::virtqueue::{PackedRing, Ring};

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;

/// Every message that there is, as a frontend with running vrings may send it, and how many times
/// the memory file comes with it, or the call eventfd.
fn every_message(size: u64) -> Vec<(u32, Vec<u8>, usize, usize)> {
    let region = |gpa: u64| {
        let mut body = u64s(&[0]);
        body.extend(u64s(&[gpa, 0x1000, UVA + gpa, 0]));
        body
    };
    let mut messages: Vec<_> = (1..=44)
        .filter(|&request| request != GET_VRING_BASE)
        .map(|request| (request, u64s(&[0]), 0, 0))
        .collect();
    messages.extend([
        (SET_FEATURES, u64s(&[PLAIN]), 0, 0),
        (SET_MEM_TABLE, table(&[[0, size, UVA, 0]]), 1, 0),
        (
            SET_MEM_TABLE,
            table(&[[0, size, UVA, 0], [size, 0x1000, UVA + size, 0]]),
            2,
            0,
        ),
        (SET_VRING_NUM, u32s(&[0, RING_SIZE]), 0, 0),
        (SET_VRING_ADDR, Frontend::addresses(0), 0, 0),
        (GET_VRING_BASE, u32s(&[1, 0]), 0, 0),
        (SET_VRING_KICK, u64s(&[1]), 0, 1),
        (SET_VRING_CALL, u64s(&[0]), 0, 1),
        (SET_VRING_ERR, u64s(&[0]), 0, 1),
        (SET_VRING_ENABLE, u32s(&[0, 0]), 0, 0),
        (SEND_RARP, u64s(&[0x0605_0403_0201]), 0, 0),
        (NET_SET_MTU, u64s(&[1500]), 0, 0),
        (ADD_MEM_REG, region(size), 1, 0),
        (REM_MEM_REG, region(0), 0, 0),
        (SET_STATUS, u64s(&[15]), 0, 0),
    ]);
    messages
}

#[test]
fn a_frontend_may_vanish_in_the_middle_of_any_message() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let idle = crate::open_files();
    let messages = every_message(2 * RING_ROOM);
    let longest = messages.iter().map(|message| 12 + message.1.len()).max();
    // One connection after the other, each with running vrings; the frontend leaves after `cut` bytes.
    for (request, body, memories, calls) in &messages {
        let bytes = message(*request, 0, body);
        for cut in 1..=bytes.len() {
            let frontend = Frontend::connect(&place.path(), 2);
            let raw = &frontend.raw;
            raw.tell(SET_FEATURES, &u64s(&[PLAIN]), &[]);
            let protocol = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
            raw.tell(SET_PROTOCOL_FEATURES, &u64s(&[protocol]), &[]);
            let regions = table(&[[0, frontend.size(), UVA, 0]]);
            raw.tell(SET_MEM_TABLE, &regions, &[&frontend.memory]);
            for index in 0..2_u32 {
                let nth = index as usize;
                raw.tell(SET_VRING_NUM, &u32s(&[index, RING_SIZE]), &[]);
                raw.tell(SET_VRING_ADDR, &Frontend::addresses(index), &[]);
                let which = u64s(&[index.into()]);
                raw.tell(SET_VRING_KICK, &which, &[&frontend.kicks[nth]]);
                raw.tell(SET_VRING_CALL, &which, &[&frontend.calls[nth]]);
                raw.tell(SET_VRING_ENABLE, &u32s(&[index, 1]), &[]);
            }
            assert_eq!(port.wait_for(3).len(), 3, "request {request}, {cut} bytes");
            let mut files = vec![&frontend.memory as &dyn AsFd; *memories];
            files.extend(vec![&frontend.calls[0] as &dyn AsFd; *calls]);
            raw.send(&bytes[..cut], &files);
            drop(frontend);
            until(|| port.events().contains(&Event::Down) && crate::open_files() == idle);
            assert!(port.given().is_empty(), "request {request}, {cut} bytes");
            port.forget();
        }
    }
    assert!(longest > Some(80), "where are the long messages?");
    assert_eq!(Raw::connect(&place.path()).get(GET_FEATURES), offered());
    drop(endpoint);
    place.no_file_left();
}

#[test]
fn a_vring_that_starts_wakes_both_sides() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    let woken = || {
        let all = frontend.calls.iter().chain(&frontend.kicks);
        all.map(count).collect::<Vec<_>>()
    };
    // Whoever served it before may have given chains back and died before the call.
    frontend.start(0..2);
    port.wait_for(3);
    assert_eq!(woken(), [1; 4]);
    frontend.raw.sync();
    assert_eq!(woken(), [0; 4], "without a reason");
    // Stopped and started, as by QMP's `stop` and `cont`.
    for index in 0..2 {
        assert_eq!(frontend.raw.vring_base(index), 0);
    }
    port.forget();
    frontend.start(0..2);
    port.wait_for(3);
    assert_eq!(woken(), [1; 4]);
    // Disabled and enabled.
    frontend.enable(1, 0);
    frontend.enable(1, 1);
    frontend.raw.sync();
    assert_eq!(woken(), [0, 1, 0, 1]);
}

#[test]
fn a_packed_ring_goes_on_where_it_was_stopped() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN | VIRTIO_F_RING_PACKED, 0);
    // Descriptor 250 in a turn with the wrap counter clear; the upper half is the used index.
    let base = 250 | 250 << 16;
    frontend.set_up(0, base);
    frontend.enable(0, 1);
    port.wait_for(1);
    port.poll(0, |virtqueue| {
        let ring = PackedRing::of(&mut virtqueue.ring).unwrap();
        assert_eq!(ring.position(), 250);
        // Over the end of the ring: the wrap counter changes.
        ring.take(10);
        ring.push_used(0, 10, 0);
        ring.publish_used();
    });
    let stopped = frontend.raw.vring_base(0) & 0xffff;
    assert_eq!(stopped, 0x8000 | 4);

    frontend.set_up(0, stopped | stopped << 16);
    frontend.raw.sync();

    assert_eq!(port.poll(0, |virtqueue| virtqueue.position()), 0x8004);
    assert_eq!(frontend.raw.vring_base(0) & 0xffff, stopped);
}

#[test]
fn a_new_connection_begins_anew_whatever_the_last_one_did() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    for round in 0..3_u16 {
        let frontend = Frontend::connect(&place.path(), 2);
        frontend.negotiate(PLAIN, 0);
        frontend.start(0..2);
        port.wait_for(3);
        assert_eq!(port.poll(0, |virtqueue| virtqueue.position()), 0);
        port.use_chains(0, 5 + round);
        assert_eq!(frontend.used_index(0), 5 + round);
        drop(frontend);
        until(|| port.events().contains(&Event::Down));
        port.forget();
    }
}

#[test]
fn a_frontend_that_hangs_up_at_once_is_not_hammered() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (endpoint, _) = place.serve_with(place.client(), Port::default());
    let (begin, mut attempts) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_millis(1200) {
        match listener.accept() {
            Ok(_) => attempts += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    // 10 ms, 20 ms, 40 ms, … up to a second are seven. On a machine out of breath some of them look
    // like connections that lasted, after which it begins anew; without a pause there are a thousand.
    assert!((2..100).contains(&attempts), "{attempts} attempts");
    drop((endpoint, listener));
    place.no_file_left();
}
