//! The queues of a port that have copy engines (`dmas=`).
//!
//! Such a queue has its virtqueue here and not in the gate of its vring: more than one lcore works on
//! it. Whoever polls it, polls its engines; so does the rx burst of the same number, and a thread that
//! ticks while packets are under way and nobody calls. Before anything changes that the engines could
//! notice, the queue is emptied.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use super::packet::{Slot, TxRelease};
use super::stats::QueueStats;
use super::ticker::Ticker;
use super::{PortError, engines, lock};
use crate::datapath::{Offloaded, QueueCounters};
use crate::devargs::DmaConfig;
use crate::dma::channel::Channel;
use crate::dpdk::eal;
use crate::log::PORT;
use crate::virtqueue::{Allow, SharedGate, Virtqueue};

/// How often a burst looks whether another thread has left the queue.
const LOOKS: u32 = 2000;

/// The queues of a port that have engines.
pub(super) struct Lanes {
    port: String,
    config: DmaConfig,
    /// By tx queue.
    tx: Box<[Option<TxLane>]>,
    ticker: Ticker,
}

/// A tx queue with engines.
pub(super) struct TxLane {
    gate: SharedGate<Offloaded<TxRelease>>,
    /// From the first start of the port on.
    channels: Mutex<Vec<Arc<Channel>>>,
    threshold: u32,
    /// The counters of the queue while it is set up; changed only while nobody is in the gate.
    stats: AtomicPtr<QueueStats>,
    /// Packets are under way.
    busy: AtomicBool,
    /// Engines may not touch the guest's memory just now.
    suspended: AtomicBool,
}

/// The counters of a queue that is not set up.
static NOBODYS: LazyLock<QueueStats> = LazyLock::new(QueueStats::default);

impl Lanes {
    pub(super) fn new(port: &str, config: &DmaConfig, queues: u16) -> Self {
        let lane = |queue| {
            let has_engines = !config.engines(false, queue).is_empty();
            has_engines.then(|| TxLane::new(config.threshold))
        };
        Self {
            port: port.to_owned(),
            config: config.clone(),
            tx: (0..queues).map(lane).collect(),
            ticker: Ticker::default(),
        }
    }

    /// The tx queue, when it has engines.
    pub(super) fn tx(&self, queue: u16) -> Option<&TxLane> {
        self.tx.get(usize::from(queue))?.as_ref()
    }

    fn all(&self) -> impl Iterator<Item = &TxLane> {
        self.tx.iter().flatten()
    }

    /// Opens the engines of the first `tx` queues, and has them looked after.
    ///
    /// # Errors
    ///
    /// An engine that is not there, or not to be had.
    pub(super) fn open(self: &Arc<Self>, tx: u16) -> Result<(), PortError> {
        for queue in 0..tx {
            let Some(lane) = self.tx(queue) else { continue };
            if !lock(&lane.channels).is_empty() {
                continue;
            }
            let names = self.config.engines(false, queue);
            let channels: Result<Vec<_>, _> = names
                .iter()
                .map(|name| {
                    engines::open(name, self.config.ring_size).map_err(|source| PortError::Engine {
                        queue: format!("txq{queue}"),
                        engine: name.to_string(),
                        source,
                    })
                })
                .collect();
            let channels = channels?;
            for channel in &channels {
                log::info!(
                    target: PORT,
                    "{}: txq{queue}: engine {}, {} copies, from {} bytes on",
                    self.port,
                    channel.name(),
                    channel.depth(),
                    lane.threshold
                );
            }
            lane.equip(channels);
        }
        if let Some(rx) = self.config.queues.iter().find(|queue| queue.rx) {
            log::warn!(
                target: PORT,
                "{}: dmas: rxq{}: engines for rx queues have no effect in this version",
                self.port,
                rx.queue
            );
        }
        let lanes = Arc::downgrade(self);
        self.ticker
            .start(Box::new(move || lanes.upgrade().map(|lanes| lanes.tick())))
            .map_err(PortError::Thread)
    }

    /// One look at all queues that nobody polls; whether any has packets under way.
    fn tick(&self) -> bool {
        let now = Instant::now();
        let mut busy = false;
        for lane in self.all() {
            busy |= lane.tick(now);
        }
        busy
    }

    /// Packets are under way: the ticker may not sleep.
    #[inline]
    pub(super) fn wake_ticker(&self) {
        self.ticker.wake();
    }

    /// Allows something to all queues.
    pub(super) fn allow(&self, what: Allow) {
        self.all().for_each(|lane| lane.gate.allow(what));
    }

    /// Forbids it, and empties the queues.
    pub(super) fn forbid(&self, what: Allow) {
        self.all().for_each(|lane| lane.forbid(what));
    }

