//! Guest to host.
//!
//! A burst hands out what has landed, then takes frames that wait, as many as two bursts: the CPU reads
//! their headers, once. Only when all copies of a frame have ended its chain is the driver's again.
#![forbid(unsafe_code)]

use super::fill::{Dry, Source, fill};
use super::{Direction, Offloaded};
use crate::datapath::copy::Room;
use crate::datapath::dequeue::{Look, MAX_FRAME, look};
use crate::datapath::logging::Logging;
use crate::datapath::mover::{LEAST_COPIES, Mover};
use crate::datapath::offload::take_up;
use crate::datapath::select::select_incoming;
use crate::datapath::underway::Underway;
use crate::datapath::{
    DequeueBurst, IN_ORDER, OFFLOADS, PASS, Packet, PacketPool, QueueCounters, Release, Tally, add,
    count, count_lookups, header_len, tell,
};
use crate::dma::flight::{Flight, Given};
use crate::memory::{Space, Translate};
use crate::virtio_net::Header;
use crate::virtqueue::{
    Chain, Layout, Ring, Run, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, Virtqueue, Walked,
};

/// Of the bursts that frames are taken ahead, one at least has so many.
const LEAST_BURST: usize = 2 * LEAST_COPIES as usize;

/// A frame that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<T> {
    packet: T,
    /// What the driver asks for; it is looked at again only with the frame's bytes.
    header: Header,
}

pub(super) type Slot<P> = Incoming<<P as Release>::Packet>;
type Way<P> = Underway<Slot<P>>;

/// From the guest: the bodies for what was negotiated.
pub struct Dequeue<P: PacketPool> {
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

impl<P: PacketPool> Dequeue<P> {
    /// The bodies for ring `R` and a header as in `F`, beside the `plain` one; `flags` are all of `F`.
    pub(in crate::datapath) fn of<R: Ring, S: Space, L: Logging, const F: u32>(
        plain: DequeueBurst<P>,
        flags: u32,
    ) -> Self {
        Self {
            plain,
            burst: dequeue_offloaded::<R, S, L, P, F>,
            land: land_all::<R, L, P>,
            flags,
        }
    }
}

impl<P: PacketPool> Direction for Dequeue<P> {
    type Slot = Slot<P>;

    fn select(virtqueue: &Virtqueue, simd_bits: u16) -> Self {
        select_incoming(virtqueue, simd_bits)
    }
}

impl<P: PacketPool> Offloaded<Dequeue<P>> {
    /// Receives packets into `out`; the number of places that were filled.
    #[inline]
    pub fn receive(&mut self, pool: &P, out: &mut [P::Packet], counters: &QueueCounters) -> usize {
        if let Some(reason) = self.plain(&counters.dma, worthwhile) {
            let received = (self.bodies.plain)(&mut self.virtqueue, pool, out, counters);
            if received != 0 {
                add(reason, received as u64);
            }
            return received;
        }
        let way = (&mut self.virtqueue, &mut self.way);
        (self.bodies.burst)(way, pool, out, self.bodies.flags, counters)
    }

    /// Polls the engines and gives back what has landed; `keep` takes the packets.
    pub fn reap(&mut self, pool: &P, keep: &mut dyn FnMut(&[P::Packet]), counters: &QueueCounters) {
        self.poll(&counters.dma, |bodies, virtqueue, flight| {
            (bodies.land)((virtqueue, flight), pool, keep, bodies.flags, counters);
        });
    }

    /// Waits until nothing is under way; engines that take too long are ended. `keep` takes the
    /// packets. For control threads. `false`: an engine may write for ever.
    pub fn drain(
        &mut self,
        pool: &P,
        keep: &mut dyn FnMut(&[P::Packet]),
        counters: &QueueCounters,
    ) -> bool {
        self.empty(&counters.dma, |bodies, virtqueue, flight| {
            (bodies.land)((virtqueue, flight), pool, keep, bodies.flags, counters);
        })
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
    for nth in 0..usize::from(run.slots()) {
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

/// See [`Offloaded::receive`].
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
        let mut packets = room.filling();
        for _ in 0..most {
            let Some(packet) = self.next(ring, flight, pool, (&mut tally, &mut redone)) else {
                break;
            };
            packets.push(packet);
        }
        let packets = packets.done();
        hand_out(packets);
        tally.flush();
        if redone != 0 {
            add(&counters.dma.redone, redone);
        }
    }

    /// Gives back what has landed, up to a packet, which is to be handed out.
    #[inline(always)]
    fn next<R: Ring, P: PacketPool>(
        &self,
        ring: &mut R,
        flight: &mut Flight<Slot<P>>,
        pool: &P,
        (tally, redone): (&mut Tally<'_>, &mut u64),
    ) -> Option<P::Packet> {
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
            *redone += u64::from(landed.redone);
            if let Some(Incoming { mut packet, header }) = landed.packet {
                tally.add(packet.len(), packet.segments().next().unwrap_or_default());
                if self.flags & OFFLOADS != 0 && !header.is_plain() {
                    take_up(pool, &mut packet, header, self.features);
                }
                return Some(packet);
            }
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
    let mut source = Source::new(cursor.memory(), chain.segments());
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
