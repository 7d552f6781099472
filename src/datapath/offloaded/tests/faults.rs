//! What is the same in both directions: the fault table, and what engines are asked to do.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{Dequeue, Enqueue};
use super::bench::{Bench, Way, benches, channel, faulty, faulty_benches};
use crate::testing::dma::{Fault, Faults, SimEngine};
use crate::testing::{FakeDriver, FakePool};
use crate::virtio_net::VIRTIO_F_VERSION_1;

/// Runs these in both directions.
macro_rules! both_ways {
    ($($test:ident)*) => {
        $(mod $test {
            use super::*;

            #[test]
            fn to_the_guest() {
                super::$test::<Enqueue<FakePool>>();
            }

            #[test]
            fn from_the_guest() {
                super::$test::<Dequeue<FakePool>>();
            }
        })*
    };
}

both_ways! {
    large_copies_are_the_engines_and_arrive_when_they_have_ended
    small_packets_take_the_plain_way_when_nothing_is_under_way
    a_few_copies_are_not_worth_a_doorbell
    every_packet_is_the_engines_with_a_threshold_of_0
    the_driver_is_called_for_what_landed
    one_engine_serves_many_queues_and_any_of_them_polls_it
    copies_that_never_end_are_the_cpus_after_the_deadline
    what_an_unstoppable_engine_has_is_never_given_back
    a_copy_that_fails_is_done_again_by_the_cpu
    an_engine_that_halts_goes_on_three_times_and_then_no_more
    an_engine_that_does_not_recover_is_dead
    an_engine_that_reports_too_much_is_dead_and_nothing_comes_twice
    an_engine_that_lies_is_seen_by_the_bytes
    a_removed_engine_is_dead_at_once
    a_queue_that_was_empty_when_its_engine_died_tells_of_it
    a_lost_doorbell_is_rung_once_more
    the_watchdog_ends_an_engine_that_stands_still
    a_full_engine_leaves_the_copies_to_the_cpu
    packets_stay_in_order_whatever_the_engines_do
    a_slow_engine_is_only_slow
    a_drain_empties_the_queue_at_any_fill
    memory_is_mapped_once_however_often_the_queue_stops
    an_unstoppable_engine_is_shut_out_of_memory
}

fn large_copies_are_the_engines_and_arrive_when_they_have_ended<W: Way>() {
    for mut bench in benches::<W>(|| SimEngine::new(256)) {
        assert_eq!(bench.start(8, 1500), 0, "nothing has ended yet");
        assert_eq!(bench.driver.pool.live(), 8);
        assert_eq!(bench.driver.counted(|c| &c.packets), 0);
        assert_eq!(bench.dma(|c| &c.inflight), 8);
        assert_eq!(bench.poll(), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.driver.counted(|c| &c.packets), 8);
        assert_eq!(bench.driver.counted(|c| &c.bytes), 12_000);
        assert_eq!(bench.dma(|c| &c.copies), 8);
        assert_eq!(bench.dma(|c| &c.packets), 8);
        assert_eq!(bench.dma(|c| &c.bytes), 12_000);
    }
}

fn small_packets_take_the_plain_way_when_nothing_is_under_way<W: Way>() {
    for mut bench in benches::<W>(|| SimEngine::new(256)) {
        assert_eq!(bench.start(8, 1000), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.copies), 0);
        assert_eq!(bench.dma(|c| &c.cpu_small), 8);
    }
}

fn a_few_copies_are_not_worth_a_doorbell<W: Way>() {
    for mut bench in benches::<W>(|| SimEngine::new(256).per_poll(1)) {
        assert_eq!(bench.start(3, 1500), 3);
        assert_eq!(bench.start(4, 1500), 0);
        assert_eq!(bench.start(1, 1500), 1, "behind others it is");
        assert_eq!(bench.dma(|c| &c.copies), 5);
        bench.settle();
    }
}

fn every_packet_is_the_engines_with_a_threshold_of_0<W: Way>() {
    for driver in W::drivers(64) {
        let channels = vec![channel(SimEngine::new(256))];
        let mut bench = Bench::<W>::with_threshold(driver, channels, 0);
        assert_eq!(bench.start(1, 60), 0);
        assert_eq!(bench.dma(|c| &c.copies), 1);
        bench.settle();
    }
}

