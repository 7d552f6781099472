//! Host to guest: packets go into the buffers that the driver posted.
#![forbid(unsafe_code)]

mod one;
mod one_by_one;

use one::send_one;
use one_by_one::enqueue_one_by_one;

use super::copy::{Matched, Room, copy_out, copy_pair};
use super::counters::add;
use super::level::Level;
use super::logging::Logging;
use super::{MERGEABLE, PASS, Packet, QueueCounters, Release, Tally, count, header_len, publish};
use crate::memory::{Cursor, GuestRange, Space, Translate};
use crate::virtio_net::{Changes, Header, Plan, Refused, Sum, Word, takes_unsummed};
use crate::virtqueue::{
    Chain, Reserved, Ring, Run, Segment, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE, Virtqueue, Walk, Walked, after_a_miss, look_ahead,
};

/// A packet and the one buffer that it fits into.
#[derive(Clone, Copy)]
struct Target<'m, 'p, const F: u32> {
    both: Matched<'m, 'p, F>,
    id: u16,
}

/// What is asked for with a packet.
#[derive(Clone, Copy, Default)]
struct Asks<'m> {
    changes: Changes,
    /// With a tag, all that is behind it is in its place, as if the buffer began a tag later; this is
    /// what the buffer really begins with.
    front: Option<GuestRange<'m>>,
}

/// Bytes of a VLAN tag, and of the addresses that stand before it.
const TAG_LEN: usize = 4;
const ADDRESSES_LEN: usize = 12;

/// What came of a packet in the general body.
pub(super) enum Outcome {
    /// It is in the driver's buffers.
    Sent,
    /// It must wait for more buffers.
    NoRoom,
    /// It can never be sent; it counts as taken from the caller.
    Dropped,
}

/// Sends `packets` in order until one finds no room; how many were taken. Those are released.
pub(super) fn enqueue_burst<R: Ring, S: Space, L: Logging, V: Level, P: Release, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    packets: &[P::Packet],
    counters: &QueueCounters,
) -> usize {
    // Nothing but this and two calls, so that nothing is saved twice.
    match packets {
        [packet] if !S::ASKS => send_one::<R, S, L, V, _, F>(vq, pool, packet, counters),
        _ => send_many::<R, S, L, V, _, F>(vq, pool, packets, counters),
    }
}

/// The burst.
#[inline(never)]
fn send_many<R: Ring, S: Space, L: Logging, V: Level, P: Release, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    packets: &[P::Packet],
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
    let Some(mut log) = L::of(log) else { return 0 };
    // And by how the driver's addresses are to be read.
    let Some(mut space) = S::hold(memory, lookaside) else {
        return 0;
    };
    let mut taken = 0;
    chain.begin_burst();
    while let Some(rest) = packets.get(taken..)
        && !rest.is_empty()
    {
        let waiting = ring.ahead(count(rest.len().min(PASS)));
        let rest = rest.get(..waiting.into()).unwrap_or_default();
        let with = (&mut space, &mut log);
        let found = match waiting {
            0 => break,
            _ => V::run(|| {
                short::<R, S, L, V, P::Packet, F, false>(ring, with, (rest, false), counters)
            }),
        };
        taken += usize::from(found);
        if found == waiting {
            continue;
        }
        let rest = packets.get(taken..).unwrap_or_default();
        let with = (&mut space, &mut log);
        taken += send_unusual::<R, S, L, V, _, F>(ring, with, chain, (rest, features), counters);
        break;
    }
    look_ahead(ring, chain, &mut S::cursor(&mut space));
    publish::<_, L>(ring, Some(log), notifier, S::release(space), counters);
    pool.release(packets.get(..taken).unwrap_or_default());
    taken
}

