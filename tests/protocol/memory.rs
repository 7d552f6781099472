//! Guest memory: tables, single regions, and rings that run meanwhile.

use std::os::fd::AsFd;

use crate::Place;
use crate::port::Event;
use crate::raw::*;
use rte_net_vhost::session::features::*;

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;
const SLOTS: u64 = VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;

fn single(region: Region) -> Vec<u8> {
    let mut body = u64s(&[0]);
    body.extend(u64s(&region));
    body
}

#[test]
fn a_new_table_under_running_vrings_keeps_their_index_and_wakes_both_sides() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(0, 11);
    port.use_chains(1, 22);
    // What the start did.
    assert_eq!(
        (count(&frontend.calls[0]), count(&frontend.kicks[1])),
        (1, 1)
    );

    let size = frontend.size();
    frontend.share(&[[0, size, UVA, 0], [size, 0x1000, UVA + 0x1000_0000, 0]]);

    assert_eq!(port.poll(0, |virtqueue| virtqueue.position()), 11);
    assert_eq!(port.poll(1, |virtqueue| virtqueue.position()), 22);
    assert_eq!(
        (count(&frontend.calls[0]), count(&frontend.kicks[1])),
        (1, 1)
    );
    assert_eq!(frontend.used_index(1), 22);
    frontend.raw.sync();
    assert_eq!(port.events().len(), 3, "no events");
    drop(endpoint);
    drop(frontend);
    place.no_file_left();
}

#[test]
fn the_same_table_again_interrupts_nothing() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    let (gives, files) = (port.gives(), crate::open_files());
    frontend.share(&[[0, frontend.size(), UVA, 0]]);
    assert_eq!((port.gives(), crate::open_files()), (gives, files));
}

#[test]
fn another_file_at_the_same_addresses_is_mapped() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let mut frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(0, 11);
    frontend.memory = memory(frontend.size());
    frontend.share(&[[0, frontend.size(), UVA, 0]]);
    // The used ring of the new memory has its own index.
    assert_eq!(port.poll(0, |virtqueue| virtqueue.position()), 0);
}

#[test]
fn a_table_without_regions_stops_the_vrings() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.forget();

    frontend.share(&[]);

    assert!(port.given().is_empty());
    assert_eq!(
        port.wait_for(2),
        [Event::Queue(0, false), Event::Queue(1, false)]
    );
    frontend.share(&[[0, frontend.size(), UVA, 0]]);
    assert_eq!(
        port.wait_for(4)[2..],
        [Event::Queue(0, true), Event::Queue(1, true)]
    );
}

#[test]
fn a_table_that_cannot_be_mapped_leaves_no_memory_and_no_files() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    let size = frontend.size();
    let good = [0, size, UVA, 0];
    let bad: &[&[Region]] = &[
        // Longer than its file.
        &[[0, size + 1, UVA, 0]],
        &[[0, size, UVA, 0x1000]],
        // Empty, overflowing.
        &[[0, 0, UVA, 0]],
        &[[0, size, UVA, u64::MAX]],
        &[[0, u64::MAX, UVA, 0]],
        &[[u64::MAX, size, UVA, 0]],
        // Overlapping.
        &[good, [0x1000, 0x1000, UVA + 0x1_0000_0000, 0]],
        &[good, [0x1_0000_0000, 0x1000, UVA + 0x1000, 0]],
    ];
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    for regions in bad {
        frontend.share(&[good]);
        let files = vec![&frontend.memory as &dyn AsFd; regions.len()];
        frontend.raw.refused(SET_MEM_TABLE, &table(regions), &files);
    }
    frontend.raw.sync();
    frontend.share(&[good]);
    frontend.raw.sync();
    assert_eq!(port.given(), [0, 1]);
}

