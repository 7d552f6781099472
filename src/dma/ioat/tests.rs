#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

mod faults;

use super::*;
use crate::testing::dma::{FakeContainer, IoatFault, IoatModel};

/// A channel, its device, and memory for copies: `n` sources, then `n` destinations.
struct Bench {
    channel: Ioat<IoatModel>,
    model: IoatModel,
    fake: FakeContainer,
    memory: Box<[u8]>,
    next: u16,
}

const LEN: usize = 100;
const COPIES: usize = 64;
const FROM: usize = 0;
const TO: usize = COPIES * LEN;

fn filled() -> Box<[u8]> {
    let mut memory = vec![0; 2 * COPIES * LEN];
    for (at, byte) in memory[..TO].iter_mut().enumerate() {
        *byte = (at % 251 + 1) as u8;
    }
    memory.into()
}

fn start(model: &IoatModel, fake: &FakeContainer) -> io::Result<Ioat<IoatModel>> {
    Ioat::start(model.clone(), Arc::new(fake.clone()), 32)
}

impl Bench {
    fn new() -> Self {
        let fake = FakeContainer::new();
        let model = IoatModel::new(&fake);
        Self::with(model, fake)
    }

    fn old() -> Self {
        let fake = FakeContainer::new();
        let model = IoatModel::new(&fake).with_version(0x32);
        Self::with(model, fake)
    }

    fn with(model: IoatModel, fake: FakeContainer) -> Self {
        let memory = filled();
        fake.lend(&memory);
        Self {
            channel: start(&model, &fake).unwrap(),
            model,
            fake,
            memory,
            next: 0,
        }
    }

    fn at(&self, offset: usize) -> Addr {
        let at = self.memory[offset..].as_ptr();
        self.channel.translate(at, LEN as u32).unwrap()
    }

    /// Stages the next copy; its tag is its number.
    fn stage(&mut self) {
        let offset = usize::from(self.next) % COPIES * LEN;
        let copy = Transfer {
            from: self.at(FROM + offset),
            to: self.at(TO + offset),
            len: LEN as u32,
        };
        self.stage_copy(copy);
    }

    fn stage_copy(&mut self, copy: Transfer) {
        let tag = Tag {
            serial: 7,
            place: self.next,
        };
        self.next += 1;
        // SAFETY: `memory` outlives the channel and is only looked at between copies.
        unsafe { self.channel.stage(copy, tag) };
    }

    fn burst(&mut self, copies: usize) {
        for _ in 0..copies {
            self.stage();
        }
        self.channel.submit();
    }

    fn poll(&mut self) -> (Vec<(u16, Outcome)>, Health) {
        let mut seen = Vec::new();
        let health = self.channel.poll(&mut |tag, outcome| {
            assert_eq!(tag.serial, 7);
            seen.push((tag.place, outcome));
        });
        (seen, health)
    }

    /// Whether the bytes of a copy have arrived.
    fn arrived(&self, nth: usize) -> bool {
        let (from, to) = (FROM + nth * LEN, TO + nth * LEN);
        // The device wrote behind the compiler's back.
        let memory = std::hint::black_box(&self.memory);
        memory[from..from + LEN] == memory[to..to + LEN]
    }
}

fn copied(range: std::ops::Range<u16>) -> Vec<(u16, Outcome)> {
    range.map(|nth| (nth, Outcome::Copied)).collect()
}

fn failed(range: std::ops::Range<u16>) -> Vec<(u16, Outcome)> {
    range.map(|nth| (nth, Outcome::Failed)).collect()
}

#[test]
fn a_burst_is_one_doorbell_and_all_of_it_arrives() {
    let mut bench = Bench::new();

    bench.burst(5);

    assert_eq!(bench.model.doorbells(), 1);
    assert_eq!(bench.poll(), (copied(0..5), Health::Running));
    assert!((0..5).all(|nth| bench.arrived(nth)));
    assert!(!bench.arrived(5));
    assert_eq!(bench.poll(), (vec![], Health::Running));
}

#[test]
fn copies_that_are_only_staged_do_not_begin() {
    let mut bench = Bench::new();

    bench.stage();

    assert_eq!(bench.poll(), (vec![], Health::Running));
    assert_eq!(bench.model.copies(), 0);
}

#[test]
fn the_ring_takes_one_copy_less_than_its_size_and_no_more() {
    let mut bench = Bench::new();
    bench.model.hold();
    assert_eq!(bench.channel.room(), 31);

    bench.burst(31);

    assert_eq!(bench.channel.room(), 0);
    bench.model.run(31);
    assert_eq!(bench.poll(), (copied(0..31), Health::Running));
    assert_eq!(bench.channel.room(), 31);
}

