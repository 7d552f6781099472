//! An eventfd that wakes a thread of ours.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::wire::retry;

/// Wakes whoever waits for it; a ring before the wait counts.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

/// The bell of a connection, most of which never need one.
#[derive(Debug, Default)]
pub(super) struct LateBell(OnceLock<Arc<Bell>>);

impl LateBell {
    /// For those who are to ring it. Called by the thread that waits for it.
    pub(super) fn get(&self) -> io::Result<&Arc<Bell>> {
        if let Some(bell) = self.0.get() {
            return Ok(bell);
        }
        let bell = Arc::new(Bell::new()?);
        Ok(self.0.get_or_init(|| bell))
    }

    /// As [`Bell::wait`]; without a bell, waits for the other one alone.
    pub(super) fn wait(
        &self,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        if let Some(bell) = self.0.get() {
            return bell.wait(Some(other), timeout);
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::from_borrowed_fd(other, PollFlags::IN)];
        Ok(retry(|| poll(&mut fds, timeout.as_ref()))? != 0)
    }
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Wakes the thread that waits, or that waits next.
    pub(super) fn ring(&self) {
        // The only failure is a counter at its end, which wakes as well.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets past rings.
    pub(super) fn silence(&self) {
        // Fails when nobody rang.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Waits for a ring, or until the other side of `socket` has gone. Its messages do not count.
    pub(super) fn wait_for_hang_up(&self, socket: &UnixStream) -> io::Result<()> {
        let mut fds = [
            PollFd::new(&self.0, PollFlags::IN),
            PollFd::new(socket, PollFlags::RDHUP),
        ];
        retry(|| poll(&mut fds, None))?;
        Ok(())
    }

    /// Waits for a ring, or until `other` can be read or is at its end. Whether `other` is; without
    /// one, whether the bell rang.
    pub(super) fn wait(
        &self,
        other: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let other = other.unwrap_or_else(|| self.0.as_fd());
        let mut fds = [
            PollFd::new(&self.0, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        retry(|| poll(&mut fds, timeout.as_ref()))?;
        let [bell, other] = fds.map(|fd| !fd.revents().is_empty());
        if bell {
            self.silence();
        }
        Ok(other)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
