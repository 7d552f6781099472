//! Copy engines (`dmas=`) under stock testpmd, with DPDK's `dma_skeleton` and the driver's own thread.
#![cfg(feature = "dpdk")]

mod common;

use common::{Backend, Frontend, Lab, Outcome, PortStats, Testpmd, ours_only, pair};

/// So many packets in both directions show that the rings have wrapped many times.
const MANY: u64 = 10_000;

const SKELETON: &[&str] = &["--vdev", "dma_skeleton"];

/// Starts a backend with `vdevs` before or behind its own.
fn backend(lab: &Lab, backend: &Backend, vdevs: &[&str], before: bool) -> Outcome<Testpmd> {
    let own = backend.eal_args(lab);
    let more = vdevs.iter().map(|&option| option.to_owned());
    let mut args: Vec<String> = if before {
        more.chain(own).collect()
    } else {
        own.into_iter().chain(more).collect()
    };
    args.push("--iova-mode=va".into());
    let queues = backend.queues.to_string();
    let options = [&format!("--rxq={queues}"), &format!("--txq={queues}")];
    let options: Vec<&str> = options.iter().map(|option| option.as_str()).collect();
    let own = [options.as_slice(), backend.own].concat();
    let mut testpmd = Testpmd::spawn(lab, "backend", &args, &own)?;
    testpmd.ready()?;
    Ok(testpmd)
}

fn counter(testpmd: &mut Testpmd, port: u16, name: &str) -> Outcome<u64> {
    let xstats = testpmd.xstats(port)?;
    let found = xstats.iter().find(|(known, _)| known == name);
    Ok(found.ok_or_else(|| format!("no {name}"))?.1)
}

/// Frames of this length go both ways, again and again, and the engines copy them.
fn forward(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    front.run("set txpkts 1500")?;
    back.run("set txpkts 1500")?;
    front.run("start")?;
    back.run("start tx_first 4").map(|_| ())
}

fn copies_flow(
    name: &str,
    devargs: &'static str,
    queues: u16,
    before: bool,
    front: &str,
) -> Outcome {
    let Some(driver) = ours_only(name)? else {
        return Ok(());
    };
    let lab = Lab::new(name)?;
    let wanted = Backend {
        devargs,
        ..Backend::server(&driver, queues)
    };
    let mut back = backend(&lab, &wanted, SKELETON, before)?;
    let devargs: &'static str = Box::leak(front.to_owned().into_boxed_str());
    let frontend = Frontend {
        devargs,
        ..Frontend::client(queues)
    };
    let mut front = frontend.start(&lab)?;
    back.wait_for_link(0, true)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    let directions: &[&str] = match (
        wanted.devargs.contains("txq"),
        wanted.devargs.contains("rxq"),
    ) {
        (true, true) => &["tx", "rx"],
        (_, true) => &["rx"],
        _ => &["tx"],
    };
    for queue in 0..queues {
        for direction in directions {
            let name = format!("{direction}_q{queue}_dma_copies");
            let copies = counter(&mut back, 0, &name)?;
            assert!(copies > 100, "{name}: {copies}");
        }
    }
    // Under traffic: the frontend leaves, and another one comes.
    front.quit()?;
    back.wait_for_link(0, false)?;
    let mut front = frontend.start(&lab)?;
    back.wait_for_link(0, true)?;
    let before = back.stats(0)?;
    front.run("set txpkts 1500")?;
    front.run("start tx_first 4")?;
    back.wait_for_packets(0, before, MANY)?;
    // And the port stops and starts.
    back.run("stop")?;
    back.run("port stop 0")?;
    for direction in ["tx", "rx"] {
        let name = format!("{direction}_q0_dma_inflight");
        assert_eq!(counter(&mut back, 0, &name)?, 0, "{name}");
    }
    back.run("port start 0")?;
    back.wait_for_link(0, true)?;
    let before = back.stats(0)?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, before, MANY)?;
    for queue in 0..queues {
        for bad in ["errors", "engine_dead", "drain_timeouts"] {
            for direction in ["tx", "rx"] {
                let name = format!("{direction}_q{queue}_dma_{bad}");
                assert_eq!(counter(&mut back, 0, &name)?, 0, "{name}");
            }
        }
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn an_engine_that_is_probed_before_the_port_copies() -> Outcome {
    copies_flow("dma-before", ",dmas=[txq0@dma_skeleton]", 1, true, "")
}

#[test]
fn an_engine_that_is_probed_after_the_port_copies() -> Outcome {
    let devargs = ",dmas=[txq0@dma_skeleton],dma-ring-size=32";
    copies_flow("dma-after", devargs, 1, false, ",packed_vq=1")
}

#[test]
fn two_queues_share_an_engine_and_a_thread() -> Outcome {
    let devargs = ",dmas=[txq0@dma_skeleton+sw;txq1@dma_skeleton;txq1@sw]";
    copies_flow("dma-shared", devargs, 2, false, ",mrg_rxbuf=0")
}

#[test]
fn an_engine_copies_what_is_received() -> Outcome {
    copies_flow("dma-rx", ",dmas=[rxq0@dma_skeleton]", 1, true, "")
}

#[test]
fn engines_copy_both_ways_on_packed_rings() -> Outcome {
    let devargs = ",dmas=[rxq*@dma_skeleton;txq*@dma_skeleton;rxq1@sw]";
    copies_flow("dma-both", devargs, 2, false, ",packed_vq=1,in_order=1")
}

#[test]
fn an_engine_that_is_not_there_is_named_when_the_port_starts() -> Outcome {
    let Some(driver) = ours_only("dma-missing")? else {
        return Ok(());
    };
    let lab = Lab::new("dma-missing")?;
    let wanted = Backend {
        devargs: ",dmas=[txq0@no_such_engine]",
        own: &["--disable-device-start"],
        ..Backend::server(&driver, 1)
    };
    let mut back = backend(&lab, &wanted, &[], true)?;
    back.run("port start 0")?;
    back.wait_for_log("txq0: engine no_such_engine: ")?;
    back.quit()?;
    lab.finish()
}

#[test]
fn without_traffic_engines_do_not_matter() -> Outcome {
    let Some(driver) = ours_only("dma-unused")? else {
        return Ok(());
    };
    let lab = Lab::new("dma-unused")?;
    let wanted = Backend {
        devargs: ",dmas=[txq0@sw]",
        ..Backend::server(&driver, 1)
    };
    let (mut back, mut front) = pair(&lab, &wanted, &Frontend::client(1))?;
    front.run("start")?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    assert_eq!(counter(&mut back, 0, "tx_q0_dma_copies")?, 0, "64 bytes");
    front.quit()?;
    back.quit()?;
    lab.finish()
}
