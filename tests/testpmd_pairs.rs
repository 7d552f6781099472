//! Packets between stock testpmd with our driver and stock testpmd with virtio-user.
#![cfg(feature = "dpdk")]

mod common;

use common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, pair};

/// Both sides forward what they get; the backend sends the first packets.
fn forward(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    front.run("start")?;
    back.run("start tx_first 4").map(|_| ())
}

/// A new frontend sends the first packets, to a backend that has forwarded all the time.
fn forward_again(front: &mut Testpmd) -> Outcome {
    front.run("start tx_first 4").map(|_| ())
}

/// So many packets in both directions show that the rings have wrapped many times.
const MANY: u64 = 10_000;

fn packets_flow_in(name: &str, backend: &Backend, frontend: &Frontend) -> Outcome {
    let lab = Lab::new(name)?;
    let (mut back, mut front) = pair(&lab, backend, frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    let xstats = back.xstats(0)?;
    for queue in 0..backend.queues {
        for direction in ["rx", "tx"] {
            let counter = format!("{direction}_q{queue}_good_packets");
            let count = xstats.iter().find(|(name, _)| *name == counter);
            assert!(
                count.is_some_and(|(_, packets)| *packets > 0),
                "{counter}: {count:?}"
            );
        }
    }
    front.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_server_moves_packets_on_1_queue() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow_in(
        "server-1",
        &Backend::server(&driver, 1),
        &Frontend::client(1),
    )
}

#[test]
fn a_server_moves_packets_on_2_queues() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow_in(
        "server-2",
        &Backend::server(&driver, 2),
        &Frontend::client(2),
    )
}

#[test]
fn a_server_moves_packets_on_8_queues() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow_in(
        "server-8",
        &Backend::server(&driver, 8),
        &Frontend::client(8),
    )
}

#[test]
fn a_client_moves_packets_on_1_queue() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow_in(
        "client-1",
        &Backend::client(&driver, 1),
        &Frontend::server(1),
    )
}

#[test]
fn a_client_moves_packets_on_2_queues() -> Outcome {
    let driver = Driver::under_test()?;
    packets_flow_in(
        "client-2",
        &Backend::client(&driver, 2),
        &Frontend::server(2),
    )
}

#[test]
fn rings_without_mergeable_buffers_move_packets() -> Outcome {
    let driver = Driver::under_test()?;
    let frontend = Frontend {
        devargs: ",mrg_rxbuf=0",
        ..Frontend::client(1)
    };
    packets_flow_in("no-mergeable", &Backend::server(&driver, 1), &frontend)
}

#[test]
fn rings_with_in_order_off_move_packets() -> Outcome {
    let driver = Driver::under_test()?;
    let frontend = Frontend {
        devargs: ",in_order=0",
        ..Frontend::client(1)
    };
    packets_flow_in("no-in-order", &Backend::server(&driver, 1), &frontend)
}

#[test]
fn a_small_ring_moves_packets() -> Outcome {
    let driver = Driver::under_test()?;
    let frontend = Frontend {
        devargs: ",queue_size=64",
        ..Frontend::client(1)
    };
    packets_flow_in("small-ring", &Backend::server(&driver, 1), &frontend)
}

