//! A fake driver, frontend and packets, for tests without DPDK.
//!
//! Everything here may panic: a helper that cannot do its part fails the test.
#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes of tests are small, and a wrong one fails the test"
)]

mod buffer;
pub mod dma;
mod driver;
mod iommu;
mod log;
mod memory;
mod packed;
mod packet;
mod split;
mod wire;

pub use buffer::{Buffer, Frame, Used};
pub use driver::FakeDriver;
pub use log::{FakeLog, LOG_PAGE, LogRing};
pub use memory::{APART, BUFFERS, FakeMemory, NEXT, RINGS, Snapshot, UNMAPPED};
pub use packet::{FakePacket, FakePool};
pub use wire::{Build, crc32c, naive_sum};