/// Sends the rest of a burst in which there is more than plain packets and simple buffers, until one
/// finds no room; how many were taken.
#[inline(never)]
fn send_unusual<R: Ring, S: Space, L: Logging, V: Level, T: Packet, const F: u32>(
    ring: &mut R,
    (space, log): (&mut S::Held<'_>, &mut L::Log<'_>),
    chain: &mut Chain,
    (packets, features): (&[T], u64),
    counters: &QueueCounters,
) -> usize {
    let sums = takes_unsummed(features);
    let mut taken = 0;
    // A plain packet was left for its buffer, or for its segments.
    let mut simple = packets.first().is_some_and(|next| next.plain().is_none());
    // Where one chain has several descriptors, the next one has, too.
    let mut chained = false;
    while let Some(&(mut next)) = packets.get(taken) {
        let rest = packets.get(taken..).unwrap_or_default();
        chained = chained && !is_single(ring);
        if !chained {
            if simple && is_little(next) {
                let waiting = ring.ahead(count(rest.len().min(PASS)));
                let rest = rest.get(..waiting.into()).unwrap_or_default();
                let with = (&mut *space, &mut *log);
                let sent =
                    V::run(|| short::<R, S, L, V, T, F, true>(ring, with, (rest, sums), counters));
                taken += usize::from(sent);
                simple = sent == waiting;
                if sent != 0 {
                    continue;
                }
            }
            let with = (&mut *space, &mut *log);
            let sent = enqueue_one_by_one::<R, S, L, V, T, F>(ring, with, (rest, sums), counters);
            taken += sent;
            simple = true;
            if sent != 0 {
                let Some(&left) = packets.get(taken) else {
                    break;
                };
                if left.little().is_some_and(|little| little.tag.is_some()) {
                    continue;
                }
                next = left;
            }
        }
        let apart = S::cursor(space);
        let with = (next, features);
        match enqueue_chains::<R, _, L, T, F>(ring, apart, chain, with, L::lend(log), counters) {
            Outcome::Sent | Outcome::Dropped => taken += 1,
            Outcome::NoRoom => break,
        }
        if chain.exhausted() {
            break;
        }
        (simple, chained) = (true, true);
    }
    taken
}

/// Whether the next chain is one descriptor.
#[inline(always)]
fn is_single<R: Ring>(ring: &R) -> bool {
    let run = ring.run(ring.ahead(1));
    let next = if run.slots() == 0 { None } else { run.peek(0) };
    next.is_some_and(|(descriptor, _)| {
        descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) == 0
    })
}

/// Whether the packet is for the short body, as far as that can be seen without its bytes.
#[inline(always)]
fn is_little<T: Packet>(packet: T) -> bool {
    packet.whole().is_some() && packet.little().is_some()
}

/// The short body: sends `packets`, no more than slots wait, until one is not for it; how many that
/// were. With `A` they may ask for a tag and for checksums, and `sums` says whether the driver takes
/// them without.
#[inline(always)]
fn short<R: Ring, S: Space, L: Logging, V: Level, T: Packet, const F: u32, const A: bool>(
    ring: &mut R,
    (space, log): (&mut S::Held<'_>, &mut L::Log<'_>),
    (packets, sums): (&[T], bool),
    counters: &QueueCounters,
) -> u16 {
    let run = ring.run(count(packets.len()));
    let mut cursor = S::cursor(space);
    run.prefetch_used(count(packets.len()));
    let mut slots = Room::<_, PASS>::new();
    let mut targets = slots.filling();
    let mut slots = Room::<_, PASS>::new();
    let mut all_asks = slots.filling();
    for nth in 0..usize::from(run.slots()).min(packets.len()).min(PASS) {
        let Some((target, asks)) = packets
            .get(nth)
            .and_then(|packet| gather::<_, _, T, F, A>(run, nth, &mut cursor, (packet, sums)))
        else {
            break;
        };
        if R::Run::HIDDEN {
            run.put_used(nth, target.id, used::<F, A>(&target, asks));
        }
        targets.push(target);
        if A {
            all_asks.push(asks);
        }
    }
    let (targets, all_asks) = (targets.done(), all_asks.done());
    let found = count(targets.len());
    let Some(first) = targets.first() else {
        return 0;
    };
    let mut tally = Tally::new(counters);
    let asks_of = |nth: usize| match all_asks.get(nth) {
        Some(asks) if A => *asks,
        _ => Asks::default(),
    };
    for (nth, target) in targets.iter().enumerate() {
        let asks = asks_of(nth);
        put::<V, F, A>(target, asks);
        L::mark(log, target.both.buffer());
        let data = target.both.data();
        let mut len = data.len();
        if A && let Some(front) = asks.front {
            L::mark(log, front);
            len += TAG_LEN;
        }
        tally.add(narrow(len), data);
        if !R::Run::HIDDEN {
            run.put_used(nth, target.id, used::<F, A>(target, asks));
        }
    }
    ring.end_run(found, first.id, used::<F, A>(first, asks_of(0)));
    tally.flush();
    found
}