#[test]
fn the_number_of_files_must_be_the_number_of_regions() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let frontend = Frontend::connect(&place.path(), 1);
    let memory = &frontend.memory;
    let body = table(&[[0, 0x1000, UVA, 0], [0x1000, 0x1000, UVA + 0x1000, 0]]);
    frontend.raw.sync();
    let open = crate::open_files();
    frontend.raw.refused(SET_MEM_TABLE, &body, &[memory]);
    frontend.raw.refused(SET_MEM_TABLE, &body, &[]);
    let three: [&dyn AsFd; 3] = [memory, memory, memory];
    frontend.raw.refused(SET_MEM_TABLE, &body, &three);
    frontend.raw.refused(SET_MEM_TABLE, &u64s(&[0]), &[memory]);
    let many = vec![memory as &dyn AsFd; 33];
    frontend.raw.refused(SET_MEM_TABLE, &body, &many);
    assert_eq!(crate::open_files(), open);
    drop(endpoint);
    drop(frontend);
    place.no_file_left();
}

#[test]
fn a_region_that_is_no_memory_is_refused() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let frontend = Frontend::connect(&place.path(), 1);
    let body = table(&[[0, 0x1000, UVA, 0]]);
    frontend.raw.refused(SET_MEM_TABLE, &body, &[&event()]);
    let socket = &frontend.raw.socket;
    frontend.raw.refused(SET_MEM_TABLE, &body, &[socket]);
}

#[test]
fn an_unaligned_offset_works() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let mut frontend = Frontend::connect(&place.path(), 2);
    let size = frontend.size();
    frontend.memory = memory(size + 0x110);
    frontend.raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    frontend.share(&[[0, size, UVA, 0x110]]);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(0, 3);
    assert_eq!(u16_at(&frontend.memory, 0x2002 + 0x110), 3);
}

#[test]
fn there_are_509_slots() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, SLOTS);
    let raw = &frontend.raw;
    assert_eq!(raw.get(GET_MAX_MEM_SLOTS), 509);
    let size = frontend.size();
    let memory = &frontend.memory;
    let region = |nth: u64| [size + nth * 0x1000, 0x1000, UVA + size + nth * 0x1000, 0];
    for nth in 0..508 {
        raw.ok(ADD_MEM_REG, &single(region(nth)), &[memory]);
    }
    raw.refused(ADD_MEM_REG, &single(region(508)), &[memory]);
    frontend.start(0..2);
    port.wait_for(3);
    for nth in (0..508).rev() {
        raw.ok(REM_MEM_REG, &single(region(nth)), &[]);
    }
    assert_eq!(port.events().len(), 3);
    drop(endpoint);
    drop(frontend);
    place.no_file_left();
}

#[test]
fn regions_come_and_go_under_running_vrings() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    let size = frontend.size();
    frontend.negotiate(PLAIN, SLOTS);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(1, 7);
    let extra = [0x10_0000, 0x1000, UVA + 0x10_0000, 0];
    let raw = &frontend.raw;
    raw.ok(ADD_MEM_REG, &single(extra), &[&frontend.memory]);
    // QEMU says it once for each queue pair.
    raw.ok(ADD_MEM_REG, &single(extra), &[&frontend.memory]);
    let other = [extra[0], 0x800, extra[2], 0];
    raw.refused(ADD_MEM_REG, &single(other), &[&frontend.memory]);
    // Some frontends send a file here.
    raw.ok(REM_MEM_REG, &single(extra), &[&frontend.memory]);
    raw.ok(REM_MEM_REG, &single(extra), &[]);
    assert_eq!(port.poll(1, |virtqueue| virtqueue.position()), 7);
    assert_eq!(port.events().len(), 3);
    port.forget();

    raw.ok(REM_MEM_REG, &single([0, size, UVA, 0]), &[]);

    assert!(port.given().is_empty());
    assert_eq!(
        port.wait_for(2),
        [Event::Queue(0, false), Event::Queue(1, false)]
    );
    raw.ok(ADD_MEM_REG, &single([0, size, UVA, 0]), &[&frontend.memory]);
    port.wait_for(4);
    assert_eq!(port.poll(1, |virtqueue| virtqueue.position()), 7);
}

#[test]
fn addresses_before_memory_are_refused() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    raw.refused(SET_VRING_ADDR, &Frontend::addresses(0), &[]);
}
