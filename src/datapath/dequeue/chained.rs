//! Bursts that have chains of several descriptors, and the middle body, for frames in such chains or in
//! several packets' buffers. As in the short body, a first pass finds all bytes, and the second one copies
//! them.
#![forbid(unsafe_code)]

use super::{HeaderBytes, MAX_FRAME, Outcome, dequeue_chain, give_back, narrow, short};
use crate::datapath::copy::{Room, copy_in};
use crate::datapath::level::Level;
use crate::datapath::offload::take_up;
use crate::datapath::{
    OFFLOADS, PASS, Packet, PacketPool, QueueCounters, Tally, count, header_len,
};
use crate::memory::{GuestRange, Space};
use crate::virtio_net::Header;
use crate::virtqueue::{Chain, Ring, SHORT_WALK, Walked};

/// The most buffers that a pass takes.
const BUFFERS: usize = 4 * SHORT_WALK;
/// The most packets' buffers that a pass fills.
const SEGMENTS: usize = PASS;

/// A frame in guest memory.
#[derive(Clone, Copy)]
struct Source {
    walked: Walked,
    /// Its length, and how many buffers and packets' buffers it takes.
    len: u32,
    buffers: usize,
    segments: usize,
}

/// The rest of a burst that has chains of several descriptors: where one has, the next one has, too.
/// Apart, so that bursts without them have nothing to do with it.
#[inline(never)]
pub(super) fn dequeue_rest<R: Ring, S: Space, V: Level, P: PacketPool, const F: u32>(
    ring: &mut R,
    space: &mut S::Held<'_>,
    chain: &mut Chain,
    pool: &P,
    out: &mut [P::Packet],
    with: (u64, &QueueCounters),
) -> usize {
    let mut received = 0;
    let mut long = false;
    chain.begin_burst();
    while let Some(rest) = out.get_mut(received..)
        && !rest.is_empty()
    {
        let asked = if long { 1 } else { count(rest.len().min(PASS)) };
        let waiting = ring.ahead(asked);
        let found = match waiting {
            0 => break,
            // No table of two is allowed.
            _ if ring.size() == 1 => Some(0),
            _ => V::run(|| short::<R, S, V, P, F, true>(ring, waiting, space, pool, rest, with)),
        };
        let Some(found) = found else { break };
        received += usize::from(found);
        if found == waiting {
            long = false;
            if ring.was_all(waiting, asked) {
                break;
            }
            continue;
        }
        if !ring.has_available() {
            break;
        }
        long = true;
        let rest = out.get_mut(received..).unwrap_or_default();
        let found = V::run(|| dequeue_chained::<R, S, P, F>(ring, space, pool, rest, with));
        received += found;
        if found != 0 {
            continue;
        }
        let rest = out.get_mut(received..).unwrap_or_default();
        let cursor = S::cursor(space);
        match dequeue_chain::<R, _, P, F>(ring, cursor, chain, pool, rest, with) {
            Outcome::Received => received += 1,
            Outcome::Dropped => {}
            Outcome::End => break,
        }
        if chain.exhausted() {
            break;
        }
    }
    received
}

