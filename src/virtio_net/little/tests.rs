#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use super::super::{Plan, VIRTIO_NET_F_GUEST_CSUM};
use super::*;
use crate::testing::Build;

fn asked(build: &Build) -> Asked {
    Asked {
        l2_len: build.l2_len() as u16,
        l3_len: build.l3_len() as u16,
        ip: Some(build.ip),
        transport: Some(build.transport),
        ..Asked::default()
    }
}

/// Header and frame as a plan has them.
fn planned(asked: Asked, features: u64, frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let pieces = || std::iter::once(frame);
    let mut plan = Plan::new(asked, features, frame.len() as u32, pieces()).unwrap();
    assert!(plan.complete(pieces()));
    let header = plan.header.to_bytes(0)[..10].to_vec();
    (header, plan.bytes(pieces()).flatten().copied().collect())
}

/// The same by what changes.
fn changed(asked: Asked, features: u64, frame: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let little = asked.little()?;
    let mut changes = Changes::of(little, frame, frame.len(), takes_unsummed(features))?;
    if changes.is_incomplete() {
        changes.complete(frame, std::iter::once(frame), |mut sum, piece| {
            sum.add(piece);
            sum
        });
    }
    let (head, offset) = changes.header(0);
    let header = [&head.to_le_bytes()[..], &offset.to_le_bytes()].concat();
    let mut bytes = frame.to_vec();
    for Word { at, value } in changes.words() {
        assert!(at + 2 <= changes.reach());
        bytes[at..at + 2].copy_from_slice(&value);
    }
    Some((header, bytes))
}

#[test]
fn what_changes_is_what_a_plan_changes() {
    for ip in [Ip::V4, Ip::V6] {
        for transport in [Transport::Tcp, Transport::Udp] {
            for payload in [0, 1, 22, 64, 65, 1000] {
                let build = Build::new(ip, transport, payload);
                let frame = build.frame();
                for features in [0, 1 << VIRTIO_NET_F_GUEST_CSUM] {
                    for ip_checksum in [false, true] {
                        let asked = Asked {
                            ip_checksum,
                            ..asked(&build)
                        };
                        let plan = planned(asked, features, &frame);
                        assert_eq!(changed(asked, features, &frame), Some(plan));
                    }
                    let marked = Asked {
                        received_partial: true,
                        ..Asked::default()
                    };
                    let plan = planned(marked, features, &frame);
                    assert_eq!(changed(marked, features, &frame), Some(plan));
                }
            }
        }
    }
}

/// What is usual is found in fewer steps, and never differs; each byte and each length is tried.
#[test]
fn usual_frames_change_as_all_do() {
    let marked = Little {
        marked: true,
        ..Little::default()
    };
    for (transport, field) in [(Transport::Tcp, 50), (Transport::Udp, 40)] {
        for payload in [0, 1, 100] {
            let right = Build::new(Ip::V4, transport, payload).frame();
            let padded = [&right[..], &[0; 6]].concat();
            for unsummed in [false, true] {
                let check = |frame: &[u8]| {
                    let usual = Changes::of_usual(frame, unsummed);
                    let all = Changes::of(marked, frame, frame.len(), unsummed);
                    assert!(usual.is_none() || usual == all, "{frame:x?}");
                    usual
                };
                for frame in [&right, &padded] {
                    let word = check(frame).and_then(Changes::transport_word);
                    assert_eq!(word.map(|word| word.at), Some(field));
                    let mut frame = frame.clone();
                    for at in 0..frame.len().min(60) {
                        let old = frame[at];
                        for value in 0..=u8::MAX {
                            frame[at] = value;
                            check(&frame);
                        }
                        frame[at] = old;
                    }
                }
                for len in 0..padded.len() {
                    let found = check(&padded[..len]).is_some();
                    assert_eq!(found, len >= right.len());
                }
            }
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    let build = Build::new(Ip::V4, Transport::Udp, 10);
    let mut frame = build.frame();
    let (_, bytes) = changed(asked(&build), 0, &frame).unwrap();
    // The payload takes what is left of the sum away.
    let old = u16::from_be_bytes([frame[42], frame[43]]);
    let sum = u16::from_be_bytes([bytes[40], bytes[41]]);
    let (new, carry) = old.overflowing_add(sum);
    frame[42..44].copy_from_slice(&(new + u16::from(carry)).to_be_bytes());
    let (_, bytes) = changed(asked(&build), 0, &frame).unwrap();
    assert_eq!(bytes[40..42], [0xff, 0xff]);
}

#[test]
fn what_stands_in_the_field_does_not_count() {
    let build = Build::new(Ip::V4, Transport::Tcp, 33);
    let mut frame = build.frame();
    let right = changed(asked(&build), 0, &frame).unwrap();
    frame[50..52].copy_from_slice(&[0xab, 0xcd]);
    assert_eq!(changed(asked(&build), 0, &frame).unwrap(), right);
    assert!(build.transport_is_right(&right.1));
}

#[test]
fn frames_that_make_no_sense_are_left_to_the_plan() {
    let build = Build::new(Ip::V4, Transport::Tcp, 100);
    let frame = build.frame();
    let right = asked(&build);
    for features in [0, 1 << VIRTIO_NET_F_GUEST_CSUM] {
        assert!(changed(right, features, &frame).is_some());
        assert!(changed(right, features, &frame[..50]).is_none());
        assert!(changed(right, features, &frame[..frame.len() - 1]).is_none());
        for (l2_len, l3_len) in [(600, 20), (14, 19), (14, 300), (u16::MAX, 20)] {
            let odd = Asked {
                l2_len,
                l3_len,
                ..right
            };
            assert!(changed(odd, features, &frame).is_none());
        }
    }
}

#[test]
fn more_than_checksums_and_a_tag_is_not_little() {
    let build = Build::new(Ip::V4, Transport::Tcp, 100);
    let right = asked(&build);
    assert!(right.little().is_some());
    assert_eq!(Asked::default().little(), Some(Little::default()));
    let odd = [
        Asked {
            segment_size: Some(10),
            ..right
        },
        Asked {
            received_segment_size: 10,
            ..Asked::default()
        },
        Asked {
            transport: Some(Transport::Sctp),
            ..right
        },
        Asked {
            outer_ip: Some((14, 20)),
            ..right
        },
        Asked {
            unable: true,
            ..Asked::default()
        },
    ];
    for asked in odd {
        assert_eq!(asked.little(), None);
    }
}
