//! Devices that copy memory, without the devices.

mod container;
mod ioat;

pub use container::FakeContainer;
pub use ioat::{IoatFault, IoatModel};
