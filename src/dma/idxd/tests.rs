#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of tests are small"
)]

mod files;
mod registers;

use super::queue::{Limits, Queue};
use super::*;
use crate::dma::idxd::portal::Portal;
use crate::dma::idxd::queue::Access;
use crate::dma::{Addr, Engine, Halted, Health, Outcome, Tag, Transfer};
use crate::testing::dma::{DsaFault, DsaModel, FakeContainer};

const LEN: usize = 100;
const COPIES: usize = 128;
const TO: usize = COPIES * LEN;

/// A queue, and memory for its copies: sources, then destinations.
struct Bench<P: Portal, A: Access> {
    queue: Queue<P, A>,
    memory: Box<[u8]>,
    next: u16,
}

const LIMITS: Limits = Limits {
    submissions: 16,
    batch: 8,
    transfer: 2 << 20,
};

fn filled() -> Box<[u8]> {
    let mut memory = vec![0; 2 * COPIES * LEN];
    for (at, byte) in memory[..TO].iter_mut().enumerate() {
        *byte = (at % 251 + 1) as u8;
    }
    memory.into()
}

fn bench(model: &DsaModel) -> Bench<DsaModel, impl Access + use<>> {
    limited(model, LIMITS)
}

fn limited(model: &DsaModel, limits: Limits) -> Bench<DsaModel, impl Access + use<>> {
    let queue = Queue::new(model.clone(), model.access(), limits, 64).unwrap();
    Bench::with(queue)
}

impl<P: Portal, A: Access> Bench<P, A> {
    fn with(queue: Queue<P, A>) -> Self {
        Self {
            queue,
            memory: filled(),
            next: 0,
        }
    }

    fn at(&self, offset: usize) -> Addr {
        let at = self.memory[offset..].as_ptr();
        self.queue.translate(at, LEN as u32).unwrap()
    }

    /// Stages the next copy; its tag is its number.
    fn stage(&mut self) {
        let offset = usize::from(self.next) % COPIES * LEN;
        let copy = Transfer {
            from: self.at(offset),
            to: self.at(TO + offset),
            len: LEN as u32,
        };
        let tag = Tag {
            serial: 7,
            place: self.next,
        };
        self.next += 1;
        // SAFETY: `memory` outlives the queue's work and is only looked at between copies.
        unsafe { self.queue.stage(copy, tag) };
    }

    fn burst(&mut self, copies: usize) {
        for _ in 0..copies {
            self.stage();
        }
        self.queue.submit();
    }

    fn poll(&mut self) -> (Vec<(u16, Outcome)>, Health) {
        let mut seen = Vec::new();
        let health = self.queue.poll(&mut |tag, outcome| {
            assert_eq!(tag.serial, 7);
            seen.push((tag.place, outcome));
        });
        (seen, health)
    }

    /// Whether the bytes of a copy have arrived.
    fn arrived(&self, nth: usize) -> bool {
        let (from, to) = (nth * LEN, TO + nth * LEN);
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

fn refused(range: std::ops::Range<u16>) -> Vec<(u16, Outcome)> {
    range.map(|nth| (nth, Outcome::Refused)).collect()
}

#[test]
fn a_burst_is_lists_of_what_the_queue_takes_and_one_copy_alone() {
    let model = DsaModel::new();
    let mut bench = bench(&model);

    bench.burst(17); // 8, 8, 1

    assert_eq!((model.submissions(), model.batches()), (3, 2));
    assert_eq!(bench.poll(), (copied(0..17), Health::Running));
    assert!((0..17).all(|nth| bench.arrived(nth)));
    assert!(!bench.arrived(17));
    assert_eq!(bench.poll(), (vec![], Health::Running));
    assert_eq!((model.lost(), model.bad()), (0, 0));
}

#[test]
fn a_queue_without_batches_gets_copies_one_by_one() {
    let model = DsaModel::new();
    let mut bench = limited(&model, Limits { batch: 1, ..LIMITS });
    assert_eq!(bench.queue.room(), 16);

    bench.burst(16);

    assert_eq!((model.submissions(), model.batches()), (16, 0));
    assert_eq!(bench.poll(), (copied(0..16), Health::Running));
}

#[test]
fn all_room_can_be_staged_and_never_too_much_is_submitted() {
    // The ring has 64 places; how many submissions that needs depends on where it begins.
    for submissions in [1, 2, 3, 7, 16] {
        for batch in [1, 2, 5, 8, 64] {
            let model = DsaModel::new();
            let limits = Limits {
                submissions,
                batch: batch.min(8),
                ..LIMITS
            };
            let mut bench = limited(&model, limits);
            let mut expected = 0;
            for round in 0_usize..200 {
                model.hold();
                // Staged in two steps, submitted in one.
                let first = (round * 7 % 5).min(bench.queue.room());
                for _ in 0..first {
                    bench.stage();
                }
                let rest = bench.queue.room();
                assert!(first + rest > 0);
                bench.burst(rest);
                assert_eq!(bench.queue.room(), 0, "{submissions} {batch} {round}");
                model.go();
                let (seen, health) = bench.poll();
                expected += first + rest;
                assert_eq!(seen.len(), first + rest);
                assert_eq!(health, Health::Running);
                bench.next = 0;
            }
            assert_eq!(model.copies(), expected as u64);
            assert_eq!((model.lost(), model.bad()), (0, 0));
        }
    }
}

#[test]
fn submissions_may_finish_in_any_order() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.hold();
    bench.burst(8);
    bench.burst(1);
    bench.burst(3);

    model.run_last();
    assert_eq!(bench.poll(), (copied(9..12), Health::Running));
    assert_eq!(bench.poll(), (vec![], Health::Running));
    model.run_first();
    assert_eq!(bench.poll(), (copied(0..8), Health::Running));
    model.run_first();
    assert_eq!(bench.poll(), (copied(8..9), Health::Running));
    assert_eq!(bench.queue.room(), 64);
}

#[test]
fn a_queue_that_is_not_ours_alone_may_refuse_the_copies() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.fault(DsaFault::Full(1));

