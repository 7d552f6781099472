//! A frame's way into fresh packets.

use std::mem::MaybeUninit;

use super::dequeue::{Incoming, Slot};
use crate::datapath::copy::{copy_in, copy_piece};
use crate::datapath::mover::Mover;
use crate::datapath::{PacketPool, header_len};
use crate::memory::{Cursor, GuestRange};
use crate::virtio_net::Header;
use crate::virtqueue::Segment;

/// What there is no more of.
pub(super) enum Dry {
    /// Packets.
    Pool,
    /// Large buffers, and no frame may be a chain.
    LargeBuffers,
}

/// Has a frame of `len` bytes copied to `packet`, which is fresh, and to as many more as it takes.
/// When it cannot be done `packet` is gone.
pub(super) fn fill<P: PacketPool>(
    mover: &mut Mover<'_, Slot<P>>,
    source: &mut Source<'_, '_>,
    pool: &P,
    packet: P::Packet,
    len: usize,
) -> Result<P::Packet, Dry> {
    let mut head = packet;
    if len > pool.room() {
        if let Some(room) = pool.large(&mut head, len) {
            move_in(mover, source, room);
            pool.finish_large(&mut head, narrow(len));
            return Ok(head);
        }
        if !pool.chains() {
            pool.finish(&mut head, 0);
            pool.release(&[head]);
            return Err(Dry::LargeBuffers);
        }
    }
    let (mut last, mut current) = (head, head);
    let mut left = len;
    loop {
        let room = pool.space(&mut current);
        let part = left.min(room.len());
        move_in(mover, source, room.get_mut(..part).unwrap_or_default());
        if left == len {
            pool.finish(&mut head, narrow(part));
        } else {
            pool.append(&mut head, &mut last, current, narrow(part));
        }
        last = current;
        left -= part;
        if left == 0 {
            return Ok(head);
        }
        // Nobody has packets without room, but a loop must end.
        let next = if part == 0 { None } else { pool.one() };
        let Some(next) = next else {
            pool.release(&[head]);
            return Err(Dry::Pool);
        };
        current = next;
    }
}

/// Has the next bytes of a frame moved to `room`: by the CPU now, or planned for the engine.
fn move_in<T: Copy>(
    mover: &mut Mover<'_, Incoming<T>>,
    source: &mut Source<'_, '_>,
    mut room: &mut [MaybeUninit<u8>],
) {
    let longest = mover.longest();
    while !room.is_empty() {
        let Some(range) = source.take(room.len().min(longest)) else {
            // The walk found so many bytes, and the table does not change.
            return;
        };
        let all = std::mem::take(&mut room);
        let Some((now, later)) = all.split_at_mut_checked(range.len()) else {
            return;
        };
        room = later;
        let to = now.as_mut_ptr().cast();
        // SAFETY: `now` is room of a packet that the flight has until it is handed out, which is
        // after it has landed; `range` is in a table that `Underway` keeps mapped at least as long.
        // The driver may write there meanwhile, and spoils its own frame.
        let planned = unsafe { mover.plan((range.as_ptr(), to), narrow(range.len()), || 0) };
        if !planned {
            copy_in(now, range);
        }
    }
}

/// A length within a frame.
#[allow(clippy::cast_possible_truncation, reason = "a frame ends at MAX_FRAME")]
fn narrow(len: usize) -> u32 {
    len as u32
}

/// Reads on and on over the buffers of a chain.
pub(super) struct Source<'c, 'm> {
    cursor: &'c mut Cursor<'m>,
    segments: &'c [Segment],
    left: Option<GuestRange<'m>>,
}

impl<'c, 'm> Source<'c, 'm> {
    /// Begins where the buffers do.
    pub(super) fn new(cursor: &'c mut Cursor<'m>, segments: &'c [Segment]) -> Self {
        Self {
            cursor,
            segments,
            left: None,
        }
    }

    /// Takes the next `most` bytes, or fewer when a buffer ends; `None` when all are taken.
    fn take(&mut self, most: usize) -> Option<GuestRange<'m>> {
        let range = match self.left.take().filter(|range| !range.is_empty()) {
            Some(range) => range,
            None => {
                let (first, rest) = self.segments.split_first()?;
                self.segments = rest;
                // It was there in the walk, and the table does not change.
                self.cursor.whole(first.addr, first.len as usize)?
            }
        };
        self.left = Some(range.after(most));
        Some(range.first(most))
    }

    /// Takes the frame's header, which is read once, if at all.
    pub(super) fn header<const F: u32>(&mut self, wanted: bool) -> Header {
        let mut bytes = [0; Header::LEN];
        let mut seen = 0;
        while let Some(left) = header_len(F).checked_sub(seen).filter(|left| *left != 0)
            && let Some(range) = self.take(left)
        {
            if wanted {
                copy_piece(bytes.get_mut(seen..).unwrap_or_default(), range);
            }
            seen += range.len();
        }
        Header::from_bytes(bytes)
    }
}
