//! A guest that moves from one port to another, and the packets that show whether it arrived whole.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{
    Driver, Guest, Iommu, Lab, Machine, Namespace, Nic, Outcome, SOON, Testpmd, eventually,
};

/// The host's end of the network.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The guest.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The last byte of the guest's MAC address.
pub(crate) const MAC: u8 = 0x10;

/// What joins a port with the bridge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// DPDK's tap, which takes ordinary frames only.
    Tap,
    /// Packet sockets at the end of a pair of Ethernet devices: frames of up to [`LARGE_MTU`].
    Packets,
}

/// What nearly fills a page of the guest's, together with the headers.
pub(crate) const LARGE_MTU: u16 = 3960;

impl Wire {
    /// Makes what testpmd's device for link `id` must find.
    fn lay(self, id: u8, namespace: &Namespace) -> Outcome {
        if self == Self::Packets {
            namespace.run(&format!("ip link add tap{id} type veth peer name end{id}"))?;
            for end in ["tap", "end"] {
                namespace.run(&format!("ip link set {end}{id} mtu {LARGE_MTU} up"))?;
            }
        }
        Ok(())
    }

    /// testpmd's device for link `id`, whose other end is called `tap0`, `tap1`.
    fn device(self, id: u8) -> String {
        match self {
            Self::Tap => format!("net_tap{id},iface=tap{id}"),
            Self::Packets => {
                let ring = "blocksz=4096,framesz=4096,framecnt=512";
                format!("net_af_packet{id},iface=end{id},{ring}")
            }
        }
    }

    fn testpmd(self) -> Vec<String> {
        match self {
            Self::Tap => vec!["--total-num-mbufs=32768".to_owned()],
            Self::Packets => vec!["--mbuf-size=4352".to_owned()],
        }
    }
}

/// A testpmd inside the namespace: two of our ports, each with a wire to a bridge.
/// It locks its memory, as it does by default.
pub(crate) fn bridge(
    lab: &Lab,
    namespace: &Namespace,
    wire: Wire,
    queues: u16,
    devargs: &str,
) -> Outcome<Testpmd> {
    for id in 0..2 {
        wire.lay(id, namespace)?;
    }
    let back = spawn_at(lab, namespace, wire, queues, devargs)?;
    namespace.run("ip link add br0 type bridge")?;
    for id in 0..2 {
        namespace.run(&format!("ip link set tap{id} master br0 up"))?;
    }
    namespace.run(&format!("ip addr add {HOST}/24 dev br0"))?;
    namespace.run("ip link set br0 up")?;
    forward(back)
}

/// Another one in the place of one that was killed, at wires that have outlived it.
pub(crate) fn bridge_again(
    lab: &Lab,
    namespace: &Namespace,
    queues: u16,
    devargs: &str,
) -> Outcome<Testpmd> {
    forward(spawn_at(lab, namespace, Wire::Packets, queues, devargs)?)
}

fn spawn_at(
    lab: &Lab,
    namespace: &Namespace,
    wire: Wire,
    queues: u16,
    devargs: &str,
) -> Outcome<Testpmd> {
    let mut eal = Driver::under_test()?.eal_args();
    for id in 0..2 {
        let socket = lab.path_text(&format!("s{id}"));
        let port = format!("net_vhost{id},iface={socket},queues={queues}{devargs}");
        eal.extend([
            "--vdev".to_owned(),
            port,
            "--vdev".to_owned(),
            wire.device(id),
        ]);
    }
    let wrapper = namespace.wrapper();
    let wrapper = wrapper.each_ref().map(String::as_str);
    let queues = [format!("--rxq={queues}"), format!("--txq={queues}")];
    let own = [wire.testpmd(), queues.to_vec()].concat();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut back = Testpmd::spawn_under(&wrapper, lab, "backend", &eal, &own)?;
    back.ready()?;
    Ok(back)
}

fn forward(mut back: Testpmd) -> Outcome<Testpmd> {
    back.run("set fwd io retry")?;
    back.run("start")?;
    Ok(back)
}

/// The guest's NIC at port `id`.
pub(crate) fn nic(id: u8, machine: Machine) -> Nic {
    Nic {
        file: format!("s{id}"),
        mac: MAC,
        machine,
    }
}

