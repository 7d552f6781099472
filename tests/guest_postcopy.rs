//! A guest that moves by postcopy migration from one port to another, its packets flowing: pages
//! come to the new port when they are touched, by the guest or by our port.
#![cfg(feature = "dpdk")]

mod common;

use std::net::SocketAddr;

use common::migration::{Echo, HOST, bridge, nic, wait_for_status};
use common::{Guest, Image, Iommu, Lab, Namespace, Outcome};

/// Lets `from` move to `to`, and returns as soon as it runs there with most of its pages missing.
fn begin(lab: &Lab, from: &Guest, to: &Guest) -> Outcome {
    let capability = r#"{"capabilities": [{"capability": "postcopy-ram", "state": true}]}"#;
    for end in [from, to] {
        end.qmp_with("migrate-set-capabilities", capability)?;
    }
    let address = format!(r#"{{"uri": "unix:{}"}}"#, lab.path_text("migration"));
    to.qmp_with("migrate-incoming", &address)?;
    // Slow: most pages are missing when it switches over.
    from.qmp_with("migrate-set-parameters", r#"{"max-bandwidth": 8388608}"#)?;
    from.qmp_with("migrate", &address)?;
    wait_for_status(from, "active")?;
    from.qmp("migrate-start-postcopy")?;
    wait_for_status(from, "postcopy-active").map(|_| ())
}

fn moves(test: &str, options: &'static str, queues: u16) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, queues, ",postcopy-support=1")?;
    let nics = [0, 1].map(|id| [nic(id, options, queues, Iommu::Absent)]);
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
    let mut back = bridge(&lab, &namespace, 1, ",postcopy-support=1")?;
    let nics = [0, 1].map(|id| [nic(id, "", 1, Iommu::Absent)]);
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
