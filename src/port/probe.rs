//! The vdev driver: devices appear and go.

use core::ffi::c_int;
use std::sync::Arc;

use super::shared::{self, SharedBox};
use super::{LINK, Port, PortError, burst, ops, telemetry};
use crate::devargs::PortConfig;
use crate::dpdk::abi::{Burst, rte_vdev_device};
use crate::dpdk::ethdev::{EthDev, Functions, Shared};
use crate::dpdk::sys::rte_ether_addr;
use crate::dpdk::varying;
use crate::dpdk::vdev::{VdevDevice, VdevDriver};
use crate::dpdk::{eal, malloc};
use crate::guard;
use crate::log::PORT;
use crate::virtqueue::prepare_barriers;

static DRIVER: VdevDriver = VdevDriver::new(c"net_vhost", c"eth_vhost", probe, remove);

/// Makes the driver and its log types known to EAL.
pub fn register() {
    crate::dpdk::log::install();
    if !prepare_barriers() {
        log::info!(target: PORT, "the kernel refuses membarrier(2): bursts take a little longer");
    }
    DRIVER.register();
    telemetry::register();
    if DRIVER.is_shadowed() {
        log::warn!(
            target: PORT,
            "another net_vhost driver was loaded first and will be used instead of this one"
        );
    }
}

/// # Safety
///
/// For the vdev bus only.
unsafe extern "C" fn probe(device: *mut rte_vdev_device) -> c_int {
    // SAFETY: the bus passes a device and keeps it during the call.
    let Some(device) = (unsafe { VdevDevice::from_ptr(device) }) else {
        return -libc::EINVAL;
    };
    guard::errno(|| {
        let result = if eal::is_primary() {
            create(device)
        } else {
            attach(device)
        };
        result.inspect_err(|error| {
            log::error!(target: PORT, "{}: {error}", device.name().to_string_lossy());
        })
    })
}

/// # Safety
///
/// For the vdev bus only.
unsafe extern "C" fn remove(device: *mut rte_vdev_device) -> c_int {
    // SAFETY: the bus passes a device and keeps it during the call.
    let Some(device) = (unsafe { VdevDevice::from_ptr(device) }) else {
        return -libc::EINVAL;
    };
    guard::catch(-libc::EFAULT, || {
        // A port that was closed is gone already.
        let Some(dev) = EthDev::allocated(device.name()) else {
            return 0;
        };
        // SAFETY: a port of ours that is going away.
        unsafe { ops::close(dev) };
        // SAFETY: closed, and the device that it belongs to goes.
        unsafe { dev.release() }
    })
}

/// Memory node of a device: the one that it was given, or the caller's.
fn node(device: VdevDevice) -> c_int {
    match device.numa_node() {
        eal::ANY_SOCKET => eal::socket_id(),
        given => given,
    }
}

/// Makes a port: data only, neither socket nor thread.
fn create(device: VdevDevice) -> Result<(), PortError> {
    let args = device.args().to_str().map_err(|_| PortError::NotText)?;
    let config = PortConfig::parse(args)?;
    let name = device.name().to_string_lossy().into_owned();
    for entry in config.dma.iter().flat_map(|dma| &dma.doubled) {
        log::warn!(target: PORT, "{name}: dmas: {entry}: the queue has that engine already");
    }
    let node = node(device);
    let queues = config.queues;
    let shared = SharedBox::new(&config, node)?;
    let mac_addrs =
        malloc::zeroed::<rte_ether_addr>(c"net_vhost mac", node).ok_or(PortError::NoMemory)?;
    let Some(dev) = EthDev::allocate(device.name()) else {
        // SAFETY: from `zeroed`, and nobody has it.
        unsafe { malloc::free(mac_addrs) };
        return Err(PortError::NoPort);
    };
    let [_, id] = dev.port_id().to_be_bytes();
    // SAFETY: fresh memory of that size, which nobody else has.
    unsafe {
        mac_addrs.write(rte_ether_addr {
            addr_bytes: [0x56, 0x48, 0x4f, 0x53, 0x54, id],
        })
    };
    let values = Shared {
        private: shared.as_ptr().cast(),
        mac_addrs: mac_addrs.as_ptr(),
        max_queues: queues,
        numa_node: node,
        link: LINK,
    };
    // Ports without copy engines do not even ask for them.
    let (rx_burst, tx_burst): (Burst, Burst) = match config.dma {
        None => (Some(burst::rx_burst), Some(burst::tx_burst)),
        Some(_) => (
            Some(burst::rx_burst_offloaded),
            Some(burst::tx_burst_offloaded),
        ),
    };
    shared::own(Arc::new(Port::new(name, config, dev, shared)));
    let functions = Functions {
        ops: &ops::OPS,
        rx_burst,
        tx_burst,
        rx_queue_count: Some(varying::rx_queue_count::<ops::Ops>),
        rx_descriptor_status: Some(ops::rx_descriptor_status),
        tx_descriptor_status: Some(ops::tx_descriptor_status),
        #[cfg(not(dpdk_22_11))]
        tx_queue_count: Some(ops::tx_queue_count),
    };
    // SAFETY: in `probe`; the bus keeps the device as long as the port; both pointers are from
    // `rte_malloc`, and `close` takes the first one out again.
    unsafe { dev.set_up(device.device(), &functions, Some(&values)) };
    dev.probing_finish();
    Ok(())
}

/// In a secondary process, takes up the port that the primary made. Its statistics can be read
/// here, its queues cannot be polled.
fn attach(device: VdevDevice) -> Result<(), PortError> {
    let dev = EthDev::attach_secondary(device.name()).ok_or(PortError::NoPort)?;
    let functions = Functions {
        ops: &ops::SECONDARY_OPS,
        rx_burst: Some(burst::no_burst),
        tx_burst: Some(burst::no_burst),
        rx_queue_count: None,
        rx_descriptor_status: None,
        tx_descriptor_status: None,
        #[cfg(not(dpdk_22_11))]
        tx_queue_count: None,
    };
    // SAFETY: in `probe`; the bus keeps the device as long as the port.
    unsafe { dev.set_up(device.device(), &functions, None) };
    dev.probing_finish();
    Ok(())
}
