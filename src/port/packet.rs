//! DPDK's mbufs as the datapath sees packets.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::large::{LONGEST, LargeBuffers};
use super::shared::Shared;
use crate::datapath::{
    Asked, Checksum, Datagram, Headers, Ip, Little, Marks, Packet, PacketPool, Release, RxRules,
    Transport,
};
use crate::dpdk::abi::rte_mbuf;
use crate::dpdk::eal::Lcore;
use crate::dpdk::mbuf::{self, Mbuf, RxFields, RxTemplate, TxOffload};
use crate::dpdk::mempool::Mempool;
use crate::dpdk::sys::{
    RTE_MBUF_F_EXTERNAL, RTE_MBUF_F_RX_L4_CKSUM_BAD, RTE_MBUF_F_RX_L4_CKSUM_GOOD,
    RTE_MBUF_F_RX_L4_CKSUM_MASK, RTE_MBUF_F_RX_L4_CKSUM_NONE, RTE_MBUF_F_RX_LRO,
    RTE_MBUF_F_TX_IP_CKSUM, RTE_MBUF_F_TX_IPV4, RTE_MBUF_F_TX_IPV6, RTE_MBUF_F_TX_L4_MASK,
    RTE_MBUF_F_TX_OUTER_IP_CKSUM, RTE_MBUF_F_TX_OUTER_IPV4, RTE_MBUF_F_TX_OUTER_IPV6,
    RTE_MBUF_F_TX_OUTER_UDP_CKSUM, RTE_MBUF_F_TX_SCTP_CKSUM, RTE_MBUF_F_TX_TCP_CKSUM,
    RTE_MBUF_F_TX_TCP_SEG, RTE_MBUF_F_TX_TUNNEL_MASK, RTE_MBUF_F_TX_UDP_CKSUM,
    RTE_MBUF_F_TX_UDP_SEG, RTE_MBUF_F_TX_VLAN, RTE_PTYPE_L2_ETHER, RTE_PTYPE_L2_ETHER_VLAN,
    RTE_PTYPE_L3_IPV4, RTE_PTYPE_L3_IPV6, RTE_PTYPE_L4_TCP, RTE_PTYPE_L4_UDP,
};

/// Requests for a checksum of the transport, or for cutting.
const TRANSPORT: u64 = RTE_MBUF_F_TX_L4_MASK | RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_UDP_SEG;
/// All requests.
const REQUESTS: u64 = RTE_MBUF_F_TX_VLAN
    | RTE_MBUF_F_TX_IP_CKSUM
    | RTE_MBUF_F_TX_OUTER_IP_CKSUM
    | RTE_MBUF_F_TX_OUTER_UDP_CKSUM
    | TRANSPORT;
/// Marks by the port that received the packet. "No checksum" is two bits, of which "bad" is one.
const MARKS: u64 = RTE_MBUF_F_RX_LRO | RTE_MBUF_F_RX_L4_CKSUM_BAD;
/// A packet with any of these is not for the short body.
const ASKING: u64 = REQUESTS | MARKS;
/// The headers that the lengths in the mbuf speak of are inside others.
const TUNNEL: u64 = RTE_MBUF_F_TX_TUNNEL_MASK | RTE_MBUF_F_TX_OUTER_IPV4 | RTE_MBUF_F_TX_OUTER_IPV6;

/// A packet with any of these asks for more than checksums and a tag, or may do so.
const MORE: u64 = RTE_MBUF_F_TX_TCP_SEG
    | RTE_MBUF_F_TX_UDP_SEG
    | RTE_MBUF_F_TX_OUTER_IP_CKSUM
    | RTE_MBUF_F_TX_OUTER_UDP_CKSUM
    | RTE_MBUF_F_RX_LRO
    | TUNNEL;

/// Of a packet with `RX_LRO` or `TX_UDP_SEG`: it stands for datagrams (USO), not for fragments of one
/// (UFO). mbuf has no such flag, so it is a dynamic one; 0 until a port needs it.
static DATAGRAMS: AtomicU64 = AtomicU64::new(0);
/// The name by which applications find it.
const DATAGRAMS_NAME: &CStr = c"net_vhost_uso";

