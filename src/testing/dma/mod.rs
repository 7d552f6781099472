//! Devices that copy memory, without the devices.

mod container;
mod engine;
mod ioat;

pub use container::FakeContainer;
pub use engine::{Fault, Faults, Faulty, SimEngine};
pub use ioat::{IoatFault, IoatModel};
