//! An object for each rx and tx queue, in memory that all processes of the application share.
//!
//! Pointers in there to the heap of the primary process are followed by the primary only.

use core::ffi::c_int;
use core::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::lane::{RxLane, TxLane};
use super::lanes::Lanes;
use super::large::LargeBuffers;
use super::packet::{RxPool, RxShape, Slot, TxRelease};
use super::shared::Shared;
use super::stats::QueueStats;
use super::vring::{Running, RxVring, TxVring};
use super::{Port, PortError};
use crate::datapath::{DequeueBurst, EnqueueBurst};
use crate::dpdk::malloc;
use crate::dpdk::mbuf::RxTemplate;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::sys::{
    RTE_PKTMBUF_HEADROOM, rte_eth_rxconf, rte_eth_rxq_info, rte_eth_txconf, rte_eth_txq_info,
};
use crate::log::PORT;
use crate::virtqueue::Inside;

/// Rings that the port receives from.
pub(super) type Dequeue = DequeueBurst<RxPool>;
/// Rings that the port sends to.
pub(super) type Enqueue = EnqueueBurst<TxRelease>;

/// An lcore that polls an rx queue.
pub(super) type Polling<'q> = Inside<'q, Running<Dequeue>>;

/// The smallest useful room in an mbuf: a longer frame has at most 65535 of them.
const LEAST_ROOM: u16 = 64;

/// What the application asked for at rx queue setup.
#[derive(Clone, Copy)]
pub(super) struct RxSetup {
    /// Where packets come from.
    pub(super) pool: Mempool,
    /// Has no effect: the driver of the guest chooses the size of its rings.
    pub(super) descriptors: u16,
    /// Of this, only the deferred start has an effect.
    pub(super) conf: Option<rte_eth_rxconf>,
}

/// What the application asked for at tx queue setup.
#[derive(Clone, Copy)]
pub(super) struct TxSetup {
    /// See [`RxSetup`].
    pub(super) descriptors: u16,
    /// See [`RxSetup`].
    pub(super) conf: Option<rte_eth_txconf>,
}

/// The buffers for frames that do not fit one mbuf, when the devargs ask for them.
fn large_buffers(
    port: &Port,
    setup: &RxSetup,
    socket: c_int,
) -> Result<Option<LargeBuffers>, PortError> {
    if !port.config.ext_buffer {
        return Ok(None);
    }
    // SAFETY: ethdev checked that the pool is one of pktmbufs (rte_eth_rx_queue_setup).
    if unsafe { setup.pool.has_pinned_buffers() } {
        log::warn!(
            target: PORT,
            "{}: ext-buffer=1 has no effect: the mempool's mbufs have external buffers already",
            port.name
        );
        return Ok(None);
    }
    let large = LargeBuffers::new(setup.descriptors, socket);
    large.map(Some).ok_or(PortError::NoMemory)
}

/// An rx queue.
#[repr(C, align(64))]
pub(super) struct RxQueue {
    vring: NonNull<RxVring>,
    pool: RxPool,
    /// From the port's configuration, at its last start: what is done to received packets,
    /// [`STRIP_VLAN`], [`CHECK_IP`] and [`SET_TYPE`].
    chores: AtomicU8,
    pub(super) stats: QueueStats,
    setup: RxSetup,
    /// The tx queue of the same number, when it has copy engines.
    tx_lane: Option<NonNull<TxLane>>,
    /// It has copy engines.
    lane: Option<Equipped<RxLane>>,
}

/// An rx queue's chore: the outer VLAN tag is taken off.
pub(super) const STRIP_VLAN: u8 = 1;
/// An rx queue's chore: the checksum of IPv4 headers is checked.
pub(super) const CHECK_IP: u8 = 2;
/// An rx queue's chore: the packet type is set.
pub(super) const SET_TYPE: u8 = 4;

/// A tx queue.
#[repr(C, align(64))]
pub(super) struct TxQueue {
    vring: NonNull<TxVring>,
    pub(super) stats: QueueStats,
    setup: TxSetup,
    /// It has copy engines.
    lane: Option<Equipped<TxLane>>,
}

/// A queue's engines: its lane, and those of the port.
struct Equipped<L> {
    lanes: NonNull<Lanes>,
    lane: NonNull<L>,
}

impl<L> Equipped<L> {
    fn new(lanes: &Lanes, lane: Option<&L>) -> Option<Self> {
        Some(Self {
            lanes: NonNull::from(lanes),
            lane: NonNull::from(lane?),
        })
    }

    #[inline(always)]
    fn get(&self) -> (&Lanes, &L) {
        // SAFETY: part of the port, which frees its queues before itself (`close`).
        let lanes = unsafe { self.lanes.as_ref() };
        // SAFETY: as above.
        (lanes, unsafe { self.lane.as_ref() })
    }
}

