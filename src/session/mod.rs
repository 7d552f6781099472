//! What the frontend calls: the vhost-user connection of a port.
//!
//! A session collects what `SET_VRING_*` say, and when a ring satisfies the ready rules it hands a
//! checked [`Virtqueue`] to the port. It knows the port only as [`SessionEvents`].

#![forbid(unsafe_code)]

mod bell;
mod connection;
mod device;
mod endpoint;
mod error;
pub mod features;
mod hall;
mod handler;
mod messages;
mod postcopy;
mod socket;
mod spawn;
mod turn;
mod voice;
mod vring;
mod wire;

pub use endpoint::{Endpoint, EndpointError, Frontend};
pub use spawn::{Join, Spawn, StdThreads};
pub use vring::{SetupError, Translated, VringSetup};

use std::fs::File;
use std::sync::Arc;

use voice::say;

use crate::virtqueue::Virtqueue;

/// What a port has to say to start serving frontends.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Path of the socket.
    pub iface: String,
    /// Connect to the path instead of listening.
    pub client: bool,
    /// Number of vrings that the port serves: twice its queue pairs. More are accepted and
    /// reported, but nobody polls them.
    pub vrings: u16,
    /// Virtio features to offer.
    pub features: u64,
    /// Protocol features to offer.
    pub protocol_features: u64,
}

/// What a session tells its port. All calls come from the thread of the connection that is served,
/// with no lock held that a port could need, so that a callback of the application may query the
/// port, or even close it ([`Endpoint::stop`] tells what follows then).
///
/// Order of a normal start: `give(0)`, `queue_state(0, true)`, `give(1)`, `queue_state(1, true)`,
/// `link_up`, then the other vrings. A message is answered after what it takes away was taken, and
/// before what it makes ready is given.
pub trait SessionEvents: Send + Sync {
    /// Hands over vring `index`, to be polled whenever the link is up and the port started. It
    /// comes back at once when the port has no queue for it.
    fn give(&self, index: u16, virtqueue: Virtqueue) -> Option<Virtqueue>;

    /// Takes vring `index` back. When this returns, no lcore touches it. `None`: nothing was given.
    fn take(&self, index: u16) -> Option<Virtqueue>;

    /// Runs `work` on vring `index` while no lcore touches it; not at all when nothing was given.
    fn alter(&self, index: u16, work: &mut dyn FnMut(&mut Virtqueue));

    /// What stood in the way of vring `index` may be gone: whoever sleeps until it has something
    /// should look again.
    fn look_again(&self, index: u16);

    /// A postcopy migration begins, or is over: meanwhile only the CPU may touch the guest's memory, and
    /// its access may wait for the other host.
    fn postcopy(&self, under_way: bool) {
        let _ = under_way;
    }

    /// Vring `index` turned ready or not ready: `RTE_ETH_EVENT_QUEUE_STATE`.
    fn queue_state(&self, index: u16, ready: bool);

    /// The device is ready: polling may begin, link up, `RTE_ETH_EVENT_INTR_LSC`.
    fn link_up(&self, device: &DeviceInfo);

    /// The device is gone: no lcore touches any ring when this returns; link down,
    /// `RTE_ETH_EVENT_INTR_LSC`. Forgets pending queue states of all vrings.
    fn link_down(&self);

    /// The frontend asks for a RARP frame in the name of `mac` (`SEND_RARP`).
    fn send_rarp(&self, mac: [u8; 6]);

    /// The kick eventfd of vring `index` changed; `None`: there is none now. For Rx interrupts.
    fn kick_changed(&self, index: u16, kick: Option<&Arc<File>>);
}

/// What is known of a device when its link comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Handle of the connection, 0 to 1023, unique in the process.
    pub vid: i32,
    /// Virtio features that the driver acked.
    pub features: u64,
    /// From `NET_SET_MTU`; `None` when it was never sent.
    pub mtu: Option<u16>,
}
