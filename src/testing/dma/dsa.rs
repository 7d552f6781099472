//! A DSA work queue, descriptor by descriptor.
//!
//! As a [`Portal`] it works inside the calls that submit, or when the test tells it to, so each run
//! is the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::{io, ptr};

use super::FakeContainer;
use crate::dma::Addr;
use crate::dma::idxd::descriptor::Descriptor;
use crate::dma::idxd::portal::Portal;
use crate::dma::idxd::queue::Access;
use crate::dma::vfio::{Container, Memory, Reach};

const BATCH: u64 = 1;
const MEMORY_MOVE: u64 = 3;
const RECORD_IS_VALID: u64 = 0x04;
const WANTS_RECORD: u64 = 0x08;

const SUCCESS: u8 = 0x01;
const MEMBER_FAILED: u8 = 0x05;
const BAD_OPERATION: u8 = 0x10;
const BAD_SIZE: u8 = 0x13;
const BAD_COUNT: u8 = 0x14;
const BAD_LIST: u8 = 0x18;
const BAD_ADDRESS: u8 = 0x22;

/// What the device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsaFault {
    /// The copy with this number (from 0) ends with this status, when so many of its bytes were
    /// written.
    Copy(u64, u8, u32),
    /// The same, and the bytes are the last ones.
    Backwards(u64, u8, u32),
    /// The batch with this number ends with this status, when so many of its copies were tried.
    Batch(u64, u8, u32),
    /// The next submission is lost.
    Swallow,
    /// The next submissions, so many, are refused.
    Full(u32),
    /// No submission is taken any more.
    Broken,
    /// The device tells of an error.
    Error,
    /// It cannot be stopped.
    NoStop,
}

/// A work queue; a clone is another handle on the same one.
#[derive(Clone)]
pub struct DsaModel {
    state: Arc<Mutex<State>>,
}

struct State {
    /// `None`: addresses are ours.
    memory: Option<FakeContainer>,
    waiting: VecDeque<Descriptor>,
    /// Submissions that it has room for; what is more is lost, and counted.
    size: usize,
    lost: usize,
    largest_batch: u32,
    held: bool,
    stopped: bool,
    faults: Vec<DsaFault>,
    copies: u64,
    batches: u64,
    submissions: u64,
    bad: usize,
}

impl DsaModel {
    /// A queue for 16 submissions whose addresses are ours.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A queue that reaches what is mapped.
    pub fn mapped(memory: &FakeContainer) -> Self {
        Self::with(Some(memory.clone()))
    }

