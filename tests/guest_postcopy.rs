//! A guest that moves by postcopy migration from one port to another, its packets flowing: pages
//! come to the new port when they are touched, by the guest or by our port.
#![cfg(feature = "dpdk")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use common::{
    Driver, Guest, Image, Lab, Machine, Namespace, Nic, Outcome, SOON, Testpmd, eventually,
};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A testpmd inside the namespace: two of our ports, each with a tap, and a bridge between the taps.
/// testpmd locks its memory, as it does by default.
fn bridge(lab: &Lab, namespace: &Namespace, queues: u16) -> Outcome<Testpmd> {
    let mut eal = Driver::under_test()?.eal_args();
    for id in 0..2 {
        let socket = lab.path_text(&format!("s{id}"));
        let port = format!("net_vhost{id},iface={socket},queues={queues},postcopy-support=1");
        let tap = format!("net_tap{id},iface=tap{id}");
        eal.extend(["--vdev".to_owned(), port, "--vdev".to_owned(), tap]);
    }
    let wrapper = namespace.wrapper();
    let wrapper = wrapper.each_ref().map(String::as_str);
    let own = [
        format!("--rxq={queues}"),
        format!("--txq={queues}"),
        "--total-num-mbufs=32768".to_owned(),
    ];
    let own = own.each_ref().map(String::as_str);
    let mut back = Testpmd::spawn_under(&wrapper, lab, "backend", &eal, &own)?;
    back.ready()?;
    namespace.run("ip link add br0 type bridge")?;
    for id in 0..2 {
        namespace.run(&format!("ip link set tap{id} master br0 up"))?;
    }
    namespace.run(&format!("ip addr add {HOST}/24 dev br0"))?;
    namespace.run("ip link set br0 up")?;
    back.run("set fwd io retry")?;
    back.run("start")?;
    Ok(back)
}

fn nic(id: u8, options: &'static str, queues: u16) -> Nic {
    Nic {
        file: format!("s{id}"),
        mac: 0x10,
        machine: Machine {
            nic: options,
            queues,
            ..Machine::PLAIN
        },
    }
}

