//! What an operator sees of a port in stock tools: events, device info, counters, also from a
//! second process.
#![cfg(feature = "dpdk")]

mod common;

use std::process::Command;

use common::{Backend, Driver, Frontend, Lab, Memory, Outcome, PortStats, Process, SOON, Testpmd};
use common::{pair, parse_xstat, skip};

/// What DPDK 22.11 counts for each queue, in this order.
const QUEUE_XSTATS: [&str; 17] = [
    "good_packets",
    "good_bytes",
    "multicast_packets",
    "broadcast_packets",
    "undersize_packets",
    "size_64_packets",
    "size_65_127_packets",
    "size_128_255_packets",
    "size_256_511_packets",
    "size_512_1023_packets",
    "size_1024_1518_packets",
    "size_1519_max_packets",
    "guest_notifications",
    "iotlb_hits",
    "iotlb_misses",
    "inflight_submitted",
    "inflight_completed",
];

/// The names that ethdev puts in front, for a port with one queue pair.
const ETHDEV_XSTATS: [&str; 13] = [
    "rx_good_packets",
    "tx_good_packets",
    "rx_good_bytes",
    "tx_good_bytes",
    "rx_missed_errors",
    "rx_errors",
    "tx_errors",
    "rx_mbuf_allocation_errors",
    "rx_q0_packets",
    "rx_q0_bytes",
    "rx_q0_errors",
    "tx_q0_packets",
    "tx_q0_bytes",
];

fn expected_names() -> Vec<String> {
    let queue = |prefix: &'static str| {
        QUEUE_XSTATS
            .iter()
            .map(move |name| format!("{prefix}{name}"))
    };
    let ethdev = ETHDEV_XSTATS.iter().map(|name| (*name).to_owned());
    ethdev
        .chain(queue("rx_q0_"))
        .chain(queue("tx_q0_"))
        .collect()
}

/// The C driver's counters come first and in its order; ours may follow.
fn assert_names(xstats: &[(String, u64)]) {
    let (expected, mut names) = (expected_names(), names(xstats));
    let more = names.split_off(expected.len().min(names.len()));
    assert_eq!(names, expected);
    for name in more {
        assert!(
            name.starts_with("rx_q0_") || name.starts_with("tx_q0_"),
            "{name}"
        );
        assert!(!expected.contains(&name), "{name} comes twice");
    }
}

fn names(xstats: &[(String, u64)]) -> Vec<String> {
    xstats.iter().map(|(name, _)| name.clone()).collect()
}

fn value(xstats: &[(String, u64)], wanted: &str) -> u64 {
    let found = xstats.iter().find(|(name, _)| name == wanted);
    found.map_or(0, |(_, value)| *value)
}

/// The lists below are those of DPDK 22.11; later lines have more counters.
fn is_22_11(test: &str) -> bool {
    let version = Command::new("pkg-config")
        .args(["--modversion", "libdpdk"])
        .output();
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    if text.starts_with("22.11") {
        return true;
    }
    skip(
        test,
        &format!("DPDK {} has another list of xstats", text.trim()),
    );
    false
}

