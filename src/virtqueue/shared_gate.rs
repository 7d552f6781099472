//! The hand-over of a running object between the control side and several lcores.
//!
//! As [`Gate`](super::Gate), but for objects that more than one lcore works on, one at a time: whoever
//! polls a queue, and whoever looks after it meanwhile. It costs each of them a locked instruction.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::gate::{ALL, Allow};

/// The hand-over of a `T` between control threads and lcores. A panic inside closes it for good.
#[derive(Debug)]
pub struct SharedGate<T> {
    /// Written by the control side only, under `allowed`.
    open: AtomicBool,
    slot: Mutex<Option<T>>,
    allowed: Mutex<u8>,
}

impl<T> Default for SharedGate<T> {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(false),
            slot: Mutex::new(None),
            allowed: Mutex::new(Allow::Queue as u8),
        }
    }
}

impl<T> SharedGate<T> {
    /// The lcore's side: runs `work` on the object when the gate is open. `None` when it is not, or
    /// another lcore does not leave within `looks` looks.
    #[inline]
    pub fn enter<R>(&self, looks: u32, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        for _ in 0..looks {
            if !self.open.load(Ordering::Relaxed) {
                return None;
            }
            match self.slot.try_lock() {
                // Once more: it may have been closed, and emptied, in between. The lock makes that
                // visible.
                Ok(mut slot) if self.open.load(Ordering::Relaxed) => {
                    return slot.as_mut().map(work);
                }
                Ok(_) | Err(TryLockError::Poisoned(_)) => return None,
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    fn allowed(&self) -> MutexGuard<'_, u8> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the slot while no lcore is inside; opens again when all is allowed.
    fn exclusive<R>(&self, work: impl FnOnce(&mut Option<T>, &mut u8) -> R) -> R {
        let mut allowed = self.allowed();
        self.open.store(false, Ordering::Relaxed);
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut slot, &mut allowed);
        let open = *allowed == ALL && slot.is_some();
        self.open.store(open, Ordering::Relaxed);
        result
    }

    /// Puts an object in; the one that was there before comes back.
    pub fn install(&self, object: T) -> Option<T> {
        self.exclusive(|slot, _| slot.replace(object))
    }

    /// Takes the object out. After this no lcore touches it.
    pub fn take(&self) -> Option<T> {
        self.exclusive(|slot, _| slot.take())
    }

    /// Runs `work` on the object and takes it out. After this no lcore touches it.
    pub fn take_after(&self, work: impl FnOnce(&mut T)) -> Option<T> {
        self.exclusive(|slot, _| {
            slot.as_mut().map(work);
            slot.take()
        })
    }

    /// Runs `work` on the object while no lcore is inside.
    pub fn with<R>(&self, work: impl FnOnce(Option<&mut T>) -> R) -> R {
        self.exclusive(|slot, _| work(slot.as_mut()))
    }

    /// Says that one of the conditions holds.
    pub fn allow(&self, what: Allow) {
        self.exclusive(|_, allowed| *allowed |= what as u8);
    }

    /// Says that one of the conditions does not hold any more, and runs `work` on the object; after
    /// this no lcore is inside.
    pub fn forbid(&self, what: Allow, work: impl FnOnce(&mut T)) {
        self.exclusive(|slot, allowed| {
            *allowed &= !(what as u8);
            slot.as_mut().map(work)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn opened(value: u64) -> SharedGate<u64> {
        let gate = SharedGate::default();
        gate.allow(Allow::Started);
        gate.allow(Allow::Attached);
        gate.install(value);
        gate
    }

    #[test]
    fn it_opens_only_when_everything_is_allowed() {
        let gate = SharedGate::default();
        gate.install(7);
        gate.allow(Allow::Started);
        assert_eq!(gate.enter(1, |value| *value), None);
        gate.allow(Allow::Attached);
        assert_eq!(gate.enter(1, |value| *value), Some(7));
        let mut seen = 0;
        gate.forbid(Allow::Queue, |value| seen = *value);
        assert_eq!((gate.enter(1, |value| *value), seen), (None, 7));
        assert_eq!(gate.take(), Some(7));
    }

    #[test]
    fn who_finds_another_inside_gives_up_after_its_looks() {
        let gate = opened(1);
        let inner = gate.enter(1, |_| gate.enter(10, |value| *value));
        assert_eq!(inner, Some(None));
        assert_eq!(gate.enter(1, |value| *value), Some(1));
    }

    #[test]
    fn a_panic_inside_closes_it_for_good() {
        let gate = opened(1);
        let work = std::panic::AssertUnwindSafe(|| gate.enter(1, |_| panic!("broken burst")));
        assert!(std::panic::catch_unwind(work).is_err());
        gate.install(2);
        assert_eq!(gate.enter(1, |value| *value), None);
        assert_eq!(gate.take(), Some(2));
    }

    #[test]
    fn nobody_sees_what_the_control_side_is_changing() {
        let gate = Arc::new(opened(0));
        let entered = Arc::new(AtomicU64::new(0));
        let end = Arc::new(AtomicBool::new(false));
        let lcores: Vec<_> = (0..2)
            .map(|_| {
                let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
                let end = Arc::clone(&end);
                std::thread::spawn(move || {
                    while !end.load(Ordering::Relaxed) {
                        let seen = gate.enter(100, |value| {
                            assert_eq!(*value % 2, 0, "seen in the middle of a change");
                            *value += 2;
                        });
                        if seen.is_some() {
                            entered.fetch_add(2, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..500 {
            gate.with(|value| {
                if let Some(value) = value {
                    *value += 1;
                    std::hint::spin_loop();
                    *value -= 1;
                }
            });
            std::thread::yield_now();
        }
        while entered.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        end.store(true, Ordering::Relaxed);
        for lcore in lcores {
            assert!(lcore.join().is_ok());
        }
        assert_eq!(gate.take(), Some(entered.load(Ordering::Relaxed)));
    }
}
