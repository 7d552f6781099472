//! Each request: its answer, its failures, and what becomes of its files.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use crate::Place;
use crate::port::Event;
use crate::raw::*;
use rte_net_vhost::session::features::*;

const PLAIN: u64 = VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_VERSION_1;

#[test]
fn questions_are_answered_at_any_time() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    assert_eq!(raw.get(GET_FEATURES), offered());
    assert_eq!(raw.get(GET_PROTOCOL_FEATURES), offered_protocol());
    assert_eq!(raw.get(GET_QUEUE_NUM), 128);
    assert_eq!(raw.get(GET_STATUS), 0);
    raw.ok(SET_STATUS, &u64s(&[0x0b]), &[]);
    assert_eq!(raw.get(GET_STATUS), 0x0b);
    raw.refused(SET_STATUS, &u64s(&[0x100]), &[]);
    // Asked with NEED_REPLY, the answer is the only one.
    raw.send(&message(GET_FEATURES, NEED_REPLY, &[]), &[]);
    assert_eq!(raw.answer_u64(GET_FEATURES), offered());
    raw.sync();
}

#[test]
fn a_failed_request_that_wants_an_answer_keeps_the_connection() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    for unknown in [0, 23, 26, 34, 60, u32::MAX] {
        raw.refused(unknown, &[], &[]);
        raw.refused(unknown, &[1; 300], &[&event()]);
    }
    raw.refused(IOTLB_MSG, &[0; 32], &[]);
    raw.refused(GET_CONFIG, &[0; 12], &[]);
    // Not negotiated.
    raw.refused(GET_MAX_MEM_SLOTS, &[], &[]);
    raw.refused(SET_FEATURES, &[0; 7], &[]);
    raw.refused(SET_VRING_NUM, &[], &[]);
    raw.get(GET_FEATURES);
}

#[test]
fn a_failed_request_without_a_wish_for_an_answer_ends_the_connection() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let cases: [(u32, &[u8]); 4] = [
        (60, &[]),
        (IOTLB_MSG, &[0; 32]),
        (GET_CONFIG, &[0; 12]),
        (NET_SET_MTU, &[0; 8]),
    ];
    for (request, body) in cases {
        let raw = Raw::connect(&place.path());
        raw.tell(request, body, &[]);
        raw.closed();
    }
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let long = u32s(&[SET_FEATURES, 1 | NEED_REPLY, 4097]);
    let version_0 = u32s(&[GET_FEATURES, NEED_REPLY, 0]);
    let version_3 = u32s(&[GET_FEATURES, 3 | NEED_REPLY, 0]);
    for bytes in [long, version_0, version_3] {
        let raw = Raw::connect(&place.path());
        raw.send(&bytes, &[&event()]);
        raw.closed();
    }
    drop(endpoint);
    place.no_file_left();
}

#[test]
fn a_vring_beyond_the_256th_ends_the_connection() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    for request in [
        SET_VRING_NUM,
        SET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_ENABLE,
    ] {
        for index in [256, 0x1_0000, u32::MAX] {
            let raw = Raw::connect(&place.path());
            raw.send(&message(request, NEED_REPLY, &u32s(&[index, 1])), &[]);
            raw.closed();
        }
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    raw.refused(SET_FEATURES, &u64s(&[PLAIN | VIRTIO_F_IOMMU_PLATFORM]), &[]);
    // And the status does not pretend.
    raw.ok(SET_STATUS, &u64s(&[0x0b]), &[]);
    assert_eq!(raw.get(GET_STATUS), 0x03);
    raw.ok(SET_FEATURES, &u64s(&[PLAIN]), &[]);
    raw.ok(SET_STATUS, &u64s(&[0x0b]), &[]);
    assert_eq!(raw.get(GET_STATUS), 0x0b);
    let body = u64s(&[VHOST_USER_PROTOCOL_F_CONFIG]);
    raw.refused(SET_PROTOCOL_FEATURES, &body, &[]);
    raw.ok(SET_FEATURES, &u64s(&[offered()]), &[]);
    raw.ok(SET_PROTOCOL_FEATURES, &u64s(&[offered_protocol()]), &[]);
}

