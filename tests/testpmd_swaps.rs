//! A frontend that stays, and backends of both drivers that come and go; and what testpmd's own options
//! ask of a port.
#![cfg(feature = "dpdk")]

mod common;

use common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, ours_only, pair};

/// So many packets in both directions show that the rings have wrapped many times.
const MANY: u64 = 10_000;

/// A backend of `driver` that connects and forwards what it gets.
fn next_backend(lab: &Lab, driver: &Driver, devargs: &'static str) -> Outcome<Testpmd> {
    let backend = Backend {
        devargs,
        ..Backend::client(driver, 1)
    };
    let mut back = backend.start(lab)?;
    back.wait_for_link(0, true)?;
    Ok(back)
}

/// The frontend keeps its features and its rings all the time: what it negotiated with one driver,
/// the other must take.
fn swapped_under_one_frontend(name: &str, back: &'static str, front: &'static str) -> Outcome {
    let Some(ours) = ours_only(name)? else {
        return Ok(());
    };
    let lab = Lab::new(name)?;
    let frontend = Frontend {
        devargs: front,
        ..Frontend::server(1)
    };
    let mut front = frontend.spawn(&lab)?;
    lab.wait_for_file(&lab.path("s"))?;
    let mut running = next_backend(&lab, &Driver::Stock, back)?;
    front.ready()?;
    front.run("start")?;
    for (turn, driver) in [&ours, &Driver::Stock, &ours].into_iter().enumerate() {
        running.run("start tx_first 4")?;
        running.wait_for_packets(0, PortStats::default(), MANY)?;
        running.quit()?;
        front.wait_for_link(0, false)?;
        running =
            next_backend(&lab, driver, back).map_err(|error| format!("turn {turn}: {error}"))?;
        front.wait_for_link(0, true)?;
    }
    running.run("start tx_first 4")?;
    running.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    running.quit()?;
    lab.finish()
}

#[test]
fn a_frontend_goes_on_with_the_other_driver_and_back() -> Outcome {
    swapped_under_one_frontend("swap-split", ",client=1", ",server=1")
}

#[test]
fn a_frontend_with_large_frames_goes_on_with_the_other_driver_and_back() -> Outcome {
    swapped_under_one_frontend("swap-tso", ",client=1,tso=1", ",server=1,mrg_rxbuf=0")
}

#[test]
fn a_frontend_in_order_goes_on_with_the_other_driver_and_back() -> Outcome {
    swapped_under_one_frontend("swap-in-order", ",client=1", ",server=1,in_order=1")
}

#[test]
fn the_options_of_testpmd_for_offloads_are_accepted() -> Outcome {
    let name = "testpmd-offloads";
    let Some(ours) = ours_only(name)? else {
        return Ok(());
    };
    let lab = Lab::new(name)?;
    let backend = Backend {
        devargs: ",tso=1",
        own: &[
            "--enable-scatter",
            "--enable-rx-cksum",
            "--enable-lro",
            "--max-lro-pkt-size=65535",
            "--tx-offloads=0x802f",
        ],
        ..Backend::server(&ours, 1)
    };
    let (mut back, mut front) = pair(&lab, &backend, &Frontend::client(1))?;
    back.run("port stop 0")?;
    back.run("tso set 1448 0")?;
    let answer = back.run("tso show 0")?;
    assert!(answer.contains("is 1448"), "{answer}");
    back.run("port start 0")?;
    back.wait_for_link(0, true)?;
    let log = back.log();
    for complaint in ["not support", "first", "fail"] {
        assert!(!log.contains(complaint), "{log}");
    }
    front.run("start")?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}
