//! No wake-up is lost, whichever side sleeps: who publishes fences before it reads the wish, and who
//! wishes fences before it looks once more.
//!
//! The orders are those of the rings; `PUBLISHER` and `SLEEPER` tell which side fences, so that the
//! model is seen to fail without either.
#![forbid(unsafe_code)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, Ordering, fence};

use crate::virtqueue::split::event_passed;
use crate::virtqueue::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
};

/// Where one side says when it wants to be woken.
trait Wish: Send + Sync + 'static {
    /// Nothing is wanted.
    fn none() -> Self;
    /// The side that is about to sleep: wake me when entry 0 is published.
    fn ask(&self);
    /// The other side, after it published up to `new`.
    fn asks_for(&self, old: u16, new: u16) -> bool;
}

/// Flags of a split ring.
struct Flags(AtomicU16);

impl Wish for Flags {
    fn none() -> Self {
        Self(AtomicU16::new(VRING_AVAIL_F_NO_INTERRUPT))
    }

    fn ask(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn asks_for(&self, _: u16, _: u16) -> bool {
        self.0.load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }
}

/// The event index of a split ring.
struct Event(AtomicU16);

impl Wish for Event {
    fn none() -> Self {
        Self(AtomicU16::new(0x8000))
    }

    fn ask(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn asks_for(&self, old: u16, new: u16) -> bool {
        event_passed(self.0.load(Ordering::Relaxed), new, old)
    }
}

/// The event suppression structure of a packed ring.
struct Suppression {
    off_wrap: AtomicU16,
    flags: AtomicU16,
}

impl Wish for Suppression {
    fn none() -> Self {
        Self {
            off_wrap: AtomicU16::new(0x8000),
            flags: AtomicU16::new(VRING_PACKED_EVENT_FLAG_DISABLE),
        }
    }

    fn ask(&self) {
        self.off_wrap.store(0, Ordering::Relaxed);
        self.flags
            .store(VRING_PACKED_EVENT_FLAG_DESC, Ordering::Release);
    }

    fn asks_for(&self, old: u16, new: u16) -> bool {
        self.flags.load(Ordering::Acquire) == VRING_PACKED_EVENT_FLAG_DESC
            && event_passed(self.off_wrap.load(Ordering::Relaxed), new, old)
    }
}

/// One side publishes two entries, each in a burst; the other is about to sleep.
fn nobody_sleeps_over_an_entry<W: Wish, const PUBLISHER: bool, const SLEEPER: bool>() {
    loom::model(|| {
        let shared = Arc::new((AtomicU16::new(0), W::none()));
        let publisher = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                let (published, wish) = &*shared;
                let mut woken = false;
                for old in 0..2 {
                    published.store(old + 1, Ordering::Release);
                    if PUBLISHER {
                        fence(Ordering::SeqCst);
                    }
                    woken |= wish.asks_for(old, old + 1);
                }
                woken
            })
        };
        let (published, wish) = &*shared;
        wish.ask();
        if SLEEPER {
            fence(Ordering::SeqCst);
        }
        let stays_awake = published.load(Ordering::Acquire) != 0;
        let woken = publisher.join().unwrap();
        assert!(woken || stays_awake, "asleep, with entries to take");
    });
}

#[test]
fn no_wake_up_is_lost_with_flags() {
    nobody_sleeps_over_an_entry::<Flags, true, true>();
}

#[test]
fn no_wake_up_is_lost_with_an_event_index() {
    nobody_sleeps_over_an_entry::<Event, true, true>();
}

#[test]
fn no_wake_up_is_lost_on_a_packed_ring() {
    nobody_sleeps_over_an_entry::<Suppression, true, true>();
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_after_publishing_the_model_fails_with_flags() {
    nobody_sleeps_over_an_entry::<Flags, false, true>();
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_after_publishing_the_model_fails_with_an_event_index() {
    nobody_sleeps_over_an_entry::<Event, false, true>();
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_after_publishing_the_model_fails_on_a_packed_ring() {
    nobody_sleeps_over_an_entry::<Suppression, false, true>();
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_sleepers_fence_the_model_fails() {
    nobody_sleeps_over_an_entry::<Suppression, true, false>();
}
