#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use std::sync::atomic::AtomicU32;

use super::*;
use crate::dma::Tag;
use crate::dma::flight::Flight;
use crate::dma::idxd::queue::{Limits, Queue};
use crate::dma::vfio::Memory;
use crate::testing::dma::{DsaModel, FakeContainer, Fault, Faulty, SimEngine};

/// Puts a packet with one copy of 4 bytes under way.
fn fly(channel: &Channel, user: u32, flight: &mut Flight<u8>, from: &[u8; 4], to: &mut [u8; 4]) {
    let mut burst = channel.burst(user).unwrap();
    let transfer = burst.transfer(from.as_ptr(), to.as_ptr(), 4).unwrap();
    // SAFETY: the tests keep both longer than channel and flight.
    assert!(unsafe { flight.plan((from.as_ptr(), to.as_mut_ptr()), transfer, 0) });
    flight.append(Some(0), |transfer, place| {
        // SAFETY: as above.
        unsafe { burst.stage(transfer, place) };
    });
}

#[test]
fn an_engine_is_made_once_for_all_who_ask() {
    let make = || Ok(Box::new(SimEngine::new(4)) as Box<dyn Engine>);
    let one = open("one for all", make).unwrap();
    let two = open("one for all", || panic!("it is open")).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    drop((one, two));
    open("one for all", make).unwrap();
    let error = open("not there", || Err(OpenError::Unusable("no".into())));
    assert_eq!(error.unwrap_err().to_string(), "no");
}

#[test]
fn a_dead_engine_is_not_opened_again() {
    let make = || Ok(Box::new(SimEngine::new(4)) as Box<dyn Engine>);
    let channel = open("soon dead", make).unwrap();
    assert_eq!(channel.kill("of a test"), Halted::Proven);
    // Who shares it gets it, dead as it is.
    assert!(open("soon dead", make).unwrap().is_dead());
    drop(channel);
    assert!(matches!(open("soon dead", make), Err(OpenError::Failed)));
}

#[test]
fn an_engine_that_goes_is_gone_before_it_is_opened_again() {
    let (engine, faults) = Faulty::new(SimEngine::new(4));
    let first = open("goes", || Ok(Box::new(engine))).unwrap();
    let going = Arc::downgrade(&first);
    let held = faults.lock().unwrap(); // it cannot be halted
    let closer = std::thread::spawn(move || drop(first));
    while going.strong_count() != 0 {
        std::thread::yield_now();
    }
    let (tell, told) = std::sync::mpsc::channel();
    let opener = std::thread::spawn({
        let faults = Arc::clone(&faults);
        move || {
            let make = || {
                let halted = faults.try_lock().is_ok_and(|faults| faults.halted);
                tell.send(halted).unwrap();
                Ok(Box::new(SimEngine::new(4)) as Box<dyn Engine>)
            };
            open("goes", make).map(drop)
        }
    });
    let early = told.recv_timeout(Duration::from_millis(50));
    assert!(early.is_err(), "it was opened while the old one was there");
    drop(held);
    assert_eq!(told.recv(), Ok(true));
    assert!(opener.join().unwrap().is_ok());
    closer.join().unwrap();
}

#[test]
fn an_engine_and_its_parts_are_not_open_together() {
    let make = || Ok(Box::new(SimEngine::new(4)) as Box<dyn Engine>);
    let busy = |name| match open(name, make) {
        Err(OpenError::Busy(why)) => why,
        other => panic!("{other:?}"),
    };
    let whole = open("parts", make).unwrap();
    assert_eq!(busy("parts#0"), "it is in use here as parts");
    drop(whole);
    let part = open("parts#0", make).unwrap();
    let other = open("parts#1", make).unwrap();
    assert!(!Arc::ptr_eq(&part, &other));
    assert_eq!(busy("parts"), "it is in use here as parts#0");
    part.kill("of a test");
    drop((part, other));
    assert!(matches!(open("parts", make), Err(OpenError::Failed)));
    assert!(matches!(open("parts#0", make), Err(OpenError::Failed)));
    assert!(open("parts#1", make).is_ok());
}

