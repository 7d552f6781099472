//! Bytes in and out of guest memory.
//!
//! The peer may write what is read here, or read what is written: a packet that changes while it is
//! copied is that peer's loss. No reference to guest memory is made.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::level::{Baseline, Level};
use super::{HEADER_12, header_len};
use crate::memory::{GuestRange, prefetch_for_write};

/// Copies `src` into `room`, cut to the shorter of the two; what is in `room` then.
#[inline(always)]
pub(super) fn copy_in<'r>(room: &'r mut [MaybeUninit<u8>], src: GuestRange<'_>) -> &'r [u8] {
    copy_whole::<Baseline>(room, src.first(room.len()))
}

/// Copies `src` into `room`; what is in `room` then, which is nothing when `src` does not fit.
#[inline(always)]
pub(super) fn copy_whole<'r, V: Level>(
    room: &'r mut [MaybeUninit<u8>],
    src: GuestRange<'_>,
) -> &'r [u8] {
    let len = src.len();
    if len > room.len() {
        return &[];
    }
    let start = room.as_mut_ptr().cast::<u8>();
    // SAFETY: `len` bytes are inside both. `room` is exclusively ours and not guest memory, so the
    // two do not overlap.
    unsafe { copy::<V, HOST>(start, src.as_ptr(), len) };
    // SAFETY: just written, and borrowed from `room`.
    unsafe { std::slice::from_raw_parts(start, len) }
}

/// Copies `data` to `dst`, cut to the shorter of the two; how many bytes that was.
#[inline(always)]
pub(super) fn copy_out(dst: GuestRange<'_>, data: &[u8]) -> usize {
    let len = dst.len().min(data.len());
    // SAFETY: `len` bytes are inside both. `data` is packet memory that nobody writes during the
    // burst, so it is not guest memory that we write.
    unsafe { copy::<Baseline, GUEST>(dst.as_ptr(), data.as_ptr(), len) };
    len
}

/// As [`copy_out`], for a body that is not compiled for the level. Only long pieces are worth a call.
#[inline(always)]
pub(super) fn copy_out_apart<V: Level>(dst: GuestRange<'_>, data: &[u8]) -> usize {
    let len = dst.len().min(data.len());
    if len <= 256 {
        return copy_out(dst, data);
    }
    // SAFETY: as in `copy_out`.
    unsafe { copy_apart::<V>(dst.as_ptr(), data.as_ptr(), len) };
    len
}

/// As [`copy_in`], for room that holds something.
#[inline(always)]
pub(super) fn copy_piece(room: &mut [u8], src: GuestRange<'_>) -> usize {
    let len = src.len().min(room.len());
    // SAFETY: as in `copy_in`.
    unsafe { copy::<Baseline, HOST>(room.as_mut_ptr(), src.as_ptr(), len) };
    len
}

/// A number at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// The first 10 bytes of a range that has at least as many, each read once.
#[inline(always)]
pub(super) fn read_header(src: GuestRange<'_>) -> [u8; 10] {
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

/// Room for the header of a driver with features `F` and a packet behind it, with the packet.
#[derive(Clone, Copy)]
pub(super) struct Matched<'m, 'p, const F: u32> {
    /// As long as both.
    buffer: GuestRange<'m>,
    data: *const u8,
    packet: PhantomData<&'p [u8]>,
}

impl<'m, 'p, const F: u32> Matched<'m, 'p, F> {
    /// Both; `None` when the buffer is not as long as they are.
    #[inline(always)]
    pub(super) fn new(buffer: GuestRange<'m>, data: &'p [u8]) -> Option<Self> {
        (buffer.len() == header_len(F) + data.len()).then_some(Self {
            buffer,
            data: data.as_ptr(),
            packet: PhantomData,
        })
    }

    /// The room.
    #[inline(always)]
    pub(super) fn buffer(&self) -> GuestRange<'m> {
        self.buffer
    }

    /// The packet.
    #[inline(always)]
    pub(super) fn data(&self) -> &'p [u8] {
        // SAFETY: the packet that `new` was given, which had so many bytes.
        unsafe { std::slice::from_raw_parts(self.data, self.buffer.len() - header_len(F)) }
    }

    /// Writes header and packet. `asks` is the first 10 bytes of the header, in words of 8 and 2.
    #[inline(always)]
    pub(super) fn put<V: Level>(&self, asks: (u64, u16)) {
        // SAFETY: the header is inside the range (`new`).
        unsafe { put_header::<F>(self.buffer.as_ptr(), asks) };
        self.put_data::<V>();
    }

    /// As [`put`](Self::put), for a packet with a tag between its addresses and the rest: `front` is
    /// where the header belongs and, behind it, the addresses and the tag, which end where the room
    /// has the addresses. Nothing is written when there are no addresses, or `front` is too short.
    #[inline(always)]
    pub(super) fn put_tagged<V: Level>(
        &self,
        asks: (u64, u16),
        front: GuestRange<'_>,
        tag: [u8; 4],
    ) {
        let header = header_len(F);
        let Some(&[a, b, c, d, e, f, g, h, ref last @ ..]) = self.data().first_chunk::<12>() else {
            return;
        };
        let [i, j, k, l] = *last;
        let [t0, t1, t2, t3] = tag;
        let words = [[a, b, c, d, e, f, g, h], [i, j, k, l, t0, t1, t2, t3]];
        if front.len() < header + size_of_val(&words) {
            return;
        }
        let start = front.as_ptr();
        // SAFETY: inside the range (above).
        unsafe { put_header::<F>(start, asks) };
        // The addresses go along, and what is written next is over them.
        self.put_data::<V>();
        // SAFETY: as above.
        let behind = unsafe { start.add(header) };
        // SAFETY: as above.
        unsafe { behind.cast::<[[u8; 8]; 2]>().write_unaligned(words) };
    }

    #[inline(always)]
    fn put_data<V: Level>(&self) {
        // SAFETY: inside the range (`new`).
        let behind = unsafe { self.buffer.as_ptr().add(header_len(F)) };
        // SAFETY: so many bytes of the range are left, and the packet has (`new`). It is memory that
        // nobody writes during the burst, so it is not guest memory that we write.
        unsafe { copy::<V, GUEST>(behind, self.data, self.buffer.len() - header_len(F)) };
    }
}

