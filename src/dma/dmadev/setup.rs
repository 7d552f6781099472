//! What a dmadev is, and how it becomes ours.

use core::ffi::c_int;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::library::{Conf, Info, Library};
use crate::dma::channel::OpenError;

/// What the library says of a device.
pub(super) fn info(library: &Library, id: i16) -> Result<Info, OpenError> {
    let mut info = Info {
        name: std::ptr::null(),
        capabilities: 0,
        max_vchans: 0,
        max_desc: 0,
        min_desc: 0,
        max_sges: 0,
        numa_node: 0,
        nb_vchans: 0,
        rest: [0; 4],
    };
    // SAFETY: a device of that number, and more room than any line's struct needs.
    let result = unsafe { (library.info_get)(id, &raw mut info) };
    check("rte_dma_info_get", result)?;
    Ok(info)
}

/// Whether the application has set up channel `vchan` of the device, and started it: drivers look at
/// neither, and reach for memory that they do not have. A channel of a device that runs, but was not
/// set up itself, cannot be told from one that was.
pub(super) fn expect_ready(
    library: &Library,
    id: i16,
    vchan: u16,
    channels: u16,
) -> Result<(), OpenError> {
    if vchan >= channels {
        return Err(OpenError::Unusable(format!(
            "the application has given the dmadev {channels} channels, so there is none behind #{vchan}"
        )));
    }
    let nothing = Conf::EMPTY;
    // SAFETY: a device that exists, and more zeros than any line's struct has.
    let refusal = unsafe { (library.configure)(id, &raw const nothing) };
    // Nobody can have no channels; but of a device that runs the library says so first.
    match refusal == -libc::EBUSY {
        true => Ok(()),
        false => Err(OpenError::Unusable(
            "the application has not started the dmadev whose channel is behind #".into(),
        )),
    }
}

/// Devices that were set up here, with their sizes. Some drivers (DPDK's idxd) do not forget the state of
/// a channel when it is set up again, and then take a failed copy for a good one: once is enough.
static SET_UP: Mutex<Vec<(i16, u32)>> = Mutex::new(Vec::new());

/// Gives the device one channel of `size` descriptors, unless it has got one here before, and starts
/// it; how many descriptors it has.
pub(super) fn set_up(library: &Library, id: i16, size: u32) -> Result<u32, OpenError> {
    let mut all = SET_UP.lock().unwrap_or_else(PoisonError::into_inner);
    let before = all.iter().find(|(known, _)| *known == id);
    let before = before.map(|&(_, size)| size);
    let mut conf = Conf::EMPTY;
    conf.first = 1;
    // SAFETY: a device that exists, and a struct with one channel and more zeros than any line has.
    let result = unsafe { (library.configure)(id, &raw const conf) };
    if result == -libc::EBUSY {
        return Err(OpenError::Busy(
            "the application has started the dmadev already; to share a channel that it has set \
             up, write its number behind #"
                .into(),
        ));
    }
    check("rte_dma_configure", result)?;
    // SAFETY: a device that is set up, or knows that it is not.
    let start = || unsafe { (library.start)(id) };
    // It may be another device of that number, plugged in since.
    if let Some(before) = before.filter(|_| start() == 0) {
        if before != size {
            log::info!(
                target: crate::log::PORT,
                "dmadev {id} keeps its ring of {before}, not {size}: it was set up in this process before"
            );
        }
        return Ok(before);
    }
    conf.first = 0;
    conf.nb_desc = u16::try_from(size).unwrap_or(1 << 15);
    // SAFETY: as above; memory to memory.
    let result = unsafe { (library.vchan_setup)(id, 0, &raw const conf) };
    check("rte_dma_vchan_setup", result)?;
    all.retain(|(known, _)| *known != id);
    all.push((id, size));
    check("rte_dma_start", start())?;
    Ok(size)
}

fn check(function: &str, result: c_int) -> Result<(), OpenError> {
    match result {
        0 => Ok(()),
        result => {
            let error = io::Error::from_raw_os_error(result.saturating_abs());
            Err(OpenError::Unusable(format!("{function}: {error}")))
        }
    }
}
