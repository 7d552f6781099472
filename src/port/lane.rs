//! A queue that has copy engines (`dmas=`).
//!
//! Its virtqueue is here and not in the gate of its vring: more than one thread works on it. Before
//! anything changes that the engines could notice, the queue is emptied. What an rx queue had under
//! way is kept then, until the next burst asks for it.

use std::collections::VecDeque;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::lock;
use super::packet::{RxPool, Slot, TxRelease};
use super::queue::{RxQueue, TxQueue};
use crate::datapath::{Dequeue, Direction, Enqueue, Offloaded, QueueCounters, Release};
use crate::dma::channel::Channel;
use crate::dpdk::eal;
use crate::virtqueue::{Allow, SharedGate, Virtqueue};

/// How often a burst looks whether another thread has left the queue.
const LOOKS: u32 = 2000;

/// A direction, as lanes see it.
pub(super) trait Work: Direction {
    /// The queue that it is of.
    type Queue;
    /// Packets that wait for a burst.
    type Kept: Default;

    /// Waits until nothing is under way, or an engine may write for ever.
    fn drain(offloaded: &mut Offloaded<Self>, queue: &Self::Queue, kept: &Self::Kept);
    /// A poll while nobody else polls.
    fn poll(offloaded: &mut Offloaded<Self>, queue: &Self::Queue, kept: &Self::Kept);
}

/// A tx queue with engines.
pub(super) type TxLane = Lane<Enqueue<TxRelease>>;
/// An rx queue with engines.
pub(super) type RxLane = Lane<Dequeue<RxPool>>;

/// What decides how a virtqueue is given its engines. Control threads only.
#[derive(Default)]
struct Setup {
    /// From the first start of the port on.
    channels: Vec<Arc<Channel>>,
    /// Engines may not touch the guest's memory just now.
    suspended: bool,
    /// A virtqueue that nobody polls any more: an engine that cannot be stopped has chains of it.
    held: Option<Virtqueue>,
}

/// A queue with engines.
pub(super) struct Lane<W: Work> {
    gate: SharedGate<Offloaded<W>>,
    /// Whoever takes the virtqueue out, puts one in or changes it has this all the time: the session's
    /// thread must not find the lane empty while the one that starts the port gives the virtqueue its
    /// engines. It comes before the gate and the locks of engines; no lcore, engine or ticker takes it,
    /// and the application is told of nothing meanwhile.
    setup: Mutex<Setup>,
    threshold: u32,
    /// The queue while it is set up; changed only while nobody is in the gate.
    queue: AtomicPtr<W::Queue>,
    /// Packets under way, as of the last look.
    under_way: AtomicU32,
    kept: W::Kept,
}

impl<W: Work> Lane<W> {
    pub(super) fn new(threshold: u32) -> Self {
        Self {
            gate: SharedGate::default(),
            setup: Mutex::default(),
            threshold,
            queue: AtomicPtr::default(),
            under_way: AtomicU32::new(0),
            kept: W::Kept::default(),
        }
    }

    /// Copies of so many bytes are the engines'.
    pub(super) fn threshold(&self) -> u32 {
        self.threshold
    }

    /// The queue, for those in the gate; without one nothing is under way.
    fn queue(&self) -> Option<&W::Queue> {
        // SAFETY: null, or a queue that is set up: `forget` takes it away before it is freed, and
        // waits for those in the gate. It is only ever shared.
        unsafe { self.queue.load(Ordering::Relaxed).as_ref() }
    }

    /// Works for `queue`, until [`forget`](Self::forget).
    pub(super) fn serve(&self, queue: NonNull<W::Queue>) {
        self.gate
            .with(|_| self.queue.store(queue.as_ptr(), Ordering::Relaxed));
    }

    /// The queue is about to go.
    pub(super) fn forget(&self) {
        self.gate.with(|offloaded| {
            if let Some(offloaded) = offloaded {
                self.empty(offloaded);
            }
            self.queue.store(ptr::null_mut(), Ordering::Relaxed);
        });
    }

    /// Whether it has its engines.
    pub(super) fn is_equipped(&self) -> bool {
        !lock(&self.setup).channels.is_empty()
    }

    /// Has the engines from now on, also for a virtqueue that is here already.
    pub(super) fn equip(&self, channels: Vec<Arc<Channel>>) {
        let mut setup = lock(&self.setup);
        setup.channels = channels;
        self.renew(&mut setup);
    }

