//! Every kind of ring that virtio-user has, between stock testpmd with our driver and another one.
#![cfg(feature = "dpdk")]

mod common;

use common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, ours_only, pair};

/// So many packets in both directions show that the rings have wrapped many times.
const MANY: u64 = 10_000;

/// Both sides forward what they get; the backend sends the first packets.
fn forward(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    front.run("start")?;
    back.run("start tx_first 4").map(|_| ())
}

/// Moves packets through rings of each kind; returns what each frontend logged.
fn packets_flow(test: &str, frontends: &[Frontend]) -> Outcome<Vec<String>> {
    let driver = Driver::under_test()?;
    let mut logs = Vec::new();
    for frontend in frontends {
        println!("{test}: virtio-user with {}", frontend.devargs);
        let lab = Lab::new(test)?;
        let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), frontend)?;
        forward(&mut back, &mut front)?;
        let stats = back.wait_for_packets(0, PortStats::default(), MANY)?;
        assert_eq!(stats.rx_bytes, stats.rx_packets * 64);
        logs.push(front.log());
        front.quit()?;
        back.wait_for_link(0, false)?;
        back.quit()?;
        lab.finish()?;
    }
    Ok(logs)
}

fn with(devargs: &'static str) -> Frontend {
    Frontend {
        devargs,
        ..Frontend::client(1)
    }
}

#[test]
fn packed_rings_move_packets() -> Outcome {
    let frontends = [
        with(",packed_vq=1,in_order=0"),
        with(",packed_vq=1,in_order=1"),
        with(",packed_vq=1,mrg_rxbuf=0,in_order=0"),
        with(",packed_vq=1,mrg_rxbuf=0,in_order=1"),
    ];
    packets_flow("packed", &frontends).map(|_| ())
}

#[test]
fn packed_rings_of_any_size_move_packets() -> Outcome {
    let frontends = [
        with(",packed_vq=1,queue_size=255"),
        with(",packed_vq=1,queue_size=256"),
        with(",packed_vq=1,queue_size=1024"),
        with(",packed_vq=1,queue_size=1025,in_order=0"),
    ];
    packets_flow("packed-sizes", &frontends).map(|_| ())
}

#[test]
fn split_rings_of_every_size_move_packets() -> Outcome {
    let frontends = [
        with(",queue_size=64"),
        with(",queue_size=256,mrg_rxbuf=0,in_order=0"),
        with(",queue_size=1024"),
        with(",queue_size=4096"),
    ];
    packets_flow("split-sizes", &frontends).map(|_| ())
}

#[test]
fn a_vectorized_driver_gets_and_sends_packets() -> Outcome {
    // Without leave for wide registers it would fall back to its plain functions.
    let vectorized = |devargs| Frontend {
        eal: &[
            "--force-max-simd-bitwidth=512",
            "--log-level=pmd.net.virtio.init:info",
        ],
        ..with(devargs)
    };
    let frontends = [
        vectorized(",mrg_rxbuf=0,in_order=0,vectorized=1"),
        vectorized(",packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"),
        vectorized(",packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1,queue_size=255"),
    ];
    let logs = packets_flow("vectorized", &frontends)?;
    let is_used = |log: &String| log.contains("vectorized Rx path");
    assert!(is_used(&logs[0]), "{}", logs[0]);
    // For packed rings it wants AVX-512.
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_avx512 = ["avx512f", "avx512bw", "avx512vl"].map(|name| cpu.contains(name));
    if has_avx512 == [true; 3] {
        assert!(logs.iter().all(is_used), "{}", logs[1]);
    }
    Ok(())
}

#[test]
fn packed_rings_on_2_queues_move_packets_on_both() -> Outcome {
    let driver = Driver::under_test()?;
    let lab = Lab::new("packed-2-queues")?;
    let frontend = Frontend {
        queues: 2,
        ..with(",packed_vq=1")
    };
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 2), &frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    let xstats = back.xstats(0)?;
    for counter in ["rx_q0", "rx_q1", "tx_q0", "tx_q1"] {
        let counter = format!("{counter}_good_packets");
        let count = xstats.iter().find(|(name, _)| *name == counter);
        let some = count.is_some_and(|(_, packets)| *packets > 0);
        assert!(some, "{counter}: {count:?}");
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn packets_of_several_segments_keep_their_length_in_packed_rings() -> Outcome {
    let driver = Driver::under_test()?;
    for devargs in [",packed_vq=1", ",packed_vq=1,in_order=0,queue_size=255"] {
        let lab = Lab::new("packed-segments")?;
        let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &with(devargs))?;
        // 4000 bytes do not fit into one mbuf of testpmd's pool on either side.
        front.run("set txpkts 1000,1500,1500")?;
        back.run("start")?;
        front.run("start tx_first 4")?;
        let stats = back.wait_for_packets(0, PortStats::default(), 1000)?;
        assert_eq!(stats.rx_bytes, stats.rx_packets * 4000);
        assert_eq!(stats.tx_bytes, stats.tx_packets * 4000);
        front.quit()?;
        back.quit()?;
        lab.finish()?;
    }
    Ok(())
}

/// A frontend that listens is served by the distribution's driver, by ours, and so on in turn.
fn take_over(test: &str, devargs: &'static str) -> Outcome {
    let Some(ours) = ours_only(test)? else {
        return Ok(());
    };
    let frontend = Frontend {
        devargs,
        ..Frontend::server(1)
    };
    let lab = Lab::new(test)?;
    let (mut back, mut front) = pair(&lab, &Backend::client(&Driver::Stock, 1), &frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    for driver in [&ours, &Driver::Stock, &ours] {
        back.quit()?;
        back = Backend::client(driver, 1).start(&lab)?;
        back.wait_for_link(0, true)?;
        assert_eq!(back.runs_the_plugin(driver)?, !driver.is_stock());
        back.run("start tx_first 4")?;
        back.wait_for_packets(0, PortStats::default(), MANY)?;
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_client_and_the_distributions_take_over_from_each_other() -> Outcome {
    take_over("takeover", ",server=1")
}

#[test]
fn they_take_over_rings_without_mergeable_buffers() -> Outcome {
    take_over("takeover-bare", ",server=1,mrg_rxbuf=0,in_order=0")
}

#[test]
fn they_take_over_packed_rings() -> Outcome {
    take_over("takeover-packed", ",server=1,packed_vq=1")
}

#[test]
fn they_take_over_packed_rings_with_in_order_off() -> Outcome {
    take_over("takeover-packed-bare", ",server=1,packed_vq=1,in_order=0")
}
