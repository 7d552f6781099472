//! Bursts, as the application's lcores call them.

use core::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;

use super::packet::{RxPool, Slot};
use super::queue::{CHECK_IP, Polling, RxQueue, SET_TYPE, STRIP_VLAN, TxQueue};
use super::rarp;
use super::stats::{VLAN_TAG, add};
use crate::datapath::{Packet, PacketPool, Tally, ip_checksum_is_right};
use crate::dpdk::abi::rte_mbuf;
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::sys::{
    RTE_MBUF_F_RX_IP_CKSUM_BAD, RTE_MBUF_F_RX_IP_CKSUM_GOOD, RTE_MBUF_F_RX_VLAN,
    RTE_MBUF_F_RX_VLAN_STRIPPED, RTE_PTYPE_L2_MASK, RTE_PTYPE_L3_MASK, RTE_PTYPE_L4_MASK,
};
use crate::guard;

/// `rx_pkt_burst`: a closed gate is an empty burst.
///
/// # Safety
///
/// ethdev's contract: `queue` is a queue of the port that is set up, one lcore at a time polls it,
/// and `packets` has `count` places.
pub(super) unsafe extern "C" fn rx_burst(
    queue: *mut c_void,
    packets: *mut *mut rte_mbuf,
    count: u16,
) -> u16 {
    // SAFETY: a queue that is set up (caller).
    let Some(queue) = (unsafe { RxQueue::from_ptr(queue) }) else {
        return 0;
    };
    // SAFETY: one lcore at a time (caller).
    let Some(mut polling) = (unsafe { queue.begin() }) else {
        return 0;
    };
    // Loads and compares, which cannot panic.
    if queue.is_idle(&mut polling) {
        polling.leave();
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { receive(queue, polling, packets, count) }
}

/// The rest of [`rx_burst`], apart so that an empty poll has no registers to save.
///
/// # Safety
///
/// As for [`rx_burst`].
#[inline(never)]
unsafe fn receive(
    queue: &RxQueue,
    polling: Polling<'_>,
    packets: *mut *mut rte_mbuf,
    count: u16,
) -> u16 {
    // There may be no array then, and a slice is not null.
    if count == 0 {
        polling.leave();
        return 0;
    }
    guard::catch(0, move || {
        // SAFETY: an array of `count` places (caller); a `Slot` may hold anything.
        let out = unsafe { std::slice::from_raw_parts_mut(packets.cast::<Slot>(), count.into()) };
        let received = queue.go_on(polling, out);
        let chores = queue.chores();
        if chores != 0 {
            do_chores(queue, chores, out.get(..received).unwrap_or_default());
        }
        narrow(received)
    })
}

/// `tx_pkt_burst`: the packets that are taken are freed here.
///
/// # Safety
///
/// ethdev's contract: `queue` is a queue of the port that is set up, one lcore at a time sends on
/// it, and `packets` are `count` packets of the caller.
pub(super) unsafe extern "C" fn tx_burst(
    queue: *mut c_void,
    packets: *mut *mut rte_mbuf,
    count: u16,
) -> u16 {
    // See `receive`.
    if count == 0 {
        return 0;
    }
    guard::catch(0, || {
        // SAFETY: a queue that is set up (caller).
        let Some(queue) = (unsafe { TxQueue::from_ptr(queue) }) else {
            return 0;
        };
        // SAFETY: an array of `count` packets (caller).
        let packets = unsafe { std::slice::from_raw_parts(packets.cast::<Slot>(), count.into()) };
        // SAFETY: one lcore at a time (caller).
        narrow(unsafe { queue.send(packets) })
    })
}

/// The array of a call, for a slice, which must not be null. A call for nothing may have no array, and
/// looks after the engines all the same.
#[inline(always)]
fn array(packets: *mut *mut rte_mbuf, count: u16) -> *mut Slot {
    match count {
        0 => std::ptr::dangling_mut(),
        _ => packets.cast(),
    }
}

/// As [`rx_burst`], on a port with copy engines: looks after those of the tx queue of the same number
/// too, for an application that only receives for a while.
///
/// # Safety
///
/// As for [`rx_burst`].
pub(super) unsafe extern "C" fn rx_burst_offloaded(
    queue: *mut c_void,
    packets: *mut *mut rte_mbuf,
    count: u16,
) -> u16 {
    guard::catch(0, || {
        // SAFETY: a queue that is set up (caller).
        let Some(queue) = (unsafe { RxQueue::from_ptr(queue) }) else {
            return 0;
        };
        if let Some(lane) = queue.tx_lane()
            && lane.is_busy()
        {
            lane.reap(usize::MAX);
        }
        // SAFETY: an array of `count` places (caller); a `Slot` may hold anything.
        let out = unsafe { std::slice::from_raw_parts_mut(array(packets, count), count.into()) };
        // SAFETY: one lcore at a time (caller).
        let received = unsafe { queue.receive_offloaded(out) };
        let chores = queue.chores();
        if chores != 0 {
            do_chores(queue, chores, out.get(..received).unwrap_or_default());
        }
        narrow(received)
    })
}

/// As [`tx_burst`], on a port with copy engines: packets that are taken are freed here or, when an
/// engine has them, later.
///
/// # Safety
///
/// As for [`tx_burst`].
pub(super) unsafe extern "C" fn tx_burst_offloaded(
    queue: *mut c_void,
    packets: *mut *mut rte_mbuf,
    count: u16,
) -> u16 {
    guard::catch(0, || {
        // SAFETY: a queue that is set up (caller).
        let Some(queue) = (unsafe { TxQueue::from_ptr(queue) }) else {
            return 0;
        };
        // SAFETY: an array of `count` packets (caller).
        let packets = unsafe { std::slice::from_raw_parts(array(packets, count), count.into()) };
        // SAFETY: one lcore at a time (caller).
        narrow(unsafe { queue.send_offloaded(packets) })
    })
}

/// Bursts of a process that did not make the port: its gates are elsewhere.
///
/// # Safety
///
/// None; the signature is ethdev's.
pub(super) unsafe extern "C" fn no_burst(_: *mut c_void, _: *mut *mut rte_mbuf, _: u16) -> u16 {
    0
}

/// What a burst moved, which is never more than what it was asked to.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "at most the 16-bit count of the call"
)]
fn narrow(moved: usize) -> u16 {
    moved as u16
}