/// Sends 4 bursts of 32 packets to a frontend that only receives, and 4 back.
fn exchange_128_packets(back: &mut Testpmd, front: &mut Testpmd) -> Outcome {
    for testpmd in [&mut *back, &mut *front] {
        testpmd.run("set fwd rxonly")?;
    }
    // The first packets are sent also in a mode that sends none by itself.
    front.run("start")?;
    back.run("start tx_first 4")?;
    front.run("stop")?;
    front.run("start tx_first 4")?;
    for _ in 0..300 {
        let stats = back.stats(0)?;
        if (stats.rx_packets, stats.tx_packets) == (128, 128) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(format!("not 128 packets each way: {:?}", back.stats(0)?).into())
}

#[test]
fn xstats_have_the_names_and_the_order_of_dpdk_22_11() -> Outcome {
    if !is_22_11("xstats_have_the_names_and_the_order_of_dpdk_22_11") {
        return Ok(());
    }
    let lab = Lab::new("xstats")?;
    let driver = Driver::under_test()?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    exchange_128_packets(&mut back, &mut front)?;
    let xstats = back.xstats(0)?;
    assert_names(&xstats);
    for counted in [
        "rx_good_packets",
        "rx_q0_good_packets",
        "tx_q0_size_64_packets",
    ] {
        assert_eq!(value(&xstats, counted), 128, "{counted}");
    }
    assert_eq!(value(&xstats, "tx_q0_good_bytes"), 128 * 64);
    back.run("clear port xstats 0")?;
    assert_eq!(value(&back.xstats(0)?, "rx_q0_good_packets"), 0);
    back.run("clear port stats 0")?;
    assert_eq!(back.stats(0)?, PortStats::default());
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_xstats_answer_without_a_frontend_and_outlive_it() -> Outcome {
    let test = "our_xstats_answer_without_a_frontend_and_outlive_it";
    let Some(driver) = common::ours_only(test)? else {
        return Ok(());
    };
    if !is_22_11(test) {
        return Ok(());
    }
    let lab = Lab::new("xstats-alone")?;
    let mut back = Backend::server(&driver, 1).start(&lab)?;
    let before = back.xstats(0)?;
    assert_names(&before);
    assert!(before.iter().all(|(_, value)| *value == 0), "{before:?}");
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange_128_packets(&mut back, &mut front)?;
    front.quit()?;
    back.wait_for_link(0, false)?;
    let after = back.xstats(0)?;
    assert_names(&after);
    assert_eq!(value(&after, "rx_q0_good_packets"), 128);
    assert_eq!(value(&after, "tx_q0_good_packets"), 128);
    back.quit()?;
    lab.finish()
}

#[test]
fn queue_events_come_before_the_link_comes_up() -> Outcome {
    let lab = Lab::new("events")?;
    let driver = Driver::under_test()?;
    let (mut back, front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    let events = back.events();
    assert_eq!(
        events.get(..3).map(|first| first.join("; ")).as_deref(),
        Some(
            "Port 0: queue state event; Port 0: queue state event; Port 0: link state change event"
        ),
        "{events:?}"
    );
    let seen = events.len();
    front.kill();
    back.wait_for_link(0, false)?;
    // The link goes down with one event; the queues report nothing then.
    let events = back.events().split_off(seen);
    let links = events
        .iter()
        .filter(|event| event.contains("link state"))
        .count();
    assert_eq!(links, 1, "{events:?}");
    back.quit()?;
    lab.finish()
}

#[test]
fn device_info_is_that_of_the_c_driver() -> Outcome {
    let lab = Lab::new("info")?;
    let driver = Driver::under_test()?;
    let mut back = Backend::server(&driver, 4).start(&lab)?;
    let info = back.run("show port info 0")?;
    for line in [
        "MAC address: 56:48:4F:53:54:00",
        "Driver name: net_vhost",
        "Link status: down",
        "Link speed: 10 Gbps",
        "Link duplex: full-duplex",
        "MTU: 1500",
        "Promiscuous mode: enabled",
        "Allmulticast mode: enabled",
        "Maximum number of MAC addresses: 1",
        "Minimum size of RX buffer: 0",
        "Max possible RX queues: 4",
        "Max possible TX queues: 4",
    ] {
        assert!(info.contains(line), "no `{line}` in\n{info}");
    }
    let rx = back.run("show port 0 rx_offload capabilities")?;
    assert!(
        rx.contains("VLAN_STRIP") && rx.contains("TCP_CKSUM"),
        "{rx}"
    );
    let tx = back.run("show port 0 tx_offload capabilities")?;
    assert!(
        tx.contains("VLAN_INSERT") && tx.contains("MULTI_SEGS"),
        "{tx}"
    );
    back.quit()?;
    lab.finish()
}

#[test]
fn our_port_takes_a_new_mtu() -> Outcome {
    let Some(driver) = common::ours_only("our_port_takes_a_new_mtu")? else {
        return Ok(());
    };
    let lab = Lab::new("mtu")?;
    let mut back = Backend::server(&driver, 1).start(&lab)?;
    back.run("port stop 0")?;
    back.run("port config mtu 0 9000")?;
    back.run("port start 0")?;
    let info = back.run("show port info 0")?;
    assert!(info.contains("MTU: 9000"), "{info}{}", back.log());
    back.quit()?;
    lab.finish()
}

/// Runs dpdk-proc-info beside a primary process, in its view of the file system.
fn proc_info(lab: &Lab, primary: u32, driver: &Driver, what: &str) -> Outcome<String> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &primary.to_string(), "-m", "dpdk-proc-info"]);
    command.args(["--no-pci", "--no-telemetry"]);
    command.args(["--file-prefix", &lab.file_prefix("backend")]);
    command
        .args(driver.eal_args())
        .args(["--", "-p", "0x1", what]);
    let mut process = Process::spawn(lab, "proc-info", command)?;
    process.close_stdin();
    process.wait_success(SOON)?;
    Ok(process.stdout.since(0))
}

