//! Queues behind files, with a thread as device and the instructions of the driver.

use std::io;
use std::time::{Duration, Instant};

use super::*;
use crate::dma::idxd::char_device::open_at;
use crate::dma::idxd::portal::{AnyPortal, Instructions};
use crate::dma::idxd::sysfs::{Places, WorkQueue, parse};
use crate::testing::dma::{FakeWorkQueue, Way, stand_in_for_instructions};

const NONE: Instructions = Instructions {
    movdir64b: false,
    enqcmd: false,
};
const ALL: Instructions = Instructions {
    movdir64b: true,
    enqcmd: true,
};

fn open(
    files: &FakeWorkQueue,
    instructions: Instructions,
) -> io::Result<Queue<AnyPortal, CharDevice>> {
    stand_in_for_instructions();
    // SAFETY: something stands in for the instructions.
    unsafe { open_at(&files.places(), "wq0.0", 64, instructions) }
}

/// Waits for so many reports.
fn wait<A: Access>(bench: &mut Bench<AnyPortal, A>, copies: usize) -> Vec<(u16, Outcome)> {
    let began = Instant::now();
    let mut all = Vec::new();
    while all.len() < copies {
        let (seen, health) = bench.poll();
        assert_eq!(health, Health::Running);
        all.extend(seen);
        assert!(began.elapsed() < Duration::from_secs(60), "{all:?}");
        std::thread::yield_now();
    }
    all.sort_unstable_by_key(|(slot, _)| *slot);
    all
}

/// Many bursts of all sizes, each compared byte by byte.
fn copies_arrive(files: &FakeWorkQueue, instructions: Instructions) {
    let mut bench = Bench::with(open(files, instructions).unwrap());
    for round in 0..300 {
        let copies = (1 + round * 7 % 40).min(bench.queue.room());
        bench.memory[TO..].fill(0);
        bench.next = 0;
        bench.burst(copies);
        assert_eq!(wait(&mut bench, copies), copied(0..copies as u16));
        assert!((0..copies).all(|nth| bench.arrived(nth)));
        assert!(!bench.arrived(copies));
    }
    assert_eq!((files.model().bad(), files.model().lost()), (0, 0));
}

#[test]
fn copies_arrive_through_a_dedicated_queues_page() {
    let files = FakeWorkQueue::new(Way::Page);
    let queue = open(&files, ALL).unwrap();
    assert!(matches!(queue.portal(), Some(AnyPortal::Dedicated(_))));
    drop(queue);

    copies_arrive(&files, ALL);

    assert!(files.model().batches() > 100);
}

#[test]
fn copies_arrive_through_a_shared_queues_page() {
    let files = FakeWorkQueue::new(Way::Page);
    files.say("wq0.0/mode", "shared");
    let queue = open(&files, ALL).unwrap();
    assert!(matches!(queue.portal(), Some(AnyPortal::Shared(_))));
    drop(queue);

    copies_arrive(&files, ALL);
}

#[test]
fn copies_arrive_by_write_where_the_page_cannot_be_mapped() {
    let files = FakeWorkQueue::new(Way::Write);
    let queue = open(&files, ALL).unwrap();
    assert!(matches!(queue.portal(), Some(AnyPortal::Written(_))));
    drop(queue);

    copies_arrive(&files, ALL);

    assert!(files.model().batches() > 100);
}

#[test]
fn without_the_instruction_the_page_is_not_even_mapped() {
    for mode in ["shared", "dedicated"] {
        let files = FakeWorkQueue::new(Way::Write);
        files.say("wq0.0/mode", mode);
        let queue = open(&files, NONE).unwrap();
        assert!(matches!(queue.portal(), Some(AnyPortal::Written(_))));
        drop(queue);

        copies_arrive(&files, NONE);
    }
}

#[test]
fn old_devices_get_no_batches_by_write() {
    let files = FakeWorkQueue::new(Way::Write);
    files.say("dsa0/version", "0x100");

    copies_arrive(&files, NONE);

    assert_eq!(files.model().batches(), 0);
}

#[test]
fn missing_pages_are_finished_behind_files_too() {
    for way in [Way::Page, Way::Write] {
        let files = FakeWorkQueue::new(way);
        files.model().fault(DsaFault::Copy(2, 0x03, 50));
        let mut bench = Bench::with(open(&files, ALL).unwrap());

        bench.burst(8);

        assert_eq!(wait(&mut bench, 8), copied(0..8));
        assert!((0..8).all(|nth| bench.arrived(nth)));
    }
}

#[test]
fn a_shared_queue_that_stays_full_leaves_the_copies_to_the_processor() {
    let mut files = FakeWorkQueue::new(Way::Page);
    files.say("wq0.0/mode", "shared");
    let mut bench = Bench::with(open(&files, ALL).unwrap());
    // Nobody takes the first line away, and the second is in use.
    files.unplug();
    let path = files.places().devices.join("wq0.0");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1], 64).unwrap();

    bench.burst(1);
    bench.burst(2);
    bench.burst(1);

    assert_eq!(bench.poll(), (refused(1..3), Health::Running));
}