/// Whether packets can say that they stand for datagrams; from the first time on, they do.
pub(super) fn can_tell_datagrams() -> bool {
    if DATAGRAMS.load(Ordering::Relaxed) == 0 {
        let flag = mbuf::dynamic_flag(DATAGRAMS_NAME).unwrap_or_default();
        DATAGRAMS.store(flag, Ordering::Relaxed);
    }
    DATAGRAMS.load(Ordering::Relaxed) != 0
}

/// The flag for what a large frame of UDP stands for.
fn flag_of(datagram: Datagram) -> u64 {
    match datagram {
        Datagram::Many => DATAGRAMS.load(Ordering::Relaxed),
        Datagram::One | Datagram::Unknown => 0,
    }
}

/// A place in a burst's array.
///
/// The array is the application's; what stands in a place before the burst fills it is anything. The
/// methods are called only on places that hold an mbuf which the driver has: the packets of a
/// transmit burst, and those places of a receive burst that [`RxPool::allocate`] filled.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Slot(*mut rte_mbuf);

// SAFETY: a pointer. Whoever has a packet may use it in any thread (rte_mbuf.h).
unsafe impl Send for Slot {}

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

impl Packet for Slot {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.mbuf().pkt_len()
    }

    #[inline(always)]
    fn plain(&self) -> Option<&[u8]> {
        let mbuf = self.mbuf();
        let plain = mbuf.nb_segs() == 1 && mbuf.ol_flags() & ASKING == 0;
        plain.then(|| self.bytes(mbuf))
    }

    #[inline(always)]
    fn whole(&self) -> Option<&[u8]> {
        let mbuf = self.mbuf();
        (mbuf.nb_segs() == 1).then(|| self.bytes(mbuf))
    }

    #[inline(always)]
    fn asked(&self) -> Option<Asked> {
        let mbuf = self.mbuf();
        let asks = mbuf.ol_flags() & ASKING != 0;
        asks.then(|| asked(mbuf))
    }

    #[inline(always)]
    fn little(&self) -> Option<Little> {
        let mbuf = self.mbuf();
        let flags = mbuf.ol_flags();
        let has = |flag: u64| flags & flag != 0;
        if has(MORE) {
            return None;
        }
        let l4 = flags & RTE_MBUF_F_TX_L4_MASK;
        let transport = if l4 == RTE_MBUF_F_TX_UDP_CKSUM {
            Some(Transport::Udp)
        } else if l4 == RTE_MBUF_F_TX_TCP_CKSUM {
            Some(Transport::Tcp)
        } else if l4 == 0 {
            None
        } else {
            return None;
        };
        if transport.is_some() && !has(RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IPV6) {
            return None;
        }
        let ip_checksum = has(RTE_MBUF_F_TX_IP_CKSUM);
        // Marks count where nothing is asked that contradicts.
        let missing = flags & RTE_MBUF_F_RX_L4_CKSUM_MASK == RTE_MBUF_F_RX_L4_CKSUM_NONE;
        let offload = mbuf.tx_offload();
        Some(Little {
            l2_len: offload.l2_len(),
            l3_len: offload.l3_len(),
            ip: if has(RTE_MBUF_F_TX_IPV6) {
                Ip::V6
            } else {
                Ip::V4
            },
            ip_checksum,
            transport,
            marked: missing && transport.is_none() && !ip_checksum,
            tag: has(RTE_MBUF_F_TX_VLAN).then(|| mbuf.vlan_tci()),
        })
    }

    #[inline(always)]
    fn is_only_marked(&self) -> bool {
        const ALL: u64 = MORE | REQUESTS | RTE_MBUF_F_RX_L4_CKSUM_MASK;
        self.mbuf().ol_flags() & ALL == RTE_MBUF_F_RX_L4_CKSUM_NONE
    }

    #[inline(always)]
    fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.mbuf().segments().map(|segment| self.bytes(segment))
    }
}

