//! An address space of devices that are models.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Faults;
use crate::dma::vfio::pieces::Mapped;
use crate::dma::vfio::{Block, Container, Piece};

/// How far devices' addresses are from ours: nobody can take one for the other.
const APART: u64 = 1 << 48;

type OnChange = Box<dyn Fn() + Send>;

/// A container whose devices reach exactly what is mapped.
#[derive(Clone, Default)]
pub struct FakeContainer {
    state: Arc<Mutex<State>>,
    losses: Arc<AtomicU64>,
    faults: Option<Arc<Mutex<Faults>>>,
    on_change: Arc<Mutex<Option<OnChange>>>,
}

#[derive(Default)]
struct State {
    mapped: Mapped,
    lent: Vec<Piece>,
    refuses: bool,
}

impl FakeContainer {
    /// Nothing is mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the faults of an engine.
    pub(super) fn with(faults: Arc<Mutex<Faults>>) -> Self {
        Self {
            faults: Some(faults),
            ..Self::default()
        }
    }

    /// Calls `what` in the middle of everything that is mapped and unmapped.
    pub fn on_change(&self, what: impl Fn() + Send + 'static) {
        *self.on_change.lock().unwrap() = Some(Box::new(what));
    }

    fn change(&self) {
        if let Some(what) = &*self.on_change.lock().unwrap() {
            what();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Memory that is mapped without anybody asking, as DPDK's is.
    pub fn lend(&self, memory: &[u8]) {
        let piece = piece(memory.as_ptr().addr(), memory.len());
        self.state().lent.push(piece);
    }

    /// Takes all of that back.
    pub fn take_back(&self) {
        self.state().lent.clear();
        self.losses.fetch_add(1, Ordering::Release);
    }

    /// From now on nothing more can be mapped.
    pub fn refuse(&self) {
        self.state().refuses = true;
    }

    /// Ranges that were mapped by call.
    pub fn mapped(&self) -> usize {
        self.state().mapped.pieces().count()
    }

    /// Our address of what a device finds at `iova`, if it reaches all of `len` bytes.
    pub fn host(&self, iova: u64, len: usize) -> Option<usize> {
        let state = self.state();
        let va = usize::try_from(iova.checked_sub(APART)?).ok()?;
        let mut pieces = state.mapped.pieces().chain(&state.lent);
        pieces
            .any(|piece| piece.address(va, len).is_some())
            .then_some(va)
    }
}

fn piece(va: usize, len: usize) -> Piece {
    Piece {
        va,
        len,
        iova: va as u64 + APART,
    }
}

impl Container for FakeContainer {
    fn open(&self, _: &str) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn close(&self, _: &str, _: OwnedFd) -> bool {
        true
    }

    fn map(&self, va: usize, len: usize) -> io::Result<Vec<Piece>> {
        self.change();
        if let Some(faults) = &self.faults {
            faults.lock().unwrap().map(va, len)?;
        }
        let mut state = self.state();
        if state.refuses {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if let Some(pieces) = state.mapped.again(va, len) {
            return Ok(pieces);
        }
        let pieces = vec![piece(va, len)];
        state.mapped.insert(va, len, pieces.clone());
        Ok(pieces)
    }

    fn unmap(&self, va: usize, len: usize) {
        self.change();
        if let Some(faults) = &self.faults {
            faults.lock().unwrap().mappings -= 1;
        }
        self.state().mapped.remove(va, len);
    }

    fn known(&self, va: usize, len: usize) -> Option<Piece> {
        let state = self.state();
        let with = state.lent.iter().find(|p| p.address(va, len).is_some());
        with.copied()
    }

    fn losses(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.losses)
    }

    fn allocate(&self, len: usize) -> io::Result<Block> {
        let block = Block::pages(len)?;
        let pieces = self.map(block.va(), block.len())?;
        Ok(block.at(pieces[0].iova))
    }

    fn free(&self, block: Block) {
        self.unmap(block.va(), block.len());
        // SAFETY: `allocate` took it from `pages`.
        unsafe { block.unmap() };
    }
}