    bench.burst(8);
    bench.burst(2);

    assert_eq!(
        bench.poll(),
        ([refused(0..8), copied(8..10)].concat(), Health::Running)
    );
    assert!(!bench.arrived(0));
}

#[test]
fn a_queue_that_refused_has_no_room_until_it_has_finished_something() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.hold();
    bench.burst(1);
    model.fault(DsaFault::Full(1));
    bench.burst(2);
    assert_eq!(bench.poll(), (refused(1..3), Health::Running));
    assert_eq!(bench.queue.room(), 0);
    assert_eq!(bench.poll(), (vec![], Health::Running));
    assert_eq!(bench.queue.room(), 0);
    model.run_first();
    assert_eq!(bench.poll(), (copied(0..1), Health::Running));
    assert_eq!(bench.queue.room(), 64);

    // Others have filled it: nothing of ours will tell when there is room.
    model.fault(DsaFault::Full(1));
    bench.burst(1);
    assert_eq!(bench.queue.room(), 0);
    assert_eq!(bench.poll(), (refused(3..4), Health::Running));
    assert_eq!(bench.queue.room(), 64);
}

#[test]
fn a_portal_that_takes_nothing_any_more_is_the_end_of_the_queue() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.fault(DsaFault::Broken);

    bench.burst(3);

    assert_eq!(bench.queue.room(), 0);
    assert_eq!(bench.poll(), (failed(0..3), Health::Dead));
    assert!(!bench.queue.recover());
    assert_eq!(bench.queue.halt(), Halted::Proven);
    assert_eq!(bench.poll(), (vec![], Health::Dead));
}

#[test]
fn the_processor_finishes_what_a_missing_page_has_left() {
    for bytes in [0, 1, LEN as u32 - 1, LEN as u32] {
        for fault in [
            DsaFault::Copy(0, 0x03, bytes),
            DsaFault::Copy(0, 0x83, bytes),
            DsaFault::Backwards(0, 0x03, bytes),
        ] {
            let model = DsaModel::new();
            let mut bench = bench(&model);
            model.fault(fault);

            bench.burst(1);

            assert_eq!(bench.poll(), (copied(0..1), Health::Running), "{fault:?}");
            assert!(bench.arrived(0), "{fault:?}");
            assert!(!bench.arrived(1));
        }
    }
}

#[test]
fn more_bytes_than_there_were_are_not_believed() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.fault(DsaFault::Copy(0, 0x03, LEN as u32 + 1));

    bench.burst(1);

    assert_eq!(bench.poll(), (failed(0..1), Health::Running));
}

#[test]
fn a_missing_page_in_a_batch_concerns_one_copy() {
    for nth in [0, 3, 7] {
        let model = DsaModel::new();
        let mut bench = bench(&model);
        model.fault(DsaFault::Copy(nth, 0x03, 10));

        bench.burst(8);

        assert_eq!(bench.poll(), (copied(0..8), Health::Running));
        assert!((0..8).all(|nth| bench.arrived(nth)));
        bench.burst(8);
        assert_eq!(bench.poll(), (copied(8..16), Health::Running));
    }
}

