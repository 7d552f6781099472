//! Guest to host, with engines that copy the large pieces.
//!
//! A burst polls the engines and hands out what has landed, in order; then it takes frames that wait,
//! as many as two bursts: the CPU reads their headers, once, and copies their small pieces at once,
//! an engine gets the large ones, with one doorbell for the burst. A frame and its chain then stay in
//! the [`Flight`] until all its copies have ended: only then the chain is the driver's again.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use super::copy::{Room, copy_in, copy_piece};
use super::dequeue::{Look, MAX_FRAME, look};
use super::logging::Logging;
use super::mover::{LEAST_COPIES, Mover};
use super::offload::take_up;
use super::select::select_incoming;
use super::underway::Underway;
use super::{
    DequeueBurst, IN_ORDER, OFFLOADS, PASS, Packet, PacketPool, QueueCounters, Release, Tally, add,
    count, count_lookups, header_len, tell,
};
use crate::dma::channel::Channel;
use crate::dma::flight::{Flight, Given};
use crate::memory::{Cursor, GuestRange, Space, Translate};
use crate::virtio_net::Header;
use crate::virtqueue::{
    Chain, Layout, Ring, Run, Segment, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, Virtqueue, Walked,
};

/// Of the bursts that frames are taken ahead, one at least has so many.
const LEAST_BURST: usize = 2 * LEAST_COPIES as usize;

/// A frame that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<T> {
    packet: T,
    /// What the driver asks for; it is looked at again only with the frame's bytes.
    header: Header,
}

type Slot<P> = Incoming<<P as Release>::Packet>;
type Way<P> = Underway<Slot<P>>;

/// The bodies for what was negotiated.
pub(super) struct Bodies<P: PacketPool> {
    plain: DequeueBurst<P>,
    burst: Receive<P>,
    land: Land<P>,
    /// [`OFFLOADS`] and [`IN_ORDER`].
    flags: u32,
}

/// As [`DequeueBurst`], with engines.
type Receive<P> = fn(
    (&mut Virtqueue, &mut Way<P>),
    &P,
    &mut [<P as Release>::Packet],
    u32,
    &QueueCounters,
) -> usize;

/// Gives back what has landed, and hands its packets over.
type Land<P> = fn(
    (&mut Virtqueue, &mut Flight<Slot<P>>),
    &P,
    &mut dyn FnMut(&[<P as Release>::Packet]),
    u32,
    &QueueCounters,
);

/// The bodies for ring `R` and a header as in `F`; `flags` are all of `F`.
pub(super) fn bodies<R: Ring, S: Space, L: Logging, P: PacketPool, const F: u32>(
    plain: DequeueBurst<P>,
    flags: u32,
) -> Bodies<P> {
    Bodies {
        plain,
        burst: dequeue_offloaded::<R, S, L, P, F>,
        land: land_all::<R, L, P>,
        flags,
    }
}

/// A virtqueue from which packets are received, with its engines and the packets that they copy.
pub struct OffloadedDequeue<P: PacketPool> {
    virtqueue: Virtqueue,
    bodies: Bodies<P>,
    way: Way<P>,
}