#[test]
fn sizes_and_bases_have_limits() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    for size in [0, 3, 255, 32769, 65536, u32::MAX] {
        raw.refused(SET_VRING_NUM, &u32s(&[0, size]), &[]);
    }
    for size in [1, 256, 32768] {
        raw.ok(SET_VRING_NUM, &u32s(&[0, size]), &[]);
    }
    raw.refused(SET_VRING_BASE, &u32s(&[0, 0x1_0000]), &[]);
    raw.ok(SET_VRING_BASE, &u32s(&[0, 0xffff]), &[]);
    for mtu in [0, 67, 65536, u64::MAX] {
        raw.refused(NET_SET_MTU, &u64s(&[mtu]), &[]);
    }
    for mtu in [68, 65535] {
        raw.ok(NET_SET_MTU, &u64s(&[mtu]), &[]);
    }
}

#[test]
fn the_mtu_comes_with_the_link() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN | VIRTIO_NET_F_MTU, 0);
    frontend.raw.ok(NET_SET_MTU, &u64s(&[9000]), &[]);
    frontend.start(0..2);
    let Event::Up(device) = port.wait_for(3)[2] else {
        panic!("no link");
    };
    assert_eq!(device.mtu, Some(9000));
    frontend.raw.ok(NET_SET_MTU, &u64s(&[1400]), &[]);
    frontend.raw.sync();
    assert_eq!(port.events().len(), 3);
}

#[test]
fn a_rarp_wish_reaches_the_port_once() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    let body = [2, 0, 0, 1, 2, 3, 0xff, 0xff];
    frontend.raw.ok(SEND_RARP, &body, &[]);
    frontend.raw.sync();
    assert_eq!(port.events()[3..], [Event::Rarp([2, 0, 0, 1, 2, 3])]);
}

#[test]
fn surplus_and_missing_files_are_refused_and_closed() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    raw.get(GET_FEATURES);
    let (a, b) = (event(), event());
    let open = crate::open_files();
    let two: [&dyn AsFd; 2] = [&a, &b];
    for request in [
        SET_OWNER,
        RESET_OWNER,
        SET_FEATURES,
        SET_PROTOCOL_FEATURES,
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ENABLE,
        SEND_RARP,
        NET_SET_MTU,
        SET_STATUS,
        GET_STATUS,
        GET_QUEUE_NUM,
        GET_VRING_BASE,
    ] {
        raw.refused(request, &[0; 8], &[&a]);
        raw.refused(request, &[0; 8], &two);
    }
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        raw.refused(request, &u64s(&[0]), &two);
        raw.refused(request, &u64s(&[0]), &[]);
        raw.refused(request, &u64s(&[NO_FILE]), &[&a]);
    }
    for request in [SET_LOG_FD, SET_BACKEND_REQ_FD] {
        raw.refused(request, &[], &[]);
        raw.refused(request, &[], &two);
    }
    let many: Vec<&dyn AsFd> = (0..250).map(|_| &a as &dyn AsFd).collect();
    raw.refused(SET_FEATURES, &u64s(&[0]), &many);
    raw.refused(GET_VRING_BASE, &[0; 7], &many);
    assert_eq!(crate::open_files(), open);
    drop(endpoint);
    drop((raw, a, b));
    place.no_file_left();
}

#[test]
fn files_do_not_pile_up_over_the_pieces_of_a_message() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    raw.get(GET_FEATURES);
    let file = event();
    let open = crate::open_files();
    let many: Vec<&dyn AsFd> = (0..50).map(|_| &file as &dyn AsFd).collect();
    let bytes = message(SET_MEM_TABLE, NEED_REPLY, &table(&[]));
    for byte in &bytes[..11] {
        raw.send(&[*byte], &many);
    }
    // As many as any message has.
    crate::until(|| crate::open_files() == open + 32);

    raw.send(&bytes[11..], &[]);

    assert_eq!(raw.answer_u64(SET_MEM_TABLE), 1);
    raw.sync();
    assert_eq!(crate::open_files(), open);
    drop(endpoint);
    drop((raw, file));
    place.no_file_left();
}

