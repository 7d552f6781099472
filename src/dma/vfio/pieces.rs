//! Which of our addresses a device reaches under which of its own.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Container;
use crate::dma::Addr;

/// Memory that is in one piece both for us and for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins for us.
    pub va: usize,
    /// Bytes.
    pub len: usize,
    /// Where it begins for the device.
    pub iova: u64,
}

impl Piece {
    /// No memory at all.
    pub const NONE: Self = Self {
        va: 0,
        len: 0,
        iova: 0,
    };

    /// The device's address of `va`, if all of `len` bytes there belong to this piece.
    #[inline]
    pub fn address(&self, va: usize, len: usize) -> Option<Addr> {
        let skip = va.checked_sub(self.va)?;
        let left = self.len.checked_sub(skip)?;
        let iova = self.iova.checked_add(u64::try_from(skip).ok()?)?;
        (len <= left && len > 0).then_some(Addr(iova))
    }
}

/// What one engine reaches: guest memory that was mapped for it, and what its container knows.
pub struct Reach {
    container: Arc<dyn Container>,
    /// Sorted; pieces do not overlap.
    guest: Vec<Piece>,
    /// Some of the container's answers, each in the place of its 2 MB: a pool of packets is used
    /// again and again.
    learned: [Cell<Piece>; LEARNED],
    /// What the container counted when all of them were true.
    learned_at: Cell<u64>,
    losses: Arc<AtomicU64>,
}

const LEARNED: usize = 64;

impl Reach {
    /// Only what the container knows by itself.
    pub fn new(container: Arc<dyn Container>) -> Self {
        let losses = container.losses();
        Self {
            container,
            guest: Vec::new(),
            learned: [const { Cell::new(Piece::NONE) }; LEARNED],
            learned_at: Cell::new(losses.load(Ordering::Acquire)),
            losses,
        }
    }

    /// The container itself.
    pub fn container(&self) -> &Arc<dyn Container> {
        &self.container
    }

    /// The device's address of all of `len` bytes at `va`.
    pub fn translate(&self, va: usize, len: usize) -> Option<Addr> {
        let after = self.guest.partition_point(|piece| piece.va <= va);
        let before = after.checked_sub(1).and_then(|at| self.guest.get(at));
        if let Some(address) = before.and_then(|piece| piece.address(va, len)) {
            return Some(address);
        }
        let losses = self.losses.load(Ordering::Acquire);
        if losses != self.learned_at.get() {
            self.forget(losses);
        }
        let learned = self.learned.get((va >> 21) % LEARNED)?;
        if let Some(address) = learned.get().address(va, len) {
            return Some(address);
        }
        let piece = self.container.known(va, len)?;
        learned.set(piece);
        piece.address(va, len)
    }

    /// The same address may have other memory behind it by now.
    #[cold]
    fn forget(&self, losses: u64) {
        self.learned.iter().for_each(|piece| piece.set(Piece::NONE));
        self.learned_at.set(losses);
    }

    /// Maps guest memory.
    ///
    /// # Errors
    ///
    /// The container's, or the range is mapped here already.
    pub fn map(&mut self, va: usize, len: usize) -> io::Result<()> {
        let pieces = self.container.map(va, len)?;
        let added = self.add(&pieces);
        if added.is_err() {
            self.container.unmap(va, len);
        }
        added
    }

    /// Undoes [`map`](Self::map) of the same range; what is not mapped stays so.
    pub fn unmap(&mut self, va: usize, len: usize) {
        if self.remove(va, len) {
            self.container.unmap(va, len);
        }
    }

    /// Reaches what the container has mapped.
    ///
    /// # Errors
    ///
    /// Some of it is here already.
    pub fn add(&mut self, pieces: &[Piece]) -> io::Result<()> {
        let end = |piece: &Piece| piece.va.saturating_add(piece.len);
        let overlap = |one: &Piece, two: &Piece| one.va < end(two) && two.va < end(one);
        let known = |piece: &Piece| self.guest.iter().any(|known| overlap(known, piece));
        if pieces.iter().any(known) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.guest.extend(pieces);
        self.guest.sort_unstable_by_key(|piece| piece.va);
        Ok(())
    }

    /// Undoes [`add`](Self::add) for all pieces in a range, which the container is to unmap next;
    /// whether there were any.
    pub fn remove(&mut self, va: usize, len: usize) -> bool {
        let inside = |piece: &Piece| piece.va >= va && piece.va - va < len;
        let before = self.guest.len();
        self.guest.retain(|piece| !inside(piece));
        self.guest.len() != before
    }
}

/// Mapped ranges, with how often each was asked for.
#[derive(Debug, Default)]
pub struct Mapped {
    ranges: BTreeMap<(usize, usize), (u32, Vec<Piece>)>,
}

impl Mapped {
    /// Counts one more user of a range that is mapped.
    pub fn again(&mut self, va: usize, len: usize) -> Option<Vec<Piece>> {
        let (users, pieces) = self.ranges.get_mut(&(va, len))?;
        *users = users.checked_add(1)?;
        Some(pieces.clone())
    }

    /// A range that is mapped now, for its first user.
    pub fn insert(&mut self, va: usize, len: usize, pieces: Vec<Piece>) {
        self.ranges.insert((va, len), (1, pieces));
    }

    /// One user less: the pieces to unmap when it was the last.
    pub fn remove(&mut self, va: usize, len: usize) -> Option<Vec<Piece>> {
        let (users, _) = self.ranges.get_mut(&(va, len))?;
        *users -= 1;
        match *users {
            0 => self.ranges.remove(&(va, len)).map(|(_, pieces)| pieces),
            _ => None,
        }
    }

    /// All pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.ranges.values().flat_map(|(_, pieces)| pieces)
    }

    /// Forgets everything: the address space is gone.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}
