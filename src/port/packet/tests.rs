//! mbufs on the heap: nothing here takes from a pool or gives back to one.
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use super::*;
use crate::testing::Build;

/// An mbuf with its buffer.
struct Packet0 {
    mbuf: Box<rte_mbuf>,
    _buffer: Box<[u8]>,
}

impl Packet0 {
    fn new(bytes: &[u8]) -> Self {
        let mut buffer: Box<[u8]> = [&[0; 128], bytes, &[0xee; 16]].concat().into();
        // SAFETY: integers and pointers, for which zero is a value.
        let mut mbuf: Box<rte_mbuf> = unsafe { Box::new_zeroed().assume_init() };
        mbuf.buf_addr = buffer.as_mut_ptr().cast();
        mbuf.buf_len = buffer.len() as u16;
        mbuf.data_off = 128;
        mbuf.data_len = bytes.len() as u16;
        mbuf.pkt_len = bytes.len() as u32;
        mbuf.nb_segs = 1;
        mbuf.refcnt = 1;
        Self {
            mbuf,
            _buffer: buffer,
        }
    }

    fn slot(&mut self) -> Slot {
        Slot(&raw mut *self.mbuf)
    }

    fn with(flags: u64, offload: TxOffload) -> Asked {
        let mut packet = Self::new(&[0; 100]);
        let slot = packet.slot();
        slot.mbuf().set_ol_flags(flags);
        slot.mbuf().set_tx_offload(offload);
        slot.mbuf().set_vlan_tci(7);
        assert_eq!(slot.plain().is_some(), slot.asked().is_none());
        slot.asked().unwrap_or_default()
    }
}

fn lengths() -> TxOffload {
    TxOffload::default()
        .with_l2_len(14)
        .with_l3_len(20)
        .with_l4_len(32)
}

#[test]
fn little_is_what_is_asked_when_that_is_little() {
    let transports = [
        0,
        RTE_MBUF_F_TX_UDP_CKSUM,
        RTE_MBUF_F_TX_TCP_CKSUM,
        RTE_MBUF_F_TX_SCTP_CKSUM,
        RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_TCP_CKSUM,
        RTE_MBUF_F_TX_UDP_SEG,
    ];
    let versions = [0, RTE_MBUF_F_TX_IPV4, RTE_MBUF_F_TX_IPV6];
    let others = [
        RTE_MBUF_F_TX_IP_CKSUM,
        RTE_MBUF_F_TX_VLAN,
        RTE_MBUF_F_RX_L4_CKSUM_NONE,
        RTE_MBUF_F_RX_L4_CKSUM_BAD,
        RTE_MBUF_F_RX_LRO,
        RTE_MBUF_F_TX_OUTER_UDP_CKSUM,
    ];
    let mut packet = Packet0::new(&[0; 100]);
    let slot = packet.slot();
    slot.mbuf().set_tx_offload(lengths());
    slot.mbuf().set_vlan_tci(7);
    for transport in transports {
        for version in versions {
            for chosen in 0..1_u32 << others.len() {
                let mut flags = transport | version;
                for (nth, other) in others.iter().enumerate() {
                    if chosen & 1 << nth != 0 {
                        flags |= other;
                    }
                }
                slot.mbuf().set_ol_flags(flags);
                let little = slot.little();
                let only_marked =
                    little.is_some_and(|little| little.marked && little.tag.is_none());
                assert_eq!(slot.is_only_marked(), only_marked, "{flags:x}");
                let Some(little) = little else {
                    continue;
                };
                // Lengths and version count only with a request.
                let asked = slot.asked().unwrap_or_default().little();
                let expected = asked.expect("as little, seen without its headers");
                if little.transport.is_none() && !little.ip_checksum {
                    assert_eq!((little.marked, little.tag), (expected.marked, expected.tag));
                    assert_eq!((expected.transport, expected.ip_checksum), (None, false));
                } else {
                    assert_eq!(little, expected, "{flags:x}");
                }
            }
        }
    }
    slot.mbuf()
        .set_ol_flags(RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM | RTE_MBUF_F_TX_UDP_CKSUM);
    assert!(slot.little().is_some());
}

