//! Host to guest, with engines that copy the large pieces.
//!
//! A burst polls the engines, gives back to the driver what has landed, and takes new packets: the
//! CPU writes their headers and their small pieces at once, an engine gets the large ones, with one
//! doorbell for the burst. A packet and its chains then stay in the [`Flight`] until all its copies
//! have ended; they leave it in order, so the driver sees what it would see without engines.

use std::sync::Arc;
use std::time::Instant;

use super::copy::{Room, copy_out};
use super::enqueue::{Outcome, Scatter, plan, reserve};
use super::logging::Logging;
use super::mover::{LEAST_COPIES, Mover};
use super::select::select_offloaded;
use super::underway::Underway;
use super::{
    EnqueueBurst, PASS, Packet, QueueCounters, Release, Tally, add, count, count_lookups,
    header_len, tell,
};
use crate::dma::channel::Channel;
use crate::dma::flight::{Flight, Given};
use crate::memory::{Space, Translate};
use crate::virtio_net::{Header, Plan};
use crate::virtqueue::{Chain, Reserved, Ring, Virtqueue, look_ahead};

/// A packet that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<T> {
    packet: T,
    /// Bytes of the frame as it is sent.
    len: u32,
}

type Way<P> = Underway<Sent<<P as Release>::Packet>>;

/// The bodies for what was negotiated.
pub(super) struct Bodies<P: Release> {
    plain: EnqueueBurst<P>,
    burst: Send<P>,
    land: Land<P>,
}

/// Takes packets; how many.
type Send<P> =
    fn(&mut Virtqueue, &mut Way<P>, &P, &[<P as Release>::Packet], &QueueCounters) -> usize;

/// Gives back what has landed, a number of packets at most; how many.
type Land<P> = fn(
    &mut Virtqueue,
    &mut Flight<Sent<<P as Release>::Packet>>,
    (&P, usize),
    &QueueCounters,
) -> usize;

/// The bodies for ring `R` and features `F`.
pub(super) fn bodies<R: Ring, S: Space, L: Logging, P: Release, const F: u32>(
    plain: EnqueueBurst<P>,
) -> Bodies<P> {
    Bodies {
        plain,
        burst: enqueue_offloaded::<R, S, L, P, F>,
        land: land::<R, L, P>,
    }
}

/// A virtqueue to which packets are sent, with its engines and the packets that they copy.
pub struct Offloaded<P: Release> {
    virtqueue: Virtqueue,
    bodies: Bodies<P>,
    way: Way<P>,
}

