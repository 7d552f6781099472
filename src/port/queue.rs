//! What a port keeps in memory that all processes of the application share: its own data, and an
//! object for each rx and tx queue.
//!
//! Pointers in there to the heap of the primary process are followed by the primary only.

use core::ffi::c_int;
use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::lane::{RxLane, TxLane};
use super::lanes::Lanes;
use super::large::LargeBuffers;
use super::packet::{RxPool, RxShape, Slot, TxRelease, can_tell_datagrams};
use super::rarp;
use super::stats::QueueStats;
use super::vring::{Running, RxVring, TxVring};
use super::{Port, PortError};
use crate::datapath::{DequeueBurst, EnqueueBurst, RxRules};
use crate::devargs::PortConfig;
use crate::dpdk::ethdev::EthDev;
use crate::dpdk::mbuf::RxTemplate;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::sys::{
    RTE_PKTMBUF_HEADROOM, rte_eth_rxconf, rte_eth_rxq_info, rte_eth_txconf, rte_eth_txq_info,
};
use crate::dpdk::{eal, malloc};
use crate::log::PORT;
use crate::session::features::{self, Offer, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM};

/// Rings that the port receives from.
pub(super) type Dequeue = DequeueBurst<RxPool>;
/// Rings that the port sends to.
pub(super) type Enqueue = EnqueueBurst<TxRelease>;

/// The smallest useful room in an mbuf: a longer frame has at most 65535 of them.
const LEAST_ROOM: u16 = 64;

/// `dev_private`: what a secondary process may want to know of a port.
#[repr(C, align(64))]
pub(super) struct Shared {
    /// A frame that the next rx burst has to prepend. Read by every rx burst.
    pub(super) rarp: rarp::Pending,
    /// The port, in the primary's heap; it owns this struct.
    port: *const Port,
    iface: [u8; 108],
    pub(super) queues: u16,
    /// Some queues have copy engines.
    pub(super) dma: bool,
    /// Switches of the devargs, as the C driver passes them to its library.
    pub(super) flags: u64,
    /// Offers that devargs withdraw.
    pub(super) disabled: u64,
    /// Features that the driver acked, at the last link-up.
    pub(super) features: AtomicU64,
    /// Handle of the connection, or -1.
    pub(super) vid: AtomicI32,
    pub(super) started: AtomicBool,
    pub(super) attached: AtomicBool,
    pub(super) vlan_strip: AtomicBool,
    /// Checksums that drivers leave out are made by the rx queues.
    pub(super) complete_checksums: AtomicBool,
    pub(super) check_ip: AtomicBool,
    /// `ptypes=1`: every received frame has a packet type.
    pub(super) types_frames: bool,
    /// Layers that it tells of, `RTE_PTYPE_*_MASK`; 0 for none.
    pub(super) typed_layers: AtomicU32,
}

// SAFETY: atomics, and constants once the port is probed; `port` is only followed as `port_of` says.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`.
unsafe impl Send for Shared {}

/// The owner of a [`Shared`], which is its [`Port`].
#[derive(Debug)]
pub(super) struct SharedBox(NonNull<Shared>);

// SAFETY: it owns what it points to, which is `Send` and `Sync`.
unsafe impl Send for SharedBox {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedBox {}

impl SharedBox {
    /// The data of a port with `config`, on memory node `socket`.
    pub(super) fn new(config: &PortConfig, socket: c_int) -> Result<Self, PortError> {
        let memory =
            malloc::zeroed::<Shared>(c"net_vhost port", socket).ok_or(PortError::NoMemory)?;
        let mut iface = [0; 108];
        for (to, from) in iface.iter_mut().zip(config.iface.bytes().take(107)) {
            *to = from;
        }
        let shared = Shared {
            rarp: rarp::Pending::default(),
            port: core::ptr::null(),
            iface,
            queues: config.queues,
            dma: config.dma.is_some(),
            flags: register_flags(config),
            disabled: features::withdrawn(offer(config)),
            features: AtomicU64::new(0),
            vid: AtomicI32::new(-1),
            started: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            vlan_strip: AtomicBool::new(false),
            complete_checksums: AtomicBool::new(false),
            check_ip: AtomicBool::new(false),
            types_frames: config.ptypes,
            typed_layers: AtomicU32::new(if config.ptypes { u32::MAX } else { 0 }),
        };
        // SAFETY: fresh memory of that size and alignment.
        unsafe { memory.write(shared) };
        Ok(Self(memory))
    }

    pub(super) fn as_ptr(&self) -> *mut Shared {
        self.0.as_ptr()
    }
}

impl core::ops::Deref for SharedBox {
    type Target = Shared;

