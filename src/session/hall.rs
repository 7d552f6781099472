//! Where the sockets of all ports that listen are waited at: one thread for the whole process, as long
//! as there is such a port and a moment longer.
//!
//! It lets connections in and buries those that are over. All else is on the connections' own threads,
//! so nothing here waits for a peer. Ports come and go without it: only one that goes while the thread is
//! at its door has to wait.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::bell::Bell;
use super::spawn::Spawn;
use super::wire::retry;
use crate::log::CONFIG;

/// The hall that is open, if any.
static HALL: Mutex<Option<Arc<Hall>>> = Mutex::new(None);

/// How long to rest when the system does not let us wait.
const REST: Duration = Duration::from_millis(100);

/// How long the thread stays when the last port has gone: an application that opens another one, or the
/// same one again, need not wait for a new thread.
const STAY: Duration = Duration::from_secs(1);

/// What epoll calls the bell; doors have higher numbers.
const BELL: u64 = 0;

/// A socket that is listened at. All calls but that for the socket come from the hall's thread.
pub(super) trait Door: Send + Sync {
    /// What those that want in knock at.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Whether anybody is to be let in.
    fn admits(&self) -> bool;

    /// After which time to look again although nothing happened.
    fn pause(&self) -> Option<Duration>;

    /// Lets in who waits, if somebody is `at_the_door`, and looks after what else there is to do.
    fn serve(&self, at_the_door: bool);
}

struct Hall {
    epoll: OwnedFd,
    bell: Bell,
    state: Mutex<State>,
    /// Somebody may wait until the thread has left a door.
    left: Condvar,
}

#[derive(Default)]
struct State {
    doors: BTreeMap<u64, Kept>,
    /// The number of the last door; none is given again.
    serial: u64,
    seats: usize,
    /// When the last seat was given up.
    empty_since: Option<Instant>,
    /// The thread will look at all this again without being woken.
    looks_again: bool,
    /// Doors to look after although nobody knocked.
    errands: Vec<u64>,
    /// Where the thread is.
    at: Option<u64>,
}

struct Kept {
    door: Arc<dyn Door>,
    /// Knocks are heard.
    heard: bool,
    /// When to look again.
    again: Option<Instant>,
}

/// A port's part in the hall; its door is closed when this is dropped.
pub(super) struct Seat {
    hall: Arc<Hall>,
    number: u64,
}

/// Sends the hall's thread to a door.
pub(super) struct Usher {
    hall: Arc<Hall>,
    number: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is right at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    /// A seat in the hall, which is opened for the first one.
    pub(super) fn take(spawn: &dyn Spawn) -> io::Result<Self> {
        let mut open = lock(&HALL);
        let hall = match &*open {
            Some(hall) => Arc::clone(hall),
            None => {
                let hall = Arc::new(Hall::new()?);
                let running = Arc::clone(&hall);
                // Nobody waits for its end.
                drop(spawn.spawn("vhost-listen", Box::new(move || running.run()))?);
                *open = Some(Arc::clone(&hall));
                hall
            }
        };
        let number = {
            let mut state = lock(&hall.state);
            state.seats += 1;
            state.empty_since = None;
            state.serial += 1;
            state.serial
        };
        Ok(Self { hall, number })
    }

    pub(super) fn usher(&self) -> Usher {
        Usher {
            hall: Arc::clone(&self.hall),
            number: self.number,
        }
    }

    /// From now on `door` is looked after.
    pub(super) fn open(&self, door: Arc<dyn Door>) -> io::Result<()> {
        let mut state = lock(&self.hall.state);
        let (data, flags) = (
            epoll::EventData::new_u64(self.number),
            epoll::EventFlags::IN,
        );
        epoll::add(&self.hall.epoll, door.socket(), data, flags)?;
        let kept = Kept {
            door,
            heard: true,
            again: None,
        };
        state.doors.insert(self.number, kept);
        Ok(())
    }
}

impl Drop for Seat {
    /// When this returns, the hall's thread does not touch the door any more, and has dropped it.
    fn drop(&mut self) {
        let hall = &self.hall;
        let mut state = lock(&hall.state);
        let closed = state.doors.remove(&self.number);
        if let Some(closed) = &closed {
            // Fails when it is not there.
            let _ = epoll::delete(&hall.epoll, closed.door.socket());
        }
        state.seats -= 1;
        let mut wake = false;
        if state.seats == 0 {
            state.empty_since = Some(Instant::now());
            wake = !mem::replace(&mut state.looks_again, true);
        }
        let there = |state: &mut State| state.at == Some(self.number);
        drop(hall.left.wait_while(state, there));
        if wake {
            hall.bell.ring();
        }
        drop(closed);
    }
}

