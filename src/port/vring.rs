//! The place of a vring in a port, and how it gets there from the session.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::lock;
use super::queue::{Dequeue, Enqueue};
use crate::session::features::{
    VIRTIO_F_IN_ORDER, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX,
};
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

/// What other threads may look at of a virtqueue.
#[derive(Debug)]
struct View {
    ring: RingView,
    features: u64,
}

/// A place of a ring, as seen from where the device side goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// The driver put something there.
    Waits,
    /// It did not yet.
    Empty,
    /// The ring has no such place.
    Beyond,
    /// There is no ring, or the session changes it just now.
    NoRing,
}

/// One vring of a port. It lives as long as the port; virtqueues come and go.
#[derive(Debug)]
pub(super) struct Vring<B> {
    /// The way of the lcore that polls.
    pub(super) gate: Gate<Running<B>>,
    /// The next chain to take, as of the last burst.
    next_available: AtomicU16,
    /// What other threads may look at. There is one as long as there is a virtqueue.
    view: RwLock<Option<View>>,
    /// Counts changes of `view`.
    views: AtomicU32,
    /// The ring whose address an lcore was given to sleep on, with the count at that time. It keeps the
    /// ring's memory mapped, since nobody can tell when that lcore looks at the address.
    watched: Mutex<(u32, Option<RingView>)>,
    /// The application wants to be woken; kept from before a frontend connects.
    wants_kicks: AtomicBool,
}

impl<B> Default for Vring<B> {
    fn default() -> Self {
        Self {
            gate: Gate::new(),
            next_available: AtomicU16::new(0),
            view: RwLock::new(None),
            views: AtomicU32::new(0),
            watched: Mutex::default(),
            wants_kicks: AtomicBool::new(false),
        }
    }
}

impl<B> Vring<B> {
    // A panic elsewhere leaves a view or none, and both are right.

    fn view(&self) -> RwLockReadGuard<'_, Option<View>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn view_mut(&self) -> RwLockWriteGuard<'_, Option<View>> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a virtqueue in. One that was there before comes back.
    pub(super) fn install(&self, virtqueue: Virtqueue, burst: B) -> Option<Virtqueue> {
        self.show(&virtqueue);
        let before = self.gate.install(Running { virtqueue, burst })?;
        Some(before.virtqueue)
    }

    /// Lets other threads look at a virtqueue.
    pub(super) fn show(&self, virtqueue: &Virtqueue) {
        self.publish_next(virtqueue.position());
        let mut view = self.view_mut();
        let ring = virtqueue.view();
        ring.want_kicks(self.wants_kicks.load(Ordering::Relaxed), self.next());
        *view = Some(View {
            ring,
            features: virtqueue.features(),
        });
        self.views.fetch_add(1, Ordering::Relaxed);
    }

    /// Undoes [`show`](Self::show).
    pub(super) fn hide(&self) {
        let mut view = self.view_mut();
        *view = None;
        self.views.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the virtqueue out. After this nobody touches it or its memory.
    pub(super) fn take(&self) -> Option<Virtqueue> {
        self.hide();
        Some(self.gate.take()?.virtqueue)
    }

    /// Runs `work` on the virtqueue while no lcore touches it.
    pub(super) fn alter(&self, work: &mut dyn FnMut(&mut Virtqueue)) {
        self.gate.with(|running| {
            if let Some(running) = running {
                work(&mut running.virtqueue);
            }
        });
    }

    /// Says where the next burst begins.
    #[inline(always)]
    pub(super) fn publish_next(&self, next_available: u16) {
        self.next_available.store(next_available, Ordering::Relaxed);
    }

    fn next(&self) -> u16 {
        self.next_available.load(Ordering::Relaxed)
    }

    /// Chains that wait; 0 without a virtqueue, and while the session changes it. Never waits.
    pub(super) fn available(&self) -> u16 {
        match self.view.try_read().as_deref() {
            Ok(Some(view)) => view.ring.available(self.next()),
            _ => 0,
        }
    }

    /// Places where the driver has put nothing; 0 without a virtqueue, and while the session changes
    /// it. Never waits.
    pub(super) fn without_buffer(&self) -> u16 {
        match self.view.try_read().as_deref() {
            Ok(Some(View { ring, .. })) => ring.size().saturating_sub(ring.available(self.next())),
            _ => 0,
        }
    }

    /// What stands in the `nth` place from where the next burst begins. Never waits.
    pub(super) fn slot(&self, nth: u16) -> Slot {
        let view = self.view.try_read();
        let Ok(Some(view)) = view.as_deref() else {
            return Slot::NoRing;
        };
        match view.ring.waits(self.next(), nth) {
            Some(true) => Slot::Waits,
            Some(false) => Slot::Empty,
            None => Slot::Beyond,
        }
    }

    /// What changes when a buffer becomes available, for an lcore that sleeps on it. The memory there
    /// stays mapped until this is asked again, or [`forget_watched`](Self::forget_watched).
    pub(super) fn monitor(&self) -> Option<Monitor> {
        let view = self.view();
        let views = self.views.load(Ordering::Relaxed);
        let mut watched = lock(&self.watched);
        let (seen, ring) = &mut *watched;
        if *seen != views {
            *ring = view.as_ref().map(|view| view.ring.clone());
            *seen = views;
        }
        Some(ring.as_ref()?.monitor(self.next()))
    }

    /// Nobody sleeps on an address of a ring any more.
    pub(super) fn forget_watched(&self) {
        *lock(&self.watched) = Default::default();
    }

    /// A word of the ring, to be looked up, not looked at.
    pub(super) fn place(&self) -> Option<*const u16> {
        Some(self.view().as_ref()?.ring.monitor(self.next()).word)
    }

    /// Whether there is a virtqueue.
    pub(super) fn is_there(&self) -> bool {
        self.view().is_some()
    }

    /// What the burst was chosen for, in words.
    pub(super) fn mode(&self) -> String {
        let view = self.view();
        let Some(View { ring, features }) = view.as_ref() else {
            return "no ring".to_owned();
        };
        let mut text = match ring {
            RingView::Split(_) => "split ring",
            RingView::Packed(_) => "packed ring",
        }
        .to_owned();
        for (bit, name) in [
            (VIRTIO_NET_F_MRG_RXBUF, ", mergeable buffers"),
            (VIRTIO_F_IN_ORDER, ", in order"),
            (VIRTIO_RING_F_EVENT_IDX, ", event index"),
        ] {
            if features & bit != 0 {
                text.push_str(name);
            }
        }
        text
    }

    /// Asks for kicks or does without, now and for virtqueues to come.
    pub(super) fn want_kicks(&self, wanted: bool) {
        self.wants_kicks.store(wanted, Ordering::Relaxed);
        if let Some(view) = self.view().as_ref() {
            view.ring.want_kicks(wanted, self.next());
        }
    }

    /// Whether somebody who sleeps until a kick should be woken without one: it was made before it
    /// was asked for.
    pub(super) fn owes_wake(&self) -> bool {
        let view = self.view();
        self.wants_kicks.load(Ordering::Relaxed)
            && view
                .as_ref()
                .is_some_and(|view| view.ring.waits(self.next(), 0) == Some(true))
    }

    /// Whether the application sleeps, or is about to.
    pub(super) fn wants_wake(&self) -> bool {
        self.wants_kicks.load(Ordering::Relaxed)
    }
}