#[test]
fn requests_come_out_of_the_flags() {
    let plain = Asked {
        l2_len: 14,
        l3_len: 20,
        l4_len: 32,
        ..Asked::default()
    };
    let large = lengths().with_tso_segsz(1448);
    for (flags, offload, expected) in [
        (
            RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM | RTE_MBUF_F_TX_UDP_CKSUM,
            lengths(),
            Asked {
                ip: Some(Ip::V4),
                ip_checksum: true,
                transport: Some(Transport::Udp),
                ..plain
            },
        ),
        (
            RTE_MBUF_F_TX_IPV6 | RTE_MBUF_F_TX_SCTP_CKSUM,
            lengths(),
            Asked {
                ip: Some(Ip::V6),
                transport: Some(Transport::Sctp),
                ..plain
            },
        ),
        (
            RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_VLAN,
            large,
            Asked {
                vlan: Some(7),
                transport: Some(Transport::Tcp),
                segment_size: Some(1448),
                ..plain
            },
        ),
        (
            RTE_MBUF_F_TX_UDP_SEG | RTE_MBUF_F_TX_UDP_CKSUM,
            large,
            Asked {
                transport: Some(Transport::Udp),
                segment_size: Some(1448),
                ..plain
            },
        ),
        (
            RTE_MBUF_F_TX_TCP_CKSUM | RTE_MBUF_F_TX_OUTER_IPV4,
            lengths().with_outer_l2_len(18),
            Asked {
                l2_len: 32,
                tunnel: true,
                transport: Some(Transport::Tcp),
                ..plain
            },
        ),
    ] {
        assert_eq!(Packet0::with(flags, offload), expected, "{flags:#x}");
    }
    assert!(Packet0::with(RTE_MBUF_F_TX_OUTER_UDP_CKSUM, lengths()).unable);
    // Says what the packet is, and asks for nothing.
    assert_eq!(
        Packet0::with(RTE_MBUF_F_TX_IPV4, lengths()),
        Asked::default()
    );
}

#[test]
fn marks_count_where_nothing_is_requested() {
    let large = TxOffload::default().with_tso_segsz(1448);
    let lro = Packet0::with(RTE_MBUF_F_RX_LRO | RTE_MBUF_F_RX_L4_CKSUM_GOOD, large);
    assert_eq!(lro.received_segment_size, 1448);
    assert!(!lro.received_partial);
    assert!(Packet0::with(RTE_MBUF_F_RX_L4_CKSUM_NONE, lengths()).received_partial);
    for ignored in [RTE_MBUF_F_RX_L4_CKSUM_BAD, RTE_MBUF_F_RX_L4_CKSUM_GOOD] {
        assert_eq!(Packet0::with(ignored, lengths()), Asked::default());
    }
    assert_eq!(lro.datagram, Datagram::One);
    let both = RTE_MBUF_F_RX_LRO | RTE_MBUF_F_RX_L4_CKSUM_NONE | RTE_MBUF_F_TX_TCP_CKSUM;
    let requested = Packet0::with(both, large);
    assert_eq!(requested.received_segment_size, 0);
    assert!(!requested.received_partial);
}

#[test]
fn a_frame_that_is_to_be_sent_on_asks_for_what_it_was_received_with() {
    for (transport, segment_size) in [
        (None, None),
        (Some(Transport::Tcp), None),
        (Some(Transport::Udp), None),
        (Some(Transport::Sctp), None),
        (Some(Transport::Tcp), Some(1448)),
        (Some(Transport::Udp), Some(1000)),
    ] {
        let asked = Asked {
            l2_len: 18,
            l3_len: 40,
            l4_len: if segment_size.is_some() { 20 } else { 0 },
            ip: Some(Ip::V6),
            transport,
            segment_size,
            ..Asked::default()
        };
        let mut packet = Packet0::new(&[0; 100]);
        request(packet.slot().mbuf(), asked);
        assert_eq!(packet.slot().asked().is_some(), transport.is_some());
        if let Some(back) = packet.slot().asked() {
            assert_eq!(back, asked);
        }
        assert_eq!(packet.slot().mbuf().tx_offload().l3_len(), 40);
    }
}

