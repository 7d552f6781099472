//! Guest to host: chains that the driver transmits become packets.
#![forbid(unsafe_code)]

mod chained;
mod one;

use one::dequeue_one;

use super::copy::{Room, copy_in, copy_piece, copy_whole, read_header};
use super::counters::add;
use super::level::Level;
use super::logging::Logging;
use super::offload::take_up;
use super::{
    IN_ORDER, OFFLOADS, PASS, Packet, PacketPool, QueueCounters, Tally, count, header_len, publish,
};
use crate::memory::{Cursor, GuestRange, Space, Translate};
use crate::virtio_net::Header;
use crate::virtqueue::{
    Chain, Ring, Run, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, Virtqueue, Walk, Walked,
    after_a_miss,
};

/// The longest frame that is taken from a driver. Segmentation offload ends at 64 KB and some
/// headers; more would only let a guest drain the pool with one chain.
pub(super) const MAX_FRAME: u64 = 256 * 1024;

/// A packet in guest memory, ready to be copied.
#[derive(Clone, Copy)]
struct Source<'m> {
    /// Its bytes; before them its header where drivers may ask for something in it, if it may not lie
    /// apart.
    buffer: GuestRange<'m>,
    id: u16,
}

impl<'m> Source<'m> {
    /// The bytes of the packet.
    #[inline(always)]
    fn data<const F: u32, const A: bool>(self) -> GuestRange<'m> {
        if F & OFFLOADS != 0 && !A {
            self.buffer.after(header_len(F))
        } else {
            self.buffer
        }
    }
}

/// What the general body found at the front of the ring.
pub(super) enum Look {
    /// Nothing more, or nothing that can be taken yet.
    Nothing,
    /// A frame, in this chain.
    Frame(Walked),
    /// A chain that holds no frame; counted, to be given back unused.
    Dropped { id: u16, slots: u16 },
}

/// What came of a chain in the general body.
enum Outcome {
    /// A packet, in the first place of those that it could have.
    Received,
    /// The chain went back unused.
    Dropped,
    /// The burst ends here: nothing waits, or the pool is dry.
    End,
}

/// Takes up to `out.len()` packets from the virtqueue; how many were written to `out`.
pub(super) fn dequeue_burst<
    R: Ring,
    S: Space,
    L: Logging,
    V: Level,
    P: PacketPool,
    const F: u32,
>(
    vq: &mut Virtqueue,
    pool: &P,
    out: &mut [P::Packet],
    counters: &QueueCounters,
) -> usize {
    // Nothing but this and two calls, so that nothing is saved twice.
    let asked = count(out.len().min(PASS));
    match R::of(&mut vq.ring).map(|ring| ring.ahead(asked)) {
        Some(1) if !S::ASKS => dequeue_one::<R, S, L, V, P, F>(vq, pool, out, counters),
        _ => dequeue_many::<R, S, L, V, P, F>(vq, pool, out, counters, 0),
    }
}

/// The burst, after the first `received` packets.
#[inline(never)]
fn dequeue_many<R: Ring, S: Space, L: Logging, V: Level, P: PacketPool, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    out: &mut [P::Packet],
    counters: &QueueCounters,
    mut received: usize,
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
    let Some(ring) = R::of(ring) else {
        return received;
    };
    // And by how the driver's addresses are to be read.
    let Some(mut space) = S::hold(memory, lookaside) else {
        return received;
    };
    let with = (features, counters);
    while let Some(rest) = out.get_mut(received..)
        && !rest.is_empty()
    {
        let asked = count(rest.len().min(PASS));
        let waiting = ring.ahead(asked);
        let found = match waiting {
            0 => break,
            _ => V::run(|| {
                short::<R, S, V, P, F, false>(ring, waiting, &mut space, pool, rest, with)
            }),
        };
        let Some(found) = found else { break };
        received += usize::from(found);
        if found == waiting {
            if ring.was_all(waiting, asked) {
                break;
            }
            continue;
        }
        if !ring.has_available() {
            // A packed ring tells only now that it is empty.
            break;
        }
        let rest = out.get_mut(received..).unwrap_or_default();
        received +=
            chained::dequeue_rest::<R, S, V, P, F>(ring, &mut space, chain, pool, rest, with);
        break;
    }
    publish::<_, L>(ring, L::of(log), notifier, S::release(space), counters);
    received
}

