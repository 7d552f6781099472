//! TCP streams, floods and ping-pong through a real guest: Linux in QEMU on one side, and on the
//! other the host's own network stack behind a tap that testpmd bridges to our port.
#![cfg(feature = "dpdk")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Driver, Guest, Image, Lab, Machine, Namespace, Nic, NoImage, Outcome, SOON, Testpmd, skip,
};

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

/// Two NICs, each of its own guest, and the ports between them. The names of pair 2: sockets `a2` and
/// `b2`, `eth2` in both guests, with 10.1.2.1 and 10.1.2.2, ports 4 and 5.
struct Neighbours {
    /// What both ports are given behind `iface=`.
    devargs: &'static str,
    nics: [&'static str; 2],
    mtu: u32,
}

const NEIGHBOURS: &[Neighbours] = &[
    Neighbours {
        devargs: ",tso=1",
        nics: ["", ",packed=on"],
        mtu: 1500,
    },
    Neighbours {
        devargs: ",tso=1",
        nics: [",mrg_rxbuf=off,host_mtu=9000", ",packed=on,host_mtu=9000"],
        mtu: 9000,
    },
    Neighbours {
        devargs: "",
        nics: [
            ",packed=on,mrg_rxbuf=off,event_idx=off,indirect_desc=off,host_mtu=9000",
            ",csum=off,guest_csum=off,host_mtu=9000",
        ],
        mtu: 9000,
    },
];

/// So much flows in each stream.
const STREAM: usize = 4 << 20;

/// The guest's files, or the test is to be skipped.
fn image(test: &str, lab: &Lab) -> Outcome<Option<Image>> {
    match Image::make(lab) {
        Ok(image) => Ok(Some(image)),
        Err(NoImage::Unavailable(reason)) => {
            skip(test, &reason);
            Ok(None)
        }
        Err(NoImage::Failed(reason)) => Err(reason.into()),
    }
}

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

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// What both sides' `sha256sum` prints of the same bytes.
fn sha256(lab: &Lab, bytes: &[u8]) -> Outcome<String> {
    let file = lab.path("bytes");
    std::fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    let output = Command::new("sha256sum").arg(&file).output();
    let output = output.map_err(|error| format!("sha256sum: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// The next connection; no test waits for ever.
fn accept(listener: &TcpListener) -> Outcome<TcpStream> {
    let failed = |error: std::io::Error| format!("accept: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let deadline = Instant::now() + SOON;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(failed(error).into());
            }
            Err(_) if Instant::now() >= deadline => return Err("no connection came".into()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(SOON)).map_err(failed)?;
    stream.set_write_timeout(Some(SOON)).map_err(failed)?;
    Ok(stream)
}

/// Sends all of `bytes` on the next connection and returns what comes back meanwhile.
fn converse(listener: &TcpListener, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let stream = accept(listener)?;
    let (mut reader, mut writer) = (&stream, &stream);
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(bytes)?;
            stream_end(writer)
        });
        let mut received = Vec::new();
        let read = reader.read_to_end(&mut received);
        let sent = sent.join().map_err(|_| "the sender panicked")?;
        sent.map_err(|error| format!("sending a stream: {error}"))?;
        read.map_err(|error| format!("a stream after {} bytes: {error}", received.len()))?;
        Ok(received)
    })
}

fn stream_end(stream: &TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)
}

