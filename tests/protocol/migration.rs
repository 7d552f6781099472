//! The dirty log: its messages, and when running vrings use it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::Place;
use crate::port::{Event, Port};
use crate::raw::*;
use rte_net_vhost::session::features::*;

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;
const LOGGED: u64 = PLAIN | VHOST_F_LOG_ALL;
const F_LOG: u32 = 1;

/// `SET_LOG_BASE` must be answered with nothing.
#[track_caller]
fn set_log(raw: &Raw, file: &File, size: u64, offset: u64) {
    raw.tell(SET_LOG_BASE, &u64s(&[size, offset]), &[file]);
    assert_eq!(raw.answer(SET_LOG_BASE), []);
}

/// `SET_VRING_ADDR` with writes to the used ring logged at `log`.
fn addresses(index: u32, flags: u32, log: u64) -> Vec<u8> {
    let mut body = Frontend::addresses(index);
    body[4..8].copy_from_slice(&flags.to_ne_bytes());
    body[32..].copy_from_slice(&log.to_ne_bytes());
    body
}

/// Guest-physical address of the used ring of vring `index`.
fn used_ring(index: u32) -> u64 {
    u64::from(index) * RING_ROOM + 0x2000
}

/// The pages marked in a log of at most 64, which is cleared.
fn take(log: &File) -> Vec<u64> {
    let mut word = [0; 8];
    let len = log.metadata().unwrap().len().min(8) as usize;
    log.read_exact_at(&mut word[..len], 0).unwrap();
    log.write_all_at(&[0; 8][..len], 0).unwrap();
    let word = u64::from_le_bytes(word);
    (0..64).filter(|page| word & 1 << page != 0).collect()
}

/// Two running vrings, not logged yet.
fn running(place: &Place, port: &Port) -> Frontend {
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, VHOST_USER_PROTOCOL_F_LOG_SHMFD);
    frontend.start(0..2);
    port.wait_for(3);
    frontend
}

#[test]
fn a_migration_begins_and_ends_under_running_vrings() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let log = memory(8);

    set_log(raw, &log, 8, 0);
    port.use_chains(0, 3);
    assert_eq!(take(&log), [0; 0], "LOG_ALL is not acked");

    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    port.use_chains(0, 3);
    assert_eq!(take(&log), [0; 0], "the used ring is not to be logged");

    raw.ok(SET_VRING_ADDR, &addresses(0, F_LOG, used_ring(0)), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(1, F_LOG, used_ring(1)), &[]);
    port.use_chains(0, 3);
    assert_eq!(take(&log), [2]);
    port.use_chains(1, 3);
    assert_eq!(take(&log), [6]);

    // Aborted, or on the other host: the log is left as it is.
    raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(0, 0, 0), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(1, 0, 0), &[]);
    port.use_chains(0, 3);
    port.use_chains(1, 3);
    assert_eq!(take(&log), [0; 0]);

    raw.sync();
    assert_eq!(port.events().len(), 3, "no events");
    assert_eq!((raw.vring_base(0), raw.vring_base(1)), (12, 6));
    drop((endpoint, frontend, log));
    place.no_file_left();
}

#[test]
fn the_log_is_answered_once_whether_an_answer_is_wanted_or_not() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    let log = memory(8);
    for flags in [0, NEED_REPLY] {
        let bytes = message(SET_LOG_BASE, flags, &u64s(&[8, 0]));
        raw.send(&bytes, &[&log]);
        assert_eq!(raw.answer(SET_LOG_BASE), []);
        raw.sync();
    }
}

#[test]
fn vrings_that_start_during_a_migration_are_logged_from_the_start() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(LOGGED, VHOST_USER_PROTOCOL_F_LOG_SHMFD);
    for index in [0, 1] {
        frontend.set_up(index, 0);
        let body = addresses(index, F_LOG, used_ring(index));
        frontend.raw.ok(SET_VRING_ADDR, &body, &[]);
    }
    let log = memory(8);
    set_log(&frontend.raw, &log, 8, 0);
    for index in [0, 1] {
        frontend.enable(index, 1);
    }
    port.wait_for(3);
    port.use_chains(1, 1);
    assert_eq!(take(&log), [6]);
}

#[test]
fn another_log_takes_the_place_of_the_one_before() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let files = crate::open_files();
    let (first, second) = (memory(8), memory(0x2010));
    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(0, F_LOG, used_ring(0)), &[]);
    for _ in 0..3 {
        set_log(raw, &first, 8, 0);
        port.use_chains(0, 1);
        assert_eq!(take(&first), [2]);
        // The log begins at the offset, once.
        set_log(raw, &second, 8, 0x2008);
        port.use_chains(0, 1);
        assert_eq!(take(&first), [0; 0]);
        let mut word = [0; 8];
        second.read_exact_at(&mut word, 0x2008).unwrap();
        assert_eq!(word, [4, 0, 0, 0, 0, 0, 0, 0]);
        second.write_all_at(&[0; 8], 0x2008).unwrap();
        assert_eq!(take(&second), [0; 0]);
    }
    // One log is held, the test has two files.
    assert_eq!(crate::open_files(), files + 3);
}

