//! The socket: where it appears, how it goes, and who may stall whom.

use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::port::{Event, Port};
use crate::raw::*;
use crate::{EPOLL, Place, files_of, start, threads, until};
use rte_net_vhost::session::Endpoint;
use rte_net_vhost::session::features::*;

#[test]
fn the_socket_is_there_after_start_and_gone_after_stop() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let about = std::fs::symlink_metadata(place.path()).unwrap();
    assert!(about.file_type().is_socket());

    drop(endpoint);

    assert!(!place.path().exists());
    place.no_file_left();
}

#[test]
fn a_stopped_endpoint_can_be_started_again() {
    let place = Place::new();
    for _ in 0..20 {
        let (endpoint, _) = place.serve();
        let raw = Raw::connect(&place.path());
        raw.get(GET_FEATURES);
        drop(endpoint);
        raw.closed();
    }
    place.no_file_left();
}

#[test]
fn an_endpoint_may_be_stopped_while_frontends_come_and_go() {
    let place = Place::new();
    let path = place.path();
    let over = Arc::new(AtomicBool::new(false));
    let frontends: Vec<_> = (0..3)
        .map(|nth| {
            let (path, over) = (path.clone(), Arc::clone(&over));
            std::thread::spawn(move || {
                while !over.load(Relaxed) {
                    let Ok(socket) = UnixStream::connect(&path) else {
                        std::thread::yield_now();
                        continue;
                    };
                    // Any of these may fail, at any point.
                    let bytes = message(GET_FEATURES, 0, &[]);
                    let _ = (&socket).write_all(&bytes[..4 * (nth + 1)]);
                    let _ = (&socket).read(&mut [0; 20]);
                }
            })
        })
        .collect();
    for _ in 0..100 {
        let (endpoint, _) = place.serve();
        std::thread::sleep(Duration::from_millis(2));
        drop(endpoint);
        assert!(!path.exists());
    }
    over.store(true, Relaxed);
    for frontend in frontends {
        frontend.join().unwrap();
    }
    place.no_file_left();
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let place = Place::new();
    let mut config = place.config();
    config.iface = format!("/tmp/{}", "x".repeat(103));
    let error = start(config, &Arc::default()).err().unwrap();
    assert_eq!(error.errno(), libc::ENAMETOOLONG);
    assert!(error.to_string().contains("108 bytes, at most 107"));
}

#[test]
fn a_path_of_107_bytes_works() {
    let place = Place::new();
    let mut config = place.config();
    let room = 107 - config.iface.len();
    config.iface.push_str(&"x".repeat(room));
    let path = std::path::PathBuf::from(&config.iface);
    let (endpoint, _) = place.serve_with(config, Port::default());
    Raw::connect(&path).get(GET_FEATURES);
    drop(endpoint);
    assert!(!path.exists());
}

#[test]
fn a_missing_directory_is_named() {
    let place = Place::new();
    let mut config = place.config();
    config.iface = place.directory.join("not/there").display().to_string();
    let error = start(config, &Arc::default()).err().unwrap();
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(error.to_string().contains("there is no directory"));
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let place = Place::new();
    std::fs::write(place.path(), "precious").unwrap();
    let error = start(place.config(), &Arc::default()).err().unwrap();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert_eq!(std::fs::read(place.path()).unwrap(), b"precious");
    place.no_file_left();
}

#[test]
fn a_stale_socket_is_replaced() {
    let place = Place::new();
    drop(UnixListener::bind(place.path()).unwrap());
    assert!(place.path().exists());
    let (endpoint, _) = place.serve();
    Raw::connect(&place.path()).get(GET_FEATURES);
    drop(endpoint);
    assert!(!place.path().exists());
}

#[test]
fn a_socket_that_somebody_serves_is_left_alone() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let error = start(place.config(), &Arc::default()).err().unwrap();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(error.to_string().contains("another process"));
    UnixStream::connect(place.path()).unwrap();
    drop(listener);
}

