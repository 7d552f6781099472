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
