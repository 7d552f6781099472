//! Page faults of a guest that is not here yet: postcopy migration.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

/// `UFFD_API`: the version of the interface, and the group of its ioctls.
const API: u8 = 0xaa;
const MODE_MISSING: u64 = 1;
/// `UFFD_USER_MODE_ONLY`: what a process without privileges may have. Faults within system calls
/// then fail instead of waiting; no system call of ours touches guest memory.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

/// `struct uffdio_api`.
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    length: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// A userfaultfd(2), shared with a frontend that fills pages when they arrive from another host.
///
/// Whoever touches a page of a [`Registration`] that is not there yet waits until the frontend has
/// filled it, or until [`release`](Self::release).
#[derive(Debug)]
pub struct Userfault {
    file: OwnedFd,
    ranges: Mutex<Ranges>,
}

#[derive(Debug, Default)]
struct Ranges {
    registered: Vec<Range>,
    released: bool,
}

impl Userfault {
    /// A new one, without ranges.
    ///
    /// # Errors
    ///
    /// What the kernel says, for example when it was built without userfaultfd.
    pub fn new() -> io::Result<Self> {
        let file = open()?;
        let mut handshake = Handshake {
            api: API.into(),
            features: 0,
            ioctls: 0,
        };
        const HANDSHAKE: Opcode = opcode::read_write::<Handshake>(API, 0x3f);
        // SAFETY: the operation reads and writes a `struct uffdio_api`, as `Handshake` is.
        let operation = unsafe { Updater::<HANDSHAKE, Handshake>::new(&mut handshake) };
        // SAFETY: touches nothing but `handshake`.
        unsafe { ioctl(&file, operation) }?;
        Ok(Self {
            file,
            ranges: Mutex::default(),
        })
    }

    /// The same one, for the frontend.
    ///
    /// # Errors
    ///
    /// No more descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets faults in `length` bytes at `start`, both whole pages, wait for the frontend.
    pub(super) fn register(
        self: &Arc<Self>,
        start: usize,
        length: usize,
    ) -> io::Result<Registration> {
        let mut ranges = self.ranges();
        if ranges.released {
            return Err(io::Error::other("the frontend is gone"));
        }
        let range = Range {
            start: start as u64,
            length: length as u64,
        };
        let mut register = Register {
            range,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        const REGISTER: Opcode = opcode::read_write::<Register>(API, 0);
        // SAFETY: the operation reads and writes a `struct uffdio_register`, as `Register` is.
        let operation = unsafe { Updater::<REGISTER, Register>::new(&mut register) };
        // SAFETY: touches no memory but `register`; what it does to the range is to let faults
        // wait, and missing pages of shared guest memory hold nothing of ours.
        unsafe { ioctl(&self.file, operation) }?;
        ranges.registered.push(range);
        Ok(Registration {
            userfault: Arc::clone(self),
            range,
        })
    }

    fn unregister(&self, range: Range) {
        const UNREGISTER: Opcode = opcode::read::<Range>(API, 1);
        // SAFETY: the operation reads a `struct uffdio_range`, as `Range` is.
        let operation = unsafe { Setter::<UNREGISTER, Range>::new(range) };
        // SAFETY: touches no memory; faults that wait in the range go on. It can fail only when
        // nothing is registered there.
        let _ = unsafe { ioctl(&self.file, operation) };
    }

    /// Lets everybody who waits go on, now and for ever; pages that are missing read as zero. Needed
    /// when the frontend is gone: as long as we have our descriptor, the kernel waits for ever.
    pub fn release(&self) {
        let mut ranges = self.ranges();
        ranges.released = true;
        for range in std::mem::take(&mut ranges.registered) {
            self.unregister(range);
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: makes a descriptor that does nothing before a range is registered. From then on, and
    // once it is shared, the frontend fills pages of this process: the operator agreed to that
    // with `postcopy-support=1`.
    let opened = unsafe { rustix::mm::userfaultfd(flags) };
    match opened {
        Err(Errno::PERM) => {
            // SAFETY: as above.
            let opened = unsafe { rustix::mm::userfaultfd(flags | USER_MODE_ONLY) };
            Ok(opened?)
        }
        opened => Ok(opened?),
    }
}

/// A range in which faults wait for the frontend, until this is dropped or all are released.
#[derive(Debug)]
pub(super) struct Registration {
    userfault: Arc<Userfault>,
    range: Range,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Before the mapping goes: the addresses may soon be those of something else.
        let mut ranges = self.userfault.ranges();
        let found = ranges.registered.iter().position(|r| *r == self.range);
        if let Some(nth) = found {
            ranges.registered.swap_remove(nth);
            self.userfault.unregister(self.range);
        }
    }
}
