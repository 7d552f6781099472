//! Engines that copy memory instead of the CPU: what they all have in common.
//!
//! An engine takes copies ([`Engine::stage`]), starts them together ([`Engine::submit`]: one
//! doorbell), and reports later, in any order, what became of each ([`Engine::poll`]). It knows
//! nothing of queues, packets or guests: a [`Tag`] comes back with each report.

pub mod channel;
#[cfg(feature = "dpdk")]
pub mod dmadev;
mod engines;
pub mod flight;
pub mod idxd;
pub mod ioat;
pub mod software;
pub mod vfio;

pub use engines::{Drained, Engines};

use std::io;
use std::time::Duration;

use vfio::Reach;

/// An address as an engine wants it: ours, or an IOVA ([`Engine::translate`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr(pub u64);

/// One copy. Source and destination do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Where to read.
    pub from: Addr,
    /// Where to write.
    pub to: Addr,
    /// Bytes: 1 to [`Engine::max_copy`].
    pub len: u32,
}

/// Which copy it is. The engine only hands it back; the [`Channel`](channel::Channel) that gave it
/// out believes each one once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Tells this copy from an earlier one in the same place.
    pub serial: u32,
    /// Where the channel notes it.
    pub place: u16,
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All bytes are at the destination.
    Copied,
    /// Some, all or none are; the engine does not write any more of this copy.
    Failed,
    /// None are: there was no room after all, since others use the device, too.
    Refused,
}

/// How an engine is after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works, or has nothing to do.
    Running,
    /// It stopped behind a failed copy. [`Engine::recover`] may help; until then the copies that
    /// it has not reported wait.
    Halted,
    /// It is gone or makes no sense any more. Only [`Engine::halt`] and [`Engine::reach`] are called
    /// after this.
    Dead,
}

/// Whether a halted engine can still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// No: all that it had not reported may be copied again, or its memory unmapped.
    Proven,
    /// Perhaps: whatever it was given must stay as it is, for ever.
    Unproven,
}

/// A device that reports nothing for so long has stopped.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// A thread may only be waiting for a processor.
pub const THREAD_PATIENCE: Duration = Duration::from_secs(2);

/// An engine. One thread at a time uses it.
pub trait Engine: Send {
    /// Copies that can be staged now. Exact: that many calls of `stage` will do.
    fn room(&self) -> usize;

    /// Copies that it can have altogether, where [`room`](Self::room) is what fits before the next
    /// [`submit`](Self::submit). Asked once, when it has none.
    fn depth(&self) -> usize {
        self.room()
    }

    /// Adds a copy; there was [`room`](Self::room) for it. It may begin at once, but need not
    /// before [`submit`](Self::submit).
    ///
    /// # Safety
    ///
    /// Both addresses came from [`translate`](Self::translate) for at least `len` bytes, which stay
    /// allocated and mapped, and which nobody but a guest writes (and, for the destination, reads)
    /// until the copy is reported or [`halt`](Self::halt) proves that the engine has stopped.
    unsafe fn stage(&mut self, copy: Transfer, tag: Tag);

    /// Starts all that was staged: one doorbell.
    fn submit(&mut self);

    /// Reports finished copies, in any order, each once; never waits. What is reported as
    /// [`Outcome::Copied`] is visible to the caller.
    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health;

    /// After [`Health::Halted`]: goes on behind the failed copy. `false` when it cannot.
    fn recover(&mut self) -> bool;

    /// Nothing was reported for long although copies are started: looks at the device itself, not
    /// only at what it wrote to memory, and repeats a doorbell that it may have missed. Slow.
    ///
    /// [`Health::Halted`] also means here that the engine does not do what it was told;
    /// [`recover`](Self::recover) then begins anew, and what was started is reported as
    /// [`Outcome::Failed`].
    fn nudge(&mut self) -> Health {
        Health::Running
    }

    /// Stops the engine for good. What was not reported before never will be.
    fn halt(&mut self) -> Halted;

    /// The address under which the engine reaches the `len` bytes at `va`; `None` when it does not,
    /// or not in one piece.
    fn translate(&self, va: *const u8, len: u32) -> Option<Addr>;

    /// The longest copy in bytes.
    fn max_copy(&self) -> u32;

    /// How long it may have copies and report none before it counts as dead.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// The memory that it reaches; `None` when it shares our address space.
    fn reach(&mut self) -> Option<&mut Reach> {
        None
    }

    /// Lets the engine reach guest memory: `len` bytes at `va`, both multiples of the page size.
    /// That takes long, since all of it becomes resident.
    ///
    /// # Errors
    ///
    /// The system refused; [`translate`](Self::translate) then knows nothing of that range.
    fn map(&mut self, va: *const u8, len: usize) -> io::Result<()> {
        match self.reach() {
            None => Ok(()),
            Some(reach) => reach.map(va.addr(), len),
        }
    }

    /// Undoes [`map`](Self::map) of the very same range, before it is unmapped from our address
    /// space. The engine has no copy there any more.
    fn unmap(&mut self, va: *const u8, len: usize) {
        if let Some(reach) = self.reach() {
            reach.unmap(va.addr(), len);
        }
    }
}
