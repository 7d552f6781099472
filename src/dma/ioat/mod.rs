//! I/OAT (CBDMA) channels: the copy engine of Xeons up to Ice Lake, through VFIO.
//!
//! A channel reads a chain of descriptors, which is a ring here, and counts to the number in its
//! doorbell. Behind each copy it writes to memory which one it has finished, and its own state: the
//! completion word, all that a poll looks at.

mod registers;
mod ring;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::vfio::{self, Container, Function, PciId, Reach};
use super::{Addr, Engine, Halted, Health, Outcome, Tag, Transfer};
use registers::*;
use ring::Ring;

/// Sizes of ring that a channel may have.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 32..=32768;

/// Whether a PCI function is a channel that this driver knows.
pub fn is_known(id: PciId) -> bool {
    const INTEL: u16 = 0x8086;
    id.vendor == INTEL
        && matches!(id.device,
            0x3710..=0x3719                               // Jasper Forest
            | 0x3c20..=0x3c27 | 0x3c2e | 0x3c2f           // Sandy Bridge-EP
            | 0x0e20..=0x0e27 | 0x0e2e | 0x0e2f           // Ivy Bridge-EP
            | 0x2f20..=0x2f27 | 0x2f2e | 0x2f2f           // Haswell-EP
            | 0x6f20..=0x6f27 | 0x6f2e | 0x6f2f           // Broadwell-EP
            | 0x2021                                      // Skylake-SP, Cascade Lake
            | 0x0c50..=0x0c53 | 0x6f50..=0x6f53           // Atom C2000, Broadwell-DE
            | 0x0b00) // Ice Lake-SP
}

/// Opens the channel at `bdf` (`0000:00:04.0`), which `open` does in some container, with a ring of
/// `ring` descriptors, rounded up to a power of two.
///
/// # Errors
///
/// What `open` says; the function is no channel that we know, or does not start.
pub fn open(
    bdf: &str,
    ring: u32,
    open: impl FnOnce(&str) -> io::Result<vfio::Device>,
) -> io::Result<Ioat<vfio::Device>> {
    if !is_known(vfio::pci_id(bdf)?) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "not an I/OAT channel",
        ));
    }
    let device = open(bdf)?;
    let container = Arc::clone(device.container());
    Ioat::start(device, container, ring)
}

/// What a channel can do just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// It stopped behind a copy that was reported as failed.
    Halted,
    /// It does not answer as it should; only a reset helps.
    Stuck,
    Dead,
}

/// How long a channel may take to obey, where a packet waits for it. The kernel's driver, which can
/// sleep, gives it 200 ms.
const OBEYS: Duration = Duration::from_millis(10);
/// How long it may take to finish the descriptor in work, before it is reset anyway.
const SUSPENDS: Duration = Duration::from_millis(1);
/// As `OBEYS`, where nobody waits.
const OBEYS_AT_START: Duration = Duration::from_millis(200);

/// A channel.
pub struct Ioat<F: Function> {
    /// First, so that the device is gone before the memory that it writes.
    function: F,
    /// Taken out only when the device may still write to it.
    ring: Option<Ring>,
    reach: Reach,
    state: State,
    max_copy: u32,
    /// It can be told to go on behind a failed descriptor (version 3.4).
    goes_on: bool,
    /// Began anew once; an old channel has no second chance.
    restarted: bool,
    /// The doorbell was repeated, and nothing was reported since.
    repeated: bool,
    /// CHANERR at the last halt.
    error: u32,
}

