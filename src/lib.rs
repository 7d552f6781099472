//! DPDK's `net_vhost` driver in Rust.
//!
//! Modules stand in layer order, the highest first; each may import only from those below it.
