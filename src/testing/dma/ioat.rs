//! A channel of an I/OAT device, register by register.
//!
//! It does nothing by itself: it works inside the calls that access its registers, or when the test
//! tells it to. So each run is the same.

mod function;

use std::collections::BTreeMap;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::DeviceMemory;

const CHANCNT: usize = 0x00;
const XFERCAP: usize = 0x01;
const CBVER: usize = 0x08;
const CHANCTRL: usize = 0x80;
const CHANCMD: usize = 0x84;
const DMACOUNT: usize = 0x86;
const CHANSTS: usize = 0x88;
const CHAINADDR: usize = 0x90;
const CHANCMP: usize = 0x98;
const CHANERR: usize = 0xa8;
const CHANERR_INT: u16 = 0x180;
/// Where this device has its PCI Express capability, behind another one.
const OTHER: u16 = 0x40;
const EXPRESS: u16 = 0x50;

const ACTIVE: u64 = 0;
const IDLE: u64 = 1;
const SUSPENDED: u64 = 2;
const HALTED: u64 = 3;
const ARMED: u64 = 4;

const SOURCE: u32 = 1 << 0;
const DESTINATION: u32 = 1 << 1;
const NEXT_DESCRIPTOR: u32 = 1 << 2;
const DESCRIPTOR_ALIGNMENT: u32 = 1 << 3;
const CHAIN_ADDRESS: u32 = 1 << 4;
const CONTROL: u32 = 1 << 10;
const LENGTH: u32 = 1 << 11;
const COMPLETION_ADDRESS: u32 = 1 << 12;

/// What a device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoatFault {
    /// The copy with this number (from 0, since the model exists) ends with these bits of CHANERR,
    /// when so many of its bytes were written.
    Copy(u64, u32, usize),
    /// It takes no step any more, and says that it is active.
    Hang,
    /// The next write to DMACOUNT is lost.
    LoseDoorbell,
    /// The next completion is not written to memory.
    LoseCompletion,
    /// A reset takes so many reads of CHANCMD.
    SlowReset(u32),
    /// Every reset but a function's takes for ever.
    NoReset,
    /// A function reset is refused.
    NoFunctionReset,
    /// It cannot be taken from the function either.
    NoRelease,
    /// It stays halted when it gets a chain.
    StaysHalted,
    /// It is not there any more.
    Removed,
    /// It writes this as completion word.
    Lie(u64),
}

/// A channel; a clone is another handle on the same one.
#[derive(Clone)]
pub struct IoatModel {
    state: Arc<Mutex<State>>,
}

struct State {
    memory: Box<dyn DeviceMemory>,
    config: Vec<u8>,
    version: u8,
    limit: u8,
    control: u16,
    command: u8,
    /// What the doorbell says, and how far it is; both count from CHAINADDR.
    count: u16,
    done: u16,
    status: u64,
    chain: u64,
    /// Where the next descriptor is.
    next: u64,
    completion: u64,
    error: u32,
    held: bool,
    hangs: bool,
    removed: bool,
    resetting: u32,
    faults: Vec<IoatFault>,
    copies: u64,
    writes: BTreeMap<usize, u64>,
    resets: u64,
}

