//! Ports: allocation, the shared data, link state, events.

use core::ffi::{CStr, c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicU16, AtomicU64, Ordering};

use super::abi::{
    Burst, DescriptorStatus, RxQueueCount, eth_dev_ops, rte_device, rte_eth_dev,
    rte_eth_dev_allocate, rte_eth_dev_allocated, rte_eth_dev_attach_secondary,
    rte_eth_dev_callback_process, rte_eth_dev_data, rte_eth_dev_probing_finish,
    rte_eth_dev_release_port, rte_eth_devices,
};
use super::sys::{
    RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS, RTE_ETH_DEV_INTR_LSC, RTE_ETH_EVENT_INTR_LSC,
    RTE_ETH_EVENT_QUEUE_STATE, RTE_MAX_ETHPORTS, rte_eth_conf, rte_eth_dev_is_valid_port,
    rte_ether_addr, rte_intr_handle,
};

/// A port's number in this process.
pub type PortId = u16;

/// Bits of `rte_eth_dev_data::flags`.
const PROMISCUOUS: u8 = 1 << 0;
const ALL_MULTICAST: u8 = 1 << 2;
const STARTED: u8 = 1 << 3;

/// What ethdev tells the application's callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// The link went up or down.
    LinkState = RTE_ETH_EVENT_INTR_LSC,
    /// A queue was enabled or disabled by the frontend.
    QueueState = RTE_ETH_EVENT_QUEUE_STATE,
}

/// A queue's entry in the port's state arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// Bursts answer 0.
    Stopped = super::sys::RTE_ETH_QUEUE_STATE_STOPPED,
    /// Bursts run.
    Started = super::sys::RTE_ETH_QUEUE_STATE_STARTED,
}

/// `struct rte_eth_link`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Mb/s.
    pub speed: u32,
    /// Both directions at once.
    pub full_duplex: bool,
    /// The speed was negotiated, not fixed.
    pub autoneg: bool,
    /// Packets can flow.
    pub up: bool,
}

impl Link {
    const DUPLEX: u64 = 1 << 32;
    const AUTONEG: u64 = 1 << 33;
    const UP: u64 = 1 << 34;

    /// The word that ethdev exchanges atomically.
    pub const fn to_word(self) -> u64 {
        let mut word = self.speed as u64;
        if self.full_duplex {
            word |= Self::DUPLEX;
        }
        if self.autoneg {
            word |= Self::AUTONEG;
        }
        if self.up {
            word |= Self::UP;
        }
        word
    }

    /// The other way round; bits that newer lines added are left out.
    #[allow(clippy::cast_possible_truncation, reason = "the low half is the speed")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            speed: word as u32,
            full_duplex: word & Self::DUPLEX != 0,
            autoneg: word & Self::AUTONEG != 0,
            up: word & Self::UP != 0,
        }
    }
}

/// An ethdev port: its slot in `rte_eth_devices`, with data attached.
///
/// The slot lives as long as the process and the data as long as the port, so a handle must not be
/// used after [`EthDev::release`]; whoever makes one keeps that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EthDev(NonNull<rte_eth_dev>);

// SAFETY: a handle only names the port. Fields that two threads use at once (the link) are atomics
// here; ethdev serialises control operations on the others, which the setters ask of their callers.
unsafe impl Send for EthDev {}
// SAFETY: as for `Send`.
unsafe impl Sync for EthDev {}

impl EthDev {
    /// The port behind what ethdev gives to an operation.
    ///
    /// # Safety
    ///
    /// `dev` is a port that is allocated in this process, and stays so while the handle is used.
    #[inline(always)]
    pub unsafe fn from_ptr(dev: *mut rte_eth_dev) -> Option<Self> {
        NonNull::new(dev).map(Self)
    }

    /// Makes a port called `name`. `None` when the name is in use or all ports are.
    pub fn allocate(name: &CStr) -> Option<Self> {
        // SAFETY: a string that ethdev copies.
        NonNull::new(unsafe { rte_eth_dev_allocate(name.as_ptr()) }).map(Self)
    }

    /// In a secondary process, the port `name` that the primary made.
    pub fn attach_secondary(name: &CStr) -> Option<Self> {
        // SAFETY: a string that ethdev only compares.
        NonNull::new(unsafe { rte_eth_dev_attach_secondary(name.as_ptr()) }).map(Self)
    }

    /// The port `name`, if this process has it.
    pub fn allocated(name: &CStr) -> Option<Self> {
        // SAFETY: a string that ethdev only compares.
        NonNull::new(unsafe { rte_eth_dev_allocated(name.as_ptr()) }).map(Self)
    }

