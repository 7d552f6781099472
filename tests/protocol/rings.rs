//! Vrings: when they are ready, what is raised, and what survives a change.

use crate::port::{Event, Port};
use crate::raw::*;
use crate::{Place, until};
use rte_net_vhost::session::features::*;
use rte_net_vhost::session::{DeviceInfo, SessionConfig};
use rte_net_vhost::virtqueue::{Ring, SplitRing};

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;
const STATUS: u64 = VHOST_USER_PROTOCOL_F_STATUS;
const DRIVER_OK: u64 = 0xf;

fn up(features: u64) -> Event {
    Event::Up(DeviceInfo {
        vid: 0,
        features,
        mtu: None,
    })
}

#[test]
fn with_status_the_link_waits_for_the_driver() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 4);
    frontend.negotiate(PLAIN, STATUS);
    frontend.start(0..2);
    frontend.raw.sync();
    assert_eq!(
        port.events(),
        [Event::Queue(0, true), Event::Queue(1, true)]
    );
    assert_eq!(port.given(), [0, 1]);

    frontend.raw.ok(SET_STATUS, &u64s(&[DRIVER_OK]), &[]);
    frontend.start(2..4);

    assert_eq!(
        port.wait_for(5)[2..],
        [up(PLAIN), Event::Queue(2, true), Event::Queue(3, true)]
    );
}

#[test]
fn without_status_the_link_comes_with_the_first_pair() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 4);
    frontend.negotiate(PLAIN, 0);
    frontend.start(2..4);
    frontend.start(0..2);
    assert_eq!(
        port.wait_for(5),
        [
            Event::Queue(2, true),
            Event::Queue(3, true),
            Event::Queue(0, true),
            Event::Queue(1, true),
            up(PLAIN)
        ]
    );
}

#[test]
fn without_protocol_features_a_kick_enables() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(VIRTIO_F_VERSION_1, 0);
    for index in 0..2 {
        frontend.set_up(index, 0);
    }
    assert_eq!(
        port.wait_for(3),
        [
            Event::Queue(0, true),
            Event::Queue(1, true),
            up(VIRTIO_F_VERSION_1)
        ]
    );
}

#[test]
fn messages_of_a_vring_may_come_in_any_order() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    let raw = &frontend.raw;
    frontend.enable(0, 1);
    raw.ok(SET_VRING_KICK, &u64s(&[NO_FILE]), &[]);
    raw.ok(SET_VRING_CALL, &u64s(&[NO_FILE]), &[]);
    raw.ok(SET_VRING_CALL, &u64s(&[NO_FILE]), &[]);
    raw.ok(SET_VRING_NUM, &u32s(&[0, 128]), &[]);
    raw.sync();
    assert_eq!(port.events(), []);

    raw.ok(SET_VRING_ADDR, &Frontend::addresses(0), &[]);

    assert_eq!(port.wait_for(1), [Event::Queue(0, true)]);
}

#[test]
fn any_value_but_zero_enables_a_vring() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.set_up(0, 0);
    frontend.enable(0, 7);
    frontend.enable(0, 7);
    frontend.enable(0, 0);
    assert_eq!(
        port.wait_for(2),
        [Event::Queue(0, true), Event::Queue(0, false)]
    );
}

#[test]
fn disabling_a_vring_takes_it_back_before_the_answer() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(1, 5);

    frontend.enable(1, 0);

    assert_eq!(port.given(), [0]);
    assert_eq!(port.wait_for(4)[3], Event::Queue(1, false));
    frontend.enable(1, 1);
    assert_eq!(port.wait_for(5)[4], Event::Queue(1, true));
    assert_eq!(port.poll(1, |virtqueue| virtqueue.position()), 5);
    assert_eq!(port.events().len(), 5, "the link does not move");
}

