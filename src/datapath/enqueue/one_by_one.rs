//! The middle body of the way to the guest.
#![forbid(unsafe_code)]

use super::super::copy::{Room, copy_out, copy_out_apart, copy_pair};
use super::super::level::Level;
use super::super::logging::Logging;
use super::super::{MERGEABLE, PASS, Packet, QueueCounters, Tally, count, header_len};
use super::{add_to_sum, narrow};
use crate::memory::{GuestRange, Space, Translate};
use crate::virtio_net::{Changes, Word};
use crate::virtqueue::{Ring, Run, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// A buffer of the driver's, one of those that a packet takes.
#[derive(Clone, Copy)]
struct Place<'m> {
    buffer: GuestRange<'m>,
    id: u16,
}

/// The middle body: packets one by one, in buffers of one descriptor each; packets of any number of
/// segments that ask for nothing but checksums; `sums` as for the short body. How many at the front of
/// `packets` were such, and found their buffers.
#[inline(never)]
pub(super) fn enqueue_one_by_one<
    R: Ring,
    S: Space,
    L: Logging,
    V: Level,
    T: Packet,
    const F: u32,
>(
    ring: &mut R,
    (space, log): (&mut S::Held<'_>, &mut L::Log<'_>),
    (packets, sums): (&[T], bool),
    counters: &QueueCounters,
) -> usize {
    let mut cursor = S::cursor(space);
    let mut tally = Tally::new(counters);
    let mut sent = 0;
    for packet in packets {
        let mut segments = packet.segments();
        let first = segments.next().unwrap_or_default();
        let little = packet.little().filter(|little| little.tag.is_none());
        let Some(mut changes) =
            little.and_then(|little| Changes::of(little, first, packet.len() as usize, sums))
        else {
            break;
        };
        let need = header_len(F) + packet.len() as usize;
        let most = if F & MERGEABLE != 0 { PASS } else { 1 };
        let run = ring.run(ring.ahead(count(most)));
        let mut slots = Room::<_, PASS>::new();
        let mut places = slots.filling();
        let mut room = 0;
        for nth in 0..run.slots().into() {
            if room >= need {
                break;
            }
            let Some(place) = find_place(run, nth, &mut cursor) else {
                break;
            };
            room += place.buffer.len();
            places.push(place);
        }
        let places = places.done();
        let Some(front) = places.first() else {
            break;
        };
        // What is to be changed must be in the first buffer, as the header (5.1.6.4).
        if room < need || front.buffer.len() < header_len(F) + changes.reach() {
            break;
        }
        if changes.is_incomplete() {
            changes.complete(first, packet.segments(), add_to_sum::<V>);
        }
        let (asked, offset) = changes.header(0);
        let mut bytes = [0; 12];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&asked.to_le_bytes());
        let tail_word = u32::from(offset) | u32::from(count(places.len())) << 16;
        tail.copy_from_slice(&tail_word.to_le_bytes());
        copy_out(front.buffer, bytes.get(..header_len(F)).unwrap_or_default());
        let behind = front.buffer.after(header_len(F));
        spread::<V>(behind, places.get(1..).unwrap_or_default(), first, segments);
        for Word { at, value } in changes.words() {
            copy_pair(behind, at, value);
        }
        let mut left = need;
        let mut front_used = 0;
        for (nth, place) in places.iter().enumerate() {
            let used = place.buffer.first(left);
            left -= used.len();
            L::mark(log, used);
            if nth == 0 {
                front_used = narrow(used.len());
            }
            run.put_used(nth, place.id, narrow(used.len()));
        }
        let (found, id) = (count(places.len()), front.id);
        ring.end_run(found, id, front_used);
        tally.add(packet.len(), first);
        sent += 1;
    }
    tally.flush();
    sent
}

/// The buffer at the `nth` slot, when that is one descriptor, and lies in one region.
#[inline(always)]
fn find_place<'m, R: Run, A: Translate<'m>>(
    run: R,
    nth: usize,
    cursor: &mut A,
) -> Option<Place<'m>> {
    let (descriptor, id) = run.peek(nth)?;
    let kind = descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE);
    if kind != VRING_DESC_F_WRITE || descriptor.len == 0 {
        return None;
    }
    let buffer = cursor.whole(descriptor.addr, descriptor.len as usize)?;
    buffer.prefetch_for_write(0);
    buffer.prefetch_for_write(64);
    buffer.prefetch_for_write(128);
    Some(Place { buffer, id })
}

/// Writes `first` and `others` to `room`, and what does not fit there to `places`.
#[inline(always)]
fn spread<'m, 'p, V: Level>(
    mut room: GuestRange<'m>,
    places: &[Place<'m>],
    first: &'p [u8],
    mut others: impl Iterator<Item = &'p [u8]>,
) {
    let mut places = places.iter();
    let mut data = first;
    loop {
        let written = copy_out_apart::<V>(room, data);
        room = room.after(written);
        data = data.get(written..).unwrap_or_default();
        if data.is_empty() {
            let Some(next) = others.next() else { return };
            data = next;
        } else {
            let Some(next) = places.next() else { return };
            room = next.buffer;
        }
    }
}