#[test]
fn a_second_port_of_the_process_is_refused_however_it_spells_the_path() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let mut config = place.client();
    config.iface = place.directory.join("./socket").display().to_string();
    let error = start(config.clone(), &Arc::default()).err().unwrap();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(error.to_string().contains("another port"));

    drop(endpoint);

    drop(start(config, &Arc::default()).unwrap());
}

#[test]
fn a_file_that_took_the_place_of_the_socket_survives_stop() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    std::fs::remove_file(place.path()).unwrap();
    std::fs::write(place.path(), "precious").unwrap();
    drop(endpoint);
    assert_eq!(std::fs::read(place.path()).unwrap(), b"precious");
}

#[test]
fn half_a_message_stalls_only_its_own_connection() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let stuck: Vec<Raw> = [3, 12, 15]
        .map(|bytes| {
            let raw = Raw::connect(&place.path());
            raw.send(&message(SET_FEATURES, 0, &[0; 8])[..bytes], &[]);
            raw
        })
        .into();
    let raw = Raw::connect(&place.path());
    assert_eq!(raw.get(GET_FEATURES), offered());

    drop(endpoint);

    stuck.iter().for_each(Raw::closed);
    drop((stuck, raw));
    place.no_file_left();
}

#[test]
fn a_peer_that_does_not_read_its_replies_does_not_hold_up_stop() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let stuck = Raw::connect(&place.path());
    stuck.socket.set_nonblocking(true).unwrap();
    // Until both directions are full.
    let request = message(GET_FEATURES, 0, &[]);
    while (&stuck.socket).write_all(&request).is_ok() {}
    Raw::connect(&place.path()).get(GET_FEATURES);

    drop(endpoint);

    drop(stuck);
    place.no_file_left();
}

#[test]
fn a_message_may_come_in_any_pieces() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let frontend = Frontend::connect(&place.path(), 2);
    let raw = &frontend.raw;
    let table = table(&[[0, frontend.size(), UVA, 0]]);
    let bytes = message(SET_MEM_TABLE, NEED_REPLY, &table);
    raw.send(&bytes[..1], &[&frontend.memory]);
    for byte in &bytes[1..] {
        raw.send(&[*byte], &[]);
    }
    assert_eq!(raw.answer_u64(SET_MEM_TABLE), 0);
    // Many messages in one piece.
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(message(GET_FEATURES, 0, &[]));
    }
    raw.send(&all, &[]);
    for _ in 0..100 {
        assert_eq!(raw.answer_u64(GET_FEATURES), offered());
    }
    frontend.start(0..2);
    assert_eq!(port.wait_for(3).len(), 3);
    drop(endpoint);
}

#[test]
fn a_peer_that_leaves_at_any_byte_leaves_nothing_behind() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    let idle = crate::open_files();
    let memory = memory(0x10000);
    let bytes = message(SET_MEM_TABLE, NEED_REPLY, &table(&[[0, 0x10000, UVA, 0]]));
    for cut in 0..bytes.len() {
        let raw = Raw::connect(&place.path());
        if cut > 0 {
            raw.send(&bytes[..cut], &[&memory]);
        }
    }
    drop(memory);
    until(|| crate::open_files() == idle);
    drop(endpoint);
    place.no_file_left();
}