    /// The port with this number; `None` when there is none.
    pub fn by_port_id(port_id: PortId) -> Option<Self> {
        if port_id >= RTE_MAX_ETHPORTS {
            return None;
        }
        // SAFETY: no condition; the port number is checked there as well.
        if unsafe { rte_eth_dev_is_valid_port(port_id) } == 0 {
            return None;
        }
        let first = (&raw mut rte_eth_devices).cast::<rte_eth_dev>();
        // SAFETY: `port_id` is below the array's length, checked above.
        let dev = unsafe { first.add(usize::from(port_id)) };
        NonNull::new(dev).map(Self)
    }

    /// Ends `probe`: the port can be used now, and applications see the NEW event.
    pub fn probing_finish(self) {
        // SAFETY: a live port (invariant of the handle).
        unsafe { rte_eth_dev_probing_finish(self.0.as_ptr()) }
    }

    /// Gives the port back. ethdev frees `dev_private`, `mac_addrs` and the queue arrays (in the
    /// primary) and clears the slot.
    ///
    /// # Safety
    ///
    /// Nobody uses this port any more, through this or another handle.
    pub unsafe fn release(self) -> c_int {
        // SAFETY: a live port (invariant of the handle), unused from now on (caller).
        unsafe { rte_eth_dev_release_port(self.0.as_ptr()) }
    }

    /// Runs the application's callbacks for `event`, on this thread. They may call any function of
    /// ethdev on the port, so hold no lock that an operation takes.
    pub fn raise(self, event: Event) {
        // SAFETY: a live port (invariant of the handle); the events we raise carry no answer.
        unsafe { rte_eth_dev_callback_process(self.0.as_ptr(), event as u32, ptr::null_mut()) };
    }

