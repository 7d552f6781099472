//! A running virtqueue, device side (VIRTIO 1.2, 2.7), and its way between the thread that
//! configures it and the lcore that polls it.
//!
//! A [`Virtqueue`] comes out of the session's checks and goes into a [`Gate`]; while it is there,
//! only the lcore that passed the gate touches it.

mod ahead;
mod chain;
mod dirty;
mod gate;
mod notify;
mod packed;
mod ring;
mod shared_gate;
mod split;

use std::fs::File;
use std::sync::Arc;

pub use ahead::{Looked, after_a_miss, look_ahead};
pub use chain::{Chain, Reserved, SHORT_WALK, Segment};
pub use dirty::{QueueLog, RingWrites};
#[cfg(loom)]
pub use gate::NoBarrier;
#[cfg(not(loom))]
pub use gate::prepare_barriers;
pub use gate::{Allow, Barrier, Gate, Inside, Membarrier};
pub use notify::{Notified, Notifier};
pub use packed::PackedRing;
pub use ring::{Layout, Monitor, Ring, RingView, Run, Walk, Walked};
pub use shared_gate::SharedGate;
pub use split::SplitRing;

use crate::memory::{Access, AreaError, DirtyLog, Gpa, Lookaside, MemoryTable, Uva};

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

/// In a packed descriptor: the driver's wrap counter when it made it available (2.8.1).
pub const VRING_PACKED_DESC_F_AVAIL: u16 = 1 << 7;
/// In a packed descriptor: the device's wrap counter when it was used.
pub const VRING_PACKED_DESC_F_USED: u16 = 1 << 15;
/// In an event suppression structure: always notify (2.8.10).
pub const VRING_PACKED_EVENT_FLAG_ENABLE: u16 = 0;
/// In an event suppression structure: never notify.
pub const VRING_PACKED_EVENT_FLAG_DISABLE: u16 = 1;
/// In an event suppression structure: notify when the descriptor that it names is passed.
pub const VRING_PACKED_EVENT_FLAG_DESC: u16 = 2;

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
    /// Where to begin (`SET_VRING_BASE`): the index of the first chain; in a packed ring that of
    /// the first descriptor, with the wrap counter in bit 15.
    pub base: u16,
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

impl RingConfig {
    /// Lengths of the three areas in bytes, event words included, and what the device does there.
    pub fn needs(&self) -> [(u64, Access); 3] {
        let n = u64::from(self.size);
        let event = if self.event_idx { 2 } else { 0 };
        if self.packed {
            let event = 4;
            [
                (16 * n, Access::BOTH),
                (event, Access::READ),
                (event, Access::WRITE),
            ]
        } else {
            [
                (16 * n, Access::READ),
                (4 + 2 * n + event, Access::READ),
                (4 + 8 * n + event, Access::BOTH),
            ]
        }
    }
}

/// A ring that an lcore can poll.
#[derive(Debug)]
pub struct Virtqueue {
    /// The ring itself.
    pub ring: Layout,
    /// Where its buffers lie.
    pub memory: Arc<MemoryTable>,
    /// What the addresses of buffers mean behind an IOMMU; without one they are guest-physical.
    pub lookaside: Option<Box<Lookaside>>,
    /// Who is told about used buffers.
    pub notifier: Notifier,
    /// Scratch for chains of more than one descriptor.
    pub chain: Chain,
    /// The pages that were written, while the guest is migrated.
    pub log: Option<Box<QueueLog>>,
    features: u64,
    /// Chains were taken that nobody will ever give back.
    held: bool,
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
        call: Option<Arc<File>>,
    ) -> Result<Self, AreaError> {
        let ring = if config.packed {
            Layout::Packed(PackedRing::map(config, memory)?)
        } else {
            Layout::Split(SplitRing::map(config, memory)?)
        };
        Ok(Self {
            ring,
            memory: Arc::new(memory.for_a_queue()),
            lookaside: None,
            notifier: Notifier::new(call),
            chain: Chain::new(config.size),
            log: None,
            features,
            held: false,
        })
    }

    /// Somebody may write to chains of this ring for ever, which therefore cannot be given back.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Whether there are such chains.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Notes in `log` what is written to guest memory. `used` is where writes to the used ring are
    /// noted, if at all. The burst must be chosen after this.
    #[must_use]
    pub fn logged(mut self, log: Arc<DirtyLog>, used: Option<Gpa>) -> Self {
        let log = QueueLog::new(log, &self.memory, &self.ring, used);
        self.log = Some(Box::new(log));
        self
    }

    /// The features that the driver acked.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        match &self.ring {
            Layout::Split(ring) => ring.size(),
            Layout::Packed(ring) => ring.size(),
        }
    }

    /// Asks for what the chains that wait need, if the device is behind an IOMMU.
    pub fn look_ahead(&mut self) -> Looked {
        let Self {
            ring,
            lookaside,
            chain,
            ..
        } = self;
        let Some(lookaside) = lookaside else {
            return Looked::Empty;
        };
        chain.begin_burst();
        let mut cursor = lookaside.cursor();
        let looked = match ring {
            Layout::Split(ring) => ahead::look_from_here(ring, chain, &mut cursor),
            Layout::Packed(ring) => ahead::look_from_here(ring, chain, &mut cursor),
        };
        cursor.finish();
        looked
    }

    /// How many slots were taken since the ring was at `position`; no more than it has.
    pub fn slots_since(&self, position: u16) -> u16 {
        match &self.ring {
            Layout::Split(ring) => ring.slots_since(position),
            Layout::Packed(ring) => ring.slots_since(position),
        }
    }

    /// Whether a buffer waits.
    #[inline(always)]
    pub fn has_available(&self) -> bool {
        match &self.ring {
            Layout::Split(ring) => ring.has_available(),
            Layout::Packed(ring) => ring.has_available(),
        }
    }

    /// Where the ring goes on, in the form of `SET_VRING_BASE`.
    #[inline(always)]
    pub fn position(&self) -> u16 {
        match &self.ring {
            Layout::Split(ring) => ring.position(),
            Layout::Packed(ring) => ring.position(),
        }
    }

    /// Where the ring really resumed, when that is not the base that the frontend sent.
    pub fn resumed(&self) -> Option<u16> {
        match &self.ring {
            Layout::Split(ring) => ring.resumed(),
            Layout::Packed(_) => None,
        }
    }

    /// What other threads may look at while an lcore polls.
    pub fn view(&self) -> RingView {
        match &self.ring {
            Layout::Split(ring) => RingView::Split(ring.view()),
            Layout::Packed(ring) => RingView::Packed(ring.view()),
        }
    }

    /// Ends the ring; where it goes on (`GET_VRING_BASE`).
    pub fn stop(self) -> u16 {
        self.position()
    }
}
