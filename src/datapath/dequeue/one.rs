//! Bursts of one packet, where what a burst costs is all. Not behind an IOMMU: no translation is counted,
//! and nothing is asked.
#![forbid(unsafe_code)]

use super::super::level::Baseline;
use super::super::tell;
use super::{
    IN_ORDER, Level, Logging, PASS, PacketPool, QueueCounters, Ring, Run, Space, Tally, Virtqueue,
    count, dequeue_many, fill, gather,
};

/// The burst when one packet is known of: the short body in a straight line, with all registers.
#[inline(never)]
pub(super) fn dequeue_one<R: Ring, S: Space, L: Logging, V: Level, P: PacketPool, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    out: &mut [P::Packet],
    counters: &QueueCounters,
) -> usize {
    let taken = take_one::<R, S, P, F>(vq, pool, out, counters);
    let asked = count(out.len().min(PASS));
    let is_all = |ring: &R| out.len() == 1 || ring.was_all(1, asked);
    let Some(ring) = R::of(&mut vq.ring).filter(|ring| taken && is_all(ring)) else {
        return dequeue_many::<R, S, L, V, P, F>(vq, pool, out, counters, taken.into());
    };
    tell::<_, L>(ring, L::of(&mut vq.log), &vq.notifier, counters);
    1
}

/// Takes the packet at the next slot, unless it is not for the short body or the pool is dry.
#[inline(always)]
fn take_one<R: Ring, S: Space, P: PacketPool, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    out: &mut [P::Packet],
    counters: &QueueCounters,
) -> bool {
    let features = vq.features();
    let (Some(ring), Some(place)) = (R::of(&mut vq.ring), out.first_mut()) else {
        return false;
    };
    let run = ring.run(1);
    if F & IN_ORDER == 0 {
        run.prefetch_used(1);
    }
    let Some(mut space) = S::hold(&vq.memory, &mut vq.lookaside) else {
        return false;
    };
    let room = u16::try_from(pool.room()).unwrap_or(u16::MAX);
    let source = gather::<_, _, F, false>(run, 0, &mut S::cursor(&mut space), room);
    // A dry pool is counted by the loops.
    let found = source.and_then(|source| Some((source, pool.one()?)));
    let Some(((source, header), mut packet)) = found else {
        return false;
    };
    let mut tally = Tally::new(counters);
    let from = (&source, header);
    fill::<Baseline, P, F, false>(pool, &mut packet, from, &mut tally, features);
    *place = packet;
    if F & IN_ORDER != 0 {
        ring.push_batch(source.id, 1);
        ring.take(1);
    } else {
        run.put_used(0, source.id, 0);
        ring.end_run(1, source.id, 0);
    }
    tally.flush();
    true
}
