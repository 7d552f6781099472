//! Guest to host: chains that the driver transmits become packets.
#![forbid(unsafe_code)]

use super::copy::{Slots, copy_in};
use super::counters::add;
use super::{PASS, Packet, PacketPool, QueueCounters, Tally, header_len};
use crate::memory::{Cursor, GuestRange};
use crate::virtqueue::{
    Chain, Notified, SplitRing, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, Virtqueue, Walk,
};

/// The longest frame that is taken from a driver. Segmentation offload ends at 64 KB and some
/// headers; more would only let a guest drain the pool with one chain.
const MAX_FRAME: u64 = 256 * 1024;

/// A packet's bytes in guest memory, ready to be copied.
#[derive(Clone, Copy)]
struct Source<'m> {
    data: GuestRange<'m>,
    head: u16,
}

/// What came of a chain in the general body.
enum Outcome {
    /// The packet is complete.
    Received,
    /// The chain holds no packet; it goes back unused.
    Dropped,
    /// The pool ran dry in the middle of the frame; the fresh packet is gone with it.
    Lost,
}

/// Takes up to `out.len()` packets from the virtqueue; how many were written to `out`.
pub(super) fn dequeue_burst<P: PacketPool, const F: u32>(
    vq: &mut Virtqueue,
    pool: &mut P,
    out: &mut [P::Packet],
    counters: &QueueCounters,
) -> usize {
    if vq.ring.available() == 0 {
        return 0;
    }
    let Virtqueue {
        ring,
        memory,
        notifier,
        chain,
        ..
    } = vq;
    let mut cursor = memory.cursor();
    let mut tally = Tally::default();
    let room = pool.room();
    // `out[..received]` are packets, `out[received..fresh]` are fresh ones.
    let (mut received, mut fresh) = (0, 0);
    // 1 when `out[received]` was lost with a frame.
    let mut lost = 0;
    chain.begin_burst();
    while received < out.len() && !chain.exhausted() {
        let wanted = (out.len() - received)
            .min(PASS)
            .min(usize::from(ring.available()));
        if wanted == 0 {
            break;
        }
        if fresh < received + wanted {
            let more = out.get_mut(fresh..received + wanted).unwrap_or_default();
            if !pool.allocate(more) {
                add(&counters.mbuf_alloc_failed, more.len() as u64);
                if fresh == received {
                    break;
                }
            } else {
                fresh = received + wanted;
            }
        }
        let wanted = wanted.min(fresh - received);

        let mut sources = Slots::new();
        gather::<F>(ring, &mut cursor, room, wanted, &mut sources);
        ring.prefetch_used(count(sources.len()));
        let packets = out.get_mut(received..).unwrap_or_default();
        for (source, packet) in sources.as_slice().iter().zip(packets) {
            let len = copy_in(pool.space(packet), source.data);
            #[allow(
                clippy::cast_possible_truncation,
                reason = "`gather` took only what a descriptor's 32-bit length covers"
            )]
            let len = len as u32;
            pool.finish(packet, len);
            tally.add(len, packet.plain().unwrap_or_default());
            ring.push_used(source.head, 0);
        }
        ring.take(count(sources.len()));
        received += sources.len();

        if sources.len() < wanted {
            let Some(packet) = out.get_mut(received) else {
                break;
            };
            let head = ring.head(0);
            let outcome =
                dequeue_chain::<P, F>(ring, chain, &mut cursor, pool, packet, head, counters);
            ring.push_used(head, 0);
            ring.take(1);
            match outcome {
                Outcome::Received => {
                    let start = packet.segments().next().unwrap_or_default();
                    tally.add(packet.len(), start);
                    received += 1;
                }
                Outcome::Dropped => {}
                Outcome::Lost => {
                    // The pool is dry; another long frame would be copied in vain too.
                    lost = 1;
                    break;
                }
            }
        }
    }
    if let Some(unused) = out.get(received + lost..fresh)
        && !unused.is_empty()
    {
        pool.release(unused);
    }
    if ring.publish_used() {
        match notifier.notify(ring) {
            Notified::Called => add(&counters.guest_notifications, 1),
            Notified::Failed => add(&counters.guest_notifications_error, 1),
            Notified::Suppressed => {}
        }
    }
    tally.flush(counters);
    received
}