impl RxQueue {
    /// The rx queue `index` of `port`.
    pub(super) fn create(
        port: &Port,
        index: u16,
        socket: c_int,
        setup: RxSetup,
    ) -> Result<NonNull<Self>, PortError> {
        let pool = setup.pool;
        let vring = port
            .rx
            .get(usize::from(index))
            .ok_or(PortError::NoQueue(index))?;
        // SAFETY: ethdev checked that the pool is one of pktmbufs (rte_eth_rx_queue_setup).
        let data_room = unsafe { pool.data_room() };
        let headroom = RTE_PKTMBUF_HEADROOM.min(data_room);
        let room = data_room.saturating_sub(headroom);
        if room < LEAST_ROOM {
            return Err(PortError::SmallMbufs {
                room,
                least: LEAST_ROOM,
            });
        }
        let memory = malloc::zeroed::<Self>(c"net_vhost rxq", socket).ok_or(PortError::NoMemory)?;
        let large = match large_buffers(port, &setup, socket) {
            Ok(large) => large,
            Err(error) => {
                // SAFETY: fresh memory that nobody else has.
                unsafe { malloc::free(memory) };
                return Err(error);
            }
        };
        // SAFETY: as above, a pool of pktmbufs.
        let template = unsafe { RxTemplate::new(pool, port.dev().port_id()) };
        let queue = Self {
            vring: NonNull::from(vring),
            pool: RxPool {
                pool,
                shape: RxShape {
                    template,
                    headroom,
                    room,
                    chains: !port.config.linear_buffer,
                    large,
                },
                shared: port.shared_ptr(),
            },
            chores: AtomicU8::new(0),
            stats: QueueStats::default(),
            setup,
            tx_lane: port.tx_lane(index).map(NonNull::from),
            lane: port
                .lanes
                .as_deref()
                .and_then(|lanes| Equipped::new(lanes, lanes.rx(index))),
        };
        // SAFETY: fresh memory of that size and alignment.
        unsafe { memory.write(queue) };
        if let Some(lane) = port.rx_lane(index) {
            lane.serve(memory);
        }
        Ok(memory)
    }

    /// Frees the queue. The buffers of packets that the application still has stay.
    ///
    /// # Safety
    ///
    /// What [`create`](Self::create) made; nobody polls it, and nobody uses it after this.
    pub(super) unsafe fn destroy(queue: NonNull<Self>) {
        // SAFETY: not freed yet (caller).
        if let Some((_, lane)) = unsafe { queue.as_ref() }.lane() {
            lane.forget();
            lane.release_kept();
        }
        // SAFETY: as above.
        let large = unsafe { queue.as_ref() }.pool.shape.large;
        if let Some(large) = large {
            // SAFETY: once, since the queue goes, and nobody polls it (caller).
            unsafe { large.release() };
        }
        // SAFETY: from `create`, and unused from now on (caller).
        unsafe { malloc::free(queue) };
    }

    /// The rx queue behind a pointer of ethdev's.
    ///
    /// # Safety
    ///
    /// Null, or what [`create`](Self::create) made and nobody freed as long as the result is used.
    #[inline(always)]
    pub(super) unsafe fn from_ptr<'q>(queue: *mut core::ffi::c_void) -> Option<&'q Self> {
        // SAFETY: see above; only ever shared.
        unsafe { queue.cast::<Self>().as_ref() }
    }

    /// The vring behind this queue.
    #[inline(always)]
    pub(super) fn vring(&self) -> &RxVring {
        // SAFETY: part of the port, which frees its queues before itself (`close`).
        unsafe { self.vring.as_ref() }
    }

    /// The tx queue of the same number, when it has copy engines.
    #[inline(always)]
    pub(super) fn tx_lane(&self) -> Option<&TxLane> {
        // SAFETY: part of the port, which frees its queues before itself (`close`).
        self.tx_lane.map(|lane| unsafe { lane.as_ref() })
    }

    /// The engines of this queue, and those of the port.
    #[inline(always)]
    pub(super) fn lane(&self) -> Option<(&Lanes, &RxLane)> {
        self.lane.as_ref().map(Equipped::get)
    }

    /// Packets for the next bursts.
    pub(super) fn waiting(&self) -> u16 {
        self.vring().available().saturating_add(self.under_way())
    }

    /// What became of the `nth` packet from the one on that is received next. Never waits.
    pub(super) fn slot(&self, nth: u16) -> super::vring::Slot {
        match nth.checked_sub(self.under_way()) {
            Some(nth) => self.vring().slot(nth),
            None => super::vring::Slot::Waits,
        }
    }