/// The short body: takes the packets at the next `waiting` slots until one is not for it; how many
/// that were. With `A` their headers may lie apart. `None`: the pool is dry.
#[inline(always)]
fn short<R: Ring, S: Space, V: Level, P: PacketPool, const F: u32, const A: bool>(
    ring: &mut R,
    waiting: u16,
    space: &mut S::Held<'_>,
    pool: &P,
    out: &mut [P::Packet],
    (features, counters): (u64, &QueueCounters),
) -> Option<u16> {
    let run = ring.run(waiting);
    let mut cursor = S::cursor(space);
    let room = u16::try_from(pool.room()).unwrap_or(u16::MAX);
    if F & IN_ORDER == 0 {
        run.prefetch_used(waiting);
    }
    let mut slots = Room::<_, PASS>::new();
    let mut sources = slots.filling();
    let mut slots = Room::<_, PASS>::new();
    let mut headers = slots.filling();
    for nth in 0..usize::from(run.slots()).min(PASS) {
        let Some((source, header)) = gather::<_, _, F, A>(run, nth, &mut cursor, room) else {
            break;
        };
        if F & IN_ORDER == 0 && R::Run::HIDDEN {
            run.put_used(nth, source.id, 0);
        }
        sources.push(source);
        if F & OFFLOADS != 0 && A {
            headers.push(header);
        }
    }
    let (mut sources, headers) = (sources.done(), headers.done());
    let Some(first) = sources.first() else {
        return Some(0);
    };
    let mut packets = out.get_mut(..sources.len())?;
    if !pool.allocate(packets) {
        let some = allocate_some(pool, packets);
        if some == 0 {
            add(&counters.mbuf_alloc_failed, 1);
            return None;
        }
        sources = sources.get(..some)?;
        packets = packets.get_mut(..some)?;
    }
    let found = count(sources.len());
    let mut tally = Tally::new(counters);
    for (nth, (source, place)) in sources.iter().zip(packets).enumerate() {
        let mut packet = *place;
        let header = match headers.get(nth) {
            Some(header) if A => *header,
            _ => source.buffer,
        };
        let from = (source, header);
        fill::<V, P, F, A>(pool, &mut packet, from, &mut tally, features);
        if F & IN_ORDER == 0 && !R::Run::HIDDEN {
            run.put_used(nth, source.id, 0);
        }
    }
    if F & IN_ORDER != 0 {
        let last = sources.last().unwrap_or(first);
        ring.push_batch(last.id, found);
        ring.take(found);
    } else {
        ring.end_run(found, first.id, 0);
    }
    tally.flush();
    Some(found)
}

/// Fills a beginning of `out`, for all of which the pool has too little; how much that was.
#[cold]
#[inline(never)]
fn allocate_some<P: PacketPool>(pool: &P, out: &mut [P::Packet]) -> usize {
    let mut filled = 0;
    let mut step = out.len();
    // Halves, rounded up: together they make any number below the first.
    while step > 1 {
        step = step.div_ceil(2);
        let rest = out.get_mut(filled..).unwrap_or_default();
        let len = step.min(rest.len());
        if pool.allocate(rest.get_mut(..len).unwrap_or_default()) {
            filled += len;
        }
    }
    filled
}

/// Second pass of the short body: makes a fresh packet that of the source, whose header is given, too.
#[inline(always)]
fn fill<V: Level, P: PacketPool, const F: u32, const A: bool>(
    pool: &P,
    packet: &mut P::Packet,
    (source, header): (&Source<'_>, GuestRange<'_>),
    tally: &mut Tally<'_>,
    features: u64,
) {
    let data = copy_whole::<V>(pool.space(packet), source.data::<F, A>());
    let len = narrow(data.len());
    tally.add(len, data);
    pool.finish(packet, len);
    if F & OFFLOADS != 0 {
        let header = Header::from_bytes(read_header(header));
        if !header.is_plain() {
            take_up(pool, packet, header, features);
        }
    }
}

/// First pass of the short body: the packet at the `nth` slot, when it is one descriptor, lies in one
/// region and fits one buffer; and its header. With `A` the header may have a descriptor of its own.
#[inline(always)]
fn gather<'m, R: Run, T: Translate<'m>, const F: u32, const A: bool>(
    run: R,
    nth: usize,
    cursor: &mut T,
    room: u16,
) -> Option<(Source<'m>, GuestRange<'m>)> {
    let (descriptor, id) = run.peek(nth)?;
    let header = header_len(F);
    let chained = descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) != 0;
    if A && chained {
        let (front, behind) = run.pair(descriptor, cursor)?;
        if front.len != narrow(header) || behind.len.wrapping_sub(1) >= room.into() {
            return None;
        }
        let front = cursor.known(front.addr, header)?;
        let len = usize::from(narrow_16(behind.len));
        let buffer = cursor.known(behind.addr, len)?;
        ask_for::<F>(front, buffer);
        return Some((Source { buffer, id }, front));
    }
    let len = descriptor.len.wrapping_sub(narrow(header));
    // Not empty, and not too long.
    if chained || len.wrapping_sub(1) >= room.into() {
        return None;
    }
    // Less than `room`, which the compiler should see.
    let len = usize::from(narrow_16(len));
    let buffer = cursor.whole(descriptor.addr, header + len)?;
    let data = buffer.after(header);
    ask_for::<F>(buffer, data);
    let front = buffer;
    let buffer = if F & OFFLOADS != 0 && !A {
        buffer
    } else {
        data
    };
    Some((Source { buffer, id }, front))
}