fn the_driver_is_called_for_what_landed<W: Way>() {
    let driver = FakeDriver::split(64)
        .feature(VIRTIO_F_VERSION_1)
        .with_calls();
    let mut bench = Bench::<W>::new(driver, vec![channel(SimEngine::new(256))]);
    bench.start(8, 1500);
    assert_eq!(bench.driver.calls(), 0);
    bench.poll();
    assert_eq!(bench.driver.calls(), 1);
    bench.settle();
}

fn one_engine_serves_many_queues_and_any_of_them_polls_it<W: Way>() {
    let shared = channel(SimEngine::new(256).shuffled(5));
    let mut benches: Vec<_> = W::drivers(64)
        .into_iter()
        .map(|driver| Bench::<W>::new(driver, vec![Arc::clone(&shared)]))
        .collect();
    for _ in 0..20 {
        for bench in &mut benches {
            bench.start(8, 1500);
        }
        // The first one polls for all; the others then find theirs landed.
        benches[0].poll();
        for bench in &mut benches {
            assert!(bench.queue().is_empty() || bench.queue().way.flight.lands());
            bench.settle();
        }
    }
}

/// 1: a copy that never ends, and all of them.
fn copies_that_never_end_are_the_cpus_after_the_deadline<W: Way>() {
    for all in [false, true] {
        let set = |faults: &mut Faults| match all {
            false => faults.copies.push((2, Fault::Lost)),
            true => faults.every = Some(Fault::Lost),
        };
        for (mut bench, faults) in faulty_benches::<W>(set) {
            assert_eq!(bench.start(8, 1500), 0);
            assert_eq!(bench.poll(), if all { 0 } else { 2 });
            let began = Instant::now();
            assert!(bench.drain());
            assert!(began.elapsed() >= Duration::from_millis(100));
            bench.assert_all_arrived();
            assert!(faults.lock().unwrap().halted);
            assert_eq!(bench.dma(|c| &c.drain_timeouts), 1);
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            assert!(bench.dma(|c| &c.redone) >= 1);
            // The CPU goes on alone.
            assert_eq!(bench.start(8, 1500), 8);
            bench.settle();
            assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
            assert_eq!(bench.dma(|c| &c.cpu_small), 0);
        }
    }
}

/// 1, with an engine that cannot be stopped.
fn what_an_unstoppable_engine_has_is_never_given_back<W: Way>() {
    let set = |faults: &mut Faults| {
        faults.every = Some(Fault::Lost);
        faults.unproven = true;
    };
    for (mut bench, _) in faulty_benches::<W>(set) {
        bench.start(8, 1500);
        assert!(!bench.drain());
        assert_eq!(bench.poll(), 0);
        assert_eq!(bench.used, []);
        assert_eq!(bench.driver.pool.live(), 8);
        let memory = Arc::clone(&bench.queue().virtqueue.memory);
        assert!(bench.queue.take().unwrap().into_virtqueue().is_held());
        // The virtqueue has gone with what it had; one count stays for ever.
        assert!(Arc::strong_count(&memory) > 1);
        assert_eq!(bench.driver.pool.live(), 8);
    }
}

/// 2 and 3: any copy fails, with nothing or something done.
fn a_copy_that_fails_is_done_again_by_the_cpu<W: Way>() {
    for fault in [Fault::Failed, Fault::Partial] {
        for nth in 0..8 {
            for (mut bench, _) in faulty_benches::<W>(|faults| faults.copies.push((nth, fault))) {
                bench.start(4, 4000);
                bench.settle();
                assert_eq!(bench.dma(|c| &c.errors), 1);
                assert!(bench.dma(|c| &c.redone) >= 1);
                assert_eq!(bench.dma(|c| &c.engine_dead), 0);
            }
        }
    }
}

/// 4: the channel halts, again and again.
fn an_engine_that_halts_goes_on_three_times_and_then_no_more<W: Way>() {
    for (mut bench, faults) in faulty_benches::<W>(|_| {}) {
        for turn in 0..5_u64 {
            let staged = faults.lock().unwrap().staged;
            let place = staged + turn % 4;
            faults.lock().unwrap().copies.push((place, Fault::Halt));
            bench.start(8, 1500);
            bench.settle();
            assert_eq!(bench.dma(|c| &c.recoveries), (turn + 1).min(3));
            assert_eq!(bench.dma(|c| &c.engine_dead), u64::from(turn >= 3));
        }
        assert_eq!(faults.lock().unwrap().recoveries, 3);
    }
}

