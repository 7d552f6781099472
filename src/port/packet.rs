//! DPDK's mbufs as the datapath sees packets.

use std::mem::MaybeUninit;

use super::checksum::{self, Request, Transport};
use super::large::{LONGEST, LargeBuffers};
use crate::datapath::{Packet, PacketPool, Prepared, Release};
use crate::dpdk::abi::rte_mbuf;
use crate::dpdk::eal::Lcore;
use crate::dpdk::mbuf::{self, Mbuf, RxFields, RxTemplate};
use crate::dpdk::mempool::{Mempool, MempoolCache};
use crate::dpdk::sys::{
    RTE_MBUF_F_EXTERNAL, RTE_MBUF_F_TX_IP_CKSUM, RTE_MBUF_F_TX_IPV6, RTE_MBUF_F_TX_L4_MASK,
    RTE_MBUF_F_TX_OUTER_IP_CKSUM, RTE_MBUF_F_TX_OUTER_UDP_CKSUM, RTE_MBUF_F_TX_TCP_CKSUM,
    RTE_MBUF_F_TX_TCP_SEG, RTE_MBUF_F_TX_TUNNEL_MASK, RTE_MBUF_F_TX_UDP_CKSUM,
    RTE_MBUF_F_TX_UDP_SEG, RTE_MBUF_F_TX_VLAN,
};

/// Bytes of a VLAN tag (IEEE 802.1Q).
const VLAN_LEN: u16 = 4;
/// The tag protocol identifier of a VLAN tag.
const VLAN_TPID: u16 = 0x8100;
/// Bytes of both addresses of an Ethernet header; the tag goes behind them.
const ADDRESSES_LEN: usize = 12;

/// Requests that are done here, in the packet.
const CHECKSUMS: u64 = RTE_MBUF_F_TX_L4_MASK | RTE_MBUF_F_TX_IP_CKSUM;
/// Requests that cannot be done without a guest that takes them.
const UNABLE: u64 = RTE_MBUF_F_TX_TCP_SEG
    | RTE_MBUF_F_TX_UDP_SEG
    | RTE_MBUF_F_TX_OUTER_IP_CKSUM
    | RTE_MBUF_F_TX_OUTER_UDP_CKSUM;
/// Requests that the short body leaves to [`Packet::prepare`].
const REQUESTS: u64 = RTE_MBUF_F_TX_VLAN | CHECKSUMS | UNABLE;

/// A place in a burst's array.
///
/// The array is the application's; what stands in a place before the burst fills it is anything. The
/// methods are called only on places that hold an mbuf which the driver has: the packets of a
/// transmit burst, and those places of a receive burst that [`RxPool::allocate`] filled.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Slot(*mut rte_mbuf);

impl Slot {
    /// The mbuf in this place.
    #[inline(always)]
    pub fn mbuf(self) -> Mbuf {
        // SAFETY: a place that holds an mbuf which the driver has (see the type).
        let mbuf = unsafe { Mbuf::from_ptr(self.0) };
        // SAFETY: as above, so not null.
        unsafe { mbuf.unwrap_unchecked() }
    }

    /// Bytes of one segment.
    #[inline(always)]
    fn bytes(&self, mbuf: Mbuf) -> &[u8] {
        // SAFETY: an mbuf has `data_len` bytes at its data; nobody writes them while the burst has
        // the packet, which is at least as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(mbuf.data(), usize::from(mbuf.data_len())) }
    }
}

