//! The registers of a DSA device with four engines and eight queues.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::DsaModel;
use crate::dma::vfio::{Function, Registers};

const QUEUES: u32 = 8;
const ENGINES: u32 = 4;
const GROUP_CONFIG: usize = 0x400;
const QUEUE_CONFIG: usize = 0x500;
const QUEUE_STRIDE: usize = 32;
const CMD: usize = 0xa0;
const CMDSTS: usize = 0xa8;
const GENSTS: usize = 0x90;
const SWERROR: usize = 0xc0;
const ERROR_STATE: u32 = 0x20;
const ERROR_CONFIG: u32 = 0x21;

/// What the device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsaDeviceFault {
    /// This command never ends.
    Hang(u32),
    /// This command fails.
    Refuse(u32),
    /// It tells of an error that nobody asked about.
    SoftwareError,
    /// Reads as all ones.
    Removed,
    /// A function reset is refused.
    NoFunctionReset,
}

/// A device; a clone is another handle on the same one. Its queues work where a [`DsaModel`] is.
#[derive(Clone)]
pub struct DsaDevice {
    state: Arc<Mutex<State>>,
}

struct State {
    model: DsaModel,
    bytes: Vec<u8>,
    config: Vec<u8>,
    enabled: bool,
    active: bool,
    error: u32,
    commands: Vec<u32>,
    faults: Vec<DsaDeviceFault>,
    resets: usize,
}

