//! The place of a vring in a port, and how it gets there from the session.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::queue::{Dequeue, Enqueue};
use crate::virtqueue::{Gate, Monitor, RingView, Virtqueue};

/// A virtqueue with the burst that was chosen for it.
#[derive(Debug)]
pub(super) struct Running<B> {
    pub(super) virtqueue: Virtqueue,
    pub(super) burst: B,
}

/// Where an rx queue finds its virtqueue.
pub(super) type RxVring = Vring<Dequeue>;
/// Where a tx queue finds its virtqueue.
pub(super) type TxVring = Vring<Enqueue>;

/// One vring of a port. It lives as long as the port; virtqueues come and go.
#[derive(Debug)]
pub(super) struct Vring<B> {
    /// The way of the lcore that polls.
    pub(super) gate: Gate<Running<B>>,
    /// The next chain to take, as of the last burst.
    next_available: AtomicU16,
    /// What other threads may look at. There is one as long as there is a virtqueue.
    view: Mutex<Option<RingView>>,
    /// The application wants to be woken; kept from before a frontend connects.
    wants_kicks: AtomicBool,
}

impl<B> Default for Vring<B> {
    fn default() -> Self {
        Self {
            gate: Gate::new(),
            next_available: AtomicU16::new(0),
            view: Mutex::new(None),
            wants_kicks: AtomicBool::new(false),
        }
    }
}

impl<B> Vring<B> {
    fn view(&self) -> MutexGuard<'_, Option<RingView>> {
        // A panic elsewhere leaves a view or none, and both are right.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a virtqueue in. One that was there before comes back.
    pub(super) fn install(&self, virtqueue: Virtqueue, burst: B) -> Option<Virtqueue> {
        self.publish_next(virtqueue.position());
        let mut view = self.view();
        let new = virtqueue.view();
        new.want_kicks(self.wants_kicks.load(Ordering::Relaxed), self.next());
        *view = Some(new);
        drop(view);
        let before = self.gate.install(Running { virtqueue, burst })?;
        Some(before.virtqueue)
    }

    /// Takes the virtqueue out. After this nobody touches it or its memory.
    pub(super) fn take(&self) -> Option<Virtqueue> {
        *self.view() = None;
        Some(self.gate.take()?.virtqueue)
    }

    /// Says where the next burst begins.
    #[inline(always)]
    pub(super) fn publish_next(&self, next_available: u16) {
        self.next_available.store(next_available, Ordering::Relaxed);
    }

    fn next(&self) -> u16 {
        self.next_available.load(Ordering::Relaxed)
    }

    /// Chains that wait; 0 without a virtqueue, and while the session changes it.
    pub(super) fn available(&self) -> u16 {
        match self.view.try_lock().as_deref() {
            Ok(Some(view)) => view.available(self.next()),
            _ => 0,
        }
    }

    /// What changes when a buffer becomes available.
    pub(super) fn monitor(&self) -> Option<Monitor> {
        Some(self.view().as_ref()?.monitor(self.next()))
    }

    /// Asks for kicks or does without, now and for virtqueues to come.
    pub(super) fn want_kicks(&self, wanted: bool) {
        self.wants_kicks.store(wanted, Ordering::Relaxed);
        if let Some(view) = self.view().as_ref() {
            view.want_kicks(wanted, self.next());
        }
    }
}