impl<P: PacketPool> OffloadedDequeue<P> {
    /// Receives from `virtqueue` with `channels`, which get the copies of at least `threshold`
    /// bytes. The application allows vectors of `simd_bits`.
    pub fn new(
        virtqueue: Virtqueue,
        channels: &[Arc<Channel>],
        threshold: u32,
        simd_bits: u16,
    ) -> Self {
        Self {
            bodies: select_incoming(&virtqueue, simd_bits),
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

    /// Frames under way.
    #[inline]
    pub fn len(&self) -> u32 {
        self.way.flight.len()
    }

    /// Whether nothing is under way.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.way.flight.is_empty()
    }

    /// Receives packets into `out`; the number of places that were filled.
    #[inline]
    pub fn receive(&mut self, pool: &P, out: &mut [P::Packet], counters: &QueueCounters) -> usize {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        if way.flight.is_empty() {
            let engines = &way.engines;
            let reason = if engines.are_dead() {
                Some(&counters.dma.cpu_noroom)
            } else if !engines.are_eager() && !worthwhile(virtqueue, engines.threshold()) {
                Some(&counters.dma.cpu_small)
            } else {
                None
            };
            if let Some(reason) = reason {
                let received = (bodies.plain)(virtqueue, pool, out, counters);
                if received != 0 {
                    add(reason, received as u64);
                }
                return received;
            }
        }
        (bodies.burst)((virtqueue, way), pool, out, bodies.flags, counters)
    }

    /// Polls the engines and gives back what has landed; `keep` takes the packets.
    pub fn reap(&mut self, pool: &P, keep: &mut dyn FnMut(&[P::Packet]), counters: &QueueCounters) {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        if way.flight.is_empty() {
            return;
        }
        way.engines.reap();
        let ring = (virtqueue, &mut way.flight);
        (bodies.land)(ring, pool, keep, bodies.flags, counters);
        way.note(&counters.dma);
    }

    /// Where the oldest frame under way stands; another number when one has landed since.
    pub fn first(&self) -> u32 {
        self.way.flight.first()
    }

    /// The watchdog's look at the engines.
    pub fn watch(&self, now: Instant) {
        self.way.watch(now);
    }

    /// Waits until nothing is under way; engines that take too long are ended. `keep` takes the
    /// packets. For control threads. `false`: an engine may write for ever.
    pub fn drain(
        &mut self,
        pool: &P,
        keep: &mut dyn FnMut(&[P::Packet]),
        counters: &QueueCounters,
    ) -> bool {
        let Self {
            virtqueue,
            bodies,
            way,
        } = self;
        way.drain(&counters.dma, |flight| {
            (bodies.land)((virtqueue, flight), pool, keep, bodies.flags, counters);
        })
    }

    /// The virtqueue, without engines. What was under way should be [drained](Self::drain) before:
    /// what is left is never handed out, its memory stays mapped, and the virtqueue tells so.
    pub fn into_virtqueue(mut self) -> Virtqueue {
        if !self.is_empty() {
            self.virtqueue.hold();
        }
        self.virtqueue
    }
}

/// Whether enough for an engine waits when nothing is under way.
#[inline]
fn worthwhile(virtqueue: &Virtqueue, threshold: u32) -> bool {
    match &virtqueue.ring {
        Layout::Split(ring) => has_copies(ring, threshold),
        Layout::Packed(ring) => has_copies(ring, threshold),
    }
}

/// A guess from the first descriptors of what waits, which are read again when it is taken.
#[inline]
fn has_copies<R: Ring>(ring: &R, threshold: u32) -> bool {
    let waiting = ring.ahead(count(PASS));
    if u32::from(waiting) < LEAST_COPIES {
        return false;
    }
    let run = ring.run(waiting);
    let mut copies = 0;
    for nth in 0..waiting {
        let Some((descriptor, _)) = run.peek(nth) else {
            break;
        };
        // How long the others are only the walk tells.
        let more = descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) != 0;
        copies += u32::from(more || descriptor.len >= threshold);
        if copies >= LEAST_COPIES {
            return true;
        }
    }
    false
}

/// See [`OffloadedDequeue::receive`].
fn dequeue_offloaded<R: Ring, S: Space, L: Logging, P: PacketPool, const F: u32>(
    (vq, way): (&mut Virtqueue, &mut Way<P>),
    pool: &P,
    out: &mut [P::Packet],
    flags: u32,
    counters: &QueueCounters,
) -> usize {
    let features = vq.features();
    let Virtqueue {
        ring,
        memory,
        lookaside,
        notifier,
        chain,
        log,
        ..
    } = vq;
    // `select` chose the burst by the layout and the log.
    let Some(ring) = R::of(ring) else { return 0 };
    // And by how the driver's addresses are to be read.
    let Some(mut space) = S::hold(memory, lookaside) else {
        return 0;
    };
    let landing = Landing {
        features,
        flags,
        counters,
    };
    if !way.flight.is_empty() {
        way.engines.reap();
    }
    let mut received = landing.land_in(ring, &mut way.flight, pool, out);
    let most = 2 * out.len().max(LEAST_BURST);
    let mut mover = Mover::new(way, &counters.dma);
    chain.begin_burst();
    while (mover.flight().len() as usize) < most && ring.has_available() {
        let mut cursor = S::cursor(&mut space);
        let from = (&mut *ring, &mut *chain, &mut cursor);
        match take::<R, _, P, F>(&mut mover, from, pool, flags, counters) {
            Outcome::Taken => {}
            Outcome::End => break,
        }
        if chain.exhausted() {
            break;
        }
    }
    mover.finish();
    count_lookups(S::release(space), counters);
    let rest = out.get_mut(received..).unwrap_or_default();
    received += landing.land_in(ring, &mut way.flight, pool, rest);
    tell::<_, L>(ring, L::of(log), notifier, counters);
    way.note(&counters.dma);
    received
}

/// Gives all back that has landed.
fn land_all<R: Ring, L: Logging, P: PacketPool>(
    (vq, flight): (&mut Virtqueue, &mut Flight<Slot<P>>),
    pool: &P,
    keep: &mut dyn FnMut(&[P::Packet]),
    flags: u32,
    counters: &QueueCounters,
) {
    let landing = Landing {
        features: vq.features(),
        flags,
        counters,
    };
    let Virtqueue {
        ring,
        notifier,
        log,
        ..
    } = vq;
    // `select` chose this by the layout.
    let Some(ring) = R::of(ring) else { return };
    while flight.lands() {
        landing.land(ring, flight, pool, PASS, keep);
    }
    tell::<_, L>(ring, L::of(log), notifier, counters);
}