impl IoatModel {
    /// A channel of version 3.4, for copies of up to 1 MB.
    pub fn new(memory: &(impl DeviceMemory + Clone)) -> Self {
        let mut config = vec![0; 0x200];
        let mut word = |at: u16, value: u16| {
            let at = usize::from(at);
            config[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        word(0x00, 0x8086);
        word(0x02, 0x0b00);
        word(0x34, OTHER);
        word(OTHER, 0x05 | EXPRESS << 8);
        word(EXPRESS, 0x10);
        word(EXPRESS + 8, 0x2810); // relaxed ordering is on
        config[0x180..0x184].copy_from_slice(&[3, 0, 0, 0]);
        let state = State {
            memory: Box::new(memory.clone()),
            config,
            version: 0x34,
            limit: 20,
            control: 0,
            command: 0,
            count: 0,
            done: 0,
            status: HALTED,
            chain: 0,
            next: 0,
            completion: 0,
            error: 0,
            held: false,
            hangs: false,
            removed: false,
            resetting: 0,
            faults: Vec::new(),
            copies: 0,
            writes: BTreeMap::new(),
            resets: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Another version: 0x32 is 3.2.
    pub fn with_version(self, version: u8) -> Self {
        self.state().version = version;
        self
    }

    /// The limit of a copy as XFERCAP says it.
    pub fn with_limit(self, limit: u8) -> Self {
        self.state().limit = limit;
        self
    }

    /// A driver before us left it locked, with errors and in the middle of something.
    pub fn left_behind(self) -> Self {
        {
            let mut state = self.state();
            state.control = 0x100;
            state.error = 0x203;
            state.status = ACTIVE;
        }
        self
    }

    /// From now on it works only when told to.
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Works on up to `copies` descriptors.
    pub fn run(&self, copies: usize) {
        let mut state = self.state();
        for _ in 0..copies {
            state.step();
        }
    }

    /// Works on everything from now on.
    pub fn go(&self) {
        let mut state = self.state();
        state.held = false;
        state.work();
    }

    /// Makes something go wrong.
    pub fn fault(&self, fault: IoatFault) {
        let mut state = self.state();
        match fault {
            IoatFault::Hang => state.hangs = true,
            IoatFault::Removed => state.removed = true,
            _ => state.faults.push(fault),
        }
    }

    /// How often a register was written.
    pub fn writes(&self, register: usize) -> u64 {
        let state = self.state();
        state.writes.get(&register).copied().unwrap_or(0)
    }

    /// How often the doorbell was rung.
    pub fn doorbells(&self) -> u64 {
        self.writes(DMACOUNT)
    }

    /// Copies that were tried.
    pub fn copies(&self) -> u64 {
        self.state().copies
    }

    /// Resets of the channel that are done.
    pub fn resets(&self) -> u64 {
        self.state().resets
    }

    /// CHANERR.
    pub fn error(&self) -> u32 {
        self.state().error
    }

    /// Whether it can still write to memory.
    pub fn is_stopped(&self) -> bool {
        let state = self.state();
        state.chain == 0 && state.resetting == 0
    }

    /// 16 bits of the configuration space.
    pub fn config(&self, at: usize) -> u16 {
        let state = self.state();
        u16::from_le_bytes([state.config[at], state.config[at + 1]])
    }
}

/// Cuts a copy where source or destination cross a page: each may be elsewhere.
fn pages(mut from: u64, mut to: u64, len: usize) -> impl Iterator<Item = (u64, u64, usize)> {
    const PAGE: u64 = 4096;
    let mut left = len as u64;
    std::iter::from_fn(move || {
        let part = left.min(PAGE - from % PAGE).min(PAGE - to % PAGE);
        let cut = (from, to, part as usize);
        from += part;
        to += part;
        left -= part;
        (part > 0).then_some(cut)
    })
}

impl State {
    fn has(&mut self, fault: IoatFault) -> bool {
        let at = self.faults.iter().position(|&known| known == fault);
        at.map(|at| self.faults.swap_remove(at)).is_some()
    }

    fn is(&self, fault: IoatFault) -> bool {
        self.faults.contains(&fault)
    }

    fn bus_master(&self) -> bool {
        self.config[4] & 4 != 0
    }

    /// The words of memory at `iova`, if they are mapped.
    fn words(&self, iova: u64, count: usize) -> Option<&'static [AtomicU64]> {
        let va = self.memory.host(iova, count * 8)?;
        let start = ptr::with_exposed_provenance::<AtomicU64>(va);
        // SAFETY: the container has all of it mapped; rings are never freed while their device
        // works, and the slice ends with the step. Descriptors and completions are atomics there.
        Some(unsafe { std::slice::from_raw_parts(start, count) })
    }

    fn set_state(&mut self, state: u64) {
        self.status = self.status & !7 | state;
    }

    fn write_completion(&mut self) {
        if self.has(IoatFault::LoseCompletion) {
            return;
        }
        let mut value = self.status;
        if let Some(IoatFault::Lie(word)) = self.faults.first().copied() {
            value = word;
        }
        match self.words(self.completion, 1) {
            Some([word]) => word.store(value, Ordering::Release),
            _ => {
                self.error |= COMPLETION_ADDRESS;
                self.set_state(HALTED);
            }
        }
    }

    fn halt(&mut self, error: u32) {
        self.error |= error;
        self.set_state(HALTED);
        // CHANCTRL says whether to write the completion of an error.
        if self.control & 4 != 0 {
            self.write_completion();
        }
    }

    fn work(&mut self) {
        while self.step() {}
    }

    /// Works on one descriptor, if there is one to work on.
    fn step(&mut self) -> bool {
        let works = matches!(self.status & 7, ACTIVE);
        if !works || self.hangs || self.removed || self.chain == 0 || !self.bus_master() {
            return false;
        }
        if self.done == self.count {
            self.set_state(IDLE);
            return false;
        }
        if !self.next.is_multiple_of(64) {
            self.halt(DESCRIPTOR_ALIGNMENT);
            return false;
        }
        let Some(words) = self.words(self.next, 8) else {
            let first = self.next == self.chain;
            self.halt(if first {
                CHAIN_ADDRESS
            } else {
                NEXT_DESCRIPTOR
            });
            return false;
        };
        let word = |nth: usize| words[nth].load(Ordering::Relaxed);
        let (size, control) = (word(0) as u32, (word(0) >> 32) as u32);
        let result = match control & 0x20 {
            0 => self.copy(control, word(1), word(2), size),
            _ if size == 0 => Err(LENGTH),
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.halt(error);
            return false;
        }
        self.status = self.next & !63 | self.status & 63;
        self.next = word(3);
        self.done = self.done.wrapping_add(1);
        if self.done == self.count {
            self.set_state(IDLE);
        }
        if control & 8 != 0 {
            self.write_completion();
        }
        true
    }

    fn copy(&mut self, control: u32, from: u64, to: u64, size: u32) -> Result<(), u32> {
        let nth = self.copies;
        self.copies += 1;
        if control >> 24 != 0 || control & 0x6 != 0 {
            return Err(CONTROL);
        }
        let limit = match self.limit {
            0 => 1 << 32,
            limit => 1_u64 << limit,
        };
        if size == 0 || u64::from(size) > limit {
            return Err(LENGTH);
        }
        let len = size as usize;
        let pages = || pages(from, to, len);
        for (from, to, len) in pages() {
            self.memory.host(from, len).ok_or(SOURCE)?;
            self.memory.host(to, len).ok_or(DESTINATION)?;
        }
        let fault = self.faults.iter().find_map(|fault| match *fault {
            IoatFault::Copy(at, error, written) if at == nth => Some((error, written)),
            _ => None,
        });
        let mut left = fault.map_or(len, |(_, written)| written.min(len));
        for (from, to, len) in pages() {
            let from = self.memory.host(from, len).ok_or(SOURCE)?;
            let to = self.memory.host(to, len).ok_or(DESTINATION)?;
            let from = ptr::with_exposed_provenance::<u8>(from);
            let to = ptr::with_exposed_provenance_mut::<u8>(to);
            let len = len.min(left);
            // SAFETY: the device reaches `len` bytes at both (`host`): the driver promised that they
            // stay and that nobody else uses them (`Engine::stage`); a test's copies do not overlap.
            unsafe { ptr::copy_nonoverlapping(from, to, len) };
            left -= len;
        }
        fault.map_or(Ok(()), |(error, _)| Err(error))
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.command = 0;
        self.count = 0;
        self.done = 0;
        self.chain = 0;
        self.next = 0;
        self.control = 0;
        self.hangs = false;
        self.status = HALTED;
    }

    fn write(&mut self, at: usize, value: u64) {
        *self.writes.entry(at).or_default() += 1;
        if self.removed {
            return;
        }
        match at {
            CHANCTRL => self.control = value as u16,
            CHANCMD if value & 0x20 != 0 => {
                self.command |= 0x20;
                let slow = self.faults.iter().find_map(|fault| match fault {
                    IoatFault::SlowReset(reads) => Some(*reads),
                    _ => None,
                });
                self.resetting = slow.unwrap_or(1);
            }
            CHANCMD if value & 0x04 != 0 && !self.hangs && self.status & 7 != HALTED => {
                self.set_state(SUSPENDED);
            }
            DMACOUNT if self.has(IoatFault::LoseDoorbell) => {}
            DMACOUNT => {
                self.count = value as u16;
                if matches!(self.status & 7, ARMED | IDLE) {
                    self.set_state(ACTIVE);
                }
                if !self.held {
                    self.work();
                }
            }
            CHAINADDR => {
                self.chain = value;
                self.next = value;
                self.count = 0;
                self.done = 0;
                // An error that nobody cleared keeps it from starting.
                if value != 0 && self.error == 0 && !self.is(IoatFault::StaysHalted) {
                    self.status = ARMED;
                }
            }
            CHANCMP => self.completion = value,
            CHANERR => self.error &= !(value as u32),
            _ => {}
        }
    }

    fn read(&mut self, at: usize) -> u64 {
        if self.removed {
            return u64::MAX;
        }
        match at {
            CHANCNT => 1,
            XFERCAP => self.limit.into(),
            CBVER => self.version.into(),
            CHANCTRL => self.control.into(),
            CHANCMD => {
                if self.resetting > 0 && !self.is(IoatFault::NoReset) {
                    self.resetting -= 1;
                    if self.resetting == 0 {
                        self.reset();
                    }
                }
                self.command.into()
            }
            DMACOUNT => self.count.into(),
            CHANSTS => self.status,
            CHAINADDR => self.chain,
            CHANCMP => self.completion,
            CHANERR => self.error.into(),
            _ => 0,
        }
    }
}
