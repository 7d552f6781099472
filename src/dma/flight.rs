//! Packets that engines are still copying: a ring of slots, taken out in the order in which they
//! were put in.
//!
//! A slot counts the copies of its packet that engines have not reported. Whoever polls an engine
//! counts down, on the [`Board`], which is all that it knows of a flight. Whoever owns the flight
//! takes the longest prefix of slots without such copies. So it does not matter in which order, on
//! how many engines or in which threads copies end, and packets that the CPU copied stand in the same
//! ring. A copy that failed is done again here, whole, before its slot comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use super::{Addr, Outcome, Transfer};

/// What pollers of engines may touch of a flight.
#[derive(Debug)]
pub struct Board {
    cells: Box<[Cell]>,
    /// Copies that an engine reported as failed.
    errors: AtomicU64,
    /// How often an engine of this flight went on behind a failed copy.
    recoveries: AtomicU64,
    /// Engines of this flight that died.
    deaths: AtomicU64,
}

#[derive(Debug, Default)]
struct Cell {
    /// Copies that were not reported.
    pending: AtomicU16,
    /// One of them failed, was refused, or will never be reported.
    redo: AtomicBool,
}

/// What happened to the engines of a flight since this was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Copies that failed.
    pub errors: u64,
    /// Recoveries.
    pub recoveries: u64,
    /// Engines that died.
    pub deaths: u64,
}

impl Board {
    fn new(size: usize) -> Self {
        Self {
            cells: (0..size).map(|_| Cell::default()).collect(),
            errors: AtomicU64::new(0),
            recoveries: AtomicU64::new(0),
            deaths: AtomicU64::new(0),
        }
    }

    /// A copy of the slot at `place` has ended.
    pub(super) fn done(&self, place: u16, outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.end(place, outcome != Outcome::Copied);
    }

    /// A copy of the slot at `place` will never be reported, and the engine does not write any more.
    pub(super) fn give_up(&self, place: u16) {
        self.end(place, true);
    }

    fn end(&self, place: u16, redo: bool) {
        let Some(cell) = self.cells.get(usize::from(place)) else {
            return;
        };
        if redo {
            cell.redo.store(true, Ordering::Relaxed);
        }
        // Release: the engine's bytes, which the poller has seen, before the count. Acquire: a flag
        // that another poller set goes with the count.
        cell.pending.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn recovered(&self) {
        self.recoveries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn died(&self) {
        self.deaths.fetch_add(1, Ordering::Relaxed);
    }
}

/// A copy as the CPU would do it, and as an engine does.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: *const u8,
    to: *mut u8,
    transfer: Transfer,
    /// Where `to` is for whoever is told of what was written.
    note: u64,
}

// SAFETY: addresses. They are used by whoever has the flight, under the promise of `Flight::plan`.
unsafe impl Send for Piece {}

impl Piece {
    const NONE: Self = Self {
        from: std::ptr::null(),
        to: std::ptr::null_mut(),
        transfer: Transfer {
            from: Addr(0),
            to: Addr(0),
            len: 0,
        },
        note: 0,
    };

    /// Copies by the CPU.
    fn copy(self) {
        // SAFETY: `Flight::plan` was promised `len` bytes at both, until the slot has come out, which
        // is not yet. No engine writes there any more (`Board::end`).
        unsafe { self.from.copy_to(self.to, usize_of(self.transfer.len)) };
    }
}

const fn usize_of(len: u32) -> usize {
    len as usize
}

/// A chain to be given back when its packet comes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// What gives it back.
    pub id: u16,
    /// Slots of the virtqueue that it takes.
    pub slots: u16,
    /// Bytes that are written to it.
    pub len: u32,
}

/// A fixed ring of plain values; indices run free.
#[derive(Debug)]
struct Fifo<T> {
    items: Box<[T]>,
    mask: u32,
    first: u32,
    next: u32,
}

impl<T: Copy> Fifo<T> {
    /// Room for `least` items or more.
    fn new(least: usize, empty: T) -> Self {
        let size = least.clamp(1, 1 << 20).next_power_of_two();
        Self {
            items: vec![empty; size].into(),
            #[allow(clippy::cast_possible_truncation, reason = "at most 2^20")]
            mask: size as u32 - 1,
            first: 0,
            next: 0,
        }
    }

