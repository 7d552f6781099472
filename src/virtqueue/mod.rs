//! A running virtqueue, device side (VIRTIO 1.2, 2.7), and its way between the thread that
//! configures it and the lcore that polls it.
//!
//! A [`Virtqueue`] comes out of the session's checks and goes into a [`Gate`]; while it is there,
//! only the lcore that passed the gate touches it.

mod chain;
mod gate;
mod notify;
mod split;

use std::sync::Arc;

use vmm_sys_util::event::EventNotifier;

pub use chain::{Chain, Reserved, Segment, Walk};
#[cfg(loom)]
pub use gate::NoBarrier;
pub use gate::{Allow, Barrier, Gate, Membarrier};
pub use notify::{Notified, Notifier};
pub use split::{SplitRing, SplitView};

use crate::memory::{AreaError, MemoryTable, Uva};

/// The descriptor continues in the one that `next` names (VIRTIO 1.2, 2.7.5).
pub const VRING_DESC_F_NEXT: u16 = 1;
/// The device writes the buffer; without it the device reads it.
pub const VRING_DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const VRING_DESC_F_INDIRECT: u16 = 4;
/// In the used ring's flags: the device does not need kicks.
pub const VRING_USED_F_NO_NOTIFY: u16 = 1;
/// In the available ring's flags: the driver does not need calls.
pub const VRING_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Where the three areas of a vring lie, as `SET_VRING_ADDR` named them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAreas {
    /// Descriptor table.
    pub descriptors: Uva,
    /// Available ring (driver area).
    pub available: Uva,
    /// Used ring (device area).
    pub used: Uva,
}

/// What a running ring has to know of its vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors.
    pub size: u16,
    /// Where the areas lie.
    pub areas: RingAreas,
    /// Index of the first chain to take (`SET_VRING_BASE`).
    pub base: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

/// A ring that an lcore can poll.
#[derive(Debug)]
pub struct Virtqueue {
    /// The ring itself.
    pub ring: SplitRing,
    /// Where its buffers lie.
    pub memory: Arc<MemoryTable>,
    /// Who is told about used buffers.
    pub notifier: Notifier,
    /// Scratch for chains of more than one descriptor.
    pub chain: Chain,
    features: u64,
}

impl Virtqueue {
    /// Checks `config` against `memory`; `features` are the acked ones, `call` is where the driver
    /// wants to be told (`None`: it polls).
    ///
    /// # Errors
    ///
    /// An area that is not mapped or not aligned.
    pub fn map(
        config: RingConfig,
        memory: &Arc<MemoryTable>,
        features: u64,
        call: Option<EventNotifier>,
    ) -> Result<Self, AreaError> {
        Ok(Self {
            ring: SplitRing::map(config, memory)?,
            memory: Arc::clone(memory),
            notifier: Notifier::new(call),
            chain: Chain::default(),
            features,
        })
    }

    /// The features that the driver acked.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What other threads may look at while an lcore polls.
    pub fn view(&self) -> SplitView {
        self.ring.view()
    }

    /// Ends the ring; the index at which it goes on (`GET_VRING_BASE`).
    pub fn stop(self) -> u16 {
        self.ring.next_available()
    }
}
