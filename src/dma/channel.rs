//! An engine that queues of any number of ports share.
//!
//! The channel notes every copy that it gives to its engine, and believes each report once: an engine
//! that tells of anything else is dead. So is one that halts too often, or stands still. Copies that
//! a dead engine did not report are done by the CPU, as soon as it is sure that the engine does not
//! write any more.

mod copies;
mod mappings;
mod registry;

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::flight::Board;
use super::{Addr, Engine, Halted, Health, Transfer};
use crate::log::PORT;

use copies::Copies;
use mappings::Mappings;
use registry::Entry;
pub use registry::{OpenError, open};

/// An engine may halt so often...
const RECOVERIES: usize = 3;
/// ...in this time.
const RECOVERY_PERIOD_MS: u64 = 10_000;
/// How often a burst looks for the lock of an engine before it does without.
const SPINS: u32 = 2000;

struct Inner {
    /// Dropped by the channel, unless it may still use its own memory.
    engine: ManuallyDrop<Box<dyn Engine>>,
    copies: Copies,
    users: Vec<Option<Arc<Board>>>,
    /// Milliseconds since the beginning, as the watchdog told it last: bursts do not ask for it.
    clock: u64,
    /// The last ones.
    recoveries: [Option<u64>; RECOVERIES],
    /// Reports when the watchdog looked last, and since when there were no others.
    watched: Option<(u64, Instant)>,
    /// When the engine was told of its copies again, and reports until then.
    nudged: Option<(u64, Instant)>,
    /// It is dead.
    halted: Option<Halted>,
}

/// The time of [`Instant`], whose `now` can panic, as far as a compiler sees: not for bursts.
fn uptime_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: room for the answer. This clock is there, or the answer stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let ms = now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000;
    u64::try_from(ms).unwrap_or(0)
}

impl Inner {
    fn boards(&self) -> impl Iterator<Item = &Board> {
        self.users.iter().flatten().map(|board| &**board)
    }

    /// When it was told of its copies again, if it has reported none since.
    fn nudged(&self) -> Option<Instant> {
        let (reported, when) = self.nudged?;
        (reported == self.copies.reported).then_some(when)
    }

    /// Ends the engine for good.
    #[cold]
    #[inline(never)]
    fn die(&mut self, name: &str, why: &str) -> Halted {
        if let Some(halted) = self.halted {
            return halted;
        }
        let halted = self.engine.halt();
        self.halted = Some(halted);
        let left = self.copies.outstanding();
        let rest = match halted {
            Halted::Proven => "the CPU copies from now on",
            Halted::Unproven => "it may still write, so what it was given stays as it is",
        };
        log::error!(target: PORT, "engine {name} is dead: {why}; {left} copies were under way; {rest}");
        if halted == Halted::Proven {
            let users = &self.users;
            self.copies.end_all(|copy| {
                if let Some(Some(board)) = users.get(copy.user as usize) {
                    board.give_up(copy.place);
                }
            });
        }
        self.boards().for_each(Board::died);
        halted
    }

    /// Polls the engine; why it must die, if so.
    fn poll(&mut self) -> Option<&'static str> {
        let Self {
            engine,
            copies,
            users,
            ..
        } = self;
        let mut lies = false;
        let health = engine.poll(&mut |tag, outcome| match copies.take(tag) {
            Some(copy) => {
                if let Some(Some(board)) = users.get(copy.user as usize) {
                    board.done(copy.place, outcome);
                }
            }
            None => lies = true,
        });
        if lies {
            return Some("it reports copies that it does not have");
        }
        match health {
            Health::Running => None,
            Health::Halted => self.recover_now(),
            Health::Dead => Some("it does not answer, or makes no sense"),
        }
    }

    #[cold]
    #[inline(never)]
    fn recover_now(&mut self) -> Option<&'static str> {
        self.recover(uptime_ms())
    }

    /// `now` in milliseconds.
    fn recover(&mut self, now: u64) -> Option<&'static str> {
        let recent = |then: u64| now.saturating_sub(then) < RECOVERY_PERIOD_MS;
        let place = self
            .recoveries
            .iter_mut()
            .find(|then| !then.is_some_and(recent));
        let Some(place) = place else {
            return Some("it halts again and again");
        };
        *place = Some(now);
        if !self.engine.recover() {
            return Some("it halted and did not go on");
        }
        self.boards().for_each(Board::recovered);
        None
    }
}

