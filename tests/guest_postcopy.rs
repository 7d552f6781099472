//! A guest that moves by postcopy migration from one port to another, its packets flowing: pages
//! come to the new port when they are touched, by the guest or by our port.
#![cfg(feature = "dpdk")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::migration::{Echo, GUEST, HOST, Wire, bridge, nic, wait_for_status};
use common::{Guest, Image, Lab, Machine, Namespace, Nic, Outcome, Testpmd};

/// Datagrams for the guest that nobody there waits for, as long as this lives: our port is the first
/// to touch the buffers into which they go.
struct Flood {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn begin(namespace: &Namespace) -> Outcome<Self> {
        let socket = namespace.datagrams(0)?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // Fails when the guest says that nobody listens.
                let _ = socket.send_to(&[0; 1000], (GUEST, 9));
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It cannot panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
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
    wait_for_status(from, "postcopy-active").map(|_| ())
}

const POSTCOPY: &str = ",postcopy-support=1";

/// A guest that has left one QEMU for another, where most of its memory is missing.
struct Moving {
    back: Testpmd,
    from: Guest,
    to: Guest,
    /// A stream that flows all the time.
    echo: Echo,
    _namespace: Namespace,
}

fn depart(lab: &Lab, image: &Image, nics: &[[Nic; 1]; 2], devargs: &str) -> Outcome<Moving> {
    let namespace = Namespace::new()?;
    let queues = nics[0][0].machine.queues;
    let back = bridge(lab, &namespace, Wire::Tap, queues, devargs)?;
    let mut from = Guest::spawn_with(lab, image, "qemu", &nics[0])?;
    from.wait_for_boot()?;
    from.reach_the_backend()?;
    let listener = namespace.listen(SocketAddr::from((HOST, 5000)))?;
    let echo = Echo::begin(&listener, &mut from)?;
    echo.goes_on(1 << 20)?;
    let to = Guest::spawn_incoming(lab, image, "qemu-2", &nics[1])?;
    let _flood = Flood::begin(&namespace)?;
    begin(lab, &from, &to)?;
    println!("runs on the other side");
    // A page was asked for by our port, not by the guest.
    to.wait_for_log("postcopy_request_shared_page")?;
    println!("our port waited for a page");
    Ok(Moving {
        back,
        from,
        to,
        echo,
        _namespace: namespace,
    })
}

/// What engines have copied for the guest where it arrives, from it and to it.
fn copies(back: &mut Testpmd, with_engines: bool) -> Outcome<Vec<u64>> {
    let names: &[&str] = match with_engines {
        true => &["rx_q0_dma_copies", "tx_q0_dma_copies"],
        false => &[],
    };
    let xstats = back.xstats(2)?;
    let value = |name: &&str| {
        let found = xstats.iter().find(|(found, _)| found == name);
        Ok(found.ok_or_else(|| format!("no {name}"))?.1)
    };
    names.iter().map(value).collect()
}

/// `devargs`: more of the ports'. The engines among them may not touch a page that is missing.
fn moves(test: &str, options: &'static str, queues: u16, devargs: &str) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let machine = Machine {
        nic: options,
        queues,
        ..Machine::PLAIN
    };
    let nics = [0, 1].map(|id| [nic(id, machine)]);
    let Moving {
        mut back,
        from,
        mut to,
        echo,
        _namespace,
    } = depart(&lab, &image, &nics, &format!("{POSTCOPY}{devargs}"))?;
    let with_engines = devargs.contains("dmas=");
    assert!(
        copies(&mut back, with_engines)?
            .iter()
            .all(|copies| *copies == 0)
    );
    echo.goes_on(64 << 10)?;
    let free = r#"{"max-postcopy-bandwidth": 0, "max-bandwidth": 1073741824}"#;
    from.qmp_with("migrate-set-parameters", free)?;
    wait_for_status(&from, "completed")?;
    wait_for_status(&to, "completed")?;
    println!("all pages are there");
    from.quit()?;
    back.wait_for_link(0, false)?;
    back.wait_for_link(2, true)?;

    echo.goes_on(1 << 20)?;
    echo.end()?;
    for size in [8, 1472] {
        to.ping(50, size)?;
    }
    let log = back.log();
    assert!(log.contains("postcopy is over"), "{log}");
    // Now that all pages are there.
    for copies in copies(&mut back, with_engines)? {
        assert!(copies >= 100, "{copies} copies");
    }
    to.quit()?;
    back.quit()?;
    let _ = std::fs::remove_file(lab.path("migration"));
    lab.finish()
}

#[test]
fn a_guest_moves_by_postcopy_while_packets_flow() -> Outcome {
    moves("guest-postcopy", "", 1, "")
}

#[test]
fn a_guest_with_packed_rings_and_2_queues_moves_by_postcopy() -> Outcome {
    moves("guest-postcopy-packed", ",packed=on", 2, "")
}

#[test]
fn a_guest_whose_packets_engines_copy_moves_by_postcopy() -> Outcome {
    let devargs = ",dmas=[rxq0@sw;txq0@sw],dmathr=0";
    moves("guest-postcopy-dma", "", 1, devargs)
}

#[test]
fn a_guest_that_dies_in_the_middle_of_postcopy_leaves_the_port_alive() -> Outcome {
    let test = "guest-postcopy-killed";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let nics = [0, 1].map(|id| [nic(id, Machine::PLAIN)]);
    let Moving {
        mut back,
        from,
        to,
        echo,
        _namespace,
    } = depart(&lab, &image, &nics, POSTCOPY)?;
    // Nobody is left who has the missing pages, or who could say that they are not coming.
    to.kill();
    from.kill();
    for port in [0, 2] {
        back.wait_for_link(port, false)?;
    }
    echo.end()?;
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
