#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use proptest::prelude::*;

use crate::datapath::{Checksum, Packet, QueueCounters, Release, RxRules};
use crate::testing::{Buffer, Build, FakeDriver, FakePacket, naive_sum};
use crate::virtio_net::{
    Asked, Header, Ip, Transport, VIRTIO_F_VERSION_1, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
};

const TCP: Build = Build::new(Ip::V4, Transport::Tcp, 500);
const UDP: Build = Build::new(Ip::V6, Transport::Udp, 77);

/// A driver that leaves checksums and cutting to the device.
fn asking() -> FakeDriver {
    FakeDriver::split(64)
        .feature(VIRTIO_F_VERSION_1)
        .feature(VIRTIO_NET_F_CSUM)
        .feature(VIRTIO_NET_F_HOST_TSO4)
}

/// A driver that takes such frames.
fn taking() -> FakeDriver {
    FakeDriver::split(64)
        .feature(VIRTIO_NET_F_MRG_RXBUF)
        .feature(VIRTIO_NET_F_GUEST_CSUM)
        .feature(VIRTIO_NET_F_GUEST_TSO4)
}

fn missing(build: &Build) -> Header {
    Header {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        csum_start: build.l4() as u16,
        csum_offset: build.transport.field(),
        ..Header::default()
    }
}