    /// The pointer that ethdev knows the port by.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut rte_eth_dev {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn data(self) -> *mut rte_eth_dev_data {
        // SAFETY: a live port (invariant of the handle), which has data.
        unsafe { (*self.0.as_ptr()).data }
    }

    /// The port's number.
    #[inline(always)]
    pub fn port_id(self) -> PortId {
        // SAFETY: `data` of a live port.
        unsafe { (*self.data()).port_id }
    }

    /// The port's name.
    pub fn name(self) -> String {
        // SAFETY: `data` of a live port.
        let name = unsafe { &raw const (*self.data()).name };
        // SAFETY: ethdev ends the name with NUL, within its array.
        let name = unsafe { CStr::from_ptr(name.cast()) };
        name.to_string_lossy().into_owned()
    }

    /// What `probe` allocated for the port, in memory that all processes share; null after close.
    #[inline(always)]
    pub fn private(self) -> *mut c_void {
        // SAFETY: `data` of a live port.
        unsafe { (*self.data()).dev_private }
    }

    /// The process's own pointer of the port.
    #[inline(always)]
    pub fn process_private(self) -> *mut c_void {
        // SAFETY: a live port (invariant of the handle).
        unsafe { (*self.0.as_ptr()).process_private }
    }

    /// Configured rx and tx queues.
    pub fn queue_counts(self) -> (u16, u16) {
        let data = self.data();
        // SAFETY: `data` of a live port.
        let rx = unsafe { (*data).nb_rx_queues };
        // SAFETY: as above.
        let tx = unsafe { (*data).nb_tx_queues };
        (rx, tx)
    }

    /// Where ethdev keeps the object of an rx queue; `None` when no such queue is configured.
    fn rx_slot(self, index: u16) -> Option<NonNull<*mut c_void>> {
        // SAFETY: `data` of a live port.
        let queues = NonNull::new(unsafe { (*self.data()).rx_queues })?;
        if index >= self.queue_counts().0 {
            return None;
        }
        // SAFETY: the array has an entry for each configured queue, checked above.
        Some(unsafe { queues.add(usize::from(index)) })
    }

    /// The same for a tx queue.
    fn tx_slot(self, index: u16) -> Option<NonNull<*mut c_void>> {
        // SAFETY: `data` of a live port.
        let queues = NonNull::new(unsafe { (*self.data()).tx_queues })?;
        if index >= self.queue_counts().1 {
            return None;
        }
        // SAFETY: the array has an entry for each configured queue, checked above.
        Some(unsafe { queues.add(usize::from(index)) })
    }

    /// What rx queue setup stored; null when there is no such queue or it is not set up.
    pub fn rx_queue(self, index: u16) -> *mut c_void {
        // SAFETY: ethdev's array, whose entries are plain pointers.
        self.rx_slot(index)
            .map_or(ptr::null_mut(), |slot| unsafe { slot.read() })
    }

    /// What tx queue setup stored; null when there is no such queue or it is not set up.
    pub fn tx_queue(self, index: u16) -> *mut c_void {
        // SAFETY: ethdev's array, whose entries are plain pointers.
        self.tx_slot(index)
            .map_or(ptr::null_mut(), |slot| unsafe { slot.read() })
    }

    /// Stores the object of an rx queue; a queue that is not configured is left alone.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port; `queue` is what the rx burst expects, or null.
    pub unsafe fn set_rx_queue(self, index: u16, queue: *mut c_void) {
        if let Some(slot) = self.rx_slot(index) {
            // SAFETY: ethdev's array, which only this operation writes (caller).
            unsafe { slot.write(queue) };
        }
    }

    /// Stores the object of a tx queue; a queue that is not configured is left alone.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port; `queue` is what the tx burst expects, or null.
    pub unsafe fn set_tx_queue(self, index: u16, queue: *mut c_void) {
        if let Some(slot) = self.tx_slot(index) {
            // SAFETY: ethdev's array, which only this operation writes (caller).
            unsafe { slot.write(queue) };
        }
    }

    /// What the application asked for in `rte_eth_dev_configure`.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port, and the result is not kept beyond it.
    pub unsafe fn conf<'op>(self) -> &'op rte_eth_conf {
        // SAFETY: `data` of a live port; ethdev writes it in control operations only (caller).
        unsafe { &(*self.data()).dev_conf }
    }

    /// Largest packet without its Ethernet header, as the application set it.
    pub fn mtu(self) -> u16 {
        // SAFETY: `data` of a live port.
        unsafe { (*self.data()).mtu }
    }

    /// Changes what [`EthDev::mtu`] tells: the frontend was given another one.
    pub fn set_mtu(self, mtu: u16) {
        // SAFETY: `data` of a live port.
        let field = unsafe { &raw mut (*self.data()).mtu };
        // SAFETY: aligned, lives as long as the port; the application may read it at any time.
        unsafe { AtomicU16::from_ptr(field) }.store(mtu, Ordering::Relaxed);
    }

    /// Memory node of the port.
    pub fn numa_node(self) -> c_int {
        // SAFETY: `data` of a live port.
        unsafe { (*self.data()).numa_node }
    }

    /// Changes what [`EthDev::numa_node`] tells.
    pub fn set_numa_node(self, node: c_int) {
        // SAFETY: `data` of a live port.
        let field = unsafe { &raw mut (*self.data()).numa_node };
        // SAFETY: aligned, lives as long as the port; the application may read it at any time.
        unsafe { AtomicI32::from_ptr(field) }.store(node, Ordering::Relaxed);
    }

    /// Between a successful start and the next stop.
    pub fn is_started(self) -> bool {
        // SAFETY: `data` of a live port.
        unsafe { (*self.data()).flags & STARTED != 0 }
    }

    /// Marks an rx queue as started or stopped; a number out of range is ignored.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port.
    pub unsafe fn set_rx_queue_state(self, index: u16, state: QueueState) {
        // SAFETY: `data` of a live port, and only this operation uses the array (caller).
        let states = unsafe { &mut (*self.data()).rx_queue_state };
        if let Some(entry) = states.get_mut(usize::from(index)) {
            *entry = state as u8;
        }
    }

    /// Marks a tx queue as started or stopped; a number out of range is ignored.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port.
    pub unsafe fn set_tx_queue_state(self, index: u16, state: QueueState) {
        // SAFETY: `data` of a live port, and only this operation uses the array (caller).
        let states = unsafe { &mut (*self.data()).tx_queue_state };
        if let Some(entry) = states.get_mut(usize::from(index)) {
            *entry = state as u8;
        }
    }

    #[inline(always)]
    fn link_word(&self) -> &AtomicU64 {
        // SAFETY: `data` of a live port.
        let word = unsafe { &raw mut (*self.data()).dev_link };
        // SAFETY: aligned to 8, lives as long as the port, and ethdev itself uses it only by
        // atomic exchange and 8-byte loads.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// The link as applications see it.
    pub fn link(self) -> Link {
        Link::from_word(self.link_word().load(Ordering::SeqCst))
    }

    /// Changes the link, and returns what it was.
    pub fn set_link(self, link: Link) -> Link {
        Link::from_word(self.link_word().swap(link.to_word(), Ordering::SeqCst))
    }

    /// Fills a fresh port. In the primary everything, in a secondary only what is private to the
    /// process, so without `shared`.
    ///
    /// # Safety
    ///
    /// Called in `probe`, before `probing_finish`. `device` outlives the port.
    /// `shared.private` and `shared.mac_addrs` come from `rte_malloc`, as ethdev frees them.
    pub unsafe fn set_up(
        self,
        device: *mut rte_device,
        functions: &Functions,
        shared: Option<&Shared>,
    ) {
        let dev = self.0.as_ptr();
        // SAFETY: a live port that nobody else uses before `probing_finish` (caller).
        let dev = unsafe { &mut *dev };
        dev.device = device;
        dev.intr_handle = ptr::null_mut();
        dev.rx_pkt_burst = functions.rx_burst;
        dev.tx_pkt_burst = functions.tx_burst;
        dev.rx_queue_count = functions.rx_queue_count;
        dev.rx_descriptor_status = functions.rx_descriptor_status;
        dev.tx_descriptor_status = functions.tx_descriptor_status;
        #[cfg(not(dpdk_22_11))]
        {
            dev.tx_queue_count = functions.tx_queue_count;
        }
        dev.dev_ops = functions.ops;
        let Some(shared) = shared else { return };
        // SAFETY: `data` of a live port, which no other process uses before `probing_finish`.
        let data = unsafe { &mut *dev.data };
        data.dev_private = shared.private;
        data.mac_addrs = shared.mac_addrs;
        data.nb_rx_queues = shared.max_queues;
        data.nb_tx_queues = shared.max_queues;
        data.numa_node = shared.numa_node;
        data.dev_flags = RTE_ETH_DEV_INTR_LSC | RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS;
        data.flags |= PROMISCUOUS | ALL_MULTICAST;
        data.dev_link = shared.link.to_word();
    }

    /// Takes the private data away from the port, so that `release` does not free it and a second
    /// close finds nothing.
    ///
    /// # Safety
    ///
    /// Called in `close`, in the primary.
    pub unsafe fn take_private(self) -> *mut c_void {
        // SAFETY: `data` of a live port, and only this operation uses the field (caller).
        let private = unsafe { &mut (*self.data()).dev_private };
        core::mem::replace(private, ptr::null_mut())
    }

    /// Sets the handle through which the application finds the queues' interrupts, or null.
    ///
    /// # Safety
    ///
    /// Called in a control operation of the port; the handle lives until it is replaced.
    pub unsafe fn set_intr_handle(self, handle: *mut rte_intr_handle) {
        // SAFETY: a live port, and ethdev serialises control operations (caller).
        unsafe { (*self.0.as_ptr()).intr_handle = handle };
    }
}

