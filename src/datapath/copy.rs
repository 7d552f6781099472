//! Bytes in and out of guest memory.
//!
//! The peer may write what is read here, or read what is written: a packet that changes while it is
//! copied is that peer's loss. No reference to guest memory is made.

use std::mem::MaybeUninit;

use crate::memory::GuestRange;

/// Copies `src` into `room`, cut to the shorter of the two; how many bytes that was.
#[inline(always)]
pub(super) fn copy_in(room: &mut [MaybeUninit<u8>], src: GuestRange<'_>) -> usize {
    let len = src.len().min(room.len());
    // SAFETY: `len` bytes are inside both. `room` is exclusively ours and not guest memory, so the
    // two do not overlap.
    unsafe { copy(room.as_mut_ptr().cast(), src.as_ptr(), len) };
    len
}

/// Copies `data` to `dst`, cut to the shorter of the two; how many bytes that was.
#[inline(always)]
pub(super) fn copy_out(dst: GuestRange<'_>, data: &[u8]) -> usize {
    let len = dst.len().min(data.len());
    // SAFETY: `len` bytes are inside both. `data` is packet memory that nobody writes during the
    // burst, so it is not guest memory that we write.
    unsafe { copy(dst.as_ptr(), data.as_ptr(), len) };
    len
}

/// Writes a header that asks for nothing, with `num_buffers`, in two stores; for a range of at
/// least 12 bytes.
#[inline(always)]
pub(super) fn write_plain_header_12(dst: GuestRange<'_>, num_buffers: u16) {
    if dst.len() < 12 {
        return;
    }
    let tail = u32::from(num_buffers) << 16;
    // SAFETY: 12 bytes are inside the range (above).
    unsafe { dst.as_ptr().cast::<u64>().write_unaligned(0) };
    // SAFETY: as above.
    let at = unsafe { dst.as_ptr().add(8) };
    // SAFETY: as above; 4 bytes are left.
    unsafe { at.cast::<u32>().write_unaligned(tail.to_le()) };
}

/// `len` bytes. Short copies in line, since a call costs more than they do; long ones by libc, which
/// knows the CPU.
///
/// # Safety
///
/// `len` bytes readable at `src` and writable at `dst`, not overlapping.
#[inline(always)]
unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    if len > 256 {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(src, dst, len) };
    } else if len >= 64 {
        let mut at = 0;
        // The last 64 bytes go by themselves and may overlap the turn before.
        while at < len - 64 {
            // SAFETY: `at + 64 < len`.
            unsafe { copy_block::<64>(dst, src, at) };
            at += 64;
        }
        // SAFETY: `len >= 64`.
        unsafe { copy_block::<64>(dst, src, len - 64) };
    } else if len >= 32 {
        // SAFETY: `len >= 32`.
        unsafe { copy_ends::<32>(dst, src, len) };
    } else if len >= 16 {
        // SAFETY: `len >= 16`.
        unsafe { copy_ends::<16>(dst, src, len) };
    } else if len >= 8 {
        // SAFETY: `len >= 8`.
        unsafe { copy_ends::<8>(dst, src, len) };
    } else {
        for at in 0..len {
            // SAFETY: `at < len`.
            unsafe { copy_block::<1>(dst, src, at) };
        }
    }
}

/// `N` bytes at offset `at`.
///
/// # Safety
///
/// `at + N` bytes readable at `src` and writable at `dst`.
#[inline(always)]
unsafe fn copy_block<const N: usize>(dst: *mut u8, src: *const u8, at: usize) {
    // SAFETY: inside the source (caller).
    let src = unsafe { src.add(at) };
    // SAFETY: as above.
    let block = unsafe { src.cast::<[u8; N]>().read_unaligned() };
    // SAFETY: inside the destination (caller).
    let dst = unsafe { dst.add(at) };
    // SAFETY: as above.
    unsafe { dst.cast::<[u8; N]>().write_unaligned(block) };
}

/// The first and the last `N` of `len` bytes, which are all when `N <= len <= 2 * N`.
///
/// # Safety
///
/// `len >= N` bytes readable at `src` and writable at `dst`.
#[inline(always)]
unsafe fn copy_ends<const N: usize>(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: `N <= len` (caller).
    unsafe { copy_block::<N>(dst, src, 0) };
    // SAFETY: as above.
    unsafe { copy_block::<N>(dst, src, len - N) };
}

/// Room for `N` items that costs nothing to make.
pub(super) struct Room<T, const N: usize>([MaybeUninit<T>; N]);

impl<T: Copy, const N: usize> Room<T, N> {
    /// Room with nothing in it.
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; N])
    }
}

/// A list in a [`Room`]: apart from it, so that its length stays in a register.
pub(super) struct Slots<'r, T> {
    items: &'r mut [MaybeUninit<T>],
    len: usize,
}

impl<'r, T: Copy> Slots<'r, T> {
    /// An empty list.
    #[inline(always)]
    pub(super) fn new<const N: usize>(room: &'r mut Room<T, N>) -> Self {
        Self {
            items: &mut room.0,
            len: 0,
        }
    }

    /// Appends `item`; nothing when the list is full.
    #[inline(always)]
    pub(super) fn push(&mut self, item: T) {
        if let Some(slot) = self.items.get_mut(self.len) {
            slot.write(item);
            self.len += 1;
        }
    }

    /// The items.
    #[inline(always)]
    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: the first `len` items were written by `push`, which never goes past the room.
        unsafe { std::slice::from_raw_parts(self.items.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_whole_and_nothing_beside_it() {
        let src: Vec<u8> = (0..=255).cycle().take(600).collect();
        for len in 0..600 {
            let mut dst = [0xa5; 700];
            // SAFETY: `len` is less than the length of both.
            unsafe { copy(dst[1..].as_mut_ptr(), src.as_ptr(), len) };
            assert_eq!(dst[0], 0xa5);
            assert_eq!(dst[1..=len], src[..len], "{len} bytes");
            assert!(
                dst[len + 1..].iter().all(|&byte| byte == 0xa5),
                "{len} bytes"
            );
        }
    }
}
