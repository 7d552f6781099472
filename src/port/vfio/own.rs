//! A VFIO container of this driver's own, for devices that EAL's cannot have or would not serve.
//!
//! EAL's memory is mapped there as in EAL's: all that there is when a device is opened, then what
//! comes, less what goes. Pages that may go one by one are mappings of their own, for the kernel
//! unmaps only what was mapped as a whole.
#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::sync::{Arc, OnceLock};

use once_cell::sync::OnceCell;

use super::EAL;
use crate::dma::vfio::{Container, Device, Type1};
use crate::dpdk::memory::{self, Change, Memory, Page, Watcher};
use crate::guard;
use crate::log::PORT;

/// There from the first device on.
static OWN: OnceCell<Arc<Type1>> = OnceCell::new();

/// Opens a device there.
///
/// # Errors
///
/// What [`Container::open`] says; or EAL's memory cannot be mapped.
pub(super) fn open(bdf: &str) -> io::Result<Device> {
    // First, so that nothing comes or goes unseen.
    let memory = watch()?;
    let own = OWN.get_or_try_init(|| Type1::new().map(Arc::new))?;
    let device = Device::open(bdf, Arc::clone(own) as Arc<dyn Container>)?;
    add_all(memory, |va, len| own.add(va, len))?;
    Ok(device)
}

/// Looks after EAL's memory from now on, if that was not done before.
pub(super) fn watch() -> io::Result<Memory> {
    static WATCHED: OnceLock<Result<Memory, i32>> = OnceLock::new();
    let watched = WATCHED.get_or_init(memory::watch::<Follow>);
    watched.map_err(io::Error::from_raw_os_error)
}

/// Adds all of EAL's memory.
fn add_all(memory: Memory, add: impl Fn(usize, usize) -> io::Result<()>) -> io::Result<()> {
    let add = |va: usize, len: usize| {
        add(va, len).map_err(|error| {
            let what = format!("DPDK's memory, {len} bytes at {va:#x}: {error}");
            io::Error::new(error.kind(), what)
        })
    };
    let mut runs = Runs::default();
    let mut result = Ok(());
    memory::walk(|page| {
        if page.stays || memory == Memory::Stays {
            runs.push(page);
        } else {
            // Now, while it cannot go.
            result = add(page.va, page.len);
        }
        result.is_ok()
    });
    result?;
    runs.0.into_iter().try_for_each(|(va, len)| add(va, len))
}

/// Where pages follow each other, and their bytes.
#[derive(Default)]
struct Runs(Vec<(usize, usize)>);

impl Runs {
    fn push(&mut self, page: Page) {
        match self.0.last_mut() {
            Some((va, len)) if va.checked_add(*len) == Some(page.va) => *len += page.len,
            _ => self.0.push((page.va, page.len)),
        }
    }
}

/// Follows EAL's memory.
struct Follow;

impl Watcher for Follow {
    const NAME: &'static CStr = c"net_vhost";

    fn changed(change: Change, va: usize, len: usize, page: usize) {
        guard::catch((), || match change {
            Change::Came => came(va, len, page),
            Change::Goes => {
                EAL.lost_memory();
                if let Some(own) = OWN.get() {
                    own.remove(va, len);
                }
            }
        });
    }
}

fn came(va: usize, len: usize, page: usize) {
    let Some(own) = OWN.get() else {
        return;
    };
    for at in (va..va.saturating_add(len)).step_by(page) {
        match own.add(at, page) {
            Ok(()) => {}
            // There is no device now; the next one gets all that there is then.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) => {
                log::warn!(
                    target: PORT,
                    "VFIO: new memory of DPDK's at {at:#x}: {error}; the CPU copies from there"
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_run() {
        let mut runs = Runs::default();
        for (va, len) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x20_0000, 0x20_0000)] {
            let stays = true;
            runs.push(Page { va, len, stays });
        }
        assert_eq!(runs.0, [(0x1000, 0x2000), (0x20_0000, 0x20_0000)]);
    }
}
