//! Takes the packets of a burst apart, into copies for the CPU and for an engine.

use super::add;
use super::counters::DmaCounters;
use super::underway::Underway;
use crate::dma::channel::Burst;
use crate::dma::flight::Flight;

/// A burst with fewer copies does not ring an engine's doorbell, unless something is under way.
pub(super) const LEAST_COPIES: u32 = 4;

/// The packets of one burst, on their way into a flight of slots `S`.
///
/// A packet comes in by [`plan`](Self::plan) for each piece, by what the flight wants to know of its
/// chains, and by [`append`](Self::append).
pub(super) struct Mover<'b, S: Copy> {
    flight: &'b mut Flight<S>,
    /// The engine of this burst, and the longest copy that it takes.
    engine: Option<(Burst<'b>, u32)>,
    threshold: u32,
    counters: &'b DmaCounters,
    copies: u64,
    bytes: u64,
    packets: u64,
    small: u64,
}

impl<'b, S: Copy> Mover<'b, S> {
    /// Begins a burst, with the engine whose turn it is.
    #[inline]
    pub(super) fn new(way: &'b mut Underway<S>, counters: &'b DmaCounters) -> Self {
        let threshold = way.engines.threshold();
        Self {
            flight: &mut way.flight,
            engine: way.engines.take_turn(),
            threshold,
            counters,
            copies: 0,
            bytes: 0,
            packets: 0,
            small: 0,
        }
    }

    /// Where the packets go.
    #[inline(always)]
    pub(super) fn flight(&mut self) -> &mut Flight<S> {
        self.flight
    }

    /// The longest copy in bytes.
    #[inline(always)]
    pub(super) fn longest(&self) -> usize {
        match &self.engine {
            Some((_, longest)) => *longest as usize,
            None => usize::MAX,
        }
    }

    /// Plans a copy for the engine; `false` when it is the CPU's. When it has ended, whoever lands the
    /// packet is told of `note`.
    ///
    /// # Safety
    ///
    /// As for [`Flight::plan`]: `len` bytes at `from` can be read and at `to` be written until the
    /// packet has come out of the flight, or as long as an engine may use them.
    #[inline]
    pub(super) unsafe fn plan(
        &mut self,
        (from, to): (*const u8, *mut u8),
        len: u32,
        note: impl FnOnce() -> u64,
    ) -> bool {
        if len < self.threshold {
            self.small += 1;
            return false;
        }
        let Some((engine, _)) = &self.engine else {
            add(&self.counters.cpu_noroom, 1);
            return false;
        };
        let Some(transfer) = engine.transfer(from, to, len) else {
            add(&self.counters.cpu_noaddr, 1);
            return false;
        };
        // SAFETY: the caller's promise.
        let planned = unsafe { self.flight.plan((from, to), transfer, note()) };
        if !planned {
            add(&self.counters.cpu_noroom, 1);
        }
        planned
    }

    /// Appends the packet for which all was planned. The engine gets all its copies, or none: then
    /// the CPU does them now, and `written` is told of each.
    #[inline]
    pub(super) fn append(&mut self, slot: S, written: impl FnMut(u64, u32)) {
        let planned = self.flight.planned();
        let room = self.engine.as_ref().map_or(0, |(engine, _)| engine.room());
        if planned > room {
            add(&self.counters.cpu_noroom, planned as u64);
            self.flight.copy_planned(written);
        }
        let engine = &mut self.engine;
        let mut bytes = 0;
        self.flight.append(Some(slot), |transfer, place| {
            bytes += u64::from(transfer.len);
            if let Some((engine, _)) = engine {
                // SAFETY: from `transfer`, for bytes that stay until the packet has landed (`plan`).
                // There is room for all.
                unsafe { engine.stage(transfer, place) };
            }
        });
        if bytes != 0 {
            self.packets += 1;
            self.copies += planned as u64;
            self.bytes += bytes;
        }
    }

    /// Rings the doorbell, and counts.
    #[inline]
    pub(super) fn finish(self) {
        drop(self.engine);
        let counters = self.counters;
        if self.copies != 0 {
            add(&counters.copies, self.copies);
            add(&counters.bytes, self.bytes);
            add(&counters.packets, self.packets);
        }
        if self.small != 0 {
            add(&counters.cpu_small, self.small);
        }
    }
}
