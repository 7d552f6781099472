//! Rings of which a copy engine that cannot be stopped has chains.
//!
//! The chains stay with the engine, and where the ring goes on nobody can say: its driver must not get
//! them back, and whoever went on would take them again. So such a ring does not go on.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::error::RequestError;
use super::super::say;
use super::super::vring::VringSetup;
use super::Device;
use crate::memory::MemoryTable;
use crate::virtqueue::{RingAreas, Virtqueue};

/// Which ring it was.
pub(super) struct Held {
    areas: Option<RingAreas>,
    /// It stays mapped anyway: the engine may write there.
    memory: Arc<MemoryTable>,
    /// That it does not start was logged.
    told: bool,
}

impl Held {
    /// `virtqueue`, which was made of `setup`.
    pub(super) fn new(setup: &VringSetup, virtqueue: &Virtqueue) -> Self {
        Self {
            areas: setup.areas(),
            memory: Arc::clone(&virtqueue.memory),
            told: false,
        }
    }

    /// Whether a ring at `areas` in `memory` may be the same. What is not known yet may be.
    fn may_be(&self, areas: Option<RingAreas>, memory: Option<&Arc<MemoryTable>>) -> bool {
        let same_areas = areas.is_none() || areas == self.areas;
        same_areas && memory.is_none_or(|memory| memory.shares_a_file_with(&self.memory))
    }
}

impl Device {
    /// Whether vring `index` is a ring of which an engine that cannot be stopped has chains.
    pub(super) fn is_held(&self, index: u16) -> bool {
        let held = |vring: &super::Vring| {
            let areas = vring.setup.areas();
            let held = vring.held.as_ref();
            held.is_some_and(|held| held.may_be(areas, self.memory.as_ref()))
        };
        self.is(index, held)
    }

    /// Logs, once, why vring `index` does not start.
    pub(super) fn tell_held(&mut self, index: u16) {
        let held = self.at(index).and_then(|vring| vring.held.as_mut());
        if held.is_some_and(|held| !std::mem::replace(&mut held.told, true)) {
            let error = RequestError::Held(index);
            say!(Error, self.iface(), "{error}: it does not go on");
        }
    }
}
