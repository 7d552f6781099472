//! A postcopy migration to this host, seen by one device (vhost-user, "Postcopy").
//!
//! `POSTCOPY_ADVISE` gives the frontend a userfaultfd of ours. From `POSTCOPY_LISTEN` on it learns
//! where each region was mapped, and its acknowledgement says that it is ready for our page faults.
//! Until then no vring runs, so that nobody touches the guest's memory. `POSTCOPY_END` says that all
//! pages are here.
//!
//! From then on whoever touches a page that is not here waits for the frontend, and a thread that
//! waits so cannot see the frontend go. Hence a thread of its own watches the socket and lets
//! everybody go on once nobody is left to wait for.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::bell::Bell;
use super::spawn::{Join, Spawn};
use crate::memory::Userfault;

/// What is known of the migration.
pub(super) struct Postcopy {
    userfault: Arc<Userfault>,
    listening: bool,
    /// The frontend has not said that it is ready for faults in what was mapped last.
    awaits_ack: bool,
    /// Ends the watch.
    bell: Arc<Bell>,
    watch: Option<Box<dyn Join>>,
}

impl Postcopy {
    /// Begins, and keeps an eye on `socket`; see the module's documentation.
    pub(super) fn begin(socket: &Arc<UnixStream>, spawn: &dyn Spawn) -> io::Result<Self> {
        let userfault = Arc::new(Userfault::new()?);
        let bell = Arc::new(Bell::new()?);
        let (to_release, socket, rung) = (userfault.clone(), socket.clone(), bell.clone());
        let watch = move || {
            // Rung only to end, and whatever else ends the wait must not leave anybody waiting.
            let _ = rung.wait_for_hang_up(&socket);
            to_release.release();
        };
        let watch = spawn.spawn("vhost-postcopy", Box::new(watch))?;
        Ok(Self {
            userfault,
            listening: false,
            awaits_ack: false,
            bell,
            watch: Some(watch),
        })
    }

    /// The frontend's copy of the userfaultfd.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.userfault.share()
    }

    /// `POSTCOPY_LISTEN`.
    pub(super) fn listen(&mut self) {
        self.listening = true;
    }

    /// What memory has to be mapped with.
    pub(super) fn userfault(&self) -> Option<&Arc<Userfault>> {
        Some(&self.userfault).filter(|_| self.listening)
    }

    /// The frontend is told of memory, and has to acknowledge it.
    pub(super) fn await_ack(&mut self) {
        self.awaits_ack = true;
    }

    pub(super) fn awaits_ack(&self) -> bool {
        self.awaits_ack
    }

    pub(super) fn acknowledged(&mut self) {
        self.awaits_ack = false;
    }
}

impl Drop for Postcopy {
    fn drop(&mut self) {
        self.userfault.release();
        self.bell.ring();
        if let Some(watch) = self.watch.take() {
            watch.join();
        }
    }
}
