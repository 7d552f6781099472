//! Engines in a guest: a real kernel's VFIO, an emulated IOMMU, and PCI devices of ours.
//!
//! The tests outside start QEMU with this very program in the guest's file system, where it runs the
//! tests of [`inside`].

#[path = "../common/mod.rs"]
mod common;
mod device;
mod inside;
mod outside;