impl Slot {
    /// Writes the checksums that the mbuf asks for, and takes the requests back. False when the
    /// headers are shared, not in the first segment, or not what the request says.
    fn complete_checksums(&mut self, mbuf: Mbuf) -> bool {
        let flags = mbuf.ol_flags();
        let transport = match flags & RTE_MBUF_F_TX_L4_MASK {
            0 => None,
            RTE_MBUF_F_TX_TCP_CKSUM => Some(Transport::Tcp),
            RTE_MBUF_F_TX_UDP_CKSUM => Some(Transport::Udp),
            _ => return false,
        };
        // In a tunnel these are the lengths of the inner headers, whose place depends on the kind.
        if flags & RTE_MBUF_F_TX_TUNNEL_MASK != 0 || !mbuf.is_exclusive() {
            return false;
        }
        let offload = mbuf.tx_offload();
        let request = Request {
            l2_len: usize::from(offload.l2_len()),
            l3_len: usize::from(offload.l3_len()),
            ipv6: flags & RTE_MBUF_F_TX_IPV6 != 0,
            header: flags & RTE_MBUF_F_TX_IP_CKSUM != 0,
            transport,
        };
        let len = usize::from(mbuf.data_len());
        // SAFETY: an mbuf has `data_len` bytes at its data, the driver has the packet, and no other
        // mbuf has this buffer (checked above).
        let first = unsafe { std::slice::from_raw_parts_mut(mbuf.data(), len) };
        let rest = mbuf.segments().skip(1).map(|segment| self.bytes(segment));
        if checksum::complete(first, rest, &request).is_none() {
            return false;
        }
        mbuf.set_ol_flags(mbuf.ol_flags() & !CHECKSUMS);
        true
    }
}

impl Packet for Slot {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.mbuf().pkt_len()
    }

    #[inline(always)]
    fn plain(&self) -> Option<&[u8]> {
        let mbuf = self.mbuf();
        let plain = mbuf.nb_segs() == 1 && mbuf.ol_flags() & REQUESTS == 0;
        plain.then(|| self.bytes(mbuf))
    }

    fn prepare(&mut self) -> Prepared {
        let mbuf = self.mbuf();
        let asked = mbuf.ol_flags();
        let able = asked & UNABLE == 0
            && (asked & CHECKSUMS == 0 || self.complete_checksums(mbuf))
            && (asked & RTE_MBUF_F_TX_VLAN == 0 || insert_vlan(mbuf));
        if able {
            Prepared::Ready
        } else {
            Prepared::Refused
        }
    }

    #[inline(always)]
    fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.mbuf().segments().map(|segment| self.bytes(segment))
    }
}

/// Puts the tag that the mbuf asks for into its header, and takes the request back. False when the
/// packet is shared, has no headroom, or has its header in pieces.
fn insert_vlan(mbuf: Mbuf) -> bool {
    if !mbuf.is_exclusive() || usize::from(mbuf.data_len()) < ADDRESSES_LEN {
        return false;
    }
    let Some(start) = mbuf.prepend(VLAN_LEN) else {
        return false;
    };
    let [t0, t1] = VLAN_TPID.to_be_bytes();
    let [v0, v1] = mbuf.vlan_tci().to_be_bytes();
    let behind = start.wrapping_add(usize::from(VLAN_LEN));
    // SAFETY: `prepend` made room for 4 bytes at `start`, 12 more follow in this segment, and the
    // buffer is ours alone; the two may overlap.
    unsafe { start.copy_from(behind, ADDRESSES_LEN) };
    let tag = start.wrapping_add(ADDRESSES_LEN).cast::<[u8; 4]>();
    // SAFETY: bytes 12 to 16 of at least 16.
    unsafe { tag.write([t0, t1, v0, v1]) };
    let offload = mbuf.tx_offload();
    let longer = |len: u16| len.saturating_add(VLAN_LEN);
    mbuf.set_tx_offload(if mbuf.ol_flags() & RTE_MBUF_F_TX_TUNNEL_MASK != 0 {
        offload.with_outer_l2_len(longer(offload.outer_l2_len()))
    } else {
        offload.with_l2_len(longer(offload.l2_len()))
    });
    mbuf.set_ol_flags(mbuf.ol_flags() & !RTE_MBUF_F_TX_VLAN);
    true
}

/// Where sent packets go back to: each mbuf to its own pool.
#[derive(Debug)]
pub struct TxRelease;

impl Release for TxRelease {
    type Packet = Slot;

    #[inline(always)]
    fn release(&mut self, packets: &[Slot]) {
        release(packets, None);
    }
}

#[inline(always)]
fn release(packets: &[Slot], lcore: Option<Lcore>) {
    if packets.is_empty() {
        return;
    }
    let lcore = lcore.unwrap_or_else(Lcore::current);
    // SAFETY: a `Slot` and an `Mbuf` are both one pointer, and each of these places holds an mbuf.
    let mbufs = unsafe { &*(std::ptr::from_ref(packets) as *const [Mbuf]) };
    // SAFETY: first segments of packets that the driver has and gives away here.
    unsafe { mbuf::free_bulk(mbufs, lcore) };
}