#[test]
fn numbers_of_flights_are_used_again_when_nothing_is_under_way() {
    let channel = Channel::new("numbers", Box::new(SimEngine::new(4)));
    let (from, mut to) = ([1; 4], [0; 4]);
    let mut one = Flight::new(4, 4);
    let two = Flight::<u8>::new(4, 4);
    let user = channel.attach(one.board());
    assert_eq!((user, channel.attach(two.board())), (0, 1));
    fly(&channel, user, &mut one, &from, &mut to);
    assert!(channel.has_copies_of(0) && !channel.has_copies_of(1));
    channel.detach(0);
    channel.detach(1);
    assert_eq!(channel.attach(two.board()), 1, "0 is still in use");
    channel.reap();
    assert!(one.land(|_, _| {}).is_some());
    channel.detach(0);
    assert_eq!(channel.attach(two.board()), 0);
    assert_eq!(to, from);
}

#[test]
fn there_is_no_more_room_than_the_engine_has() {
    let channel = Channel::new("room", Box::new(SimEngine::new(4)));
    let (from, mut to) = ([1; 4], [0; 4]);
    let mut flight = Flight::new(16, 16);
    let user = channel.attach(flight.board());
    for left in (0..4).rev() {
        fly(&channel, user, &mut flight, &from, &mut to);
        assert_eq!(channel.burst(user).unwrap().room(), left);
    }
    channel.reap_now();
    assert_eq!(channel.burst(user).unwrap().room(), 4);
}

#[test]
fn an_engine_that_takes_little_at_once_has_many_copies_all_the_same() {
    let channel = Channel::new("batches", Box::new(SimEngine::new(8).batch(2)));
    assert_eq!(channel.depth(), 8);
    let (from, mut to) = ([1; 4], [0; 4]);
    let mut flight = Flight::new(16, 16);
    let user = channel.attach(flight.board());
    for left in (0..8).rev() {
        assert_eq!(channel.burst(user).unwrap().room(), 2.min(left + 1));
        fly(&channel, user, &mut flight, &from, &mut to);
    }
    assert_eq!(channel.burst(user).unwrap().room(), 0);
}

#[test]
fn a_burst_does_not_wait_for_long() {
    let channel = Channel::new("busy", Box::new(SimEngine::new(4)));
    let flight = Flight::<u8>::new(4, 4);
    let user = channel.attach(flight.board());
    let held = channel.burst(user);
    assert!(held.is_some());
    assert!(channel.burst(user).is_none());
    channel.reap();
    drop(held);
    assert!(channel.burst(user).is_some());
}

#[test]
fn a_report_counts_once_even_when_its_place_has_a_new_copy() {
    let mut copies = Copies::new(2);
    let first = copies.add(0, 7).unwrap();
    assert_eq!(copies.take(first).map(|copy| copy.place), Some(7));
    assert!(copies.take(first).is_none());
    let second = copies.add(0, 8).unwrap();
    assert_eq!(second.place, first.place);
    assert!(copies.take(first).is_none());
    assert_eq!(copies.take(second).map(|copy| copy.place), Some(8));
    let beyond = Tag {
        serial: 1,
        place: 2,
    };
    assert!(copies.take(beyond).is_none());
}

#[test]
fn recoveries_are_forgiven_after_a_while() {
    let (engine, faults) = Faulty::new(SimEngine::new(4));
    let channel = Channel::new("halts", Box::new(engine));
    let mut inner = channel.lock();
    for nth in 0..10 {
        assert_eq!(inner.recover(nth * 5_000), None, "two in ten seconds");
    }
    // Nobody looked meanwhile.
    for _ in 0..3 {
        assert_eq!(inner.recover(1_000_000), None);
    }
    assert!(inner.recover(1_000_000).is_some());
    assert_eq!(faults.lock().unwrap().recoveries, 13);
}

#[test]
fn two_who_look_at_a_time_are_one_look() {
    let (engine, faults) = Faulty::new(SimEngine::new(4));
    let channel = Channel::new("looks", Box::new(engine));
    let (from, mut to) = ([1; 4], [0; 4]);
    let mut flight = Flight::new(4, 4);
    let user = channel.attach(flight.board());
    let began = Instant::now();
    let at = |ms| began + Duration::from_millis(ms);
    let nudges = || faults.lock().unwrap().nudges;

    channel.nudge(at(0));
    assert_eq!(nudges(), 0, "it has nothing to do");

    faults.lock().unwrap().every = Some(Fault::Lost);
    fly(&channel, user, &mut flight, &from, &mut to);
    channel.watch(at(0));
    channel.nudge(at(40)); // a queue is emptied
    channel.nudge(at(50)); // another one
    channel.watch(at(51));
    assert_eq!(nudges(), 1);
    channel.watch(at(91));
    assert!(!channel.is_dead(), "silent for 91 ms, told again 51 ms ago");
    channel.nudge(at(95));
    assert_eq!(nudges(), 2);
    channel.watch(at(140));
    assert!(!channel.is_dead());
    channel.watch(at(145));
    assert!(channel.is_dead());
}