/// First pass of the short body: a packet of one segment that asks for nothing, or with `A` for
/// little, with the buffer at its turn, when that is one descriptor, lies in one region and is large
/// enough.
#[inline(always)]
fn gather<'m, 'p, R: Run, C: Translate<'m>, T: Packet, const F: u32, const A: bool>(
    run: R,
    nth: usize,
    cursor: &mut C,
    (packet, sums): (&'p T, bool),
) -> Option<(Target<'m, 'p, F>, Asks<'m>)> {
    let mut asks = Asks::default();
    let data = if A {
        let data = packet.whole()?;
        asks.changes = changes_of(packet, data, sums);
        if asks.changes == Changes::UNKNOWN {
            return None;
        }
        data
    } else {
        packet.plain()?
    };
    let room = header_len(F) + data.len();
    if A && asks.changes.tag().is_some() {
        if data.len() < ADDRESSES_LEN {
            return None;
        }
        let (buffer, id) = find_room::<_, _, F>(run, nth, cursor, room + TAG_LEN)?;
        let front = buffer.first(header_len(F) + ADDRESSES_LEN + TAG_LEN);
        asks.front = Some(front);
        let both = Matched::new(buffer.after(TAG_LEN), data)?;
        return Some((Target { both, id }, asks));
    }
    let (buffer, id) = find_room::<_, _, F>(run, nth, cursor, room)?;
    let both = Matched::new(buffer, data)?;
    Some((Target { both, id }, asks))
}

/// `len` bytes in the buffer at the `nth` slot, when that is as for the short body.
#[inline(always)]
pub(super) fn find_room<'m, R: Run, A: Translate<'m>, const F: u32>(
    run: R,
    nth: usize,
    cursor: &mut A,
    len: usize,
) -> Option<(GuestRange<'m>, u16)> {
    let (descriptor, id) = run.peek(nth)?;
    let kind = descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE);
    if kind != VRING_DESC_F_WRITE || len > descriptor.len as usize {
        return None;
    }
    let buffer = cursor.whole(descriptor.addr, len)?;
    // All lines of the burst are asked for before the first is written: stores that miss do not
    // overlap by themselves. More than three lines gain nothing.
    if buffer.after(header_len(F)).begins_line() {
        // The header's line may stay the driver's, too.
        buffer.prefetch(0);
    } else {
        buffer.prefetch_for_write(0);
    }
    buffer.prefetch_for_write(64);
    if len > 128 {
        buffer.prefetch_for_write(128);
    }
    Some((buffer, id))
}

/// What the used descriptor of `target` says: header and data.
#[inline(always)]
fn used<const F: u32, const A: bool>(target: &Target<'_, '_, F>, asks: Asks<'_>) -> u32 {
    let tag = if A && asks.changes.tag().is_some() {
        TAG_LEN
    } else {
        0
    };
    narrow(target.both.buffer().len() + tag)
}

/// A length that the 32 bits of a descriptor cover.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "`gather` takes only what a descriptor's length covers"
)]
fn narrow(len: usize) -> u32 {
    len as u32
}

/// What changes in a packet of one segment. A call, which leaves the loop around its registers, and
/// there is one such function for all bodies.
#[inline(never)]
fn changes_of<T: Packet>(packet: &T, data: &[u8], sums: bool) -> Changes {
    // What a port received without checksum goes on most often.
    if packet.is_only_marked()
        && let Some(changes) = Changes::of_usual(data, sums)
    {
        return changes;
    }
    let little = packet.little();
    let changes = little.and_then(|little| Changes::of(little, data, data.len(), sums));
    changes.unwrap_or(Changes::UNKNOWN)
}

