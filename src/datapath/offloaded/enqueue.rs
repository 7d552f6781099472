//! Host to guest.
//!
//! The CPU writes headers and small pieces of packets at once. A packet is released when it has landed.

use super::{Direction, Offloaded};
use crate::datapath::copy::{Room, copy_out};
use crate::datapath::enqueue::{Outcome, Scatter, find_room, plan, reserve};
use crate::datapath::logging::Logging;
use crate::datapath::mover::{LEAST_COPIES, Mover};
use crate::datapath::select::select_offloaded;
use crate::datapath::underway::Underway;
use crate::datapath::{
    EnqueueBurst, PASS, Packet, QueueCounters, Release, Tally, add, count, count_lookups,
    header_len, tell,
};
use crate::dma::flight::{Flight, Given};
use crate::memory::{GuestRange, Space, Translate};
use crate::virtio_net::{Header, Plan};
use crate::virtqueue::{Chain, Reserved, Ring, Virtqueue, look_ahead};

/// A packet that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Sent<T> {
    packet: T,
    /// Bytes of the frame as it is sent.
    len: u32,
}

type Way<P> = Underway<Sent<<P as Release>::Packet>>;

/// To the guest: the bodies for what was negotiated.
pub struct Enqueue<P: Release> {
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

impl<P: Release> Enqueue<P> {
    /// The bodies for ring `R` and features `F`, beside the `plain` one.
    pub(in crate::datapath) fn of<R: Ring, S: Space, L: Logging, const F: u32>(
        plain: EnqueueBurst<P>,
    ) -> Self {
        Self {
            plain,
            burst: enqueue_offloaded::<R, S, L, P, F>,
            land: land::<R, L, P>,
        }
    }
}

impl<P: Release> Direction for Enqueue<P> {
    type Slot = Sent<P::Packet>;

    fn select(virtqueue: &Virtqueue, simd_bits: u16) -> Self {
        select_offloaded(virtqueue, simd_bits)
    }
}

impl<P: Release> Offloaded<Enqueue<P>> {
    /// Sends `packets` in order until one finds no room; how many were taken. They are released when
    /// they have landed.
    #[inline]
    pub fn send(&mut self, pool: &P, packets: &[P::Packet], counters: &QueueCounters) -> usize {
        let worthwhile = |_: &Virtqueue, threshold| worthwhile(packets, threshold);
        if let Some(reason) = self.plain(&counters.dma, worthwhile) {
            let taken = (self.bodies.plain)(&mut self.virtqueue, pool, packets, counters);
            add(reason, taken as u64);
            return taken;
        }
        (self.bodies.burst)(&mut self.virtqueue, &mut self.way, pool, packets, counters)
    }

    /// Polls the engines and gives back what has landed, `most` packets at most; how many packets
    /// were released.
    #[inline]
    pub fn reap(&mut self, pool: &P, most: usize, counters: &QueueCounters) -> usize {
        let landed = self.poll(&counters.dma, |bodies, virtqueue, flight| {
            (bodies.land)(virtqueue, flight, (pool, most), counters)
        });
        landed.unwrap_or(0)
    }