    /// Has no engines for a while, or has them again.
    pub(super) fn suspend(&self, suspended: bool) {
        let mut setup = lock(&self.setup);
        setup.suspended = suspended;
        self.renew(&mut setup);
    }

    /// Has none any more, for virtqueues to come.
    pub(super) fn unequip(&self) {
        lock(&self.setup).channels.clear();
    }

    fn renew(&self, setup: &mut Setup) {
        match self.take_out() {
            // Nobody would know that the engine has some of its chains.
            Some(virtqueue) if virtqueue.is_held() => setup.held = Some(virtqueue),
            Some(virtqueue) => self.put_in(virtqueue, setup),
            None => {}
        }
    }

    fn put_in(&self, virtqueue: Virtqueue, setup: &Setup) {
        let channels = match setup.suspended {
            true => &[],
            false => setup.channels.as_slice(),
        };
        let offloaded = Offloaded::new(virtqueue, channels, self.threshold, eal::max_simd_bits());
        self.gate.install(offloaded);
    }

    /// Empties the queue and takes the virtqueue out.
    fn take_out(&self) -> Option<Virtqueue> {
        let offloaded = self.gate.take_after(|offloaded| self.empty(offloaded))?;
        // What an engine keeps is nobody's to look after.
        self.under_way.store(0, Ordering::Relaxed);
        Some(offloaded.into_virtqueue())
    }

    /// Takes a virtqueue to work on. There is none here: the session takes one before it gives another.
    pub(super) fn give(&self, virtqueue: Virtqueue) {
        self.put_in(virtqueue, &lock(&self.setup));
    }

    /// Empties the queue and takes the virtqueue out, or the one that was held.
    pub(super) fn take(&self) -> Option<Virtqueue> {
        let mut setup = lock(&self.setup);
        self.take_out().or_else(|| setup.held.take())
    }

    /// Allows something.
    pub(super) fn allow(&self, what: Allow) {
        self.gate.allow(what);
    }

    /// Forbids it, and empties the queue; nobody is in the gate then.
    pub(super) fn forbid(&self, what: Allow) {
        self.gate.forbid(what, |offloaded| self.empty(offloaded));
    }

    /// Empties the queue.
    pub(super) fn drain(&self) {
        self.gate.with(|offloaded| {
            if let Some(offloaded) = offloaded {
                self.empty(offloaded);
            }
        });
    }

    /// Empties the queue, and runs `job` on its virtqueue.
    pub(super) fn alter(&self, job: &mut dyn FnMut(&mut Virtqueue)) {
        let mut setup = lock(&self.setup);
        setup.held.iter_mut().for_each(&mut *job);
        self.gate.with(|offloaded| {
            if let Some(offloaded) = offloaded {
                self.empty(offloaded);
                job(offloaded.virtqueue_mut());
            }
        });
    }

    fn empty(&self, offloaded: &mut Offloaded<W>) {
        if let Some(queue) = self.queue() {
            W::drain(offloaded, queue, &self.kept);
        }
        self.note(offloaded);
    }

    #[inline]
    fn note(&self, offloaded: &Offloaded<W>) {
        self.under_way.store(offloaded.len(), Ordering::Relaxed);
    }

    /// Packets under way.
    #[inline]
    pub(super) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Whether packets are under way.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        self.under_way() != 0
    }

    /// Looks after packets under way, unless somebody else works on the queue; whether there are any
    /// then.
    pub(super) fn tick(&self, now: Instant) -> bool {
        if self.is_busy() {
            self.gate.enter(1, |offloaded| {
                if let Some(queue) = self.queue() {
                    offloaded.watch(now);
                    W::poll(offloaded, queue, &self.kept);
                }
                self.note(offloaded);
            });
        }
        self.is_busy()
    }
}

impl TxLane {
    /// Sends `packets`, counting in `counters`, which are those of the queue; how many were taken, and
    /// where the ring goes on. `None`: the gate is closed.
    #[inline]
    pub(super) fn send(&self, packets: &[Slot], counters: &QueueCounters) -> Option<(usize, u16)> {
        self.gate.enter(LOOKS, |offloaded| {
            let sent = offloaded.send(&TxRelease, packets, counters);
            self.note(offloaded);
            (sent, offloaded.virtqueue().position())
        })
    }