/// Asks for the first lines of a packet, and for its header where that counts.
#[inline(always)]
fn ask_for<const F: u32>(header: GuestRange<'_>, data: GuestRange<'_>) {
    // In a DPDK guest the header ends a line and the data begins the next one.
    data.prefetch(0);
    data.prefetch(64);
    if F & OFFLOADS != 0 {
        header.prefetch(0);
    }
}

/// A length that the 32 bits of a descriptor cover, or within a frame.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "the bodies take only what a descriptor's length covers, or a frame"
)]
fn narrow(len: usize) -> u32 {
    len as u32
}

/// A length that was compared with the room in a packet.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "see above")]
fn narrow_16(len: u32) -> u16 {
    len as u16
}

/// The general body: the chain at the front of the ring, whatever it looks like.
#[inline(never)]
fn dequeue_chain<'m, R: Ring, A: Translate<'m>, P: PacketPool, const F: u32>(
    ring: &mut R,
    mut cursor: A,
    chain: &mut Chain,
    pool: &P,
    out: &mut [P::Packet],
    (features, counters): (u64, &QueueCounters),
) -> Outcome {
    let room = pool.room() as u64;
    let longest = if pool.chains() {
        MAX_FRAME
    } else {
        pool.longest_segment() as u64
    };
    let walked = match look::<R, _, F>(ring, chain, &mut cursor, longest, counters) {
        Look::Nothing => return Outcome::End,
        Look::Dropped { id, slots } => {
            give_back::<R, F>(ring, id, slots);
            return Outcome::Dropped;
        }
        Look::Frame(walked) => walked,
    };
    let Some(packet) = out.first_mut() else {
        return Outcome::End;
    };
    if !pool.allocate(std::slice::from_mut(packet)) {
        add(&counters.mbuf_alloc_failed, 1);
        return Outcome::End;
    }
    let len = walked.bytes - header_len(F) as u64;
    let large = if len > room {
        copy_large::<P, F>(chain, cursor.memory(), pool, packet, len)
    } else {
        None
    };
    if large.is_none() && len > room && !pool.chains() {
        // No large buffer is left. Others behind it may fit, and if all buffers lie in a ring
        // that only more packets move on, it would wait for itself.
        pool.finish(packet, 0);
        pool.release(std::slice::from_ref(packet));
        add(&counters.mbuf_alloc_failed, 1);
        add(&counters.drop_no_mbuf, 1);
        give_back::<R, F>(ring, walked.id, walked.slots);
        return Outcome::Dropped;
    }
    let header = match large {
        Some(header) => Some(header),
        None => copy_frame::<P, F>(chain, cursor.memory(), pool, packet),
    };
    give_back::<R, F>(ring, walked.id, walked.slots);
    let Some(header) = header else {
        // The pool is dry; another long frame would be copied in vain too.
        add(&counters.mbuf_alloc_failed, 1);
        add(&counters.drop_no_mbuf, 1);
        return Outcome::End;
    };
    let mut tally = Tally::new(counters);
    tally.add(packet.len(), packet.segments().next().unwrap_or_default());
    tally.flush();
    if F & OFFLOADS != 0 && !header.is_plain() {
        take_up(pool, packet, header, features);
    }
    Outcome::Received
}

/// Takes a chain and gives it back; nothing is ever written to it.
#[inline(always)]
fn give_back<R: Ring, const F: u32>(ring: &mut R, id: u16, slots: u16) {
    if F & IN_ORDER != 0 {
        ring.push_batch(id, slots);
    } else {
        ring.push_used(id, slots, 0);
    }
    ring.take(slots);
}

/// Walks the chain at the front of the ring.
#[inline(never)]
pub(super) fn look<'m, R: Ring, T: Translate<'m>, const F: u32>(
    ring: &R,
    chain: &mut Chain,
    cursor: &mut T,
    longest: u64,
    counters: &QueueCounters,
) -> Look {
    chain.clear();
    let header = header_len(F) as u64;
    let walked = match ring.walk(0, chain, cursor) {
        Walk::Nothing => return Look::Nothing,
        Walk::Miss { .. } => {
            after_a_miss(ring, chain, cursor);
            return Look::Nothing;
        }
        Walk::Malformed { id, slots } => {
            add(&counters.drop_bad_desc, 1);
            return Look::Dropped { id, slots };
        }
        Walk::Complete(walked) => walked,
    };
    let reason = if walked.bytes <= header {
        &counters.drop_short
    } else if walked.bytes - header > longest {
        &counters.drop_oversize
    } else {
        return Look::Frame(walked);
    };
    add(reason, 1);
    Look::Dropped {
        id: walked.id,
        slots: walked.slots,
    }
}

