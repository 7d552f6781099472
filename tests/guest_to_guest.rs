//! TCP streams between two guests, each Linux in QEMU, through pairs of our ports.
#![cfg(feature = "dpdk")]

mod common;

use std::time::Instant;

use common::{Driver, Guest, Image, Lab, Machine, Nic, Outcome, Testpmd};

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

const GUEST_TSO4: usize = 7;
const HOST_TSO4: usize = 11;

/// So much flows in each direction.
const STREAM: usize = 4 << 20;

/// Fills `/data` and returns its hash. File 3 becomes one that never ends and never has anything.
fn fill(guest: &mut Guest) -> Outcome<String> {
    let blocks = STREAM >> 16;
    guest.run("mkfifo /idle; exec 3<>/idle")?;
    guest.run(&format!(
        "dd if=/dev/urandom of=/data bs=64k count={blocks} 2>/dev/null; sha256sum </data"
    ))
}

/// Gives a NIC its address; returns the features that it negotiated.
fn bring_up(guest: &mut Guest, id: usize, pair: &Neighbours, side: usize) -> Outcome<Vec<usize>> {
    let Neighbours { devargs, nics, mtu } = pair;
    let features = guest.features(&format!("eth{id}"))?;
    let nic = nics[side];
    println!("pair {id}{devargs}: {nic}, MTU {mtu}, negotiated {features:?}");
    let address = format!("10.1.{id}.{}/24", side + 1);
    guest.run(&format!(
        "ip addr add {address} dev eth{id}; ip link set eth{id} mtu {mtu} up"
    ))?;
    Ok(features)
}

/// A stream in each direction at once; returns the hashes of what came to the first and the second.
fn streams(one: &mut Guest, other: &mut Guest, id: usize) -> Outcome<(String, String)> {
    // One `nc` for both could block in writing while its peer does.
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
    let time = started.elapsed();
    println!("pair {id}: {STREAM} bytes both ways in {time:.1?}");
    Ok((to_one, to_other))
}

/// What came in with more than the MTU must say how to cut it. When the sender may send such frames and
/// the receiver takes them, some must have come.
fn large_frames(guest: &mut Guest, sender: &[usize], receiver: &[usize]) -> Outcome {
    let ended = "kill $(cat /counter); until grep -q large /marks; do usleep 50000; done";
    let marks = guest.run(&format!("{ended}; cat /marks"))?;
    println!("    {}", marks.trim());
    if Driver::under_test()?.is_stock() {
        // It loses the marks, unless it is told to leave legacy flags.
        return Ok(());
    }
    assert!(marks.contains("unmarked 0"), "{marks}");
    if sender.contains(&HOST_TSO4) && receiver.contains(&GUEST_TSO4) {
        assert!(!marks.contains("large 0"), "{marks}");
    }
    Ok(())
}

#[test]
fn streams_from_guest_to_guest() -> Outcome {
    let test = "guest-to-guest";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
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

    for (id, pair) in NEIGHBOURS.iter().enumerate() {
        let negotiated = [
            bring_up(&mut one, id, pair, 0)?,
            bring_up(&mut other, id, pair, 1)?,
        ];
        let mtu = pair.mtu;
        one.reach(&format!("10.1.{id}.2"))?;
        one.run(&format!("ping -A -q -c 100 -s {} 10.1.{id}.2", mtu - 28))?;
        for guest in [&mut one, &mut other] {
            let count = format!("gso-marks eth{id} {mtu} >/marks");
            guest.run(&format!("({count} & echo $! >/counter)"))?;
        }
        let (to_one, to_other) = streams(&mut one, &mut other, id)?;
        assert_eq!(to_other, from_one, "pair {id}");
        assert_eq!(to_one, from_other, "pair {id}");
        let [accepted_by_one, accepted_by_other] = &negotiated;
        large_frames(&mut one, accepted_by_other, accepted_by_one)?;
        large_frames(&mut other, accepted_by_one, accepted_by_other)?;
    }
    one.quit()?;
    other.quit()?;
    back.quit()?;
    lab.finish()
}
