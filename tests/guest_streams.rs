//! TCP streams, floods and ping-pong through a real guest: Linux in QEMU on one side, and on the
//! other the host's own network stack behind a tap that testpmd bridges to our port.
#![cfg(feature = "dpdk")]

mod common;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use common::streams::{converse, noise, sha256, stream};
use common::{Driver, Guest, Image, Lab, Machine, Namespace, Nic, Outcome, SOON, Testpmd};

/// One NIC of the guest, its port and its tap. The names of link 2: socket `s2`, guest's `eth2` with
/// 10.0.2.2, host's `tap2` with 10.0.2.1, testpmd's ports 4 and 5.
struct Link {
    /// What the port is given behind `iface=`.
    devargs: &'static str,
    /// What QEMU's NIC is given.
    nic: &'static str,
    accepted: &'static [usize],
    refused: &'static [usize],
}

const CSUM: usize = 0;
const GUEST_CSUM: usize = 1;
const HOST_TSO4: usize = 11;
const MRG_RXBUF: usize = 15;
const EVENT_IDX: usize = 29;
const INDIRECT_DESC: usize = 28;
const MQ: usize = 22;
const RING_PACKED: usize = 34;

/// Every value of every choice, not every combination: split and packed; buffers mergeable or not;
/// checksums left to the device or not; event index and indirect tables on and off. (DPDK's tap takes
/// no frame above 1522 bytes, so larger ones go from guest to guest.)
const LINKS: &[Link] = &[
    Link {
        devargs: "",
        nic: "",
        accepted: &[MRG_RXBUF, EVENT_IDX, INDIRECT_DESC],
        refused: &[RING_PACKED],
    },
    Link {
        devargs: "",
        nic: ",mrg_rxbuf=off,event_idx=off,csum=off,guest_csum=off",
        accepted: &[INDIRECT_DESC],
        refused: &[MRG_RXBUF, EVENT_IDX, CSUM, GUEST_CSUM],
    },
    Link {
        devargs: "",
        nic: ",packed=on",
        accepted: &[RING_PACKED, MRG_RXBUF, EVENT_IDX, INDIRECT_DESC],
        refused: &[],
    },
    Link {
        devargs: "",
        nic: ",packed=on,mrg_rxbuf=off,indirect_desc=off",
        accepted: &[RING_PACKED, EVENT_IDX],
        refused: &[MRG_RXBUF, INDIRECT_DESC],
    },
    Link {
        devargs: "",
        nic: ",packed=on,event_idx=off,csum=off,guest_csum=off",
        accepted: &[RING_PACKED, MRG_RXBUF],
        refused: &[EVENT_IDX, CSUM, GUEST_CSUM],
    },
    Link {
        devargs: "",
        nic: ",mrg_rxbuf=off,indirect_desc=off",
        accepted: &[EVENT_IDX],
        refused: &[RING_PACKED, MRG_RXBUF, INDIRECT_DESC],
    },
];

/// Two queue pairs, and a processor of the guest for each.
const LINKS_OF_2_QUEUES: &[Link] = &[
    Link {
        devargs: "",
        nic: "",
        accepted: &[MQ],
        refused: &[RING_PACKED],
    },
    Link {
        devargs: "",
        nic: ",packed=on",
        accepted: &[MQ, RING_PACKED],
        refused: &[],
    },
];

/// So much flows in each stream.
const STREAM: usize = 4 << 20;

/// A testpmd inside the namespace that joins each link's port with its tap.
fn bridge(lab: &Lab, namespace: &Namespace, links: &[Link], queues: u16) -> Outcome<Testpmd> {
    let driver = Driver::under_test()?;
    let mut eal = driver.eal_args();
    for (id, link) in links.iter().enumerate() {
        let socket = lab.path_text(&format!("s{id}"));
        let devargs = link.devargs;
        let port = format!("net_vhost{id},iface={socket},queues={queues}{devargs}");
        let tap = format!("net_tap{id},iface=tap{id}");
        eal.extend(["--vdev".to_owned(), port, "--vdev".to_owned(), tap]);
    }
    let wrapper = namespace.wrapper();
    let own = [
        format!("--rxq={queues}"),
        format!("--txq={queues}"),
        "--total-num-mbufs=32768".to_owned(),
    ];
    let mut testpmd = Testpmd::spawn_under(
        &wrapper.each_ref().map(String::as_str),
        lab,
        "backend",
        &eal,
        &own.each_ref().map(String::as_str),
    )?;
    testpmd.ready()?;
    for id in 0..links.len() {
        namespace.run(&format!("ip link set tap{id} up"))?;
        namespace.run(&format!("ip addr add 10.0.{id}.1/24 dev tap{id}"))?;
    }
    testpmd.run("set fwd io retry")?;
    testpmd.run("start")?;
    Ok(testpmd)
}