/// 5: and it does not go on.
fn an_engine_that_does_not_recover_is_dead<W: Way>() {
    let set = |faults: &mut Faults| {
        faults.copies.push((1, Fault::Halt));
        faults.stays_halted = true;
    };
    for (mut bench, faults) in faulty_benches::<W>(set) {
        bench.start(8, 1500);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
        assert!(faults.lock().unwrap().halted);
        assert!(bench.channels[0].is_dead());
    }
}

/// 6: reports of copies that it does not have.
fn an_engine_that_reports_too_much_is_dead_and_nothing_comes_twice<W: Way>() {
    let sets: [fn(&mut Faults); 2] = [
        |faults| faults.copies.push((1, Fault::Twice)),
        |faults| faults.invented = true,
    ];
    for set in sets {
        for (mut bench, _) in faulty_benches::<W>(set) {
            bench.start(8, 1500);
            bench.settle();
            assert!(bench.channels[0].is_dead());
            assert_eq!(bench.dma(|c| &c.engine_dead), 1);
            bench.start(8, 1500);
            bench.settle();
        }
    }
}

/// 7: cannot be seen in production; here the bytes tell.
fn an_engine_that_lies_is_seen_by_the_bytes<W: Way>() {
    for (mut bench, _) in faulty_benches::<W>(|faults| faults.copies.push((1, Fault::Lie))) {
        bench.start(4, 1500);
        assert!(bench.drain());
        let frames = W::landed(&mut bench);
        assert_eq!(frames.len(), 4);
        let wrong = frames.iter().zip(&bench.expected).filter(|(a, b)| a != b);
        assert_eq!(wrong.count(), 1);
    }
}

/// 8: the device is gone.
fn a_removed_engine_is_dead_at_once<W: Way>() {
    for (mut bench, faults) in faulty_benches::<W>(|_| {}) {
        bench.start(8, 1500);
        faults.lock().unwrap().removed = true;
        assert_eq!(bench.poll(), 8);
        assert!(bench.channels[0].is_dead());
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.engine_dead), 1);
    }
}

fn a_queue_that_was_empty_when_its_engine_died_tells_of_it<W: Way>() {
    for driver in W::drivers(64) {
        let (channel, faults) = faulty(SimEngine::new(256));
        let mut idle = Bench::<W>::new(driver, vec![Arc::clone(&channel)]);
        let mut busy = Bench::<W>::new(FakeDriver::split(64), vec![channel]);
        busy.start(8, 1500);
        faults.lock().unwrap().removed = true;
        assert_eq!(busy.poll(), 8);
        assert!(idle.channels[0].is_dead());

        assert_eq!(idle.start(8, 1500), 8);
        assert_eq!(idle.dma(|c| &c.engine_dead), 1);
        assert_eq!(idle.dma(|c| &c.cpu_noroom), 8);
    }
}

/// 9: a doorbell is lost once, and for ever.
fn a_lost_doorbell_is_rung_once_more<W: Way>() {
    for lost in [1, 2] {
        for (mut bench, _) in faulty_benches::<W>(|faults| faults.lost_doorbells = lost) {
            bench.start(8, 1500);
            assert!(bench.drain());
            bench.assert_all_arrived();
            assert_eq!(bench.dma(|c| &c.drain_timeouts), u64::from(lost == 2));
            assert_eq!(bench.channels[0].is_dead(), lost == 2);
        }
    }
}

/// 9, without a drain.
fn the_watchdog_ends_an_engine_that_stands_still<W: Way>() {
    for lost in [1, 2] {
        for (mut bench, _) in faulty_benches::<W>(|faults| faults.lost_doorbells = lost) {
            bench.start(8, 1500);
            let begin = Instant::now();
            for ms in [0, 1, 49, 51, 99] {
                bench.queue().watch(begin + Duration::from_millis(ms));
                bench.poll();
            }
            assert_eq!(bench.queue().is_empty(), lost == 1);
            bench.queue().watch(begin + Duration::from_millis(101));
            bench.poll();
            bench.assert_all_arrived();
            assert_eq!(bench.channels[0].is_dead(), lost == 2);
        }
    }
}

