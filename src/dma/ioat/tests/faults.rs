//! What goes wrong.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn a_failed_copy_halts_and_the_rest_goes_on_behind_it() {
    for bit in [0, 1, 8, 9, 10, 11] {
        let mut bench = Bench::new();
        bench.model.fault(IoatFault::Copy(5, 1 << bit, 0));
        bench.burst(12);

        let (seen, health) = bench.poll();
        assert_eq!(seen, [copied(0..5), failed(5..6)].concat());
        assert_eq!(health, Health::Halted);
        assert_eq!(bench.poll(), (vec![], Health::Halted));

        assert!(bench.channel.recover());
        assert_eq!(bench.channel.error(), 1 << bit);
        assert_eq!(bench.model.error(), 0);
        assert_eq!(bench.poll(), (copied(6..12), Health::Running));
        assert!((6..12).all(|nth| bench.arrived(nth)));
        assert_eq!(bench.channel.room(), 31);
    }
}

#[test]
fn the_first_the_last_and_a_half_copied_one_can_fail() {
    for (nth, written) in [(0, 0), (3, LEN / 2), (7, LEN)] {
        let mut bench = Bench::new();
        bench.model.fault(IoatFault::Copy(nth, 1 << 9, written));
        bench.burst(8);

        let nth = nth as u16;
        let before = [copied(0..nth), failed(nth..nth + 1)].concat();
        assert_eq!(bench.poll(), (before, Health::Halted));
        assert!(bench.channel.recover());
        assert_eq!(bench.poll(), (copied(nth + 1..8), Health::Running));

        bench.next = 0;
        bench.burst(3);
        assert_eq!(bench.poll(), (copied(0..3), Health::Running));
    }
}

#[test]
fn copies_staged_while_it_is_halted_begin_when_it_goes_on() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::Copy(1, 1, 0));
    bench.burst(4);
    bench.poll();

    bench.burst(2);
    bench.stage();
    assert_eq!(bench.model.copies(), 2);

    assert!(bench.channel.recover());
    assert_eq!(bench.poll(), (copied(2..6), Health::Running));
    bench.channel.submit();
    assert_eq!(bench.poll(), (copied(6..7), Health::Running));
}

#[test]
fn one_copy_after_the_other_can_fail() {
    let mut bench = Bench::new();
    for nth in 0..3 {
        bench.model.fault(IoatFault::Copy(nth, 1 << 1, 0));
    }
    bench.burst(4);

    for nth in 0..3 {
        assert_eq!(bench.poll(), (failed(nth..nth + 1), Health::Halted));
        assert!(bench.channel.recover());
    }
    assert_eq!(bench.poll(), (copied(3..4), Health::Running));
}

#[test]
fn an_address_that_is_not_mapped_any_more_is_not_written() {
    let mut bench = Bench::new();
    let guest = vfio::Memory::shared(4096).unwrap();
    let va = guest.words().as_ptr().cast();
    bench.channel.map(va, 4096).unwrap();
    let to = bench.channel.translate(va, LEN as u32).unwrap();
    let copy = Transfer {
        from: bench.at(FROM),
        to,
        len: LEN as u32,
    };
    bench.channel.unmap(va, 4096);
    assert_eq!(bench.channel.translate(va, 1), None);

    bench.stage_copy(copy);
    bench.channel.submit();

    assert_eq!(bench.poll(), (failed(0..1), Health::Halted));
    assert_eq!(bench.model.error(), 2, "destination address");
    let words = guest.words().iter();
    assert!(
        words
            .map(|word| word.load(Ordering::Relaxed))
            .all(|w| w == 0)
    );
}

#[test]
fn a_reset_that_takes_its_time_is_waited_for() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::SlowReset(1000));
    bench.model.fault(IoatFault::Copy(0, 1, 0));
    bench.burst(2);
    bench.poll();

    assert!(bench.channel.recover());
    assert_eq!(bench.poll(), (copied(1..2), Health::Running));
}

#[test]
fn a_channel_that_does_not_recover_is_dead_but_stops() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::Copy(0, 1, 0));
    bench.burst(2);
    bench.poll();
    bench.model.fault(IoatFault::NoReset);

    assert!(!bench.channel.recover());

    assert_eq!(bench.poll(), (vec![], Health::Dead));
    assert_eq!(bench.channel.room(), 0);
    assert_eq!(bench.channel.halt(), Halted::Proven, "by a function reset");
    assert!(bench.model.is_stopped());
}

#[test]
fn nothing_proves_that_a_channel_has_stopped_when_all_is_refused() {
    let mut bench = Bench::new();
    for fault in [
        IoatFault::NoReset,
        IoatFault::NoFunctionReset,
        IoatFault::NoRelease,
    ] {
        bench.model.fault(fault);
    }
    bench.model.hold();
    bench.burst(2);

    assert_eq!(bench.channel.halt(), Halted::Unproven);

    assert!(!bench.model.is_stopped());
    let fake = bench.fake.clone();
    let model = bench.model.clone();
    let Bench { channel, .. } = bench;
    drop(channel);
    assert_eq!(fake.mapped(), 1, "the ring stays for ever");
    model.run(1); // and may be read and written
}

#[test]
fn giving_the_function_back_is_the_last_proof() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::NoReset);
    bench.model.fault(IoatFault::NoFunctionReset);

    assert_eq!(bench.channel.halt(), Halted::Proven);

    assert!(bench.model.is_stopped());
}

