//! What the driver's header asks of whoever gets its frame (VIRTIO 1.2, 5.1.6).
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::header::{
    Header, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};
use super::parse::{Headers, IPV6_LEN, Ip, Transport};
use super::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
};

/// The most bytes at the start of a frame that hold its headers, as far as they are looked at.
pub const HEADERS_LEN: usize = 192;

/// Whether a driver with these features may ask for anything in the header.
pub fn driver_asks(features: u64) -> bool {
    let bits = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_HOST_USO,
    ];
    bits.iter().any(|bit| features & 1 << bit != 0)
}

/// What has to be done about a received frame's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// None is missing.
    Nothing,
    /// That of the transport; its field holds the sum of the pseudo-header.
    Transport,
    /// One that nobody else would find: that of the bytes from `start` on.
    Sum {
        /// Where they begin.
        start: u16,
        /// Where the field is, from the start of the frame.
        field: u32,
    },
}

/// What the packets are that a large frame of UDP stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Datagram {
    /// Not said. An application can only ask for "segments".
    #[default]
    Unknown,
    /// Fragments of one datagram (UFO).
    One,
    /// Datagrams, each with a header of its own (USO).
    Many,
}

/// What a driver's header says of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The checksum that is missing.
    pub missing: Missing,
    /// Payload bytes of the packets that the frame stands for; 0: it is one packet.
    pub segment_size: u16,
    /// Of UDP: what those packets are.
    pub datagram: Datagram,
}

/// What `header` calls a large frame of.
fn kind(header: &Header) -> Option<(Transport, Datagram)> {
    match header.gso_type & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => {
            Some((Transport::Tcp, Datagram::Unknown))
        }
        VIRTIO_NET_HDR_GSO_UDP => Some((Transport::Udp, Datagram::One)),
        VIRTIO_NET_HDR_GSO_UDP_L4 => Some((Transport::Udp, Datagram::Many)),
        _ => None,
    }
}

/// Reads `header` with what its frame, of `len` bytes, was found to begin with. What does not fit
/// together asks for nothing.
pub fn receive(header: &Header, headers: &Headers, len: u32) -> Received {
    let mut received = Received {
        missing: Missing::Nothing,
        segment_size: 0,
        datagram: Datagram::Unknown,
    };
    let transport = headers.transport;
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        let end = headers.l2_len + headers.l3_len + headers.l4_len;
        let field = u32::from(header.csum_start) + u32::from(header.csum_offset);
        received.missing = if transport.is_some() && header.csum_start <= end {
            Missing::Transport
        } else if u32::from(header.csum_start) < len && field + 2 <= len {
            let start = header.csum_start;
            Missing::Sum { start, field }
        } else {
            Missing::Nothing
        };
    }
    if let Some((of, datagram)) = kind(header)
        && header.gso_size != 0
        && transport == Some(of)
    {
        received.segment_size = header.gso_size;
        received.datagram = datagram;
        received.missing = Missing::Transport;
    }
    received
}

/// What an application asks of a frame that it sends. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// A VLAN tag in front of all others.
    pub vlan: Option<u16>,
    /// Bytes before the IP header; in a tunnel, before the inner one.
    pub l2_len: u16,
    /// Bytes of that IP header.
    pub l3_len: u16,
    /// Bytes of the transport's header.
    pub l4_len: u16,
    /// The version of IP; the header tells when the application does not.
    pub ip: Option<Ip>,
    /// The checksum of the IPv4 header.
    pub ip_checksum: bool,
    /// The checksum of the transport.
    pub transport: Option<Transport>,
    /// To be cut into packets with so many bytes of payload.
    pub segment_size: Option<u16>,
    /// Of UDP: what those packets are to be; also of a frame that was received so.
    pub datagram: Datagram,
    /// In a tunnel.
    pub tunnel: bool,
    /// Where the outer IPv4 header is whose checksum is asked for, and its length.
    pub outer_ip: Option<(u16, u16)>,
    /// Something that can never be done is asked for.
    pub unable: bool,
    /// Not asked, but marked so by whoever received the frame: the transport's checksum is missing.
    pub received_partial: bool,
    /// As before: the frame stands for packets with so many bytes of payload; 0: it does not.
    pub received_segment_size: u16,
}

/// What `header` asks of a frame, in the words of one that sends it on (`legacy-ol-flags=1`). `None`
/// when anything does not fit: strict, since nobody looks at the frame again. `first` is the length
/// of the frame's first segment.
pub fn receive_legacy(header: &Header, headers: &Headers, first: usize) -> Option<Asked> {
    let ip = headers.ip?;
    let transport = headers.transport?;
    // More than one tag or an extension is more than the flags can say.
    if headers.l2_len > 18 || ip == Ip::V6 && headers.l3_len != IPV6_LEN {
        return None;
    }
    let start = headers.l2_len + headers.l3_len;
    if usize::from(start + transport.least()) > first {
        return None;
    }
    let mut asked = Asked {
        l2_len: headers.l2_len,
        l3_len: headers.l3_len,
        ip: Some(ip),
        ..Asked::default()
    };
    if header.flags == VIRTIO_NET_HDR_F_NEEDS_CSUM {
        if header.csum_start != start || header.csum_offset != transport.field() {
            return None;
        }
        asked.transport = Some(transport);
    }
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE {
        let (of, datagram) = kind(header)?;
        if of != transport || header.gso_size == 0 || usize::from(start + headers.l4_len) > first {
            return None;
        }
        asked.transport = Some(transport);
        asked.l4_len = headers.l4_len;
        asked.segment_size = Some(header.gso_size);
        asked.datagram = datagram;
    }
    Some(asked)
}

/// The checksum of TCP or UDP whose bytes, pseudo-header included, have this sum.
pub fn checksum_of(transport: Transport, sum: Sum) -> u16 {
    match (transport, sum.finish()) {
        // 0 says that there is none (RFC 768).
        (Transport::Udp, 0) => 0xffff,
        (_, checksum) => checksum,
    }
}

/// What is left of `segments` behind their first `skip` bytes.
pub fn behind<'s>(
    segments: impl Iterator<Item = &'s [u8]>,
    mut skip: usize,
) -> impl Iterator<Item = &'s [u8]> {
    segments.map(move |segment| {
        let here = skip.min(segment.len());
        skip -= here;
        segment.get(here..).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests;