/// 10: no room in the engine.
fn a_full_engine_leaves_the_copies_to_the_cpu<W: Way>() {
    for (mut bench, faults) in faulty_benches::<W>(|faults| faults.full = true) {
        assert_eq!(bench.start(8, 1500), 8);
        bench.assert_all_arrived();
        assert_eq!(bench.dma(|c| &c.cpu_noroom), 8);
        faults.lock().unwrap().full = false;
        bench.start(8, 1500);
        bench.settle();
        assert_eq!(bench.dma(|c| &c.copies), 8);
    }
    // A packet is the engine's as a whole, or not at all.
    for mut bench in benches::<W>(|| SimEngine::new(5)) {
        bench.start(4, 3900);
        assert_eq!(bench.dma(|c| &c.copies), 4);
        bench.settle();
    }
}

/// 11: engines end out of order, within and across.
fn packets_stay_in_order_whatever_the_engines_do<W: Way>() {
    for driver in W::drivers(64) {
        let engines = [1, 2, 3].map(|seed| {
            let engine = SimEngine::new(64).shuffled(seed * 977);
            channel(engine.per_poll(seed as usize))
        });
        let mut bench = Bench::<W>::new(driver, engines.into());
        for _ in 0..50 {
            // No more than there is room for, and more than lands in a poll.
            let room = 64 - bench.expected.len();
            bench.start(room.min(7), 1500);
        }
        bench.settle();
    }
}

/// 12: one copy a poll.
fn a_slow_engine_is_only_slow<W: Way>() {
    for mut bench in benches::<W>(|| SimEngine::new(64).per_poll(1)) {
        assert_eq!(bench.start(32, 1500), 0);
        for left in (0..32).rev() {
            assert_eq!(bench.poll(), 1);
            assert_eq!(bench.dma(|c| &c.inflight), left);
        }
        bench.settle();
        assert_eq!(bench.dma(|c| &c.engine_dead), 0);
    }
}

/// 13: whatever is under way has landed when a drain returns, and the ring goes on from there.
fn a_drain_empties_the_queue_at_any_fill<W: Way>() {
    for count in [1, 4, 31, 64] {
        for mut bench in benches::<W>(|| SimEngine::new(256).per_poll(3).shuffled(8)) {
            assert_eq!(bench.start(count, 1500), usize::from(count == 1));
            assert!(bench.drain());
            bench.assert_all_arrived();
            let queue = bench.queue.take().unwrap().into_virtqueue();
            let at = bench.driver.stop_at(queue);
            let turns = match (bench.driver.is_packed(), count) {
                (true, 64) => 0, // back at the beginning, in the next turn
                (true, _) => count as u16 | 1 << 15,
                (false, _) => count as u16,
            };
            assert_eq!(at, turns);
            bench.start_again();
            bench.start(8, 1500);
            bench.settle();
        }
    }
}

/// 16: memory that the engine does not reach. Pinning a large guest takes long.
fn memory_is_mapped_once_however_often_the_queue_stops<W: Way>() {
    for (mut bench, faults) in faulty_benches::<W>(|_| {}) {
        let maps = || faults.lock().unwrap().maps;
        let mappings = || faults.lock().unwrap().mappings;
        let first = maps();
        assert!(first > 0);
        for _ in 0..5 {
            let queue = bench.queue.take().unwrap().into_virtqueue();
            bench.start_on(queue);
            bench.start(8, 1500);
            bench.settle();
        }
        assert_eq!((maps(), mappings()), (first, first.cast_signed()));
        // Another table: all goes, and comes anew.
        let queue = bench.queue.take().unwrap().into_virtqueue();
        bench.driver.stop_at(queue);
        assert_eq!(mappings(), 0);
        bench.start_again();
        assert_eq!((maps(), mappings()), (2 * first, first.cast_signed()));
        drop(bench);
        assert_eq!(mappings(), 0);
    }
}

/// 1 and 16: what cannot be stopped is at least shut out of memory, once nobody copies with it.
fn an_unstoppable_engine_is_shut_out_of_memory<W: Way>() {
    let set = |faults: &mut Faults| {
        faults.every = Some(Fault::Lost);
        faults.unproven = true;
    };
    for (mut bench, faults) in faulty_benches::<W>(set) {
        bench.start(8, 1500);
        assert!(!bench.drain());
        let queue = bench.queue.take().unwrap().into_virtqueue();
        assert_eq!(faults.lock().unwrap().mappings, 0);
        let maps = faults.lock().unwrap().maps;
        bench.start_on(queue);
        assert_eq!(faults.lock().unwrap().maps, maps, "not let in again");
    }
}
