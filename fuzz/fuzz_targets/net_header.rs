//! A guest that writes any virtio-net header before any frame; what it was taken for is sent on to
//! another guest.
//!
//! The input is a byte each for the guests' features, how marks are wanted, the room of a packet and
//! where the chain is cut, the header, and the frame. `cargo xtask fuzz net_header`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rte_net_vhost::datapath::{Asked, Checksum, Packet, Release, RxRules};
use rte_net_vhost::testing::{Buffer, FakeDriver};
use rte_net_vhost::virtio_net::{
    VIRTIO_F_VERSION_1, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
};

/// A driver with those of `bits` that `chosen` names.
fn driver(bits: &[u32], chosen: u8) -> FakeDriver {
    let mut driver = FakeDriver::split(64);
    for (nth, &bit) in bits.iter().enumerate() {
        if chosen & 1 << nth != 0 {
            driver = driver.feature(bit);
        }
    }
    driver
}

fuzz_target!(|data: &[u8]| {
    let Some((&[features, accepted, rules, room, cut, tag], rest)) = data.split_first_chunk()
    else {
        return;
    };
    let Some((header, frame)) = rest.split_first_chunk::<10>() else {
        return;
    };
    if frame.is_empty() {
        return;
    }
    let rules = [RxRules::Mark, RxRules::Complete, RxRules::Request][usize::from(rules % 3)];
    let host = [VIRTIO_F_VERSION_1, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_UFO];
    let room = [16, 64, 300, 2048][usize::from(room % 4)];
    let mut sender = driver(&host, features).packet_room(room);
    sender.pool.set_rules(rules);
    let mut bytes = header.to_vec();
    bytes.resize(sender.header_len(), 0);
    bytes.extend(frame);
    let (first, second) = bytes.split_at(1 + usize::from(cut) % (bytes.len() - 1));
    sender.offer(&[Buffer::holding(first), Buffer::holding(second)]);
    let packets = sender.dequeue_packets(1);
    let packet = packets[0];
    let seen = packet.to_vec();
    assert_eq!(seen.len(), frame.len());
    let changed = seen.iter().zip(frame).filter(|(new, old)| new != old);
    assert!(changed.count() <= 2);
    let mut asked = packet.asked().unwrap_or_default();
    if let Some(marks) = packet.marks() {
        asked = Asked {
            received_partial: marks.checksum == Checksum::Missing,
            received_segment_size: marks.segment_size,
            datagram: marks.datagram,
            ..asked
        };
    }
    if tag & 1 != 0 {
        asked.vlan = Some(tag.into());
    }
    sender.pool.release(&packets);
    assert_eq!(sender.pool.live(), 0);

    let guest = [
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_UFO,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ];
    let mut receiver = driver(&guest, accepted);
    for _ in 0..8 {
        receiver.offer(&[Buffer::writable(1024)]);
    }
    let parts: Vec<&[u8]> = seen.chunks(room).collect();
    let packet = receiver.pool.packet(&parts).asking(asked);
    let taken = receiver.enqueue_packets(&[packet]);
    if taken == 0 {
        assert_eq!(packet.to_vec(), seen);
        receiver.pool.release(&[packet]);
    }
    assert_eq!(receiver.pool.live(), 0);
    assert!(receiver.memory.canaries_are_whole());
});
