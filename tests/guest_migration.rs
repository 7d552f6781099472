//! A guest that moves by precopy migration from one port to another, its packets flowing: what our
//! ports write into its memory meanwhile must arrive, too.
#![cfg(feature = "dpdk")]

mod common;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;

use common::migration::{
    Datagrams, Echo, HOST, LARGE_MTU, MAC, Wire, bridge, bridge_again, nic, wait_for_status,
};
use common::{Guest, Image, Iommu, Lab, Machine, Namespace, Nic, Outcome, SOON, Testpmd};

/// Two ports, and a guest at the first.
struct Stage {
    lab: Lab,
    image: Image,
    namespace: Namespace,
    back: Testpmd,
    nics: [[Nic; 1]; 2],
    guest: Guest,
}

impl Stage {
    /// `None` when there can be no guest here.
    fn new(test: &str, options: &'static str, queues: u16, iommu: Iommu) -> Outcome<Option<Self>> {
        let machine = Machine {
            nic: options,
            queues,
            iommu,
            ..Machine::PLAIN
        };
        Self::with(test, Wire::Tap, machine, "")
    }

    /// With more devargs for the ports, beginning with a comma.
    fn with(test: &str, wire: Wire, machine: Machine, more: &str) -> Outcome<Option<Self>> {
        let lab = Lab::new(test)?;
        let Some(image) = Image::for_test(test, &lab)? else {
            return Ok(None);
        };
        let namespace = Namespace::new()?;
        let devargs = match machine.iommu {
            Iommu::Absent => "",
            _ => ",iommu-support=1",
        };
        let devargs = format!("{devargs}{more}");
        let back = bridge(&lab, &namespace, wire, machine.queues, &devargs)?;
        let nics = [0, 1].map(|id| [nic(id, machine)]);
        let mut guest = Guest::spawn_with(&lab, &image, "qemu", &nics[0])?;
        guest.wait_for_boot()?;
        guest.reach_the_backend()?;
        Ok(Some(Self {
            lab,
            image,
            namespace,
            back,
            nics,
            guest,
        }))
    }

    /// Datagrams as long as the network lets through.
    fn datagrams(&mut self) -> Outcome<Datagrams> {
        const UDP_AND_IP: u32 = 28;
        let length = u32::from(LARGE_MTU) - UDP_AND_IP;
        Datagrams::begin(&self.namespace, &mut self.guest, length)
    }

    fn echo(&mut self, port: u16) -> Outcome<Echo> {
        let listener = self.namespace.listen(SocketAddr::from((HOST, port)))?;
        Echo::begin(&listener, &mut self.guest)
    }