    fn len(&self) -> u32 {
        self.next.wrapping_sub(self.first)
    }

    fn room(&self) -> u32 {
        self.mask + 1 - self.len()
    }

    fn place(&self, at: u32) -> usize {
        usize_of(at & self.mask)
    }

    fn get(&self, at: u32) -> Option<T> {
        self.items.get(self.place(at)).copied()
    }

    /// Appends; `false` when there is no room.
    fn push(&mut self, item: T) -> bool {
        if self.room() == 0 {
            return false;
        }
        let place = self.place(self.next);
        if let Some(slot) = self.items.get_mut(place) {
            *slot = item;
        }
        self.next = self.next.wrapping_add(1);
        true
    }

    fn pop(&mut self) -> Option<T> {
        if self.len() == 0 {
            return None;
        }
        let item = self.get(self.first);
        self.first = self.first.wrapping_add(1);
        item
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    packet: Option<T>,
    chains: u16,
    copies: u16,
}

/// A slot that came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed<T> {
    /// Its packet; `None` for chains that are only given back.
    pub packet: Option<T>,
    /// How many chains it has; [`Flight::next_chain`] gives them.
    pub chains: u16,
    /// Copies that the CPU had to do again.
    pub redone: u16,
}

/// Packets on their way, of one queue.
///
/// A packet comes in by [`plan`](Self::plan) for each of its copies, [`give`](Self::give) for each of
/// its chains and [`append`](Self::append); its copies then go to an engine.
#[derive(Debug)]
pub struct Flight<T> {
    board: Arc<Board>,
    slots: Fifo<Slot<T>>,
    copies: Fifo<Piece>,
    chains: Fifo<Given>,
    /// Copies and chains that belong to no slot yet.
    planned: u32,
    given: u32,
}

impl<T: Copy> Flight<T> {
    /// Room for as many packets and chains as a virtqueue of `size` can hold, and for `copies`.
    pub fn new(size: u16, copies: usize) -> Self {
        let empty = Slot {
            packet: None,
            chains: 0,
            copies: 0,
        };
        let slots = Fifo::new(size.into(), empty);
        Self {
            board: Arc::new(Board::new(slots.items.len())),
            slots,
            copies: Fifo::new(copies, Piece::NONE),
            chains: Fifo::new(size.into(), Given::default()),
            planned: 0,
            given: 0,
        }
    }

    /// What engines need to know of this.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Slots that have not come out.
    #[inline]
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the oldest slot stands, counted from the beginning.
    pub fn first(&self) -> u32 {
        self.slots.first
    }

    /// Whether there is room for a packet of so many chains.
    #[inline]
    pub fn fits(&self, chains: usize) -> bool {
        self.slots.room() != 0 && usize_of(self.chains.room()) >= chains
    }

    /// How many chains there is room for, each with a packet of its own.
    #[inline]
    pub fn room(&self) -> u16 {
        let room = self.slots.room().min(self.chains.room());
        u16::try_from(room).unwrap_or(u16::MAX)
    }

    /// Plans a copy of the packet that is appended next, `transfer` for an engine; `false` when there
    /// is no room. When it has ended, `note` is told, with its length.
    ///
    /// # Safety
    ///
    /// `transfer.len` bytes at `from` can be read and at `to` be written, until the packet has come
    /// out or was copied by [`copy_planned`](Self::copy_planned); when the flight is dropped before
    /// that, as long as an engine may use them.
    #[inline]
    pub unsafe fn plan(
        &mut self,
        (from, to): (*const u8, *mut u8),
        transfer: Transfer,
        note: u64,
    ) -> bool {
        let planned = self.copies.push(Piece {
            from,
            to,
            transfer,
            note,
        });
        self.planned += u32::from(planned);
        planned
    }

    /// Copies planned since the last packet.
    #[inline]
    pub fn planned(&self) -> usize {
        usize_of(self.planned)
    }

    /// Does all planned copies now, by the CPU; `written` is told of each.
    pub fn copy_planned(&mut self, mut written: impl FnMut(u64, u32)) {
        let first = self.copies.next.wrapping_sub(self.planned);
        for nth in 0..self.planned {
            if let Some(piece) = self.copies.get(first.wrapping_add(nth)) {
                piece.copy();
                written(piece.note, piece.transfer.len);
            }
        }
        self.copies.next = first;
        self.planned = 0;
    }