    /// Waits until nothing is under way; engines that take too long are ended. For control threads.
    /// `false`: an engine may write for ever.
    pub fn drain(&mut self, pool: &P, counters: &QueueCounters) -> bool {
        self.empty(&counters.dma, |bodies, virtqueue, flight| {
            (bodies.land)(virtqueue, flight, (pool, usize::MAX), counters);
        })
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
        let to = (&mut *ring, &mut cursor);
        if take_short::<R, _, L, P::Packet, F>(&mut mover, to, packet, &mut log) {
            taken += 1;
            continue;
        }
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
        let mut slots = Room::<_, PASS>::new();
        let mut landed = slots.filling();
        for _ in 0..PASS.min(most - all) {
            let Some(packet) = next::<R, L, _>(ring, flight, &mut log, &mut tally, &mut redone)
            else {
                break;
            };
            landed.push(packet);
        }
        let packets = landed.done();
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

/// Gives back what has landed, up to a packet, which is to be released.
#[inline(always)]
fn next<R: Ring, L: Logging, T: Packet>(
    ring: &mut R,
    flight: &mut Flight<Sent<T>>,
    log: &mut L::Log<'_>,
    tally: &mut Tally<'_>,
    redone: &mut u64,
) -> Option<T> {
    loop {
        let landed = flight.land(|at, len| L::mark_at(log, at, len))?;
        for _ in 0..landed.chains {
            if let Some(chain) = flight.next_chain() {
                ring.push_used(chain.id, chain.slots, chain.len);
            }
        }
        *redone += u64::from(landed.redone);
        if let Some(Sent { packet, len }) = landed.packet {
            tally.add(len, packet.segments().next().unwrap_or_default());
            return Some(packet);
        }
    }
}

/// What is the same for all packets of a burst.
#[derive(Clone, Copy)]
struct Asks<'b> {
    features: u64,
    counters: &'b QueueCounters,
}

/// Takes the common packet in a straight line: one segment that asks for nothing, in one buffer of one
/// descriptor. `false` when it is not so; then nothing has happened.
#[inline(always)]
fn take_short<'m, R: Ring, A: Translate<'m>, L: Logging, T: Packet, const F: u32>(
    mover: &mut Mover<'_, Sent<T>>,
    (ring, cursor): (&mut R, &mut A),
    packet: T,
    log: &mut L::Log<'_>,
) -> bool {
    let Some(data) = packet.plain() else {
        return false;
    };
    if data.len() > mover.longest() || !mover.flight().fits(1) || ring.ahead(1) == 0 {
        return false;
    }
    let header = header_len(F);
    let room = header + data.len();
    let Some((buffer, id)) = find_room::<_, _, F>(ring.run(1), 0, cursor, room) else {
        return false;
    };
    let bytes = Header::default().to_bytes(1);
    copy_out(buffer, bytes.get(..header).unwrap_or_default());
    L::mark(log, buffer.first(header));
    move_out::<_, L>(mover, log, buffer.after(header), data);
    mover.flight().give(Given {
        id,
        slots: 1,
        len: narrow(buffer.len()),
    });
    ring.take(1);
    let len = narrow(data.len());
    mover.append(Sent { packet, len }, |at, len| L::mark_at(log, at, len));
    true
}

/// Takes a packet, with the chains that it fills.
fn take<'m, R: Ring, A: Translate<'m>, L: Logging, T: Packet, const F: u32>(
    mover: &mut Mover<'_, Sent<T>>,
    (ring, chain, cursor): (&mut R, &mut Chain, &mut A),
    packet: T,
    log: L::Log<'_>,
    Asks { features, counters }: Asks<'_>,
) -> Outcome {
    let flight = mover.flight();
    // A driver may offer again what is under way. Each chain takes a slot of the ring or more, so that
    // many at the most are taken or go back unused below.
    let available = ring.available(flight.room());
    if available == 0 {
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

/// Sends the bytes of one segment.
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
        move_out::<_, L>(mover, &mut scatter.log, range, now);
    }
}

/// Sends `data` to `range`, as many bytes as both have: by the CPU now, or planned for the engine.
#[inline(always)]
fn move_out<T: Packet, L: Logging>(
    mover: &mut Mover<'_, Sent<T>>,
    log: &mut L::Log<'_>,
    range: GuestRange<'_>,
    data: &[u8],
) {
    let len = narrow(range.len().min(data.len()));
    let note = || L::address(log, range);
    // SAFETY: `data` are bytes of a packet that the flight has until it is released, which is after
    // it has landed; `range` is in a table that `Underway` keeps mapped at least as long. Both have
    // `len` bytes.
    let planned = unsafe { mover.plan((data.as_ptr(), range.as_ptr()), len, note) };
    if !planned {
        copy_out(range, data);
        L::mark(log, range);
    }
}

/// A length within a packet.
#[inline(always)]
fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
