//! A real guest behind an emulated IOMMU (`iommu-support=1`): Linux in QEMU, whose NICs reach its
//! memory by addresses that QEMU translates for us, one miss at a time.
#![cfg(feature = "dpdk")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use common::streams::{noise, sha256, stream};
use common::{Driver, Guest, Image, Iommu, Lab, Machine, Namespace, Nic, Outcome, Testpmd};

const IOMMU_PLATFORM: usize = 33;
const RING_PACKED: usize = 34;

/// What the NICs are given: `eth0` on port 0 and `tap0`, and so on.
const NICS: [&str; 4] = [
    "",
    ",packed=on",
    ",mrg_rxbuf=off,indirect_desc=off",
    ",packed=on,mrg_rxbuf=off,event_idx=off",
];

/// Bytes of a stream. Each page of it is a round trip to QEMU when addresses are not kept.
const STREAM: usize = 2 << 20;

/// A testpmd inside the namespace that joins each NIC's port with its tap. It does not try again what
/// a port does not take: that is for the port.
fn bridge(lab: &Lab, namespace: &Namespace, driver: &Driver, forward: &str) -> Outcome<Testpmd> {
    let mut eal = driver.eal_args();
    for id in 0..NICS.len() {
        let socket = lab.path_text(&format!("s{id}"));
        let port = format!("net_vhost{id},iface={socket},iommu-support=1");
        let tap = format!("net_tap{id},iface=tap{id}");
        eal.extend(["--vdev".to_owned(), port, "--vdev".to_owned(), tap]);
    }
    let wrapper = namespace.wrapper();
    let mut testpmd = Testpmd::spawn_under(
        &wrapper.each_ref().map(String::as_str),
        lab,
        "backend",
        &eal,
        &["--total-num-mbufs=32768"],
    )?;
    testpmd.ready()?;
    for id in 0..NICS.len() {
        namespace.run(&format!("ip link set tap{id} up"))?;
        namespace.run(&format!("ip addr add 10.0.{id}.1/24 dev tap{id}"))?;
    }
    testpmd.run(forward)?;
    testpmd.run("start")?;
    Ok(testpmd)
}

fn nics(iommu: Iommu) -> Vec<Nic> {
    let nic = |(id, nic): (u8, &&'static str)| Nic {
        file: format!("s{id}"),
        mac: id,
        machine: Machine {
            nic,
            iommu,
            ..Machine::PLAIN
        },
    };
    (0..).zip(&NICS).map(nic).collect()
}

/// The kind of the IOMMU's domain, in Linux's words.
fn domain(guest: &mut Guest, id: usize) -> Outcome<String> {
    let group = format!("cat /sys/class/net/eth{id}/device/../iommu_group/type");
    Ok(guest.run(&group)?.trim().to_owned())
}

fn bring_up(guest: &mut Guest, id: usize) -> Outcome {
    let features = guest.features(&format!("eth{id}"))?;
    assert!(features.contains(&IOMMU_PLATFORM), "{features:?}");
    let packed = NICS[id].contains("packed");
    assert_eq!(features.contains(&RING_PACKED), packed, "{features:?}");
    guest.run(&format!(
        "ip addr replace 10.0.{id}.2/24 dev eth{id}; ip link set eth{id} up"
    ))?;
    guest.reach(&format!("10.0.{id}.1"))
}

/// Each packet waits for the one before; none may be lost.
fn ping_pong(guest: &mut Guest, id: usize) -> Outcome {
    for size in [8, 1472] {
        let ping = format!("ping -A -q -c 100 -W 5 -s {size} 10.0.{id}.1");
        let text = guest.run(&ping)?;
        assert!(text.contains(" 0% packet loss"), "{id}: {text}");
    }
    Ok(())
}

/// One stream to the guest, then one in each direction at once.
fn streams(lab: &Lab, guest: &mut Guest, namespace: &Namespace, id: u8, bytes: &[u8]) -> Outcome {
    let hash = sha256(lab, bytes)?;
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, id, 1), 5001));
    let listener = namespace.listen(address)?;
    let started = Instant::now();
    let (_, arrived) = stream(guest, &listener, bytes, "/dev/null")?;
    assert_eq!(arrived, hash, "to the guest");
    let one_way = started.elapsed();
    guest.run("mv /got /data")?;
    let (back, arrived) = stream(guest, &listener, bytes, "/data")?;
    assert_eq!(arrived, hash, "to the guest, with the other direction busy");
    assert_eq!(sha256(lab, &back)?, hash, "from the guest");
    println!(
        "eth{id}: {} bytes in {one_way:.1?}, then both ways, {:.1?} in all",
        bytes.len(),
        started.elapsed()
    );
    Ok(())
}

fn pings_and_streams(test: &str, iommu: Iommu, kind: &str) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, &driver, "set fwd io")?;
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics(iommu))?;
    guest.wait_for_boot()?;
    let bytes = noise(STREAM);
    for (id, index) in (0_u8..).zip(0..NICS.len()) {
        assert_eq!(domain(&mut guest, index)?, kind);
        bring_up(&mut guest, index)?;
        ping_pong(&mut guest, index)?;
        streams(&lab, &mut guest, &namespace, id, &bytes)?;
        ping_pong(&mut guest, index)?;
    }
    guest.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn streams_with_an_address_for_each_buffer() -> Outcome {
    pings_and_streams("guest-iommu-strict", Iommu::Strict, "DMA")
}

#[test]
fn streams_with_addresses_that_stay() -> Outcome {
    pings_and_streams("guest-iommu-pt", Iommu::PassThrough, "identity")
}