#[test]
fn an_old_channel_gets_one_more_chance_and_loses_what_it_had() {
    let mut bench = Bench::old();
    bench.model.fault(IoatFault::Copy(2, 1, 0));
    bench.burst(6);
    let before = [copied(0..2), failed(2..3)].concat();
    assert_eq!(bench.poll(), (before, Health::Halted));
    bench.stage();

    assert!(bench.channel.recover());
    assert_eq!(bench.poll(), (failed(3..6), Health::Running));
    bench.channel.submit();
    assert_eq!(bench.poll(), (copied(6..7), Health::Running));
    assert!(bench.arrived(6));

    bench.model.fault(IoatFault::Copy(4, 1, 0));
    bench.burst(1);
    assert_eq!(bench.poll(), (failed(7..8), Health::Halted));
    assert!(!bench.channel.recover());
    assert_eq!(bench.channel.halt(), Halted::Proven);
}

#[test]
fn a_lost_doorbell_is_repeated() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::LoseDoorbell);
    bench.burst(3);
    assert_eq!(bench.poll(), (vec![], Health::Running));

    assert_eq!(bench.channel.nudge(), Health::Running);

    assert_eq!(bench.poll(), (copied(0..3), Health::Running));
}

#[test]
fn a_doorbell_that_is_lost_again_and_again_means_starting_anew() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::LoseDoorbell);
    bench.model.fault(IoatFault::LoseDoorbell);
    bench.burst(3);

    assert_eq!(bench.channel.nudge(), Health::Running);
    assert_eq!(bench.channel.nudge(), Health::Halted);
    assert!(bench.channel.recover());

    assert_eq!(bench.poll(), (failed(0..3), Health::Running));
    bench.burst(2);
    assert_eq!(bench.poll(), (copied(3..5), Health::Running));
}

#[test]
fn a_halt_that_was_not_written_to_memory_is_found_in_the_register() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::Copy(1, 1, 0));
    bench.model.hold();
    bench.burst(3);
    bench.model.run(1);
    bench.model.fault(IoatFault::LoseCompletion);
    bench.model.run(1);
    assert_eq!(bench.poll(), (copied(0..1), Health::Running));

    assert_eq!(bench.channel.nudge(), Health::Running);

    assert_eq!(bench.poll(), (failed(1..2), Health::Halted));
    bench.model.go();
    assert!(bench.channel.recover());
    assert_eq!(bench.poll(), (copied(2..3), Health::Running));
}

#[test]
fn a_channel_that_hangs_is_reset_and_gives_up_its_copies() {
    let mut bench = Bench::new();
    bench.model.hold();
    bench.burst(3);
    bench.model.run(1);
    bench.model.fault(IoatFault::Hang);
    bench.poll();

    assert_eq!(bench.channel.nudge(), Health::Halted);
    bench.model.go();
    assert!(bench.channel.recover());

    assert_eq!(bench.poll(), (failed(1..3), Health::Running));
    assert_eq!(bench.channel.room(), 31);
    bench.burst(31);
    assert_eq!(bench.poll(), (copied(3..34), Health::Running));
}

#[test]
fn a_channel_with_nothing_to_do_or_to_report_is_left_alone() {
    let mut bench = Bench::new();
    assert_eq!(bench.channel.nudge(), Health::Running);
    bench.burst(1);
    let before = bench.model.doorbells();

    assert_eq!(bench.channel.nudge(), Health::Running);

    assert_eq!(bench.model.doorbells(), before);
    assert_eq!(bench.poll(), (copied(0..1), Health::Running));
}

#[test]
fn a_removed_channel_is_dead_at_once() {
    let mut bench = Bench::new();
    bench.model.hold();
    bench.burst(3);
    bench.model.fault(IoatFault::Removed);

    let began = Instant::now();
    assert_eq!(bench.channel.nudge(), Health::Dead);
    assert!(!bench.channel.recover());
    assert_eq!(bench.channel.halt(), Halted::Proven, "it was given back");

    assert!(began.elapsed() < OBEYS, "no wait for a register");
    assert_eq!(bench.poll(), (vec![], Health::Dead));
}

#[test]
fn a_removed_channel_that_had_halted_does_not_recover() {
    let mut bench = Bench::new();
    bench.model.fault(IoatFault::Copy(0, 1, 0));
    bench.burst(2);
    bench.poll();
    bench.model.fault(IoatFault::Removed);

    assert!(!bench.channel.recover());

    assert_eq!(bench.poll(), (vec![], Health::Dead));
}

#[test]
fn a_completion_word_that_cannot_be_true_is_not_believed() {
    for lie in [64, u64::MAX, 0x7fff_ffff_ffc0] {
        let mut bench = Bench::new();
        bench.model.fault(IoatFault::Lie(lie));
        bench.burst(2);

        assert_eq!(bench.poll(), (vec![], Health::Dead), "{lie:#x}");
        assert_eq!(bench.channel.halt(), Halted::Proven);
    }
}

#[test]
fn more_copies_than_were_started_are_not_believed() {
    let mut bench = Bench::new();
    bench.burst(1);
    bench.poll();
    let Some(ring) = &bench.channel.ring else {
        panic!("no ring");
    };
    let ring_at = ring.word_address() - 32 * 64;
    bench.model.fault(IoatFault::Lie(ring_at + 5 * 64));
    bench.burst(2);

    assert_eq!(bench.poll(), (vec![], Health::Dead));
}

#[test]
fn after_a_halt_nothing_is_written_and_nothing_reported() {
    let mut bench = Bench::new();
    bench.model.hold();
    bench.burst(4);
    bench.model.run(2);

    assert_eq!(bench.channel.halt(), Halted::Proven);

    bench.model.go();
    assert!(!bench.arrived(2) && !bench.arrived(3));
    assert_eq!(bench.poll(), (vec![], Health::Dead));
}
