//! Packet buffers: field access, and the rules of taking them from a pool and giving them back.

mod tx_offload;

use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::abi::rte_mbuf;
use super::eal::Lcore;
use super::mempool::{Mempool, MempoolCache, Object};
use super::sys::{
    RTE_MBUF_F_EXTERNAL, RTE_MBUF_F_INDIRECT, RTE_PKTMBUF_HEADROOM, RTE_PTYPE_ALL_MASK,
    rte_mbuf_dynflag, rte_mbuf_dynflag_register, rte_mbuf_ext_shared_info, rte_net_get_ptype,
    rte_pktmbuf_free_bulk,
};

pub use tx_offload::TxOffload;

/// One segment, the first of a packet or a later one.
///
/// Whoever makes a handle has the mbuf: it was allocated, or ethdev passed it to a burst. No handle
/// of it is used after it was freed or given to the application, so both of those are unsafe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mbuf(NonNull<rte_mbuf>);

/// Makes a getter and, where the driver writes the field, a setter.
macro_rules! fields {
    ($($(#[$doc:meta])* $field:ident: $type:ty $(, $setter:ident)?;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $field(self) -> $type {
                // SAFETY: a live mbuf (invariant of the handle).
                unsafe { (*self.as_ptr()).$field }
            }
            $(
                #[doc = concat!("Sets `", stringify!($field), "`.")]
                #[inline(always)]
                pub fn $setter(self, value: $type) {
                    // SAFETY: a live mbuf (invariant of the handle).
                    unsafe { (*self.as_ptr()).$field = value };
                }
            )?
        )*
    };
}

impl Mbuf {
    fields! {
        /// Where the data begins, from the buffer's start.
        data_off: u16, set_data_off;
        /// Segments of the packet; meaningful in the first one.
        nb_segs: u16, set_nb_segs;
        /// Port that received the packet.
        port: u16, set_port;
        /// `RTE_MBUF_F_*`: offload requests and results, and how the buffer is attached.
        ol_flags: u64, set_ol_flags;
        /// `RTE_PTYPE_*`.
        packet_type: u32, set_packet_type;
        /// Bytes of the whole packet; meaningful in the first segment.
        pkt_len: u32, set_pkt_len;
        /// Bytes in this segment.
        data_len: u16, set_data_len;
        /// VLAN tag, stripped or to be inserted.
        vlan_tci: u16, set_vlan_tci;
        /// Size of the buffer, headroom included.
        buf_len: u16;
        /// Buffer's address for devices.
        buf_iova: u64;
    }

    /// The mbuf behind a pointer from a burst's array.
    ///
    /// # Safety
    ///
    /// `mbuf` is one that the caller has, in the sense of [`Mbuf`].
    #[inline(always)]
    pub unsafe fn from_ptr(mbuf: *mut rte_mbuf) -> Option<Self> {
        NonNull::new(mbuf).map(Self)
    }