/// Puts the RARP frame that waits into the first place of `out`; how many places that took. The
/// frame waits on when there is no place or no mbuf.
#[cold]
#[inline(never)]
pub(super) fn inject(queue: &RxQueue, pool: &RxPool, out: &mut [Slot]) -> usize {
    let Some(place) = out.first_mut() else {
        return 0;
    };
    let Some(mac) = queue.shared().rarp.take() else {
        return 0;
    };
    if !pool.allocate(std::slice::from_mut(place)) {
        add(&queue.stats.counters.mbuf_alloc_failed, 1);
        queue.shared().rarp.put_back(mac);
        return 0;
    }
    let frame = rarp::frame(mac);
    for (to, from) in pool.space(place).iter_mut().zip(frame) {
        *to = MaybeUninit::new(from);
    }
    // Queue setup refuses pools whose mbufs have less room.
    pool.finish(place, rarp::FRAME_LEN);
    let mut tally = Tally::new(&queue.stats.counters);
    tally.add(rarp::FRAME_LEN, &frame);
    tally.flush();
    1
}

#[inline(never)]
fn do_chores(queue: &RxQueue, chores: u8, packets: &[Slot]) {
    if chores & CHECK_IP != 0 {
        check_ip(packets);
    }
    if chores & STRIP_VLAN != 0 {
        strip(queue, packets);
    }
    if chores & SET_TYPE != 0 {
        let layers = queue.shared().typed_layers.load(Ordering::Relaxed);
        set_type(layers, packets);
    }
}

/// Marks frames with what the checksum of their IPv4 header is.
fn check_ip(packets: &[Slot]) {
    for packet in packets {
        let start = packet.segments().next().unwrap_or_default();
        let mark = match ip_checksum_is_right(start) {
            None => continue,
            Some(true) => RTE_MBUF_F_RX_IP_CKSUM_GOOD,
            Some(false) => RTE_MBUF_F_RX_IP_CKSUM_BAD,
        };
        let mbuf = packet.mbuf();
        mbuf.set_ol_flags(mbuf.ol_flags() | mark);
    }
}

/// Sets the packet type of frames, as far as `layers` go.
fn set_type(layers: u32, packets: &[Slot]) {
    // The parser needs each layer below.
    let parsed = if layers & RTE_PTYPE_L4_MASK != 0 {
        RTE_PTYPE_L2_MASK | RTE_PTYPE_L3_MASK | RTE_PTYPE_L4_MASK
    } else {
        RTE_PTYPE_L2_MASK | RTE_PTYPE_L3_MASK
    };
    for packet in packets {
        let mbuf = packet.mbuf();
        mbuf.set_packet_type(mbuf.parsed_layers(parsed) & layers);
    }
}

/// Takes the outer VLAN tags off `packets`.
fn strip(queue: &RxQueue, packets: &[Slot]) {
    let stripped = packets
        .iter()
        .filter(|packet| strip_one(packet.mbuf()))
        .count();
    if stripped != 0 {
        add(&queue.stats.stripped_tags, stripped as u64);
    }
}

/// Bytes of both addresses of an Ethernet header; the tag stands behind them.
const ADDRESSES: usize = 12;
/// Shorter frames cannot have a tag and a type.
const LEAST_TAGGED: u16 = 18;
/// The tag protocol identifier of the only kind of tag that is stripped.
const TPID: [u8; 2] = [0x81, 0x00];

/// Takes the outer tag off one frame; whether there was one.
fn strip_one(mbuf: Mbuf) -> bool {
    if mbuf.data_len() < LEAST_TAGGED {
        return false;
    }
    let start = mbuf.data();
    let tag = start.wrapping_add(ADDRESSES).cast::<[u8; 4]>();
    // SAFETY: bytes 12 to 16 of a segment that has at least 18, of a frame just received.
    let [t0, t1, tag @ ..] = unsafe { tag.read() };
    if [t0, t1] != TPID || !mbuf.trim_front(VLAN_TAG) {
        return false;
    }
    // SAFETY: the addresses move by 4 within the first 16 bytes of the segment; they may overlap.
    unsafe { mbuf.data().copy_from(start, ADDRESSES) };
    mbuf.set_vlan_tci(u16::from_be_bytes(tag));
    mbuf.set_ol_flags(mbuf.ol_flags() | RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED);
    true
}
