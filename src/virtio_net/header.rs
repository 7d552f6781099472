//! The header in front of each frame (VIRTIO 1.2, 5.1.6).
#![forbid(unsafe_code)]

/// The checksum is missing from `csum_start` on; its field holds the sum of the pseudo-header.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum was seen to be right.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// The frame is one packet.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// The frame is to be cut into packets of TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// The frame is to be cut into IP fragments of one UDP datagram.
pub const VIRTIO_NET_HDR_GSO_UDP: u8 = 3;
/// The frame is to be cut into packets of TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// The frame is to be cut into UDP datagrams (VIRTIO 1.3, 5.1.6).
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// In addition to a kind of TCP: its header has the congestion window reduced flag.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// What a header asks of the one who takes the frame; all zero asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers of the frame; a hint.
    pub hdr_len: u16,
    /// Payload bytes of each packet that the frame is cut into.
    pub gso_size: u16,
    /// Where the checksum begins, from the start of the frame.
    pub csum_start: u16,
    /// Where its field is, from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// Bytes of the part that all drivers have; the count of buffers may follow.
    pub const LEN: usize = 10;

    /// The header in these bytes, which must be a copy that nobody changes.
    #[inline(always)]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// The header as the driver finds it, with the count of buffers behind it.
    #[inline]
    pub fn to_bytes(self, num_buffers: u16) -> [u8; 12] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = num_buffers.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            n0,
            n1,
        ]
    }

    /// Whether a checksum is missing, and nothing else is asked for.
    #[inline(always)]
    pub fn is_missing_sum(&self) -> bool {
        self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 && self.gso_type == VIRTIO_NET_HDR_GSO_NONE
    }

    /// Whether nothing is asked for, whatever the other fields hold.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.flags | self.gso_type == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_has_them() {
        let bytes = [1, 4, 66, 0, 0xb4, 5, 34, 0, 16, 0];
        let header = Header::from_bytes(bytes);
        let expected = Header {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            gso_type: VIRTIO_NET_HDR_GSO_TCPV6,
            hdr_len: 66,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(header, expected);
        let with_count = header.to_bytes(0x102);
        assert_eq!(with_count[..10], bytes);
        assert_eq!(with_count[10..], [2, 1]);
    }

    #[test]
    fn a_header_without_flags_and_kind_is_plain() {
        let mut header = Header {
            gso_size: 7,
            csum_start: 1,
            ..Header::default()
        };
        assert!(header.is_plain());
        header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
        assert!(!header.is_plain());
    }
}
