#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use proptest::prelude::*;

use super::*;
use crate::testing::{Build, crc32c, naive_sum};

const CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const TSO: u64 = CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;

fn asked(build: &Build) -> Asked {
    Asked {
        l2_len: build.l2_len() as u16,
        l3_len: build.l3_len() as u16,
        ip: Some(build.ip),
        ip_checksum: build.ip == Ip::V4,
        transport: Some(build.transport),
        ..Asked::default()
    }
}

fn tcp(payload: usize) -> Build {
    Build::new(Ip::V4, Transport::Tcp, payload)
}

/// Header and frame as the driver gets them.
fn send(asked: Asked, features: u64, segments: &[&[u8]]) -> Result<(Header, Vec<u8>), Refused> {
    let len = segments.iter().map(|segment| segment.len()).sum::<usize>();
    let segments = || segments.iter().copied();
    let mut plan = Plan::new(asked, features, len as u32, segments())?;
    assert!(plan.complete(segments()));
    let bytes: Vec<u8> = plan.bytes(segments()).flatten().copied().collect();
    assert_eq!(bytes.len(), plan.frame_len() as usize);
    Ok((plan.header, bytes))
}

/// What a driver does that was asked to.
fn finish(header: &Header, frame: &mut [u8]) {
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return;
    }
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    if header.csum_offset == 8 {
        assert_eq!(frame[field..field + 4], [0; 4]);
        let crc = crc32c(&frame[start..]);
        frame[field..field + 4].copy_from_slice(&crc.to_le_bytes());
        return;
    }
    let sum = match !naive_sum(&frame[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_driver_that_takes_checksums_gets_them_partial() {
    let build = tcp(100);
    let frame = build.frame();
    let (header, bytes) = send(asked(&build), CSUM, &[&frame]).unwrap();
    let expected = Header {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    };
    assert_eq!(header, expected);
    assert_eq!(
        bytes[50..52],
        naive_sum(&build.pseudo(&frame)).to_be_bytes()
    );
    assert!(build.ip_is_right(&bytes));
    assert!(!build.transport_is_right(&bytes));
}

#[test]
fn a_large_frame_says_how_to_cut_it() {
    for (ip, kind, l3_len) in [
        (Ip::V4, VIRTIO_NET_HDR_GSO_TCPV4, 20),
        (Ip::V6, VIRTIO_NET_HDR_GSO_TCPV6, 40),
    ] {
        let build = Build::new(ip, Transport::Tcp, 5000);
        let frame = build.frame();
        let request = Asked {
            segment_size: Some(1448),
            l4_len: 20,
            ..asked(&build)
        };
        let (header, mut bytes) = send(request, TSO, &[&frame[..1000], &frame[1000..]]).unwrap();
        assert_eq!(header.gso_type, kind);
        assert_eq!(header.gso_size, 1448);
        assert_eq!(header.hdr_len, 14 + l3_len + 20);
        assert_eq!(header.csum_start, 14 + l3_len);
        finish(&header, &mut bytes);
        assert!(build.transport_is_right(&bytes));
    }
}

#[test]
fn a_large_frame_for_a_driver_that_does_not_take_it_is_refused() {
    let build = tcp(5000);
    let frame = build.frame();
    let request = Asked {
        segment_size: Some(1448),
        l4_len: 20,
        ..asked(&build)
    };
    let only_v6 = CSUM | 1 << VIRTIO_NET_F_GUEST_TSO6;
    let no_checksum = TSO & !CSUM;
    for features in [0, CSUM, only_v6, no_checksum] {
        assert_eq!(
            send(request, features, &[&frame]).unwrap_err(),
            Refused::Segments
        );
    }
    for odd in [
        Asked {
            segment_size: Some(0),
            ..request
        },
        Asked {
            tunnel: true,
            ..request
        },
    ] {
        assert_eq!(send(odd, TSO, &[&frame]).unwrap_err(), Refused::Segments);
    }
}

#[test]
fn a_frame_of_one_segment_is_no_large_one() {
    let build = tcp(1448);
    let frame = build.frame();
    let request = Asked {
        segment_size: Some(1448),
        l4_len: 20,
        ..asked(&build)
    };
    let (header, mut bytes) = send(request, CSUM, &[&frame]).unwrap();
    assert_eq!(header.gso_type, 0);
    finish(&header, &mut bytes);
    assert!(build.transport_is_right(&bytes));
    let (header, bytes) = send(request, 0, &[&frame]).unwrap();
    assert_eq!(header, Header::default());
    assert!(build.transport_is_right(&bytes));
}

#[test]
fn congestion_is_told_to_a_driver_that_wants_to_know() {
    let build = tcp(5000);
    let mut frame = build.frame();
    frame[build.l4() + 13] = 0x80;
    let request = Asked {
        segment_size: Some(1000),
        ..asked(&build)
    };
    let (header, _) = send(request, TSO, &[&frame]).unwrap();
    assert_eq!(header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
    let (header, _) = send(request, TSO | 1 << VIRTIO_NET_F_GUEST_ECN, &[&frame]).unwrap();
    assert_eq!(
        header.gso_type,
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN
    );
}

#[test]
fn a_large_datagram_needs_a_driver_that_takes_those() {
    let build = Build::new(Ip::V4, Transport::Udp, 9000);
    let frame = build.frame();
    let request = Asked {
        segment_size: Some(1472),
        ..asked(&build)
    };
    assert_eq!(
        send(request, TSO, &[&frame]).unwrap_err(),
        Refused::Segments
    );
    let (header, _) = send(request, CSUM | 1 << VIRTIO_NET_F_GUEST_UFO, &[&frame]).unwrap();
    assert_eq!(header.gso_type, VIRTIO_NET_HDR_GSO_UDP);
    assert_eq!(header.hdr_len, 42);
}

#[test]
fn one_datagram_never_becomes_many_nor_many_one() {
    let ufo = 1 << VIRTIO_NET_F_GUEST_UFO;
    let uso = |ip| match ip {
        Ip::V4 => 1 << VIRTIO_NET_F_GUEST_USO4,
        Ip::V6 => 1 << VIRTIO_NET_F_GUEST_USO6,
    };
    for (ip, other) in [(Ip::V4, Ip::V6), (Ip::V6, Ip::V4)] {
        let build = Build::new(ip, Transport::Udp, 9000);
        let frame = build.frame();
        let kind = |datagram, features, marked| {
            let request = if marked {
                Asked {
                    received_segment_size: 1000,
                    datagram,
                    ..Asked::default()
                }
            } else {
                Asked {
                    segment_size: Some(1000),
                    datagram,
                    ..asked(&build)
                }
            };
            let (header, mut bytes) = send(request, features, &[&frame]).ok()?;
            assert_eq!(header.gso_size, 1000);
            assert_eq!(usize::from(header.hdr_len), build.l4() + 8);
            finish(&header, &mut bytes);
            assert!(build.transport_is_right(&bytes));
            Some(header.gso_type)
        };
        let one = Some(VIRTIO_NET_HDR_GSO_UDP);
        let many = Some(VIRTIO_NET_HDR_GSO_UDP_L4);
        for (features, for_one, for_many, unknown) in [
            (TSO, None, None, None),
            (TSO | ufo, one, None, one),
            (TSO | uso(ip), None, many, many),
            (TSO | uso(other), None, None, None),
            (TSO | ufo | uso(ip), one, many, one),
            (ufo | uso(ip), None, None, None),
        ] {
            for marked in [false, true] {
                assert_eq!(kind(Datagram::One, features, marked), for_one);
                assert_eq!(kind(Datagram::Many, features, marked), for_many);
            }
            assert_eq!(kind(Datagram::Unknown, features, false), unknown);
        }
    }
}

#[test]
fn marks_of_the_receiver_are_taken_for_requests() {
    for tags in [0, 1, 2] {
        let build = Build { tags, ..tcp(5000) };
        let frame = build.frame();
        let marked = Asked {
            received_segment_size: 1448,
            ..Asked::default()
        };
        let (header, mut bytes) = send(marked, TSO, &[&frame]).unwrap();
        assert_eq!(header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
        assert_eq!(header.gso_size, 1448);
        assert_eq!(usize::from(header.hdr_len), build.l4() + 20);
        finish(&header, &mut bytes);
        assert!(build.transport_is_right(&bytes));
        assert_eq!(
            send(marked, CSUM, &[&frame]).unwrap_err(),
            Refused::Segments
        );

        let partial = Asked {
            received_partial: true,
            ..Asked::default()
        };
        let (header, bytes) = send(partial, 0, &[&frame]).unwrap();
        assert!(header.is_plain());
        assert!(build.transport_is_right(&bytes));
        let (header, _) = send(partial, CSUM, &[&frame]).unwrap();
        assert_eq!(header.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
    }
}

#[test]
fn a_large_frame_of_nothing_known_is_refused() {
    let frame = vec![7; 5000];
    let large = Asked {
        received_segment_size: 1448,
        ..Asked::default()
    };
    assert_eq!(send(large, TSO, &[&frame]).unwrap_err(), Refused::Segments);
    let partial = Asked {
        received_partial: true,
        ..Asked::default()
    };
    let (header, bytes) = send(partial, TSO, &[&frame]).unwrap();
    assert!(header.is_plain());
    assert_eq!(bytes, frame);
}

#[test]
fn a_tag_goes_before_everything_else() {
    let build = tcp(100);
    let frame = build.frame();
    let request = Asked {
        vlan: Some(0x123),
        ..asked(&build)
    };
    let tagged = Build { tags: 1, ..build };
    for features in [CSUM, 0] {
        let (header, mut bytes) = send(request, features, &[&frame]).unwrap();
        assert_eq!(bytes[..12], frame[..12]);
        assert_eq!(bytes[12..16], [0x81, 0, 0x01, 0x23]);
        finish(&header, &mut bytes);
        assert!(tagged.ip_is_right(&bytes));
        assert!(tagged.transport_is_right(&bytes));
    }
    let alone = Asked {
        vlan: Some(5),
        ..Asked::default()
    };
    assert_eq!(send(alone, 0, &[&frame[..11]]).unwrap_err(), Refused::Other);
    let (_, bytes) = send(alone, 0, &[&frame[..12]]).unwrap();
    assert_eq!(bytes[12..], [0x81, 0, 0, 5]);
}

#[test]
fn checksums_inside_a_tunnel_are_the_inner_ones() {
    let inner = tcp(200);
    let outer = Build::new(Ip::V4, Transport::Udp, 8 + inner.frame().len());
    let mut frame = outer.frame();
    let at = frame.len() - inner.frame().len();
    frame.truncate(at);
    frame.extend(inner.frame());
    let request = Asked {
        tunnel: true,
        l2_len: (at + 14) as u16,
        outer_ip: Some((14, 20)),
        ..asked(&inner)
    };
    for features in [0, CSUM] {
        let (header, mut bytes) = send(request, features, &[&frame]).unwrap();
        finish(&header, &mut bytes);
        assert!(outer.ip_is_right(&bytes));
        assert!(inner.ip_is_right(&bytes[at..]));
        assert!(inner.transport_is_right(&bytes[at..]));
    }
}

#[test]
fn padding_behind_the_packet_does_not_count() {
    let build = Build::new(Ip::V4, Transport::Udp, 10);
    let mut frame = build.frame();
    let len = frame.len();
    frame.extend([0xff; 8]);
    let (_, bytes) = send(asked(&build), 0, &[&frame]).unwrap();
    assert!(build.transport_is_right(&bytes[..len]));
    assert_eq!(bytes[len..], [0xff; 8]);
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    let build = Build::new(Ip::V4, Transport::Udp, 10);
    let mut frame = build.frame();
    let (_, bytes) = send(asked(&build), 0, &[&frame]).unwrap();
    // The payload takes what is left of the sum away.
    let old = u16::from_be_bytes([frame[42], frame[43]]);
    let sum = u16::from_be_bytes([bytes[40], bytes[41]]);
    let (new, carry) = old.overflowing_add(sum);
    frame[42..44].copy_from_slice(&(new + u16::from(carry)).to_be_bytes());
    let (_, bytes) = send(asked(&build), 0, &[&frame]).unwrap();
    assert_eq!(bytes[40..42], [0xff, 0xff]);
}

#[test]
fn headers_that_are_not_there_are_refused() {
    let build = tcp(100);
    let frame = build.frame();
    let refused = |asked: Asked, frame: &[u8]| {
        for features in [0, TSO] {
            assert_eq!(
                send(asked, features, &[frame]).unwrap_err(),
                Refused::Checksum
            );
        }
    };
    let right = asked(&build);
    refused(right, &frame[..50]);
    refused(right, &frame[..frame.len() - 1]);
    for (l2_len, l3_len) in [(600, 20), (14, 19), (14, 300), (120, 20), (u16::MAX, 20)] {
        let odd = Asked {
            l2_len,
            l3_len,
            ..right
        };
        refused(odd, &frame);
    }
    let only_ip = Asked {
        l3_len: 16,
        transport: None,
        ..right
    };
    refused(only_ip, &frame);
    let unable = Asked {
        unable: true,
        ..Asked::default()
    };
    assert_eq!(send(unable, TSO, &[&frame]).unwrap_err(), Refused::Other);
}

fn builds() -> impl Strategy<Value = Build> {
    let ips = prop::sample::select(vec![Ip::V4, Ip::V6]);
    let transports = prop::sample::select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]);
    (0..3_usize, ips, 0..3_usize, transports, 0..2000_usize).prop_map(
        |(tags, ip, options, transport, payload)| Build {
            tags,
            ip,
            options: options * 8,
            transport,
            payload,
        },
    )
}

proptest! {
    #[test]
    fn whoever_finishes_the_checksum_it_is_right(
        build in builds(),
        cuts in prop::collection::vec(0..2200_usize, 0..4),
        features in prop::sample::select(vec![0, CSUM]),
        vlan in prop::option::of(any::<u16>()),
        marked in any::<bool>(),
    ) {
        let frame = build.frame();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (frame.len() + 1)).collect();
        cuts.extend([0, frame.len()]);
        cuts.sort_unstable();
        let segments: Vec<&[u8]> = cuts.windows(2).map(|ends| &frame[ends[0]..ends[1]]).collect();
        let request = if marked {
            Asked { received_partial: true, vlan, ..Asked::default() }
        } else {
            Asked { vlan, ..asked(&build) }
        };
        let (header, mut bytes) = send(request, features, &segments).unwrap();
        prop_assert_eq!(header.is_plain(), features == 0);
        finish(&header, &mut bytes);
        let sent = Build { tags: build.tags + usize::from(vlan.is_some()), ..build };
        prop_assert!(sent.transport_is_right(&bytes));
        prop_assert!(marked || sent.ip_is_right(&bytes));
        // Nothing else has changed.
        let tag = bytes.len() - frame.len();
        let headers = build.l4() + usize::from(build.transport.least());
        prop_assert_eq!(&bytes[headers + tag..], &frame[headers..]);
    }

    #[test]
    fn no_request_is_too_odd(
        frame in prop::collection::vec(any::<u8>(), 0..300),
        lens in any::<[u16; 4]>(),
        flags in any::<u8>(),
        size in any::<u16>(),
        features in any::<u64>(),
    ) {
        let request = Asked {
            l2_len: lens[0] % 700,
            l3_len: lens[1] % 512,
            l4_len: lens[2] % 256,
            ip_checksum: flags & 1 != 0,
            transport: [None, Some(Transport::Tcp), Some(Transport::Udp), Some(Transport::Sctp)]
                [usize::from(flags >> 1 & 3)],
            segment_size: (flags & 8 != 0).then_some(size),
            received_partial: flags & 16 != 0,
            received_segment_size: if flags & 32 != 0 { size } else { 0 },
            vlan: (flags & 64 != 0).then_some(size),
            datagram: [Datagram::Unknown, Datagram::One, Datagram::Many]
                [usize::from(lens[3]) % 3],
            outer_ip: (flags & 128 != 0).then_some((lens[3] % 400, lens[2] % 100)),
            ..Asked::default()
        };
        if let Ok((header, bytes)) = send(request, features, &[&frame]) {
            let field = u32::from(header.csum_start) + u32::from(header.csum_offset) + 2;
            prop_assert!(header.flags == 0 || field as usize <= bytes.len());
            prop_assert!(header.gso_type == 0 || header.flags != 0);
        }
    }
}
