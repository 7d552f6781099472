//! DPDK's `net_vhost` driver in Rust.
//!
//! Modules stand in layer order, the highest first; each may import only from those below it.

#[cfg(feature = "dpdk")]
pub mod exports;
#[cfg(feature = "dpdk")]
pub mod port;

#[cfg(feature = "dpdk")]
pub mod dpdk;

#[cfg(feature = "dpdk")]
pub mod guard;

pub mod log;
