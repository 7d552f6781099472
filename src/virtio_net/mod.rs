//! What the bytes mean: feature bits and header of a virtio network device (VIRTIO 1.2, 5.1).
#![forbid(unsafe_code)]

mod checksum;
mod header;
mod little;
mod offload;
mod parse;
mod plan;

pub use checksum::Sum;
pub use header::{
    Header, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};
pub use little::{Changes, Little, Word, takes_unsummed};
pub use offload::{
    Asked, Datagram, HEADERS_LEN, Missing, Received, behind, checksum_of, driver_asks, receive,
    receive_legacy,
};
pub use parse::{Headers, Ip, Transport, ip_checksum_is_right};
pub use plan::{Plan, Refused};

/// The driver may leave checksums to the device (bit number).
pub const VIRTIO_NET_F_CSUM: u32 = 0;
/// The driver takes frames with a partial checksum (bit number).
pub const VIRTIO_NET_F_GUEST_CSUM: u32 = 1;
/// The driver takes large frames of TCP over IPv4 (bit number).
pub const VIRTIO_NET_F_GUEST_TSO4: u32 = 7;
/// The driver takes large frames of TCP over IPv6 (bit number).
pub const VIRTIO_NET_F_GUEST_TSO6: u32 = 8;
/// The driver takes large frames of TCP with ECN (bit number).
pub const VIRTIO_NET_F_GUEST_ECN: u32 = 9;
/// The driver takes large UDP datagrams, to be cut into fragments (bit number).
pub const VIRTIO_NET_F_GUEST_UFO: u32 = 10;
/// The driver may send large frames of TCP over IPv4 (bit number).
pub const VIRTIO_NET_F_HOST_TSO4: u32 = 11;
/// The driver may send large frames of TCP over IPv6 (bit number).
pub const VIRTIO_NET_F_HOST_TSO6: u32 = 12;
/// The driver may send large frames of TCP with ECN (bit number).
pub const VIRTIO_NET_F_HOST_ECN: u32 = 13;
/// The driver may send large UDP datagrams, to be cut into fragments (bit number).
pub const VIRTIO_NET_F_HOST_UFO: u32 = 14;
/// The driver can merge receive buffers (bit number).
pub const VIRTIO_NET_F_MRG_RXBUF: u32 = 15;
/// Event indices (bit number).
pub const VIRTIO_F_EVENT_IDX: u32 = 29;
/// VIRTIO 1.0 and later (bit number).
pub const VIRTIO_F_VERSION_1: u32 = 32;
/// Packed rings (bit number).
pub const VIRTIO_F_RING_PACKED: u32 = 34;
/// Buffers are used in the order in which they were made available (bit number).
pub const VIRTIO_F_IN_ORDER: u32 = 35;
/// The driver takes large frames of UDP datagrams over IPv4 (bit number).
pub const VIRTIO_NET_F_GUEST_USO4: u32 = 54;
/// The driver takes large frames of UDP datagrams over IPv6 (bit number).
pub const VIRTIO_NET_F_GUEST_USO6: u32 = 55;
/// The driver may send large frames of UDP datagrams (bit number).
pub const VIRTIO_NET_F_HOST_USO: u32 = 56;
