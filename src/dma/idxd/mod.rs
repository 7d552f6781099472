//! Work queues of DSA, the copy engine of Xeons since Sapphire Rapids.
//!
//! A queue takes descriptors of 64 bytes, each written in one piece to its portal, and writes a
//! record to memory when it is done. There are two ways to one: the kernel's character device,
//! where it works with our virtual addresses, and VFIO.

pub mod char_device;
pub mod descriptor;
mod open_vfio;
pub mod portal;
pub mod queue;
pub mod sysfs;
#[cfg(test)]
mod tests;
pub mod vfio;

pub use char_device::{CharDevice, open_char_device};
pub use open_vfio::open_vfio;
pub use queue::Queue;

use super::vfio::PciId;

/// Whether a PCI function is a DSA device that this driver knows.
pub fn is_known(id: PciId) -> bool {
    // Sapphire and Emerald Rapids, Granite Rapids-D, Diamond Rapids.
    id.vendor == 0x8086 && matches!(id.device, 0x0b25 | 0x11fb | 0x1212)
}