#[test]
fn one_thread_lets_in_the_frontends_of_all_ports() {
    let place = Place::new();
    let path = |nth| place.directory.join(format!("socket{nth}"));
    let serve = |nth: usize| {
        let mut config = place.config();
        config.iface = path(nth).to_str().unwrap().to_owned();
        start(config, &Arc::default()).unwrap()
    };
    for _ in 0..3 {
        let mut endpoints: Vec<Endpoint> = (0..6).map(serve).collect();
        let served: Vec<Raw> = (0..6).map(|nth| Raw::connect(&path(nth))).collect();
        for raw in &served {
            assert_eq!(raw.get(GET_FEATURES), offered());
        }
        assert_eq!(threads("vhost-listen").len(), 1);
        // In any order; the others go on.
        for nth in [3, 0, 1] {
            drop(endpoints.remove(nth));
        }
        for gone in [3, 0, 2] {
            assert!(!path(gone).exists());
            served[gone].closed();
        }
        for there in [1, 4, 5] {
            assert_eq!(served[there].get(GET_FEATURES), offered());
            assert_eq!(Raw::connect(&path(there)).get(GET_FEATURES), offered());
        }
        endpoints.push(serve(0));
        assert_eq!(Raw::connect(&path(0)).get(GET_FEATURES), offered());
        drop(endpoints);
        until(|| threads("vhost-listen").is_empty());
    }
    place.no_file_left();
}

#[test]
fn a_port_that_comes_back_at_once_finds_the_thread_of_the_one_before() {
    let place = Place::new();
    let (endpoint, _) = place.serve();
    // It gives itself its name.
    until(|| threads("vhost-listen").len() == 1);
    let first = threads("vhost-listen");
    drop(endpoint);
    assert!(!place.path().exists());

    let (endpoint, _) = place.serve();
    assert_eq!(threads("vhost-listen"), first);
    assert_eq!(Raw::connect(&place.path()).get(GET_FEATURES), offered());

    drop(endpoint);
    until(|| threads("vhost-listen").is_empty());
    assert_eq!(files_of(EPOLL), 0);
    place.no_file_left();
}

#[test]
fn ports_come_and_go_while_frontends_knock() {
    let place = Place::new();
    let path = |nth: usize| place.directory.join(format!("socket{nth}"));
    std::thread::scope(|scope| {
        for nth in 0..3 {
            let (path, place) = (path(nth), &place);
            scope.spawn(move || {
                for round in 0..200 {
                    let mut config = place.config();
                    config.iface = path.to_str().unwrap().to_owned();
                    let endpoint = start(config, &Arc::default()).unwrap();
                    // Some are let in, some are not, some just now.
                    let knocks: Vec<_> = (0..round % 4)
                        .map(|_| UnixStream::connect(&path).unwrap())
                        .collect();
                    drop(endpoint);
                    assert!(!path.exists(), "round {round}");
                    drop(knocks);
                }
            });
        }
    });
    until(|| threads("vhost-conn-0").is_empty());
    place.no_file_left();
}

#[test]
fn a_vring_has_one_descriptor_for_each_of_its_eventfds() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let eventfds = || files_of("anon_inode:[eventfd]");
    let before = eventfds();
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
    frontend.start(0..2);
    port.wait_for(3);

    // Kick and call of two vrings, here and there; no bell for a connection that waits for nothing.
    assert_eq!(eventfds(), before + 8);
    drop((endpoint, frontend));
    place.no_file_left();
}

#[test]
fn the_17th_frontend_takes_the_place_of_the_oldest_that_is_not_served() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let idle = Raw::connect(&place.path());
    assert_eq!(idle.get(GET_FEATURES), offered());
    let served = Frontend::connect(&place.path(), 2);
    served.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
    served.start(0..2);
    port.wait_for(3);
    let others: Vec<Raw> = (0..14).map(|_| Raw::connect(&place.path())).collect();
    for raw in &others {
        assert_eq!(raw.get(GET_FEATURES), offered());
    }
    let open = crate::open_files();

    let seventeenth = Raw::connect(&place.path());
    assert_eq!(seventeenth.get(GET_FEATURES), offered());
    idle.closed();
    let eighteenth = Raw::connect(&place.path());
    assert_eq!(eighteenth.get(GET_FEATURES), offered());
    others[0].closed();

    // Two more ends of ours, and none of the backend's.
    until(|| crate::open_files() == open + 2);
    served.raw.sync();
    assert_eq!(port.events().len(), 3);
    drop(endpoint);
    drop((idle, served, others, seventeenth, eighteenth));
    place.no_file_left();
}

