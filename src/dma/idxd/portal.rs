//! How descriptors get to a work queue.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use super::descriptor::Descriptor;
use crate::dma::vfio::function::Bar;

/// Where descriptors are given to a work queue.
pub trait Portal: Send {
    /// Gives it descriptors, in order; how many it took. What it did not take it never sees.
    ///
    /// # Errors
    ///
    /// It takes none any more.
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize>;
}

/// Instructions of this processor that write 64 bytes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// MOVDIR64B, for queues that only we use.
    pub movdir64b: bool,
    /// ENQCMD, for queues that we share.
    pub enqcmd: bool,
}

impl Instructions {
    /// Asks the processor: using one that is not there would be the end of the process.
    pub fn detect() -> Self {
        let highest = __cpuid_count(0, 0).eax;
        let ecx = match highest {
            7.. => __cpuid_count(7, 0).ecx,
            _ => 0,
        };
        Self {
            movdir64b: ecx & 1 << 28 != 0,
            enqcmd: ecx & 1 << 29 != 0,
        }
    }
}

/// The lines of a portal's page. The queue does not care which one is written; taking the next
/// each time gives it time to read them.
#[derive(Debug)]
pub struct Lines {
    page: Bar,
    at: usize,
}

/// What a portal page has.
pub const PAGE: usize = 4096;

impl Lines {
    /// The lines of a mapped page.
    pub fn new(page: Bar) -> Self {
        Self { page, at: 0 }
    }

    fn next(&mut self) -> io::Result<*mut u8> {
        let line = self.page.line(self.at);
        self.at = (self.at + 64) % PAGE;
        line.map(|line| line.as_ptr())
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Writes 64 bytes in one piece to a dedicated queue, which gives no answer.
///
/// # Safety
///
/// The processor has MOVDIR64B, and `line` is a line of a mapped portal.
unsafe fn movdir64b(line: *mut u8, descriptor: &Descriptor) {
    // SAFETY: reads the descriptor, and writes a line of a portal (caller). The store is weakly
    // ordered: the fence keeps what it points to in front of it.
    unsafe {
        asm!(
            "sfence",
            "movdir64b {line}, [{descriptor}]",
            line = in(reg) line,
            descriptor = in(reg) std::ptr::from_ref(descriptor),
            options(nostack, preserves_flags),
        );
    }
}

/// Offers 64 bytes to a shared queue; whether it took them.
///
/// # Safety
///
/// The processor has ENQCMD, and `line` is a line of a mapped portal of a shared queue.
unsafe fn enqcmd(line: *mut u8, descriptor: &Descriptor) -> bool {
    let full: u8;
    // SAFETY: as for `movdir64b`. The answer is the zero flag.
    unsafe {
        asm!(
            "sfence",
            "enqcmd {line}, [{descriptor}]",
            "setz {full}",
            line = in(reg) line,
            descriptor = in(reg) std::ptr::from_ref(descriptor),
            full = out(reg_byte) full,
            options(nostack),
        );
    }
    full == 0
}

/// Tries before a packet is not kept waiting any longer.
const TRIES: usize = 16;

/// The ways in which this driver submits.
#[derive(Debug)]
pub enum AnyPortal {
    /// A dedicated queue's page.
    Dedicated(Dedicated),
    /// A shared queue's page.
    Shared(Shared),
    /// By system call, where the page may not be mapped.
    Written(Written),
}

/// The page of a queue that nobody else uses. It drops what is too much: the caller counts.
#[derive(Debug)]
pub struct Dedicated(Lines);

impl Dedicated {
    /// Writes to these lines.
    ///
    /// # Safety
    ///
    /// The processor has MOVDIR64B.
    pub unsafe fn new(lines: Lines) -> Self {
        Self(lines)
    }
}

impl Portal for Dedicated {
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize> {
        for descriptor in descriptors {
            let line = self.0.next()?;
            // SAFETY: the processor has it (contract of `new`); `Lines` has the page mapped.
            unsafe { movdir64b(line, descriptor) };
        }
        Ok(descriptors.len())
    }
}

/// The page of a queue that others use, too.
#[derive(Debug)]
pub struct Shared(Lines);

impl Shared {
    /// Writes to these lines.
    ///
    /// # Safety
    ///
    /// The processor has ENQCMD, and the lines are of a shared queue that the kernel bound to this
    /// process.
    pub unsafe fn new(lines: Lines) -> Self {
        Self(lines)
    }
}

impl Portal for Shared {
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize> {
        for (taken, descriptor) in descriptors.iter().enumerate() {
            let line = self.0.next()?;
            // SAFETY: by the contract of `new`; `Lines` has the page mapped.
            let offer = || unsafe { enqcmd(line, descriptor) };
            if !(0..TRIES).any(|_| offer()) {
                return Ok(taken);
            }
        }
        Ok(descriptors.len())
    }
}

/// The device file itself: kernels that do not let us map the page take descriptors by write(2).
#[derive(Debug)]
pub struct Written {
    file: Arc<File>,
    bytes: Vec<u8>,
}

impl Written {
    /// Writes to this file.
    pub fn new(file: Arc<File>) -> Self {
        Self {
            file,
            bytes: Vec::new(),
        }
    }
}

impl Portal for Written {
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize> {
        self.bytes.clear();
        for descriptor in descriptors {
            self.bytes.extend(descriptor.bytes());
        }
        match (&*self.file).write(&self.bytes) {
            Ok(bytes) => Ok(bytes / size_of::<Descriptor>()),
            Err(error) => match error.raw_os_error() {
                // A shared queue is full.
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => Ok(0),
                _ => Err(error),
            },
        }
    }
}

impl Portal for AnyPortal {
    fn push(&mut self, descriptors: &[Descriptor]) -> io::Result<usize> {
        match self {
            Self::Dedicated(portal) => portal.push(descriptors),
            Self::Shared(portal) => portal.push(descriptors),
            Self::Written(portal) => portal.push(descriptors),
        }
    }
}