    /// Packets that engines copy, and those that wait for a burst.
    pub(super) fn under_way(&self) -> u16 {
        let count = self
            .lane()
            .map_or(0, |(_, lane)| lane.under_way().saturating_add(lane.kept()));
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    /// Where packets come from.
    #[inline(always)]
    pub(super) fn pool(&self) -> &RxPool {
        &self.pool
    }

    /// The port's data.
    #[inline(always)]
    pub(super) fn shared(&self) -> &Shared {
        // SAFETY: as for `vring`.
        unsafe { self.pool.shared.as_ref() }
    }

    /// Follows the port's configuration.
    pub(super) fn adopt(&self, shared: &Shared) {
        let on = |flag: &AtomicBool, chore| {
            if flag.load(Ordering::Relaxed) {
                chore
            } else {
                0
            }
        };
        let typed = shared.typed_layers.load(Ordering::Relaxed) != 0;
        let chores = on(&shared.vlan_strip, STRIP_VLAN)
            | on(&shared.check_ip, CHECK_IP)
            | if typed { SET_TYPE } else { 0 };
        self.chores.store(chores, Ordering::Relaxed);
    }

    /// What is to be done to received packets.
    #[inline(always)]
    pub(super) fn chores(&self) -> u8 {
        self.chores.load(Ordering::Relaxed)
    }

    /// The application starts the queue itself, after the port.
    pub(super) fn starts_deferred(&self) -> bool {
        self.setup
            .conf
            .is_some_and(|conf| conf.rx_deferred_start != 0)
    }

    /// Tells what the queue was set up with.
    pub(super) fn describe(&self, info: &mut rte_eth_rxq_info) {
        info.mp = self.pool.pool.as_ptr();
        info.nb_desc = self.setup.descriptors;
        info.scattered_rx = self.pool.shape.chains.into();
        info.rx_buf_size = self.pool.shape.room;
        if let Some(conf) = self.setup.conf {
            info.conf = conf;
        }
    }

    /// Begins a burst; `None` when the gate is closed.
    ///
    /// # Safety
    ///
    /// One thread at a time polls a queue, as ethdev demands.
    #[inline(always)]
    pub(super) unsafe fn begin(&self) -> Option<Polling<'_>> {
        // SAFETY: one thread at a time (caller).
        unsafe { self.vring().gate.begin() }
    }

    /// Whether there is nothing to receive. An empty poll ends here, with few instructions.
    #[inline(always)]
    pub(super) fn is_idle(&self, polling: &mut Polling<'_>) -> bool {
        let waits = polling.work(|running| running.virtqueue.has_available());
        !waits.unwrap_or(false) && !self.shared().rarp.is_some()
    }

    /// The rest of the burst: receives packets into `out`; the number of places that were filled.
    #[inline(always)]
    pub(super) fn go_on(&self, mut polling: Polling<'_>, out: &mut [Slot]) -> usize {
        let received = polling.work(|running| {
            let rarp = self.shared().rarp.is_some();
            if rarp {
                return self.receive_rarp(running, out);
            }
            self.dequeue(running, out)
        });
        polling.leave();
        received.unwrap_or(0)
    }

    /// Receives packets into `out`; the number of places that were filled.
    ///
    /// # Safety
    ///
    /// One thread at a time polls a queue, as ethdev demands.
    #[inline(always)]
    unsafe fn receive(&self, out: &mut [Slot]) -> usize {
        // SAFETY: one thread at a time (caller).
        let polling = unsafe { self.begin() };
        polling.map_or(0, |polling| self.go_on(polling, out))
    }

    /// One burst out of the virtqueue.
    #[inline(always)]
    fn dequeue(&self, running: &mut Running<Dequeue>, out: &mut [Slot]) -> usize {
        let counters = &self.stats.counters;
        let received = (running.burst)(&mut running.virtqueue, &self.pool, out, counters);
        self.vring().publish_next(running.virtqueue.position());
        received
    }

    /// As [`receive`](Self::receive), on a port with copy engines.
    ///
    /// # Safety
    ///
    /// As for `receive`.
    #[inline(always)]
    pub(super) unsafe fn receive_offloaded(&self, out: &mut [Slot]) -> usize {
        let Some((lanes, lane)) = self.lane() else {
            // SAFETY: the caller's promise.
            return unsafe { self.receive(out) };
        };
        let (received, next) = lane.receive(self, out, |out| match self.shared().rarp.is_some() {
            true => super::burst::inject(self, &self.pool, out),
            false => 0,
        });
        if let Some(next) = next {
            self.vring().publish_next(next);
        }
        if lane.is_busy() {
            lanes.wake_ticker();
        }
        received
    }

