//! Where the sockets of all ports that listen are waited at: one thread for the whole process, as long
//! as there is such a port.
//!
//! It lets connections in and buries those that are over. All else is on the connections' own threads,
//! so nothing here waits for a peer.
#![forbid(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::bell::Bell;
use super::spawn::{Join, Spawn};
use crate::log::CONFIG;

/// The hall that is open, if any.
static HALL: Mutex<Option<Arc<Hall>>> = Mutex::new(None);

/// How long to rest when the system does not let us wait.
const REST: Duration = Duration::from_millis(100);

/// A socket that is listened at. All calls come from the hall's thread.
pub(super) trait Door: Send + Sync {
    /// What to wait for; `None` while nobody is to be let in.
    fn waits_for(&self) -> Option<BorrowedFd<'_>>;

    /// After which time to look again although nothing happened.
    fn pause(&self) -> Option<Duration>;

    /// Lets in who waits, if somebody is `at_the_door`, and looks after what else there is to do.
    fn serve(&self, at_the_door: bool);
}

struct Hall {
    bell: Arc<Bell>,
    state: Mutex<State>,
    /// Somebody may wait for the next round to begin.
    round_began: Condvar,
}

struct State {
    doors: Vec<(u64, Arc<dyn Door>)>,
    /// Numbers doors, and is never given again.
    serial: u64,
    seats: usize,
    rounds: u64,
    /// The thread has ended, however it came about.
    gone: bool,
    thread: Option<Box<dyn Join>>,
}

/// A port's part in the hall; its door is closed when this is dropped.
pub(super) struct Seat {
    hall: Arc<Hall>,
    door: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is right at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    /// A seat in the hall, which is opened for the first one.
    pub(super) fn take(spawn: &dyn Spawn) -> io::Result<Self> {
        let mut open = lock(&HALL);
        if let Some(hall) = &*open {
            lock(&hall.state).seats += 1;
            let hall = Arc::clone(hall);
            return Ok(Self { hall, door: None });
        }
        let hall = Arc::new(Hall {
            bell: Arc::new(Bell::new()?),
            state: Mutex::new(State {
                doors: Vec::new(),
                serial: 0,
                seats: 1,
                rounds: 0,
                gone: false,
                thread: None,
            }),
            round_began: Condvar::new(),
        });
        let running = Arc::clone(&hall);
        let thread = spawn.spawn("vhost-listen", Box::new(move || running.run()))?;
        lock(&hall.state).thread = Some(thread);
        *open = Some(Arc::clone(&hall));
        Ok(Self { hall, door: None })
    }

    /// Wakes the hall's thread.
    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.hall.bell
    }

    /// From now on `door` is looked after.
    pub(super) fn open(&mut self, door: Arc<dyn Door>) {
        let mut state = lock(&self.hall.state);
        state.serial += 1;
        let serial = state.serial;
        state.doors.push((serial, door));
        self.door = Some(serial);
        drop(state);
        self.hall.bell.ring();
    }
}

impl Drop for Seat {
    /// When this returns, the hall's thread does not touch the door any more, and has dropped it.
    fn drop(&mut self) {
        let mut open = lock(&HALL);
        let mut state = lock(&self.hall.state);
        let ours = self.door;
        let closed: Vec<_> = state
            .doors
            .extract_if(.., |(serial, _)| Some(*serial) == ours)
            .collect();
        state.seats -= 1;
        let thread = match state.seats {
            0 => {
                // The next port opens another one.
                open.take_if(|hall| Arc::ptr_eq(hall, &self.hall));
                state.thread.take()
            }
            _ => None,
        };
        let seen = state.rounds;
        drop((state, open));
        drop(closed);
        self.hall.bell.ring();
        if let Some(thread) = thread {
            thread.join();
            return;
        }
        let same_round = |state: &mut State| state.rounds == seen && !state.gone;
        let state = lock(&self.hall.state);
        drop(self.hall.round_began.wait_while(state, same_round));
    }
}

/// Lets nobody wait for a thread that has ended.
struct Gone<'h>(&'h Hall);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).gone = true;
        self.0.round_began.notify_all();
    }
}

impl Hall {
    fn run(&self) {
        let _gone = Gone(self);
        let mut failed = false;
        loop {
            let doors: Vec<Arc<dyn Door>> = {
                let mut state = lock(&self.state);
                state.rounds = state.rounds.wrapping_add(1);
                self.round_began.notify_all();
                if state.seats == 0 {
                    return;
                }
                let doors = state.doors.iter();
                doors.map(|(_, door)| Arc::clone(door)).collect()
            };
            let waits: Vec<_> = doors.iter().map(|door| door.waits_for()).collect();
            let pause = doors.iter().filter_map(|door| door.pause()).min();
            match self.bell.wait_for_any(&waits, pause) {
                Ok(ready) => {
                    failed = false;
                    for (door, ready) in doors.iter().zip(ready) {
                        door.serve(ready);
                    }
                }
                Err(error) => {
                    if !mem::replace(&mut failed, true) {
                        log::error!(target: CONFIG, "no connection is accepted: poll: {error}");
                    }
                    thread::sleep(REST);
                }
            }
        }
    }
}