    /// Empties all queues; lcores go on after that.
    pub(super) fn drain(&self) {
        self.all().for_each(TxLane::drain);
    }

    /// Keeps the engines away from the guest's memory, or lets them there again. While a page of it may
    /// be missing an engine cannot wait for it, and pinning would fill it with zeros.
    pub(super) fn suspend(&self, suspended: bool) {
        self.all().for_each(|lane| lane.suspend(suspended));
    }

    /// Ends the ticker, and gives up the engines.
    pub(super) fn close(&self) {
        self.ticker.stop();
        for lane in self.all() {
            lock(&lane.channels).clear();
        }
    }
}

impl TxLane {
    fn new(threshold: u32) -> Self {
        Self {
            gate: SharedGate::default(),
            channels: Mutex::default(),
            threshold,
            stats: AtomicPtr::default(),
            busy: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
        }
    }

    /// The counters, for those in the gate.
    fn counters(&self) -> &QueueCounters {
        // SAFETY: null, or the counters of a queue: `forget` takes them away before it is freed, and
        // waits for those in the gate.
        let stats = unsafe { self.stats.load(Ordering::Relaxed).as_ref() };
        &stats.unwrap_or(&NOBODYS).counters
    }

    /// The queue counts in `stats`, until [`forget`](Self::forget).
    pub(super) fn count_in(&self, stats: *mut QueueStats) {
        self.gate
            .with(|_| self.stats.store(stats, Ordering::Relaxed));
    }

    /// The queue is about to go.
    pub(super) fn forget(&self) {
        self.drain();
        self.count_in(ptr::null_mut());
    }

    /// Has the engines from now on, also for a virtqueue that is here already.
    fn equip(&self, channels: Vec<Arc<Channel>>) {
        *lock(&self.channels) = channels;
        if let Some(virtqueue) = self.take() {
            self.give(virtqueue);
        }
    }

    /// Has no engines for a while, or has them again.
    fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Relaxed);
        if let Some(virtqueue) = self.take() {
            self.give(virtqueue);
        }
    }

    /// Takes a virtqueue to send to. One that was there before comes back.
    pub(super) fn give(&self, virtqueue: Virtqueue) -> Option<Virtqueue> {
        let simd_bits = eal::max_simd_bits();
        let channels = lock(&self.channels);
        let channels = match self.suspended.load(Ordering::Relaxed) {
            true => &[],
            false => channels.as_slice(),
        };
        let offloaded = Offloaded::new(virtqueue, channels, self.threshold, simd_bits);
        let before = self.take();
        self.gate.install(offloaded);
        before
    }

    /// Empties the queue and takes the virtqueue out.
    pub(super) fn take(&self) -> Option<Virtqueue> {
        let offloaded = self.gate.take_after(|offloaded| self.empty(offloaded))?;
        Some(offloaded.into_virtqueue())
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

    /// Empties the queue, and runs `work` on its virtqueue.
    pub(super) fn alter(&self, work: &mut dyn FnMut(&mut Virtqueue)) {
        self.gate.with(|offloaded| {
            if let Some(offloaded) = offloaded {
                self.empty(offloaded);
                work(offloaded.virtqueue_mut());
            }
        });
    }

    fn empty(&self, offloaded: &mut Offloaded<TxRelease>) {
        offloaded.drain(&TxRelease, self.counters());
        self.busy.store(!offloaded.is_empty(), Ordering::Relaxed);
    }

    /// Sends `packets`, counting in `counters`, which are those of the queue; how many were taken, and
    /// where the ring goes on. `None`: the gate is closed.
    #[inline]
    pub(super) fn send(&self, packets: &[Slot], counters: &QueueCounters) -> Option<(usize, u16)> {
        self.gate.enter(LOOKS, |offloaded| {
            let sent = offloaded.send(&TxRelease, packets, counters);
            self.busy.store(!offloaded.is_empty(), Ordering::Relaxed);
            (sent, offloaded.virtqueue().position())
        })
    }

    /// Whether packets are under way.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Polls the engines, unless somebody else works on the queue; `most` packets are released at
    /// most. How many were.
    #[inline]
    pub(super) fn reap(&self, most: usize) -> usize {
        let reaped = self.gate.enter(1, |offloaded| {
            let reaped = offloaded.reap(&TxRelease, most, self.counters());
            self.busy.store(!offloaded.is_empty(), Ordering::Relaxed);
            reaped
        });
        reaped.unwrap_or(0)
    }

    fn tick(&self, now: Instant) -> bool {
        if self.is_busy() {
            self.gate.enter(1, |offloaded| offloaded.watch(now));
            self.reap(usize::MAX);
        }
        self.is_busy()
    }
}
