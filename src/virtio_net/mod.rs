//! What the bytes mean: feature bits and header of a virtio network device (VIRTIO 1.2, 5.1).
#![forbid(unsafe_code)]

/// Maximum MTU offered (bit number).
pub const VIRTIO_NET_F_MTU: u32 = 3;
/// The driver can merge receive buffers (bit number).
pub const VIRTIO_NET_F_MRG_RXBUF: u32 = 15;
/// Control queue (bit number).
pub const VIRTIO_NET_F_CTRL_VQ: u32 = 17;
/// Control of receive modes (bit number).
pub const VIRTIO_NET_F_CTRL_RX: u32 = 18;
/// The driver can announce itself (bit number).
pub const VIRTIO_NET_F_GUEST_ANNOUNCE: u32 = 21;
/// Several queue pairs (bit number).
pub const VIRTIO_NET_F_MQ: u32 = 22;
/// Any layout of descriptors; always so with [`VIRTIO_F_VERSION_1`] (bit number).
pub const VIRTIO_F_ANY_LAYOUT: u32 = 27;
/// Indirect descriptors (bit number).
pub const VIRTIO_F_INDIRECT_DESC: u32 = 28;
/// Event indices (bit number).
pub const VIRTIO_F_EVENT_IDX: u32 = 29;
/// VIRTIO 1.0 and later (bit number).
pub const VIRTIO_F_VERSION_1: u32 = 32;
/// Packed rings (bit number).
pub const VIRTIO_F_RING_PACKED: u32 = 34;
/// Buffers are used in the order in which they were made available (bit number).
pub const VIRTIO_F_IN_ORDER: u32 = 35;