impl<P: Release> Offloaded<P> {
    /// Sends to `virtqueue` with `channels`, which get the copies of at least `threshold` bytes.
    /// The application allows vectors of `simd_bits`.
    pub fn new(
        virtqueue: Virtqueue,
        channels: &[Arc<Channel>],
        threshold: u32,
        simd_bits: u16,
    ) -> Self {
        Self {
            bodies: select_offloaded(&virtqueue, simd_bits),
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

    /// Sends `packets` in order until one finds no room; how many were taken. They are released when
    /// they have landed.
    #[inline]
    pub fn send(&mut self, pool: &P, packets: &[P::Packet], counters: &QueueCounters) -> usize {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        if way.flight.is_empty() {
            let dma = &counters.dma;
            let reason = if way.engines.are_dead() {
                Some(&dma.cpu_noroom)
            } else if !way.engines.are_eager() && !worthwhile(packets, way.engines.threshold()) {
                Some(&dma.cpu_small)
            } else {
                None
            };
            if let Some(reason) = reason {
                let taken = (bodies.plain)(virtqueue, pool, packets, counters);
                add(reason, taken as u64);
                return taken;
            }
        }
        (bodies.burst)(virtqueue, way, pool, packets, counters)
    }

    /// Polls the engines and gives back what has landed, `most` packets at most; how many packets
    /// were released.
    #[inline]
    pub fn reap(&mut self, pool: &P, most: usize, counters: &QueueCounters) -> usize {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        if way.flight.is_empty() {
            return 0;
        }
        way.engines.reap();
        let landed = (bodies.land)(virtqueue, &mut way.flight, (pool, most), counters);
        way.note(&counters.dma);
        landed
    }

    /// Where the oldest packet under way stands; another number when one has landed since.
    pub fn first(&self) -> u32 {
        self.way.flight.first()
    }

    /// The watchdog's look at the engines.
    pub fn watch(&self, now: Instant) {
        self.way.watch(now);
    }

    /// Waits until nothing is under way; engines that take too long are ended. For control threads.
    /// `false`: an engine may write for ever.
    pub fn drain(&mut self, pool: &P, counters: &QueueCounters) -> bool {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        way.drain(&counters.dma, |flight| {
            (bodies.land)(virtqueue, flight, (pool, usize::MAX), counters);
        })
    }

    /// The virtqueue, without engines. What was under way should be [drained](Self::drain) before:
    /// what is left is never released, its memory stays mapped, and the virtqueue tells so.
    pub fn into_virtqueue(mut self) -> Virtqueue {
        if !self.is_empty() {
            self.virtqueue.hold();
        }
        self.virtqueue
    }
}

/// Whether a burst has enough for an engine when nothing is under way.
#[inline]
fn worthwhile<T: Packet>(packets: &[T], threshold: u32) -> bool {
    let mut copies = 0;
    for packet in packets {
        let len = packet.len();
        if len >= threshold {
            // Buffers of a driver have 1.5 to 4 KB.
            copies += 1 + len / 4096;
        }
        if copies >= LEAST_COPIES {
            return true;
        }
    }
    false
}

/// See [`Offloaded::send`].
fn enqueue_offloaded<R: Ring, S: Space, L: Logging, P: Release, const F: u32>(
    vq: &mut Virtqueue,
    way: &mut Way<P>,
    pool: &P,
    packets: &[P::Packet],
    counters: &QueueCounters,
) -> usize {
    if !way.flight.is_empty() {
        way.engines.reap();
        land::<R, L, P>(vq, &mut way.flight, (pool, usize::MAX), counters);
    }
    let features = vq.features();
    let Virtqueue {
        ring,
        memory,
        lookaside,
        chain,
        log,
        ..
    } = vq;
    // `select` chose the burst by the layout and the log.
    let Some(ring) = R::of(ring) else { return 0 };
    let Some(mut log) = L::of(log) else { return 0 };
    // And by how the driver's addresses are to be read.
    let Some(mut space) = S::hold(memory, lookaside) else {
        return 0;
    };
    let mut mover = Mover::new(way, &counters.dma);
    let asks = Asks { features, counters };
    let mut taken = 0;
    chain.begin_burst();
    for &packet in packets {
        if chain.exhausted() {
            break;
        }
        let mut cursor = S::cursor(&mut space);
        let chains = (&mut *ring, &mut *chain, &mut cursor);
        let log = L::lend(&mut log);
        match take::<R, _, L, P::Packet, F>(&mut mover, chains, packet, log, asks) {
            Outcome::Sent => {}
            Outcome::Dropped => pool.release(&[packet]),
            Outcome::NoRoom => break,
        }
        taken += 1;
    }
    mover.finish();
    look_ahead(ring, chain, &mut S::cursor(&mut space));
    count_lookups(S::release(space), counters);
    drop(log);
    if way.flight.lands() {
        land::<R, L, P>(vq, &mut way.flight, (pool, usize::MAX), counters);
    }
    way.note(&counters.dma);
    taken
}

/// Gives back to the driver what has landed, and releases it; how many packets that were.
fn land<R: Ring, L: Logging, P: Release>(
    vq: &mut Virtqueue,
    flight: &mut Flight<Sent<P::Packet>>,
    (pool, most): (&P, usize),
    counters: &QueueCounters,
) -> usize {
    let Virtqueue {
        ring,
        notifier,
        log,
        ..
    } = vq;
    // `select` chose this by the layout and the log.
    let Some(ring) = R::of(ring) else { return 0 };
    let Some(mut log) = L::of(log) else { return 0 };
    let mut tally = Tally::new(counters);
    let mut redone = 0;
    let mut all = 0;
    while all < most && flight.lands() {
        let mut room = Room::<_, PASS>::new();
        let packets = room.fill(0..PASS.min(most - all), |_, _| {
            loop {
                let landed = flight.land(|at, len| L::mark_at(&mut log, at, len))?;
                for _ in 0..landed.chains {
                    if let Some(chain) = flight.next_chain() {
                        ring.push_used(chain.id, chain.slots, chain.len);
                    }
                }
                redone += u64::from(landed.redone);
                if let Some(Sent { packet, len }) = landed.packet {
                    tally.add(len, packet.segments().next().unwrap_or_default());
                    return Some(packet);
                }
            }
        });
        pool.release(packets);
        all += packets.len();
    }
    tell::<_, L>(ring, Some(log), notifier, counters);
    tally.flush();
    if redone != 0 {
        add(&counters.dma.redone, redone);
    }
    all
}

/// What is the same for all packets of a burst.
#[derive(Clone, Copy)]
struct Asks<'b> {
    features: u64,
    counters: &'b QueueCounters,
}

/// Takes a packet, with the chains that it fills.
fn take<'m, R: Ring, A: Translate<'m>, L: Logging, T: Packet, const F: u32>(
    mover: &mut Mover<'_, Sent<T>>,
    (ring, chain, cursor): (&mut R, &mut Chain, &mut A),
    packet: T,
    log: L::Log<'_>,
    Asks { features, counters }: Asks<'_>,
) -> Outcome {
    let available = ring.available(u16::MAX);
    let flight = mover.flight();
    if available == 0 || !flight.fits(1) {
        return Outcome::NoRoom;
    }
    let mut plan = match plan(&packet, features, counters) {
        Ok(plan) => plan,
        Err(dropped) => return dropped,
    };
    let header = header_len(F);
    let len = plan.as_ref().map_or(packet.len(), Plan::frame_len);
    let need = u64::from(len) + header as u64;
    // Chains that go back unused wait for those before them.
    let spoilt = |_: &mut R, chain: Reserved| {
        flight.give(Given {
            id: chain.id,
            slots: chain.slots,
            len: 0,
        });
        flight.append(None, |_, _| {});
    };
    let limits = (available, need);
    let slots = match reserve::<R, A, F>(ring, chain, cursor, limits, counters, spoilt) {
        Ok(slots) => slots,
        Err(outcome) => return outcome,
    };
    if !mover.flight().fits(chain.heads().len()) {
        return Outcome::NoRoom;
    }
    if let Some(plan) = &mut plan
        && !plan.complete(packet.segments())
    {
        add(&counters.drop_csum, 1);
        return Outcome::Dropped;
    }
    let mut scatter = Scatter::<'_, '_, '_, L> {
        log,
        cursor: cursor.memory(),
        segments: chain.segments(),
        left: None,
    };
    let asked = plan.as_ref().map_or(Header::default(), |plan| plan.header);
    let bytes = asked.to_bytes(count(chain.heads().len()));
    scatter.write(bytes.get(..header).unwrap_or_default());
    match &plan {
        Some(plan) => {
            let mut pieces = plan.bytes(packet.segments());
            // The first piece is the plan's own.
            scatter.write(pieces.next().unwrap_or_default());
            pieces.for_each(|bytes| send(mover, &mut scatter, bytes));
        }
        None => packet
            .segments()
            .for_each(|bytes| send(mover, &mut scatter, bytes)),
    }
    let mut log = scatter.log;
    let mut left = need;
    for reserved in chain.heads() {
        let used = reserved.bytes.min(left);
        left -= used;
        mover.flight().give(Given {
            id: reserved.id,
            slots: reserved.slots,
            len: u32::try_from(used).unwrap_or(u32::MAX),
        });
    }
    ring.take(slots);
    mover.append(Sent { packet, len }, |at, len| {
        L::mark_at(&mut log, at, len);
    });
    Outcome::Sent
}

/// Sends the bytes of one segment: by the CPU now, or planned for the engine.
fn send<T: Packet, L: Logging>(
    mover: &mut Mover<'_, Sent<T>>,
    scatter: &mut Scatter<'_, '_, '_, L>,
    mut data: &[u8],
) {
    let longest = mover.longest();
    while !data.is_empty() {
        let Some(range) = scatter.take(data.len().min(longest)) else {
            // The walk found room for all of it, and the table does not change.
            return;
        };
        let (now, later) = data.split_at_checked(range.len()).unwrap_or((data, &[]));
        data = later;
        let len = u32::try_from(now.len()).unwrap_or(u32::MAX);
        let note = || L::address(&mut scatter.log, range);
        // SAFETY: `now` are bytes of a packet that the flight has until it is released, which is
        // after it has landed; `range` is in a table that `Underway` keeps mapped at least as long.
        let planned = unsafe { mover.plan((now.as_ptr(), range.as_ptr()), len, note) };
        if !planned {
            copy_out(range, now);
            L::mark(&mut scatter.log, range);
        }
    }
}

#[cfg(test)]
mod tests;
