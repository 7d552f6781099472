//! More than one frontend, and frontends that misbehave, at ports of stock testpmd.
#![cfg(feature = "dpdk")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;

use common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, pair};

const MANY: u64 = 10_000;

/// A pair keeps exchanging packets.
fn goes_on(back: &mut Testpmd) -> Outcome {
    let before = back.stats(0)?;
    back.wait_for_packets(0, before, MANY).map(|_| ())
}

fn exchange(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    front.run("start")?;
    back.run("start tx_first 4")?;
    goes_on(back)
}

fn connect(lab: &Lab, name: &str) -> Outcome<UnixStream> {
    let path = lab.path(name);
    let stream = UnixStream::connect(&path);
    Ok(stream.map_err(|error| format!("{}: {error}", path.display()))?)
}

/// The header of a vhost-user message with little-endian words: request, flags, size.
fn header(request: u32, size: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&request.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

const SET_MEM_TABLE: u32 = 5;

#[test]
fn a_connection_that_says_nothing_keeps_no_frontend_away() -> Outcome {
    let lab = Lab::new("silent")?;
    let driver = Driver::under_test()?;
    let mut back = Backend::server(&driver, 1).start(&lab)?;
    lab.wait_for_file(&lab.path("s"))?;
    let silent = connect(&lab, "s")?;
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange(&mut back, &mut front)?;
    drop(silent);
    goes_on(&mut back)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_second_frontend_waits_until_the_first_has_gone() -> Outcome {
    let test = "our_second_frontend_waits_until_the_first_has_gone";
    let Some(driver) = common::ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new("second-frontend")?;
    let frontend = Frontend::client(1);
    let (mut back, mut first) = pair(&lab, &Backend::server(&driver, 1), &frontend)?;
    exchange(&mut back, &mut first)?;
    let links = |back: &Testpmd| {
        let events = back.events().into_iter();
        events.filter(|event| event.contains("link state")).count()
    };
    let mut second = frontend.spawn_as(&lab, "second")?;
    // Long enough for a second one that does not wait to have broken the first.
    for _ in 0..10 {
        goes_on(&mut back)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert_eq!(links(&back), 1, "{:?}", back.events());
    first.quit()?;
    second.ready()?;
    back.wait_for_link(0, true)?;
    second.run("start tx_first 4")?;
    goes_on(&mut back)?;
    second.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_other_ports_go_on_while_half_a_message_is_awaited() -> Outcome {
    let test = "our_other_ports_go_on_while_half_a_message_is_awaited";
    let Some(driver) = common::ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new("half-message")?;
    let mut back = Backend::server(&driver, 1).start(&lab)?;
    let other = lab.path_text("t");
    back.run(&format!("port attach net_vhost1,iface={other}"))?;
    back.run("port start 1")?;
    lab.wait_for_file(&lab.path("t"))?;
    let mut half = connect(&lab, "t")?;
    let sent = half.write_all(&header(SET_MEM_TABLE, 200));
    sent.map_err(|error| error.to_string())?;
    // The first port still takes its frontend, and the second one can be closed meanwhile.
    back.run("set portlist 0")?;
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange(&mut back, &mut front)?;
    back.run("stop")?;
    back.run("port stop 1")?;
    back.run("port close 1")?;
    assert!(!lab.path("t").exists(), "{}", back.log());
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn what_is_no_vhost_user_message_ends_only_its_connection() -> Outcome {
    let lab = Lab::new("noise")?;
    let driver = Driver::under_test()?;
    let mut back = Backend::server(&driver, 1).start(&lab)?;
    lab.wait_for_file(&lab.path("s"))?;
    for noise in [
        &[0xff; 64][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &header(9999, 0),
        &header(1, 1 << 30),
    ] {
        let mut stream = connect(&lab, "s")?;
        // The peer may hang up before it has read everything.
        let _ = stream.write_all(noise);
    }
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange(&mut back, &mut front)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_port_has_up_to_128_queue_pairs() -> Outcome {
    let lab = Lab::new("128-queues")?;
    let driver = Driver::under_test()?;
    let mut back = Backend::server(&driver, 128).start(&lab)?;
    let info = back.run("show port info 0")?;
    assert!(info.contains("Max possible RX queues: 128"), "{info}");
    lab.wait_for_file(&lab.path("s"))?;
    // Only the queues that the frontend has carry packets.
    let mut front = Frontend::client(2).start(&lab)?;
    back.wait_for_link(0, true)?;
    front.run("start tx_first 4")?;
    back.run("set fwd rxonly")?;
    back.run("start")?;
    let arrived = 2 * 4 * 32;
    let mut stats = PortStats::default();
    for _ in 0..300 {
        stats = back.stats(0)?;
        if stats.rx_packets >= arrived {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(stats.rx_packets, arrived);
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_socket_path_of_107_bytes_works() -> Outcome {
    let lab = Lab::new("long-path")?;
    let driver = Driver::under_test()?;
    let room = 107 - lab.path_text("").len();
    let socket = lab.path_text(&"x".repeat(room));
    assert_eq!(socket.len(), 107);
    let mut back = Testpmd::start(&lab, "backend", &driver.eal_args(), &[])?;
    back.run(&format!("port attach net_vhost0,iface={socket}"))?;
    back.run("port start 0")?;
    lab.wait_for_file(std::path::Path::new(&socket))?;
    back.quit()?;
    lab.finish()
}