/// Writes a header; `asks` as for [`Matched::put`].
///
/// # Safety
///
/// So many bytes of guest memory are mapped at `start`.
#[inline(always)]
unsafe fn put_header<const F: u32>(start: *mut u8, asks: (u64, u16)) {
    // SAFETY: within the header (caller).
    unsafe { update(start.cast::<u64>(), asks.0.to_le()) };
    // SAFETY: as above.
    let tail = unsafe { start.add(8) };
    if F & HEADER_12 != 0 {
        let num_buffers = 1_u32 << 16;
        let tail_word = u32::from(asks.1) | num_buffers;
        // SAFETY: as above; 4 bytes are left of it.
        unsafe { update(tail.cast::<u32>(), tail_word.to_le()) };
    } else {
        // SAFETY: as above; 2 bytes are left of it.
        unsafe { update(tail.cast::<u16>(), asks.1.to_le()) };
    }
}

/// Writes a word of a header unless it is there. From buffer to buffer most headers are the same, and
/// where a header has a line of its own, as in a DPDK guest, both sides then keep that line. (A device
/// should not read what it is to write, VIRTIO 1.2, 2.7.5.1; nothing comes of this but a store or none.)
///
/// # Safety
///
/// `word` may be read and written, aligned or not.
#[inline(always)]
unsafe fn update<T: Copy + PartialEq>(word: *mut T, value: T) {
    // SAFETY: the caller's promise. Volatile: the driver may write at any time. If it does it now,
    // its header is what it made of it.
    let found = unsafe { word.cast::<Unaligned<T>>().read_volatile() };
    if { found.0 } != value {
        // SAFETY: the caller's promise.
        unsafe { word.write_unaligned(value) };
    }
}

/// Writes two bytes, `at` bytes into the range, if they are inside.
#[inline(always)]
pub(super) fn copy_pair(dst: GuestRange<'_>, at: usize, pair: [u8; 2]) {
    let dst = dst.after(at);
    if dst.len() < pair.len() {
        return;
    }
    // SAFETY: inside the range (above).
    unsafe { dst.as_ptr().cast::<[u8; 2]>().write_unaligned(pair) };
}

/// Where a copy goes: to packet memory, most of which this core had a moment ago.
const HOST: bool = false;
/// To guest memory, which the other side had last.
const GUEST: bool = true;