    /// The pointer that DPDK knows it by.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut rte_mbuf {
        self.0.as_ptr()
    }

    /// The pool it belongs to.
    #[inline(always)]
    pub fn pool(self) -> Option<Mempool> {
        // SAFETY: a live mbuf (invariant of the handle).
        let pool = unsafe { (*self.as_ptr()).pool };
        // SAFETY: a pool outlives its mbufs.
        unsafe { Mempool::from_ptr(pool) }
    }

    #[inline(always)]
    fn pool_ptr(self) -> *const c_void {
        // SAFETY: a live mbuf (invariant of the handle).
        unsafe { (*self.as_ptr()).pool }.cast()
    }

    /// The next segment of the packet.
    #[inline(always)]
    pub fn next(self) -> Option<Self> {
        // SAFETY: a live mbuf (invariant of the handle), and so are the segments behind it.
        NonNull::new(unsafe { (*self.as_ptr()).next }).map(Self)
    }

    /// Puts `next` behind this segment; the packet's length and count are the caller's part.
    #[inline(always)]
    pub fn set_next(self, next: Option<Self>) {
        let next = next.map_or(ptr::null_mut(), Self::as_ptr);
        // SAFETY: a live mbuf (invariant of the handle).
        unsafe { (*self.as_ptr()).next = next };
    }

    /// This segment and the ones behind it.
    #[inline(always)]
    pub fn segments(self) -> impl Iterator<Item = Self> {
        core::iter::successors(Some(self), |segment| segment.next())
    }

    /// Start of the buffer, headroom included.
    #[inline(always)]
    pub fn buf_addr(self) -> *mut u8 {
        // SAFETY: a live mbuf (invariant of the handle).
        unsafe { (*self.as_ptr()).buf_addr.cast() }
    }

    /// Start of the data.
    #[inline(always)]
    pub fn data(self) -> *mut u8 {
        self.buf_addr().wrapping_add(usize::from(self.data_off()))
    }

    /// Start of the data, for devices.
    #[inline(always)]
    pub fn data_iova(self) -> u64 {
        self.buf_iova().wrapping_add(u64::from(self.data_off()))
    }

    /// Free bytes behind the data.
    #[inline(always)]
    pub fn tailroom(self) -> u16 {
        self.buf_len()
            .saturating_sub(self.data_off())
            .saturating_sub(self.data_len())
    }

    /// Makes room before the data of a packet, `len` bytes; `None` when the headroom is too small.
    /// The bytes are as they were.
    pub fn prepend(self, len: u16) -> Option<*mut u8> {
        let data_off = self.data_off().checked_sub(len)?;
        let data_len = self.data_len().checked_add(len)?;
        self.set_data_off(data_off);
        self.set_data_len(data_len);
        self.set_pkt_len(self.pkt_len().wrapping_add(u32::from(len)));
        Some(self.data())
    }

    /// Drops `len` bytes at the start of a packet; false when its first segment is shorter.
    pub fn trim_front(self, len: u16) -> bool {
        let Some(data_len) = self.data_len().checked_sub(len) else {
            return false;
        };
        self.set_data_len(data_len);
        self.set_data_off(self.data_off().wrapping_add(len));
        self.set_pkt_len(self.pkt_len().wrapping_sub(u32::from(len)));
        true
    }

    #[inline(always)]
    fn refcnt_cell(&self) -> &AtomicU16 {
        // SAFETY: a live mbuf (invariant of the handle).
        let refcnt = unsafe { &raw mut (*self.as_ptr()).refcnt };
        // SAFETY: aligned, lives as long as the mbuf, and DPDK uses it atomically as well.
        unsafe { AtomicU16::from_ptr(refcnt) }
    }

    /// How many owners the segment has.
    #[inline(always)]
    pub fn refcnt(self) -> u16 {
        self.refcnt_cell().load(Ordering::Relaxed)
    }

    /// Adds an owner, who will free the segment as well.
    #[inline(always)]
    pub fn add_reference(self) {
        self.refcnt_cell().fetch_add(1, Ordering::AcqRel);
    }

    /// The buffer is the segment's own, not another mbuf's and not an external one.
    #[inline(always)]
    pub fn is_direct(self) -> bool {
        self.ol_flags() & (RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL) == 0
    }

    /// Whether the buffer may be written: nobody shares it.
    #[inline(always)]
    pub fn is_exclusive(self) -> bool {
        self.refcnt() == 1 && (self.is_direct() || self.has_external_alone())
    }

    /// The buffer is an external one, and no other segment has it.
    #[cold]
    fn has_external_alone(self) -> bool {
        if self.ol_flags() & RTE_MBUF_F_EXTERNAL == 0 {
            return false;
        }
        // SAFETY: a live mbuf (invariant of the handle).
        let Some(shared) = NonNull::new(unsafe { (*self.as_ptr()).shinfo }) else {
            return false;
        };
        // SAFETY: an external buffer has its count as long as a segment has the buffer.
        let refcnt = unsafe { &raw mut (*shared.as_ptr()).refcnt };
        // SAFETY: aligned, and DPDK uses it atomically as well.
        unsafe { AtomicU16::from_ptr(refcnt) }.load(Ordering::Relaxed) == 1
    }

    /// What a transmit offload is told about the headers.
    #[inline(always)]
    pub fn tx_offload(self) -> TxOffload {
        // SAFETY: a live mbuf (invariant of the handle).
        TxOffload(unsafe { (*self.as_ptr()).tx_offload })
    }

    /// Sets what a transmit offload is told about the headers.
    #[inline(always)]
    pub fn set_tx_offload(self, offload: TxOffload) {
        // SAFETY: a live mbuf (invariant of the handle).
        unsafe { (*self.as_ptr()).tx_offload = offload.0 };
    }

    /// Makes a fresh mbuf (see [`alloc_bulk`]) a packet of one segment, by two 16-byte stores to
    /// its first cache line. `tx_offload` in the second line keeps its old value, as with the
    /// vector functions of other drivers.
    #[inline(always)]
    pub fn init_rx(self, template: RxTemplate, fields: RxFields) {
        let line = self.as_ptr().cast::<[u64; 2]>();
        let rearm = [template.rearm, template.ol_flags | fields.ol_flags];
        let lengths = u64::from(fields.data_len) | u64::from(fields.vlan_tci) << 16;
        let descriptor = [
            u64::from(fields.packet_type) | u64::from(fields.pkt_len) << 32,
            lengths,
        ];
        // SAFETY: bytes 16..32 of a live mbuf: data_off, refcnt, nb_segs, port, ol_flags.
        unsafe { line.wrapping_add(1).write(rearm) };
        // SAFETY: bytes 32..48: packet_type, pkt_len, data_len, vlan_tci, half of the hash.
        unsafe { line.wrapping_add(2).write(descriptor) };
    }

    /// The type of the packet as DPDK's parser finds it.
    pub fn parsed_type(self) -> u32 {
        self.parsed_layers(RTE_PTYPE_ALL_MASK)
    }

    /// The same for some layers. The parser stops below the first layer that is not among them.
    pub fn parsed_layers(self, layers: u32) -> u32 {
        // SAFETY: a packet of live mbufs (invariant of the handle); without a place for lengths
        // only the type comes back.
        unsafe { rte_net_get_ptype(self.as_ptr(), ptr::null_mut(), layers) }
    }

    /// Gives the segment a buffer that is not the pool's. `shared.refcnt` counts the segments that
    /// use it; the last one to be freed calls `shared.free_cb`.
    ///
    /// # Safety
    ///
    /// A fresh mbuf. The buffer has `len` bytes at `buffer` (`iova` for devices), and it and
    /// `shared` stay until the callback ran.
    pub unsafe fn attach_external(
        self,
        buffer: *mut u8,
        iova: u64,
        len: u16,
        shared: *mut rte_mbuf_ext_shared_info,
    ) {
        // SAFETY: a live mbuf that nobody else uses (caller).
        let mbuf = unsafe { &mut *self.as_ptr() };
        mbuf.buf_addr = buffer.cast();
        mbuf.buf_iova = iova;
        mbuf.buf_len = len;
        mbuf.data_len = 0;
        mbuf.data_off = 0;
        mbuf.ol_flags |= RTE_MBUF_F_EXTERNAL;
        mbuf.shinfo = shared;
    }

    /// Frees the packet: this segment and the ones behind it, for this owner.
    ///
    /// # Safety
    ///
    /// The first segment of a packet, and the caller does not use it any more.
    pub unsafe fn free(self) {
        let mut first = self.as_ptr().cast();
        // SAFETY: an array of one packet that the caller gives away.
        unsafe { rte_pktmbuf_free_bulk(&raw mut first, 1) };
    }

    /// One segment in its own buffer with one owner, so that the pool can take it as it is. (For a
    /// first segment `nb_segs == 1` means that `next` is null.)
    #[inline(always)]
    fn is_plain(self) -> bool {
        const MASK: u64 = 0xffff_ffff << 16;
        const ONE_OWNER_ONE_SEGMENT: u64 = 1 << 16 | 1 << 32;
        // SAFETY: within a live mbuf (invariant of the handle).
        let rearm = unsafe { self.as_ptr().cast::<u64>().add(2) };
        // SAFETY: aligned to 8; another owner may count down `refcnt` meanwhile, so atomic.
        let rearm = unsafe { AtomicU64::from_ptr(rearm) }.load(Ordering::Relaxed);
        rearm & MASK == ONE_OWNER_ONE_SEGMENT && self.is_direct()
    }
}