impl Usher {
    /// Has the door looked after, if it is open.
    pub(super) fn send(&self) {
        let mut state = lock(&self.hall.state);
        if state.doors.contains_key(&self.number) {
            state.errands.push(self.number);
            drop(state);
            self.hall.bell.ring();
        }
    }
}

/// The thread is at a door, or was when it panicked.
struct Visit<'h>(&'h Hall);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).at = None;
        self.0.left.notify_all();
    }
}

/// After a panic the next port gets another thread.
struct Closing<'h>(&'h Arc<Hall>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close(&mut lock(&HALL));
    }
}

impl Hall {
    fn new() -> io::Result<Self> {
        let (epoll, bell) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, Bell::new()?);
        let data = epoll::EventData::new_u64(BELL);
        epoll::add(&epoll, &bell, data, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            bell,
            state: Mutex::default(),
            left: Condvar::new(),
        })
    }

    /// The next port opens another hall.
    fn close(self: &Arc<Self>, open: &mut Option<Arc<Self>>) {
        open.take_if(|hall| Arc::ptr_eq(hall, self));
    }

    fn run(self: &Arc<Self>) {
        let _closing = Closing(self);
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(BELL),
        };
        let mut events = [none; 16];
        let mut failed = false;
        while let Some(rest) = self.rest() {
            let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
            match retry(|| epoll::wait(&self.epoll, &mut events, rest.as_ref())) {
                Ok(count) => {
                    failed = false;
                    self.look_after(events.iter().take(count));
                }
                Err(error) => {
                    if !mem::replace(&mut failed, true) {
                        log::error!(target: CONFIG, "no connection is accepted: epoll: {error}");
                    }
                    thread::sleep(REST);
                }
            }
        }
    }

    /// How long to wait, `Some(None)` for whatever it takes; `None` when nobody is left to wait for.
    fn rest(self: &Arc<Self>) -> Option<Option<Duration>> {
        // Ports that come now wait here, and find this hall or none.
        let mut open = lock(&HALL);
        let mut state = lock(&self.state);
        let now = Instant::now();
        let until = match state.empty_since {
            Some(since) => Some(since + STAY),
            None => state.doors.values().filter_map(|kept| kept.again).min(),
        };
        if state.empty_since.is_some() && until <= Some(now) {
            self.close(&mut open);
            return None;
        }
        state.looks_again = until.is_some();
        Some(until.map(|until| until.saturating_duration_since(now)))
    }

    fn look_after<'e>(&self, events: impl Iterator<Item = &'e epoll::Event>) {
        for event in events {
            let data = event.data;
            match data.u64() {
                BELL => self.bell.silence(),
                number => self.visit(number, true),
            }
        }
        let errands = {
            let mut state = lock(&self.state);
            let now = Some(Instant::now());
            let due = state
                .doors
                .iter()
                .filter(|(_, kept)| kept.again.is_some() && kept.again <= now);
            let mut errands: Vec<u64> = due.map(|(number, _)| *number).collect();
            errands.append(&mut state.errands);
            errands
        };
        for number in errands {
            self.visit(number, false);
        }
    }

    fn visit(&self, number: u64, knocked: bool) {
        let door = {
            let mut state = lock(&self.state);
            // It may have been closed a moment ago.
            let Some(kept) = state.doors.get(&number) else {
                return;
            };
            let door = Arc::clone(&kept.door);
            state.at = Some(number);
            door
        };
        // Dropped in the other order: whoever waits for us has the last hold on the door.
        let _visit = Visit(self);
        let door = door;
        door.serve(knocked);
        let (admits, pause) = (door.admits(), door.pause());
        let mut state = lock(&self.state);
        let Some(kept) = state.doors.get_mut(&number) else {
            return;
        };
        kept.again = pause.map(|pause| Instant::now() + pause);
        if kept.heard != admits {
            let data = epoll::EventData::new_u64(number);
            let flags = match admits {
                true => epoll::EventFlags::IN,
                false => epoll::EventFlags::empty(),
            };
            match epoll::modify(&self.epoll, door.socket(), data, flags) {
                Ok(()) => kept.heard = admits,
                Err(error) => log::error!(target: CONFIG, "a socket is not heard: {error}"),
            }
        }
    }
}