#[test]
fn memory_is_mapped_for_the_first_and_unmapped_for_the_last() {
    let (engine, faults) = Faulty::new(SimEngine::new(4));
    let channel = Channel::new("maps", Box::new(engine));
    let page = [0_u8; 8];
    let mappings = || faults.lock().unwrap().mappings;
    channel.map(page.as_ptr(), 8);
    channel.map(page.as_ptr(), 8);
    assert_eq!(mappings(), 1);
    channel.unmap(page.as_ptr(), 8);
    assert_eq!(mappings(), 1);
    channel.unmap(page.as_ptr(), 8);
    channel.unmap(page.as_ptr(), 8);
    assert_eq!(mappings(), 0);
    faults.lock().unwrap().unmappable = true;
    channel.map(page.as_ptr(), 8);
    channel.map(page.as_ptr(), 8);
    assert_eq!(faults.lock().unwrap().refusals, 1, "and told once");
    channel.unmap(page.as_ptr(), 8);
    channel.unmap(page.as_ptr(), 8);
    assert_eq!(mappings(), 0, "what was not mapped is not unmapped");
}

#[test]
fn an_engine_that_has_panicked_is_dead_at_the_next_look() {
    type Look = fn(&Channel);
    let looks: [Look; 2] = [Channel::reap, |channel| channel.watch(Instant::now())];
    for look in looks {
        let (engine, faults) = Faulty::new(SimEngine::new(4));
        let channel = Channel::new("panics", Box::new(engine));
        let (from, mut to) = ([1; 4], [0; 4]);
        let mut flight = Flight::new(4, 4);
        let user = channel.attach(flight.board());
        fly(&channel, user, &mut flight, &from, &mut to);
        faults.lock().unwrap().panics = true;
        let poll = std::panic::AssertUnwindSafe(|| channel.reap());
        assert!(std::panic::catch_unwind(poll).is_err());

        look(&channel);

        assert!(channel.is_dead());
        assert_eq!(flight.land(|_, _| {}).map(|landed| landed.redone), Some(1));
        assert_eq!(to, from);
    }
}

#[test]
fn nobody_waits_for_an_engine_while_memory_is_mapped_for_it() {
    let fake = FakeContainer::new();
    let model = DsaModel::mapped(&fake);
    let limits = Limits {
        submissions: 16,
        batch: 8,
        transfer: 4096,
    };
    let queue = Queue::new(model.clone(), model.access(), limits, 64).unwrap();
    let channel = Arc::new(Channel::new("slow to map", Box::new(queue)));
    let flight = Flight::<u8>::new(4, 4);
    let user = channel.attach(flight.board());
    let bursts = Arc::new(AtomicU32::new(0));
    fake.on_change({
        let (channel, bursts) = (Arc::downgrade(&channel), Arc::clone(&bursts));
        move || {
            if channel.upgrade().unwrap().burst(user).is_some() {
                bursts.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let guest = Memory::shared(4096).unwrap();
    let at = guest.words().as_ptr().cast();
    let reaches = || channel.burst(user).unwrap().transfer(at, at, 8).is_some();

    channel.map(at, 4096);
    assert!(reaches());
    assert_eq!(bursts.load(Ordering::Relaxed), 1);
    channel.unmap(at, 4096);
    assert!(!reaches());
    assert_eq!(bursts.load(Ordering::Relaxed), 2);
    assert_eq!(fake.mapped(), 1, "only its own memory");
    fake.on_change(|| {});
}

#[test]
fn when_an_engine_dies_all_its_flights_hear_of_it() {
    let (engine, faults) = Faulty::new(SimEngine::new(8));
    faults.lock().unwrap().every = Some(Fault::Lost);
    let channel = Channel::new("dies", Box::new(engine));
    let (from, mut to) = ([1; 4], [0; 4]);
    let mut flights = [Flight::new(4, 4), Flight::new(4, 4)];
    for flight in &mut flights {
        let user = channel.attach(flight.board());
        fly(&channel, user, flight, &from, &mut to);
    }
    assert_eq!(channel.kill("of a test"), Halted::Proven);
    for flight in &mut flights {
        assert_eq!(flight.take_events().deaths, 1);
        assert_eq!(flight.land(|_, _| {}).map(|landed| landed.redone), Some(1));
    }
    assert_eq!(to, from);
}