impl<F: Function> Ioat<F> {
    /// Resets a channel and starts it.
    ///
    /// # Errors
    ///
    /// There is no memory, the function is no channel that we know, or it does not obey.
    pub fn start(function: F, container: Arc<dyn Container>, ring: u32) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::Unsupported, what);
        vfio::function::enable(&function)?;
        let version = function.read8(CBVER);
        if !(VERSION_3_2..0xff).contains(&version) {
            return Err(wrong("no I/OAT channel of version 3.2 or later"));
        }
        if function.read8(CHANCNT) & 0x1f == 0 {
            return Err(wrong("I/OAT function without a channel"));
        }
        let max_copy = match function.read8(XFERCAP) & 0x1f {
            0 => 1 << 31,
            size @ 12.. => 1 << size,
            _ => return Err(wrong("I/OAT channel with an impossible limit")),
        };
        let size = ring.clamp(*RING_SIZES.start(), *RING_SIZES.end());
        let ring = Ring::new(&container, size.next_power_of_two())?;
        let mut channel = Self {
            function,
            ring: Some(ring),
            reach: Reach::new(container),
            state: State::Stuck,
            max_copy,
            goes_on: version >= VERSION_3_4,
            restarted: false,
            repeated: false,
            error: 0,
        };
        if version < VERSION_3_3 {
            // Part of the error state is in the configuration space.
            let mut error = [0; 4];
            channel.function.config_read(CHANERR_INT, &mut error)?;
            channel.function.config_write(CHANERR_INT, &error)?;
        }
        match channel.reset(OBEYS_AT_START) && channel.begin() {
            true => Ok(channel),
            false => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "I/OAT channel does not start",
            )),
        }
    }

    /// CHANERR at the last halt; 0 when there was none.
    pub fn error(&self) -> u32 {
        self.error
    }

    /// A removed function reads as all ones, and so would any wait for a bit never end.
    fn is_gone(&self) -> bool {
        self.function.read64(CHANSTS) == u64::MAX
    }

    /// Puts the channel into its initial state; it then does nothing.
    fn reset(&mut self, patience: Duration) -> bool {
        let function = &self.function;
        if self.is_gone() {
            return false;
        }
        // Somebody left the channel locked.
        if function.read16(CHANCTRL) & CHANCTRL_IN_USE != 0 {
            function.write16(CHANCTRL, 0);
        }
        let error = function.read32(CHANERR);
        function.write32(CHANERR, error);
        function.write8(CHANCMD, CHANCMD_SUSPEND);
        wait(SUSPENDS, || is_still(state_of(function.read64(CHANSTS))));
        function.write8(CHANCMD, CHANCMD_RESET);
        wait(patience, || {
            function.write64(CHAINADDR, 0);
            function.read8(CHANCMD) & CHANCMD_RESET == 0
        }) && !self.is_gone()
    }

    /// Arms a channel that was reset, behind what was reported.
    fn begin(&mut self) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        let first = match self.goes_on {
            true => ring.begin(),
            // Older ones are idle only behind a first descriptor.
            false => ring.begin_with_lead(),
        };
        self.function.write16(CHANCTRL, CHANCTRL_RUN);
        self.function.write64(CHANCMP, ring.word_address());
        self.function.write64(CHAINADDR, first);
        let state = || state_of(self.function.read64(CHANSTS));
        let started = match self.goes_on {
            true => state() != CHANSTS_HALTED,
            false => {
                fence(Ordering::Release);
                self.function.write16(DMACOUNT, ring.count());
                wait(OBEYS, || state() == CHANSTS_IDLE)
            }
        };
        if started {
            self.state = State::Running;
        }
        started
    }

    /// Version 3.4: goes on behind the descriptor that failed and was reported.
    fn resume(&mut self) -> bool {
        let (function, Some(ring)) = (&self.function, &mut self.ring) else {
            return false;
        };
        let error = function.read32(CHANERR);
        if error == u32::MAX {
            return false;
        }
        self.error = error;
        function.write32(CHANERR, error);
        function.write8(CHANCMD, CHANCMD_RESET);
        if !wait(OBEYS, || function.read8(CHANCMD) & CHANCMD_RESET == 0) {
            return false;
        }
        let first = ring.begin_behind_reported();
        function.write16(CHANCTRL, CHANCTRL_RUN);
        function.write64(CHANCMP, ring.word_address());
        function.write64(CHAINADDR, first);
        let armed = wait(OBEYS, || {
            let state = state_of(function.read64(CHANSTS));
            state == CHANSTS_ARMED || state == CHANSTS_IDLE
        });
        if armed && ring.count() != 0 {
            fence(Ordering::Release);
            function.write16(DMACOUNT, ring.count());
        }
        armed
    }

    /// Gives up what was started, and begins with an empty ring.
    fn restart(&mut self) -> bool {
        if !self.goes_on && self.restarted {
            return false;
        }
        self.restarted = true;
        self.error = self.function.read32(CHANERR);
        self.error != u32::MAX && self.reset(OBEYS) && {
            if let Some(ring) = &mut self.ring {
                ring.abandon();
            }
            self.begin()
        }
    }
}