/// A primary whose memory a secondary can map: files on a hugetlbfs that only this process and those
/// that join it see, and that goes away with it.
fn primary_with_files(lab: &Lab, driver: &Driver) -> Outcome<Testpmd> {
    let mount = lab.path("huge");
    std::fs::create_dir(&mount).map_err(|error| error.to_string())?;
    let mount = mount.display().to_string();
    let script = format!("mount -t hugetlbfs -o pagesize=2M none {mount} && exec \"$@\"");
    let wrapper = ["unshare", "-m", "sh", "-c", &script, "sh"];
    let mut eal = Backend::server(driver, 1).eal_args(lab);
    eal.extend(["--huge-dir".to_owned(), mount]);
    let mut testpmd = Testpmd::spawn_under(&wrapper, lab, "backend", &eal, &[])?;
    testpmd.ready()?;
    Ok(testpmd)
}

/// A secondary needs huge pages in a mounted file system, hence root.
fn can_have_secondaries(test: &str, lab: &Lab) -> bool {
    let mount = "mount -t hugetlbfs none /mnt";
    let unshared = Command::new("unshare")
        .args(["-m", "sh", "-c", mount])
        .status();
    if lab.memory != Memory::HugePages {
        skip(test, "no free huge pages, which secondary processes need");
    } else if !unshared.is_ok_and(|status| status.success()) {
        skip(test, "hugetlbfs cannot be mounted here (needs root)");
    } else {
        return true;
    }
    false
}

#[test]
fn a_secondary_process_reads_the_counters() -> Outcome {
    let lab = Lab::new("secondary")?;
    if !can_have_secondaries("a_secondary_process_reads_the_counters", &lab) {
        return lab.finish();
    }
    let driver = Driver::under_test()?;
    let mut back = primary_with_files(&lab, &driver)?;
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange_128_packets(&mut back, &mut front)?;
    let id = back.process().id();
    let stats = proc_info(&lab, id, &driver, "--stats")?;
    for line in ["RX-packets: 128", "TX-packets: 128"] {
        assert!(stats.contains(line), "no `{line}` in\n{stats}");
    }
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn a_secondary_process_reads_our_xstats() -> Outcome {
    let test = "a_secondary_process_reads_our_xstats";
    let Some(driver) = common::ours_only(test)? else {
        return Ok(());
    };
    let lab = Lab::new("secondary-xstats")?;
    if !can_have_secondaries(test, &lab) {
        return lab.finish();
    }
    let mut back = primary_with_files(&lab, &driver)?;
    let id = back.process().id();
    let parse = |text: String| text.lines().filter_map(parse_xstat).collect::<Vec<_>>();
    let before = parse(proc_info(&lab, id, &driver, "--xstats")?);
    assert_eq!(names(&before), names(&back.xstats(0)?));
    let mut front = Frontend::client(1).start(&lab)?;
    back.wait_for_link(0, true)?;
    exchange_128_packets(&mut back, &mut front)?;
    let xstats = parse(proc_info(&lab, id, &driver, "--xstats")?);
    assert_eq!(value(&xstats, "rx_q0_good_packets"), 128, "{xstats:?}");
    assert_eq!(value(&xstats, "tx_q0_good_packets"), 128, "{xstats:?}");
    // The secondary has come and gone; the primary goes on.
    assert_eq!(back.stats(0)?.rx_packets, 128);
    front.quit()?;
    back.quit()?;
    lab.finish()
}
