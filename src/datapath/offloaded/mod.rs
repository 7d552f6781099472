//! Virtqueues with engines that copy the large pieces of packets.
//!
//! A burst polls the engines, takes what has landed, and begins what comes next: the CPU moves headers
//! and small pieces at once, an engine gets the large ones, with one doorbell for the burst. A packet and
//! its chains then stay in the [`Flight`] until all its copies have ended; they leave it in order, so
//! driver and application see what they would see without engines.

mod dequeue;
mod enqueue;
mod fill;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::counters::DmaCounters;
use super::underway::Underway;
use crate::dma::channel::Channel;
use crate::dma::flight::Flight;
use crate::virtqueue::Virtqueue;

pub use dequeue::Dequeue;
pub use enqueue::Enqueue;

/// Which way packets go: the burst bodies for it.
pub trait Direction: Sized {
    /// A packet that is under way, with what must be known when it has landed.
    type Slot: Copy;

    /// The bodies for what was negotiated; the application allows vectors of `simd_bits`.
    fn select(virtqueue: &Virtqueue, simd_bits: u16) -> Self;
}

/// A virtqueue with engines, and the packets that they copy.
pub struct Offloaded<D: Direction> {
    virtqueue: Virtqueue,
    bodies: D,
    way: Underway<D::Slot>,
}

impl<D: Direction> Offloaded<D> {
    /// `virtqueue` with `channels`, which get the copies of at least `threshold` bytes; `simd_bits` as
    /// for [`Direction::select`].
    pub fn new(
        virtqueue: Virtqueue,
        channels: &[Arc<Channel>],
        threshold: u32,
        simd_bits: u16,
    ) -> Self {
        Self {
            bodies: D::select(&virtqueue, simd_bits),
            way: Underway::new(&virtqueue, channels, threshold),
            virtqueue,
        }
    }

    /// The virtqueue.
    pub fn virtqueue(&self) -> &Virtqueue {
        &self.virtqueue
    }

    /// The virtqueue, to be changed while nothing is under way.
    pub fn virtqueue_mut(&mut self) -> &mut Virtqueue {
        &mut self.virtqueue
    }

    /// Packets under way.
    #[inline]
    pub fn len(&self) -> u32 {
        self.way.flight.len()
    }

    /// Whether nothing is under way.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.way.flight.is_empty()
    }

    /// Where the oldest packet under way stands; another number when one has landed since.
    pub fn first(&self) -> u32 {
        self.way.flight.first()
    }

    /// The watchdog's look at the engines.
    pub fn watch(&self, now: Instant) {
        self.way.watch(now);
    }

    /// The virtqueue, without engines. What was under way should be drained before: what is left is
    /// never given back, its memory stays mapped, and the virtqueue tells so.
    pub fn into_virtqueue(mut self) -> Virtqueue {
        if !self.is_empty() {
            self.virtqueue.hold();
        }
        self.virtqueue
    }

    /// Why a burst takes the plain way, if so: what counts its packets. `worthwhile` tells whether it
    /// has enough copies of at least so many bytes; it is asked when nothing is under way.
    #[inline(always)]
    fn plain<'c>(
        &self,
        counters: &'c DmaCounters,
        worthwhile: impl FnOnce(&Virtqueue, u32) -> bool,
    ) -> Option<&'c AtomicU64> {
        let engines = &self.way.engines;
        if !self.is_empty() {
            None
        } else if engines.are_dead() {
            // They may have died while only other queues used them.
            self.way.note(counters);
            Some(&counters.cpu_noroom)
        } else if engines.are_eager() || worthwhile(&self.virtqueue, engines.threshold()) {
            None
        } else {
            Some(&counters.cpu_small)
        }
    }

    /// Polls the engines, and has `land` take what has landed, unless nothing is under way.
    #[inline(always)]
    fn poll<T>(
        &mut self,
        counters: &DmaCounters,
        land: impl FnOnce(&D, &mut Virtqueue, &mut Flight<D::Slot>) -> T,
    ) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        self.way.engines.reap();
        let landed = land(&self.bodies, &mut self.virtqueue, &mut self.way.flight);
        self.way.note(counters);
        Some(landed)
    }

    /// Waits until `land` has taken all; engines that take too long are ended. For control threads.
    /// `false`: an engine may write for ever.
    fn empty(
        &mut self,
        counters: &DmaCounters,
        mut land: impl FnMut(&D, &mut Virtqueue, &mut Flight<D::Slot>),
    ) -> bool {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        way.drain(counters, |flight| land(bodies, virtqueue, flight))
    }
}

#[cfg(test)]
mod tests;
