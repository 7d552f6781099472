//! Opens copy engines by the names of `dmas=`.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use super::vfio;
use crate::devargs::{Backend, EngineName, pci, work_queue};
use crate::dma::channel::{self, Channel, OpenError};
use crate::dma::dmadev::{self, Dmadev, Wanted};
use crate::dma::software::Software;
use crate::dma::vfio::pci_id;
use crate::dma::{Engine, idxd, ioat};
use crate::dpdk::thread;
use crate::guard;

/// The engine of that name, which may be in use already; one that is opened has room for `ring_size`
/// copies, or as many as it can.
///
/// # Errors
///
/// It is not there, not to be had, or has died in this process.
pub(super) fn open(name: &EngineName, ring_size: u32) -> Result<Arc<Channel>, OpenError> {
    let backend = name.backend.unwrap_or_else(|| find(&name.name));
    let whole = EngineName {
        backend: Some(backend),
        ..name.clone()
    };
    channel::open(&whole.to_string(), || make(&whole, backend, ring_size))
}

/// A function's address, and the queue of it that is named.
fn function(name: &str) -> (&str, Option<u32>) {
    match name.split_once("-q") {
        Some((bdf, queue)) => (bdf, queue.parse().ok()),
        None => (name, None),
    }
}

/// Who drives an engine when nobody says: DPDK, if it does; else whoever knows that kind.
fn find(name: &str) -> Backend {
    if dmadev::exists(name) {
        return Backend::Dmadev;
    }
    if work_queue(name).is_some() {
        return Backend::Wq;
    }
    let known = pci(name).and_then(|_| pci_id(function(name).0).ok());
    match known {
        Some(id) if ioat::is_known(id) => Backend::Ioat,
        Some(id) if idxd::is_known(id) => Backend::Dsa,
        // It has the words for what is not there.
        _ => Backend::Dmadev,
    }
}

fn make(name: &EngineName, backend: Backend, ring_size: u32) -> Result<Box<dyn Engine>, OpenError> {
    match backend {
        Backend::Software => boxed(Software::new(ring_size, |body| {
            let body = Box::new(|| guard::catch((), body));
            thread::spawn(c"vhost-copy", body).map(|_| ())
        })),
        Backend::Dmadev => Ok(Box::new(Dmadev::open(Wanted {
            name: &name.name,
            vchan: name.vchan,
            ring_size,
            stops_in_name_only: work_queue(&name.name).is_some(),
            container: vfio::of_eal,
        })?)),
        Backend::Ioat => {
            let (bdf, _) = unused(&name.name)?;
            boxed(ioat::open(bdf, ring_size, vfio::open))
        }
        Backend::Dsa => {
            let (bdf, queue) = unused(&name.name)?;
            let queue = queue.unwrap_or_default();
            boxed(idxd::open_vfio(bdf, queue, ring_size, vfio::open))
        }
        Backend::Wq => {
            unused(&name.name)?;
            boxed(idxd::open_char_device(&name.name, ring_size))
        }
    }
}

/// The parts of a name, when DPDK does not drive what it names.
fn unused(name: &str) -> Result<(&str, Option<u32>), OpenError> {
    let (bdf, queue) = function(name);
    if dmadev::exists(name) || dmadev::exists(bdf) {
        return Err(OpenError::Busy(format!(
            "DPDK drives it as a dmadev: write dmadev:{name}, or keep DPDK away from it with -b"
        )));
    }
    Ok((bdf, queue))
}

fn boxed<E: Engine + 'static>(result: io::Result<E>) -> Result<Box<dyn Engine>, OpenError> {
    match result {
        Ok(engine) => Ok(Box::new(engine)),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Err(OpenError::Busy(error.to_string()))
        }
        Err(error) => Err(OpenError::Unusable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_function_and_perhaps_a_queue() {
        assert_eq!(function("0000:e7:01.0-q3"), ("0000:e7:01.0", Some(3)));
        assert_eq!(function("0000:e7:01.0"), ("0000:e7:01.0", None));
    }

    #[test]
    fn what_nobody_has_is_looked_for_among_dmadevs() {
        assert_eq!(find("dma_skeleton"), Backend::Dmadev);
        assert_eq!(find("ffff:ff:1f.7"), Backend::Dmadev);
        assert_eq!(find("wq0.1"), Backend::Wq);
    }
}
