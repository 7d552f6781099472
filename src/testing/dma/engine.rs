//! A copy engine in the caller's own thread, and faults for any engine.

use std::io;
use std::sync::{Arc, Mutex};

use super::FakeContainer;
use crate::dma::vfio::Reach;
use crate::dma::{Addr, Engine, Halted, Health, Outcome, Tag, Transfer};

/// An engine that copies when it is polled, a few copies a time, in any order.
#[derive(Debug)]
pub struct SimEngine {
    depth: usize,
    /// Copies that end in one poll.
    per_poll: usize,
    /// Copies between two doorbells.
    batch: usize,
    /// Not 0: copies end in an order that this makes.
    seed: u64,
    staged: Vec<(Transfer, Tag)>,
    started: Vec<(Transfer, Tag)>,
}

impl SimEngine {
    /// An engine that can have `depth` copies, and ends all of them in the next poll, in order.
    pub fn new(depth: usize) -> Self {
        Self {
            depth,
            per_poll: usize::MAX,
            batch: usize::MAX,
            seed: 0,
            staged: Vec::new(),
            started: Vec::new(),
        }
    }

    /// Ends at most `copies` in one poll.
    #[must_use]
    pub fn per_poll(self, copies: usize) -> Self {
        Self {
            per_poll: copies,
            ..self
        }
    }

    /// Takes at most `copies` between two doorbells.
    #[must_use]
    pub fn batch(self, copies: usize) -> Self {
        Self {
            batch: copies,
            ..self
        }
    }

    /// Ends copies in another order.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> Self {
        Self {
            seed: seed | 1,
            ..self
        }
    }

    fn pick(&mut self) -> usize {
        if self.seed == 0 {
            return 0;
        }
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed as usize % self.started.len()
    }
}

/// Copies as an engine does: `len` bytes of it.
///
/// # Safety
///
/// As for [`Engine::stage`].
unsafe fn copy(transfer: Transfer, len: usize) {
    let (from, to) = (transfer.from.0 as *const u8, transfer.to.0 as *mut u8);
    // SAFETY: the caller's promise.
    unsafe { from.copy_to(to, len) };
}

impl Engine for SimEngine {
    fn room(&self) -> usize {
        let left = self.depth - self.staged.len() - self.started.len();
        left.min(self.batch - self.staged.len())
    }

    fn depth(&self) -> usize {
        self.depth
    }

    unsafe fn stage(&mut self, copy: Transfer, tag: Tag) {
        assert!(self.room() > 0, "staged without room");
        assert!(copy.len > 0 && copy.len <= self.max_copy());
        self.staged.push((copy, tag));
    }

    fn submit(&mut self) {
        self.started.append(&mut self.staged);
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        for _ in 0..self.per_poll.min(self.started.len()) {
            let nth = self.pick();
            let (transfer, tag) = self.started.remove(nth);
            // SAFETY: `stage` was promised that both stay until the copy is reported.
            unsafe { copy(transfer, transfer.len as usize) };
            done(tag, Outcome::Copied);
        }
        Health::Running
    }

    fn recover(&mut self) -> bool {
        true
    }

    fn halt(&mut self) -> Halted {
        self.staged.clear();
        self.started.clear();
        Halted::Proven
    }

    fn translate(&self, va: *const u8, _len: u32) -> Option<Addr> {
        Some(Addr(va.expose_provenance() as u64))
    }

    fn max_copy(&self) -> u32 {
        1 << 20
    }
}

/// What goes wrong with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is never done nor reported.
    Lost,
    /// Nothing is copied, and that is reported.
    Failed,
    /// Half of it is copied, and that is reported as a failure.
    Partial,
    /// As `Failed`, and the engine halts behind it.
    Halt,
    /// It is reported twice.
    Twice,
    /// Nothing is copied, and success is reported.
    Lie,
}

/// What goes wrong with an engine; the test changes it at any time.
#[derive(Debug, Default)]
pub struct Faults {
    /// Copies by number, the first is 0.
    pub copies: Vec<(u64, Fault)>,
    /// Every copy.
    pub every: Option<Fault>,
    /// Recovery does not work.
    pub stays_halted: bool,
    /// Halting proves nothing.
    pub unproven: bool,
    /// The next poll panics.
    pub panics: bool,
    /// The device is gone.
    pub removed: bool,
    /// There is no room.
    pub full: bool,
    /// So many doorbells are lost.
    pub lost_doorbells: u32,
    /// No memory can be mapped.
    pub unmappable: bool,
    /// Nor any that is longer, when this is not 0.
    pub longest_mapping: usize,
    /// How often memory was not mapped.
    pub refusals: u32,
    /// That memory.
    pub refused: Vec<(usize, usize)>,
    /// A report of a copy that was never given.
    pub invented: bool,
    /// Ranges that are mapped.
    pub mappings: i64,
    /// How often one was.
    pub maps: u64,
    /// Copies that were given.
    pub staged: u64,
    /// Recoveries that were asked for.
    pub recoveries: u64,
    /// How often it was told of its copies again.
    pub nudges: u64,
    /// The engine was ended.
    pub halted: bool,
}

