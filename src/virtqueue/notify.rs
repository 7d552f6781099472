//! Calls to the driver.
#![forbid(unsafe_code)]

use vmm_sys_util::event::EventNotifier;

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
    call: Option<EventNotifier>,
}

impl Notifier {
    /// A notifier that writes to `call`; without one the driver polls.
    pub fn new(call: Option<EventNotifier>) -> Self {
        Self { call }
    }

    /// Calls the driver when it wants that for what `ring` has published. Once a burst.
    #[inline(always)]
    pub fn notify<R: Ring>(&self, ring: &mut R) -> Notified {
        let Some(call) = &self.call else {
            ring.forget_calls();
            return Notified::Suppressed;
        };
        if ring.wants_call() {
            Self::call(call)
        } else {
            Notified::Suppressed
        }
    }

    #[cold]
    #[inline(never)]
    fn call(call: &EventNotifier) -> Notified {
        match call.notify() {
            Ok(()) => Notified::Called,
            // A counter at its end is a call that the driver has not seen yet.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Notified::Called,
            Err(_) => Notified::Failed,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