/// Waits until a migration has come that far, seen from one of its ends.
pub(crate) fn wait_for_status(guest: &Guest, wanted: &str) -> Outcome<String> {
    let wanted = format!("\"status\": \"{wanted}\"");
    let deadline = Instant::now() + 6 * SOON;
    loop {
        let last = guest.qmp_with("query-migrate", "{}")?;
        if last.contains(&wanted) {
            return Ok(last);
        }
        if Instant::now() >= deadline || last.contains("\"status\": \"failed\"") {
            return Err(format!("no migration with {wanted}:\n{last}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Byte `at` of a stream.
fn pattern(at: u64) -> u8 {
    let mixed = (at ^ at >> 9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// A stream that the guest sends back, checked byte by byte.
pub(crate) struct Echo {
    socket: TcpStream,
    checked: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    threads: [JoinHandle<Result<(), String>>; 2],
}

impl Echo {
    /// Has the guest connect to `listener`.
    pub(crate) fn begin(listener: &TcpListener, guest: &mut Guest) -> Outcome<Self> {
        let failed = |error: std::io::Error| format!("the stream: {error}");
        let port = listener.local_addr().map_err(failed)?.port();
        guest.run(&format!("{{ nc {HOST} {port} -e cat & }}"))?;
        let (socket, _) = listener.accept().map_err(failed)?;
        socket.set_read_timeout(Some(3 * SOON)).map_err(failed)?;
        let (mut writer, mut reader) = (
            socket.try_clone().map_err(failed)?,
            socket.try_clone().map_err(failed)?,
        );
        let checked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&checked);
        let ending = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ending);
        let sender = thread::spawn(move || {
            let mut at = 0;
            loop {
                let piece: Vec<u8> = (at..at + 4096).map(pattern).collect();
                if writer.write_all(&piece).is_err() {
                    return Ok(()); // the end
                }
                at += 4096;
            }
        });
        let receiver = thread::spawn(move || {
            let mut piece = [0; 4096];
            let mut at = 0;
            loop {
                let length = match reader.read(&mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(_) if ended.load(Ordering::Acquire) => return Ok(()),
                    Err(error) => return Err(format!("after {at} bytes: {error}")),
                };
                for byte in &piece[..length] {
                    if *byte != pattern(at) {
                        return Err(format!("byte {at} of the stream is {byte:#x}"));
                    }
                    at += 1;
                }
                count.store(at, Ordering::Relaxed);
            }
        });
        Ok(Self {
            socket,
            checked,
            ending,
            threads: [sender, receiver],
        })
    }

    fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Waits until so many more bytes came back.
    pub(crate) fn goes_on(&self, more: u64) -> Outcome {
        let from = self.checked();
        let begin = Instant::now();
        eventually("the stream goes on", || self.checked() >= from + more)
            .map_err(|error| format!("{error}: {from} bytes, then {}", self.checked()))?;
        println!("    {more} bytes more after {:.1?}", begin.elapsed());
        Ok(())
    }

    /// Ends the stream, of which every byte must have been right.
    pub(crate) fn end(self) -> Outcome {
        // The guest may answer what is still under way with a reset.
        self.ending.store(true, Ordering::Release);
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in self.threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    }
}

/// Numbered datagrams to the guest, slowly: each buffer lies in the ring for about a second before
/// it is filled, so that a migration has sent its page by then.
pub(crate) struct Datagrams {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: JoinHandle<std::io::Result<()>>,
}

/// What became of them in the guest.
#[derive(Debug)]
pub(crate) struct Held {
    /// Whole ones.
    pub(crate) good: u32,
    /// Those with other bytes.
    pub(crate) bad: u32,
    /// Those that came out of order, or twice.
    pub(crate) again: u32,
}

impl Datagrams {
    const PORT: u16 = 6000;

    /// Begins to send what `tests/common/held.c` checks, so many bytes each; the guest holds it in a
    /// socket.
    pub(crate) fn begin(namespace: &Namespace, guest: &mut Guest, length: u32) -> Outcome<Self> {
        guest.run(&format!("held {} {length} /go /held", Self::PORT))?;
        let socket: UdpSocket = namespace.unprotected_datagrams()?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (ends, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let to = SocketAddr::from((GUEST, Self::PORT));
            let mut number = 0_u32;
            while !ends.load(Ordering::Relaxed) {
                let first = number.wrapping_mul(7).wrapping_add(number >> 8);
                let byte = |at: u32| first.wrapping_add(at.wrapping_mul(31)).to_le_bytes()[0];
                let mut bytes = number.to_le_bytes().to_vec();
                bytes.extend((4..length).map(byte));
                socket.send_to(&bytes, to)?;
                number += 1;
                count.store(number, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(3300));
            }
            Ok(())
        });
        Ok(Self { stop, sent, thread })
    }

    /// How many went out so far.
    pub(crate) fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more went out.
    pub(crate) fn go_on(&self, more: u32) -> Outcome {
        let from = self.sent();
        eventually("datagrams are sent", || self.sent() >= from + more)
    }

    /// Ends it, and has the guest check what it holds.
    pub(crate) fn end(self, guest: &mut Guest) -> Outcome<(u32, Held)> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| "the sender panicked")?;
        ended.map_err(|error| format!("sending a datagram: {error}"))?;
        let text = guest.run("touch /go; until [ -e /held ]; do sleep 0.1; done; cat /held")?;
        let number = |name: &str| -> Option<u32> {
            let mut words = text.split_whitespace();
            words.find(|word| *word == name)?;
            words.next()?.parse().ok()
        };
        let held = || {
            Some(Held {
                good: number("good")?,
                bad: number("bad")?,
                again: number("again")?,
            })
        };
        let held = held().ok_or_else(|| format!("what the guest holds: {text}"))?;
        Ok((self.sent.load(Ordering::Relaxed), held))
    }
}
