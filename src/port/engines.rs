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
    let whole = whole(name, backend)?;
    channel::open(&whole.to_string(), || make(&whole, backend, ring_size))
}

/// The name under which everybody who means this engine finds it.
fn whole(name: &EngineName, backend: Backend) -> Result<EngineName, OpenError> {
    let unusable = |why: &str| Err(OpenError::Unusable(why.into()));
    if name.vchan.is_some() && backend != Backend::Dmadev {
        return unusable("only a dmadev has channels behind #, and there is none of that name");
    }
    let of_function = match (backend, function(&name.name)) {
        (Backend::Ioat, (_, Some(_))) => {
            return unusable("a function with an I/OAT channel has no queues behind -q");
        }
        (Backend::Dsa, (bdf, None)) => Some(format!("{bdf}-q0")),
        _ => None,
    };
    Ok(EngineName {
        backend: Some(backend),
        name: of_function.unwrap_or_else(|| name.name.clone()),
        vchan: name.vchan,
    })
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
    match driven(name, dmadev::exists) {
        None => Ok(function(name)),
        Some(dmadev) => Err(OpenError::Busy(format!(
            "DPDK drives it as a dmadev: write dmadev:{dmadev}, or keep DPDK away from it with -b"
        ))),
    }
}

/// The dmadev, by which DPDK drives the device that `name` is of. It may have one for each queue of
/// the device, and a device is one for all of them.
fn driven(name: &str, exists: impl Fn(&str) -> bool) -> Option<String> {
    const MOST_QUEUES: u32 = 256;
    let (bdf, _) = function(name);
    let queues = 0..pci(bdf).map_or(0, |_| MOST_QUEUES);
    let names = [name, bdf].map(str::to_owned).into_iter();
    names
        .chain(queues.map(|queue| format!("{bdf}-q{queue}")))
        .find(|name| exists(name))
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

    fn named(name: &str, backend: Backend) -> Result<String, String> {
        let (name, vchan) = match name.split_once('#') {
            Some((name, vchan)) => (name, vchan.parse().ok()),
            None => (name, None),
        };
        let name = EngineName {
            backend: None,
            name: name.into(),
            vchan,
        };
        match whole(&name, backend) {
            Ok(name) => Ok(name.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn an_engine_has_one_name() {
        for (name, backend, whole) in [
            ("0000:e7:01.0", Backend::Dsa, "dsa:0000:e7:01.0-q0"),
            ("0000:e7:01.0-q0", Backend::Dsa, "dsa:0000:e7:01.0-q0"),
            ("0000:e7:01.0-q3", Backend::Dsa, "dsa:0000:e7:01.0-q3"),
            ("0000:00:04.0", Backend::Ioat, "ioat:0000:00:04.0"),
            ("a", Backend::Dmadev, "dmadev:a"),
            ("a#1", Backend::Dmadev, "dmadev:a#1"),
        ] {
            assert_eq!(named(name, backend).as_deref(), Ok(whole));
        }
    }

    #[test]
    fn a_name_with_parts_that_the_engine_does_not_have_is_refused() {
        let error = named("0000:00:04.0-q1", Backend::Ioat).unwrap_err();
        assert!(error.contains("no queues"), "{error}");
        for backend in [Backend::Wq, Backend::Ioat, Backend::Dsa] {
            let error = named("x#1", backend).unwrap_err();
            assert!(error.starts_with("only a dmadev has channels"), "{error}");
        }
    }

    #[test]
    fn a_device_of_which_dpdk_drives_any_queue_is_not_ours() {
        let dpdk = |name: &str| name == "0000:e7:01.0-q5" || name == "wq0.1";
        let queue = Some("0000:e7:01.0-q5".to_owned());
        assert_eq!(driven("0000:e7:01.0", dpdk), queue);
        assert_eq!(driven("0000:e7:01.0-q9", dpdk), queue);
        assert_eq!(driven("0000:e7:02.0", dpdk), None);
        assert_eq!(driven("wq0.1", dpdk).as_deref(), Some("wq0.1"));
        assert_eq!(driven("wq0.2", dpdk), None);
    }

    #[test]
    fn what_nobody_has_is_looked_for_among_dmadevs() {
        assert_eq!(find("dma_skeleton"), Backend::Dmadev);
        assert_eq!(find("ffff:ff:1f.7"), Backend::Dmadev);
        assert_eq!(find("wq0.1"), Backend::Wq);
    }
}