#[test]
fn what_stands_behind_a_payload_means_nothing() {
    let place = Place::new();
    let (_endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    let raw = &frontend.raw;
    let longer = |body: Vec<u8>| [body, vec![0xa5; 13]].concat();
    raw.tell(GET_FEATURES, &longer(Vec::new()), &[]);
    assert_eq!(raw.answer_u64(GET_FEATURES), offered());
    raw.ok(SET_OWNER, &longer(Vec::new()), &[]);
    raw.ok(SET_FEATURES, &longer(u64s(&[PLAIN])), &[]);
    // Nor do the bytes behind the number of regions.
    let regions = [[0, 0x4000, UVA, 0], [0x4000, 0x4000, UVA + 0x4000, 0x4000]];
    let mut body = table(&regions);
    body[4..8].fill(0xa5);
    let files: [&dyn AsFd; 2] = [&frontend.memory, &frontend.memory];
    raw.ok(SET_MEM_TABLE, &longer(body), &files);
    for index in 0..2 {
        let nth = index as usize;
        let vring = u64s(&[index.into()]);
        raw.ok(SET_VRING_NUM, &longer(u32s(&[index, RING_SIZE])), &[]);
        raw.ok(SET_VRING_BASE, &longer(u32s(&[index, 0])), &[]);
        raw.ok(SET_VRING_ADDR, &longer(Frontend::addresses(index)), &[]);
        raw.ok(
            SET_VRING_KICK,
            &longer(vring.clone()),
            &[&frontend.kicks[nth]],
        );
        raw.ok(SET_VRING_CALL, &longer(vring), &[&frontend.calls[nth]]);
        raw.ok(SET_VRING_ENABLE, &longer(u32s(&[index, 1])), &[]);
    }
    assert!(matches!(port.wait_for(3)[2], Event::Up(_)));
}

#[test]
fn files_of_vrings_must_be_eventfds_and_do_not_block_afterwards() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let file = memory(8);
    let wrong: [&dyn AsFd; 4] = [&reader, &writer, &socket, &file];
    for file in wrong {
        for request in [SET_VRING_KICK, SET_VRING_CALL] {
            raw.refused(request, &u64s(&[0]), &[file]);
        }
    }
    let call = event();
    raw.ok(SET_VRING_CALL, &u64s(&[0]), &[&call]);
    let flags = rustix::fs::fcntl_getfl(&call).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn files_are_kept_or_closed_but_never_piled_up() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(PLAIN, 0);
    frontend.start(0..2);
    port.wait_for(3);
    let raw = &frontend.raw;
    let (channel, _other) = UnixStream::pair().unwrap();
    raw.ok(SET_BACKEND_REQ_FD, &[], &[&channel]);
    let open = crate::open_files();
    for _ in 0..10 {
        let file: OwnedFd = event();
        raw.ok(SET_VRING_KICK, &u64s(&[0]), &[&file]);
        raw.ok(SET_VRING_CALL, &u64s(&[0]), &[&file]);
        raw.ok(SET_VRING_ERR, &u64s(&[0]), &[&file]);
        raw.ok(SET_LOG_FD, &[], &[&file]);
        raw.ok(SET_BACKEND_REQ_FD, &[], &[&channel]);
        raw.ok(SET_VRING_NUM, &u32s(&[0, RING_SIZE]), &[]);
    }
    raw.sync();
    assert_eq!(crate::open_files(), open);
    drop(endpoint);
    drop((frontend, channel, _other));
    place.no_file_left();
}

#[test]
fn the_backend_channel_must_be_a_stream_socket() {
    let place = Place::new();
    let (_endpoint, _) = place.serve();
    let raw = Raw::connect(&place.path());
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    raw.refused(SET_BACKEND_REQ_FD, &[], &[&event()]);
    raw.refused(SET_BACKEND_REQ_FD, &[], &[&datagrams]);
}
