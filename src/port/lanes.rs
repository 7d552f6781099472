//! The queues of a port that have copy engines (`dmas=`).
//!
//! Whoever polls such a queue polls its engines; for a tx queue the rx burst of the same number does
//! so too; and so does a thread that ticks while packets are under way and nobody calls.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::lane::{Lane, RxLane, TxLane, Work};
use super::ticker::Ticker;
use super::{PortError, engines};
use crate::devargs::DmaConfig;
use crate::log::PORT;
use crate::virtqueue::Allow;

/// The queues of a port that have engines.
pub(super) struct Lanes {
    port: String,
    config: DmaConfig,
    /// By rx queue.
    rx: Box<[Option<RxLane>]>,
    /// By tx queue.
    tx: Box<[Option<TxLane>]>,
    ticker: Ticker,
}

/// The lanes of one direction, by queue.
fn lanes<W: Work>(config: &DmaConfig, rx: bool, queues: u16) -> Box<[Option<Lane<W>>]> {
    let lane = |queue| {
        let has_engines = !config.engines(rx, queue).is_empty();
        has_engines.then(|| Lane::new(config.threshold))
    };
    (0..queues).map(lane).collect()
}

impl Lanes {
    pub(super) fn new(port: &str, config: &DmaConfig, queues: u16) -> Self {
        Self {
            port: port.to_owned(),
            config: config.clone(),
            rx: lanes(config, true, queues),
            tx: lanes(config, false, queues),
            ticker: Ticker::default(),
        }
    }

    /// The rx queue, when it has engines.
    pub(super) fn rx(&self, queue: u16) -> Option<&RxLane> {
        self.rx.get(usize::from(queue))?.as_ref()
    }

    /// The tx queue, when it has engines.
    pub(super) fn tx(&self, queue: u16) -> Option<&TxLane> {
        self.tx.get(usize::from(queue))?.as_ref()
    }

    fn all_rx(&self) -> impl Iterator<Item = &RxLane> {
        self.rx.iter().flatten()
    }

    fn all_tx(&self) -> impl Iterator<Item = &TxLane> {
        self.tx.iter().flatten()
    }

    /// Opens the engines of the first `rx` and `tx` queues, and has them looked after. `wake` is told
    /// of rx queues of which packets wait for a burst.
    ///
    /// # Errors
    ///
    /// An engine that is not there, or not to be had.
    pub(super) fn open(
        self: &Arc<Self>,
        (rx, tx): (u16, u16),
        wake: impl Fn(u16) + Send + 'static,
    ) -> Result<(), PortError> {
        for queue in 0..rx {
            if let Some(lane) = self.rx(queue) {
                self.equip(lane, true, queue)?;
            }
        }
        for queue in 0..tx {
            if let Some(lane) = self.tx(queue) {
                self.equip(lane, false, queue)?;
            }
        }
        let lanes = Arc::downgrade(self);
        self.ticker
            .start(Box::new(move || {
                lanes.upgrade().map(|lanes| lanes.tick(&wake))
            }))
            .map_err(PortError::Thread)
    }

    /// Opens the engines of one queue, unless that was done.
    fn equip<W: Work>(&self, lane: &Lane<W>, rx: bool, queue: u16) -> Result<(), PortError> {
        if lane.is_equipped() {
            return Ok(());
        }
        let direction = if rx { "rxq" } else { "txq" };
        let names = self.config.engines(rx, queue);
        let channels: Result<Vec<_>, _> = names
            .iter()
            .map(|name| {
                engines::open(name, self.config.ring_size).map_err(|source| PortError::Engine {
                    queue: format!("{direction}{queue}"),
                    engine: name.to_string(),
                    source,
                })
            })
            .collect();
        let channels = channels?;
        for channel in &channels {
            log::info!(
                target: PORT,
                "{}: {direction}{queue}: engine {}, {} copies, from {} bytes on",
                self.port,
                channel.name(),
                channel.depth(),
                lane.threshold()
            );
        }
        lane.equip(channels);
        Ok(())
    }

    /// One look at all queues that nobody polls; whether any has packets under way.
    fn tick(&self, wake: &impl Fn(u16)) -> bool {
        let now = Instant::now();
        let mut busy = false;
        for lane in self.all_tx() {
            busy |= lane.tick(now);
        }
        for (queue, lane) in (0..).zip(&self.rx) {
            let Some(lane) = lane else { continue };
            busy |= lane.tick(now);
            if lane.kept() != 0 {
                wake(queue);
            }
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
        self.all_rx().for_each(|lane| lane.allow(what));
        self.all_tx().for_each(|lane| lane.allow(what));
    }

    /// Forbids it, and empties the queues.
    pub(super) fn forbid(&self, what: Allow) {
        self.all_rx().for_each(|lane| lane.forbid(what));
        self.all_tx().for_each(|lane| lane.forbid(what));
    }

    /// Frees the packets that were received and that no burst has asked for.
    pub(super) fn release_kept(&self) {
        self.all_rx().for_each(RxLane::release_kept);
    }

    /// Empties all queues; lcores go on after that.
    pub(super) fn drain(&self) {
        self.all_rx().for_each(Lane::drain);
        self.all_tx().for_each(Lane::drain);
    }

    /// Keeps the engines away from the guest's memory, or lets them there again. While a page of it may
    /// be missing an engine cannot wait for it, and pinning would fill it with zeros.
    pub(super) fn suspend(&self, suspended: bool) {
        self.all_rx().for_each(|lane| lane.suspend(suspended));
        self.all_tx().for_each(|lane| lane.suspend(suspended));
    }

    /// Ends the ticker, and gives up the engines.
    pub(super) fn close(&self) {
        self.ticker.stop();
        self.all_rx().for_each(Lane::unequip);
        self.all_tx().for_each(Lane::unequip);
    }
}