#[test]
fn where_addresses_are_not_ours_a_missing_page_fails_the_copy() {
    let fake = FakeContainer::new();
    let model = DsaModel::mapped(&fake);
    let queue = Queue::new(model.clone(), model.access(), LIMITS, 64).unwrap();
    let mut bench = Bench::with(queue);
    fake.lend(&bench.memory);
    model.fault(DsaFault::Copy(1, 0x03, 10));

    bench.burst(3);

    let expected = [copied(0..1), failed(1..2), copied(2..3)].concat();
    assert_eq!(bench.poll(), (expected, Health::Running));
    assert!(bench.arrived(0) && !bench.arrived(1) && bench.arrived(2));
    drop(bench);
    assert_eq!(fake.mapped(), 0);
}

#[test]
fn a_batch_that_was_not_tried_whole_is_redone_where_it_is_unclear() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.fault(DsaFault::Batch(0, 0x05, 3));
    bench.burst(6);
    assert_eq!(bench.poll(), (failed(0..6), Health::Running));

    model.fault(DsaFault::Batch(1, 0x06, 0));
    bench.burst(6);
    assert_eq!(bench.poll(), (failed(6..12), Health::Running));

    bench.burst(6);
    assert_eq!(bench.poll(), (copied(12..18), Health::Running));
}

#[test]
fn three_faults_without_an_answer_are_too_many() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    for nth in 0..3 {
        model.fault(DsaFault::Copy(nth, 0x04, 0));
    }

    for nth in 0..2 {
        bench.burst(1);
        assert_eq!(bench.poll(), (failed(nth..nth + 1), Health::Running));
    }
    bench.burst(1);

    assert_eq!(bench.poll(), (failed(2..3), Health::Dead));
}

#[test]
fn a_status_that_should_not_be_ends_the_queue_after_the_copies_are_reported() {
    for status in [
        0x02, 0x10, 0x11, 0x12, 0x13, 0x14, 0x16, 0x1a, 0x1f, 0x20, 0x22,
    ] {
        let model = DsaModel::new();
        let mut bench = bench(&model);
        model.fault(DsaFault::Copy(1, status, 0));

        bench.burst(4);

        let expected = [copied(0..1), failed(1..2), copied(2..4)].concat();
        assert_eq!(bench.poll(), (expected, Health::Dead), "{status:#x}");
        assert_eq!(bench.queue.room(), 0);
    }
}

#[test]
fn a_lost_submission_is_noticed_at_the_second_look() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.fault(DsaFault::Swallow);
    bench.burst(3);
    bench.burst(2);
    assert_eq!(bench.poll(), (copied(3..5), Health::Running));

    assert_eq!(bench.queue.nudge(), Health::Running);
    assert_eq!(bench.queue.nudge(), Health::Dead);

    assert_eq!(bench.queue.halt(), Halted::Proven);
    assert!(model.is_stopped());
}

#[test]
fn a_device_that_tells_of_an_error_is_dead_at_the_first_look() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    model.hold();
    bench.burst(1);
    model.fault(DsaFault::Error);

    assert_eq!(bench.queue.nudge(), Health::Dead);
}

#[test]
fn progress_between_two_looks_is_enough() {
    let model = DsaModel::new();
    let mut bench = bench(&model);
    assert_eq!(bench.queue.nudge(), Health::Running);
    model.hold();
    for _ in 0..5 {
        bench.burst(1);
        bench.burst(1);
        assert_eq!(bench.queue.nudge(), Health::Running);
        model.run_first();
        bench.poll();
        assert_eq!(bench.queue.nudge(), Health::Running);
        model.run_first();
        bench.poll();
    }
}

#[test]
fn a_queue_that_cannot_be_stopped_keeps_its_memory() {
    let fake = FakeContainer::new();
    let model = DsaModel::mapped(&fake);
    let queue = Queue::new(model.clone(), model.access(), LIMITS, 64).unwrap();
    let mut bench = Bench::with(queue);
    fake.lend(&bench.memory);
    model.hold();
    bench.burst(2);
    model.fault(DsaFault::NoStop);

    assert_eq!(bench.queue.halt(), Halted::Unproven);

    let Bench { queue, memory, .. } = bench;
    drop(queue);
    assert_eq!(fake.mapped(), 1);
    model.go(); // reads its descriptors and writes its records
    assert_eq!(model.copies(), 2);
    drop(memory);
}

#[test]
fn every_device_that_linux_and_dpdk_know_is_known() {
    for device in [0x0b25, 0x11fb, 0x1212] {
        assert!(is_known(PciId {
            vendor: 0x8086,
            device
        }));
    }
    for (vendor, device) in [(0x8086, 0x0b00), (0x1af4, 0x0b25), (0x8086, 0x0cfe)] {
        assert!(!is_known(PciId { vendor, device }));
    }
}
