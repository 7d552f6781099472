//! Packets between stock testpmd with our driver and stock testpmd with virtio-user.
#![cfg(feature = "dpdk")]

mod common;

use common::{Backend, Driver, Frontend, Lab, Outcome, Testpmd, pair};

/// Both sides forward what they get; the backend sends the first packets.
fn forward(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    front.run("start")?;
    back.run("start tx_first 4")?;
    Ok(())
}

/// Packets make at least this many rounds in each test.
const MANY: u64 = 10_000;

fn packets_flow(name: &str, backend: &Backend, frontend: &Frontend) -> Outcome {
    let lab = Lab::new(name)?;
    let (mut back, mut front) = pair(&lab, backend, frontend)?;
    let before = back.stats(0)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, before, MANY)?;
    front.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn packets_flow_both_ways_with_one_queue() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow(
        "server-1-queue",
        &Backend::server(&driver, 1),
        &Frontend::client(1),
    )
}
