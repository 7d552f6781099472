#![forbid(unsafe_code)]

use crate::testing::{Buffer, FakeDriver, Frame};
use crate::virtio_net::VIRTIO_F_EVENT_IDX;

/// Sends `count` frames and dequeues them in one burst; the calls that this made.
pub(in crate::virtqueue) fn calls_for(driver: &mut FakeDriver, count: usize) -> u64 {
    for _ in 0..count {
        driver.send(&Frame::new(64, 1));
    }
    assert_eq!(driver.dequeue(count).len(), count);
    driver.used();
    driver.calls()
}

/// A driver of either layout.
fn drivers(size: u16) -> [FakeDriver; 2] {
    [FakeDriver::split(size), FakeDriver::packed(size)].map(FakeDriver::with_calls)
}

/// The same with an event index, at the begin of their rings; and where that is.
fn with_event_index() -> [(FakeDriver, u16); 2] {
    drivers(256).map(|driver| {
        let start = driver.config().base;
        (driver.feature(VIRTIO_F_EVENT_IDX), start)
    })
}

#[test]
fn a_burst_calls_at_most_once() {
    for mut driver in drivers(256) {
        assert_eq!(calls_for(&mut driver, 1), 1);
        assert_eq!(calls_for(&mut driver, 200), 1);
        assert_eq!(driver.counted(|c| &c.guest_notifications), 2);
    }
}

#[test]
fn a_burst_that_used_nothing_does_not_call() {
    for mut driver in drivers(8) {
        assert_eq!(driver.dequeue(32), []);
        assert_eq!(driver.enqueue(&[Frame::new(64, 1)]), 0);
        assert_eq!(driver.calls(), 0);
    }
}

#[test]
fn a_burst_of_nothing_but_dropped_chains_calls() {
    for mut driver in drivers(8) {
        driver.offer(&[Buffer::readable(3)]);
        assert_eq!(driver.dequeue(32), []);
        assert_eq!(driver.calls(), 1);
    }
}

#[test]
fn an_enqueue_burst_calls_once() {
    for mut driver in drivers(8) {
        for _ in 0..3 {
            driver.offer(&[Buffer::writable(100)]);
        }
        let frames = [1, 2, 3].map(|seed| Frame::new(64, seed));
        assert_eq!(driver.enqueue(&frames), 3);
        assert_eq!(driver.calls(), 1);
        assert_eq!(driver.counted(|c| &c.guest_notifications), 1);
    }
}

#[test]
fn no_call_is_made_while_the_driver_does_not_want_any() {
    // The flag has the same value in both layouts.
    for mut driver in drivers(256) {
        driver.set_flags(1);
        assert_eq!(calls_for(&mut driver, 5), 0);
        driver.set_flags(0);
        assert_eq!(calls_for(&mut driver, 5), 1);
        assert_eq!(driver.counted(|c| &c.guest_notifications), 1);
    }
}

#[test]
fn without_a_call_fd_nothing_is_counted_as_a_call() {
    for mut driver in [FakeDriver::split(8), FakeDriver::packed(8)] {
        driver.send(&Frame::new(64, 1));
        assert_eq!(driver.dequeue(1).len(), 1);
        assert_eq!(driver.counted(|c| &c.guest_notifications), 0);
    }
}

#[test]
fn a_call_that_is_wanted_and_cannot_be_made_is_an_error() {
    for mut driver in [FakeDriver::split(8), FakeDriver::packed(8)] {
        for (flags, errors) in [(0, 1), (1, 1), (0, 2)] {
            driver.set_flags(flags);
            driver.send(&Frame::new(64, 1));
            assert_eq!(driver.dequeue(1).len(), 1);
            driver.used();
            assert_eq!(driver.counted(|c| &c.guest_notifications_error), errors);
        }
        // Nothing used, nothing to tell.
        assert_eq!(driver.dequeue(1), []);
        assert_eq!(driver.counted(|c| &c.guest_notifications_error), 2);
    }
}

#[test]
fn the_first_call_after_a_start_is_made_whatever_the_event_index() {
    for (mut driver, start) in with_event_index() {
        driver.call_after(start + 200);
        assert_eq!(calls_for(&mut driver, 1), 1);
        assert_eq!(calls_for(&mut driver, 1), 0);
        driver.stop();
        assert_eq!(calls_for(&mut driver, 1), 1);
        assert_eq!(calls_for(&mut driver, 1), 0);
    }
}

#[test]
fn a_call_is_made_when_the_event_index_is_used() {
    for (mut driver, start) in with_event_index() {
        calls_for(&mut driver, 1);
        driver.call_after(start + 5); // when the sixth chain is used
        assert_eq!(calls_for(&mut driver, 4), 0);
        assert_eq!(calls_for(&mut driver, 1), 1);
        assert_eq!(calls_for(&mut driver, 10), 0);
    }
}

#[test]
fn an_event_index_in_the_middle_of_a_burst_calls_once() {
    for (mut driver, start) in with_event_index() {
        calls_for(&mut driver, 1);
        driver.call_after(start + 20);
        assert_eq!(calls_for(&mut driver, 100), 1);
    }
}

#[test]
fn a_driver_that_polled_is_called_only_for_what_came_after() {
    for (mut driver, start) in with_event_index() {
        calls_for(&mut driver, 1);
        driver.call_after(start + 3);
        assert_eq!(calls_for(&mut driver, 10), 1);
        // It asks for a place that is behind: everything there was published before.
        driver.call_after(start + 8);
        assert_eq!(calls_for(&mut driver, 10), 0);
    }
}
