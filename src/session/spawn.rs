//! How a session gets its threads.
#![forbid(unsafe_code)]

use std::io;

/// Makes threads. The port passes EAL control threads, tests pass `std::thread`.
pub trait Spawn: Send + Sync {
    /// Runs `work` on a new thread. `name` has at most 15 characters.
    ///
    /// # Errors
    ///
    /// What the system says when there is no thread to be had.
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Join>>;
}

/// A running thread. Dropping it lets the thread go on by itself.
pub trait Join: Send {
    /// Waits until the thread has ended. Never called on the thread itself.
    fn join(self: Box<Self>);
}

/// Threads of the standard library, for processes without an EAL.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdThreads;

impl Spawn for StdThreads {
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Join>> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)?;
        Ok(Box::new(thread))
    }
}

impl Join for std::thread::JoinHandle<()> {
    fn join(self: Box<Self>) {
        // A panic of the thread was reported when it happened.
        let _ = std::thread::JoinHandle::join(*self);
    }
}
