//! Whose turn it is when several frontends share a socket, and the numbers of connections.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bell::{Bell, LateBell};

/// How many connections a process can have.
const CONNECTIONS: usize = 1024;

static TAKEN: Mutex<[bool; CONNECTIONS]> = Mutex::new([false; CONNECTIONS]);

/// The handle of a connection: the lowest number that is free in the process, until dropped.
#[derive(Debug)]
pub(super) struct Vid(usize);

impl Vid {
    /// A free number; `None` when all are taken.
    pub(super) fn take() -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.iter().position(|taken| !taken)?;
        if let Some(slot) = taken.get_mut(free) {
            *slot = true;
        }
        Some(Self(free))
    }

    pub(super) fn get(&self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }
}

impl Drop for Vid {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = taken.get_mut(self.0) {
            *slot = false;
        }
    }
}

/// Which connection of a port is served. The others may negotiate, and wait.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holder: Option<i32>,
    waiting: Vec<(i32, Arc<Bell>)>,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn for connection `who`, if nobody else has it; otherwise `bell` rings when it
    /// is free again, if there can be one.
    pub(super) fn take(&self, who: i32, bell: &LateBell) -> bool {
        let mut state = self.state();
        if *state.holder.get_or_insert(who) == who {
            state.waiting.retain(|(waiter, _)| *waiter != who);
            return true;
        }
        if !state.waiting.iter().any(|(waiter, _)| *waiter == who)
            && let Ok(bell) = bell.get()
        {
            state.waiting.push((who, Arc::clone(bell)));
        }
        false
    }

    /// The connection that is served, if any.
    pub(super) fn holder(&self) -> Option<i32> {
        self.state().holder
    }

    /// Connection `who` neither has nor wants the turn any more.
    pub(super) fn leave(&self, who: i32) {
        let mut state = self.state();
        state.waiting.retain(|(waiter, _)| *waiter != who);
        if state.holder == Some(who) {
            state.holder = None;
            // All of them: the first may be stuck in half a message.
            for (_, bell) in &state.waiting {
                bell.ring();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turn_goes_to_the_next_when_its_holder_leaves() {
        let (turn, late) = (Turn::default(), LateBell::default());
        assert!(turn.take(1, &late));
        assert!(!turn.take(2, &late));
        assert!(turn.take(1, &late));
        let bell = late.get().unwrap();

        turn.leave(1);

        let rang = bell.wait(None, Some(std::time::Duration::ZERO)).unwrap();
        assert!(rang);
        assert!(turn.take(2, &late));
        assert!(!turn.take(1, &late));
    }

    #[test]
    fn a_number_is_not_given_twice() {
        let (a, b) = (Vid::take().unwrap(), Vid::take().unwrap());
        assert_ne!(a.get(), b.get());
    }
}
