//! Devices that copy memory, without the devices.

mod container;
mod dsa;
mod dsa_function;
mod engine;
mod ioat;
mod trap;
mod work_queue;

pub use container::FakeContainer;
pub use dsa::{DsaFault, DsaModel};
pub use dsa_function::{DsaDevice, DsaDeviceFault};
pub use engine::{Fault, Faults, Faulty, SimEngine};
pub use ioat::{IoatFault, IoatModel};
pub use trap::stand_in_for_instructions;
pub use work_queue::{FakeWorkQueue, Way};
