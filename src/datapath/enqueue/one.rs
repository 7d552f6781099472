//! Bursts of one packet, where what a burst costs is all. Not behind an IOMMU: no translation is counted,
//! and nothing is asked.
#![forbid(unsafe_code)]

use super::super::level::Baseline;
use super::super::tell;
use super::{
    Level, Logging, Packet, QueueCounters, Release, Ring, Run, Space, Tally, Virtqueue, gather,
    narrow, put, send_many, used,
};

/// The burst of one packet: the short body in a straight line, with all registers.
#[inline(never)]
pub(super) fn send_one<R: Ring, S: Space, L: Logging, V: Level, P: Release, const F: u32>(
    vq: &mut Virtqueue,
    pool: &P,
    packet: &P::Packet,
    counters: &QueueCounters,
) -> usize {
    let packets = std::slice::from_ref(packet);
    if !put_one::<R, S, L, P::Packet, F>(vq, packet, counters) {
        return send_many::<R, S, L, V, _, F>(vq, pool, packets, counters);
    }
    pool.release(packets);
    1
}

/// Puts the packet into the next buffer, unless one of the two is not for the short body.
#[inline(always)]
fn put_one<R: Ring, S: Space, L: Logging, T: Packet, const F: u32>(
    vq: &mut Virtqueue,
    packet: &T,
    counters: &QueueCounters,
) -> bool {
    let Some(ring) = R::of(&mut vq.ring) else {
        return false;
    };
    let Some(mut log) = L::of(&mut vq.log) else {
        return false;
    };
    if ring.ahead(1) == 0 {
        return false;
    }
    let run = ring.run(1);
    run.prefetch_used(1);
    let Some(mut space) = S::hold(&vq.memory, &mut vq.lookaside) else {
        return false;
    };
    let with = (packet, false);
    let found = gather::<_, _, _, F, false>(run, 0, &mut S::cursor(&mut space), with);
    let Some((target, asks)) = found else {
        return false;
    };
    let mut tally = Tally::new(counters);
    put::<Baseline, F, false>(&target, asks);
    L::mark(&mut log, target.both.buffer());
    let data = target.both.data();
    tally.add(narrow(data.len()), data);
    let len = used::<F, false>(&target, asks);
    run.put_used(0, target.id, len);
    ring.end_run(1, target.id, len);
    tally.flush();
    tell::<_, L>(ring, Some(log), &vq.notifier, counters);
    true
}