fn nics(links: &[Link], queues: u16) -> Vec<Nic> {
    let nic = |(id, link): (u8, &Link)| Nic {
        file: format!("s{id}"),
        mac: id,
        machine: Machine {
            socket: "",
            nic: link.nic,
            queues,
            ..Machine::PLAIN
        },
    };
    (0..).zip(links).map(nic).collect()
}

/// The driver negotiated what the link is there for, and packets flow.
fn bring_up(guest: &mut Guest, id: usize, link: &Link) -> Outcome {
    let features = guest.features(&format!("eth{id}"))?;
    println!("link {id}: {}, negotiated {features:?}", link.nic);
    for bit in link.accepted {
        assert!(
            features.contains(bit),
            "link {id}: feature {bit} was not negotiated"
        );
    }
    for bit in link.refused {
        assert!(
            !features.contains(bit),
            "link {id}: feature {bit} was negotiated"
        );
    }
    guest.run(&format!(
        "ip addr add 10.0.{id}.2/24 dev eth{id}; ip link set eth{id} up"
    ))?;
    guest.reach(&format!("10.0.{id}.1"))
}

/// One stream to the guest, and then one in each direction at once.
fn streams(lab: &Lab, guest: &mut Guest, namespace: &Namespace, id: u8) -> Outcome {
    let bytes = noise(STREAM);
    let hash = sha256(lab, &bytes)?;
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, id, 1), 5001));
    let listener = namespace.listen(address)?;
    let started = Instant::now();
    let (back, arrived) = stream(guest, &listener, &bytes, "/dev/null")?;
    assert_eq!((back.len(), &arrived), (0, &hash), "to the guest");
    let one_way = started.elapsed();
    guest.run("mv /got /data")?;
    let (back, arrived) = stream(guest, &listener, &bytes, "/data")?;
    assert_eq!(arrived, hash, "to the guest, with the other direction busy");
    assert_eq!(sha256(lab, &back)?, hash, "from the guest");
    println!(
        "link {id}: {STREAM} bytes in {one_way:.1?}, then both ways, {:.1?} in all",
        started.elapsed()
    );
    Ok(())
}

/// Each packet waits for the one before, so one notification that is lost shows at once.
fn ping_pong(guest: &mut Guest, namespace: &Namespace, id: usize) -> Outcome {
    const COUNT: u32 = 300;
    let ping = format!("ping -A -q -c {COUNT} -W 5 10.0.{id}");
    for text in [
        guest.run(&format!("{ping}.1"))?,
        namespace.run(&format!("busybox {ping}.2"))?,
    ] {
        assert!(text.contains(" 0% packet loss"), "link {id}: {text}");
    }
    Ok(())
}

/// More datagrams than the guest can take; afterwards it must still answer at once.
fn flood(guest: &mut Guest, namespace: &Namespace, id: u8) -> Outcome {
    let socket = namespace.datagrams(0)?;
    let to = SocketAddr::from((Ipv4Addr::new(10, 0, id, 2), 9));
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        // A full queue and the guest's answer that nobody listens there are errors, too.
        let _ = socket.send_to(&[0; 1000], to);
    }
    guest
        .run(&format!("ping -q -c 5 -i 0.05 -W 5 10.0.{id}.1"))
        .map(|_| ())
}

#[test]
fn streams_floods_and_ping_pong_through_each_kind_of_ring() -> Outcome {
    let test = "guest-streams";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, LINKS, 1)?;
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics(LINKS, 1))?;
    guest.wait_for_boot()?;
    for (id, link) in (0_u8..).zip(LINKS) {
        let index = usize::from(id);
        bring_up(&mut guest, index, link)?;
        ping_pong(&mut guest, &namespace, index)?;
        streams(&lab, &mut guest, &namespace, id)?;
        flood(&mut guest, &namespace, id)?;
        ping_pong(&mut guest, &namespace, index)?;
    }
    guest.quit()?;
    back.wait_for_link(0, false)?;
    back.quit()?;
    lab.finish()
}