/// An engine with faults.
pub struct Faulty<E> {
    inner: E,
    faults: Arc<Mutex<Faults>>,
    /// To be reported in the next poll.
    reports: Vec<(Tag, Outcome)>,
    /// Reported again after the inner engine did.
    twice: Vec<Tag>,
    /// Behind a halt.
    waiting: Vec<(Transfer, Tag)>,
    reach: Reach,
    lost: usize,
    halts: bool,
}

impl<E: Engine> Faulty<E> {
    /// `inner` with the faults that the second value says.
    pub fn new(inner: E) -> (Self, Arc<Mutex<Faults>>) {
        let faults = Arc::new(Mutex::new(Faults::default()));
        let engine = Self {
            inner,
            faults: Arc::clone(&faults),
            reports: Vec::new(),
            twice: Vec::new(),
            waiting: Vec::new(),
            reach: Reach::new(Arc::new(FakeContainer::with(Arc::clone(&faults)))),
            lost: 0,
            halts: false,
        };
        (engine, faults)
    }
}

impl Faults {
    /// Maps a range, unless that is to fail.
    pub(super) fn map(&mut self, va: usize, len: usize) -> io::Result<()> {
        let too_long = self.longest_mapping != 0 && len > self.longest_mapping;
        if self.unmappable || too_long {
            self.refusals += 1;
            self.refused.push((va, len));
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.mappings += 1;
        self.maps += 1;
        Ok(())
    }
}

impl<E: Engine> Engine for Faulty<E> {
    fn room(&self) -> usize {
        if self.faults.lock().unwrap().full {
            return 0;
        }
        let held = self.reports.len() + self.waiting.len() + self.lost;
        self.inner.room().saturating_sub(held)
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    unsafe fn stage(&mut self, transfer: Transfer, tag: Tag) {
        let mut faults = self.faults.lock().unwrap();
        let number = faults.staged;
        faults.staged += 1;
        let own = faults.copies.iter().find(|(nth, _)| *nth == number);
        let fault = own.map(|(_, fault)| *fault).or(faults.every);
        if self.halts {
            self.waiting.push((transfer, tag));
            return;
        }
        match fault {
            Some(Fault::Lost) => self.lost += 1,
            Some(Fault::Failed) => self.reports.push((tag, Outcome::Failed)),
            Some(Fault::Lie) => self.reports.push((tag, Outcome::Copied)),
            Some(Fault::Partial) => {
                // SAFETY: the caller's promise.
                unsafe { copy(transfer, transfer.len as usize / 2) };
                self.reports.push((tag, Outcome::Failed));
            }
            Some(Fault::Halt) => {
                self.reports.push((tag, Outcome::Failed));
                self.halts = true;
            }
            Some(Fault::Twice) => {
                self.twice.push(tag);
                // SAFETY: the caller's promise.
                unsafe { self.inner.stage(transfer, tag) };
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.inner.stage(transfer, tag) },
        }
    }

    fn submit(&mut self) {
        let mut faults = self.faults.lock().unwrap();
        if faults.lost_doorbells > 0 {
            faults.lost_doorbells -= 1;
        } else {
            self.inner.submit();
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        let panics = std::mem::take(&mut self.faults.lock().unwrap().panics);
        assert!(!panics, "of a test");
        let faults = self.faults.lock().unwrap();
        if faults.removed {
            return Health::Dead;
        }
        let twice = &mut self.twice;
        let health = self.inner.poll(&mut |tag, outcome| {
            done(tag, outcome);
            if twice.contains(&tag) {
                done(tag, outcome);
            }
        });
        for (tag, outcome) in self.reports.drain(..) {
            done(tag, outcome);
        }
        if faults.invented {
            let tag = Tag {
                serial: 12345,
                place: u16::MAX,
            };
            done(tag, Outcome::Copied);
        }
        if self.halts { Health::Halted } else { health }
    }

    fn nudge(&mut self) -> Health {
        self.faults.lock().unwrap().nudges += 1;
        self.submit();
        Health::Running
    }

    fn recover(&mut self) -> bool {
        let mut faults = self.faults.lock().unwrap();
        faults.recoveries += 1;
        if faults.stays_halted {
            return false;
        }
        self.halts = false;
        for (transfer, tag) in self.waiting.drain(..) {
            // SAFETY: as when it was staged here.
            unsafe { self.inner.stage(transfer, tag) };
        }
        self.inner.submit();
        true
    }

    fn halt(&mut self) -> Halted {
        let mut faults = self.faults.lock().unwrap();
        faults.halted = true;
        self.reports.clear();
        self.waiting.clear();
        match (self.inner.halt(), faults.unproven) {
            (Halted::Proven, false) => Halted::Proven,
            _ => Halted::Unproven,
        }
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        let inside = |&(start, size): &(usize, usize)| va.addr().wrapping_sub(start) < size;
        match self.faults.lock().unwrap().refused.iter().any(inside) {
            true => None,
            false => self.inner.translate(va, len),
        }
    }

    fn max_copy(&self) -> u32 {
        self.inner.max_copy()
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        Some(&mut self.reach)
    }
}
