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

/// What a device reaches.
pub trait DeviceMemory: Send + 'static {
    /// Our address of `len` bytes that the device finds at `iova`, if it reaches all of them there.
    fn host(&self, iova: u64, len: usize) -> Option<usize>;
}

impl DeviceMemory for FakeContainer {
    fn host(&self, iova: u64, len: usize) -> Option<usize> {
        self.host(iova, len)
    }
}