/// What an mbuf asks for, or is marked with where it asks for nothing that contradicts.
#[inline(never)]
fn asked(mbuf: Mbuf) -> Asked {
    let flags = mbuf.ol_flags();
    let offload = mbuf.tx_offload();
    let has = |flag: u64| flags & flag != 0;
    let outer_len = offload
        .outer_l2_len()
        .saturating_add(offload.outer_l3_len());
    let tunnel = has(TUNNEL);
    let datagrams = DATAGRAMS.load(Ordering::Relaxed);
    let mut asked = Asked {
        vlan: has(RTE_MBUF_F_TX_VLAN).then(|| mbuf.vlan_tci()),
        tunnel,
        outer_ip: (flags & RTE_MBUF_F_TX_OUTER_IP_CKSUM != 0)
            .then(|| (offload.outer_l2_len(), offload.outer_l3_len())),
        unable: has(RTE_MBUF_F_TX_OUTER_UDP_CKSUM),
        ..Asked::default()
    };
    if !has(TRANSPORT | RTE_MBUF_F_TX_IP_CKSUM) {
        let missing = flags & RTE_MBUF_F_RX_L4_CKSUM_MASK == RTE_MBUF_F_RX_L4_CKSUM_NONE;
        asked.received_partial = missing;
        if has(RTE_MBUF_F_RX_LRO) {
            asked.received_segment_size = offload.tso_segsz();
            // The ports of this driver mark the others.
            asked.datagram = if has(datagrams) {
                Datagram::Many
            } else {
                Datagram::One
            };
        }
        return asked;
    }
    asked.l2_len = offload
        .l2_len()
        .saturating_add(if tunnel { outer_len } else { 0 });
    asked.l3_len = offload.l3_len();
    asked.l4_len = offload.l4_len();
    asked.ip = if has(RTE_MBUF_F_TX_IPV6) {
        Some(Ip::V6)
    } else if has(RTE_MBUF_F_TX_IPV4) {
        Some(Ip::V4)
    } else {
        None
    };
    asked.ip_checksum = has(RTE_MBUF_F_TX_IP_CKSUM);
    let segment_size = Some(offload.tso_segsz());
    (asked.transport, asked.segment_size) = if has(RTE_MBUF_F_TX_TCP_SEG) {
        (Some(Transport::Tcp), segment_size)
    } else if has(RTE_MBUF_F_TX_UDP_SEG) {
        if has(datagrams) {
            asked.datagram = Datagram::Many;
        }
        (Some(Transport::Udp), segment_size)
    } else {
        let transport = match flags & RTE_MBUF_F_TX_L4_MASK {
            RTE_MBUF_F_TX_TCP_CKSUM => Some(Transport::Tcp),
            RTE_MBUF_F_TX_UDP_CKSUM => Some(Transport::Udp),
            RTE_MBUF_F_TX_SCTP_CKSUM => Some(Transport::Sctp),
            _ => None,
        };
        (transport, None)
    };
    asked
}

/// The requests that say `asked`, for whoever sends the packet on.
fn request(mbuf: Mbuf, asked: Asked) {
    let mut flags = match asked.ip {
        Some(Ip::V4) => RTE_MBUF_F_TX_IPV4,
        Some(Ip::V6) => RTE_MBUF_F_TX_IPV6,
        None => 0,
    };
    flags |= match (asked.transport, asked.segment_size) {
        (None, _) => 0,
        (Some(Transport::Tcp), None) => RTE_MBUF_F_TX_TCP_CKSUM,
        (Some(Transport::Udp), None) => RTE_MBUF_F_TX_UDP_CKSUM,
        (Some(Transport::Sctp), _) => RTE_MBUF_F_TX_SCTP_CKSUM,
        (Some(Transport::Tcp), Some(_)) => RTE_MBUF_F_TX_TCP_CKSUM | RTE_MBUF_F_TX_TCP_SEG,
        (Some(Transport::Udp), Some(_)) => RTE_MBUF_F_TX_UDP_CKSUM | RTE_MBUF_F_TX_UDP_SEG,
    };
    let offload = TxOffload::default()
        .with_l2_len(asked.l2_len)
        .with_l3_len(asked.l3_len)
        .with_l4_len(asked.l4_len)
        .with_tso_segsz(asked.segment_size.unwrap_or_default());
    mbuf.set_tx_offload(offload);
    mbuf.set_ol_flags(mbuf.ol_flags() | flags | flag_of(asked.datagram));
}

