//! What the library shows to others: its constructor, two functions, and a note for tools.

use core::ffi::c_int;
use core::ptr::NonNull;

use crate::{guard, port};

/// A ring that the frontend enabled or disabled.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "C's name")]
pub struct rte_eth_vhost_queue_event {
    /// Number of the queue, in its direction.
    pub queue_id: u16,
    /// The queue receives, as the application sees it.
    pub rx: bool,
    /// It was enabled.
    pub enable: bool,
}

/// Gets the next change of a queue's state, one per call. Called after an event of type
/// `RTE_ETH_EVENT_QUEUE_STATE`, until there are no more.
///
/// Returns 0 and fills `event`, or -1 when nothing changed or the port is not a configured one of
/// this driver.
///
/// # Safety
///
/// `event` is null or points to a struct that the caller has alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rte_eth_vhost_get_queue_event(
    port_id: u16,
    event: *mut rte_eth_vhost_queue_event,
) -> c_int {
    let Some(event) = NonNull::new(event) else {
        return -1;
    };
    match guard::catch(None, || port::next_queue_event(port_id)) {
        Some(change) => {
            let change = rte_eth_vhost_queue_event {
                queue_id: change.queue,
                rx: change.rx,
                enable: change.enable,
            };
            // SAFETY: not null; the caller's own struct.
            unsafe { event.write(change) };
            0
        }
        None => -1,
    }
}

/// Gets the number of the connection that a port has, a small number that is free again when the
/// frontend disconnects.
///
/// Returns -1 when no frontend is connected or the port is not a configured one of this driver.
/// The number means nothing to functions of librte_vhost, which this driver does not use.
#[unsafe(no_mangle)]
pub extern "C" fn rte_eth_vhost_get_vid_from_port_id(port_id: u16) -> c_int {
    guard::catch(None, || port::connection_id(port_id)).unwrap_or(-1)
}

// Binds both to the node that applications ask for (build.rs defines it). Test programs of this
// package have no such symbols to bind.
#[cfg(not(test))]
core::arch::global_asm!(
    concat!(
        ".symver rte_eth_vhost_get_queue_event, rte_eth_vhost_get_queue_event@@",
        env!("DPDK_VERSION_NODE")
    ),
    concat!(
        ".symver rte_eth_vhost_get_vid_from_port_id, rte_eth_vhost_get_vid_from_port_id@@",
        env!("DPDK_VERSION_NODE")
    ),
);

/// Run by the loader, before EAL looks for devices.
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;

extern "C" fn load() {
    guard::catch((), port::register);
}

/// What `dpdk-pmdinfo.py` prints. It looks in `.rodata` for a text between NULs.
#[used]
#[unsafe(link_section = ".rodata")]
static PMD_INFO: [u8; PMD_INFO_TEXT.len()] = {
    let mut text = [0; PMD_INFO_TEXT.len()];
    text.copy_from_slice(PMD_INFO_TEXT);
    text
};

const PMD_INFO_TEXT: &[u8] = b"\0PMD_INFO_STRING= {\"name\" : \"net_vhost\", \"params\" : \"\
iface=<ifc> queues=<int> client=<0|1> iommu-support=<0|1> postcopy-support=<0|1> tso=<0|1> \
linear-buffer=<0|1> ext-buffer=<0|1> legacy-ol-flags=<0|1> ptypes=<0|1> \
dmas=<queue@engine;...> dmathr=<int> dma-ring-size=<int>\", \"pci_ids\" : []}\0";
