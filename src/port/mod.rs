//! What DPDK calls.

pub mod packet;

use core::ffi::c_int;

use crate::dpdk::abi::rte_vdev_device;
use crate::dpdk::vdev::VdevDriver;
use crate::exports::rte_eth_vhost_queue_event;

static DRIVER: VdevDriver = VdevDriver::new(c"net_vhost", c"eth_vhost", probe, probe);

unsafe extern "C" fn probe(_device: *mut rte_vdev_device) -> c_int {
    -libc::ENOTSUP
}

/// Makes the driver and its log types known to EAL.
pub fn register() {
    crate::dpdk::log::install();
    DRIVER.register();
    if DRIVER.is_shadowed() {
        log::warn!(
            target: crate::log::PORT,
            "another net_vhost driver was loaded first and will be used instead of this one"
        );
    }
}

/// The next change of a queue's state on a port.
pub fn next_queue_event(_port_id: u16) -> Option<rte_eth_vhost_queue_event> {
    None
}

/// The number of a port's connection.
pub fn connection_id(_port_id: u16) -> Option<c_int> {
    None
}