/// Runs `nc` in the guest against the host, which sends `bytes`; returns what the host got and the
/// hash of what the guest got.
fn stream(
    guest: &mut Guest,
    listener: &TcpListener,
    bytes: &[u8],
    guest_sends: &str,
) -> Outcome<(Vec<u8>, String)> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let (ip, port) = (address.ip(), address.port());
    thread::scope(|scope| {
        let host = scope.spawn(|| converse(listener, bytes));
        let hash = guest.run(&format!(
            "nc {ip} {port} <{guest_sends} >/got && sha256sum </got"
        ));
        let received = host.join().map_err(|_| "the host's side panicked")?;
        let hash = hash?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok((received?, hash))
    })
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
    let socket = namespace.datagrams()?;
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
    let Some(image) = image(test, &lab)? else {
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
    let Some(image) = image(test, &lab)? else {
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
        let xstats = back.xstats(2 * u16::from(id))?;
        for counter in ["rx_q0", "rx_q1", "tx_q0", "tx_q1"] {
            let counter = format!("{counter}_good_packets");
            let count = xstats.iter().find(|(name, _)| *name == counter);
            let many = count.is_some_and(|(_, packets)| *packets > 100);
            assert!(many, "link {id}: {counter}: {count:?}");
        }
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

/// Fills `/data` and returns its hash. File 3 becomes one that never ends and never has anything.
fn fill(guest: &mut Guest) -> Outcome<String> {
    let blocks = STREAM >> 16;
    guest.run("mkfifo /idle; exec 3<>/idle")?;
    guest.run(&format!(
        "dd if=/dev/urandom of=/data bs=64k count={blocks} 2>/dev/null; sha256sum </data"
    ))
}

#[test]
fn streams_from_guest_to_guest() -> Outcome {
    let test = "guest-to-guest";
    let lab = Lab::new(test)?;
    let Some(image) = image(test, &lab)? else {
        return Ok(());
    };
    let mut eal = Driver::under_test()?.eal_args();
    let mut nics = [Vec::new(), Vec::new()];
    for (id, pair) in (0_u8..).zip(NEIGHBOURS) {
        for (side, name) in [(0, 'a'), (1, 'b')] {
            let file = format!("{name}{id}");
            let (socket, devargs) = (lab.path_text(&file), pair.devargs);
            let port = format!("net_vhost{file},iface={socket}{devargs}");
            eal.extend(["--vdev".to_owned(), port]);
            nics[side].push(Nic {
                file,
                mac: 16 * id + u8::from(name == 'b'),
                machine: Machine {
                    nic: pair.nics[side],
                    ..Machine::PLAIN
                },
            });
        }
    }
    let own = ["--max-pkt-len=9018", "--total-num-mbufs=32768"];
    let mut back = Testpmd::start(&lab, "backend", &eal, &own)?;
    back.run("set fwd io retry")?;
    back.run("start")?;
    let mut one = Guest::spawn_with(&lab, &image, "qemu-a", &nics[0])?;
    let mut other = Guest::spawn_with(&lab, &image, "qemu-b", &nics[1])?;
    one.wait_for_boot()?;
    other.wait_for_boot()?;
    let from_one = fill(&mut one)?;
    let from_other = fill(&mut other)?;

    for (id, Neighbours { mtu, nics, devargs }) in NEIGHBOURS.iter().enumerate() {
        for (guest, side) in [(&mut one, 1), (&mut other, 2)] {
            let features = guest.features(&format!("eth{id}"))?;
            let nic = nics[side - 1];
            println!("pair {id}{devargs}: {nic}, MTU {mtu}, negotiated {features:?}");
            guest.run(&format!(
                "ip addr add 10.1.{id}.{side}/24 dev eth{id}; ip link set eth{id} mtu {mtu} up"
            ))?;
        }
        one.reach(&format!("10.1.{id}.2"))?;
        one.run(&format!("ping -A -q -c 100 -s {} 10.1.{id}.2", mtu - 28))?;
        // A stream in each direction; one `nc` for both could block in writing while its peer does.
        let listening = "[ $(netstat -ltn | grep -c ':500[12] ') = 2 ]";
        other.run(&format!(
            "{{ nc -l -p 5001 <&3 >/got & nc -l -p 5002 </data & }}; \
             until {listening}; do usleep 50000; done"
        ))?;
        let started = Instant::now();
        let peer = format!("10.1.{id}.2");
        let to_one = one.run(&format!(
            "{{ nc {peer} 5001 </data & }}; nc {peer} 5002 <&3 >/got; wait; sha256sum </got"
        ))?;
        let to_other = other.run("wait; sha256sum </got")?;
        println!(
            "pair {id}: {STREAM} bytes both ways in {:.1?}",
            started.elapsed()
        );
        assert_eq!(to_other, from_one, "pair {id}");
        assert_eq!(to_one, from_other, "pair {id}");
    }
    one.quit()?;
    other.quit()?;
    back.quit()?;
    lab.finish()
}