/// An engine, its lock, its users and its health.
pub struct Channel {
    name: String,
    dead: AtomicBool,
    born: Instant,
    max_copy: u32,
    patience: Duration,
    mappings: Mappings,
    inner: Mutex<Inner>,
    /// Last, so that nobody opens the engine again before it is gone.
    entry: Option<Entry>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Channel({})", self.name)
    }
}

impl Channel {
    /// A channel of that name for an engine that has nothing to do.
    pub fn new(name: &str, mut engine: Box<dyn Engine>) -> Self {
        Self {
            name: name.to_owned(),
            dead: AtomicBool::new(false),
            born: Instant::now(),
            max_copy: engine.max_copy().max(1),
            patience: engine.patience(),
            mappings: Mappings::new(engine.reach()),
            inner: Mutex::new(Inner {
                copies: Copies::new(engine.depth()),
                engine: ManuallyDrop::new(engine),
                users: Vec::new(),
                clock: 0,
                recoveries: [None; RECOVERIES],
                watched: None,
                nudged: None,
                halted: None,
            }),
            entry: None,
        }
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that no other channel has at the same time.
    pub fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether the engine will not be used any more.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The longest copy in bytes.
    #[inline]
    pub fn max_copy(&self) -> u32 {
        self.max_copy
    }

    /// How long the engine may have copies and report none.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// How many copies the engine can have.
    pub fn depth(&self) -> usize {
        self.lock().copies.depth()
    }

    /// For control threads. A panic in an engine leaves the notes of its copies whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For bursts and ticks: never waits long. An engine that has panicked is not used any more.
    #[inline]
    fn lock_soon(&self, spins: u32) -> Option<MutexGuard<'_, Inner>> {
        for _ in 0..spins {
            match self.inner.try_lock() {
                Ok(inner) => return Some(inner),
                Err(TryLockError::Poisoned(inner)) => {
                    self.bury_after_panic(inner.into_inner());
                    return None;
                }
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// Nobody else will: what the engine has would wait until a queue is emptied.
    #[cold]
    #[inline(never)]
    fn bury_after_panic(&self, mut inner: MutexGuard<'_, Inner>) {
        self.bury(&mut inner, "its driver has panicked");
    }

    /// Makes a flight known to the engine; the number names it in [`Burst::stage`].
    pub fn attach(&self, board: &Arc<Board>) -> u32 {
        let mut inner = self.lock();
        let free = inner.users.iter().position(Option::is_none);
        let number = free.unwrap_or(inner.users.len());
        if free.is_none() {
            inner.users.push(None);
        }
        if let Some(place) = inner.users.get_mut(number) {
            *place = Some(Arc::clone(board));
        }
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Forgets a flight; one of which the engine still has copies keeps its number.
    pub fn detach(&self, user: u32) {
        let mut inner = self.lock();
        if inner.copies.has(user) {
            return;
        }
        if let Some(place) = inner.users.get_mut(user as usize) {
            *place = None;
        }
    }

    /// Begins to hand over the copies of a burst of flight `user`. `None` when the engine is dead, or
    /// others have it.
    #[inline]
    pub fn burst(&self, user: u32) -> Option<Burst<'_>> {
        if self.is_dead() {
            return None;
        }
        let inner = self.lock_soon(SPINS)?;
        if inner.halted.is_some() {
            return None;
        }
        let room = inner.engine.room().min(inner.copies.left);
        Some(Burst {
            inner,
            user,
            room,
            staged: false,
        })
    }

    /// Polls the engine once, unless somebody else uses it just now.
    #[inline]
    pub fn reap(&self) {
        if !self.is_dead()
            && let Some(inner) = self.lock_soon(1)
        {
            self.poll(inner);
        }
    }

    /// As [`reap`](Self::reap), but waits for others. Not for lcores.
    pub fn reap_now(&self) {
        if !self.is_dead() {
            self.poll(self.lock());
        }
    }

    #[inline]
    fn poll(&self, mut inner: MutexGuard<'_, Inner>) {
        if inner.halted.is_none()
            && inner.copies.outstanding() != 0
            && let Some(why) = inner.poll()
        {
            self.bury(&mut inner, why);
        }
    }

    #[cold]
    fn bury(&self, inner: &mut Inner, why: &str) -> Halted {
        self.dead.store(true, Ordering::Relaxed);
        inner.die(&self.name, why)
    }

    /// Ends the engine. With [`Halted::Proven`] all its copies have come back to their flights.
    pub fn kill(&self, why: &str) -> Halted {
        let mut inner = self.lock();
        self.bury(&mut inner, why)
    }

    /// The watchdog: an engine that has copies and reports none for half of its patience is told of
    /// them again, and is dead when it reports none for the other half. To be called every few
    /// milliseconds; when it is called late, no engine dies of that.
    pub fn watch(&self, now: Instant) {
        if self.is_dead() {
            return;
        }
        let Some(mut inner) = self.lock_soon(1) else {
            return;
        };
        let age = now.saturating_duration_since(self.born);
        inner.clock = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        if inner.copies.outstanding() == 0 {
            inner.watched = None;
            return;
        }
        let reported = inner.copies.reported;
        let since = match inner.watched {
            Some((seen, since)) if seen == reported => since,
            _ => {
                inner.watched = Some((reported, now));
                return;
            }
        };
        let still = now.saturating_duration_since(since);
        let half = self.patience / 2;
        match inner.nudged() {
            None if still >= half => self.wake(&mut inner, now),
            Some(nudged) if still >= 2 * half && now.saturating_duration_since(nudged) >= half => {
                self.bury(&mut inner, "it finishes no copy any more");
            }
            _ => {}
        }
    }

    /// Whether the engine has copies of flight `user`.
    pub fn has_copies_of(&self, user: u32) -> bool {
        self.lock().copies.has(user)
    }

    /// Has the engine look whether it missed a doorbell, or stopped, unless somebody has just done so:
    /// to an engine that still reports nothing, a second look is the proof that it has stopped.
    pub fn nudge(&self, now: Instant) {
        let mut inner = self.lock();
        let just = |nudged| now.saturating_duration_since(nudged) < self.patience / 2;
        let has_copies = inner.copies.outstanding() != 0;
        if inner.halted.is_none() && has_copies && !inner.nudged().is_some_and(just) {
            self.wake(&mut inner, now);
        }
    }

    fn wake(&self, inner: &mut Inner, now: Instant) {
        inner.nudged = Some((inner.copies.reported, now));
        let why = match inner.engine.nudge() {
            Health::Running => None,
            Health::Halted => inner.recover_now(),
            Health::Dead => Some("it does not answer, or makes no sense"),
        };
        if let Some(why) = why {
            self.bury(inner, why);
        }
    }
}

/// The copies of a burst, on their way to the engine; they start when this is dropped.
pub struct Burst<'c> {
    inner: MutexGuard<'c, Inner>,
    user: u32,
    room: usize,
    staged: bool,
}

impl Burst<'_> {
    /// Copies that can be staged now.
    #[inline]
    pub fn room(&self) -> usize {
        self.room
    }

    /// The copy of `len` bytes as the engine knows it; `None` when it cannot reach one of both.
    #[inline]
    pub fn transfer(&self, from: *const u8, to: *const u8, len: u32) -> Option<Transfer> {
        Some(Transfer {
            from: self.reach(from, len)?,
            to: self.reach(to, len)?,
            len,
        })
    }

    #[inline]
    fn reach(&self, at: *const u8, len: u32) -> Option<Addr> {
        self.inner.engine.translate(at, len)
    }

    /// Hands a copy to the engine, for the slot at `place`. There was [`room`](Self::room).
    ///
    /// # Safety
    ///
    /// As for [`Engine::stage`]: `copy` is from [`transfer`](Self::transfer), of bytes that stay until
    /// the slot has landed, or for ever when it never does.
    #[inline]
    pub unsafe fn stage(&mut self, copy: Transfer, place: u16) {
        let Some(tag) = self.inner.copies.add(self.user, place) else {
            return;
        };
        // SAFETY: the caller's promise; there is room in the engine as long as `room` is not 0.
        unsafe { self.inner.engine.stage(copy, tag) };
        self.room = self.room.saturating_sub(1);
        self.staged = true;
    }
}

impl Drop for Burst<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.staged {
            self.inner.engine.submit();
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.is_dead() {
            registry::note_death(&self.name);
        }
        let inner = self.inner.get_mut();
        let inner = inner.unwrap_or_else(PoisonError::into_inner);
        let halted = match inner.halted {
            Some(halted) => halted,
            None => inner.engine.halt(),
        };
        if halted == Halted::Proven || inner.copies.outstanding() == 0 {
            // SAFETY: once, and the channel is not used after this.
            unsafe { ManuallyDrop::drop(&mut inner.engine) };
        }
    }
}

#[cfg(test)]
mod tests;
