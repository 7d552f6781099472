//! Work queues of a DSA device that VFIO lends us: we are its only driver, and configure it.
//!
//! All queues are dedicated and of the same size. Each engine is a group of its own, so that the
//! copies of a queue end in order; queues beyond the number of engines share them.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::queue::{Access, Limits};
use crate::dma::Addr;
use crate::dma::vfio::{Container, Function, Memory, Reach, function};

/// Where a device's registers are, under the names of Linux's driver.
mod registers {
    pub(super) const VERSION: usize = 0x00;
    pub(super) const GENCAP: usize = 0x10;
    pub(super) const WQCAP: usize = 0x20;
    pub(super) const GRPCAP: usize = 0x30;
    pub(super) const ENGCAP: usize = 0x38;
    pub(super) const OPCAP: usize = 0x40;
    /// 16 bits each: group and queue configuration, in units of 256 bytes.
    pub(super) const OFFSETS: usize = 0x60;
    pub(super) const GENSTS: usize = 0x90;
    pub(super) const CMD: usize = 0xa0;
    pub(super) const CMDSTS: usize = 0xa8;
    pub(super) const SWERROR: usize = 0xc0;

    pub(super) const CMDSTS_ACTIVE: u32 = 1 << 31;
    pub(super) const GENSTS_DISABLED: u32 = 0;
    pub(super) const GENSTS_ENABLED: u32 = 1;
    pub(super) const SWERROR_VALID: u32 = 1;
    /// Sets of the error's bits that are cleared by writing them.
    pub(super) const SWERROR_CLEAR: u64 = 0x3;
    pub(super) const MEMORY_MOVE: u64 = 1 << 3;
    pub(super) const BATCH: u64 = 1 << 1;
}
use registers::*;

#[derive(Clone, Copy, Debug)]
enum Command {
    EnableDevice = 1,
    ResetDevice = 5,
    EnableQueue = 6,
    DisableQueue = 7,
    AbortQueue = 9,
}

/// How long a command may take.
const OBEYS: Duration = Duration::from_millis(50);

/// A device that is ours.
pub struct Dsa<F: Function> {
    function: F,
    queues: u32,
    limits: Limits,
    /// Where the queues are configured, and how many bytes each has.
    queue_config: usize,
    queue_stride: usize,
    /// One bit for each queue that somebody has.
    taken: u64,
    /// Those of them that could not be stopped. They have no portal any more.
    left: u64,
}

/// A device that its queues share.
pub type SharedDsa<F> = Arc<Mutex<Dsa<F>>>;

fn unusable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn field(word: u64, from: u32, bits: u32) -> u32 {
    u32::try_from(word >> from & ((1 << bits) - 1)).unwrap_or(0)
}

impl<F: Function> Dsa<F> {
    /// Resets, configures and enables a device.
    ///
    /// # Errors
    ///
    /// It is no DSA device, or does not obey.
    pub fn start(function: F) -> io::Result<Self> {
        function::enable(&function)?;
        let version = function.read32(VERSION);
        if version == u32::MAX || version < 0x100 {
            return Err(unusable("no DSA device"));
        }
        let gencap = function.read64(GENCAP);
        let wqcap = function.read64(WQCAP);
        let queues = field(wqcap, 16, 8).min(64);
        let groups = field(function.read64(GRPCAP), 0, 8).min(64);
        let engines = field(function.read64(ENGCAP), 0, 8).min(64);
        let operations = function.read64(OPCAP);
        let each = field(wqcap, 0, 16).checked_div(queues).unwrap_or(0);
        if each == 0 || groups == 0 || engines == 0 || operations & MEMORY_MOVE == 0 {
            return Err(unusable("DSA device that cannot copy"));
        }
        let batch = match operations & BATCH {
            0 => 0,
            _ => field(gencap, 21, 4),
        };
        let transfer = field(gencap, 16, 5).min(31);
        let offsets = function.read64(OFFSETS);
        let device = Self {
            function,
            queues,
            limits: Limits {
                submissions: each,
                batch: 1 << batch,
                transfer: 1 << transfer,
            },
            queue_config: field(offsets, 16, 16) as usize * 0x100,
            queue_stride: 32 << field(wqcap, 24, 4),
            taken: 0,
            left: 0,
        };
        let group_config = field(offsets, 0, 16) as usize * 0x100;
        device.command(Command::ResetDevice, 0)?;
        if device.function.read32(GENSTS) & 3 != GENSTS_DISABLED {
            return Err(unusable("DSA device that stays enabled"));
        }
        device.function.write64(SWERROR, SWERROR_CLEAR);
        device.configure_groups(group_config, groups, engines);
        for queue in 0..queues {
            device.configure_queue(queue, transfer, batch);
        }
        device.command(Command::EnableDevice, 0)?;
        Ok(device)
    }

    /// The function itself.
    pub fn function(&self) -> &F {
        &self.function
    }