/// How frames land.
struct Landing<'c> {
    features: u64,
    flags: u32,
    counters: &'c QueueCounters,
}

impl Landing<'_> {
    /// Hands what has landed over in `out`; how many places were filled.
    fn land_in<R: Ring, P: PacketPool>(
        &self,
        ring: &mut R,
        flight: &mut Flight<Slot<P>>,
        pool: &P,
        out: &mut [P::Packet],
    ) -> usize {
        let mut filled = 0;
        while filled < out.len() && flight.lands() {
            let most = PASS.min(out.len() - filled);
            self.land(ring, flight, pool, most, &mut |packets| {
                for (to, from) in out.iter_mut().skip(filled).zip(packets) {
                    *to = *from;
                }
                filled += packets.len();
            });
        }
        filled
    }

    /// Gives back to the driver what has landed; `hand_out` gets its packets, at most `most` and at
    /// most [`PASS`]. The driver does not see it yet.
    fn land<R: Ring, P: PacketPool>(
        &self,
        ring: &mut R,
        flight: &mut Flight<Slot<P>>,
        pool: &P,
        most: usize,
        hand_out: &mut dyn FnMut(&[P::Packet]),
    ) {
        let counters = self.counters;
        let mut tally = Tally::new(counters);
        let mut redone = 0;
        let mut room = Room::<_, PASS>::new();
        let packets = room.fill(0..most, |_, _| {
            loop {
                // Nothing of the guest's but its ring is written.
                let landed = flight.land(|_, _| {})?;
                for _ in 0..landed.chains {
                    if let Some(chain) = flight.next_chain() {
                        if self.flags & IN_ORDER != 0 {
                            ring.push_batch(chain.id, chain.slots);
                        } else {
                            ring.push_used(chain.id, chain.slots, 0);
                        }
                    }
                }
                redone += u64::from(landed.redone);
                if let Some(Incoming { mut packet, header }) = landed.packet {
                    tally.add(packet.len(), packet.segments().next().unwrap_or_default());
                    if self.flags & OFFLOADS != 0 && !header.is_plain() {
                        take_up(pool, &mut packet, header, self.features);
                    }
                    return Some(packet);
                }
            }
        });
        hand_out(packets);
        tally.flush();
        if redone != 0 {
            add(&counters.dma.redone, redone);
        }
    }
}

/// What came of the chain at the front of the ring.
enum Outcome {
    /// It was taken.
    Taken,
    /// The burst ends here: nothing waits, there is no room, or the pool is dry.
    End,
}

/// Takes the chain at the front of the ring, whatever it looks like.
fn take<'m, R: Ring, A: Translate<'m>, P: PacketPool, const F: u32>(
    mover: &mut Mover<'_, Slot<P>>,
    (ring, chain, cursor): (&mut R, &mut Chain, &mut A),
    pool: &P,
    flags: u32,
    counters: &QueueCounters,
) -> Outcome {
    if !mover.flight().fits(1) {
        return Outcome::End;
    }
    let longest = if pool.chains() {
        MAX_FRAME
    } else {
        pool.longest_segment() as u64
    };
    let walked = match look::<R, _, F>(ring, chain, cursor, longest, counters) {
        Look::Nothing => return Outcome::End,
        Look::Dropped { id, slots } => {
            drop_chain(mover, ring, id, slots);
            return Outcome::Taken;
        }
        Look::Frame(walked) => walked,
    };
    let Some(packet) = pool.one() else {
        add(&counters.mbuf_alloc_failed, 1);
        return Outcome::End;
    };
    let Walked { id, slots, bytes } = walked;
    let mut source = Source {
        cursor: cursor.memory(),
        segments: chain.segments(),
        left: None,
    };
    let header = source.header::<F>(flags & OFFLOADS != 0);
    #[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
    let len = (bytes - header_len(F) as u64) as usize;
    match fill(mover, &mut source, pool, packet, len) {
        Ok(packet) => {
            mover.flight().give(Given { id, slots, len: 0 });
            ring.take(slots);
            // Nothing of the guest's is written.
            mover.append(Incoming { packet, header }, |_, _| {});
            Outcome::Taken
        }
        Err(dry) => {
            // As without engines: the chain would only be copied in vain again, and again.
            mover.flight().forget_planned();
            add(&counters.mbuf_alloc_failed, 1);
            add(&counters.drop_no_mbuf, 1);
            drop_chain(mover, ring, id, slots);
            match dry {
                Dry::Pool => Outcome::End,
                Dry::LargeBuffers => Outcome::Taken,
            }
        }
    }
}