#[test]
fn datagrams_are_told_from_fragments_by_a_flag_of_their_own() {
    const FLAG: u64 = 1 << 23;
    // What a port with tso=1 does, without EAL.
    DATAGRAMS.store(FLAG, Ordering::Relaxed);
    let build = Build::new(Ip::V4, Transport::Udp, 50);
    for (datagram, flag) in [(Datagram::Many, FLAG), (Datagram::One, 0)] {
        let mut packet = Packet0::new(&build.frame());
        let marks = Marks {
            headers: Headers::parse(&build.frame()),
            checksum: Checksum::Missing,
            segment_size: 1000,
            datagram,
        };
        mark(packet.slot(), marks);
        assert_eq!(packet.slot().mbuf().ol_flags() & FLAG, flag);
        assert_eq!(packet.slot().asked().unwrap().datagram, datagram);

        let mut packet = Packet0::new(&build.frame());
        let asked = Asked {
            transport: Some(Transport::Udp),
            segment_size: Some(1000),
            datagram,
            ..Asked::default()
        };
        request(packet.slot().mbuf(), asked);
        let flags = packet.slot().mbuf().ol_flags();
        assert_eq!(
            flags & (FLAG | RTE_MBUF_F_TX_UDP_SEG),
            flag | RTE_MBUF_F_TX_UDP_SEG
        );
    }
    let requested = |flags| Packet0::with(RTE_MBUF_F_TX_UDP_SEG | flags, lengths()).datagram;
    assert_eq!(requested(0), Datagram::Unknown);
    assert_eq!(requested(FLAG), Datagram::Many);
    assert_eq!(Packet0::with(FLAG, lengths()), Asked::default());
}

#[test]
fn tcp_has_the_packet_type_that_dpdk_finds() {
    for ip in [Ip::V4, Ip::V6] {
        for tags in 0..3 {
            for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
                let build = Build {
                    tags,
                    ..Build::new(ip, transport, 10)
                };
                let mut packet = Packet0::new(&build.frame());
                let mbuf = packet.slot().mbuf();
                let headers = Headers::parse(&build.frame());
                assert_eq!(packet_type(mbuf, &headers), mbuf.parsed_type());
                assert_ne!(mbuf.parsed_type() & 0xf00, 0, "{build:?}");
            }
        }
    }
}

#[test]
fn a_word_is_stored_across_segments() {
    let mut tail = Packet0::new(&[0; 4]);
    let mut middle = Packet0::new(&[0; 1]);
    let mut head = Packet0::new(&[0; 3]);
    middle.slot().mbuf().set_next(Some(tail.slot().mbuf()));
    head.slot().mbuf().set_next(Some(middle.slot().mbuf()));
    let mut slot = head.slot();
    assert!(store(&slot, 2, [1, 2]));
    assert!(store(&slot, 6, [3, 4]));
    assert!(!store(&slot, 8, [9, 9]));
    let bytes: Vec<u8> = slot.segments().flatten().copied().collect();
    assert_eq!(bytes, [0, 0, 1, 2, 0, 0, 3, 4]);
    slot = head.slot();
    assert_eq!(slot.segments().count(), 3);
}

#[test]
fn marks_are_flags_type_and_segment_size() {
    let build = Build::new(Ip::V4, Transport::Tcp, 50);
    let mut packet = Packet0::new(&build.frame());
    let slot = packet.slot();
    mark(
        slot,
        Marks {
            headers: Headers::parse(&build.frame()),
            checksum: Checksum::Missing,
            segment_size: 1448,
            datagram: Datagram::Unknown,
        },
    );
    let mbuf = slot.mbuf();
    assert_eq!(
        mbuf.ol_flags(),
        RTE_MBUF_F_RX_LRO | RTE_MBUF_F_RX_L4_CKSUM_NONE
    );
    assert_eq!(mbuf.tx_offload().tso_segsz(), 1448);
    assert_eq!(mbuf.packet_type(), mbuf.parsed_type());
}
