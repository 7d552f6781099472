//! What a port keeps of its own data in memory that all processes of the application share.
//!
//! The pointer in there to the heap of the primary process is followed by the primary only.

use core::ffi::c_int;
use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::packet::can_tell_datagrams;
use super::rarp;
use super::{Port, PortError};
use crate::datapath::RxRules;
use crate::devargs::PortConfig;
use crate::dpdk::ethdev::EthDev;
use crate::dpdk::{eal, malloc};
use crate::session::features::{self, Offer, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM};

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