/// The pool of an rx queue, as the polling lcore uses it during one burst.
#[derive(Debug)]
pub struct RxPool {
    pool: Mempool,
    cache: Option<MempoolCache>,
    lcore: Lcore,
    template: RxTemplate,
    headroom: usize,
    room: usize,
    chains: bool,
    large: Option<LargeBuffers>,
}

/// What is the same for all mbufs that an rx queue takes from its pool.
#[derive(Clone, Copy, Debug)]
pub struct RxShape {
    /// First cache line of each.
    pub template: RxTemplate,
    /// Bytes before the data.
    pub headroom: u16,
    /// Bytes for data.
    pub room: u16,
    /// Frames may be chains of mbufs.
    pub chains: bool,
    /// Buffers for frames that do not fit one mbuf. Only for pools without pinned buffers.
    pub large: Option<LargeBuffers>,
}

impl RxPool {
    /// The pool for one burst on the calling lcore.
    #[inline(always)]
    pub fn new(pool: Mempool, shape: RxShape) -> Self {
        let lcore = Lcore::current();
        Self {
            pool,
            cache: pool.cache(lcore),
            lcore,
            template: shape.template,
            headroom: usize::from(shape.headroom),
            room: usize::from(shape.room),
            chains: shape.chains,
            large: shape.large,
        }
    }

    #[inline(always)]
    fn init(&self, mbuf: Mbuf, len: u32, ol_flags: u64) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a segment has at most the 16-bit `room`, or `LONGEST`"
        )]
        let data_len = len as u16;
        mbuf.init_rx(
            self.template,
            RxFields {
                pkt_len: len,
                data_len,
                ol_flags,
                ..RxFields::default()
            },
        );
    }
}

impl Release for RxPool {
    type Packet = Slot;

    #[inline(always)]
    fn release(&mut self, packets: &[Slot]) {
        release(packets, Some(self.lcore));
    }
}

impl PacketPool for RxPool {
    #[inline(always)]
    fn room(&self) -> usize {
        self.room
    }

    #[inline(always)]
    fn chains(&self) -> bool {
        self.chains
    }

    #[inline(always)]
    fn allocate(&mut self, out: &mut [Slot]) -> bool {
        // SAFETY: both are one pointer. The pool writes the places or, on failure, leaves them as
        // they were, which is anything, as a `Slot` may be.
        let mbufs = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<Mbuf>]) };
        // SAFETY: the queue's pool is a pktmbuf pool (ethdev checked that at queue setup), and the
        // cache is this lcore's.
        unsafe { mbuf::alloc_bulk(self.pool, self.cache, mbufs) }
    }

    #[inline(always)]
    fn space<'p>(&self, packet: &'p mut Slot) -> &'p mut [MaybeUninit<u8>] {
        let start = packet.mbuf().buf_addr().wrapping_add(self.headroom);
        // SAFETY: a fresh mbuf has `room` bytes behind its headroom, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.room) }
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Slot, len: u32) {
        self.init(packet.mbuf(), len, 0);
    }

    fn longest_segment(&self) -> usize {
        match self.large {
            Some(_) => self.room.max(LONGEST.into()),
            None => self.room,
        }
    }

    fn large<'p>(&mut self, packet: &'p mut Slot, len: usize) -> Option<&'p mut [MaybeUninit<u8>]> {
        let large = self.large.filter(|_| len <= usize::from(LONGEST))?;
        // SAFETY: the pool of a queue that this lcore polls, so it is not released.
        let start = unsafe { large.attach(packet.mbuf()) }?;
        // SAFETY: `LONGEST` bytes, which the fresh packet has alone.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), len) })
    }

    fn finish_large(&self, packet: &mut Slot, len: u32) {
        self.init(packet.mbuf(), len, RTE_MBUF_F_EXTERNAL);
    }

    fn append(&self, head: &mut Slot, last: &mut Slot, segment: Slot, len: u32) {
        self.init(segment.mbuf(), len, 0);
        let head = head.mbuf();
        last.mbuf().set_next(Some(segment.mbuf()));
        head.set_nb_segs(head.nb_segs().saturating_add(1));
        head.set_pkt_len(head.pkt_len().wrapping_add(len));
    }
}
