//! Bytes in and out of guest memory.
//!
//! The peer may write what is read here, or read what is written: a packet that changes while it is
//! copied is that peer's loss. No reference to guest memory is made.

use std::mem::MaybeUninit;

use crate::memory::GuestRange;

/// Copies `src` into `room`, cut to the shorter of the two; what is in `room` then.
#[inline(always)]
pub(super) fn copy_in<'r>(room: &'r mut [MaybeUninit<u8>], src: GuestRange<'_>) -> &'r [u8] {
    copy_whole(room, src.first(room.len()))
}

/// Copies `src` into `room`; what is in `room` then, which is nothing when `src` does not fit.
#[inline(always)]
pub(super) fn copy_whole<'r>(room: &'r mut [MaybeUninit<u8>], src: GuestRange<'_>) -> &'r [u8] {
    let len = src.len();
    if len > room.len() {
        return &[];
    }
    let start = room.as_mut_ptr().cast::<u8>();
    // SAFETY: `len` bytes are inside both. `room` is exclusively ours and not guest memory, so the
    // two do not overlap.
    unsafe { copy(start, src.as_ptr(), len) };
    // SAFETY: just written, and borrowed from `room`.
    unsafe { std::slice::from_raw_parts(start, len) }
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

/// As [`copy_in`], for room that holds something.
#[inline(always)]
pub(super) fn copy_piece(room: &mut [u8], src: GuestRange<'_>) -> usize {
    let len = src.len().min(room.len());
    // SAFETY: as in `copy_in`.
    unsafe { copy(room.as_mut_ptr(), src.as_ptr(), len) };
    len
}

/// The first 10 bytes of a range that has at least as many, each read once.
#[inline(always)]
pub(super) fn read_header(src: GuestRange<'_>) -> [u8; 10] {
    /// A number at any address.
    #[derive(Clone, Copy)]
    #[repr(C, packed)]
    struct Unaligned<T>(T);
    if src.len() < 10 {
        return [0; 10];
    }
    let at = src.as_ptr();
    // SAFETY: 10 bytes are inside the range (above). Volatile: what is checked later must be what
    // was read here, and the driver may write at any time.
    let first = unsafe { at.cast::<Unaligned<u64>>().read_volatile() }.0;
    // SAFETY: as above.
    let at = unsafe { at.add(8) };
    // SAFETY: as above; 2 bytes are left.
    let second = unsafe { at.cast::<Unaligned<u16>>().read_volatile() }.0;
    let mut bytes = [0; 10];
    let (low, high) = bytes.split_at_mut(8);
    low.copy_from_slice(&first.to_ne_bytes());
    high.copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// Writes a header of `HEADER` bytes that asks for nothing, for a packet in one buffer, and `data`
/// behind it; nothing when both are not as long as `dst`.
#[inline(always)]
pub(super) fn copy_behind_header<const HEADER: usize>(dst: GuestRange<'_>, data: &[u8]) {
    const { assert!(HEADER == 10 || HEADER == 12) };
    if dst.len() != HEADER + data.len() {
        return;
    }
    let start = dst.as_ptr();
    // SAFETY: the header is inside the range (above).
    unsafe { start.cast::<u64>().write_unaligned(0) };
    // SAFETY: as above.
    let tail = unsafe { start.add(8) };
    if HEADER == 12 {
        let num_buffers = 1_u32 << 16;
        // SAFETY: as above; 4 bytes are left of it.
        unsafe { tail.cast::<u32>().write_unaligned(num_buffers.to_le()) };
    } else {
        // SAFETY: as above; 2 bytes are left of it.
        unsafe { tail.cast::<u16>().write_unaligned(0) };
    }
    // SAFETY: inside the range.
    let behind = unsafe { start.add(HEADER) };
    // SAFETY: `data.len()` bytes of the range are left. `data` is packet memory that nobody writes
    // during the burst, so it is not guest memory that we write.
    unsafe { copy(behind, data.as_ptr(), data.len()) };
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
        unsafe { copy_long(dst, src, len) };
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

/// `len` bytes by libc. "Cold", so that what the loops around keep in registers is saved here and not
/// on the way of short copies.
///
/// # Safety
///
/// As for [`copy`].
#[cold]
#[inline(never)]
unsafe fn copy_long(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, len) };
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

    /// What `make` makes of each of `from` and its number, until it gives nothing or there is no
    /// more room.
    #[inline(always)]
    pub(super) fn fill<S>(
        &mut self,
        from: impl IntoIterator<Item = S>,
        mut make: impl FnMut(usize, S) -> Option<T>,
    ) -> &[T] {
        let mut len = 0;
        for (slot, from) in self.0.iter_mut().zip(from) {
            let Some(item) = make(len, from) else { break };
            slot.write(item);
            len += 1;
        }
        // SAFETY: the first `len` items were just written, and there is room for them.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) }
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
