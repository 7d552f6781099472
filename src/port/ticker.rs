//! A thread that looks after packets under way when no burst does.
//!
//! It ticks every millisecond while there are any, and for a little while after; then it sleeps, and
//! the next burst that leaves packets under way wakes it.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;
use crate::dpdk::thread::{self, ControlThread};
use crate::guard;
use crate::log::PORT;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(1);
/// Looks without anything to do, after which the thread sleeps.
const IDLE_TICKS: u32 = 100;

/// A look; whether there is anything under way. `None`: there is nothing to look at any more.
pub(super) type Look = Box<dyn Fn() -> Option<bool> + Send>;

#[derive(Default)]
pub(super) struct Ticker {
    state: Arc<State>,
    thread: Mutex<Option<ControlThread>>,
}

#[derive(Default)]
struct State {
    asleep: AtomicBool,
    ending: Mutex<bool>,
    changed: Condvar,
}

impl Ticker {
    /// Begins to look; once.
    pub(super) fn start(&self, look: Look) -> io::Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            *lock(&self.state.ending) = false;
            let state = Arc::clone(&self.state);
            let body = Box::new(move || guard::catch((), || state.run(&look)));
            *thread = Some(thread::spawn(c"vhost-dma", body)?);
        }
        Ok(())
    }

    /// Something is under way. What tells [`Look`] so was written before.
    #[inline]
    pub(super) fn wake(&self) {
        // With the fence in `sleep`: either the thread sees what is under way, or this that it sleeps.
        fence(Ordering::SeqCst);
        if self.state.asleep.load(Ordering::Relaxed) {
            self.state.wake();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        let Some(thread) = lock(&self.thread).take() else {
            return;
        };
        *lock(&self.state.ending) = true;
        self.state.changed.notify_all();
        if let Err(error) = thread.join() {
            log::error!(target: PORT, "the ticker was not joined: {error}");
        }
    }
}

impl State {
    #[cold]
    #[inline(never)]
    fn wake(&self) {
        let ending = lock(&self.ending);
        self.asleep.store(false, Ordering::Relaxed);
        drop(ending);
        self.changed.notify_all();
    }

    fn run(&self, look: &Look) {
        let mut idle = 0;
        loop {
            let Some(busy) = look() else { return };
            idle = if busy { 0 } else { idle + 1 };
            let ended = if idle < IDLE_TICKS {
                self.rest()
            } else {
                idle = 0;
                self.sleep(look)
            };
            if ended {
                return;
            }
        }
    }

    /// Waits for a tick; whether this is the end.
    fn rest(&self) -> bool {
        let ending = lock(&self.ending);
        let waited = self
            .changed
            .wait_timeout_while(ending, TICK, |ending| !*ending);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sleeps until something is under way; whether this is the end.
    fn sleep(&self, look: &Look) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if look() != Some(false) {
            self.asleep.store(false, Ordering::Relaxed);
        }
        let ending = lock(&self.ending);
        let asleep = |ending: &mut bool| !*ending && self.asleep.load(Ordering::Relaxed);
        let ending = self.changed.wait_while(ending, asleep);
        *ending.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Runs the ticker's body in a thread of the test.
    fn run(state: &Arc<State>, look: Look) -> std::thread::JoinHandle<()> {
        let state = Arc::clone(state);
        std::thread::spawn(move || state.run(&look))
    }

    #[test]
    fn it_sleeps_when_nothing_is_under_way_and_is_woken() {
        let ticker = Ticker::default();
        let (busy, looks) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let look = {
            let (busy, looks) = (Arc::clone(&busy), Arc::clone(&looks));
            Box::new(move || {
                looks.fetch_add(1, Ordering::Relaxed);
                Some(busy.load(Ordering::Relaxed))
            })
        };
        let thread = run(&ticker.state, look);
        for _ in 0..3 {
            while !ticker.state.asleep.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            busy.store(true, Ordering::Relaxed);
            let before = looks.load(Ordering::Relaxed);
            ticker.wake();
            while looks.load(Ordering::Relaxed) < before + 5 {
                std::thread::yield_now();
            }
            busy.store(false, Ordering::Relaxed);
        }
        *lock(&ticker.state.ending) = true;
        ticker.state.changed.notify_all();
        assert!(thread.join().is_ok());
    }

    #[test]
    fn it_ends_with_what_it_looks_at() {
        let ticker = Ticker::default();
        let thread = run(&ticker.state, Box::new(|| None));
        assert!(thread.join().is_ok());
    }
}