    /// A burst with the RARP frame that waits before it.
    #[cold]
    #[inline(never)]
    fn receive_rarp(&self, running: &mut Running<Dequeue>, out: &mut [Slot]) -> usize {
        let injected = super::burst::inject(self, &self.pool, out);
        let rest = out.get_mut(injected..).unwrap_or_default();
        injected + self.dequeue(running, rest)
    }
}

impl TxQueue {
    /// A tx queue of `port`.
    pub(super) fn create(
        port: &Port,
        index: u16,
        socket: c_int,
        setup: TxSetup,
    ) -> Result<NonNull<Self>, PortError> {
        let vring = port
            .tx
            .get(usize::from(index))
            .ok_or(PortError::NoQueue(index))?;
        let memory = malloc::zeroed::<Self>(c"net_vhost txq", socket).ok_or(PortError::NoMemory)?;
        let queue = Self {
            vring: NonNull::from(vring),
            stats: QueueStats::default(),
            setup,
            lane: port
                .lanes
                .as_deref()
                .and_then(|lanes| Equipped::new(lanes, lanes.tx(index))),
        };
        // SAFETY: fresh memory of that size and alignment.
        unsafe { memory.write(queue) };
        if let Some(lane) = port.tx_lane(index) {
            lane.serve(memory);
        }
        Ok(memory)
    }

    /// Frees the queue.
    ///
    /// # Safety
    ///
    /// What [`create`](Self::create) made; nobody sends on it, and nobody uses it after this.
    pub(super) unsafe fn destroy(queue: NonNull<Self>) {
        // SAFETY: not freed yet (caller).
        if let Some((_, lane)) = unsafe { queue.as_ref() }.lane() {
            lane.forget();
        }
        // SAFETY: from `create`, and unused from now on (caller).
        unsafe { malloc::free(queue) };
    }

    /// The engines of this queue, and those of the port.
    #[inline(always)]
    pub(super) fn lane(&self) -> Option<(&Lanes, &TxLane)> {
        self.lane.as_ref().map(Equipped::get)
    }

    /// The tx queue behind a pointer of ethdev's.
    ///
    /// # Safety
    ///
    /// As for [`RxQueue::from_ptr`].
    #[inline(always)]
    pub(super) unsafe fn from_ptr<'q>(queue: *mut core::ffi::c_void) -> Option<&'q Self> {
        // SAFETY: see above; only ever shared.
        unsafe { queue.cast::<Self>().as_ref() }
    }

    /// The vring behind this queue.
    #[inline(always)]
    pub(super) fn vring(&self) -> &TxVring {
        // SAFETY: part of the port, which frees its queues before itself (`close`).
        unsafe { self.vring.as_ref() }
    }

    /// The application starts the queue itself, after the port.
    pub(super) fn starts_deferred(&self) -> bool {
        self.setup
            .conf
            .is_some_and(|conf| conf.tx_deferred_start != 0)
    }

    /// Tells what the queue was set up with.
    pub(super) fn describe(&self, info: &mut rte_eth_txq_info) {
        info.nb_desc = self.setup.descriptors;
        if let Some(conf) = self.setup.conf {
            info.conf = conf;
        }
    }

    /// Sends `packets`; how many were taken. A closed gate counts nothing, not even as missed.
    ///
    /// # Safety
    ///
    /// One thread at a time sends on a queue, as ethdev demands.
    #[inline(always)]
    pub(super) unsafe fn send(&self, packets: &[Slot]) -> usize {
        let vring = self.vring();
        // SAFETY: one thread at a time (caller).
        let sent = unsafe {
            vring.gate.enter(|running| {
                let counters = &self.stats.counters;
                let sent = (running.burst)(&mut running.virtqueue, &TxRelease, packets, counters);
                vring.publish_next(running.virtqueue.position());
                sent
            })
        };
        let Some(sent) = sent else { return 0 };
        let missed = packets.len() - sent;
        if missed != 0 {
            super::stats::add(&self.stats.counters.missed, missed as u64);
        }
        sent
    }

    /// As [`send`](Self::send), on a port with copy engines.
    ///
    /// # Safety
    ///
    /// As for `send`.
    #[inline(always)]
    pub(super) unsafe fn send_offloaded(&self, packets: &[Slot]) -> usize {
        let Some((lanes, lane)) = self.lane() else {
            // SAFETY: the caller's promise.
            return unsafe { self.send(packets) };
        };
        let Some((sent, next)) = lane.send(packets, &self.stats.counters) else {
            return 0;
        };
        self.vring().publish_next(next);
        if lane.is_busy() {
            lanes.wake_ticker();
        }
        let missed = packets.len() - sent;
        if missed != 0 {
            super::stats::add(&self.stats.counters.missed, missed as u64);
        }
        sent
    }
}