#[test]
fn a_log_that_cannot_be_mapped_is_refused_and_the_one_before_stays() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let log = memory(8);
    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(0, F_LOG, used_ring(0)), &[]);
    set_log(raw, &log, 8, 0);
    let files = crate::open_files();

    let (reader, writer) = std::io::pipe().unwrap();
    let short = memory(64);
    let folder = File::open("/").unwrap();
    let event = event();
    let (open, two) = (crate::open_files(), [&short as &dyn AsFd, &short]);
    for (size, offset) in [
        (0, 0),
        (65, 0),
        (64, 1),
        (8, u64::MAX),
        (8, u64::MAX - 7),
        (u64::MAX, 8),
        (u64::MAX, 0),
    ] {
        raw.refused(SET_LOG_BASE, &u64s(&[size, offset]), &[&short]);
    }
    let wrong: [&dyn AsFd; 4] = [&reader, &writer, &folder, &event];
    for file in wrong {
        raw.refused(SET_LOG_BASE, &u64s(&[8, 0]), &[file]);
    }
    raw.refused(SET_LOG_BASE, &u64s(&[8, 0]), &[]);
    raw.refused(SET_LOG_BASE, &u64s(&[8, 0]), &two);
    raw.refused(SET_LOG_BASE, &u64s(&[8]), &[&short]);
    raw.refused(SET_LOG_BASE, &u64s(&[8, 0, 0]), &[&short]);
    assert_eq!(crate::open_files(), open);

    port.use_chains(0, 1);
    assert_eq!(take(&log), [2]);
    drop((reader, writer, folder, event));
    assert_eq!(crate::open_files(), files + 1);
    drop((endpoint, frontend, log, short));
    place.no_file_left();
}

#[test]
fn a_refused_log_ends_a_connection_that_wants_no_answer() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    raw.tell(SET_LOG_BASE, &u64s(&[0, 0]), &[&memory(8)]);
    raw.closed();
}

#[test]
fn a_log_that_ends_before_memory_takes_what_fits() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    // Two pages more than a byte has.
    let log = memory(2);
    set_log(raw, &log, 1, 0);
    for (at, pages) in [
        (used_ring(0), &[2][..]),
        (0x8000, &[]),
        (0x7ffc, &[7]),
        (1 << 40, &[]),
        (u64::MAX, &[]),
        (u64::MAX - 2, &[]),
    ] {
        raw.ok(SET_VRING_ADDR, &addresses(0, F_LOG, at), &[]);
        port.use_chains(0, 1);
        assert_eq!(take(&log), pages, "logged at {at:#x}");
    }
}

#[test]
fn a_vring_whose_log_address_is_zero_runs() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let log = memory(8);
    set_log(raw, &log, 8, 0);
    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(0, F_LOG, 0), &[]);
    port.use_chains(0, 1);
    assert_eq!(frontend.used_index(0), 1);
    assert_eq!(take(&log), [0]);
}

#[test]
fn new_memory_is_logged_in_the_same_log() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let log = memory(8);
    set_log(raw, &log, 8, 0);
    raw.ok(SET_FEATURES, &u64s(&[LOGGED]), &[]);
    raw.ok(SET_VRING_ADDR, &addresses(1, F_LOG, used_ring(1)), &[]);
    let size = frontend.size();
    frontend.share(&[[0, size, UVA, 0], [size, 0x1000, UVA + 0x1000_0000, 0]]);
    port.use_chains(1, 1);
    assert_eq!(take(&log), [6]);
    // What is left of a device that is reset does not log.
    raw.ok(RESET_OWNER, &[], &[]);
    assert!(port.given().is_empty());
    frontend.negotiate(LOGGED, 0);
    frontend.start(0..2);
    port.wait_for(7);
    port.use_chains(1, 1);
    assert_eq!(take(&log), [0; 0]);
}

#[test]
fn only_the_log_may_change_while_the_device_runs() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = running(&place, &port);
    let raw = &frontend.raw;
    let gives = port.gives();
    for word in [
        LOGGED | VIRTIO_NET_F_MRG_RXBUF,
        LOGGED & !VIRTIO_F_VERSION_1,
        PLAIN | VIRTIO_F_IN_ORDER,
        VHOST_F_LOG_ALL,
        0,
    ] {
        raw.refused(SET_FEATURES, &u64s(&[word]), &[]);
    }
    assert_eq!(port.gives(), gives);
    for word in [LOGGED, LOGGED, PLAIN, LOGGED] {
        raw.ok(SET_FEATURES, &u64s(&[word]), &[]);
    }
    raw.sync();
    let events = port.events();
    assert!(matches!(events[..], [_, _, Event::Up(_)]), "{events:?}");
}
