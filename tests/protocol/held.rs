//! Rings of which a copy engine that cannot be stopped has chains.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::port::{Event, Port};
use crate::raw::*;
use crate::{Place, until};
use rte_net_vhost::datapath::{Enqueue, Offloaded, QueueCounters};
use rte_net_vhost::dma::channel::Channel;
use rte_net_vhost::session::features::*;
use rte_net_vhost::session::{Endpoint, SessionEvents};
use rte_net_vhost::testing::FakePool;
use rte_net_vhost::testing::dma::{Fault, Faulty, SimEngine};
use rte_net_vhost::virtqueue::VRING_DESC_F_WRITE;

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;
const LOG: u64 = PLAIN | VHOST_F_LOG_ALL;

/// The driver offers a buffer on vring 0.
fn offer(frontend: &Frontend) {
    let put = |bytes: &[u8], at| frontend.memory.write_all_at(bytes, at).unwrap();
    put(&u64s(&[0x3000]), 0);
    put(&u32s(&[2048, VRING_DESC_F_WRITE.into()]), 8);
    put(&1_u16.to_ne_bytes(), 0x1002);
}

/// An engine is given a copy to vring 0, never reports it, and cannot be stopped when the vring is
/// emptied.
fn hold(port: &Port) {
    let (engine, faults) = Faulty::new(SimEngine::new(64));
    {
        let mut faults = faults.lock().unwrap();
        faults.every = Some(Fault::Lost);
        faults.unproven = true;
    }
    let channel = Arc::new(Channel::new("runaway", Box::new(engine)));
    let virtqueue = port.take(0).unwrap();
    let mut queue = Offloaded::<Enqueue<FakePool>>::new(virtqueue, &[channel], 0, 128);
    let mut pool = FakePool::new(2048);
    let (packet, counters) = (pool.packet(&[&[7; 1000]]), QueueCounters::default());
    assert_eq!(queue.send(&pool, &[packet], &counters), 1);
    assert!(!queue.drain(&pool, &counters));
    assert!(port.give(0, queue.into_virtqueue()).is_none());
}

/// A frontend whose vring 0 was held.
fn started(place: &Place) -> (Endpoint, Arc<Port>, Frontend) {
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    offer(&frontend);
    frontend.start(0..2);
    port.wait_for(3);
    hold(&port);
    (endpoint, port, frontend)
}

/// The same, after it was stopped for a moment.
fn held(place: &Place) -> (Endpoint, Arc<Port>, Frontend) {
    let (endpoint, port, frontend) = started(place);
    frontend.raw.ok(SET_FEATURES, &u64s(&[LOG]), &[]);
    (endpoint, port, frontend)
}

fn is_refused(frontend: &Frontend) {
    frontend.raw.refused(GET_VRING_BASE, &u32s(&[0, 0]), &[]);
}

fn elsewhere() -> Vec<u8> {
    let mut body = Frontend::addresses(1);
    body[..4].copy_from_slice(&0_u32.to_ne_bytes());
    body
}

#[test]
fn a_held_vring_stops_for_good_and_the_others_go_on() {
    let place = Place::new();
    let (_endpoint, port, frontend) = held(&place);
    assert_eq!(port.given(), [1]);
    assert_eq!(port.wait_for(4)[3], Event::Queue(0, false));

    // All that starts a ring but what makes it another one.
    frontend.raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    frontend
        .raw
        .ok(SET_VRING_ADDR, &Frontend::addresses(0), &[]);
    frontend.enable(0, 0);
    frontend.enable(0, 1);
    frontend.raw.ok(SET_VRING_CALL, &u64s(&[0]), &[&event()]);
    frontend.raw.ok(SET_VRING_BASE, &u32s(&[0, 0]), &[]);
    frontend.raw.sync();

    assert_eq!(port.given(), [1]);
    assert_eq!(port.events().len(), 4);
    is_refused(&frontend);
}

#[test]
fn the_base_of_a_held_vring_is_refused_again_and_again() {
    let place = Place::new();
    let (_endpoint, port, frontend) = held(&place);
    is_refused(&frontend);
    is_refused(&frontend);
    frontend.start(0..1);
    frontend.raw.sync();
    assert_eq!(port.given(), [1]);
    is_refused(&frontend);
    // More memory is no other ring.
    let size = frontend.size();
    frontend.share(&[[0, size, UVA, 0], [size, 0x1000, UVA + 0x1000_0000, 0]]);
    frontend.start(0..1);
    frontend.raw.sync();
    assert_eq!(port.given(), [1]);
    is_refused(&frontend);
}

#[test]
fn a_ring_at_other_addresses_starts_in_the_place_of_a_held_one() {
    let place = Place::new();
    let (_endpoint, port, frontend) = held(&place);
    frontend.raw.ok(SET_VRING_ADDR, &elsewhere(), &[]);
    until(|| port.given() == [0, 1]);
    assert_eq!(frontend.raw.vring_base(0), 0);
    frontend.start(0..1);
    until(|| port.given() == [0, 1]);
}

#[test]
fn a_ring_in_other_memory_starts_in_the_place_of_a_held_one() {
    let place = Place::new();
    let (_endpoint, port, mut frontend) = held(&place);
    frontend.memory = memory(frontend.size());
    frontend.share(&[[0, frontend.size(), UVA, 0]]);
    until(|| port.given() == [0, 1]);
    assert_eq!(frontend.raw.vring_base(0), 0);
}

#[test]
fn a_new_connection_knows_of_no_held_vring() {
    let place = Place::new();
    let (_endpoint, port, frontend) = held(&place);
    drop(frontend);
    until(|| port.given().is_empty());
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    until(|| port.given() == [0, 1]);
}

/// A frontend sends the new addresses to a ring that runs.
#[test]
fn the_ring_that_is_held_is_the_one_before_its_addresses_changed() {
    let place = Place::new();
    let (_endpoint, port, frontend) = started(&place);
    frontend.raw.ok(SET_VRING_ADDR, &elsewhere(), &[]);
    until(|| port.given() == [0, 1]);
    assert_eq!(frontend.raw.vring_base(0), 0);
}