#[test]
fn a_new_call_file_of_a_ready_vring_is_two_events() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.forget();
    port.use_chains(0, 3);
    let call = event();

    frontend.raw.ok(SET_VRING_CALL, &u64s(&[0]), &[&call]);

    assert_eq!(
        port.wait_for(2),
        [Event::Queue(0, false), Event::Queue(0, true)]
    );
    // The driver may have waited on the old one.
    assert_eq!(count(&call), 1);
    assert_eq!(count(&frontend.calls[0]), 1);
    port.poll(0, |virtqueue| {
        assert_eq!(virtqueue.position(), 3);
        let ring = SplitRing::of(&mut virtqueue.ring).unwrap();
        ring.push_used(0, 1, 0);
        ring.publish_used();
        virtqueue.notifier.notify(ring);
    });
    assert_eq!(count(&call), 1);
    assert_eq!(count(&frontend.calls[0]), 0);
}

#[test]
fn a_new_kick_file_of_a_ready_vring_is_two_events_and_reaches_the_port() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.forget();

    frontend.raw.ok(SET_VRING_KICK, &u64s(&[1]), &[&event()]);

    assert_eq!(
        port.wait_for(2),
        [Event::Queue(1, false), Event::Queue(1, true)]
    );
    assert_eq!(port.kicks(), [Event::Kick(1, false), Event::Kick(1, true)]);
}

#[test]
fn getting_a_base_takes_the_link_down_before_the_answer() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.forget();
    port.use_chains(1, 9);

    assert_eq!(frontend.raw.vring_base(1), 9);

    assert_eq!(port.events(), [Event::Down]);
    assert_eq!(port.given(), [0]);
    assert_eq!(frontend.raw.vring_base(0), 0);
    frontend.raw.sync();
    assert_eq!(port.events(), [Event::Down], "no more events");
    assert!(port.given().is_empty());
}

#[test]
fn a_base_comes_back_from_a_vring_that_never_ran() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    assert_eq!(raw.vring_base(255), 0);
    raw.ok(SET_VRING_BASE, &u32s(&[7, 0xffff]), &[]);
    assert_eq!(raw.vring_base(7), 0xffff);
}

#[test]
fn a_stopped_vring_needs_new_addresses() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    for index in 0..2 {
        frontend.raw.vring_base(index);
    }
    port.forget();
    for index in 0..2 {
        let kick = &frontend.kicks[index];
        let body = u64s(&[index as u64]);
        frontend.raw.ok(SET_VRING_KICK, &body, &[kick]);
        frontend.raw.ok(SET_VRING_CALL, &body, &[kick]);
        frontend.enable(u32::try_from(index).unwrap(), 1);
    }
    frontend.raw.sync();
    assert_eq!(port.events(), []);

    // It is still enabled.
    for index in 0..2 {
        let addresses = Frontend::addresses(index);
        frontend.raw.ok(SET_VRING_ADDR, &addresses, &[]);
    }

    assert_eq!(port.wait_for(3)[2], up(PLAIN));
}

#[test]
fn vrings_that_kept_running_are_announced_again_with_the_link() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 4);
    frontend.negotiate(PLAIN, 0);
    frontend.start(2..4);
    frontend.start(0..2);
    port.wait_for(5);
    port.forget();

    frontend.raw.vring_base(0);
    frontend.raw.sync();
    assert_eq!(port.events(), [Event::Down]);
    frontend.start(0..1);

    assert_eq!(
        port.wait_for(6),
        [
            Event::Down,
            Event::Queue(0, true),
            Event::Queue(1, true),
            up(PLAIN),
            Event::Queue(2, true),
            Event::Queue(3, true)
        ]
    );
}

#[test]
fn a_ring_that_went_on_without_the_frontend_resumes_where_it_is() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.memory.write_all_at(&[77, 0], 0x2002).unwrap();
    frontend.set_up(0, 5);
    frontend.enable(0, 1);
    port.wait_for(1);
    assert_eq!(frontend.raw.vring_base(0), 77);
}