/// The bit of `ol_flags` with this name, which any part of the application can look up; `None` when
/// all bits are taken, or the name is too long. Only in the primary process.
pub fn dynamic_flag(name: &CStr) -> Option<u64> {
    let mut params = rte_mbuf_dynflag {
        name: [0; 64],
        flags: 0,
    };
    let (_, room) = params.name.split_last_mut()?;
    if name.count_bytes() > room.len() {
        return None;
    }
    for (to, from) in room.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: a name that ends, and flags as they must be.
    let bit = unsafe { rte_mbuf_dynflag_register(&raw const params) };
    1_u64.checked_shl(u32::try_from(bit).ok()?)
}

/// Fills `mbufs` from a pool, all or none. They are as the pool keeps them: one owner, one segment,
/// no next; everything else has old values.
///
/// # Safety
///
/// A pktmbuf pool; `cache` is its cache of the calling lcore, or none.
#[inline(always)]
pub unsafe fn alloc_bulk(
    pool: Mempool,
    cache: Option<MempoolCache>,
    mbufs: &mut [MaybeUninit<Mbuf>],
) -> bool {
    let objects = ptr::from_mut(mbufs) as *mut [MaybeUninit<Object>];
    // SAFETY: same layout; the pool gives non-null pointers to mbufs (caller), and on failure
    // nothing counts as filled.
    pool.get_bulk(cache, unsafe { &mut *objects })
}

