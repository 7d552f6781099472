//! A real guest behind an emulated IOMMU (`iommu-support=1`): Linux in QEMU, whose NICs reach its
//! memory by addresses that QEMU translates for us, one miss at a time.
#![cfg(feature = "dpdk")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::streams::{noise, sha256, stream};
use common::{
    Driver, Guest, Image, Iommu, Lab, Machine, Namespace, Nic, Outcome, Testpmd, ours_only,
};

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

/// What the ports are, and what testpmd is told before it starts.
#[derive(Clone, Copy)]
struct Ports<'a> {
    devargs: &'a str,
    forward: &'a [&'a str],
    /// Bytes of a stream.
    stream: usize,
}

impl Ports<'static> {
    const PLAIN: Self = Self {
        devargs: "",
        forward: &["set fwd io"],
        stream: STREAM,
    };

    /// Each miss makes a port take nothing for the guest until QEMU has answered, and testpmd must not
    /// drop that.
    const PATIENT: Self = Self {
        forward: &["set fwd io retry", "set burst tx delay 1000 retry 200"],
        ..Self::PLAIN
    };
}

/// A testpmd inside the namespace that joins each NIC's port with its tap.
fn bridge(lab: &Lab, namespace: &Namespace, driver: &Driver, ports: Ports<'_>) -> Outcome<Testpmd> {
    let mut eal = driver.eal_args();
    for id in 0..NICS.len() {
        let socket = lab.path_text(&format!("s{id}"));
        let port = format!(
            "net_vhost{id},iface={socket},iommu-support=1{}",
            ports.devargs
        );
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
    for command in ports.forward {
        testpmd.run(command)?;
    }
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

/// A lab with a guest of all `NICS`, and a testpmd that joins them with the host's taps.
struct Setup {
    back: Testpmd,
    guest: Guest,
    namespace: Namespace,
    lab: Lab,
}

impl Setup {
    fn new(test: &str, driver: &Driver, iommu: Iommu, ports: Ports<'_>) -> Outcome<Option<Self>> {
        let lab = Lab::new(test)?;
        let Some(image) = Image::for_test(test, &lab)? else {
            return Ok(None);
        };
        let namespace = Namespace::new()?;
        let back = bridge(&lab, &namespace, driver, ports)?;
        let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics(iommu))?;
        guest.wait_for_boot()?;
        Ok(Some(Self {
            back,
            guest,
            namespace,
            lab,
        }))
    }

    fn finish(mut self) -> Outcome {
        self.guest.quit()?;
        self.back.wait_for_link(0, false)?;
        self.back.quit()?;
        self.lab.finish()
    }
}

fn pings_and_streams(test: &str, iommu: Iommu, kind: &str, ports: Ports<'_>) -> Outcome {
    let Some(driver) = ours_only(test)? else {
        return Ok(());
    };
    let Some(mut setup) = Setup::new(test, &driver, iommu, ports)? else {
        return Ok(());
    };
    let bytes = noise(ports.stream);
    for (id, index) in (0_u8..).zip(0..NICS.len()) {
        let Setup {
            guest,
            namespace,
            lab,
            ..
        } = &mut setup;
        assert_eq!(domain(guest, index)?, kind);
        bring_up(guest, index)?;
        ping_pong(guest, index)?;
        streams(lab, guest, namespace, id, &bytes)?;
        ping_pong(guest, index)?;
    }
    // How it was done.
    for port in [0, 2] {
        let xstats = setup.back.xstats(port)?;
        let value = |name: &str| {
            let found = xstats.iter().find(|(found, _)| found == name);
            found.map_or(0, |(_, value)| *value)
        };
        for name in ["rx_q0_iotlb_misses", "tx_q0_iotlb_hits"] {
            assert!(value(name) > 0, "{name}");
        }
        if ports.devargs.contains("dmas=") {
            for queue in ["rx_q0", "tx_q0"] {
                let packets = value(&format!("{queue}_dma_packets"));
                // All but those of bursts that found nothing to wait for.
                assert!(packets > 500, "{queue}: {packets} by engines");
                let dead = value(&format!("{queue}_dma_engine_dead"));
                assert_eq!(dead, 0, "{queue}");
            }
        }
    }
    setup.finish()
}

#[test]
fn streams_with_an_address_for_each_buffer() -> Outcome {
    let test = "guest-iommu-strict";
    pings_and_streams(test, Iommu::Strict, "DMA", Ports::PATIENT)
}

/// Translations go while packets are under way, again and again.
#[test]
fn streams_with_an_address_for_each_buffer_are_copied_by_engines() -> Outcome {
    let ports = Ports {
        devargs: ",dmas=[rxq0@sw;txq0@sw],dmathr=0",
        stream: STREAM / 4,
        ..Ports::PATIENT
    };
    pings_and_streams("guest-iommu-dma", Iommu::Strict, "DMA", ports)
}

#[test]
fn streams_with_addresses_that_are_given_up_many_at_a_time() -> Outcome {
    // Up to a hundred times a second all that is known becomes invalid, the rings as well.
    let test = "guest-iommu-lazy";
    pings_and_streams(test, Iommu::Lazy, "DMA-FQ", Ports::PATIENT)
}

#[test]
fn streams_with_addresses_that_stay() -> Outcome {
    let test = "guest-iommu-pt";
    pings_and_streams(test, Iommu::PassThrough, "identity", Ports::PLAIN)
}

/// Both unmap all buffers, and rings, at once, while packets come.
#[test]
fn links_and_drivers_come_and_go_under_traffic() -> Outcome {
    let test = "guest-iommu-storm";
    let Some(driver) = ours_only(test)? else {
        return Ok(());
    };
    let Some(mut setup) = Setup::new(test, &driver, Iommu::Strict, Ports::PLAIN)? else {
        return Ok(());
    };
    let bytes = noise(STREAM / 4);
    for id in [0, 1] {
        let index = usize::from(id);
        let Setup {
            guest,
            namespace,
            lab,
            ..
        } = &mut setup;
        bring_up(guest, index)?;
        let socket = namespace.datagrams(0)?;
        let to = SocketAddr::from((Ipv4Addr::new(10, 0, id, 2), 9));
        let ended = AtomicBool::new(false);
        thread::scope(|scope| -> Outcome {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // A full queue, no route and nobody who listens are errors, too.
                    let _ = socket.send_to(&[0; 1000], to);
                    thread::sleep(Duration::from_micros(500));
                }
            });
            // Ends the flood on every way out.
            let _end = End(&ended);
            for _ in 0..15 {
                guest.run(&format!(
                    "ip link set eth{id} down; ip link set eth{id} up; sleep 0.1"
                ))?;
            }
            let name = guest.run(&format!(
                "basename $(readlink /sys/class/net/eth{id}/device)"
            ))?;
            let (name, folder) = (name.trim(), "/sys/bus/virtio/drivers/virtio_net");
            for _ in 0..5 {
                guest.run(&format!("echo {name} > {folder}/unbind"))?;
                guest.run(&format!("echo {name} > {folder}/bind; sleep 0.2"))?;
                guest.run(&format!("ip link set eth{id} up; sleep 0.2"))?;
            }
            Ok(())
        })?;
        bring_up(guest, index)?;
        ping_pong(guest, index)?;
        streams(lab, guest, namespace, id, &bytes)?;
    }
    setup.finish()
}

struct End<'e>(&'e AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The C driver wants testpmd to try again what it did not take, and a split ring.
#[test]
fn an_address_for_each_buffer_is_no_slower_than_with_the_c_driver() -> Outcome {
    let test = "guest-iommu-speed";
    let Some(ours) = ours_only(test)? else {
        return Ok(());
    };
    let ports = Ports {
        forward: &["set fwd io retry", "set burst tx delay 100 retry 256"],
        ..Ports::PLAIN
    };
    let bytes = noise(STREAM);
    let mut times = Vec::new();
    for driver in [&Driver::Stock, &ours] {
        let Some(mut setup) = Setup::new(test, driver, Iommu::Strict, ports)? else {
            return Ok(());
        };
        let Setup {
            guest,
            namespace,
            lab,
            ..
        } = &mut setup;
        bring_up(guest, 0)?;
        let started = Instant::now();
        for _ in 0..3 {
            streams(lab, guest, namespace, 0, &bytes)?;
        }
        times.push(started.elapsed());
        println!("{driver:?}: {:.1?}", started.elapsed());
        setup.finish()?;
    }
    // The machine may be busy with other things in either half.
    assert!(times[1] < 2 * times[0], "{times:?}");
    Ok(())
}
