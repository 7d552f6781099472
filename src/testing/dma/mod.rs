//! Devices that copy memory, without the devices.

mod container;
mod dsa;
mod ioat;
mod trap;
mod work_queue;

pub use container::FakeContainer;
pub use dsa::{DsaFault, DsaModel};
pub use ioat::{IoatFault, IoatModel};
pub use trap::stand_in_for_instructions;
pub use work_queue::{FakeWorkQueue, Way};
