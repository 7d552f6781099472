//! What DPDK calls: the ports, their queues and statistics, and the bursts.
//!
//! A [`Port`] is on the heap of the process that probed it. What other processes may look at is in
//! shared memory (`queue`), with a pointer to the port that only its own process follows. `probe`
//! makes data only; the socket appears with the first `configure` and goes with `close`. In between,
//! `start` and `stop` open and close the gates of the queues, and the session's thread, through
//! `link`, puts virtqueues into them and takes them out.

mod burst;
mod engines;
mod error;
mod events;
mod intr;
mod lane;
mod lanes;
mod large;
mod life;
mod link;
mod ops;
mod packet;
mod probe;
mod queue;
mod rarp;
mod registry;
mod shared;
mod stats;
mod telemetry;
mod ticker;
mod vfio;
mod vring;
mod xstats;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::devargs::PortConfig;
use crate::dpdk::ethdev::{EthDev, Link};
use crate::session::Endpoint;
use crate::virtqueue::Allow;

use error::PortError;
use events::QueueEvents;
use intr::Interrupts;
use lane::{RxLane, TxLane};
use lanes::Lanes;
use shared::{Shared, SharedBox};
use vring::{RxVring, TxVring};

pub use events::QueueEvent;
pub use packet::{RxPool, RxShape, Slot, TxRelease};
pub use probe::register;
pub use registry::{connection_id, next_queue_event};

/// The link of a port without a frontend. It is not negotiated and never another but up or down.
const LINK: Link = Link {
    speed: 10_000,
    full_duplex: true,
    autoneg: false,
    up: false,
};

/// A port, in the process that probed it.
///
/// Operations come from the application's control thread, statistics from any thread, and the
/// session's events from its own: so all of it is shared, and each lock is held for a few lines,
/// never over a callback of the application or a wait for a thread.
struct Port {
    name: String,
    config: PortConfig,
    dev: EthDev,
    shared: SharedBox,
    rx: Box<[RxVring]>,
    tx: Box<[TxVring]>,
    /// The queues with copy engines.
    lanes: Option<Arc<Lanes>>,
    events: Mutex<QueueEvents>,
    interrupts: Interrupts,
    /// There from the first `configure` to `close`.
    endpoint: Mutex<Option<Endpoint>>,
    /// `close` has begun: the session tells the application nothing any more.
    closing: AtomicBool,
    /// The link went down while closing, and the application was not told yet.
    owes_link_down: AtomicBool,
}

/// Locks, also after a panic elsewhere: what is kept under the locks here is right at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    fn new(name: String, config: PortConfig, dev: EthDev, shared: SharedBox) -> Self {
        let pairs = usize::from(config.queues);
        let lanes = |dma| Arc::new(Lanes::new(&name, dma, config.queues));
        Self {
            lanes: config.dma.as_ref().map(lanes),
            rx: (0..pairs).map(|_| RxVring::default()).collect(),
            tx: (0..pairs).map(|_| TxVring::default()).collect(),
            events: Mutex::default(),
            interrupts: Interrupts::new(config.queues),
            endpoint: Mutex::new(None),
            closing: AtomicBool::new(false),
            owes_link_down: AtomicBool::new(false),
            name,
            config,
            dev,
            shared,
        }
    }

    /// The port as ethdev knows it; valid until `close` returns.
    fn dev(&self) -> EthDev {
        self.dev
    }

    fn shared_ptr(&self) -> NonNull<Shared> {
        NonNull::from(&*self.shared)
    }

    /// The rx queue `queue`, when it has copy engines.
    fn rx_lane(&self, queue: u16) -> Option<&RxLane> {
        self.lanes.as_ref()?.rx(queue)
    }

    /// The tx queue `queue`, when it has copy engines.
    fn tx_lane(&self, queue: u16) -> Option<&TxLane> {
        self.lanes.as_ref()?.tx(queue)
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Allows something to all queues.
    fn allow(&self, what: Allow) {
        self.rx.iter().for_each(|vring| vring.gate.allow(what));
        self.tx.iter().for_each(|vring| vring.gate.allow(what));
        if let Some(lanes) = &self.lanes {
            lanes.allow(what);
        }
    }

    /// Forbids it; after this no lcore is in a burst of the port.
    fn forbid(&self, what: Allow) {
        self.rx.iter().for_each(|vring| vring.gate.forbid(what));
        self.tx.iter().for_each(|vring| vring.gate.forbid(what));
        if let Some(lanes) = &self.lanes {
            lanes.forbid(what);
        }
    }
}