/// The functions of a port that its process calls.
pub struct Functions {
    /// Op table; a static, since ethdev keeps the pointer.
    pub ops: &'static eth_dev_ops,
    /// Receives a burst.
    pub rx_burst: Burst,
    /// Sends a burst.
    pub tx_burst: Burst,
    /// Counts buffers that wait in an rx queue; `None` in a secondary.
    pub rx_queue_count: RxQueueCount,
    /// What became of a descriptor of an rx queue; `None` in a secondary.
    pub rx_descriptor_status: DescriptorStatus,
    /// The same for a tx queue.
    pub tx_descriptor_status: DescriptorStatus,
    /// Counts descriptors of a tx queue that are in use; `None` in a secondary.
    #[cfg(not(dpdk_22_11))]
    pub tx_queue_count: super::abi::TxQueueCount,
}

/// The values of a fresh port that all processes share.
pub struct Shared {
    /// The driver's own data.
    pub private: *mut c_void,
    /// An array of one address.
    pub mac_addrs: *mut rte_ether_addr,
    /// Queue count of either direction until the application configures the port.
    pub max_queues: u16,
    /// Memory node.
    pub numa_node: c_int,
    /// Link state until a frontend connects.
    pub link: Link,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_survives_the_way_through_its_word() {
        let link = Link {
            speed: 10_000,
            full_duplex: true,
            autoneg: false,
            up: true,
        };

        assert_eq!(link.to_word(), 0x5_0000_2710);
        assert_eq!(Link::from_word(link.to_word()), link);
    }

    #[test]
    fn bits_of_newer_lines_do_not_disturb_a_link() {
        let connector = 0b111_1110 << 34; // 25.11: six bits beside the status bit
        let down = Link {
            speed: 10_000,
            full_duplex: true,
            autoneg: false,
            up: false,
        };

        let read = Link::from_word(down.to_word() | (connector & !(1 << 34)));

        assert_eq!(read, down);
    }
}