/// Byte `at` of the stream.
fn pattern(at: u64) -> u8 {
    let mixed = (at ^ at >> 9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// A stream that the guest sends back, checked byte by byte.
struct Echo {
    socket: TcpStream,
    checked: Arc<AtomicU64>,
    threads: [JoinHandle<Result<(), String>>; 2],
}

impl Echo {
    fn begin(listener: &TcpListener, guest: &mut Guest) -> Outcome<Self> {
        guest.run(&format!("{{ nc {HOST} 5000 -e cat & }}"))?;
        let failed = |error: std::io::Error| format!("the stream: {error}");
        let (socket, _) = listener.accept().map_err(failed)?;
        socket.set_read_timeout(Some(3 * SOON)).map_err(failed)?;
        let (mut writer, mut reader) = (
            socket.try_clone().map_err(failed)?,
            socket.try_clone().map_err(failed)?,
        );
        let checked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&checked);
        let sender = thread::spawn(move || {
            let mut at = 0;
            loop {
                let piece: Vec<u8> = (at..at + 4096).map(pattern).collect();
                if writer.write_all(&piece).is_err() {
                    return Ok(()); // the end
                }
                at += 4096;
            }
        });
        let receiver = thread::spawn(move || {
            let mut piece = [0; 4096];
            let mut at = 0;
            loop {
                let length = match reader.read(&mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(error) => return Err(format!("after {at} bytes: {error}")),
                };
                for byte in &piece[..length] {
                    if *byte != pattern(at) {
                        return Err(format!("byte {at} of the stream is {byte:#x}"));
                    }
                    at += 1;
                }
                count.store(at, Ordering::Relaxed);
            }
        });
        Ok(Self {
            socket,
            checked,
            threads: [sender, receiver],
        })
    }

    fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Waits until so many more bytes came back.
    fn goes_on(&self, more: u64) -> Outcome {
        let from = self.checked();
        let begin = Instant::now();
        eventually("the stream goes on", || self.checked() >= from + more)
            .map_err(|error| format!("{error}: {from} bytes, then {}", self.checked()))?;
        println!("    {more} bytes more after {:.1?}", begin.elapsed());
        Ok(())
    }

    fn end(self) -> Outcome {
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in self.threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    }
}

/// Waits until a migration has come that far, seen from one of its ends.
fn wait_for_status(guest: &Guest, wanted: &str) -> Outcome {
    let wanted = format!("\"status\": \"{wanted}\"");
    let mut last = String::new();
    eventually(&format!("a migration with {wanted}"), || {
        last = guest.qmp_with("query-migrate", "{}").unwrap_or_default();
        last.contains(&wanted)
    })
    .map_err(|error| format!("{error}\n{last}").into())
}

/// Lets `from` move to `to`, and returns as soon as it runs there with most of its pages missing.
fn begin(lab: &Lab, from: &Guest, to: &Guest) -> Outcome {
    let capability = r#"{"capabilities": [{"capability": "postcopy-ram", "state": true}]}"#;
    for end in [from, to] {
        end.qmp_with("migrate-set-capabilities", capability)?;
    }
    let address = format!(r#"{{"uri": "unix:{}"}}"#, lab.path_text("migration"));
    to.qmp_with("migrate-incoming", &address)?;
    // Most pages are missing when it switches over, and come slowly unless they are asked for.
    let slow = r#"{"max-bandwidth": 4194304, "max-postcopy-bandwidth": 4194304}"#;
    from.qmp_with("migrate-set-parameters", slow)?;
    from.qmp_with("migrate", &address)?;
    wait_for_status(from, "active")?;
    from.qmp("migrate-start-postcopy")?;
    wait_for_status(from, "postcopy-active")
}

fn moves(test: &str, options: &'static str, queues: u16) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, queues)?;
    let nics = [0, 1].map(|id| [nic(id, options, queues)]);
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics[0])?;
    guest.wait_for_boot()?;
    guest.reach_the_backend()?;
    let listener = namespace.listen(SocketAddr::from((HOST, 5000)))?;
    let echo = Echo::begin(&listener, &mut guest)?;
    echo.goes_on(1 << 20)?;

    let mut moved = Guest::spawn_incoming(&lab, &image, "qemu-2", &nics[1])?;
    begin(&lab, &guest, &moved)?;
    println!("runs on the other side");
    // A page was asked for by our port, not by the guest.
    moved.wait_for_log("postcopy_request_shared_page")?;
    echo.goes_on(64 << 10)?;
    let free = r#"{"max-postcopy-bandwidth": 0, "max-bandwidth": 1073741824}"#;
    guest.qmp_with("migrate-set-parameters", free)?;
    wait_for_status(&guest, "completed")?;
    wait_for_status(&moved, "completed")?;
    println!("all pages are there");
    guest.quit()?;
    back.wait_for_link(0, false)?;
    back.wait_for_link(2, true)?;

    echo.goes_on(1 << 20)?;
    echo.end()?;
    for size in [8, 1472] {
        moved.ping(50, size)?;
    }
    let log = back.log();
    assert!(log.contains("postcopy is over"), "{log}");
    moved.quit()?;
    back.quit()?;
    let _ = std::fs::remove_file(lab.path("migration"));
    lab.finish()
}

#[test]
fn a_guest_moves_by_postcopy_while_packets_flow() -> Outcome {
    moves("guest-postcopy", "", 1)
}

#[test]
fn a_guest_with_packed_rings_and_2_queues_moves_by_postcopy() -> Outcome {
    moves("guest-postcopy-packed", ",packed=on", 2)
}

#[test]
fn a_guest_that_dies_in_the_middle_of_postcopy_leaves_the_port_alive() -> Outcome {
    let test = "guest-postcopy-killed";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, 1)?;
    let nics = [0, 1].map(|id| [nic(id, "", 1)]);
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics[0])?;
    guest.wait_for_boot()?;
    guest.reach_the_backend()?;
    guest.run(&format!("{{ ping -q -i 0.002 {HOST} >/dev/null & }}"))?;
    let moved = Guest::spawn_incoming(&lab, &image, "qemu-2", &nics[1])?;
    begin(&lab, &guest, &moved)?;
    moved.wait_for_log("postcopy_request_shared_page")?;
    // Nobody is left who has the missing pages, or who could say that they are not coming.
    moved.kill();
    guest.kill();
    for port in [0, 2] {
        back.wait_for_link(port, false)?;
    }
    for name in ["qemu.qmp", "qemu-2.qmp", "migration"] {
        let _ = std::fs::remove_file(lab.path(name));
    }
    let mut next = Guest::spawn_with(&lab, &image, "qemu-3", &nics[1])?;
    next.wait_for_boot()?;
    next.reach_the_backend()?;
    next.ping(50, 1472)?;
    next.quit()?;
    back.quit()?;
    lab.finish()
}
