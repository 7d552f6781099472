//! Opens copy engines by the names of `dmas=`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::devargs::{Backend, EngineName, work_queue};
use crate::dma::Engine;
use crate::dma::channel::{self, Channel, OpenError};
use crate::dma::dmadev::{Dmadev, Wanted};
use crate::dma::software::Software;
use crate::dpdk::thread;
use crate::guard;

/// The engine of that name, which may be in use already; one that is opened has room for `ring_size`
/// copies, or as many as it can.
pub(super) fn open(name: &EngineName, ring_size: u32) -> Result<Arc<Channel>, OpenError> {
    let backend = match name.backend {
        Some(backend) => backend,
        None => find(&name.name),
    };
    let canonical = EngineName {
        backend: Some(backend),
        ..name.clone()
    };
    channel::open(&canonical.to_string(), || {
        make(&canonical, backend, ring_size)
    })
}

/// Who drives an engine when nobody says: DPDK, if it does.
fn find(_name: &str) -> Backend {
    Backend::Dmadev
}

fn make(name: &EngineName, backend: Backend, ring_size: u32) -> Result<Box<dyn Engine>, OpenError> {
    match backend {
        Backend::Software => {
            let engine = Software::new(ring_size, |body| {
                let body = Box::new(|| guard::catch((), body));
                thread::spawn(c"vhost-copy", body).map(|_| ())
            });
            let engine = engine.map_err(|error| OpenError::Unusable(error.to_string()))?;
            Ok(Box::new(engine))
        }
        Backend::Dmadev => Ok(Box::new(Dmadev::open(Wanted {
            name: &name.name,
            vchan: name.vchan,
            ring_size,
            stops_in_name_only: work_queue(&name.name).is_some(),
        })?)),
        Backend::Ioat | Backend::Dsa | Backend::Wq => Err(OpenError::Unusable(format!(
            "{} is not supported",
            backend.word()
        ))),
    }
}
