//! Memory of ours that a device reads and writes: descriptors and completions.

use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::Container;

/// Some memory, and where a device finds it. It does not free itself: see [`Memory`].
#[derive(Debug)]
pub struct Block {
    start: NonNull<AtomicU64>,
    len: usize,
    iova: u64,
}

// SAFETY: the block owns its memory (contract of `new`), which any thread may use.
unsafe impl Send for Block {}
// SAFETY: it is only given out as atomics.
unsafe impl Sync for Block {}

impl Block {
    /// Takes over `len` bytes at `start`, a multiple of 8, which a device finds at `iova`.
    ///
    /// # Safety
    ///
    /// They are zeroed, mapped for reading and writing, begin on an 8-byte boundary, and belong to
    /// the block alone until somebody takes them out of it again.
    pub unsafe fn new(start: NonNull<u8>, len: usize, iova: u64) -> Self {
        Self {
            start: start.cast(),
            len: len & !7,
            iova,
        }
    }

    /// Fresh pages; for a device that shares our address space they are where they are.
    ///
    /// # Errors
    ///
    /// There is no memory.
    pub fn pages(len: usize) -> io::Result<Self> {
        let len = len.max(1).checked_next_multiple_of(4096);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // Shared, so that a fork does not move what the device has pinned.
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let iova = start.addr().get() as u64;
        // SAFETY: just mapped: whole pages of zeros that nobody else knows.
        Ok(unsafe { Self::new(start, len, iova) })
    }

    /// Gives pages back.
    ///
    /// # Safety
    ///
    /// The block came from [`pages`](Self::pages).
    pub unsafe fn unmap(self) {
        // SAFETY: the mapping of `pages`, whole; the block was its only owner, and ends here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }

    /// The same memory, which the device finds elsewhere.
    pub fn at(mut self, iova: u64) -> Self {
        self.iova = iova;
        self
    }

    /// Takes the memory out again.
    pub fn into_start(self) -> NonNull<u8> {
        self.start.cast()
    }

    /// Where it begins for us.
    pub fn va(&self) -> usize {
        self.start.addr().get()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least a word.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Memory that a device uses, freed when dropped.
pub struct Memory {
    /// `None` only while dropping.
    block: Option<Block>,
    container: Option<Arc<dyn Container>>,
}

impl Memory {
    /// Memory that the container's devices reach.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn of(container: &Arc<dyn Container>, len: usize) -> io::Result<Self> {
        let block = container.allocate(len)?;
        if block.len() < len {
            container.free(block);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self {
            block: Some(block),
            container: Some(Arc::clone(container)),
        })
    }

    /// Memory for a device that shares our address space.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn shared(len: usize) -> io::Result<Self> {
        Ok(Self {
            block: Some(Block::pages(len)?),
            container: None,
        })
    }

    /// Where the device finds it.
    pub fn iova(&self) -> u64 {
        self.block.as_ref().map_or(0, |block| block.iova)
    }

    /// Its 8-byte words.
    pub fn words(&self) -> &[AtomicU64] {
        let Some(block) = &self.block else {
            return &[];
        };
        // SAFETY: the block owns `len` bytes, aligned to 8 (contract of `Block::new`), for as long as
        // `self`; atomics may be shared with a device.
        unsafe { slice::from_raw_parts(block.start.as_ptr(), block.len / 8) }
    }

    /// Keeps it for ever: a device may still write to it.
    pub fn leak(mut self) {
        self.block = None;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match (self.block.take(), &self.container) {
            (Some(block), Some(container)) => container.free(block),
            // SAFETY: without container it came from `Block::pages`.
            (Some(block), None) => unsafe { block.unmap() },
            (None, _) => {}
        }
    }
}