/// Waits for something that a device does soon; `false` when it does not.
fn wait(patience: Duration, done: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if done() {
            return true;
        }
        if began.elapsed() > patience {
            return false;
        }
        std::hint::spin_loop();
    }
}

impl<F: Function> Engine for Ioat<F> {
    #[inline]
    fn room(&self) -> usize {
        match (&self.ring, self.state) {
            (None, _) | (_, State::Dead) => 0,
            (Some(ring), _) => ring.room(),
        }
    }

    #[inline]
    unsafe fn stage(&mut self, copy: Transfer, tag: Tag) {
        if let Some(ring) = &mut self.ring {
            ring.stage(copy, tag);
        }
    }

    #[inline]
    fn submit(&mut self) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        ring.start_staged();
        if self.state == State::Running {
            // Descriptors before the doorbell.
            fence(Ordering::Release);
            self.function.write16(DMACOUNT, ring.count());
        }
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        let Some(ring) = &mut self.ring else {
            return Health::Dead;
        };
        match self.state {
            State::Dead => return Health::Dead,
            State::Halted | State::Stuck => return Health::Halted,
            State::Running => {}
        }
        ring.report_abandoned(done);
        let word = ring.word();
        let Some(finished) = ring.finished(word) else {
            log::error!(target: crate::log::PORT, "I/OAT: completion word {word:#x} makes no sense");
            self.state = State::Dead;
            return Health::Dead;
        };
        if finished != 0 {
            self.repeated = false;
            ring.report(finished, Outcome::Copied, done);
        }
        if state_of(word) != CHANSTS_HALTED {
            return Health::Running;
        }
        // It stopped at the next one, if there is one.
        ring.report(ring.outstanding().min(1), Outcome::Failed, done);
        self.state = State::Halted;
        Health::Halted
    }

    fn recover(&mut self) -> bool {
        let on = match self.state {
            State::Running => true,
            State::Halted if self.goes_on => self.resume(),
            State::Halted | State::Stuck => self.restart(),
            State::Dead => false,
        };
        self.state = match on {
            true => State::Running,
            false => State::Dead,
        };
        on
    }

    fn nudge(&mut self) -> Health {
        let Some(ring) = &mut self.ring else {
            return Health::Dead;
        };
        match self.state {
            State::Dead => return Health::Dead,
            State::Halted | State::Stuck => return Health::Halted,
            State::Running if ring.outstanding() == 0 => return Health::Running,
            State::Running => {}
        }
        if ring.finished(ring.word()) != Some(0) {
            return Health::Running; // for the next poll
        }
        let status = self.function.read64(CHANSTS);
        if status == u64::MAX {
            self.state = State::Dead;
            return Health::Dead;
        }
        // What it says and did not write: the next poll acts on it.
        if state_of(status) == CHANSTS_HALTED {
            ring.set_word(status);
            return Health::Running;
        }
        let count = self.function.read16(DMACOUNT);
        let waits = count != ring.count() || state_of(status) == CHANSTS_IDLE;
        if waits && !self.repeated {
            self.repeated = true;
            self.function.write16(DMACOUNT, ring.count());
            return Health::Running;
        }
        self.state = State::Stuck;
        Health::Halted
    }

    fn halt(&mut self) -> Halted {
        let obeyed = self.state != State::Dead || !self.is_gone();
        self.state = State::Dead;
        self.function.write8(CHANCMD, CHANCMD_RESET);
        let reset = || self.function.read8(CHANCMD) & CHANCMD_RESET == 0;
        let stopped = (obeyed && wait(OBEYS, reset) && !self.is_gone())
            || self.function.reset()
            || self.function.release();
        match stopped {
            true => Halted::Proven,
            false => {
                // It may write to the ring as long as the process lives.
                if let Some(ring) = self.ring.take() {
                    ring.leak();
                }
                Halted::Unproven
            }
        }
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        self.reach.translate(va.addr(), usize::try_from(len).ok()?)
    }

    fn max_copy(&self) -> u32 {
        self.max_copy
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        Some(&mut self.reach)
    }
}

impl<F: Function> Drop for Ioat<F> {
    fn drop(&mut self) {
        if self.ring.is_some() {
            self.halt();
        }
    }
}
