#![forbid(unsafe_code)]

use std::sync::atomic::AtomicBool;

use super::*;
use crate::testing::dma::{Fault, Faulty, SimEngine};
use crate::testing::{Buffer, FakeDriver, FakePool};

impl Work for Enqueue<FakePool> {
    type Queue = (FakePool, QueueCounters);
    type Kept = ();

    fn drain(offloaded: &mut Offloaded<Self>, (pool, counters): &Self::Queue, (): &()) {
        offloaded.drain(pool, counters);
    }

    fn poll(offloaded: &mut Offloaded<Self>, (pool, counters): &Self::Queue, (): &()) {
        offloaded.reap(pool, usize::MAX, counters);
    }
}

/// A lane whose gate is open.
fn lane<W: Work>() -> Lane<W> {
    let lane = Lane::new(0);
    lane.allow(Allow::Started);
    lane.allow(Allow::Attached);
    lane
}

#[test]
fn nobody_finds_a_lane_without_its_virtqueue_while_it_is_given_engines() {
    let (lane, end) = (lane::<Enqueue<TxRelease>>(), AtomicBool::new(false));
    let channel = Arc::new(Channel::new("shared", Box::new(SimEngine::new(64))));
    lane.give(FakeDriver::split(256).start());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                lane.equip(vec![Arc::clone(&channel)]);
                lane.unequip();
            }
        });
        // As the session does for a message.
        for nth in 0..1000 {
            let mut altered = false;
            lane.alter(&mut |_| altered = true);
            let virtqueue = lane.take();
            if virtqueue.is_none() || !altered {
                end.store(true, Ordering::Relaxed);
                panic!("not there at message {nth}");
            }
            assert!(lane.take().is_none(), "there are two");
            virtqueue.into_iter().for_each(|one| lane.give(one));
        }
        end.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_virtqueue_with_a_runaway_engine_is_polled_no_more_and_waits_for_the_session() {
    let (engine, faults) = Faulty::new(SimEngine::new(64));
    faults.lock().unwrap().every = Some(Fault::Lost);
    faults.lock().unwrap().unproven = true;
    let lane = lane::<Enqueue<FakePool>>();
    lane.equip(vec![Arc::new(Channel::new("runaway", Box::new(engine)))]);
    let mut driver = FakeDriver::packed(64);
    driver.offer(&[Buffer::writable(2048)]);
    lane.give(driver.start());
    let mut queue = (FakePool::new(2048), QueueCounters::default());
    let packet = queue.0.packet(&[&[7; 1000]]);
    lane.serve(NonNull::from(&queue));
    let sent = lane.gate.enter(1, |offloaded| {
        let sent = offloaded.send(&queue.0, &[packet], &queue.1);
        lane.note(offloaded);
        sent
    });
    assert_eq!((sent, lane.under_way()), (Some(1), 1));

    lane.suspend(true);
    lane.suspend(false);

    assert!(lane.gate.enter(1, |_| ()).is_none(), "it is polled");
    assert!(!lane.is_busy());
    let mut altered = false;
    lane.alter(&mut |_| altered = true);
    assert!(altered && lane.take().is_some_and(|virtqueue| virtqueue.is_held()));
    assert!(lane.take().is_none());
    lane.forget();
}
