//! Behind an IOMMU: asking for translations before they are needed, many at a time.
//!
//! Each question is a round trip to the frontend. So when a chain misses, what the chains behind it
//! need is asked in the same breath; and where a miss costs packets, the ring is looked through ahead
//! of the packets for as long as that finds something. How far depends: when what was told is flushed all
//! the time, only what is used until the next flush is worth a question.
#![forbid(unsafe_code)]

use super::{Chain, Ring, Walk, Walked};
use crate::memory::{Ahead, Translate};

/// A chain missed something that nobody asked for before: asks for what all that wait need.
#[cold]
#[inline(never)]
pub fn after_a_miss<'m, R: Ring>(ring: &R, chain: &mut Chain, cursor: &mut impl Translate<'m>) {
    if cursor.asked() {
        if let Some(ahead) = cursor.ahead() {
            // It was not far enough.
            ahead.window = ahead.window.saturating_mul(2).min(Ahead::FAR);
        }
        look_from_here(ring, chain, cursor);
    }
}

/// Asks for what all chains that wait need.
pub(super) fn look_from_here<'m, R: Ring>(
    ring: &R,
    chain: &mut Chain,
    cursor: &mut impl Translate<'m>,
) -> Looked {
    if let Some(ahead) = cursor.ahead() {
        ahead.until = None;
        ahead.slots = 2 * u32::from(ring.size());
    }
    look_on(ring, chain, cursor)
}

/// At the end of a burst: asks for what the chains need that came since the last time; but not when
/// all was known for two turns of the ring.
#[inline(always)]
pub fn look_ahead<'m, R: Ring>(ring: &R, chain: &mut Chain, cursor: &mut impl Translate<'m>) {
    if cursor.ahead().is_some_and(|ahead| ahead.slots != 0) {
        look_on(ring, chain, cursor);
    }
}

/// What looking ahead came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// There was nothing to look at.
    Empty,
    /// All was seen.
    All,
    /// There is more to ask for than could be asked.
    More,
}

#[cold]
#[inline(never)]
fn look_on<'m, R: Ring>(ring: &R, chain: &mut Chain, cursor: &mut impl Translate<'m>) -> Looked {
    let Some(ahead) = cursor.ahead().copied() else {
        return Looked::Empty;
    };
    let asked = cursor.asked();
    let start = ahead.until.map_or(0, |until| ring.slots_until(until));
    let waiting = ring.available(ahead.window);
    let mut looked = match waiting {
        0 => Looked::Empty,
        _ => Looked::All,
    };
    let mut nth = start;
    while nth < waiting {
        chain.clear();
        let slots = match ring.walk(nth, chain, cursor) {
            Walk::Nothing => break,
            Walk::Miss { slots } | Walk::Malformed { slots, .. } => slots,
            Walk::Complete(Walked { slots, .. }) => slots,
        };
        if !cursor.may_ask() || chain.exhausted() {
            // This one once more.
            looked = Looked::More;
            break;
        }
        nth = nth.saturating_add(slots.max(1));
    }
    chain.clear();
    let position = ring.position_after(nth.min(ring.size()));
    let more = looked == Looked::More || !asked && cursor.asked();
    if let Some(ahead) = cursor.ahead() {
        ahead.until = Some(position);
        ahead.slots = match more {
            true => 2 * u32::from(ring.size()),
            false => ahead.slots.saturating_sub(u32::from(nth - start)),
        };
    }
    looked
}