    /// Polls the engines, unless somebody else works on the queue; `most` packets are released at
    /// most. How many were.
    #[inline]
    pub(super) fn reap(&self, most: usize) -> usize {
        let reaped = self.gate.enter(1, |offloaded| {
            let queue = self.queue()?;
            let reaped = offloaded.reap(&TxRelease, most, &queue.stats.counters);
            self.note(offloaded);
            Some(reaped)
        });
        reaped.flatten().unwrap_or(0)
    }
}

impl Work for Enqueue<TxRelease> {
    type Queue = TxQueue;
    type Kept = ();

    fn drain(offloaded: &mut Offloaded<Self>, queue: &TxQueue, (): &()) {
        offloaded.drain(&TxRelease, &queue.stats.counters);
    }

    fn poll(offloaded: &mut Offloaded<Self>, queue: &TxQueue, (): &()) {
        offloaded.reap(&TxRelease, usize::MAX, &queue.stats.counters);
    }
}

/// Received packets that no burst has asked for yet. Their chains are the driver's again.
#[derive(Debug, Default)]
pub(super) struct Kept {
    packets: Mutex<VecDeque<Slot>>,
    /// How many there are.
    count: AtomicU32,
    /// Where the oldest frame under way stood at the last tick.
    stood: AtomicU32,
}

impl Kept {
    fn note(&self, packets: &VecDeque<Slot>) {
        let count = u32::try_from(packets.len()).unwrap_or(u32::MAX);
        self.count.store(count, Ordering::Relaxed);
    }

    fn keep(&self, packets: &[Slot]) {
        let mut all = lock(&self.packets);
        all.extend(packets);
        self.note(&all);
    }

    #[inline]
    fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Hands packets out in their order; the number of places that were filled.
    #[inline]
    fn hand_out(&self, out: &mut [Slot]) -> usize {
        match self.count() {
            0 => 0,
            _ => self.hand_some_out(out),
        }
    }

    #[cold]
    fn hand_some_out(&self, out: &mut [Slot]) -> usize {
        let mut all = lock(&self.packets);
        let count = out.len().min(all.len());
        for (to, from) in out.iter_mut().zip(all.drain(..count)) {
            *to = from;
        }
        self.note(&all);
        count
    }

    fn release(&self) {
        let mut all = lock(&self.packets);
        TxRelease.release(all.make_contiguous());
        all.clear();
        self.note(&all);
    }
}

impl RxLane {
    /// Receives packets into `out` for `queue`, which is the lane's; the number of places that were
    /// filled, and where the ring goes on. `before` fills the first places when the gate is open.
    #[inline]
    pub(super) fn receive(
        &self,
        queue: &RxQueue,
        out: &mut [Slot],
        before: impl FnOnce(&mut [Slot]) -> usize,
    ) -> (usize, Option<u16>) {
        let entered = self.gate.enter(LOOKS, |offloaded| {
            let mut received = before(out);
            // While this is in the gate nobody keeps more.
            let rest = out.get_mut(received..).unwrap_or_default();
            received += self.kept.hand_out(rest);
            let rest = out.get_mut(received..).unwrap_or_default();
            if !rest.is_empty() {
                let counters = &queue.stats.counters;
                received += offloaded.receive(queue.pool(), rest, counters);
            }
            self.note(offloaded);
            (received, Some(offloaded.virtqueue().position()))
        });
        // What was received before the link went down is the application's.
        entered.unwrap_or_else(|| (self.kept.hand_out(out), None))
    }

    /// Packets that were received and that no burst has asked for.
    #[inline]
    pub(super) fn kept(&self) -> u32 {
        self.kept.count()
    }

    /// Frees them: the queue is stopped, or goes.
    pub(super) fn release_kept(&self) {
        self.kept.release();
    }
}

impl Work for Dequeue<RxPool> {
    type Queue = RxQueue;
    type Kept = Kept;

    fn drain(offloaded: &mut Offloaded<Self>, queue: &RxQueue, kept: &Kept) {
        let mut keep = |packets: &[Slot]| kept.keep(packets);
        offloaded.drain(queue.pool(), &mut keep, &queue.stats.counters);
    }

    fn poll(offloaded: &mut Offloaded<Self>, queue: &RxQueue, kept: &Kept) {
        // Whoever polls takes them himself.
        let first = offloaded.first();
        if kept.stood.swap(first, Ordering::Relaxed) == first {
            let mut keep = |packets: &[Slot]| kept.keep(packets);
            offloaded.reap(queue.pool(), &mut keep, &queue.stats.counters);
        }
    }
}

#[cfg(test)]
mod tests;