    fn with(memory: Option<FakeContainer>) -> Self {
        let state = State {
            memory,
            waiting: VecDeque::new(),
            size: 16,
            lost: 0,
            largest_batch: 8,
            held: false,
            stopped: false,
            faults: Vec::new(),
            copies: 0,
            batches: 0,
            submissions: 0,
            bad: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on it works only when told to.
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Works on everything from now on.
    pub fn go(&self) {
        let mut state = self.state();
        state.held = false;
        while state.step_first() {}
    }

    /// Works on the oldest submission that waits.
    pub fn run_first(&self) {
        self.state().step_first();
    }

    /// Works on the newest.
    pub fn run_last(&self) {
        let mut state = self.state();
        if let Some(descriptor) = state.waiting.pop_back() {
            state.execute(&descriptor);
        }
    }

    /// Makes something go wrong.
    pub fn fault(&self, fault: DsaFault) {
        self.state().faults.push(fault);
    }

    /// Submissions so far.
    pub fn submissions(&self) -> u64 {
        self.state().submissions
    }

    /// Batches among them that were worked on.
    pub fn batches(&self) -> u64 {
        self.state().batches
    }

    /// Copies that were tried.
    pub fn copies(&self) -> u64 {
        self.state().copies
    }

    /// Submissions that did not fit into the queue.
    pub fn lost(&self) -> usize {
        self.state().lost
    }

    /// Descriptors as no driver should write them.
    pub fn bad(&self) -> usize {
        self.state().bad
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Takes a descriptor as from a portal.
    pub fn submit(&self, descriptor: Descriptor) {
        let mut state = self.state();
        state.submissions += 1;
        if state.take(|fault| fault == DsaFault::Swallow) {
            return;
        }
        if state.waiting.len() == state.size {
            state.lost += 1;
            return;
        }
        state.waiting.push_back(descriptor);
        if !state.held {
            while state.step_first() {}
        }
    }

    /// Forgets what it has not worked on.
    pub fn abort(&self) {
        self.state().waiting.clear();
    }

    /// How the driver reaches it otherwise.
    pub fn access(&self) -> FakeAccess {
        let memory = self.state().memory.clone();
        let reach = memory.map(|memory| Reach::new(Arc::new(memory)));
        FakeAccess {
            model: self.clone(),
            reach,
        }
    }
}

impl Default for DsaModel {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn take(&mut self, wanted: impl Fn(DsaFault) -> bool) -> bool {
        let at = self.faults.iter().position(|&fault| wanted(fault));
        at.map(|at| self.faults.swap_remove(at)).is_some()
    }

    fn step_first(&mut self) -> bool {
        let descriptor = self.waiting.pop_front();
        if let Some(descriptor) = &descriptor {
            self.execute(descriptor);
        }
        descriptor.is_some()
    }

    /// Our address of `len` bytes at one of the device's.
    fn host(&self, at: u64, len: usize) -> Option<usize> {
        match &self.memory {
            Some(memory) => memory.host(at, len),
            None => usize::try_from(at).ok().filter(|&at| at != 0),
        }
    }

    fn words(&self, at: u64, count: usize) -> Option<&'static [AtomicU64]> {
        let start = ptr::with_exposed_provenance::<AtomicU64>(self.host(at, count * 8)?);
        // SAFETY: descriptors and records: words that the driver keeps for as long as the queue
        // may work, and uses as atomics (`Engine::stage`, `Queue`); not used after the step.
        Some(unsafe { std::slice::from_raw_parts(start, count) })
    }

    fn report(&mut self, descriptor: &Descriptor, status: u8, backwards: bool, completed: u32) {
        let flags = descriptor.0[0] >> 32;
        let wanted = flags & WANTS_RECORD != 0 || status != SUCCESS;
        if flags & RECORD_IS_VALID == 0 || !wanted {
            return;
        }
        let at = descriptor.0[1];
        match self.words(at, 4).filter(|_| at.is_multiple_of(32)) {
            Some([first, rest @ ..]) => {
                for word in rest {
                    word.store(0, Ordering::Relaxed);
                }
                let first_word = u64::from(status) | u64::from(backwards) << 8;
                first.store(first_word | u64::from(completed) << 32, Ordering::Release);
            }
            _ => self.bad += 1,
        }
    }

    fn execute(&mut self, descriptor: &Descriptor) -> u8 {
        let [head, _, from, to, size, rest @ ..] = descriptor.0;
        if rest != [0; 3] || head & 0xffff_ffff != 0 {
            self.bad += 1;
        }
        match head >> 56 {
            MEMORY_MOVE => {
                let (status, backwards, completed) = self.copy(from, to, size);
                self.report(descriptor, status, backwards, completed);
                status
            }
            BATCH => {
                let (status, tried) = self.batch(from, size);
                self.report(descriptor, status, false, tried);
                status
            }
            _ => {
                self.bad += 1;
                self.report(descriptor, BAD_OPERATION, false, 0);
                BAD_OPERATION
            }
        }
    }

    fn batch(&mut self, list: u64, count: u64) -> (u8, u32) {
        let nth = self.batches;
        self.batches += 1;
        if !(2..=u64::from(self.largest_batch)).contains(&count) {
            self.bad += 1;
            return (BAD_COUNT, 0);
        }
        let count = count as usize;
        let Some(words) = self
            .words(list, count * 8)
            .filter(|_| list.is_multiple_of(64))
        else {
            self.bad += 1;
            return (BAD_LIST, 0);
        };
        let fault = self.faults.iter().find_map(|fault| match *fault {
            DsaFault::Batch(at, status, tried) if at == nth => Some((status, tried)),
            _ => None,
        });
        let tried = fault.map_or(count, |(_, tried)| (tried as usize).min(count));
        let mut failed = false;
        for member in words.chunks_exact(8).take(tried) {
            let mut descriptor = Descriptor::default();
            for (to, word) in descriptor.0.iter_mut().zip(member) {
                *to = word.load(Ordering::Relaxed);
            }
            failed |= self.execute(&descriptor) != SUCCESS;
        }
        let otherwise = if failed { MEMBER_FAILED } else { SUCCESS };
        let status = fault.map_or(otherwise, |(status, _)| status);
        (status, tried as u32)
    }

    fn copy(&mut self, from: u64, to: u64, size: u64) -> (u8, bool, u32) {
        let nth = self.copies;
        self.copies += 1;
        if size == 0 || size > 2 << 20 {
            return (BAD_SIZE, false, 0);
        }
        let len = size as usize;
        let (Some(from), Some(to)) = (self.host(from, len), self.host(to, len)) else {
            return (BAD_ADDRESS, false, 0);
        };
        let fault = self.faults.iter().find_map(|fault| match *fault {
            DsaFault::Copy(at, status, bytes) if at == nth => Some((status, false, bytes)),
            DsaFault::Backwards(at, status, bytes) if at == nth => Some((status, true, bytes)),
            _ => None,
        });
        let (status, backwards, bytes) = fault.unwrap_or((SUCCESS, false, size as u32));
        let part = (bytes as usize).min(len);
        let skip = if backwards { len - part } else { 0 };
        let from = ptr::with_exposed_provenance::<u8>(from + skip);
        let to = ptr::with_exposed_provenance_mut::<u8>(to + skip);
        // SAFETY: inside of what the driver was given for this copy (`Engine::stage`), which stays
        // and which nobody else uses until it is reported; a test's copies do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, to, part) };
        (status, backwards, bytes)
    }
}

impl Portal for DsaModel {
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize> {
        for (taken, &descriptor) in descriptors.iter().enumerate() {
            {
                let mut state = self.state();
                if state.faults.contains(&DsaFault::Broken) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                for fault in &mut state.faults {
                    if let DsaFault::Full(times @ 1..) = fault {
                        *times -= 1;
                        return Ok(taken);
                    }
                }
            }
            self.submit(descriptor);
        }
        Ok(descriptors.len())
    }
}

/// A queue without a file.
pub struct FakeAccess {
    model: DsaModel,
    reach: Option<Reach>,
}

impl Access for FakeAccess {
    fn allocate(&self, len: usize) -> io::Result<Memory> {
        match &self.reach {
            Some(reach) => {
                let container: &Arc<dyn Container> = reach.container();
                Memory::of(container, len)
            }
            None => Memory::shared(len),
        }
    }

    fn shares_addresses(&self) -> bool {
        self.reach.is_none()
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        let va = va.expose_provenance();
        match &self.reach {
            Some(reach) => reach.translate(va, len as usize),
            None => Some(Addr(va as u64)),
        }
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        self.reach.as_mut()
    }

    fn has_failed(&self) -> bool {
        self.model.state().faults.contains(&DsaFault::Error)
    }

    fn stop(&mut self) -> bool {
        let mut state = self.model.state();
        if state.faults.contains(&DsaFault::NoStop) {
            return false;
        }
        state.waiting.clear();
        state.stopped = true;
        true
    }
}