/// The checksum that the driver does not make, for a packet of one segment.
#[inline(never)]
fn complete<V: Level>(mut changes: Changes, data: &[u8]) -> Changes {
    changes.complete(data, std::iter::once(data), add_to_sum::<V>);
    changes
}

/// The sum of pieces of a packet, so far.
#[inline(always)]
fn add_to_sum<V: Level>(mut sum: Sum, piece: &[u8]) -> Sum {
    V::run(|| {
        sum.add(piece);
        sum
    })
}

/// Second pass: header and data.
#[inline(always)]
fn put<V: Level, const F: u32, const A: bool>(target: &Target<'_, '_, F>, asks: Asks<'_>) {
    if !A {
        return target.both.put::<V>((0, 0));
    }
    let Asks { mut changes, front } = asks;
    if changes.is_incomplete() {
        changes = complete::<V>(changes, target.both.data());
    }
    match front {
        Some(front) => {
            let [t0, t1] = changes.tag().unwrap_or_default().to_be_bytes();
            let asks = changes.header(TAG_LEN);
            target
                .both
                .put_tagged::<V>(asks, front, [0x81, 0x00, t0, t1]);
        }
        None => target.both.put::<V>(changes.header(0)),
    }
    if let Some(Word { at, value }) = changes.transport_word() {
        copy_pair(target.both.buffer(), header_len(F) + at, value);
    }
    if let Some(Word { at, value }) = changes.ip_word() {
        copy_pair(target.both.buffer(), header_len(F) + at, value);
    }
}

/// The general body: any packet, any chains, for a driver with these features.
#[inline(never)]
fn enqueue_chains<'m, R: Ring, A: Translate<'m>, L: Logging, T: Packet, const F: u32>(
    ring: &mut R,
    mut cursor: A,
    chain: &mut Chain,
    (packet, features): (T, u64),
    log: L::Log<'_>,
    counters: &QueueCounters,
) -> Outcome {
    let available = ring.available(u16::MAX);
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
    let spoilt = |ring: &mut R, chain: Reserved| ring.push_used(chain.id, chain.slots, 0);
    let limits = (available, need);
    let reserved = reserve::<R, _, F>(ring, chain, &mut cursor, limits, counters, spoilt);
    let slots = match reserved {
        Ok(slots) => slots,
        Err(outcome) => return outcome,
    };

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
        Some(plan) => plan
            .bytes(packet.segments())
            .for_each(|bytes| scatter.write(bytes)),
        None => packet.segments().for_each(|bytes| scatter.write(bytes)),
    }
    let mut left = need;
    for reserved in chain.heads() {
        let used = reserved.bytes.min(left);
        left -= used;
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        ring.push_used(reserved.id, reserved.slots, used);
    }
    ring.take(slots);
    let mut tally = Tally::new(counters);
    tally.add(len, packet.segments().next().unwrap_or_default());
    tally.flush();
    Outcome::Sent
}