#[test]
fn size_and_base_of_a_running_vring_stay() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    let raw = &frontend.raw;
    raw.refused(SET_VRING_NUM, &u32s(&[0, 64]), &[]);
    raw.ok(SET_VRING_NUM, &u32s(&[0, RING_SIZE]), &[]);
    raw.refused(SET_VRING_BASE, &u32s(&[0, 3]), &[]);
    raw.refused(SET_FEATURES, &u64s(&[PLAIN | VIRTIO_NET_F_MQ]), &[]);
    raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    assert_eq!(port.given(), [0, 1]);
    assert_eq!(port.events().len(), 3);
}

#[test]
fn the_addresses_of_a_running_vring_may_be_sent_again() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    port.use_chains(0, 4);

    let body = Frontend::addresses(0);
    frontend.raw.ok(SET_VRING_ADDR, &body, &[]);

    assert_eq!(port.poll(0, |virtqueue| virtqueue.position()), 4);
    frontend.raw.sync();
    assert_eq!(port.events().len(), 3);
}

#[test]
fn a_vring_outside_memory_is_not_ready() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.set_up(0, 0);
    let mut body = u32s(&[0, 0]);
    // The used ring ends a few bytes behind the region.
    body.extend(u64s(&[UVA, UVA + frontend.size() - 2048, UVA + 0x1000, 0]));
    frontend.raw.ok(SET_VRING_ADDR, &body, &[]);
    frontend.enable(0, 1);
    frontend.raw.sync();
    assert_eq!((port.events(), port.given()), (vec![], vec![]));

    let body = Frontend::addresses(0);
    frontend.raw.ok(SET_VRING_ADDR, &body, &[]);

    assert_eq!(port.wait_for(1), [Event::Queue(0, true)]);
}

#[test]
fn vrings_beyond_the_queues_are_reported_but_not_kept() {
    let place = Place::new();
    let config = SessionConfig {
        vrings: 2,
        ..place.config()
    };
    let (_endpoint, port) = place.serve_with(config, Port::with_queues(2));
    let frontend = Frontend::connect(&place.path(), 8);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..8);
    let queues = port.wait_for(9);
    assert_eq!(queues[8], Event::Queue(7, true));
    assert_eq!(port.given(), [0, 1]);
    assert_eq!(frontend.raw.vring_base(6), 0);
}

#[test]
fn a_driver_without_mq_has_only_the_first_pair() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 6);
    frontend.negotiate(PLAIN | VIRTIO_NET_F_MQ, STATUS);
    frontend.start(0..6);
    port.wait_for(6);
    port.forget();

    frontend.raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);

    // Told before the answer; the others go on.
    let ended = (2..6).map(|index| Event::Queue(index, false));
    assert_eq!(port.events(), ended.collect::<Vec<_>>());
    assert_eq!(port.given(), [0, 1]);
    let kicks = (2..6).map(|index| Event::Kick(index, false));
    let kicks: Vec<_> = kicks.collect();
    assert!(port.kicks().ends_with(&kicks), "{:?}", port.kicks());
    frontend.raw.sync();
    assert_eq!(port.events().len(), 4);

    // They are as if nobody had ever named them.
    frontend.enable(2, 1);
    frontend.raw.sync();
    assert_eq!(port.given(), [0, 1]);
    frontend
        .raw
        .ok(SET_FEATURES, &u64s(&[PLAIN | VIRTIO_NET_F_MQ]), &[]);
    frontend.start(2..4);
    assert_eq!(
        port.wait_for(6)[4..],
        [Event::Queue(2, true), Event::Queue(3, true)]
    );
}

#[test]
fn the_256th_vring_works_and_the_257th_ends_the_connection() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 256);
    frontend.negotiate(PLAIN, 0);
    frontend.start(255..256);
    assert_eq!(port.wait_for(1), [Event::Queue(255, true)]);
    let body = u32s(&[256, RING_SIZE]);
    let bytes = message(SET_VRING_NUM, NEED_REPLY, &body);
    frontend.raw.send(&bytes, &[]);
    frontend.raw.closed();
}

