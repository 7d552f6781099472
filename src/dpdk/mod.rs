//! The DPDK boundary: the only place that names DPDK's C types.
//!
//! Thin inline wrappers without policy. Lines of DPDK differ only in here: `abi` holds one file of
//! layouts per line, and `varying` hides the three callbacks whose signature changed.

pub mod abi;
pub mod eal;
pub mod ethdev;
pub mod intr;
pub mod log;
pub mod malloc;
pub mod mbuf;
pub mod memory;
pub mod mempool;
pub mod sys;
pub mod telemetry;
pub mod thread;
pub mod varying;
pub mod vdev;
pub mod vfio;
