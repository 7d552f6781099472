//! A thread that copies: an engine for tests, and for machines with a processor to spare.
//!
//! Copies go through a ring with one writer, the owner of the engine, and one reader, the thread,
//! which sleeps when there is nothing to do.

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{Addr, Engine, Halted, Health, Outcome, THREAD_PATIENCE, Tag, Transfer};

/// How often the thread looks for copies before it sleeps.
const LOOKS: u32 = 20_000;
/// How long the thread gets to end a copy when it is told to stop.
const STOP: Duration = Duration::from_secs(1);

/// A place in the ring.
#[derive(Debug)]
struct Place(UnsafeCell<Transfer>);

/// What both sides share. Indices run free.
#[derive(Debug)]
struct Ring {
    places: Box<[Place]>,
    mask: u32,
    /// Copies to be done, up to here; written by the engine's owner.
    submitted: AtomicU32,
    /// Copies that are done, up to here; written by the thread.
    done: AtomicU32,
    asleep: AtomicBool,
    stop: AtomicBool,
    stopped: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

// SAFETY: a place is written by the engine's owner while it is at or after `submitted`, and read by
// the thread while it is between `done` and `submitted`; both indices are released and acquired.
unsafe impl Sync for Ring {}

impl Ring {
    fn place(&self, at: u32) -> Option<&Place> {
        self.places.get((at & self.mask) as usize)
    }

    fn wake(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            thread.unpark();
        }
    }

    /// The thread's life.
    fn run(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        let mut looks = 0;
        let mut done = self.done.load(Ordering::Relaxed);
        while !self.stop.load(Ordering::Relaxed) {
            // Acquire: the copies themselves.
            let submitted = self.submitted.load(Ordering::Acquire);
            if done == submitted {
                looks += 1;
                if looks < LOOKS {
                    std::hint::spin_loop();
                } else {
                    self.sleep(done);
                    looks = 0;
                }
                continue;
            }
            looks = 0;
            if let Some(place) = self.place(done) {
                // SAFETY: between `done` and `submitted`, so nobody writes it.
                let copy = unsafe { *place.0.get() };
                let (from, to) = (copy.from.0 as *const u8, copy.to.0 as *mut u8);
                // SAFETY: `Engine::stage` was promised `len` bytes at both until the copy is
                // reported, and the addresses are ours (`translate`). `copy_to` allows overlaps.
                unsafe { from.copy_to(to, copy.len as usize) };
            }
            done = done.wrapping_add(1);
            // Release: the bytes before the index.
            self.done.store(done, Ordering::Release);
        }
        self.stopped.store(true, Ordering::Release);
    }

    fn sleep(&self, done: u32) {
        self.asleep.store(true, Ordering::Relaxed);
        // With the fence in `submit`: either this thread sees the copy, or the other that it sleeps.
        fence(Ordering::SeqCst);
        if self.submitted.load(Ordering::Relaxed) == done && !self.stop.load(Ordering::Relaxed) {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// The engine.
#[derive(Debug)]
pub struct Software {
    ring: Arc<Ring>,
    tags: Box<[Tag]>,
    /// Copies staged so far.
    staged: u32,
    /// Copies reported so far.
    reported: u32,
}

impl Software {
    /// An engine that can have `size` copies, rounded up to a power of two. `spawn` runs its thread.
    ///
    /// # Errors
    ///
    /// Those of `spawn`.
    pub fn new(
        size: u32,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let size = size.clamp(1, 1 << 15).next_power_of_two();
        let nothing = Transfer {
            from: Addr(0),
            to: Addr(0),
            len: 0,
        };
        let ring = Arc::new(Ring {
            places: (0..size).map(|_| Place(UnsafeCell::new(nothing))).collect(),
            mask: size - 1,
            submitted: AtomicU32::new(0),
            done: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let body = Arc::clone(&ring);
        spawn(Box::new(move || body.run()))?;
        let tag = Tag {
            serial: 0,
            place: 0,
        };
        Ok(Self {
            tags: vec![tag; size as usize].into(),
            ring,
            staged: 0,
            reported: 0,
        })
    }
}

impl Engine for Software {
    fn room(&self) -> usize {
        self.tags.len() - self.staged.wrapping_sub(self.reported) as usize
    }

    unsafe fn stage(&mut self, copy: Transfer, tag: Tag) {
        if self.room() == 0 {
            return;
        }
        if let Some(place) = self.ring.place(self.staged) {
            // SAFETY: after `submitted`, and there is room, so the thread does not read it.
            unsafe { *place.0.get() = copy };
        }
        if let Some(place) = self.tags.get_mut((self.staged & self.ring.mask) as usize) {
            *place = tag;
        }
        self.staged = self.staged.wrapping_add(1);
    }

    fn submit(&mut self) {
        // Release: the copies before the index.
        self.ring.submitted.store(self.staged, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.ring.asleep.load(Ordering::Relaxed) {
            self.ring.wake();
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        // Acquire: the bytes that the thread has copied.
        let end = self.ring.done.load(Ordering::Acquire);
        while self.reported != end {
            if let Some(&tag) = self.tags.get((self.reported & self.ring.mask) as usize) {
                done(tag, Outcome::Copied);
            }
            self.reported = self.reported.wrapping_add(1);
        }
        Health::Running
    }

    fn nudge(&mut self) -> Health {
        self.submit();
        Health::Running
    }

    fn recover(&mut self) -> bool {
        true
    }

    fn halt(&mut self) -> Halted {
        self.ring.stop.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ring.wake();
        let began = Instant::now();
        while !self.ring.stopped.load(Ordering::Acquire) {
            if began.elapsed() > STOP {
                return Halted::Unproven;
            }
            std::thread::yield_now();
        }
        Halted::Proven
    }

    fn translate(&self, va: *const u8, _len: u32) -> Option<Addr> {
        Some(Addr(va.expose_provenance() as u64))
    }

    fn max_copy(&self) -> u32 {
        1 << 20
    }

    fn patience(&self) -> Duration {
        THREAD_PATIENCE
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        self.halt();
    }
}

#[cfg(test)]
mod tests;