#[test]
fn without_a_link_vrings_are_reported_not_ready_at_the_end() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, STATUS);
    frontend.start(0..2);
    port.wait_for(2);
    drop(frontend);
    assert_eq!(
        port.wait_for(4)[2..],
        [Event::Queue(0, false), Event::Queue(1, false)]
    );
    until(|| port.given().is_empty());
    assert_eq!(
        port.kicks()[2..],
        [Event::Kick(0, false), Event::Kick(1, false)]
    );
    drop(endpoint);
    place.no_file_left();
}

#[test]
fn clearing_the_status_does_not_move_the_link() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, STATUS);
    frontend.start(0..2);
    frontend.raw.ok(SET_STATUS, &u64s(&[DRIVER_OK]), &[]);
    frontend.raw.ok(SET_STATUS, &u64s(&[0]), &[]);
    frontend.raw.sync();
    assert_eq!(port.events().len(), 3);
    assert_eq!(port.given(), [0, 1]);
}

#[test]
fn reset_owner_ends_the_device_but_not_the_connection() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    for _ in 0..3 {
        frontend.negotiate(PLAIN, 0);
        frontend.start(0..2);
        port.wait_for(3);
        port.forget();
        frontend.raw.ok(RESET_OWNER, &[], &[]);
        assert_eq!(port.events(), [Event::Down]);
        assert!(port.given().is_empty());
        frontend.raw.sync();
        port.forget();
    }
}

#[test]
fn a_second_frontend_waits_until_the_first_leaves() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let first = Frontend::connect(&place.path(), 2);
    first.negotiate(PLAIN, 0);
    first.start(0..2);
    port.wait_for(3);
    let second = Frontend::connect(&place.path(), 2);
    second.negotiate(PLAIN, 0);
    second.start(0..2);
    second.raw.ok(SEND_RARP, &[1, 2, 3, 4, 5, 6, 0, 0], &[]);
    second.raw.sync();
    assert_eq!(port.events().len(), 3);
    port.forget();

    drop(first);

    let events = port.wait_for(5);
    assert_eq!(
        events[..3],
        [Event::Down, Event::Queue(0, true), Event::Queue(1, true)]
    );
    assert!(matches!(events[3], Event::Up(DeviceInfo { vid: 1, .. })));
    assert_eq!(events[4], Event::Rarp([1, 2, 3, 4, 5, 6]));
    second.raw.sync();
    assert_eq!(port.events().len(), 5);
}

#[test]
fn a_second_frontend_also_gets_the_turn_of_one_that_stopped() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let first = Frontend::connect(&place.path(), 2);
    first.negotiate(PLAIN, 0);
    first.start(0..2);
    let second = Frontend::connect(&place.path(), 2);
    second.negotiate(PLAIN, 0);
    second.start(0..2);
    second.raw.sync();
    port.wait_for(3);
    port.forget();
    first.raw.vring_base(0);
    first.raw.sync();
    assert_eq!(port.events(), [Event::Down]);
    first.raw.vring_base(1);
    port.wait_for(4);

    // The first one wants to go on, and waits.
    first.start(0..2);
    first.raw.sync();
    assert_eq!(port.events().len(), 4);
    drop(second);
    assert_eq!(port.wait_for(8)[4], Event::Down);
}

#[test]
fn a_frontend_that_waits_and_leaves_raises_nothing() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let first = Frontend::connect(&place.path(), 2);
    first.negotiate(PLAIN, 0);
    first.start(0..2);
    port.wait_for(3);
    let idle = crate::open_files();
    let second = Frontend::connect(&place.path(), 2);
    second.negotiate(PLAIN, 0);
    second.start(0..2);
    second.raw.vring_base(0);
    second.raw.ok(RESET_OWNER, &[], &[]);
    drop(second);
    until(|| crate::open_files() == idle);
    assert_eq!(port.events().len(), 3);
    assert_eq!(port.given(), [0, 1]);
    drop(endpoint);
    drop(first);
    place.no_file_left();
}