impl DsaDevice {
    /// A device of version 2 that somebody has left enabled.
    pub fn new(model: &DsaModel) -> Self {
        let mut bytes = vec![0; 0x1000];
        let mut word = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        word(0x00, 0x200);
        word(0x10, 21 << 16 | 3 << 21 | 1 << 31);
        word(0x20, 128 | u64::from(QUEUES) << 16 | 1 << 48 | 1 << 49);
        word(0x30, ENGINES.into());
        word(0x38, ENGINES.into());
        word(0x40, 0b1111);
        word(0x60, 4 | 5 << 16);
        word(SWERROR, 0x1d01);
        let state = State {
            model: model.clone(),
            bytes,
            config: vec![0; 0x100],
            enabled: true,
            active: false,
            error: 0,
            commands: Vec::new(),
            faults: Vec::new(),
            resets: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sets a register, such as what it can do.
    pub fn set(&self, at: usize, value: u64) {
        self.state().set(at, value);
    }

    /// Makes something go wrong.
    pub fn fault(&self, fault: DsaDeviceFault) {
        let mut state = self.state();
        state.faults.push(fault);
        if fault == DsaDeviceFault::SoftwareError {
            state.set(SWERROR, 0x1d01);
        }
    }

    /// Commands so far: number and operand.
    pub fn commands(&self) -> Vec<(u32, u32)> {
        let state = self.state();
        let split = |command: &u32| (command >> 20 & 0x1f, command & 0xf_ffff);
        state.commands.iter().map(split).collect()
    }

    /// Function resets.
    pub fn resets(&self) -> usize {
        self.state().resets
    }

    /// Whether it was enabled.
    pub fn is_enabled(&self) -> bool {
        self.state().enabled
    }

    /// A queue's words.
    pub fn queue_words(&self, queue: usize) -> [u32; 4] {
        let at = QUEUE_CONFIG + queue * QUEUE_STRIDE;
        let state = self.state();
        [0, 4, 8, 12].map(|word| state.get(at + word) as u32)
    }

    /// A group's masks of queues and engines.
    pub fn group(&self, group: usize) -> (u64, u64) {
        let at = GROUP_CONFIG + group * 64;
        let state = self.state();
        (state.get(at), state.get(at + 32))
    }

    /// Whether it may access memory.
    pub fn is_bus_master(&self) -> bool {
        self.state().config[4] & 6 == 6
    }
}

impl State {
    fn get(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }

    fn set(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn queue_state(queue: u32) -> usize {
        QUEUE_CONFIG + queue as usize * QUEUE_STRIDE + 24
    }

    fn has(&self, fault: DsaDeviceFault) -> bool {
        self.faults.contains(&fault)
    }

    fn reset(&mut self) {
        self.enabled = false;
        self.active = false;
        self.bytes[GROUP_CONFIG..0xa00].fill(0xa5);
        for queue in 0..QUEUES {
            let at = Self::queue_state(queue);
            self.bytes[at..at + 4].fill(0);
        }
    }

    /// Whether the configuration makes sense: a device with another one does not start.
    fn is_configured(&self) -> bool {
        let mut entries = 0;
        let mut queues = 0;
        let mut engines = 0;
        for group in 0..ENGINES as usize {
            let at = GROUP_CONFIG + group * 64;
            let (of_group, by) = (self.get(at), self.get(at + 32));
            let rest = [8, 16, 24].map(|word| self.get(at + word));
            if rest != [0; 3] || queues & of_group != 0 || engines & by != 0 {
                return false;
            }
            if of_group != 0 && by == 0 {
                return false;
            }
            queues |= of_group;
            engines |= by;
        }
        for queue in 0..QUEUES as usize {
            entries += self.get(QUEUE_CONFIG + queue * QUEUE_STRIDE) as u32;
        }
        entries <= 128 && queues >> QUEUES == 0 && engines >> ENGINES == 0
    }

    fn command(&mut self, value: u32) {
        self.commands.push(value);
        let (command, operand) = (value >> 20 & 0x1f, value & 0xf_ffff);
        if self.has(DsaDeviceFault::Hang(command)) {
            self.active = true;
            return;
        }
        self.error = 0;
        if self.has(DsaDeviceFault::Refuse(command)) {
            self.error = ERROR_STATE;
            return;
        }
        let masked = |queue: u32| operand & 1 << queue != 0 && operand >> 16 == 0;
        match command {
            1 if self.enabled => self.error = ERROR_STATE,
            1 if !self.is_configured() => self.error = ERROR_CONFIG,
            1 => self.enabled = true,
            5 => self.reset(),
            6 if !self.enabled || operand >= QUEUES => self.error = ERROR_STATE,
            6 => {
                let at = Self::queue_state(operand);
                self.bytes[at + 3] = 0x40;
            }
            7 | 9 => {
                for queue in (0..QUEUES).filter(|&queue| masked(queue)) {
                    if command == 9 {
                        self.model.abort();
                    } else {
                        let at = Self::queue_state(queue);
                        self.bytes[at + 3] = 0;
                    }
                }
            }
            _ => self.error = ERROR_STATE,
        }
    }

    fn read(&self, at: usize) -> u64 {
        if self.has(DsaDeviceFault::Removed) {
            return u64::MAX;
        }
        match at {
            GENSTS => self.enabled.into(),
            CMDSTS => u64::from(self.error | u32::from(self.active) << 31),
            _ => self.get(at),
        }
    }

    fn write(&mut self, at: usize, value: u64, bytes: usize) {
        match at {
            _ if self.has(DsaDeviceFault::Removed) => {}
            CMD => self.command(value as u32),
            SWERROR => {
                let left = self.get(SWERROR) & !(value & 3);
                self.set(SWERROR, left);
            }
            // The configuration is writable while the device is disabled.
            GROUP_CONFIG.. if !self.enabled => {
                self.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            _ => {}
        }
    }
}

macro_rules! registers_of_device {
    ($($read:ident $write:ident $type:ty),*) => {
        impl Registers for DsaDevice {
            $(
                fn $read(&self, at: usize) -> $type {
                    self.state().read(at) as $type
                }

                fn $write(&self, at: usize, value: $type) {
                    self.state().write(at, value.into(), size_of::<$type>());
                }
            )*
        }
    };
}
registers_of_device!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);

impl Function for DsaDevice {
    fn config_read(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let at = usize::from(at);
        into.copy_from_slice(&state.config[at..at + into.len()]);
        Ok(())
    }

    fn config_write(&self, at: u16, from: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let at = usize::from(at);
        state.config[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn reset(&mut self) -> bool {
        let mut state = self.state();
        let done =
            !state.has(DsaDeviceFault::NoFunctionReset) && !state.has(DsaDeviceFault::Removed);
        if done {
            state.resets += 1;
            state.reset();
            state.model.abort();
        }
        done
    }

    fn release(&mut self) -> bool {
        let mut state = self.state();
        state.model.abort();
        state.faults.push(DsaDeviceFault::Removed);
        true
    }
}
