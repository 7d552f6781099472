//! The configured ports of this process: whose socket is where, and the two functions that
//! applications call with a port's number.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::events::QueueEvent;
use super::{Port, PortError, lock};
use crate::log::PORT;

static PORTS: Mutex<Vec<Arc<Port>>> = Mutex::new(Vec::new());

/// Notes that `port` is configured; refused when another one has its socket.
pub(super) fn add(port: &Arc<Port>) -> Result<(), PortError> {
    let mut ports = lock(&PORTS);
    let iface = &port.config.iface;
    if let Some(other) = ports.iter().find(|other| other.config.iface == *iface) {
        return Err(PortError::IfaceInUse {
            iface: iface.clone(),
            owner: other.name.clone(),
        });
    }
    ports.push(Arc::clone(port));
    Ok(())
}

/// A configured port, with what its ethdev told: that one may be gone when somebody reads on.
pub(super) struct Found {
    pub(super) id: u16,
    pub(super) mtu: u16,
    pub(super) port: Arc<Port>,
}

/// All configured ports, by number.
pub(super) fn all() -> Vec<Found> {
    // A port that closes leaves the list before it gives up its ethdev.
    let ports = lock(&PORTS);
    let found = ports.iter().map(|port| Found {
        id: port.dev().port_id(),
        mtu: port.dev().mtu(),
        port: Arc::clone(port),
    });
    let mut found: Vec<Found> = found.collect();
    found.sort_by_key(|found| found.id);
    found
}

/// Forgets `port`.
pub(super) fn remove(port: &Port) {
    lock(&PORTS).retain(|other| !std::ptr::eq(Arc::as_ptr(other), port));
}

fn find(port_id: u16) -> Option<Arc<Port>> {
    let port = lock(&PORTS)
        .iter()
        .find(|port| port.dev().port_id() == port_id)
        .cloned();
    if port.is_none() {
        log::error!(target: PORT, "port {port_id} is not a configured vhost port");
    }
    port
}

/// The next change of a queue's state on a port, for `rte_eth_vhost_get_queue_event`.
pub fn next_queue_event(port_id: u16) -> Option<QueueEvent> {
    lock(&find(port_id)?.events).take()
}

/// The handle of a port's connection, for `rte_eth_vhost_get_vid_from_port_id`.
pub fn connection_id(port_id: u16) -> Option<i32> {
    let vid = find(port_id)?.shared.vid.load(Ordering::Relaxed);
    (vid >= 0).then_some(vid)
}
