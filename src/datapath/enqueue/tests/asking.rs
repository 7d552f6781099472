//! Whatever packets ask for, all bodies send the same bytes. `super` says which ring it is.
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "frames of tests are small")]

use proptest::prelude::*;

use super::ring;
use crate::testing::{Buffer, Build, FakeDriver};
use crate::virtio_net::{
    Asked, Ip, Transport, VIRTIO_F_VERSION_1, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF,
};

/// A packet: its frame, where that is cut, and what is asked.
#[derive(Clone, Debug)]
struct Wish {
    frame: Vec<u8>,
    cut: Option<usize>,
    asked: Option<Asked>,
}

fn builds() -> impl Strategy<Value = Build> {
    let ips = prop::sample::select(vec![Ip::V4, Ip::V6]);
    let transports = prop::sample::select(vec![
        Transport::Tcp,
        Transport::Udp,
        Transport::Udp,
        Transport::Sctp,
    ]);
    let options = prop::sample::select(vec![0, 0, 0, 8]);
    (0..2_usize, ips, options, transports, 0..300_usize).prop_map(
        |(tags, ip, options, transport, payload)| Build {
            tags,
            ip,
            options,
            transport,
            payload,
        },
    )
}

/// Mostly what makes sense, and some lengths that do not.
fn wishes() -> impl Strategy<Value = Wish> {
    let cut = prop::option::of(0..120_usize);
    let vlan = prop::option::of(any::<u16>());
    let length = prop::option::weighted(0.1, 0..120_u16);
    (builds(), cut, 0..6_u8, vlan, length, any::<bool>()).prop_map(
        |(build, cut, kind, vlan, length, padded)| {
            let mut frame = build.frame();
            if padded {
                frame.extend([0x5a; 7]);
            }
            let headers = Asked {
                l2_len: build.l2_len() as u16,
                l3_len: length.unwrap_or(build.l3_len() as u16),
                ip: Some(build.ip),
                vlan,
                ..Asked::default()
            };
            let asked = match kind {
                0 => None,
                1 => Some(Asked {
                    vlan,
                    ..Asked::default()
                }),
                2 => Some(Asked {
                    received_partial: true,
                    vlan,
                    ..Asked::default()
                }),
                3 => Some(Asked {
                    ip_checksum: true,
                    ..headers
                }),
                4 => Some(Asked {
                    ip_checksum: true,
                    transport: Some(build.transport),
                    ..headers
                }),
                _ => Some(Asked {
                    transport: Some(build.transport),
                    ..headers
                }),
            };
            Wish { frame, cut, asked }
        },
    )
}

fn driver(size: u16, sums: bool, merges: bool) -> FakeDriver {
    let mut driver = ring(size).feature(VIRTIO_F_VERSION_1);
    if sums {
        driver = driver.feature(VIRTIO_NET_F_GUEST_CSUM);
    }
    if merges {
        driver = driver.feature(VIRTIO_NET_F_MRG_RXBUF);
    }
    driver
}

/// What arrives in buffers like these, and how many packets were dropped.
fn arrives(mut driver: FakeDriver, wishes: &[Wish], buffers: &[Buffer]) -> (Vec<Vec<u8>>, u64) {
    for _ in wishes {
        driver.offer(buffers);
    }
    let mut packets = Vec::new();
    for Wish { frame, cut, asked } in wishes {
        let packet = match cut {
            Some(cut) => {
                let (first, second) = frame.split_at(*cut.min(&frame.len()));
                driver.pool.packet(&[first, second])
            }
            None => driver.pool.packet(&[frame]),
        };
        packets.push(match asked {
            Some(asked) => packet.asking(*asked),
            None => packet,
        });
    }
    assert_eq!(driver.enqueue_packets(&packets), packets.len());
    assert_eq!(driver.pool.live(), 0);
    assert!(driver.memory.canaries_are_whole());
    let used = driver.used();
    let arrived = used.into_iter().map(|used| driver.written(used)).collect();
    (arrived, driver.counted(|c| &c.drop_csum))
}

proptest! {
    #[test]
    fn simple_buffers_get_what_the_general_body_puts_into_chains(
        wishes in prop::collection::vec(wishes(), 1..20),
        sums in any::<bool>(),
        merges in any::<bool>(),
    ) {
        let simple = arrives(driver(64, sums, merges), &wishes, &[Buffer::writable(1000)]);
        let parts = [12, 5, 983].map(Buffer::writable);
        let chains = arrives(driver(64, sums, merges), &wishes, &parts);

        prop_assert_eq!(simple, chains);
    }
}
