//! PCI functions that the kernel lends us through VFIO, and the memory they reach.
//!
//! A [`Container`] is an address space of devices: DPDK's own, which the port hands in, or one of
//! ours ([`Type1`]). A [`Device`] is one function in it. What an engine needs of a function are the
//! traits [`Registers`] and [`Function`], so that a model can stand in for it.

pub mod function;
mod ioctl;
pub mod memory;
pub mod pieces;
mod space;
pub mod type1;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use function::{Device, Function, PciId, Registers, iommu_bits, pci_id};
pub use memory::{Block, Memory};
pub use pieces::{Piece, Reach};
pub use type1::Type1;

/// What devices of one IOMMU address space have in common. Several engines share one.
pub trait Container: Send + Sync {
    /// Opens the device at `bdf` (`0000:00:04.0`), whose group joins the container.
    ///
    /// # Errors
    ///
    /// `NotFound`: it is not bound to VFIO. Anything else: the system refused.
    fn open(&self, bdf: &str) -> io::Result<OwnedFd>;

    /// Closes it: the kernel takes the right to read and write memory from it. Whether that is sure.
    fn close(&self, bdf: &str, device: OwnedFd) -> bool;

    /// Lets the devices reach `len` bytes at `va`, whole pages. The same range may be mapped again;
    /// each [`unmap`](Self::unmap) undoes one of them.
    ///
    /// # Errors
    ///
    /// The system refused, or there is no device yet.
    fn map(&self, va: usize, len: usize) -> io::Result<Vec<Piece>>;

    /// Undoes one [`map`](Self::map) of the very same range.
    fn unmap(&self, va: usize, len: usize);

    /// The piece with all of `len` bytes at `va`, of memory that stays mapped without our doing,
    /// such as DPDK's.
    fn known(&self, va: usize, len: usize) -> Option<Piece>;

    /// How often memory that was [`known`](Self::known) has gone. Who remembers an answer looks here
    /// before it uses it.
    fn losses(&self) -> Arc<AtomicU64>;

    /// Zeroed memory that devices reach, in one piece for them, too; it begins on a cache
    /// line.
    ///
    /// # Errors
    ///
    /// There is none.
    fn allocate(&self, len: usize) -> io::Result<Block>;

    /// Takes memory back; no device uses it any more.
    fn free(&self, block: Block);
}

/// Whether `bdf` is in the form `0000:00:04.0`, so that it can be part of a path.
pub fn is_bdf(bdf: &str) -> bool {
    let form = "hhhh:hh:hh.o";
    bdf.len() == form.len()
        && bdf
            .bytes()
            .zip(form.bytes())
            .all(|(byte, form)| match form {
                b'h' => byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase(),
                b'o' => (b'0'..=b'7').contains(&byte),
                _ => byte == form,
            })
}