#[test]
fn after_a_halt_the_file_is_closed() {
    let files = FakeWorkQueue::new(Way::Page);
    let mut queue = open(&files, ALL).unwrap();
    let path = files.places().devices.join("wq0.0");
    let open_files = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path))
            .count()
    };
    assert_eq!(open_files(), 1);

    assert_eq!(queue.halt(), Halted::Proven);

    assert_eq!(open_files(), 0);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.matches(path.to_str().unwrap()).count();
    assert_eq!(mapped, 1, "only the device's side");
}

#[test]
fn queues_that_are_not_for_us_are_refused_with_a_reason() {
    for (attribute, value, reason) in [
        ("wq0.0/type", "kernel", "type is \"kernel\""),
        ("wq0.0/state", "disabled", "state is \"disabled\""),
        ("wq0.0/driver_name", "dmaengine", "driver_name"),
        ("wq0.0/size", "0", "has no size"),
        ("wq0.0/size", "many", "has no size"),
        ("dsa0/pasid_enabled", "0", "no shared virtual memory"),
    ] {
        let files = FakeWorkQueue::new(Way::Page);
        files.say(attribute, value);

        let error = open(&files, ALL).err().unwrap();

        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_queue_that_is_not_there_is_not_found() {
    let files = FakeWorkQueue::new(Way::Page);
    let nowhere = Places {
        devices: "/nonexistent".into(),
        sysfs: files.places().sysfs,
    };
    // SAFETY: nothing is opened.
    let error = unsafe { open_at(&nowhere, "wq0.0", 64, NONE) }.err();
    assert_eq!(error.unwrap().kind(), io::ErrorKind::NotFound);
    let places = files.places();
    for name in ["wq0.1", "wq1.0"] {
        // SAFETY: nothing is opened.
        let error = unsafe { open_at(&places, name, 64, NONE) }.err();
        assert_eq!(error.unwrap().kind(), io::ErrorKind::NotFound, "{name}");
    }
    for name in ["wq0", "wq0.0/..", "wq-1.0", "wq.", "wq0.+1", "../wq0.0"] {
        // SAFETY: nothing is opened.
        let error = unsafe { open_at(&places, name, 64, NONE) }.err();
        assert_eq!(error.unwrap().kind(), io::ErrorKind::InvalidInput, "{name}");
    }
}

#[test]
fn attributes_are_read_as_the_kernel_writes_them() {
    let files = FakeWorkQueue::new(Way::Page);
    let read = || WorkQueue::read(&files.places().sysfs, "wq0.0").unwrap();
    let whole = WorkQueue {
        shared: false,
        size: 16,
        max_batch: 8,
        max_transfer: 2 << 20,
        version_1: false,
    };
    assert_eq!(read(), whole);

    for gone in [
        "max_batch_size",
        "max_transfer_size",
        "mode",
        "state",
        "driver_name",
    ] {
        files.say(&format!("wq0.0/{gone}"), "");
    }
    files.say("dsa0/version", "");
    let least = WorkQueue {
        max_batch: 1,
        version_1: true,
        ..whole
    };
    assert_eq!(read(), least);

    files.say("wq0.0/max_transfer_size", "4294967296");
    assert_eq!(read().max_transfer, 1 << 31);
}

#[test]
fn a_shared_queue_holds_no_more_than_its_threshold() {
    let files = FakeWorkQueue::new(Way::Page);
    let size = |threshold, mode| {
        files.say("wq0.0/size", "128");
        files.say("wq0.0/threshold", threshold);
        files.say("wq0.0/mode", mode);
        WorkQueue::read(&files.places().sysfs, "wq0.0")
            .unwrap()
            .size
    };
    assert_eq!(size("16", "shared"), 16);
    assert_eq!(size("200", "shared"), 128);
    assert_eq!(size("0", "shared"), 128);
    assert_eq!(size("", "shared"), 128);
    assert_eq!(size("16", "dedicated"), 128);
}

#[test]
fn names_of_queues_are_two_numbers() {
    assert_eq!(parse("wq0.1"), Some((0, 1)));
    assert_eq!(parse("wq12.7"), Some((12, 7)));
    for wrong in [
        "wq1",
        "dsa0",
        "wq1.",
        "wq1.2.3",
        "wq 1.2",
        "wq99999999999.0",
    ] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
}

#[test]
fn detection_agrees_with_the_kernel() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |name: &str| flags.is_some_and(|line| line.split(' ').any(|flag| flag == name));

    let found = Instructions::detect();

    assert_eq!(found.movdir64b, has("movdir64b"));
    // The kernel hides ENQCMD when it cannot support it.
    assert!(found.enqcmd || !has("enqcmd"));
}