    /// Begins to move the guest to the second port, at so many bytes a second; where it will be.
    fn begin(&self, name: &str, bandwidth: u64) -> Outcome<Guest> {
        let to = Guest::spawn_incoming(&self.lab, &self.image, name, &self.nics[1])?;
        let socket = self.lab.path_text(&format!("{name}.migration"));
        let address = format!(r#"{{"uri": "unix:{socket}"}}"#);
        to.qmp_with("migrate-incoming", &address)?;
        let parameters = format!(r#"{{"max-bandwidth": {bandwidth}, "downtime-limit": 500}}"#);
        self.guest.qmp_with("migrate-set-parameters", &parameters)?;
        self.guest.qmp_with("migrate", &address)?;
        Ok(to)
    }

    /// Waits until the guest runs at the second port.
    fn arrive(&mut self, to: Guest) -> Outcome {
        let how = wait_for_status(&self.guest, "completed")?;
        wait_for_status(&to, "completed")?;
        println!("    {}", summary(&how));
        let from = std::mem::replace(&mut self.guest, to);
        from.quit()?;
        self.back.wait_for_link(0, false)?;
        self.back.wait_for_link(2, true)
    }

    /// Moves the guest, at a speed that makes it last some seconds.
    fn move_it(&mut self) -> Outcome {
        let to = self.begin("qemu-2", 40 << 20)?;
        self.arrive(to)
    }

    fn end(mut self) -> Outcome {
        for size in [8, 1472] {
            // What is left of the streams must drain before no packet is lost.
            let mut all = || self.guest.ping(50, size);
            all().or_else(|_| all()).or_else(|_| all())?;
        }
        self.guest.quit()?;
        self.back.quit()?;
        for name in ["qemu-2", "qemu-3"] {
            let _ = std::fs::remove_file(self.lab.path(&format!("{name}.migration")));
        }
        self.lab.finish()
    }
}

/// The numbers that tell how a migration went.
fn summary(status: &str) -> String {
    let wanted = ["total-time", "downtime", "dirty-sync-count"];
    let words = status.split([',', '{', '}']);
    let found = words.filter(|word| wanted.iter().any(|name| word.contains(name)));
    found.collect::<Vec<_>>().join(",")
}

/// Streams in both directions all the time.
fn moves_with_streams(test: &str, options: &'static str, queues: u16, iommu: Iommu) -> Outcome {
    streams_flow(Stage::new(test, options, queues, iommu)?)
}

fn streams_flow(stage: Option<Stage>) -> Outcome {
    let Some(mut stage) = stage else {
        return Ok(());
    };
    let echoes = [stage.echo(5000)?, stage.echo(5001)?];
    for echo in &echoes {
        echo.goes_on(1 << 20)?;
    }
    stage.move_it()?;
    for echo in &echoes {
        echo.goes_on(1 << 20)?;
    }
    for echo in echoes {
        echo.end()?;
    }
    stage.end()
}

#[test]
fn a_guest_moves_while_streams_flow() -> Outcome {
    moves_with_streams("guest-migration", "", 1, Iommu::Absent)
}

#[test]
fn a_guest_with_packed_rings_and_2_queues_moves_while_streams_flow() -> Outcome {
    moves_with_streams("guest-migration-packed", ",packed=on", 2, Iommu::Absent)
}

#[test]
fn a_guest_behind_an_iommu_moves_while_streams_flow() -> Outcome {
    moves_with_streams("guest-migration-iommu", "", 1, Iommu::Strict)
}

/// A machine with pages as buffers, for frames that nearly fill one.
fn big_pages(nic: &'static str) -> Machine {
    Machine {
        nic,
        ..Machine::PLAIN
    }
}

/// The guest has pages as buffers, each of which a datagram nearly fills: what remains is too small for
/// anything that the guest's kernel keeps beside a packet. So nobody but the port writes such a page, and
/// what a socket holds is not written again: the page arrives only if the port says that it wrote it.
fn datagrams_arrive_whole(test: &str, options: &'static str, more: &str) -> Outcome {
    let stage = Stage::with(test, Wire::Packets, big_pages(options), more)?;
    let Some(mut stage) = stage else {
        return Ok(());
    };
    let datagrams = stage.datagrams()?;
    datagrams.go_on(500)?;
    let before = datagrams.sent();
    stage.move_it()?;
    let moved = datagrams.sent() - before;
    datagrams.go_on(200)?;
    let (sent, held) = datagrams.end(&mut stage.guest)?;
    println!("    {sent} datagrams, {moved} of them during the migration: {held:?}");
    assert!(moved >= 300, "{moved} datagrams during the migration");
    assert_eq!((held.bad, held.again), (0, 0), "{held:?} of {sent}");
    // While the guest is nowhere, datagrams are lost.
    assert!(held.good >= sent / 2, "{held:?} of {sent}");
    stage.end()
}

#[test]
fn datagrams_that_wait_in_a_guest_move_with_it_unharmed() -> Outcome {
    datagrams_arrive_whole("guest-migration-held", ",mrg_rxbuf=off,host_mtu=3960", "")
}

/// Every packet to the guest and from it is copied by an engine.
const ENGINES: &str = ",dmas=[txq0@sw;rxq0@sw],dmathr=0";

#[test]
fn datagrams_that_an_engine_wrote_move_unharmed() -> Outcome {
    let test = "guest-migration-dma";
    if common::ours_only(test)?.is_none() {
        return Ok(());
    }
    datagrams_arrive_whole(test, ",mrg_rxbuf=off,host_mtu=3960", ENGINES)
}

#[test]
fn a_guest_behind_an_iommu_moves_while_an_engine_writes() -> Outcome {
    let test = "guest-migration-dma-iommu";
    if common::ours_only(test)?.is_none() {
        return Ok(());
    }
    let machine = Machine {
        iommu: Iommu::Strict,
        ..Machine::PLAIN
    };
    streams_flow(Stage::with(test, Wire::Tap, machine, ENGINES)?)
}

#[test]
fn datagrams_that_came_over_a_packed_ring_move_unharmed() -> Outcome {
    let options = ",mrg_rxbuf=off,host_mtu=3960,packed=on";
    datagrams_arrive_whole("guest-migration-held-packed", options, "")
}

#[test]
fn an_aborted_migration_changes_nothing_and_the_next_one_arrives() -> Outcome {
    let Some(mut stage) = Stage::new("guest-migration-aborted", "", 1, Iommu::Absent)? else {
        return Ok(());
    };
    let echo = stage.echo(5000)?;
    echo.goes_on(1 << 20)?;
    let to = stage.begin("qemu-3", 1 << 20)?;
    wait_for_status(&stage.guest, "active")?;
    echo.goes_on(1 << 20)?;
    stage.guest.qmp("migrate_cancel")?;
    wait_for_status(&stage.guest, "cancelled")?;
    to.kill();
    let _ = std::fs::remove_file(stage.lab.path("qemu-3.qmp"));
    echo.goes_on(1 << 20)?;
    stage.back.wait_for_link(0, true)?;
    stage.back.wait_for_link(2, false)?;
    stage.move_it()?;
    echo.goes_on(1 << 20)?;
    echo.end()?;
    stage.end()
}

#[test]
fn a_backend_that_is_restarted_during_a_migration_goes_on_logging() -> Outcome {
    let test = "guest-migration-restart";
    if common::ours_only(test)?.is_none() {
        return Ok(());
    }
    let machine = Machine {
        socket: ",reconnect=1",
        ..big_pages(",mrg_rxbuf=off,host_mtu=3960")
    };
    let Some(mut stage) = Stage::with(test, Wire::Packets, machine, "")? else {
        return Ok(());
    };
    let datagrams = stage.datagrams()?;
    datagrams.go_on(300)?;
    let to = stage.begin("qemu-2", 1 << 20)?;
    wait_for_status(&stage.guest, "active")?;
    datagrams.go_on(300)?;
    stage.back.kill();
    stage.back = bridge_again(&stage.lab, &stage.namespace, 1, "")?;
    stage.back.wait_for_link(0, true)?;
    stage.guest.reach("10.0.0.1")?;
    // Those of now were never seen by the first backend.
    datagrams.go_on(500)?;
    let status = stage.guest.qmp_with("query-migrate", "{}")?;
    assert!(status.contains("\"status\": \"active\""), "{status}");
    let quick = format!(r#"{{"max-bandwidth": {}}}"#, 40 << 20);
    stage.guest.qmp_with("migrate-set-parameters", &quick)?;
    stage.arrive(to)?;
    datagrams.go_on(200)?;
    let (sent, held) = datagrams.end(&mut stage.guest)?;
    println!("    {sent} datagrams: {held:?}");
    assert_eq!((held.bad, held.again), (0, 0), "{held:?} of {sent}");
    // Without a backend, and while the guest is nowhere, datagrams are lost.
    assert!(held.good >= 1000, "{held:?} of {sent}");
    stage.end()
}

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;

/// Waits for a frame of the guest that announces where it is, of the kind that is expected.
fn wait_for_announcement(mut frames: File, kind: u16) -> Outcome {
    let (tell, told) = mpsc::channel();
    // It ends with the process, if nothing comes.
    thread::spawn(move || {
        let mut frame = [0; 2048];
        while let Ok(length) = frames.read(&mut frame) {
            let [from @ .., _, _] = &frame[6..14] else {
                return;
            };
            let ours = length >= 42 && from == [0x52, 0x54, 0, 0, 0, MAC];
            if ours && frame[12..14] == kind.to_be_bytes() && frame[..6] == [0xff; 6] {
                let _ = tell.send(());
                return;
            }
        }
    });
    let seen = told.recv_timeout(SOON);
    Ok(seen.map_err(|_| format!("no frame of type {kind:#x} announced the guest"))?)
}

fn announces(test: &str, options: &'static str, kind: u16) -> Outcome {
    let Some(mut stage) = Stage::new(test, options, 1, Iommu::Absent)? else {
        return Ok(());
    };
    // It says nothing by itself.
    let to = stage.begin("qemu-2", 40 << 20)?;
    let frames = stage.namespace.frames()?;
    stage.arrive(to)?;
    wait_for_announcement(frames, kind)?;
    let known = stage.namespace.run("bridge fdb show br br0")?;
    let mac = format!("52:54:00:00:00:{MAC:02x} dev tap1");
    assert!(known.contains(&mac), "{known}");
    stage.end()
}

#[test]
fn a_guest_that_announces_itself_is_found_at_its_new_port() -> Outcome {
    announces("guest-migration-announce", "", ARP)
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced_by_its_new_port() -> Outcome {
    announces("guest-migration-rarp", ",guest_announce=off", RARP)
}
