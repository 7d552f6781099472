//! DPDK's `net_vhost` driver in Rust.
//!
//! Modules stand in layer order, the highest first; each may import only from those below it.

#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(feature = "dpdk")]
pub mod exports;
#[cfg(feature = "dpdk")]
pub mod port;

pub mod session;

pub mod datapath;
pub mod dma;
pub mod virtqueue;

pub mod devargs;
pub mod memory;
pub mod virtio_net;

#[cfg(feature = "dpdk")]
pub mod dpdk;
#[cfg(feature = "dpdk")]
pub mod guard;

pub mod log;