/// Puts chains with `need` bytes together in `chain`, out of `available` slots; how many slots they
/// take. They are not taken yet.
///
/// A chain that is malformed goes back unused, by `spoilt`. When it stands behind chains that were
/// put together for this packet, those go back unused with it, since chains are given back in order.
#[inline(always)]
pub(super) fn reserve<'m, R: Ring, A: Translate<'m>, const F: u32>(
    ring: &mut R,
    chain: &mut Chain,
    cursor: &mut A,
    (mut available, need): (u16, u64),
    counters: &QueueCounters,
    mut spoilt: impl FnMut(&mut R, Reserved),
) -> Result<u16, Outcome> {
    let header = header_len(F);
    chain.clear();
    let mut room = 0;
    let mut slots = 0;
    while room < need {
        if chain.exhausted() && slots == 0 {
            return Err(Outcome::NoRoom);
        }
        if slots >= ring.size() {
            // All that the ring can ever hold is here.
            add(&counters.drop_oversize, 1);
            return Err(Outcome::Dropped);
        }
        if slots >= available {
            return Err(Outcome::NoRoom);
        }
        let before = chain.len();
        let (walked, id, more) = match ring.walk(slots, chain, cursor) {
            Walk::Nothing => return Err(Outcome::NoRoom),
            Walk::Miss { .. } => {
                after_a_miss(ring, chain, cursor);
                return Err(Outcome::NoRoom);
            }
            Walk::Malformed { id, slots } => (None, id, slots),
            Walk::Complete(walked) => {
                let writable = |segment: &Segment| segment.writable;
                let new = chain.segments().get(before..).unwrap_or_default();
                // The first buffer of a packet holds the whole header (5.1.6.4).
                let enough = walked.bytes >= if slots == 0 { header as u64 } else { 1 };
                let usable = enough && new.iter().all(writable);
                (usable.then_some(walked), walked.id, walked.slots)
            }
        };
        let Some(Walked { id, bytes, .. }) = walked else {
            add(&counters.drop_bad_desc, 1);
            for &reserved in chain.heads() {
                spoilt(ring, reserved);
            }
            let broken = Reserved {
                id,
                slots: more,
                bytes: 0,
            };
            spoilt(ring, broken);
            ring.take(slots + more);
            available = available.saturating_sub(slots + more);
            chain.clear();
            (room, slots) = (0, 0);
            continue;
        };
        chain.reserve(Reserved {
            id,
            slots: more,
            bytes,
        });
        room += bytes;
        slots += more;
        if F & MERGEABLE == 0 && room < need {
            add(&counters.drop_oversize, 1);
            return Err(Outcome::Dropped);
        }
    }
    Ok(slots)
}

/// How to send a packet of which something is asked; an error is the end of it.
pub(super) fn plan<T: Packet>(
    packet: &T,
    features: u64,
    counters: &QueueCounters,
) -> Result<Option<Plan>, Outcome> {
    let Some(asked) = packet.asked() else {
        return Ok(None);
    };
    match Plan::new(asked, features, packet.len(), packet.segments()) {
        Ok(plan) => Ok(Some(plan)),
        Err(refused) => {
            let reason = match refused {
                Refused::Checksum => &counters.drop_csum,
                Refused::Segments => &counters.drop_gso,
                Refused::Other => &counters.drop_prepare,
            };
            add(reason, 1);
            Err(Outcome::Dropped)
        }
    }
}

/// Writes on and on over the buffers of one or more chains.
pub(super) struct Scatter<'c, 'm, 'l, L: Logging> {
    pub(super) log: L::Log<'l>,
    pub(super) cursor: &'c mut Cursor<'m>,
    pub(super) segments: &'c [Segment],
    pub(super) left: Option<GuestRange<'m>>,
}

impl<'m, L: Logging> Scatter<'_, 'm, '_, L> {
    /// Takes the next `most` bytes, or fewer when a buffer ends; `None` when all are taken.
    pub(super) fn take(&mut self, most: usize) -> Option<GuestRange<'m>> {
        let range = match self.left.take().filter(|range| !range.is_empty()) {
            Some(range) => range,
            None => self.next()?,
        };
        self.left = Some(range.after(most));
        Some(range.first(most))
    }

    pub(super) fn write(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let Some(range) = self
                .left
                .take()
                .filter(|range| !range.is_empty())
                .or_else(|| self.next())
            else {
                // The walk found room for all of it, and the table does not change.
                return;
            };
            let written = copy_out(range, data);
            L::mark(&mut self.log, range.first(written));
            data = data.get(written..).unwrap_or_default();
            self.left = Some(range.after(written));
        }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<GuestRange<'m>> {
        let (first, rest) = self.segments.split_first()?;
        self.segments = rest;
        let range = self.cursor.whole(first.addr, first.len as usize)?;
        // The next one comes while this one is written.
        if let Some(next) = rest.first()
            && let Some(next) = self.cursor.whole(next.addr, next.len as usize)
        {
            (0..4).for_each(|line| next.prefetch_for_write(64 * line));
        }
        Some(range)
    }
}

#[cfg(test)]
mod tests;
