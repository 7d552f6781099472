//! A real guest: Linux in QEMU, whose virtio-net driver pings through our port.
#![cfg(feature = "dpdk")]

mod common;

use common::{
    Backend, Driver, Guest, Image, Lab, Machine, Outcome, after_a_kill, answering, connected,
};

/// A way to run one queue: what the NIC offers, and what the guest's driver makes of it.
struct Ring {
    nic: &'static str,
    accepted: &'static [usize],
    missing: &'static [usize],
}

const MRG_RXBUF: usize = 15;
const INDIRECT_DESC: usize = 28;
const EVENT_IDX: usize = 29;
const VERSION_1: usize = 32;

fn pings_with(test: &str, ring: &Ring) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 1))?;
    let machine = Machine {
        nic: ring.nic,
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    for &bit in ring.accepted {
        assert!(guest.has_feature(bit)?, "feature {bit} was not negotiated");
    }
    for &bit in ring.missing {
        assert!(!guest.has_feature(bit)?, "feature {bit} was negotiated");
    }
    // From less than a minimal frame to the largest that fits the MTU.
    for size in [8, 64, 1472] {
        guest.ping(50, size)?;
    }
    guest.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_pings_through_mergeable_buffers() -> Outcome {
    let ring = Ring {
        nic: "",
        accepted: &[MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1],
        missing: &[],
    };
    pings_with("guest-plain", &ring)
}

#[test]
fn a_guest_pings_through_single_buffers_without_indirect_tables_and_event_index() -> Outcome {
    let ring = Ring {
        nic: ",mrg_rxbuf=off,indirect_desc=off,event_idx=off",
        accepted: &[VERSION_1],
        missing: &[MRG_RXBUF, INDIRECT_DESC, EVENT_IDX],
    };
    pings_with("guest-bare", &ring)
}

#[test]
fn a_guest_of_virtio_0_9_5_pings() -> Outcome {
    let ring = Ring {
        nic: ",disable-modern=on,disable-legacy=off",
        accepted: &[MRG_RXBUF],
        missing: &[VERSION_1],
    };
    pings_with("guest-legacy", &ring)
}

#[test]
fn a_guest_pings_with_frames_of_9000_bytes() -> Outcome {
    let test = "guest-jumbo";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let backend = Backend {
        own: &["--max-pkt-len=9018"],
        ..Backend::server(&driver, 1)
    };
    let mut back = answering(&lab, &backend)?;
    let machine = Machine {
        nic: ",host_mtu=9000",
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    for size in [1472, 4000, 8972] {
        guest.ping(50, size)?;
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_with_2_queues_pings_from_both_processors() -> Outcome {
    let test = "guest-2-queues";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 2))?;
    let machine = Machine {
        queues: 2,
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    for processor in [1, 2] {
        guest.run(&format!(
            "taskset {processor} ping -q -c 20 -i 0.02 10.0.0.1"
        ))?;
    }
    let xstats = back.xstats(0)?;
    for queue in [0, 1] {
        for direction in ["rx", "tx"] {
            let counter = format!("{direction}_q{queue}_good_packets");
            let count = xstats.iter().find(|(name, _)| *name == counter);
            assert!(
                count.is_some_and(|(_, packets)| *packets >= 10),
                "{counter}: {count:?}"
            );
        }
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn the_port_survives_what_a_guest_does_to_its_driver() -> Outcome {
    let test = "guest-life";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 1))?;
    let mut guest = connected(&lab, &image, &Machine::PLAIN, &mut back)?;
    guest.ping(20, 64)?;

    // The driver goes and comes; testpmd forwards all the time.
    let folder = "/sys/bus/virtio/drivers/virtio_net";
    for _ in 0..2 {
        guest.run(&format!("echo virtio0 > {folder}/unbind"))?;
        back.wait_for_link(0, false)?;
        guest.run(&format!("echo virtio0 > {folder}/bind"))?;
        guest.reach_the_backend()?;
        guest.ping(20, 64)?;
    }

    // The guest reboots, by its own will and by the button.
    guest.reboot()?;
    guest.reach_the_backend()?;
    guest.ping(20, 1472)?;
    guest.reset()?;
    guest.reach_the_backend()?;
    guest.ping(20, 64)?;

    // The machine halts for a moment: its rings stop and start.
    guest.qmp("stop")?;
    back.wait_for_link(0, false)?;
    guest.qmp("cont")?;
    back.wait_for_link(0, true)?;
    guest.ping(20, 64)?;

    // Port stop and start under a live guest.
    back.run("stop")?;
    back.run("port stop 0")?;
    back.run("port start 0")?;
    back.run("start")?;
    guest.reach_the_backend()?;
    guest.ping(20, 64)?;

    // The whole machine dies and another takes its place.
    guest.kill();
    after_a_kill(&lab);
    back.wait_for_link(0, false)?;
    let mut guest = connected(&lab, &image, &Machine::PLAIN, &mut back)?;
    guest.ping(20, 64)?;
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_goes_on_when_the_listening_backend_was_restarted() -> Outcome {
    let test = "guest-server-restart";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let backend = Backend::server(&driver, 1);
    let mut back = answering(&lab, &backend)?;
    let machine = Machine {
        socket: ",reconnect=1",
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    guest.ping(20, 64)?;
    back.quit()?;
    let back = answering(&lab, &backend)?;
    guest.reach_the_backend()?;
    guest.ping(20, 1472)?;
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_goes_on_when_the_client_was_killed_and_started_again() -> Outcome {
    let test = "guest-client-restart";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let backend = Backend::client(&driver, 1);
    let machine = Machine {
        socket: ",server=on",
        ..Machine::PLAIN
    };
    // QEMU waits for its first backend before it does anything else.
    let mut guest = Guest::spawn(&lab, &image, &machine)?;
    lab.wait_for_file(&lab.path("s"))?;
    let back = answering(&lab, &backend)?;
    guest.wait_for_boot()?;
    guest.reach_the_backend()?;
    guest.ping(20, 64)?;
    back.kill();
    let back = answering(&lab, &backend)?;
    guest.reach_the_backend()?;
    guest.ping(20, 1472)?;
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_goes_on_when_its_backend_is_swapped_for_ours_and_back() -> Outcome {
    let test = "guest-swap";
    let Some(ours) = common::ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let machine = Machine {
        socket: ",server=on",
        ..Machine::PLAIN
    };
    let mut guest = Guest::spawn(&lab, &image, &machine)?;
    lab.wait_for_file(&lab.path("s"))?;
    let mut back = answering(&lab, &Backend::client(&Driver::Stock, 1))?;
    guest.wait_for_boot()?;
    guest.reach_the_backend()?;
    // Both directions are busy when the backend goes.
    guest.run("{ ping -q -i 0.002 10.0.0.1 >/dev/null & }")?;
    for driver in [&ours, &Driver::Stock, &ours] {
        back.quit()?;
        back = answering(&lab, &Backend::client(driver, 1))?;
        back.wait_for_link(0, true)?;
        guest.reach_the_backend()?;
        for size in [8, 64, 1472] {
            guest.ping(50, size)?;
        }
    }
    println!("negotiated {:?}", guest.features("eth0")?);
    guest.quit()?;
    back.quit()?;
    lab.finish()
}
