//! A guest that boots over our port: the firmware's driver (iPXE) fetches the kernel, whose driver
//! takes over; a reboot is the way back.
#![cfg(feature = "dpdk")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use common::{
    Driver, Guest, Image, Lab, Machine, Namespace, Nic, Outcome, PARAMETERS, Testpmd, eventually,
    skip,
};

const FIRMWARE: &str = "/usr/lib/ipxe/qemu/efi-virtio.rom";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// What DHCP (RFC 2131) says of message types, and how many were answered.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// The value of an option in a DHCP message.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    loop {
        let (&code, tail) = rest.split_first()?;
        match code {
            0 => rest = tail,
            255 => return None,
            _ => {
                let (&length, tail) = tail.split_first()?;
                let value = tail.get(..length.into())?;
                if code == wanted {
                    return Some(value);
                }
                rest = &tail[length.into()..];
            }
        }
    }
}

/// The answer to a DHCP message: the guest's address and what to boot.
fn lease(message: &[u8]) -> Option<Vec<u8>> {
    let kind = match option(message, 53)? {
        [DISCOVER] => OFFER,
        [REQUEST] => ACK,
        _ => return None,
    };
    let mut answer = vec![0; 240];
    answer[0] = 2;
    // Kind of hardware, transaction, flags and hardware address are the client's.
    answer[1..12].copy_from_slice(&message[1..12]);
    answer[28..44].copy_from_slice(&message[28..44]);
    answer[16..20].copy_from_slice(&GUEST.octets());
    answer[20..24].copy_from_slice(&HOST.octets());
    let script = format!("http://{HOST}/script");
    answer[108..][..script.len()].copy_from_slice(script.as_bytes());
    answer[236..240].copy_from_slice(&[99, 130, 83, 99]);
    answer.extend([53, 1, kind, 54, 4]);
    answer.extend(HOST.octets());
    answer.extend([51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 255]);
    Some(answer)
}

/// Answers DHCP as long as the test runs; how many addresses were given.
fn serve_dhcp(socket: UdpSocket) -> Arc<AtomicU32> {
    let given = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&given);
    thread::spawn(move || {
        let mut message = [0; 1500];
        while let Ok((length, _)) = socket.recv_from(&mut message) {
            if let Some(answer) = lease(&message[..length]) {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68));
            }
        }
    });
    given
}

type Files = HashMap<String, Vec<u8>>;

/// The names of the files that went out.
#[derive(Clone, Default)]
struct Served(Arc<Mutex<Vec<String>>>);

impl Served {
    fn note(&self, name: &str) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.push(name.to_owned());
    }

    fn names(&self) -> Vec<String> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.clone()
    }
}

fn serve_file(stream: TcpStream, files: &Files, served: &Served) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    lines.find(|line| line.as_ref().map_or(true, String::is_empty));
    let name = request.strip_prefix("GET /")?.split_whitespace().next()?;
    let body = files.get(name)?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&stream).write_all(head.as_bytes()).ok()?;
    (&stream).write_all(body).ok()?;
    served.note(name);
    Some(())
}

/// Serves files by HTTP as long as the test runs.
fn serve_http(listener: TcpListener, files: Files) -> Served {
    let served = Served::default();
    let list = served.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve_file(stream, &files, &list);
        }
    });
    served
}

/// The file, compressed: the firmware is slow.
fn compressed(file: &Path) -> Outcome<PathBuf> {
    let output = Command::new("gzip").arg("-k").arg(file).output();
    let output = output.map_err(|error| format!("gzip: {error}"))?;
    if !output.status.success() {
        return Err(format!("gzip: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    Ok(name.into())
}

/// A testpmd inside the namespace that joins our port with a tap.
fn bridge(lab: &Lab, namespace: &Namespace) -> Outcome<Testpmd> {
    let driver = Driver::under_test()?;
    let mut eal = driver.eal_args();
    let port = format!("net_vhost0,iface={}", lab.path_text("s"));
    eal.extend(["--vdev".to_owned(), port]);
    eal.extend(["--vdev".to_owned(), "net_tap0,iface=tap0".to_owned()]);
    let wrapper = namespace.wrapper();
    let wrapper = wrapper.each_ref().map(String::as_str);
    let mut testpmd = Testpmd::spawn_under(&wrapper, lab, "backend", &eal, &[])?;
    testpmd.ready()?;
    namespace.run("ip link set tap0 up")?;
    namespace.run(&format!("ip addr add {HOST}/24 dev tap0"))?;
    namespace.run("ip route add 255.255.255.255/32 dev tap0")?;
    testpmd.run("set fwd io retry")?;
    testpmd.run("start")?;
    Ok(testpmd)
}

#[test]
fn firmware_and_kernel_take_the_port_from_each_other() -> Outcome {
    let test = "guest-firmware";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    if !Path::new(FIRMWARE).exists() {
        skip(test, &format!("there is no {FIRMWARE} (package ipxe-qemu)"));
        return Ok(());
    }
    let namespace = Namespace::new()?;
    let mut back = bridge(&lab, &namespace)?;
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let initramfs = compressed(&image.initramfs)?;
    let script = format!(
        "#!ipxe\nkernel http://{HOST}/kernel initrd=initramfs {PARAMETERS}\n\
         initrd http://{HOST}/initramfs\nboot\n"
    );
    let files = HashMap::from([
        ("script".to_owned(), script.into_bytes()),
        ("kernel".to_owned(), read(&image.kernel)?),
        ("initramfs".to_owned(), read(&initramfs)?),
    ]);
    let size: usize = files.values().map(Vec::len).sum();
    let dhcp = namespace.datagrams(67)?;
    dhcp.set_broadcast(true)
        .map_err(|error| format!("SO_BROADCAST: {error}"))?;
    let given = serve_dhcp(dhcp);
    let served = serve_http(namespace.listen(SocketAddr::from((HOST, 80)))?, files);

    let nic = Nic {
        file: "s".to_owned(),
        mac: 0x10,
        machine: Machine {
            nic: ",bootindex=0",
            ..Machine::PLAIN
        },
    };
    let mut guest = Guest::spawn_from_network(&lab, "qemu", &[nic])?;
    // The firmware's driver has run when the kernel is here.
    guest.wait_for_boot()?;
    assert_eq!(served.names(), ["script", "kernel", "initramfs"]);
    assert!(given.load(Ordering::Relaxed) >= 2);
    println!("{size} bytes by the firmware's driver");
    guest.run(&format!(
        "ip addr add {GUEST}/24 dev eth0; ip link set eth0 up"
    ))?;
    guest.reach(&HOST.to_string())?;
    guest.ping(50, 1472)?;

    // And back: the firmware gets an address and the script once more.
    guest.begin_reboot()?;
    eventually("the firmware's driver is back", || served.names().len() > 3)?;
    assert_eq!(served.names()[3], "script");
    for (name, value) in back.xstats(0)? {
        assert!(!name.contains("_drop_") || value == 0, "{name}: {value}");
    }
    guest.quit()?;
    back.quit()?;
    lab.finish()
}
