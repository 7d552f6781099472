//! Whether a burst notes in the dirty log what it writes. A type and not a flag: a burst that does
//! not then has nothing to pass along.
#![forbid(unsafe_code)]

use crate::memory::{Gpa, GuestRange};
use crate::virtqueue::{QueueLog, Ring};

/// [`Logged`] or [`Unlogged`].
pub(super) trait Logging {
    /// What is passed along.
    type Log<'q>;

    /// The log of a virtqueue; `None` when it has none.
    fn of(log: &mut Option<Box<QueueLog>>) -> Option<Self::Log<'_>>;

    /// The same log, for a while.
    fn lend<'l>(log: &'l mut Self::Log<'_>) -> Self::Log<'l>;

    /// Notes that `range` was written.
    fn mark(log: &mut Self::Log<'_>, range: GuestRange<'_>);

    /// Where `range` is, to be noted later by [`mark_at`](Self::mark_at).
    fn address(log: &mut Self::Log<'_>, range: GuestRange<'_>) -> u64;

    /// Notes that `len` bytes at an [`address`](Self::address) were written.
    fn mark_at(log: &mut Self::Log<'_>, address: u64, len: u32);

    /// Makes what was given back visible to the driver; whether there was anything.
    fn publish<R: Ring>(log: Self::Log<'_>, ring: &mut R) -> bool;
}

/// The guest is migrated.
pub(super) enum Logged {}

/// The guest stays.
pub(super) enum Unlogged {}

impl Logging for Logged {
    type Log<'q> = &'q mut QueueLog;

    #[inline(always)]
    fn of(log: &mut Option<Box<QueueLog>>) -> Option<&mut QueueLog> {
        log.as_deref_mut()
    }

    #[inline(always)]
    fn lend<'l>(log: &'l mut &mut QueueLog) -> &'l mut QueueLog {
        log
    }

    #[inline(always)]
    fn mark(log: &mut &mut QueueLog, range: GuestRange<'_>) {
        log.pages.mark(range);
    }

    #[inline(always)]
    fn address(log: &mut &mut QueueLog, range: GuestRange<'_>) -> u64 {
        // A range of the queue's own table has one.
        log.pages.address(range).unwrap_or_default().0
    }

    #[inline(always)]
    fn mark_at(log: &mut &mut QueueLog, address: u64, len: u32) {
        log.pages.mark_at(Gpa(address), len.into());
    }

    #[inline(always)]
    fn publish<R: Ring>(log: &mut QueueLog, ring: &mut R) -> bool {
        log.publish(ring)
    }
}

impl Logging for Unlogged {
    type Log<'q> = ();

    #[inline(always)]
    fn of(_: &mut Option<Box<QueueLog>>) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn lend((): &mut ()) {}

    #[inline(always)]
    fn mark((): &mut (), _: GuestRange<'_>) {}

    #[inline(always)]
    fn address((): &mut (), _: GuestRange<'_>) -> u64 {
        0
    }

    #[inline(always)]
    fn mark_at((): &mut (), _: u64, _: u32) {}

    #[inline(always)]
    fn publish<R: Ring>((): (), ring: &mut R) -> bool {
        ring.publish_used()
    }
}