    /// Forgets all planned copies, and that packet with them.
    pub fn forget_planned(&mut self) {
        self.copies.next = self.copies.next.wrapping_sub(self.planned);
        self.planned = 0;
    }

    /// Notes a chain of the packet that is appended next. [`fits`](Self::fits) has told that there is
    /// room.
    #[inline]
    pub fn give(&mut self, chain: Given) {
        self.given += u32::from(self.chains.push(chain));
    }

    /// Appends a packet with what was planned and given for it, and hands each of its copies to
    /// `stage`, with the place that the engine's report must name. [`fits`](Self::fits) has told that
    /// there is room; if not, nothing happens but that all of it is forgotten.
    #[inline]
    pub fn append(&mut self, packet: Option<T>, mut stage: impl FnMut(Transfer, u16)) {
        let narrow = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let (copies, first) = (self.planned, self.copies.next.wrapping_sub(self.planned));
        let slot = Slot {
            packet,
            chains: narrow(self.given),
            copies: narrow(copies),
        };
        let place = self.slots.place(self.slots.next);
        if !self.slots.push(slot) {
            // That place is the oldest slot's, which engines may be at.
            self.forget_planned();
            self.chains.next = self.chains.next.wrapping_sub(self.given);
            self.given = 0;
            return;
        }
        (self.planned, self.given) = (0, 0);
        if let Some(cell) = self.board.cells.get(place) {
            cell.redo.store(false, Ordering::Relaxed);
            // Pollers see this before any report: they take the engine's lock after `stage`.
            cell.pending.store(slot.copies, Ordering::Relaxed);
        }
        #[allow(clippy::cast_possible_truncation, reason = "fewer places than 2^16")]
        let place = place as u16;
        for nth in 0..copies {
            if let Some(piece) = self.copies.get(first.wrapping_add(nth)) {
                stage(piece.transfer, place);
            }
        }
    }

    /// Whether the oldest slot can come out.
    #[inline]
    pub fn lands(&self) -> bool {
        let place = self.slots.place(self.slots.first);
        let cell = self.board.cells.get(place);
        // Acquire: what the engines wrote, and the flag, are visible when the count is 0.
        !self.is_empty() && cell.is_some_and(|cell| cell.pending.load(Ordering::Acquire) == 0)
    }

    /// Takes the oldest slot out, if it has landed; copies that failed are done again first, and
    /// `written` is told of all copies. Its chains must be asked for before the next slot.
    #[inline]
    pub fn land(&mut self, mut written: impl FnMut(u64, u32)) -> Option<Landed<T>> {
        if !self.lands() {
            return None;
        }
        let place = self.slots.place(self.slots.first);
        let slot = self.slots.pop()?;
        let cell = self.board.cells.get(place)?;
        let redone = if cell.redo.load(Ordering::Relaxed) {
            self.redo(slot.copies);
            slot.copies
        } else {
            0
        };
        for nth in 0..u32::from(slot.copies) {
            if let Some(piece) = self.copies.get(self.copies.first.wrapping_add(nth)) {
                written(piece.note, piece.transfer.len);
            }
        }
        self.copies.first = self.copies.first.wrapping_add(slot.copies.into());
        Some(Landed {
            packet: slot.packet,
            chains: slot.chains,
            redone,
        })
    }

    #[cold]
    #[inline(never)]
    fn redo(&self, copies: u16) {
        for nth in 0..u32::from(copies) {
            if let Some(piece) = self.copies.get(self.copies.first.wrapping_add(nth)) {
                piece.copy();
            }
        }
    }

    /// The next chain to give back, of the slot that came out last.
    #[inline]
    pub fn next_chain(&mut self) -> Option<Given> {
        self.chains.pop()
    }

    /// What happened to the engines since this was last asked.
    pub fn take_events(&self) -> Events {
        let take = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            0 => 0,
            _ => counter.swap(0, Ordering::Relaxed),
        };
        Events {
            errors: take(&self.board.errors),
            recoveries: take(&self.board.recoveries),
            deaths: take(&self.board.deaths),
        }
    }
}

#[cfg(test)]
mod tests;
