//! A real guest whose packets are copied by engines, every one of them, to it and from it.
#![cfg(feature = "dpdk")]

mod common;

use common::{
    Backend, Driver, Image, Lab, Machine, Outcome, Testpmd, answering, connected, ours_only,
};

const DIRECTIONS: [&str; 2] = ["tx", "rx"];

fn counter(testpmd: &mut Testpmd, name: &str) -> Outcome<u64> {
    let xstats = testpmd.xstats(0)?;
    let found = xstats.iter().find(|(known, _)| known == name);
    Ok(found.ok_or_else(|| format!("no {name}"))?.1)
}

fn backend(driver: &Driver, engine: &'static str) -> Backend {
    Backend {
        devargs: engine,
        eal: &["--vdev", "dma_skeleton", "--iova-mode=va"],
        ..Backend::server(driver, 1)
    }
}

/// Pings of all sizes; then rings stop and start in the middle of more of them, and another backend
/// comes.
fn copies_for_a_guest(test: &str, engine: &'static str, nic: &'static str) -> Outcome {
    let Some(driver) = ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let backend = backend(&driver, engine);
    let mut back = answering(&lab, &backend)?;
    let machine = Machine {
        nic,
        socket: ",reconnect=1",
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    for size in [8, 64, 1472] {
        guest.ping(50, size)?;
    }
    for direction in DIRECTIONS {
        let name = format!("{direction}_q0_dma_copies");
        let copies = counter(&mut back, &name)?;
        assert!(copies >= 150, "{name}: {copies}");
    }
    guest.run("{ ping -q -i 0.002 -s 1400 10.0.0.1 >/dev/null & }")?;
    for _ in 0..3 {
        guest.qmp_with("set_link", r#"{"name": "net0", "up": false}"#)?;
        back.wait_for_link(0, false)?;
        for direction in DIRECTIONS {
            let name = format!("{direction}_q0_dma_inflight");
            assert_eq!(counter(&mut back, &name)?, 0, "{name}");
        }
        guest.qmp_with("set_link", r#"{"name": "net0", "up": true}"#)?;
        back.wait_for_link(0, true)?;
        guest.reach_the_backend()?;
    }
    // QEMU does not know where a packed ring goes on when its backend leaves without a word.
    if nic.is_empty() {
        back.quit()?;
        back = answering(&lab, &backend)?;
        guest.reach_the_backend()?;
    }
    guest.ping(50, 1472)?;
    for direction in DIRECTIONS {
        let name = format!("{direction}_q0_dma_copies");
        let copies = counter(&mut back, &name)?;
        assert!(copies >= 50, "{name}: {copies}");
        for bad in ["errors", "engine_dead", "drain_timeouts"] {
            let name = format!("{direction}_q0_dma_{bad}");
            assert_eq!(counter(&mut back, &name)?, 0, "{name}");
        }
    }
    guest.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_guest_gets_and_sends_all_its_packets_by_dma_skeleton() -> Outcome {
    let engine = ",dmas=[txq0@dma_skeleton;rxq0@dma_skeleton],dmathr=0";
    copies_for_a_guest("guest-dma-skeleton", engine, "")
}

#[test]
fn a_guest_with_a_packed_ring_gets_and_sends_all_its_packets_by_two_engines() -> Outcome {
    let engine = ",dmas=[txq0@sw+dma_skeleton;rxq0@sw+dma_skeleton],dmathr=0";
    copies_for_a_guest("guest-dma-packed", engine, ",packed=on")
}