/// Frees packets. Runs of plain ones that share a pool go back in one go; the others take DPDK's
/// own, exact way.
///
/// # Safety
///
/// First segments of packets that the caller does not use any more; `lcore` is the calling thread.
#[inline(always)]
pub unsafe fn free_bulk(packets: &[Mbuf], lcore: Lcore) {
    let mut rest = packets;
    while let [first, ..] = rest {
        let (pool, pool_ptr) = (first.pool(), first.pool_ptr());
        let run = rest
            .iter()
            .take_while(|mbuf| mbuf.is_plain() && mbuf.pool_ptr() == pool_ptr)
            .count();
        let (plain, behind) = rest.split_at_checked(run).unwrap_or((&[], rest));
        if let (Some(pool), [_, ..]) = (pool, plain) {
            let objects = ptr::from_ref(plain) as *const [Object];
            // SAFETY: a handle is a pointer to the object, so the slices have one layout.
            let objects = unsafe { &*objects };
            // SAFETY: objects of this pool that nobody uses any more (caller).
            unsafe { pool.put_bulk(pool.cache(lcore), objects) };
            rest = behind;
        } else {
            // SAFETY: packets that nobody uses any more (caller).
            rest = unsafe { free_others(rest) };
        }
    }
}

/// Frees the first packet and those behind it that are not plain, DPDK's own way; what is left.
///
/// # Safety
///
/// As for [`free_bulk`].
#[inline(never)]
unsafe fn free_others(packets: &[Mbuf]) -> &[Mbuf] {
    let run = packets.iter().take_while(|mbuf| !mbuf.is_plain()).count();
    let (others, behind) = packets
        .split_at_checked(run.max(1))
        .unwrap_or((packets, &[]));
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a burst's count has 16 bits"
    )]
    let count = others.len() as u32;
    // SAFETY: packets that nobody uses any more (caller). A handle is a pointer, and the array is
    // only read.
    unsafe { rte_pktmbuf_free_bulk(others.as_ptr().cast_mut().cast(), count) };
    behind
}

/// What all packets that one rx queue receives have in common.
#[derive(Clone, Copy, Debug)]
pub struct RxTemplate {
    rearm: u64,
    ol_flags: u64,
}

impl RxTemplate {
    /// For mbufs of `pool` on `port`.
    ///
    /// # Safety
    ///
    /// A pktmbuf pool.
    pub unsafe fn new(pool: Mempool, port: u16) -> Self {
        // SAFETY: see above.
        let data_room = unsafe { pool.data_room() };
        // SAFETY: see above.
        let pinned = unsafe { pool.has_pinned_buffers() };
        let headroom = RTE_PKTMBUF_HEADROOM.min(data_room);
        Self {
            rearm: u64::from(headroom) | 1 << 16 | 1 << 32 | u64::from(port) << 48,
            // Pools of pinned external buffers keep the flag in each of their mbufs.
            ol_flags: if pinned { RTE_MBUF_F_EXTERNAL } else { 0 },
        }
    }
}

/// What differs from packet to packet on an rx queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct RxFields {
    /// `RTE_MBUF_F_RX_*`.
    pub ol_flags: u64,
    /// `RTE_PTYPE_*`.
    pub packet_type: u32,
    /// Bytes of the packet.
    pub pkt_len: u32,
    /// Bytes in this segment.
    pub data_len: u16,
    /// Stripped VLAN tag.
    pub vlan_tci: u16,
}

const _: () = assert!(size_of::<Mbuf>() == size_of::<*mut c_void>());

#[cfg(test)]
mod tests;
