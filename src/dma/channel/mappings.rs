//! Guest memory that an engine reaches.
//!
//! To map much of it takes long, since all its pages become resident. Nobody waits for the engine
//! meanwhile: its lock is taken only to tell it of the result.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Channel;
use crate::dma::vfio::{Container, Reach};
use crate::log::PORT;

/// A range that the engine was told of.
#[derive(Debug)]
struct Mapping {
    start: usize,
    len: usize,
    users: usize,
    mapped: bool,
}

/// All of them.
pub(super) struct Mappings {
    /// Where they are mapped; `None`: the engine shares our address space.
    container: Option<Arc<dyn Container>>,
    all: Mutex<Vec<Mapping>>,
}

impl Mappings {
    pub(super) fn new(reach: Option<&mut Reach>) -> Self {
        Self {
            container: reach.map(|reach| Arc::clone(reach.container())),
            all: Mutex::default(),
        }
    }

    /// Held before the engine's lock, never the other way round.
    fn lock(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    /// Lets the engine reach `len` bytes of guest memory at `start`, both multiples of the page size;
    /// once for each [`unmap`](Self::unmap).
    pub fn map(&self, start: *const u8, len: usize) {
        let Some(container) = &self.mappings.container else {
            return;
        };
        let at = start.addr();
        let mut all = self.mappings.lock();
        let same = |known: &&mut Mapping| (known.start, known.len) == (at, len);
        if let Some(known) = all.iter_mut().find(same) {
            known.users += 1;
            return;
        }
        // A dead engine needs none.
        let result = match self.is_dead() {
            false => self.map_first(&**container, at, len).map(|()| true),
            true => Ok(false),
        };
        if let Err(error) = &result {
            log::warn!(
                target: PORT,
                "engine {} does not reach {len} bytes of guest memory, the CPU copies there: {error}",
                self.name
            );
        }
        all.push(Mapping {
            start: at,
            len,
            users: 1,
            mapped: result.unwrap_or(false),
        });
    }

    fn map_first(&self, container: &dyn Container, at: usize, len: usize) -> io::Result<()> {
        let pieces = container.map(at, len)?;
        let added = match self.lock().engine.reach() {
            Some(reach) => reach.add(&pieces),
            None => Ok(()),
        };
        if added.is_err() {
            container.unmap(at, len);
        }
        added
    }

    /// Undoes [`map`](Self::map), before the memory goes.
    pub fn unmap(&self, start: *const u8, len: usize) {
        let Some(container) = &self.mappings.container else {
            return;
        };
        let at = start.addr();
        let mut all = self.mappings.lock();
        let same = |known: &Mapping| (known.start, known.len) == (at, len);
        let Some(nth) = all.iter().position(same) else {
            return;
        };
        if let Some(known) = all.get_mut(nth) {
            known.users -= 1;
            if known.users != 0 {
                return;
            }
        }
        if all.swap_remove(nth).mapped {
            if let Some(reach) = self.lock().engine.reach() {
                reach.remove(at, len);
            }
            container.unmap(at, len);
        }
    }
}