/// Copies the frame of `len` bytes in `chain` to `packet` with a large buffer; its
/// header, as for [`copy_frame`]. `None` when there was no such buffer.
#[inline(never)]
fn copy_large<P: PacketPool, const F: u32>(
    chain: &Chain,
    cursor: &mut Cursor<'_>,
    pool: &P,
    packet: &mut P::Packet,
    len: u64,
) -> Option<Header> {
    #[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
    let mut room = pool.large(packet, len as usize)?;
    let mut filled = 0;
    let mut header = HeaderBytes::default();
    for segment in chain.segments() {
        let Some(bytes) = cursor.whole(segment.addr, segment.len as usize) else {
            // It was there in the walk, and the table does not change.
            break;
        };
        let copied = copy_in(room, header.take::<F>(bytes)).len();
        room = room.get_mut(copied..).unwrap_or_default();
        filled += copied;
    }
    pool.finish_large(packet, narrow(filled));
    Some(Header::from_bytes(header.bytes))
}

/// Copies the frame in `chain` to `packet`, which is fresh, and to as many more as it takes; its
/// header, when the driver may ask for something in it. `None` when the pool runs dry on the way;
/// `packet` is gone then.
#[inline(never)]
fn copy_frame<P: PacketPool, const F: u32>(
    chain: &Chain,
    cursor: &mut Cursor<'_>,
    pool: &P,
    packet: &mut P::Packet,
) -> Option<Header> {
    let mut build = Build {
        head: *packet,
        last: *packet,
        current: *packet,
        filled: 0,
        started: false,
    };
    let mut header = HeaderBytes::default();
    let mut next = chain.segments().iter().skip(1);
    for segment in chain.segments() {
        // The next buffer comes while this one is copied.
        if let Some(next) = next.next()
            && let Some(next) = cursor.whole(next.addr, next.len as usize)
        {
            (0..4).for_each(|line| next.prefetch(64 * line));
        }
        let Some(mut bytes) = cursor.whole(segment.addr, segment.len as usize) else {
            // It was there in the walk, and the table does not change.
            break;
        };
        bytes = header.take::<F>(bytes);
        while !bytes.is_empty() {
            bytes = build.fill(pool, bytes);
            if !bytes.is_empty() && !build.extend(pool) {
                pool.release(&[build.head]);
                return None;
            }
        }
    }
    build.close(pool);
    *packet = build.head;
    Some(Header::from_bytes(header.bytes))
}

/// The header of a chain, as far as it was seen.
#[derive(Default)]
struct HeaderBytes {
    bytes: [u8; Header::LEN],
    seen: usize,
}

impl HeaderBytes {
    /// Takes what is missing of the header from the start of `bytes`; the rest comes back.
    #[inline(always)]
    fn take<'m, const F: u32>(&mut self, bytes: GuestRange<'m>) -> GuestRange<'m> {
        let len = (header_len(F) - self.seen).min(bytes.len());
        if F & OFFLOADS != 0 && len != 0 {
            copy_piece(self.bytes.get_mut(self.seen..).unwrap_or_default(), bytes);
        }
        self.seen += len;
        bytes.after(len)
    }
}

/// A frame in the making: finished segments, and one that is being filled.
struct Build<T> {
    head: T,
    last: T,
    current: T,
    /// Bytes in `current`.
    filled: u32,
    /// `head` is finished, and `current` another segment.
    started: bool,
}

impl<T: Packet> Build<T> {
    /// Copies as much as the current segment has room for; the rest comes back.
    #[inline(always)]
    fn fill<'m, P: PacketPool<Packet = T>>(
        &mut self,
        pool: &P,
        bytes: GuestRange<'m>,
    ) -> GuestRange<'m> {
        let room = pool.space(&mut self.current);
        let copied = copy_in(
            room.get_mut(self.filled as usize..).unwrap_or_default(),
            bytes,
        )
        .len();
        self.filled += narrow(copied);
        bytes.after(copied)
    }

    /// Finishes the current segment.
    #[inline(always)]
    fn close<P: PacketPool<Packet = T>>(&mut self, pool: &P) {
        if self.started {
            pool.append(&mut self.head, &mut self.last, self.current, self.filled);
        } else {
            pool.finish(&mut self.head, self.filled);
            self.started = true;
        }
        self.last = self.current;
        self.filled = 0;
    }

    /// Finishes the current segment and begins another; whether there was one to have.
    #[inline(always)]
    fn extend<P: PacketPool<Packet = T>>(&mut self, pool: &P) -> bool {
        self.close(pool);
        pool.allocate(std::slice::from_mut(&mut self.current))
    }
}

#[cfg(test)]
mod tests;