#[test]
fn streams_through_2_queues_at_once() -> Outcome {
    let test = "guest-streams-2-queues";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace, LINKS_OF_2_QUEUES, 2)?;
    let nics = nics(LINKS_OF_2_QUEUES, 2);
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics)?;
    guest.wait_for_boot()?;
    let bytes = noise(STREAM);
    let hash = sha256(&lab, &bytes)?;
    for (id, link) in (0_u8..).zip(LINKS_OF_2_QUEUES) {
        bring_up(&mut guest, id.into(), link)?;
        let listen = |port| {
            let address = Ipv4Addr::new(10, 0, id, 1);
            namespace.listen(SocketAddr::from((address, port)))
        };
        let listeners = [listen(5001)?, listen(5002)?];
        stream(&mut guest, &listeners[0], &bytes, "/dev/null")?;
        guest.run("mv /got /data")?;
        let nc = |processor, port| {
            format!("taskset {processor} nc 10.0.{id}.1 {port} </data >/got{processor}")
        };
        let both = format!(
            "{} & {}; wait; sha256sum /got1 /got2",
            nc(1, 5001),
            nc(2, 5002)
        );
        thread::scope(|scope| -> Outcome {
            let bytes = &bytes;
            let hosts = listeners
                .each_ref()
                .map(|listener| scope.spawn(move || converse(listener, bytes)));
            let hashes = guest.run(&both)?;
            assert_eq!(
                hashes.matches(&hash).count(),
                2,
                "{hashes}, expected {hash}"
            );
            for host in hosts {
                let received = host.join().map_err(|_| "the host's side panicked")??;
                assert!(received == *bytes, "link {id}: other bytes came back");
            }
            Ok(())
        })?;
        for queue in ["rx_q0", "rx_q1", "tx_q0", "tx_q1"] {
            let name = format!("{queue}_good_packets");
            let packets = counter(&mut back, 2 * u16::from(id), &name)?;
            assert!(packets > 100, "link {id}: {name}: {packets}");
        }
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

/// The guest sends frames of up to 64 KB, which testpmd's csum engine cuts for the tap. (The tap could
/// be asked to, but it drops them.)
#[test]
fn large_frames_from_the_guest_are_cut_for_the_host() -> Outcome {
    let test = "guest-streams-tso";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let namespace = Namespace::new()?;
    let links = ["", ",packed=on,mrg_rxbuf=off"].map(|nic| Link {
        devargs: ",tso=1",
        nic,
        accepted: &[],
        refused: &[],
    });
    let mut back = bridge(&lab, &namespace, &links, 1)?;
    back.run("stop")?;
    back.run("set fwd csum")?;
    back.run("set gso segsz 1514")?;
    for tap in [1, 3] {
        back.run(&format!("port stop {tap}"))?;
        for layer in ["ip", "tcp", "udp"] {
            back.run(&format!("csum set {layer} hw {tap}"))?;
        }
        back.run(&format!("set port {tap} gso on"))?;
        back.run(&format!("port start {tap}"))?;
    }
    for port in 0..4 {
        back.run(&format!("csum mac-swap off {port}"))?;
    }
    back.run("start")?;
    let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics(&links, 1))?;
    guest.wait_for_boot()?;
    for (id, link) in (0_u8..).zip(&links) {
        bring_up(&mut guest, id.into(), link)?;
        streams(&lab, &mut guest, &namespace, id)?;
        if guest.features(&format!("eth{id}"))?.contains(&HOST_TSO4) {
            let port = 2 * u16::from(id);
            let mut large = || counter(&mut back, port, "rx_q0_size_1519_max_packets");
            let before = large()?;
            held_up(&lab, &mut guest, &namespace, id)?;
            let frames = large()? - before;
            println!("link {id}: {before} large frames, then {frames}");
            assert!(frames > 0, "link {id}: no large frame came");
        }
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

/// A stream from the guest that nobody reads until much of it waits there: then it is sent in frames
/// as large as may be. (What is read at once may never be more than one segment.)
fn held_up(lab: &Lab, guest: &mut Guest, namespace: &Namespace, id: u8) -> Outcome {
    const WAITS: &str = "grep -qE ' (0000[4-9A-F]...|000[1-9A-F]....):' /proc/net/tcp";
    let failed = |error: std::io::Error| format!("link {id}: a stream that is held up: {error}");
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, id, 1), 5002));
    let listener = namespace.listen(address)?;
    guest.run(&format!("{{ nc 10.0.{id}.1 5002 </data & }}"))?;
    let (mut socket, _) = listener.accept().map_err(failed)?;
    socket.set_read_timeout(Some(SOON)).map_err(failed)?;
    guest.run(&format!("until {WAITS}; do sleep 0.05; done"))?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).map_err(failed)?;
    // The guest's end waits for this.
    drop(socket);
    let here = sha256(lab, &bytes)?;
    let there = guest.run("wait; sha256sum </data")?;
    assert!(there.starts_with(&here), "{} bytes: {there}", bytes.len());
    Ok(())
}

/// One of a port's extended statistics.
fn counter(testpmd: &mut Testpmd, port: u16, name: &str) -> Outcome<u64> {
    let xstats = testpmd.xstats(port)?;
    let found = xstats.iter().find(|(counter, _)| counter == name);
    let (_, value) = found.ok_or_else(|| format!("port {port} has no {name}"))?;
    Ok(*value)
}