/// The packet type of a frame: TCP by what was found, anything else by DPDK's own parser, which
/// knows more kinds, and not the same ones in each line. The oldest one sees nothing behind UDP.
#[inline]
fn packet_type(mbuf: Mbuf, headers: &Headers) -> u32 {
    let l2 = match headers.l2_len {
        14 => RTE_PTYPE_L2_ETHER,
        18 => RTE_PTYPE_L2_ETHER_VLAN,
        _ => return mbuf.parsed_type(),
    };
    let l3 = match (headers.ip, headers.l3_len) {
        (Some(Ip::V4), 20) => RTE_PTYPE_L3_IPV4,
        (Some(Ip::V6), 40) => RTE_PTYPE_L3_IPV6,
        _ => return mbuf.parsed_type(),
    };
    match headers.transport {
        Some(Transport::Tcp) => l2 | l3 | RTE_PTYPE_L4_TCP,
        Some(Transport::Udp) if cfg!(dpdk_22_11) => l2 | l3 | RTE_PTYPE_L4_UDP,
        _ => mbuf.parsed_type(),
    }
}

/// Where sent packets go back to: each mbuf to its own pool.
#[derive(Debug)]
pub struct TxRelease;

impl Release for TxRelease {
    type Packet = Slot;

    #[inline(always)]
    fn release(&self, packets: &[Slot]) {
        release(packets);
    }
}

#[inline(always)]
fn release(packets: &[Slot]) {
    if packets.is_empty() {
        return;
    }
    // SAFETY: a `Slot` and an `Mbuf` are both one pointer, and each of these places holds an mbuf.
    let mbufs = unsafe { &*(std::ptr::from_ref(packets) as *const [Mbuf]) };
    // SAFETY: first segments of packets that the driver has and gives away here.
    unsafe { mbuf::free_bulk(mbufs, Lcore::current()) };
}

/// The pool of an rx queue. Nothing in it changes, so a burst may keep it in registers.
#[derive(Debug)]
pub struct RxPool {
    pub(super) pool: Mempool,
    pub(super) shape: RxShape,
    /// The port's data, which says how marks are wanted.
    pub(super) shared: NonNull<Shared>,
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
    #[inline(always)]
    fn init(&self, mbuf: Mbuf, len: u32, ol_flags: u64) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a segment has at most the 16-bit `room`, or `LONGEST`"
        )]
        let data_len = len as u16;
        mbuf.init_rx(
            self.shape.template,
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
    fn release(&self, packets: &[Slot]) {
        release(packets);
    }
}

impl PacketPool for RxPool {
    #[inline(always)]
    fn room(&self) -> usize {
        self.shape.room.into()
    }

    #[inline(always)]
    fn chains(&self) -> bool {
        self.shape.chains
    }

