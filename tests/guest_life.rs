//! What happens to a running guest, while its packets flow.
#![cfg(feature = "dpdk")]

mod common;

use std::fs;

use common::{
    Backend, Driver, Guest, Image, Lab, Machine, Outcome, Testpmd, answering, connected, eventually,
};

/// Pings in the background, for as long as the guest runs, from each of its processors.
fn keep_busy(guest: &mut Guest, processors: u32) -> Outcome {
    for processor in 0..processors {
        let mask = 1 << processor;
        let ping = format!("taskset {mask} ping -q -i 0.005 -s 1000 10.0.0.1");
        guest.run(&format!("{ping} >/dev/null & busy=\"$busy $!\""))?;
    }
    Ok(())
}

/// Pings while the pings in the background pause: each of them gets the answers to all, and its
/// socket has room for a few.
fn ping_alone(guest: &mut Guest, count: u32, size: u32) -> Outcome {
    guest.run("kill -STOP $busy")?;
    guest.ping(count, size)?;
    guest.run("kill -CONT $busy").map(|_| ())
}

/// One of a port's extended statistics.
fn counter(back: &mut Testpmd, name: &str) -> Outcome<u64> {
    let xstats = back.xstats(0)?;
    let found = xstats.iter().find(|(known, _)| known == name);
    Ok(found.ok_or(format!("no {name}"))?.1)
}

/// Waits until packets went both ways through a queue pair.
fn carries(back: &mut Testpmd, queue: u32) -> Outcome {
    let names = ["rx", "tx"].map(|way| format!("{way}_q{queue}_good_packets"));
    let mut before = Vec::new();
    for name in &names {
        before.push(counter(back, name)?);
    }
    let mut now = before.clone();
    eventually(&format!("queue pair {queue} carries packets"), || {
        now = names
            .iter()
            .map(|name| counter(back, name).unwrap_or(0))
            .collect();
        now.iter().zip(&before).all(|(now, before)| now > before)
    })
}

#[test]
fn queue_counts_change_while_packets_flow() -> Outcome {
    let test = "guest-channels";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 2))?;
    let machine = Machine {
        queues: 2,
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    keep_busy(&mut guest, 2)?;
    for round in 0..5 {
        guest.run("channels eth0 1")?;
        carries(&mut back, 0)?;
        ping_alone(&mut guest, 10, 64)?;
        guest.run("channels eth0 2")?;
        for queue in [0, 1] {
            carries(&mut back, queue)?;
        }
        ping_alone(&mut guest, 10, 1472)?;
        println!("round {round}: 1 queue pair, then 2");
    }
    let events = back.events();
    let changes = events.iter().filter(|event| event.contains("queue state"));
    // Two vrings go and come in each round.
    assert!(changes.count() >= 20, "{events:?}");
    guest.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn links_and_machines_are_stopped_while_packets_flow() -> Outcome {
    let test = "guest-stopped";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let mut back = answering(&lab, &Backend::server(&driver, 1))?;
    for (layout, nic) in [("split", ""), ("packed", ",packed=on")] {
        let machine = Machine {
            nic,
            ..Machine::PLAIN
        };
        let mut guest = connected(&lab, &image, &machine, &mut back)?;
        keep_busy(&mut guest, 1)?;
        for _ in 0..3 {
            guest.qmp_with("set_link", r#"{"name": "net0", "up": false}"#)?;
            back.wait_for_link(0, false)?;
            guest.qmp_with("set_link", r#"{"name": "net0", "up": true}"#)?;
            back.wait_for_link(0, true)?;
            guest.reach("10.0.0.1")?;
            ping_alone(&mut guest, 10, 1472)?;
            guest.qmp("stop")?;
            back.wait_for_link(0, false)?;
            guest.qmp("cont")?;
            back.wait_for_link(0, true)?;
            ping_alone(&mut guest, 10, 64)?;
        }
        // The busy driver goes and comes.
        let folder = "/sys/bus/virtio/drivers/virtio_net";
        guest.run(&format!("echo virtio0 > {folder}/unbind"))?;
        back.wait_for_link(0, false)?;
        guest.run(&format!("echo virtio0 > {folder}/bind"))?;
        guest.reach_the_backend()?;
        // The pings of before ended without their network.
        guest.ping(10, 1472)?;
        println!("{layout}: link, machine and driver stopped and started");
        guest.quit()?;
        back.wait_for_link(0, false)?;
    }
    back.quit()?;
    lab.finish()
}

/// How much a process has touched of each of its shared mappings of `size` kB.
fn touched(process: u32, size: u64) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap_or_default();
    let value = |line: &str| -> Option<u64> { line.split_whitespace().nth(1)?.parse().ok() };
    let mut found = Vec::new();
    let (mut guest_memory, mut right_size) = (false, false);
    for line in text.lines() {
        if line.contains("/memfd:") {
            guest_memory = true;
        } else if line.starts_with("Size:") {
            right_size = value(line) == Some(size);
        } else if line.starts_with("Rss:") && guest_memory {
            guest_memory = false;
            found.extend(value(line).filter(|_| right_size));
        }
    }
    found
}

#[test]
fn memory_is_plugged_in_while_packets_flow_and_carries_them() -> Outcome {
    let test = "guest-memory";
    let lab = Lab::new(test)?;
    let Some(image) = Image::for_test(test, &lab)? else {
        return Ok(());
    };
    let driver = Driver::under_test()?;
    let backend = Backend {
        // Otherwise all guest memory counts as touched.
        own: &["--no-mlockall"],
        ..Backend::server(&driver, 2)
    };
    let mut back = answering(&lab, &backend)?;
    let machine = Machine {
        queues: 2,
        ..Machine::PLAIN
    };
    let mut guest = connected(&lab, &image, &machine, &mut back)?;
    keep_busy(&mut guest, 2)?;
    let process = back.process().id();
    guest.run("all=/sys/devices/system/memory; blocks=$(ls -d $all/memory?* | wc -l)")?;
    for (nth, megabytes) in [(1, 128), (2, 256)] {
        let id = format!("more{nth}");
        guest.qmp_with(
            "object-add",
            &format!(
                r#"{{"qom-type": "memory-backend-memfd", "id": "{id}", "size": {}, "share": true}}"#,
                megabytes << 20
            ),
        )?;
        guest.qmp_with(
            "device_add",
            &format!(r#"{{"driver": "pc-dimm", "id": "dimm{nth}", "memdev": "{id}"}}"#),
        )?;
        // The blocks appear one by one, and some kernels bring them online by themselves.
        let blocks = megabytes / 128;
        guest.run(&format!(
            "until [ $(ls -d $all/memory?* | wc -l) -ge \
             $((blocks + {blocks})) ]; do usleep 50000; done; blocks=$((blocks + {blocks})); \
             for state in $all/memory*/state; do \
             grep -q online $state || echo online >$state; done"
        ))?;
        ping_alone(&mut guest, 100, 1472)?;
    }
    let total = guest.run("grep MemTotal /proc/meminfo")?;
    println!("{}", total.trim());
    for queue in [0, 1] {
        carries(&mut back, queue)?;
    }
    // The guest takes new pages from the first new memory, and our port was there.
    let mut seen = Vec::new();
    let carried = eventually("packets lie in the new memory", || {
        seen = touched(process, 128 << 10);
        seen.iter().all(|kb| *kb > 0)
    });
    println!("touched of the new region, in kB: {seen:?}");
    assert_eq!(seen.len(), 1, "one region of that size");
    carried?;
    ping_alone(&mut guest, 50, 1472)?;
    guest.quit()?;
    back.quit()?;
    lab.finish()
}