/// Closes the port from within the first event for which `when` holds.
fn closed_from_an_event(when: fn(Event) -> bool) {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let endpoint = Arc::new(Mutex::new(Some(endpoint)));
    let taken = Arc::clone(&endpoint);
    port.at_each_event(move |event| {
        let endpoint = if when(event) {
            taken.lock().unwrap().take()
        } else {
            None
        };
        drop(endpoint);
    });
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
    for index in 0..2 {
        frontend.set_up(index, 0);
    }
    for index in 0..2 {
        let body = u32s(&[index, 1]);
        frontend.raw.tell(SET_VRING_ENABLE, &body, &[]);
    }
    frontend.raw.closed();
    until(|| endpoint.lock().unwrap().is_none() && port.given().is_empty());
    assert!(!place.path().exists());
    drop((frontend, port));
    place.no_file_left();
}

#[test]
fn a_port_can_be_closed_from_within_a_queue_event() {
    closed_from_an_event(|event| event == Event::Queue(1, true));
}

#[test]
fn a_port_can_be_closed_from_within_a_link_event() {
    closed_from_an_event(|event| matches!(event, Event::Up(_)));
}

#[test]
fn a_panic_in_an_event_ends_only_its_connection() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    port.at_each_event(|event| assert_ne!(event, Event::Queue(0, true), "on purpose"));
    let frontend = Frontend::connect(&place.path(), 2);
    frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
    frontend.start(0..1);
    frontend.raw.closed();
    assert!(port.given().is_empty());
    Raw::connect(&place.path()).get(GET_FEATURES);
    drop((endpoint, frontend));
    place.no_file_left();
}

#[test]
fn the_handle_is_the_lowest_that_is_free() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let first = Frontend::connect(&place.path(), 2);
    first.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
    let second = Frontend::connect(&place.path(), 2);
    second.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);

    second.start(0..2);

    let Event::Up(device) = port.wait_for(3)[2] else {
        panic!("no link: {:?}", port.events());
    };
    assert_eq!(device.vid, 1);
    drop(endpoint);
}

#[test]
fn a_client_connects_at_once() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let (endpoint, _) = place.serve_with(place.client(), Port::default());
    let raw = Raw::over(listener.accept().unwrap().0);
    assert_eq!(raw.get(GET_FEATURES), offered());
    drop(endpoint);
    raw.closed();
    assert!(place.path().exists(), "a client does not touch the file");
}

#[test]
fn a_client_waits_for_its_frontend_and_comes_back_to_it() {
    let place = Place::new();
    let (endpoint, port) = place.serve_with(place.client(), Port::default());
    for _ in 0..3 {
        let _ = std::fs::remove_file(place.path());
        let listener = UnixListener::bind(place.path()).unwrap();
        let raw = Raw::over(listener.accept().unwrap().0);
        let frontend = Frontend::new(raw, 2);
        frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
        frontend.start(0..2);
        assert!(matches!(port.wait_for(3)[2], Event::Up(_)));
        port.forget();
        drop((listener, frontend));
        assert_eq!(port.wait_for(1), [Event::Down]);
        port.forget();
    }
    drop(endpoint);
    place.no_file_left();
}

#[test]
fn a_server_takes_the_next_frontend() {
    let place = Place::new();
    let (endpoint, port): (Endpoint, _) = place.serve();
    for _ in 0..3 {
        let frontend = Frontend::connect(&place.path(), 2);
        frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
        frontend.start(0..2);
        assert!(matches!(port.wait_for(3)[2], Event::Up(_)));
        port.forget();
        drop(frontend);
        assert_eq!(port.wait_for(1), [Event::Down]);
        port.forget();
    }
    drop(endpoint);
    place.no_file_left();
}