/// `len` bytes. Those that fit the level in line, since a call costs more than they do; others by libc,
/// which knows the CPU.
///
/// # Safety
///
/// `len` bytes readable at `src` and writable at `dst`, not overlapping.
#[inline(always)]
unsafe fn copy<V: Level, const TO: bool>(dst: *mut u8, src: *const u8, len: usize) {
    if len.wrapping_sub(64) <= 256 - 64 {
        // SAFETY: `len >= 64`, and the caller's promise.
        unsafe { copy_blocks(dst, src, len) };
    } else if len > 256 {
        if !V::WIDE || (TO == HOST && len > LONG) {
            // SAFETY: the caller's promise.
            unsafe { copy_long::<TO>(dst, src, len) };
        } else if TO == GUEST {
            // SAFETY: `len > AHEAD`, and the caller's promise.
            unsafe { copy_asking_ahead(dst, src, len) };
        } else {
            // SAFETY: `len >= 64`, and the caller's promise.
            unsafe { copy_blocks(dst, src, len) };
        }
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

/// `len` bytes, 64 at a time. The last 64 go by themselves and may overlap the turn before.
///
/// # Safety
///
/// As for [`copy`], and `len >= 64`.
#[inline(always)]
unsafe fn copy_blocks(dst: *mut u8, src: *const u8, len: usize) {
    let mut at = 0;
    while at < len - 64 {
        // SAFETY: `at + 64 < len`.
        unsafe { copy_block::<64>(dst, src, at) };
        at += 64;
    }
    // SAFETY: `len >= 64`.
    unsafe { copy_block::<64>(dst, src, len - 64) };
}

/// Of more bytes than these libc copies faster than a loop does.
const LONG: usize = 2048;
/// How far ahead of a copy its lines are asked for; more is slower, and less is, too.
const AHEAD: usize = 256;

/// As [`copy_blocks`], asking to own the lines in time: stores that miss wait for each other, and these
/// do not.
///
/// # Safety
///
/// As for [`copy`], and `len > AHEAD`.
#[inline(always)]
unsafe fn copy_asking_ahead(dst: *mut u8, src: *const u8, len: usize) {
    prefetch_all_for_write(dst, AHEAD);
    let mut at = 0;
    while at < len - AHEAD {
        prefetch_for_write(dst.wrapping_add(at + AHEAD));
        // SAFETY: `at + AHEAD < len`.
        unsafe { copy_block::<64>(dst, src, at) };
        at += 64;
    }
    // SAFETY: `at < len`.
    let src = unsafe { src.add(at) };
    // SAFETY: as above.
    let dst = unsafe { dst.add(at) };
    // SAFETY: so many are left, which is `AHEAD - 64` at least.
    unsafe { copy_blocks(dst, src, len - at) };
}

/// `len` bytes by libc. "Cold", so that what the loops around keep in registers is saved here and not
/// on the way of short copies.
///
/// # Safety
///
/// As for [`copy`].
#[cold]
#[inline(never)]
unsafe fn copy_long<const TO: bool>(dst: *mut u8, src: *const u8, len: usize) {
    if TO == GUEST {
        prefetch_all_for_write(dst, len);
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, len) };
}

/// `len` bytes to guest memory by the level's instructions. "Cold" as [`copy_long`].
///
/// # Safety
///
/// As for [`copy`].
#[cold]
#[inline(never)]
unsafe fn copy_apart<V: Level>(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    V::run(|| unsafe { copy::<V, GUEST>(dst, src, len) });
}

/// Asks to own all lines of `len` bytes.
#[inline(always)]
fn prefetch_all_for_write(dst: *mut u8, len: usize) {
    let mut at = 0;
    while at < len {
        prefetch_for_write(dst.wrapping_add(at));
        at += 64;
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
    // SAFETY: inside the destination (caller).
    let dst = unsafe { dst.add(at) };
    // SAFETY: as above, and the two do not overlap. Of a length that is known this is no call, and
    // unlike a value that is read and written it never goes over the stack.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, N) };
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

    /// Fills it from the start.
    #[inline(always)]
    pub(super) fn filling(&mut self) -> Filling<'_, T, N> {
        Filling {
            room: &mut self.0,
            len: 0,
        }
    }
}

/// A [`Room`] that is being filled. Apart from it, so that the number of items stays in a register.
pub(super) struct Filling<'r, T, const N: usize> {
    room: &'r mut [MaybeUninit<T>; N],
    len: usize,
}

impl<'r, T: Copy, const N: usize> Filling<'r, T, N> {
    /// Appends an item, which is lost when there is no more room.
    #[inline(always)]
    pub(super) fn push(&mut self, item: T) {
        if let Some(slot) = self.room.get_mut(self.len) {
            slot.write(item);
            self.len += 1;
        }
    }

    /// How many items there are.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All items.
    #[inline(always)]
    pub(super) fn done(self) -> &'r [T] {
        // SAFETY: `push` wrote the first `len` items, and there is room for them.
        unsafe { std::slice::from_raw_parts(self.room.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_length_of<V: Level, const TO: bool>(src: &[u8]) {
        for len in 0..=src.len() {
            let mut dst = vec![0xa5; src.len() + 2];
            let start = dst.as_mut_ptr().wrapping_add(1);
            // SAFETY: `len` bytes are inside both.
            unsafe { copy::<V, TO>(start, src.as_ptr(), len) };
            assert_eq!(dst[0], 0xa5);
            assert_eq!(dst[1..=len], src[..len], "{len} bytes");
            let behind = &dst[len + 1..];
            assert!(behind.iter().all(|&byte| byte == 0xa5), "{len} bytes");
        }
    }

    #[test]
    fn every_length_is_copied_whole_and_nothing_beside_it() {
        // Of each level at least one length by libc.
        let src: Vec<u8> = (0..=250).cycle().take(2200).collect();
        every_length_of::<Baseline, HOST>(&src);
        every_length_of::<Baseline, GUEST>(&src);
        #[cfg(target_arch = "x86_64")]
        {
            use super::super::level::Avx2;
            // What is copied in line is plain code, which runs on any CPU outside `Avx2::run`.
            every_length_of::<Avx2, HOST>(&src);
            every_length_of::<Avx2, GUEST>(&src);
        }
    }
}
