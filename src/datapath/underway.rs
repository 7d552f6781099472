//! What engines copy for a virtqueue: the packets under way, and the memory that they are in.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::add;
use super::counters::DmaCounters;
use crate::dma::channel::Channel;
use crate::dma::flight::Flight;
use crate::dma::{Drained, Engines};
use crate::memory::MemoryTable;
use crate::virtqueue::Virtqueue;

/// The packets that engines copy for one virtqueue, and those engines.
#[derive(Debug)]
pub(super) struct Underway<T: Copy> {
    pub(super) flight: Flight<T>,
    pub(super) engines: Engines,
    /// Mapped as long as an engine may copy.
    memory: Arc<MemoryTable>,
}

impl<T: Copy> Underway<T> {
    /// Nothing yet, for `virtqueue`; copies of at least `threshold` bytes are for `channels`.
    pub(super) fn new(virtqueue: &Virtqueue, channels: &[Arc<Channel>], threshold: u32) -> Self {
        let flight = Flight::new(virtqueue.size(), Engines::depth(channels));
        let engines = Engines::new(channels, flight.board(), threshold);
        engines.reach(&virtqueue.memory);
        Self {
            flight,
            engines,
            memory: Arc::clone(&virtqueue.memory),
        }
    }

    /// Polls until `land` has emptied the flight; engines that take too long are ended. For control
    /// threads. `false`: an engine may write for ever, and what it was given stays.
    pub(super) fn drain(
        &mut self,
        counters: &DmaCounters,
        mut land: impl FnMut(&mut Flight<T>),
    ) -> bool {
        if self.flight.is_empty() {
            return true;
        }
        add(&counters.drains, 1);
        let Self {
            flight, engines, ..
        } = self;
        let drained = engines.drain(|| {
            land(flight);
            flight.is_empty()
        });
        if drained != Drained::InTime {
            add(&counters.drain_timeouts, 1);
        }
        self.note(counters);
        drained != Drained::Never
    }

    /// Adds what happened to the engines to `counters`.
    #[inline]
    pub(super) fn note(&self, counters: &DmaCounters) {
        let inflight = self.flight.len().into();
        counters.inflight.store(inflight, Ordering::Relaxed);
        let events = self.flight.take_events();
        if events != Default::default() {
            add(&counters.errors, events.errors);
            add(&counters.recoveries, events.recoveries);
            add(&counters.engine_dead, events.deaths);
        }
    }

    /// The watchdog's look at the engines.
    pub(super) fn watch(&self, now: Instant) {
        self.engines.watch(now);
    }
}

impl<T: Copy> Drop for Underway<T> {
    fn drop(&mut self) {
        if !self.flight.is_empty() {
            self.engines.bar_the_dead(&self.memory);
            // An engine may still write there. The packets stay out of their pools, too.
            std::mem::forget(Arc::clone(&self.memory));
        }
    }
}
