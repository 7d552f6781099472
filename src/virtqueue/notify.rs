//! Calls to the driver.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use super::Ring;

/// What came of telling the driver about used buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notified {
    /// The driver did not want to know.
    Suppressed,
    /// The call was made.
    Called,
    /// The driver wanted a call, and there is no way to make it, or it failed.
    Failed,
}

/// The call eventfd of a ring.
///
/// The session made sure that it is an eventfd that does not block; a write then never waits.
#[derive(Debug)]
pub struct Notifier {
    call: Option<Arc<File>>,
}

impl Notifier {
    /// A notifier that writes to `call`; without one the driver should poll.
    pub fn new(call: Option<Arc<File>>) -> Self {
        Self { call }
    }

    /// Calls the driver when it wants that for what `ring` has published. Once a burst.
    #[inline(always)]
    pub fn notify<R: Ring>(&self, ring: &mut R) -> Notified {
        let Some(call) = &self.call else {
            return match ring.wanted_call() {
                true => Notified::Failed,
                false => Notified::Suppressed,
            };
        };
        if ring.wants_call() {
            Self::call(call)
        } else {
            Notified::Suppressed
        }
    }

    #[cold]
    #[inline(never)]
    fn call(mut call: &File) -> Notified {
        match call.write(&1_u64.to_ne_bytes()) {
            Ok(_) => Notified::Called,
            // A counter at its end is a call that the driver has not seen yet.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Notified::Called,
            Err(_) => Notified::Failed,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

#[cfg(all(test, loom))]
mod model;