/// First pass of the short body: the packets at the front of the ring that are one descriptor, lie
/// in one region and fit one buffer.
#[inline(always)]
fn gather<'m, const F: u32>(
    ring: &SplitRing,
    cursor: &mut Cursor<'m>,
    room: usize,
    wanted: usize,
    sources: &mut Slots<Source<'m>, PASS>,
) {
    let header = header_len(F);
    for nth in 0..count(wanted) {
        let head = ring.head(nth);
        let Some(descriptor) = ring.descriptor(head) else {
            break;
        };
        let len = descriptor.len as usize;
        // Also false when the descriptor is no longer than the header: the difference wraps.
        let fits = len.wrapping_sub(header + 1) < room;
        if descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT) != 0 || !fits {
            break;
        }
        let Some(buffer) = cursor.whole(descriptor.addr, len) else {
            break;
        };
        // In a DPDK guest the header ends a line and the data begins the next one.
        buffer.prefetch(header);
        buffer.prefetch(header + 64);
        sources.push(Source {
            data: buffer.after(header),
            head,
        });
    }
}

/// The general body: any chain, any length. `packet` is fresh, and stays so when it is not received.
#[inline(never)]
fn dequeue_chain<P: PacketPool, const F: u32>(
    ring: &SplitRing,
    chain: &mut Chain,
    cursor: &mut Cursor<'_>,
    pool: &mut P,
    packet: &mut P::Packet,
    head: u16,
    counters: &QueueCounters,
) -> Outcome {
    chain.clear();
    let header = header_len(F);
    let frame = match chain.walk(ring, cursor, head) {
        Walk::Malformed => {
            add(&counters.drop_bad_desc, 1);
            return Outcome::Dropped;
        }
        Walk::Complete(bytes) if bytes <= header as u64 => {
            add(&counters.drop_short, 1);
            return Outcome::Dropped;
        }
        Walk::Complete(bytes) => bytes - header as u64,
    };
    let longest = if pool.chains() {
        MAX_FRAME
    } else {
        pool.room() as u64
    };
    if frame > longest {
        add(&counters.drop_oversize, 1);
        return Outcome::Dropped;
    }
    let mut build = Build {
        head: *packet,
        last: *packet,
        current: *packet,
        filled: 0,
        started: false,
    };
    let mut skip = header;
    for segment in chain.segments() {
        let Some(mut bytes) = cursor.whole(segment.addr, segment.len as usize) else {
            // It was there in the walk, and the table does not change.
            break;
        };
        let header_part = skip.min(bytes.len());
        skip -= header_part;
        bytes = bytes.after(header_part);
        while !bytes.is_empty() {
            bytes = build.fill(pool, bytes);
            if !bytes.is_empty() && !build.extend(pool) {
                add(&counters.mbuf_alloc_failed, 1);
                add(&counters.drop_no_mbuf, 1);
                pool.release(&[build.head]);
                return Outcome::Lost;
            }
        }
    }
    build.close(pool);
    *packet = build.head;
    Outcome::Received
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
        );
        #[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
        let more = copied as u32;
        self.filled += more;
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
    fn extend<P: PacketPool<Packet = T>>(&mut self, pool: &mut P) -> bool {
        self.close(pool);
        pool.allocate(std::slice::from_mut(&mut self.current))
    }
}

/// A number of packets of one pass, which is at most [`PASS`].
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "at most PASS")]
fn count(packets: usize) -> u16 {
    packets as u16
}

#[cfg(test)]
mod tests;
