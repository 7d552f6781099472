//! DPDK's `net_vhost` driver in Rust.
//!
//! Modules stand in layer order, the highest first; each may import only from those below it.

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub mod devargs;
pub mod session;

pub mod datapath;
pub mod virtqueue;

pub mod memory;
pub mod virtio_net;