#[test]
fn packets_of_several_segments_keep_their_length() -> Outcome {
    let lab = Lab::new("segments")?;
    let driver = Driver::under_test()?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    // 4000 bytes do not fit into one mbuf of testpmd's pool on either side.
    front.run("set txpkts 1000,1500,1500")?;
    back.run("start")?;
    forward_again(&mut front)?;
    let stats = back.wait_for_packets(0, PortStats::default(), 1000)?;
    assert_eq!(stats.rx_bytes, stats.rx_packets * 4000);
    assert_eq!(stats.tx_bytes, stats.tx_packets * 4000);
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_server_takes_the_next_frontend_when_one_has_quit() -> Outcome {
    let lab = Lab::new("frontend-restart")?;
    let driver = Driver::under_test()?;
    let frontend = Frontend::client(1);
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    for _ in 0..2 {
        front.quit()?;
        back.wait_for_link(0, false)?;
        let before = back.stats(0)?;
        front = frontend.start(&lab)?;
        back.wait_for_link(0, true)?;
        forward_again(&mut front)?;
        back.wait_for_packets(0, before, MANY)?;
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_killed_frontend_takes_the_link_down_and_the_next_one_up() -> Outcome {
    let lab = Lab::new("frontend-killed")?;
    let driver = Driver::under_test()?;
    let frontend = Frontend::client(2);
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 2), &frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.kill();
    back.wait_for_link(0, false)?;
    let before = back.stats(0)?;
    let mut front = frontend.start(&lab)?;
    back.wait_for_link(0, true)?;
    forward_again(&mut front)?;
    back.wait_for_packets(0, before, MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_client_comes_back_when_its_frontend_was_restarted() -> Outcome {
    let lab = Lab::new("client-frontend-restart")?;
    let driver = Driver::under_test()?;
    let frontend = Frontend::server(1);
    let (mut back, mut front) = pair(&lab, &Backend::client(&driver, 1), &frontend)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    back.wait_for_link(0, false)?;
    let before = back.stats(0)?;
    let mut front = frontend.start(&lab)?;
    back.wait_for_link(0, true)?;
    forward_again(&mut front)?;
    back.wait_for_packets(0, before, MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_client_waits_for_a_frontend_that_is_not_there_yet() -> Outcome {
    let lab = Lab::new("client-first")?;
    let driver = Driver::under_test()?;
    let mut back = Backend::client(&driver, 1).start(&lab)?;
    back.wait_for_link(0, false)?;
    let mut front = Frontend::server(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_restarted_client_serves_the_same_frontend() -> Outcome {
    let lab = Lab::new("client-backend-restart")?;
    let driver = Driver::under_test()?;
    let backend = Backend::client(&driver, 1);
    let (mut back, mut front) = pair(&lab, &backend, &Frontend::server(1))?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    back.quit()?;
    let mut back = backend.start(&lab)?;
    back.wait_for_link(0, true)?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_killed_client_is_replaced_under_the_same_frontend() -> Outcome {
    let lab = Lab::new("client-backend-killed")?;
    let driver = Driver::under_test()?;
    let backend = Backend::client(&driver, 1);
    let (mut back, mut front) = pair(&lab, &backend, &Frontend::server(1))?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    back.kill();
    let mut back = backend.start(&lab)?;
    back.wait_for_link(0, true)?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_stopped_port_moves_nothing_and_goes_on_after_its_start() -> Outcome {
    let lab = Lab::new("stop-start")?;
    let driver = Driver::under_test()?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    for _ in 0..3 {
        back.run("stop")?;
        back.run("port stop 0")?;
        let stopped = back.stats(0)?;
        assert_eq!(back.stats(0)?, stopped);
        back.run("port start 0")?;
        // The connection stayed, so the link is up without a new one.
        back.wait_for_link(0, true)?;
        let before = back.stats(0)?;
        back.run("start tx_first 4")?;
        back.wait_for_packets(0, before, MANY)?;
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn queue_counts_change_while_a_frontend_is_connected() -> Outcome {
    let lab = Lab::new("queue-counts")?;
    let driver = Driver::under_test()?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 2), &Frontend::client(2))?;
    forward(&mut back, &mut front)?;
    back.wait_for_packets(0, PortStats::default(), MANY)?;
    for queues in [1, 2] {
        back.run("stop")?;
        back.run("port stop 0")?;
        back.run(&format!("port config all rxq {queues}"))?;
        back.run(&format!("port config all txq {queues}"))?;
        back.run("port start 0")?;
        let info = back.run("show port info 0")?;
        assert!(
            info.contains(&format!("Current number of RX queues: {queues}")),
            "{info}"
        );
        back.wait_for_link(0, true)?;
        let before = back.stats(0)?;
        back.run("start tx_first 4")?;
        back.wait_for_packets(0, before, MANY)?;
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}
