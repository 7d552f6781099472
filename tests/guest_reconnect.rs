//! A guest, or its backend, is killed under traffic, and the other side goes on.
#![cfg(feature = "dpdk")]

mod common;

use std::os::unix::fs::FileTypeExt;

use common::{
    Backend, Driver, Guest, Image, Lab, Machine, Outcome, after_a_kill, answering, connected,
};

/// Pings in the background, both directions busy, while `/busy` is there. One that ends, since the
/// link went down under it, is followed by the next.
fn keep_busy(guest: &mut Guest) -> Outcome {
    let ping = "ping -q -i 0.002 -s 1400 -c 500 10.0.0.1 >/dev/null 2>&1";
    let busy = format!("while [ -e /busy ]; do {ping}; sleep 0.05; done &");
    guest.run(&format!("touch /busy; {{ {busy} }}")).map(|_| ())
}

#[test]
fn a_guest_goes_on_when_the_listening_backend_was_killed_under_traffic() -> Outcome {
    let test = "guest-server-killed";
    let Some(driver) = common::ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let backend = Backend::server(&driver, 2);
    let mut back = answering(&lab, &backend)?;
    let machine = Machine {
        socket: ",reconnect=1",
        queues: 2,
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    keep_busy(&mut guest)?;
    for round in 0..2 {
        back.kill();
        let about = std::fs::symlink_metadata(lab.path("s"));
        let stale = about.is_ok_and(|about| about.file_type().is_socket());
        assert!(stale, "a killed server leaves its socket");
        back = answering(&lab, &backend)?;
        back.wait_for_link(0, true)?;
        guest.reach("10.0.0.1")?;
        for processor in [1, 2] {
            guest.run(&format!(
                "taskset {processor} ping -q -c 10 -i 0.02 10.0.0.1"
            ))?;
        }
        println!("round {round}: killed, back, and the guest goes on");
    }
    guest.run("rm /busy; wait")?;
    guest.ping(50, 1472)?;
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_backend_goes_on_when_its_guest_was_killed_under_traffic() -> Outcome {
    let test = "guest-killed";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 1))?;
    for nic in [",packed=on", ""] {
        let machine = Machine {
            nic,
            ..Machine::PLAIN
        };
        let mut guest = connected(&lab, &image, &machine, &mut back)?;
        guest.ping(20, 1472)?;
        keep_busy(&mut guest)?;
        guest.reach("10.0.0.1")?;
        guest.kill();
        after_a_kill(&lab);
        back.wait_for_link(0, false)?;
        println!("{nic}: killed, and the link is down");
    }
    back.quit()?;
    lab.finish()
}

#[test]
fn a_client_goes_on_when_its_listening_guest_was_killed_under_traffic() -> Outcome {
    let test = "guest-server-of-a-client-killed";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::client(&driver, 1))?;
    let machine = Machine {
        socket: ",server=on",
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    keep_busy(&mut guest)?;
    guest.reach("10.0.0.1")?;
    guest.kill();
    after_a_kill(&lab);
    back.wait_for_link(0, false)?;
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    guest.ping(20, 1472)?;
    guest.quit()?;
    back.quit()?;
    // QEMU's socket, not ours.
    let _ = std::fs::remove_file(lab.path("s"));
    lab.finish()
}