    #[inline(always)]
    fn allocate(&self, out: &mut [Slot]) -> bool {
        // SAFETY: both are one pointer. The pool writes the places or, on failure, leaves them as
        // they were, which is anything, as a `Slot` may be.
        let mbufs = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<Mbuf>]) };
        // SAFETY: the queue's pool is a pktmbuf pool (ethdev checked that at queue setup), and the
        // cache is this lcore's.
        unsafe { mbuf::alloc_bulk(self.pool, self.pool.cache(Lcore::current()), mbufs) }
    }

    #[inline]
    fn one(&self) -> Option<Slot> {
        let mut place = Slot(std::ptr::null_mut());
        let filled = self.allocate(std::slice::from_mut(&mut place));
        filled.then_some(place)
    }

    #[inline(always)]
    fn space<'p>(&self, packet: &'p mut Slot) -> &'p mut [MaybeUninit<u8>] {
        let start = packet
            .mbuf()
            .buf_addr()
            .wrapping_add(self.shape.headroom.into());
        // SAFETY: a fresh mbuf has `room` bytes behind its headroom, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.room()) }
    }

    #[inline(always)]
    fn finish(&self, packet: &mut Slot, len: u32) {
        self.init(packet.mbuf(), len, 0);
    }

    fn longest_segment(&self) -> usize {
        match self.shape.large {
            Some(_) => self.room().max(LONGEST.into()),
            None => self.room(),
        }
    }

    fn large<'p>(&self, packet: &'p mut Slot, len: usize) -> Option<&'p mut [MaybeUninit<u8>]> {
        let large = self.shape.large.filter(|_| len <= usize::from(LONGEST))?;
        // SAFETY: the pool of a queue that this lcore polls, so it is not released.
        let start = unsafe { large.attach(packet.mbuf()) }?;
        // SAFETY: `LONGEST` bytes, which the fresh packet has alone.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), len) })
    }

    fn finish_large(&self, packet: &mut Slot, len: u32) {
        self.init(packet.mbuf(), len, RTE_MBUF_F_EXTERNAL);
    }

    #[inline]
    fn append(&self, head: &mut Slot, last: &mut Slot, segment: Slot, len: u32) {
        self.init(segment.mbuf(), len, 0);
        let head = head.mbuf();
        last.mbuf().set_next(Some(segment.mbuf()));
        head.set_nb_segs(head.nb_segs().saturating_add(1));
        head.set_pkt_len(head.pkt_len().wrapping_add(len));
    }

    #[inline(always)]
    fn finish_all(&self, segments: &mut [Slot], len: u32) {
        let Some((head, others)) = segments.split_first() else {
            return;
        };
        let head = head.mbuf();
        let room = u32::from(self.shape.room);
        let mut last = head;
        let mut left = len;
        for segment in others {
            self.init(last, room, 0);
            left = left.wrapping_sub(room);
            last.set_next(Some(segment.mbuf()));
            last = segment.mbuf();
        }
        self.init(last, left, 0);
        if !others.is_empty() {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "bounded by a frame's length"
            )]
            head.set_nb_segs(segments.len() as u16);
            head.set_pkt_len(len);
        }
    }

    #[inline(always)]
    fn rules(&self) -> RxRules {
        // SAFETY: part of the port, which frees its queues before itself (`close`).
        unsafe { self.shared.as_ref() }.rx_rules()
    }

    #[inline]
    fn store(&self, packet: &mut Slot, at: usize, value: [u8; 2]) -> bool {
        let mbuf = packet.mbuf();
        if at + value.len() > usize::from(mbuf.data_len()) {
            return store(packet, at, value);
        }
        let to = mbuf.data().wrapping_add(at).cast::<[u8; 2]>();
        // SAFETY: inside the segment's data (above), and the packet was just received, so nobody else
        // has it.
        unsafe { to.write(value) };
        true
    }

    #[inline]
    fn mark(&self, packet: &mut Slot, marks: Marks) {
        mark(*packet, marks);
    }

    fn ask(&self, packet: &mut Slot, asked: Asked) {
        request(packet.mbuf(), asked);
    }
}

/// Writes `value` at offset `at` of a packet that was just received, across segments.
#[cold]
fn store(packet: &Slot, at: usize, value: [u8; 2]) -> bool {
    let mut left = value.as_slice();
    let mut begin = 0;
    for segment in packet.mbuf().segments() {
        let len = usize::from(segment.data_len());
        while let [byte, rest @ ..] = left {
            // The place of the next byte in this segment.
            let place = at + (value.len() - left.len()) - begin;
            if place >= len {
                break;
            }
            let to = segment.data().wrapping_add(place);
            // SAFETY: `place` is inside the segment's data, and the packet was just received, so
            // nobody else has it.
            unsafe { to.write(*byte) };
            left = rest;
        }
        begin += len;
    }
    left.is_empty()
}

#[inline]
fn mark(packet: Slot, marks: Marks) {
    let mbuf = packet.mbuf();
    let mut flags = match marks.checksum {
        Checksum::Unknown => 0,
        Checksum::Missing => RTE_MBUF_F_RX_L4_CKSUM_NONE,
        Checksum::Good => RTE_MBUF_F_RX_L4_CKSUM_GOOD,
    };
    if marks.segment_size != 0 {
        flags |= RTE_MBUF_F_RX_LRO | flag_of(marks.datagram);
        mbuf.set_tx_offload(TxOffload::default().with_tso_segsz(marks.segment_size));
    }
    mbuf.set_ol_flags(mbuf.ol_flags() | flags);
    mbuf.set_packet_type(packet_type(mbuf, &marks.headers));
}

#[cfg(test)]
mod tests;
