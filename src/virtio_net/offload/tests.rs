#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use proptest::prelude::*;

use super::*;
use crate::testing::Build;

const TCP: Build = Build::new(Ip::V4, Transport::Tcp, 3000);

fn needs_checksum(start: u16, offset: u16) -> Header {
    Header {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        csum_start: start,
        csum_offset: offset,
        ..Header::default()
    }
}

fn large(gso_type: u8, gso_size: u16) -> Header {
    Header {
        gso_type,
        gso_size,
        ..needs_checksum(34, 16)
    }
}

fn receive_frame(header: &Header, frame: &[u8]) -> Received {
    receive(header, &Headers::parse(frame), frame.len() as u32)
}

fn legacy(header: &Header, frame: &[u8]) -> Option<Asked> {
    receive_legacy(header, &Headers::parse(frame), frame.len())
}

#[test]
fn only_some_features_let_a_driver_ask() {
    assert!(!driver_asks(0));
    assert!(!driver_asks(!(0x7801 | 1 << 56)));
    for bit in [0, 11, 12, 13, 14, 56] {
        assert!(driver_asks(1 << bit));
    }
}

#[test]
fn a_missing_checksum_of_a_known_transport_is_left_to_others() {
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        let frame = Build::new(Ip::V6, transport, 10).frame();
        let header = needs_checksum(54, transport.field());
        assert_eq!(receive_frame(&header, &frame).missing, Missing::Transport);
    }
}

#[test]
fn a_missing_checksum_of_anything_else_is_summed_up_where_it_can_be() {
    let mut frame = TCP.frame();
    frame[23] = 47;
    let sum = |start, field| Missing::Sum { start, field };
    let missing = |header: &Header| receive_frame(header, &frame).missing;
    assert_eq!(missing(&needs_checksum(40, 6)), sum(40, 46));
    let len = frame.len() as u16;
    assert_eq!(missing(&needs_checksum(len, 0)), Missing::Nothing);
    assert_eq!(
        missing(&needs_checksum(len - 2, 0)),
        sum(len - 2, len.into()).shifted()
    );
    assert_eq!(missing(&needs_checksum(len - 1, 0)), Missing::Nothing);
    assert_eq!(missing(&needs_checksum(0, u16::MAX)), Missing::Nothing);
    assert_eq!(
        missing(&needs_checksum(u16::MAX, u16::MAX)),
        Missing::Nothing
    );
    // Behind the headers that are known: a tunnel.
    let frame = TCP.frame();
    let inner = receive_frame(&needs_checksum(80, 16), &frame).missing;
    assert_eq!(inner, sum(80, 96));
}

impl Missing {
    /// The field two bytes earlier.
    fn shifted(self) -> Self {
        match self {
            Self::Sum { start, field } => Self::Sum {
                start,
                field: field - 2,
            },
            other => other,
        }
    }
}

#[test]
fn a_large_frame_keeps_its_segment_size() {
    let frame = TCP.frame();
    for kind in [
        VIRTIO_NET_HDR_GSO_TCPV4,
        VIRTIO_NET_HDR_GSO_TCPV6,
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
    ] {
        let header = Header {
            flags: 0,
            ..large(kind, 1448)
        };
        let expected = Received {
            missing: Missing::Transport,
            segment_size: 1448,
            datagram: Datagram::Unknown,
        };
        assert_eq!(receive_frame(&header, &frame), expected);
    }
}

#[test]
fn a_large_frame_that_does_not_fit_together_is_none() {
    let frame = TCP.frame();
    for header in [
        large(VIRTIO_NET_HDR_GSO_TCPV4, 0),
        large(VIRTIO_NET_HDR_GSO_UDP, 1000),
        large(VIRTIO_NET_HDR_GSO_UDP_L4, 1000),
        large(2, 1000),
        large(0x7f, 1000),
    ] {
        assert_eq!(receive_frame(&header, &frame).segment_size, 0);
    }
}

#[test]
fn a_large_frame_of_udp_is_one_datagram_or_many() {
    for ip in [Ip::V4, Ip::V6] {
        let build = Build::new(ip, Transport::Udp, 3000);
        let frame = build.frame();
        for (gso_type, datagram) in [
            (VIRTIO_NET_HDR_GSO_UDP, Datagram::One),
            (VIRTIO_NET_HDR_GSO_UDP_L4, Datagram::Many),
        ] {
            let header = Header {
                gso_type,
                gso_size: 1000,
                ..needs_checksum(build.l4() as u16, 6)
            };
            let expected = Received {
                missing: Missing::Transport,
                segment_size: 1000,
                datagram,
            };
            assert_eq!(receive_frame(&header, &frame), expected);
            let asked = legacy(&header, &frame).unwrap();
            assert_eq!((asked.segment_size, asked.l4_len), (Some(1000), 8));
            assert_eq!(asked.datagram, datagram);
        }
    }
}

#[test]
fn a_header_in_the_words_of_one_who_sends_on() {
    let frame = Build { tags: 1, ..TCP }.frame();
    let checksum = Asked {
        l2_len: 18,
        l3_len: 20,
        ip: Some(Ip::V4),
        transport: Some(Transport::Tcp),
        ..Asked::default()
    };
    assert_eq!(legacy(&needs_checksum(38, 16), &frame), Some(checksum));
    let cut = Asked {
        l4_len: 20,
        segment_size: Some(1000),
        ..checksum
    };
    let header = Header {
        csum_start: 38,
        ..large(VIRTIO_NET_HDR_GSO_TCPV4, 1000)
    };
    assert_eq!(legacy(&header, &frame), Some(cut));
}

#[test]
fn one_who_sends_on_gets_nothing_that_does_not_fit_exactly() {
    let frame = TCP.frame();
    for header in [
        needs_checksum(33, 16),
        needs_checksum(34, 6),
        large(VIRTIO_NET_HDR_GSO_TCPV4, 0),
        large(VIRTIO_NET_HDR_GSO_UDP, 1000),
        large(VIRTIO_NET_HDR_GSO_UDP_L4, 1000),
        large(2, 1000),
    ] {
        assert_eq!(legacy(&header, &frame), None, "{header:?}");
    }
    let right = needs_checksum(34, 16);
    assert!(legacy(&right, &frame).is_some());
    let headers = Headers::parse(&frame);
    assert_eq!(receive_legacy(&right, &headers, 53), None);
    assert!(receive_legacy(&right, &headers, 54).is_some());
    let two_tags = Build { tags: 2, ..TCP }.frame();
    assert_eq!(legacy(&needs_checksum(42, 16), &two_tags), None);
    // Flags that are not exactly that one: nothing is asked of the checksum.
    let valid = Header { flags: 3, ..right };
    assert_eq!(legacy(&valid, &frame).unwrap().transport, None);
}

proptest! {
    #[test]
    fn what_is_to_be_summed_up_lies_in_the_frame(
        bytes in any::<[u8; 10]>(),
        mut frame in prop::collection::vec(any::<u8>(), 1..200),
        ip in any::<bool>(),
    ) {
        if ip && frame.len() > 14 {
            frame[12..14].copy_from_slice(&[8, 0]);
        }
        let header = Header::from_bytes(bytes);
        if let Missing::Sum { start, field } = receive_frame(&header, &frame).missing {
            prop_assert!(usize::from(start) < frame.len());
            prop_assert!(field as usize + 2 <= frame.len());
        }
        let _ = legacy(&header, &frame);
    }
}