/// Takes the frames at the front of the ring until one is not for this body; how many that were. Not
/// for it, and for the general one: what is no frame, or not known yet, has too many buffers, gets a
/// large one, or finds the pool nearly dry.
#[inline(always)]
fn dequeue_chained<R: Ring, S: Space, P: PacketPool, const F: u32>(
    ring: &mut R,
    space: &mut S::Held<'_>,
    pool: &P,
    out: &mut [P::Packet],
    (features, counters): (u64, &QueueCounters),
) -> usize {
    let mut cursor = S::cursor(space);
    let mut slots = Room::<_, PASS>::new();
    let mut sources = slots.filling();
    let mut slots = Room::<GuestRange<'_>, BUFFERS>::new();
    let mut buffers = slots.filling();
    let room = pool.room();
    let longest = if pool.chains() && pool.longest_segment() == room {
        MAX_FRAME
    } else {
        room as u64
    };
    let mut at = 0_u16;
    let mut segments = 0;
    for nth in 0..ring.available(count(out.len().min(PASS))) {
        let begin = buffers.len();
        if begin + SHORT_WALK > BUFFERS {
            break;
        }
        let mut header = header_len(F);
        let walked = ring.walk_short(at, &mut cursor, |buffer| {
            ask_for::<F>(buffer, &mut header);
            buffers.push(buffer);
        });
        let Some(walked) = walked else { break };
        let len = walked.bytes.wrapping_sub(header_len(F) as u64);
        // Not empty, and not too long.
        if len.wrapping_sub(1) >= longest {
            break;
        }
        #[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
        let len = len as usize;
        let source = Source {
            walked,
            len: narrow(len),
            buffers: buffers.len() - begin,
            segments: in_rooms(len, room),
        };
        // The short body is better at frames of one buffer.
        let short = nth != 0 && source.buffers == 1 && source.segments == 1;
        if short || segments + source.segments > SEGMENTS {
            break;
        }
        segments += source.segments;
        at = at.wrapping_add(walked.slots);
        sources.push(source);
    }
    let Some(&place) = out.first() else { return 0 };
    let mut fresh = [place; SEGMENTS];
    let mut fresh = fresh.get_mut(..segments).unwrap_or_default();
    let sources = sources.done();
    if sources.is_empty() || !pool.allocate(fresh) {
        return 0;
    }
    let mut buffers = buffers.done();
    let mut tally = Tally::new(counters);
    for (source, place) in sources.iter().zip(out) {
        let Some((segments, others)) =
            std::mem::take(&mut fresh).split_at_mut_checked(source.segments)
        else {
            break;
        };
        fresh = others;
        let (own, others) = buffers.split_at_checked(source.buffers).unwrap_or_default();
        buffers = others;
        let header = copy_frame::<P, F>(pool, own, segments);
        pool.finish_all(segments, source.len);
        let Some(&packet) = segments.first() else {
            break;
        };
        *place = packet;
        tally.add(source.len, place.segments().next().unwrap_or_default());
        if F & OFFLOADS != 0 && !header.is_plain() {
            take_up(pool, place, header, features);
        }
        give_back::<R, F>(ring, source.walked.id, source.walked.slots);
    }
    tally.flush();
    sources.len()
}

/// Asks for the first bytes behind the header, of which `missing` bytes are in `buffer` and others
/// behind it.
#[inline(always)]
fn ask_for<const F: u32>(buffer: GuestRange<'_>, missing: &mut usize) {
    if F & OFFLOADS != 0 && *missing == header_len(F) {
        buffer.prefetch(0);
    }
    let data = buffer.after(*missing);
    if data.is_empty() {
        *missing = missing.saturating_sub(buffer.len());
    } else {
        data.prefetch(0);
        data.prefetch(64);
        // What is behind comes in its turn.
        *missing = usize::MAX;
    }
}

/// How many times `room` there must be for `len` bytes; when that is more than a pass fills, so many and
/// one more. A few additions are quicker than the division.
#[inline(always)]
fn in_rooms(len: usize, room: usize) -> usize {
    let mut rooms = 1;
    let mut held = room;
    while held < len && rooms <= SEGMENTS {
        held += room;
        rooms += 1;
    }
    rooms
}

/// Copies the frame in `buffers` to `segments`, which have room for it; its header, when the driver may
/// ask for something in it.
#[inline(always)]
fn copy_frame<P: PacketPool, const F: u32>(
    pool: &P,
    buffers: &[GuestRange<'_>],
    segments: &mut [P::Packet],
) -> Header {
    let mut header = HeaderBytes::default();
    let mut segments = segments.iter_mut();
    let mut room: &mut [_] = &mut [];
    for (nth, &buffer) in buffers.iter().enumerate() {
        // The next buffer comes while this one is copied.
        if let Some(next) = buffers.get(nth + 1) {
            (0..4).for_each(|line| next.prefetch(64 * line));
        }
        let mut bytes = header.take::<F>(buffer);
        while !bytes.is_empty() {
            if room.is_empty() {
                let Some(segment) = segments.next() else {
                    break;
                };
                room = pool.space(segment);
            }
            let copied = copy_in(room, bytes).len();
            room = std::mem::take(&mut room)
                .get_mut(copied..)
                .unwrap_or_default();
            bytes = bytes.after(copied);
        }
    }
    Header::from_bytes(header.bytes)
}