    #[inline(always)]
    fn deref(&self) -> &Shared {
        // SAFETY: allocated until `drop`, and only ever shared after `own`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedBox {
    fn drop(&mut self) {
        // SAFETY: the port is gone, and with it all that used this: `close` took the pointer out
        // of the ethdev and freed the queues.
        unsafe { malloc::free(self.0) };
    }
}

/// The devargs on which offers depend.
pub(super) fn offer(config: &PortConfig) -> Offer {
    Offer {
        tso: config.tso,
        linear_buffer: config.linear_buffer,
        ext_buffer: config.ext_buffer,
        postcopy: config.postcopy_support,
        datagrams: config.tso && can_tell_datagrams(),
        iommu: config.iommu_support,
    }
}

/// In `Shared::flags`: `linear-buffer`.
const LINEAR_BUFFER: u64 = 1 << 6;
/// In `Shared::flags`: not `legacy-ol-flags`.
const COMPLIANT_OL_FLAGS: u64 = 1 << 8;
/// In `Shared::flags`: vrings are counted; always so.
const STATS_ENABLE: u64 = 1 << 9;

/// The switches in the C library's numbering (`RTE_VHOST_USER_*`), for the dump.
fn register_flags(config: &PortConfig) -> u64 {
    [
        (config.client, 1 << 0),
        (config.iommu_support, 1 << 3),
        (config.postcopy_support, 1 << 4),
        (config.ext_buffer, 1 << 5),
        (config.linear_buffer, LINEAR_BUFFER),
        (!config.legacy_ol_flags, COMPLIANT_OL_FLAGS),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(STATS_ENABLE, |flags, (_, bit)| flags | bit)
}

impl Shared {
    /// The path of the socket.
    pub(super) fn iface(&self) -> String {
        let len = self
            .iface
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or_default();
        String::from_utf8_lossy(self.iface.get(..len).unwrap_or_default()).into_owned()
    }

    /// How rx queues mark packets.
    pub(super) fn rx_rules(&self) -> RxRules {
        if !self.checksums() {
            RxRules::Request
        } else if self.complete_checksums.load(Ordering::Relaxed) {
            RxRules::Complete
        } else {
            RxRules::Mark
        }
    }

    /// Whether checksum offloads are promised to the application.
    pub(super) fn checksums(&self) -> bool {
        self.flags & COMPLIANT_OL_FLAGS != 0
    }

    /// Whether frames may be chains of mbufs.
    pub(super) fn chains(&self) -> bool {
        self.flags & LINEAR_BUFFER == 0
    }

    /// What a dump of the port shows: the names and the order of the C driver.
    pub(super) fn dump(&self) -> String {
        let on = |flag: &AtomicBool| u8::from(flag.load(Ordering::Relaxed));
        let features = self.features.load(Ordering::Relaxed);
        let attached = self.attached.load(Ordering::Relaxed);
        let complete = self.complete_checksums.load(Ordering::Relaxed);
        let rx_sw_csum = attached && complete && features & VIRTIO_NET_F_CSUM != 0;
        let tx_sw_csum = attached && features & VIRTIO_NET_F_GUEST_CSUM == 0;
        format!(
            "iface_name: {}\nflags: {:#x}\ndisable_flags: {:#x}\nfeatures: {:#x}\n\
             max_queues: {}\nvid: {}\nstarted: {}\ndev_attached: {}\nvlan_strip: {}\n\
             rx_sw_csum: {}\ntx_sw_csum: {}\n",
            self.iface(),
            self.flags,
            self.disabled,
            features,
            self.queues,
            self.vid.load(Ordering::Relaxed),
            on(&self.started),
            on(&self.attached),
            on(&self.vlan_strip),
            u8::from(rx_sw_csum),
            u8::from(tx_sw_csum),
        )
    }
}

/// Gives the data of `port` to it, which then lives until [`disown`].
pub(super) fn own(port: Arc<Port>) {
    let shared = port.shared.as_ptr();
    let port = Arc::into_raw(port);
    // SAFETY: the port's own data, which no other process and no other thread has yet.
    unsafe { (*shared).port = port };
}

/// The data of a port; `None` when it is closed.
///
/// # Safety
///
/// Called in an operation of the port, and not kept beyond it.
pub(super) unsafe fn shared_of<'op>(dev: EthDev) -> Option<&'op Shared> {
    // SAFETY: null, or what `probe` stored there, until `close` takes it out (caller).
    unsafe { dev.private().cast::<Shared>().as_ref() }
}

/// The port behind `dev`, in the process that made it.
///
/// # Safety
///
/// As for [`shared_of`].
pub(super) unsafe fn port_of(dev: EthDev) -> Result<Arc<Port>, PortError> {
    // SAFETY: see above.
    let shared = unsafe { shared_of(dev) }.ok_or(PortError::Closed)?;
    if !eal::is_primary() || shared.port.is_null() {
        return Err(PortError::Secondary);
    }
    // SAFETY: `own` leaked one count of this `Arc`, and `disown` takes it only after `dev` forgot
    // the port.
    unsafe { Arc::increment_strong_count(shared.port) };
    // SAFETY: the count from the line above.
    Ok(unsafe { Arc::from_raw(shared.port) })
}

/// Undoes [`own`]: the ethdev forgets its data, and the last user of the port frees it.
///
/// # Safety
///
/// Called once, in `close` of the port.
pub(super) unsafe fn disown(dev: EthDev, port: &Arc<Port>) {
    // SAFETY: in `close`, in the primary (caller).
    unsafe { dev.take_private() };
    // SAFETY: the count that `own` leaked; this runs once (caller).
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(port)) };
}

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

    /// Receives packets into `out`; the number of places that were filled.
    ///
    /// # Safety
    ///
    /// One thread at a time polls a queue, as ethdev demands.
    #[inline(always)]
    pub(super) unsafe fn receive(&self, out: &mut [Slot]) -> usize {
        let vring = self.vring();
        // SAFETY: one thread at a time (caller).
        let received = unsafe {
            vring.gate.enter(|running| {
                let rarp = self.shared().rarp.is_some();
                if rarp {
                    return self.receive_rarp(running, out);
                }
                if !running.virtqueue.has_available() {
                    return 0;
                }
                self.dequeue(running, out)
            })
        };
        received.unwrap_or(0)
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