/// A chain without a frame goes back in its turn.
fn drop_chain<R: Ring, T: Copy>(
    mover: &mut Mover<'_, Incoming<T>>,
    ring: &mut R,
    id: u16,
    slots: u16,
) {
    let flight = mover.flight();
    flight.give(Given { id, slots, len: 0 });
    flight.append(None, |_, _| {});
    ring.take(slots);
}

/// What there is no more of.
enum Dry {
    /// Packets.
    Pool,
    /// Large buffers, and no frame may be a chain.
    LargeBuffers,
}

/// Has a frame of `len` bytes copied to `packet`, which is fresh, and to as many more as it takes.
/// When it cannot be done `packet` is gone.
fn fill<P: PacketPool>(
    mover: &mut Mover<'_, Slot<P>>,
    source: &mut Source<'_, '_>,
    pool: &P,
    packet: P::Packet,
    len: usize,
) -> Result<P::Packet, Dry> {
    let mut head = packet;
    if len > pool.room() {
        if let Some(room) = pool.large(&mut head, len) {
            move_in(mover, source, room);
            pool.finish_large(&mut head, narrow(len));
            return Ok(head);
        }
        if !pool.chains() {
            pool.finish(&mut head, 0);
            pool.release(&[head]);
            return Err(Dry::LargeBuffers);
        }
    }
    let (mut last, mut current) = (head, head);
    let mut left = len;
    loop {
        let room = pool.space(&mut current);
        let part = left.min(room.len());
        move_in(mover, source, room.get_mut(..part).unwrap_or_default());
        if left == len {
            pool.finish(&mut head, narrow(part));
        } else {
            pool.append(&mut head, &mut last, current, narrow(part));
        }
        last = current;
        left -= part;
        if left == 0 {
            return Ok(head);
        }
        // Nobody has packets without room, but a loop must end.
        let next = if part == 0 { None } else { pool.one() };
        let Some(next) = next else {
            pool.release(&[head]);
            return Err(Dry::Pool);
        };
        current = next;
    }
}

/// Has the next bytes of a frame moved to `room`: by the CPU now, or planned for the engine.
fn move_in<T: Copy>(
    mover: &mut Mover<'_, Incoming<T>>,
    source: &mut Source<'_, '_>,
    mut room: &mut [MaybeUninit<u8>],
) {
    let longest = mover.longest();
    while !room.is_empty() {
        let Some(range) = source.take(room.len().min(longest)) else {
            // The walk found so many bytes, and the table does not change.
            return;
        };
        let all = std::mem::take(&mut room);
        let Some((now, later)) = all.split_at_mut_checked(range.len()) else {
            return;
        };
        room = later;
        let to = now.as_mut_ptr().cast();
        // SAFETY: `now` is room of a packet that the flight has until it is handed out, which is
        // after it has landed; `range` is in a table that `Underway` keeps mapped at least as long.
        // The driver may write there meanwhile, and spoils its own frame.
        let planned = unsafe { mover.plan((range.as_ptr(), to), narrow(range.len()), || 0) };
        if !planned {
            copy_in(now, range);
        }
    }
}

/// A length within a frame.
#[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
fn narrow(len: usize) -> u32 {
    len as u32
}

/// Reads on and on over the buffers of a chain.
struct Source<'c, 'm> {
    cursor: &'c mut Cursor<'m>,
    segments: &'c [Segment],
    left: Option<GuestRange<'m>>,
}

impl<'m> Source<'_, 'm> {
    /// Takes the next `most` bytes, or fewer when a buffer ends; `None` when all are taken.
    fn take(&mut self, most: usize) -> Option<GuestRange<'m>> {
        let range = match self.left.take().filter(|range| !range.is_empty()) {
            Some(range) => range,
            None => {
                let (first, rest) = self.segments.split_first()?;
                self.segments = rest;
                // It was there in the walk, and the table does not change.
                self.cursor.whole(first.addr, first.len as usize)?
            }
        };
        self.left = Some(range.after(most));
        Some(range.first(most))
    }

    /// Takes the frame's header, which is read once, if at all.
    fn header<const F: u32>(&mut self, wanted: bool) -> Header {
        let mut bytes = [0; Header::LEN];
        let mut seen = 0;
        while let Some(left) = header_len(F).checked_sub(seen).filter(|left| *left != 0)
            && let Some(range) = self.take(left)
        {
            if wanted {
                copy_piece(bytes.get_mut(seen..).unwrap_or_default(), range);
            }
            seen += range.len();
        }
        Header::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests;