#[test]
fn a_hundred_thousand_copies_go_around_ring_and_doorbell() {
    let mut bench = Bench::new();
    let mut reported = 0;

    for round in 0..10_000 {
        bench.next = 0;
        let copies = 1 + round % 20;
        bench.burst(copies);
        let (seen, health) = bench.poll();
        assert_eq!(seen, copied(0..copies as u16));
        assert_eq!(health, Health::Running);
        reported += copies;
    }

    assert!(reported > 100_000);
    assert_eq!(bench.model.copies(), reported as u64);
}

#[test]
fn what_is_finished_is_reported_while_the_rest_runs() {
    let mut bench = Bench::new();
    bench.model.hold();
    bench.burst(10);

    bench.model.run(4);
    assert_eq!(bench.poll(), (copied(0..4), Health::Running));
    bench.burst(2);
    bench.model.run(100);

    assert_eq!(bench.poll(), (copied(4..12), Health::Running));
}

#[test]
fn starting_makes_a_foreign_channel_ours() {
    let fake = FakeContainer::new();
    let model = IoatModel::new(&fake).left_behind();

    let channel = start(&model, &fake).unwrap();

    assert_eq!(model.error(), 0);
    assert_eq!(model.config(4) & 6, 6, "memory and bus master");
    assert_eq!(model.config(0x58), 0x2800, "relaxed ordering is off");
    assert_eq!(model.config(0x180), 3, "not for version 3.4");
    assert_eq!(model.resets(), 1);
    drop(channel);
    assert_eq!(model.resets(), 2);
    assert!(model.is_stopped());
    assert_eq!(fake.mapped(), 0);
}

#[test]
fn an_old_channel_starts_with_a_descriptor_that_copies_nothing() {
    let mut bench = Bench::old();
    assert_eq!(bench.model.doorbells(), 1);
    assert_eq!(bench.model.config(0x180), 0, "cleared below 3.3");

    bench.burst(3);

    assert_eq!(bench.poll(), (copied(0..3), Health::Running));
    assert!((0..3).all(|nth| bench.arrived(nth)));
    assert_eq!(bench.model.copies(), 3);
}

#[test]
fn devices_that_are_no_channels_of_ours_do_not_start() {
    let fake = FakeContainer::new();
    let fresh = || IoatModel::new(&fake);
    let removed = fresh();
    removed.fault(IoatFault::Removed);
    for wrong in [
        fresh().with_version(0x30),
        fresh().with_version(0x23),
        fresh().with_limit(11),
        removed,
    ] {
        let error = start(&wrong, &fake).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert_eq!(wrong.writes(0x90), 0, "no chain");
    }
    assert_eq!(fake.mapped(), 0);
}

#[test]
fn a_channel_that_does_not_reset_or_stays_halted_does_not_start() {
    for fault in [IoatFault::NoReset, IoatFault::StaysHalted] {
        let fake = FakeContainer::new();
        let model = IoatModel::new(&fake);
        model.fault(fault);

        let error = start(&model, &fake).err().unwrap();

        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{fault:?}");
        assert!(model.is_stopped());
        assert_eq!(fake.mapped(), 0);
    }
}

#[test]
fn the_longest_copy_is_what_the_device_says() {
    for (code, bytes) in [(0, 1 << 31), (12, 4096), (20, 1 << 20), (31, 1 << 31)] {
        let fake = FakeContainer::new();
        let model = IoatModel::new(&fake).with_limit(code);
        assert_eq!(start(&model, &fake).unwrap().max_copy(), bytes, "{code}");
    }
}

#[test]
fn without_memory_for_the_ring_there_is_no_channel() {
    let fake = FakeContainer::new();
    fake.refuse();
    let model = IoatModel::new(&fake);

    let error = start(&model, &fake).err().unwrap();

    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
}

#[test]
fn every_part_that_linux_and_dpdk_know_is_known() {
    let intel = |device| PciId {
        vendor: 0x8086,
        device,
    };
    for device in [
        0x2021, 0x6f20, 0x6f2f, 0x0b00, 0x0e27, 0x2f2e, 0x3c20, 0x3719, 0x0c53,
    ] {
        assert!(is_known(intel(device)), "{device:#x}");
    }
    for device in [0x0b25, 0x6f28, 0x2020, 0x0b01] {
        assert!(!is_known(intel(device)), "{device:#x}");
    }
    assert!(!is_known(PciId {
        vendor: 0x1af4,
        device: 0x0b00
    }));
}