/// The frame with the sum of its pseudo-header in the field.
fn partial(build: &Build) -> Vec<u8> {
    let mut frame = build.frame();
    let sum = naive_sum(&build.pseudo(&frame));
    let field = build.l4() + usize::from(build.transport.field());
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Sends header and frame in buffers that are cut at `cuts`; the packet that arrives.
fn pass(driver: &mut FakeDriver, header: Header, frame: &[u8], cuts: &[usize]) -> FakePacket {
    let mut bytes = header.to_bytes(0).to_vec();
    bytes.extend(frame);
    let mut at = 0;
    let mut buffers = Vec::new();
    for &cut in cuts.iter().chain([&bytes.len()]) {
        buffers.push(Buffer::holding(&bytes[at..cut]));
        at = cut;
    }
    driver.offer(&buffers);
    let packets = driver.dequeue_packets(1);
    assert_eq!(packets.len(), 1);
    packets[0]
}

/// Sends a packet; header and frame as the driver has them, or the counter of its drop.
fn send(driver: &mut FakeDriver, packet: FakePacket) -> Option<(Header, Vec<u8>)> {
    for _ in 0..4 {
        driver.offer(&[Buffer::writable(4096)]);
    }
    assert_eq!(driver.enqueue_packets(&[packet]), 1);
    assert_eq!(driver.pool.live(), 0);
    let used = driver.used();
    let mut bytes = Vec::new();
    for used in &used {
        bytes.extend(driver.written(*used));
    }
    if used.is_empty() {
        return None;
    }
    let frame = bytes.split_off(driver.header_len());
    let header = Header::from_bytes(bytes[..10].try_into().unwrap());
    assert_eq!(bytes[10..], (used.len() as u16).to_le_bytes());
    Some((header, frame))
}

#[test]
fn a_plain_header_marks_nothing() {
    let mut driver = asking();
    let packet = pass(&mut driver, Header::default(), &TCP.frame(), &[]);
    assert_eq!(packet.marks(), None);
    assert_eq!(packet.to_vec(), TCP.frame());
    driver.pool.release(&[packet]);
}

#[test]
fn a_driver_that_negotiated_nothing_asks_for_nothing() {
    let mut driver = FakeDriver::split(64).feature(VIRTIO_F_VERSION_1);
    let packet = pass(&mut driver, missing(&TCP), &partial(&TCP), &[]);
    assert_eq!(packet.marks(), None);
    assert_eq!(packet.to_vec(), partial(&TCP));
    driver.pool.release(&[packet]);
}

#[test]
fn a_missing_checksum_is_marked_wherever_the_header_lies() {
    for cuts in [&[][..], &[12], &[1, 2, 9, 11, 13], &[5], &[12, 30, 66]] {
        let mut driver = asking();
        let packet = pass(&mut driver, missing(&TCP), &partial(&TCP), cuts);
        let marks = packet.marks().unwrap();
        assert_eq!(marks.checksum, Checksum::Missing);
        assert_eq!(marks.segment_size, 0);
        assert_eq!(marks.headers.transport, Some(Transport::Tcp));
        assert_eq!(packet.to_vec(), partial(&TCP));
        driver.pool.release(&[packet]);
    }
}

#[test]
fn a_frame_in_tiny_segments_is_read_to_its_headers() {
    let mut driver = asking().packet_room(16);
    driver.pool.set_rules(RxRules::Complete);
    let packet = pass(&mut driver, missing(&UDP), &partial(&UDP), &[]);
    assert_eq!(packet.marks().unwrap().checksum, Checksum::Good);
    assert!(UDP.transport_is_right(&packet.to_vec()));
    driver.pool.release(&[packet]);
}

#[test]
fn a_large_frame_is_marked_with_its_segment_size() {
    let mut driver = asking();
    let header = Header {
        gso_type: VIRTIO_NET_HDR_GSO_TCPV4,
        gso_size: 100,
        ..missing(&TCP)
    };
    for complete in [false, true] {
        if complete {
            driver.pool.set_rules(RxRules::Complete);
        }
        let packet = pass(&mut driver, header, &partial(&TCP), &[]);
        let marks = packet.marks().unwrap();
        assert_eq!(marks.segment_size, 100);
        assert_eq!(marks.checksum == Checksum::Good, complete);
        assert_eq!(TCP.transport_is_right(&packet.to_vec()), complete);
        driver.pool.release(&[packet]);
    }
}

#[test]
fn without_the_feature_a_missing_checksum_is_not_made_here() {
    let mut driver = FakeDriver::split(8)
        .feature(VIRTIO_F_VERSION_1)
        .feature(VIRTIO_NET_F_HOST_TSO4);
    driver.pool.set_rules(RxRules::Complete);
    let packet = pass(&mut driver, missing(&TCP), &partial(&TCP), &[]);
    assert_eq!(packet.marks().unwrap().checksum, Checksum::Missing);
    assert_eq!(packet.to_vec(), partial(&TCP));
    driver.pool.release(&[packet]);
}

#[test]
fn the_checksum_of_an_unknown_protocol_is_made_at_once() {
    let mut frame = TCP.frame();
    frame[23] = 89;
    let header = Header {
        csum_start: 40,
        csum_offset: 2,
        ..missing(&TCP)
    };
    let mut driver = asking();
    let packet = pass(&mut driver, header, &frame, &[]);
    assert_eq!(packet.marks().unwrap().checksum, Checksum::Unknown);
    let seen = packet.to_vec();
    assert_eq!(seen[42..44], (!naive_sum(&frame[40..])).to_be_bytes());
    driver.pool.release(&[packet]);

    // Only where the field is in the first segment, and the start inside the frame.
    for (start, offset) in [(40, 2000), (2000, 2), (u16::MAX, u16::MAX)] {
        let header = Header {
            csum_start: start,
            csum_offset: offset,
            ..header
        };
        let packet = pass(&mut driver, header, &frame, &[]);
        assert_eq!(packet.to_vec(), frame);
        driver.pool.release(&[packet]);
    }
}

#[test]
fn data_that_is_said_to_be_valid_is_not_marked_good() {
    let mut driver = asking();
    let header = Header {
        flags: VIRTIO_NET_HDR_F_DATA_VALID,
        ..Header::default()
    };
    let packet = pass(&mut driver, header, &TCP.frame(), &[]);
    assert_eq!(packet.marks().unwrap().checksum, Checksum::Unknown);
    driver.pool.release(&[packet]);
}

#[test]
fn one_who_sends_on_is_told_what_to_ask_for() {
    let mut driver = asking();
    driver.pool.set_rules(RxRules::Request);
    let packet = pass(&mut driver, missing(&TCP), &partial(&TCP), &[]);
    assert_eq!(packet.marks(), None);
    let mut guest = taking();
    let bytes = packet.to_vec();
    let asked = packet.asked();
    driver.pool.release(&[packet]);
    let packet = guest.pool.packet(&[&bytes]).asking(asked.unwrap());
    let (header, frame) = send(&mut guest, packet).unwrap();
    assert_eq!(header, missing(&TCP));
    assert_eq!(frame, partial(&TCP));
}

#[test]
fn counters_see_a_marked_frame_as_any_other() {
    let mut frame = partial(&TCP);
    frame[0] = 3;
    let mut driver = asking();
    let packet = pass(&mut driver, missing(&TCP), &frame, &[]);
    driver.pool.release(&[packet]);
    assert_eq!(driver.counted(|c| &c.packets), 1);
    assert_eq!(driver.counted(|c| &c.multicast), 1);
    assert_eq!(driver.counted(|c| &c.bytes), frame.len() as u64);
}

#[test]
fn a_request_becomes_a_header_and_the_packet_stays_as_it_was() {
    let mut driver = taking();
    let request = Asked {
        l2_len: 14,
        l3_len: 20,
        transport: Some(Transport::Tcp),
        ..Asked::default()
    };
    let packet = driver.pool.packet(&[&TCP.frame()]).asking(request);
    // There is no room yet: it comes again.
    assert_eq!(driver.enqueue_packets(&[packet]), 0);
    assert_eq!(packet.to_vec(), TCP.frame());
    let (header, frame) = send(&mut driver, packet).unwrap();
    assert_eq!(header, missing(&TCP));
    assert_eq!(frame, partial(&TCP));
    assert_eq!(driver.counted(|c| &c.bytes), frame.len() as u64);
}

#[test]
fn what_is_asked_in_one_segment_is_done_as_in_two() {
    let sum = |transport| Asked {
        l2_len: 14,
        l3_len: 20,
        ip: Some(Ip::V4),
        transport: Some(transport),
        ..Asked::default()
    };
    let tag = Asked {
        vlan: Some(0x123),
        ..Asked::default()
    };
    let udp = Build::new(Ip::V4, Transport::Udp, 30);
    let asked = [
        (TCP, None),
        (TCP, Some(sum(Transport::Tcp))),
        (udp, Some(tag)),
        (udp, Some(sum(Transport::Udp))),
        (
            TCP,
            Some(Asked {
                vlan: Some(7),
                ..sum(Transport::Tcp)
            }),
        ),
        (udp, None),
    ];
    // With the feature and without; then the checksum is made here.
    for (features, packed) in [(true, false), (true, true), (false, false)] {
        // Cut within the headers, which the short body does not take.
        let [whole, cut] = [0, 20].map(|cut| {
            let mut driver = match packed {
                true => FakeDriver::packed(16),
                false => FakeDriver::split(16),
            };
            driver = driver.feature(VIRTIO_NET_F_MRG_RXBUF);
            if features {
                driver = driver.feature(VIRTIO_NET_F_GUEST_CSUM);
            }
            for _ in 0..asked.len() {
                driver.offer(&[Buffer::writable(2048)]);
            }
            let packets: Vec<FakePacket> = asked
                .iter()
                .map(|(build, asked)| {
                    let frame = build.frame();
                    let (start, rest) = frame.split_at(cut);
                    let parts = [start, rest];
                    let packet = driver.pool.packet(&parts[usize::from(cut == 0)..]);
                    asked.map_or(packet, |asked| packet.asking(asked))
                })
                .collect();
            assert_eq!(driver.enqueue_packets(&packets), packets.len());
            assert_eq!(driver.pool.live(), 0);
            let used = driver.used();
            let bytes = driver.counted(|c| &c.bytes);
            let written: Vec<Vec<u8>> = used.iter().map(|used| driver.written(*used)).collect();
            (written, bytes)
        });
        assert_eq!(whole, cut);
        assert_eq!(whole.0.len(), asked.len());
    }
}

#[test]
fn a_large_frame_goes_over_several_buffers_with_one_header() {
    let mut driver = taking();
    let build = Build {
        payload: 9000,
        ..TCP
    };
    let marked = Asked {
        received_segment_size: 1448,
        ..Asked::default()
    };
    let frame = build.frame();
    let parts: Vec<&[u8]> = frame.chunks(1000).collect();
    let packet = driver.pool.packet(&parts).asking(marked);
    let (header, seen) = send(&mut driver, packet).unwrap();
    assert_eq!(header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
    assert_eq!(seen, partial(&build));
}

#[test]
fn a_drop_counts_as_taken_with_its_reason_and_the_next_one_goes_on() {
    let large = Asked {
        received_segment_size: 100,
        ..Asked::default()
    };
    let lost = Asked {
        l2_len: 500,
        l3_len: 20,
        transport: Some(Transport::Udp),
        ..Asked::default()
    };
    let unable = Asked {
        unable: true,
        ..Asked::default()
    };
    type Reason = fn(&QueueCounters) -> &std::sync::atomic::AtomicU64;
    let cases: [(Asked, Reason); 3] = [
        (large, |c| &c.drop_gso),
        (lost, |c| &c.drop_csum),
        (unable, |c| &c.drop_prepare),
    ];
    for (asked, reason) in cases {
        let mut driver = FakeDriver::split(8)
            .feature(VIRTIO_NET_F_GUEST_CSUM)
            .feature(VIRTIO_NET_F_GUEST_TSO6);
        driver.offer(&[Buffer::writable(2048)]);
        let refused = driver.pool.packet(&[&TCP.frame()]).asking(asked);
        let next = driver.pool.packet(&[&TCP.frame()]);
        assert_eq!(driver.enqueue_packets(&[refused, next]), 2);
        assert_eq!(driver.used().len(), 1);
        assert_eq!(driver.counted(reason), 1);
        assert_eq!(driver.counted(|c| &c.packets), 1);
        assert_eq!(driver.pool.live(), 0);
    }
}

proptest! {
    #[test]
    fn any_header_before_any_frame_is_harmless(
        header in any::<[u8; 10]>(),
        mut frame in prop::collection::vec(any::<u8>(), 1..300),
        kind in prop::sample::select(vec![[8, 0], [0x86, 0xdd], [0x81, 0]]),
        cut in 1..12_usize,
        room in prop::sample::select(vec![16, 64, 2048_usize]),
        rules in prop::sample::select(vec![RxRules::Mark, RxRules::Complete, RxRules::Request]),
    ) {
        if let Some(field) = frame.get_mut(12..14) {
            field.copy_from_slice(&kind);
        }
        let mut driver = asking().packet_room(room);
        driver.pool.set_rules(rules);
        let header = Header::from_bytes(header);
        let packet = pass(&mut driver, header, &frame, &[cut]);
        let seen = packet.to_vec();
        prop_assert_eq!(seen.len(), frame.len());
        // No more than one field was written.
        let changed: Vec<usize> = (0..seen.len()).filter(|&at| seen[at] != frame[at]).collect();
        prop_assert!(changed.len() <= 2);
        if let [first, last] = changed[..] {
            prop_assert_eq!(first + 1, last);
        }
        let asked = packet.asked();
        driver.pool.release(&[packet]);
        // And whatever it was taken for can be sent on or is dropped.
        let mut guest = taking();
        let packet = guest.pool.packet(&[&seen]).asking(asked.unwrap_or_default());
        send(&mut guest, packet);
    }
}