    fn configure_groups(&self, config: usize, groups: u32, engines: u32) {
        // Traffic class 1 for both kinds of buffer.
        const FLAGS: u32 = 1 | 1 << 3;
        let used = groups.min(engines);
        for group in 0..groups {
            let at = config + group as usize * 64;
            let members = |count: u32| {
                let ours = (0..count).filter(|nth| group < used && nth % used == group);
                ours.fold(0_u64, |mask, nth| mask | 1 << nth)
            };
            self.function.write64(at, members(self.queues));
            for word in 1..4 {
                self.function.write64(at + word * 8, 0);
            }
            // An engine more than groups stays unused: copies of a queue end in order.
            self.function.write64(at + 32, members(used));
            self.function.write32(at + 40, FLAGS);
        }
    }

    fn configure_queue(&self, queue: u32, transfer: u32, batch: u32) {
        const DEDICATED: u32 = 1;
        const PRIORITY: u32 = 1 << 4;
        let at = self.queue_config + queue as usize * self.queue_stride;
        let words = [
            self.limits.submissions,
            0,
            DEDICATED | PRIORITY,
            transfer | batch << 5,
        ];
        for (nth, word) in words.into_iter().enumerate() {
            self.function.write32(at + nth * 4, word);
        }
    }

    /// Gives a command and waits for it.
    fn command(&self, command: Command, operand: u32) -> io::Result<()> {
        self.wait()?;
        self.function.write32(CMD, (command as u32) << 20 | operand);
        match self.wait()? & 0xff {
            0 => Ok(()),
            error => Err(io::Error::other(format!(
                "DSA command {command:?}({operand}) ended with {error:#x}"
            ))),
        }
    }

    /// Waits until there is no command in work.
    fn wait(&self) -> io::Result<u32> {
        let began = Instant::now();
        loop {
            let status = self.function.read32(CMDSTS);
            if status == u32::MAX {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if status & CMDSTS_ACTIVE == 0 {
                return Ok(status);
            }
            if began.elapsed() > OBEYS {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::hint::spin_loop();
        }
    }

    fn take(&mut self, queue: u32) -> io::Result<()> {
        if queue >= self.queues {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.taken & 1 << queue != 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.command(Command::EnableQueue, queue)?;
        const STATE: usize = 6 * 4;
        let at = self.queue_config + queue as usize * self.queue_stride;
        if self.function.read32(at + STATE) >> 30 != 1 {
            return Err(unusable("DSA work queue that stays disabled"));
        }
        self.taken |= 1 << queue;
        Ok(())
    }

    /// Whether a queue certainly does nothing any more.
    fn stop(&mut self, queue: u32) -> bool {
        if self.taken & 1 << queue == 0 {
            return true;
        }
        // One bit of 16, and which 16.
        let mask = 1 << (queue % 16) | (queue / 16) << 16;
        let stopped = self.command(Command::AbortQueue, mask).is_ok()
            && self.command(Command::DisableQueue, mask).is_ok();
        // The others have to do without the device, too: it does not obey. The kernel has it back only
        // when no portal is mapped any more.
        let bit = 1 << queue;
        let others = self.taken & !self.left & !bit;
        let stopped = stopped || self.function.reset() || (others == 0 && self.function.release());
        match stopped {
            true => self.taken &= !bit,
            false => self.left |= bit,
        }
        stopped
    }

    fn has_failed(&self) -> bool {
        let state = self.function.read32(GENSTS);
        state == u32::MAX
            || state & 3 != GENSTS_ENABLED
            || self.function.read32(SWERROR) & SWERROR_VALID != 0
    }
}

impl<F: Function> Drop for Dsa<F> {
    fn drop(&mut self) {
        if self.command(Command::ResetDevice, 0).is_err() {
            self.function.reset();
        }
    }
}

/// One queue of a device.
pub struct VfioQueue<F: Function> {
    device: SharedDsa<F>,
    queue: u32,
    reach: Reach,
}

impl<F: Function> VfioQueue<F> {
    /// Takes a queue of a device, and says what it can do.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such queue. `ResourceBusy`: somebody has it. Anything else: the
    /// device does not obey.
    pub fn take(
        device: SharedDsa<F>,
        queue: u32,
        container: Arc<dyn Container>,
    ) -> io::Result<(Self, Limits)> {
        let limits = {
            let mut device = lock(&device);
            device.take(queue)?;
            device.limits
        };
        let queue = Self {
            device,
            queue,
            reach: Reach::new(container),
        };
        Ok((queue, limits))
    }
}

fn lock<F: Function>(device: &SharedDsa<F>) -> MutexGuard<'_, Dsa<F>> {
    // Each change of it is one step.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Function> Access for VfioQueue<F> {
    fn allocate(&self, len: usize) -> io::Result<Memory> {
        Memory::of(self.reach.container(), len)
    }

    fn shares_addresses(&self) -> bool {
        false
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        self.reach.translate(va.addr(), usize::try_from(len).ok()?)
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        Some(&mut self.reach)
    }

    fn has_failed(&self) -> bool {
        lock(&self.device).has_failed()
    }

    fn stop(&mut self) -> bool {
        lock(&self.device).stop(self.queue)
    }
}

impl<F: Function> Drop for VfioQueue<F> {
    fn drop(&mut self) {
        self.stop();
    }
}
