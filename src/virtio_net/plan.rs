//! How a frame is sent to a driver for which something is asked.
#![forbid(unsafe_code)]

use super::checksum::{Crc32c, Sum};
use super::header::{
    Header, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};
use super::offload::{Asked, Datagram, HEADERS_LEN, behind, checksum_of};
use super::parse::{Headers, IPV4_LEN, IPV6_LEN, Ip, Transport, word};
use super::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
};

/// Bytes of a VLAN tag.
const TAG_LEN: u16 = 4;
/// Bytes of both addresses of an Ethernet header; a tag goes behind them.
const ADDRESSES_LEN: usize = 12;

/// Why a frame cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its headers are not where the request for a checksum says.
    Checksum,
    /// The driver does not take frames of that size, or of that kind.
    Segments,
    /// Anything else.
    Other,
}

/// The transport's part of a frame, of which nobody else makes the checksum.
#[derive(Clone, Copy, Debug)]
struct Complete {
    transport: Transport,
    /// Where the transport's header begins in the frame as it is sent.
    start: usize,
    len: usize,
}

/// The part of a frame that a checksum of its transport covers.
struct Covered {
    ip: Ip,
    /// Where it begins.
    start: u16,
    /// From there to the end of the frame.
    rest: usize,
    /// How much of that counts.
    len: usize,
    /// Where the checksum stands.
    field: usize,
    /// The sum that comes before it.
    pseudo: Sum,
}

impl Covered {
    /// For what is `asked` of a frame of `len` bytes that begins with `head`.
    fn new(asked: &Asked, transport: Transport, head: &[u8], len: u32) -> Result<Self, Refused> {
        let network = usize::from(asked.l2_len);
        let start_u16 = asked
            .l2_len
            .checked_add(asked.l3_len)
            .ok_or(Refused::Checksum)?;
        let start = usize::from(start_u16);
        let header = head.get(network..start).ok_or(Refused::Checksum)?;
        let ip = match (asked.ip, header.first().copied().unwrap_or_default() >> 4) {
            (Some(ip), _) => ip,
            (None, 6) => Ip::V6,
            (None, _) => Ip::V4,
        };
        let large = asked.segment_size.is_some();
        // The IP header tells the length; behind it there may be padding. That of a frame which is
        // to be cut need not tell.
        let carried = match ip {
            Ip::V4 if asked.l3_len >= IPV4_LEN => {
                word(header, 2).and_then(|total| total.checked_sub(asked.l3_len))
            }
            Ip::V6 if asked.l3_len >= IPV6_LEN => {
                word(header, 4).and_then(|total| total.checked_sub(asked.l3_len - IPV6_LEN))
            }
            _ => return Err(Refused::Checksum),
        };
        let rest = (len as usize).checked_sub(start).ok_or(Refused::Checksum)?;
        let carried = match carried {
            _ if large => rest,
            Some(carried) => usize::from(carried),
            None => return Err(Refused::Checksum),
        };
        let field = start + usize::from(transport.field());
        if carried > rest || carried < usize::from(transport.least()) {
            return Err(Refused::Checksum);
        }
        let addresses = match ip {
            Ip::V4 => header.get(12..20),
            Ip::V6 => header.get(8..40),
        };
        let mut pseudo = Sum::default();
        pseudo.add(addresses.ok_or(Refused::Checksum)?);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "both halves of the length, as the sum wants them"
        )]
        let (high, low) = ((carried >> 16) as u16, carried as u16);
        pseudo.add_word(high);
        pseudo.add_word(low);
        pseudo.add_word(u16::from(transport.protocol()));
        Ok(Self {
            ip,
            start: start_u16,
            rest,
            len: carried,
            field,
            pseudo,
        })
    }
}

/// Asks for what the one who received the frame has marked.
fn adopt_marks(asked: &mut Asked, headers: &Headers) -> Result<(), Refused> {
    let Some(transport) = headers.transport else {
        // A mark without a transport means nothing to anyone; a large frame must not pass as one
        // packet.
        return match asked.received_segment_size {
            0 => Ok(()),
            _ => Err(Refused::Segments),
        };
    };
    asked.l2_len = headers.l2_len;
    asked.l3_len = headers.l3_len;
    asked.l4_len = headers.l4_len;
    asked.ip = headers.ip;
    asked.transport = Some(transport);
    if asked.received_segment_size != 0 {
        asked.segment_size = Some(asked.received_segment_size);
    }
    Ok(())
}

/// How a frame is sent for which something is asked: a header, and other bytes in place of its
/// first ones. The application's own bytes are never written; others may have them, too.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The header.
    pub header: Header,
    /// Bytes of the frame as it is sent.
    len: u32,
    head: [u8; HEADERS_LEN + TAG_LEN as usize],
    head_len: usize,
    /// Bytes of the frame for which `head` stands.
    replaced: usize,
    complete: Option<Complete>,
}

impl Plan {
    /// Plans for what is `asked` of a frame of `len` bytes in `segments`, for a driver that acked
    /// `features`.
    ///
    /// # Errors
    ///
    /// Something that neither the driver takes nor can be done here.
    pub fn new<'s>(
        mut asked: Asked,
        features: u64,
        len: u32,
        segments: impl Iterator<Item = &'s [u8]>,
    ) -> Result<Self, Refused> {
        let mut plan = Self {
            header: Header::default(),
            len,
            head: [0; HEADERS_LEN + TAG_LEN as usize],
            head_len: 0,
            replaced: 0,
            complete: None,
        };
        if asked.unable {
            return Err(Refused::Other);
        }
        plan.fill(segments);
        if asked.received_partial || asked.received_segment_size != 0 {
            adopt_marks(&mut asked, &Headers::parse(plan.head()))?;
        }
        if let Some((at, len)) = asked.outer_ip {
            plan.set_ip_checksum(at, len)?;
        }
        if asked.ip_checksum && asked.ip != Some(Ip::V6) {
            plan.set_ip_checksum(asked.l2_len, asked.l3_len)?;
        }
        if let Some(transport) = asked.transport {
            plan.checksum(&asked, transport, Accepted(features), len)?;
        }
        if let Some(tag) = asked.vlan {
            plan.insert_tag(tag)?;
        }
        Ok(plan)
    }

    /// Bytes of the frame as it is sent.
    pub fn frame_len(&self) -> u32 {
        self.len
    }

    fn head(&self) -> &[u8] {
        self.head.get(..self.head_len).unwrap_or_default()
    }

    fn head_mut(&mut self) -> &mut [u8] {
        self.head.get_mut(..self.head_len).unwrap_or_default()
    }

    fn fill<'s>(&mut self, segments: impl Iterator<Item = &'s [u8]>) {
        for segment in segments {
            let room = self.head.get_mut(self.head_len..HEADERS_LEN);
            let room = room.unwrap_or_default();
            let len = room.len().min(segment.len());
            for (to, from) in room.iter_mut().zip(segment) {
                *to = *from;
            }
            self.head_len += len;
            if len == 0 && self.head_len == HEADERS_LEN {
                break;
            }
        }
        self.replaced = self.head_len;
    }

    fn set_ip_checksum(&mut self, at: u16, len: u16) -> Result<(), Refused> {
        let (at, len) = (usize::from(at), usize::from(len));
        let header = self.head_mut().get_mut(at..at + len);
        let header = header.ok_or(Refused::Checksum)?;
        if len < usize::from(IPV4_LEN) {
            return Err(Refused::Checksum);
        }
        set(header, 10, 0);
        let mut sum = Sum::default();
        sum.add(header);
        set(header, 10, sum.finish());
        Ok(())
    }

    /// Leaves the checksum, and the cutting, to a driver that takes it, or plans to make the
    /// checksum here. `len` is that of the frame.
    fn checksum(
        &mut self,
        asked: &Asked,
        transport: Transport,
        accepted: Accepted,
        len: u32,
    ) -> Result<(), Refused> {
        let covered = Covered::new(asked, transport, self.head(), len)?;
        let Covered { start, field, .. } = covered;
        if let Some(size) = asked.segment_size {
            self.cut(
                asked,
                transport,
                covered.ip,
                size,
                accepted,
                start,
                covered.rest,
            )?;
        }
        let head = self.head_mut();
        let written = if transport == Transport::Sctp {
            set(head, field, 0) && set(head, field + 2, 0)
        } else {
            set(head, field, covered.pseudo.folded())
        };
        if !written {
            return Err(Refused::Checksum);
        }
        if accepted.checksum() {
            self.header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            self.header.csum_start = start;
            self.header.csum_offset = transport.field();
        } else {
            self.complete = Some(Complete {
                transport,
                start: start.into(),
                len: covered.len,
            });
        }
        Ok(())
    }

    /// Asks the driver to take the frame as what it is: many packets. A frame that is no more than
    /// one is just that. `rest` is the length from the transport's header on, which is at `start`.
    #[allow(
        clippy::too_many_arguments,
        reason = "all of it is known by the caller"
    )]
    fn cut(
        &mut self,
        asked: &Asked,
        transport: Transport,
        ip: Ip,
        size: u16,
        accepted: Accepted,
        start: u16,
        rest: usize,
    ) -> Result<(), Refused> {
        let at = usize::from(start);
        let header = self.head().get(at..).unwrap_or_default();
        let l4_len = match (asked.l4_len, transport) {
            (0, Transport::Tcp) => u16::from(header.get(12).copied().unwrap_or_default() >> 4) * 4,
            (0, other) => other.least(),
            (len, _) => len,
        };
        let payload = rest.checked_sub(usize::from(l4_len));
        let payload = payload.ok_or(Refused::Segments)?;
        if size == 0 {
            return Err(Refused::Segments);
        }
        if payload <= usize::from(size) {
            return Ok(());
        }
        let kind = match transport {
            Transport::Tcp => accepted.tcp(ip),
            Transport::Udp => accepted.udp(ip, asked.datagram),
            Transport::Sctp => None,
        };
        let kind = kind.filter(|_| !asked.tunnel).ok_or(Refused::Segments)?;
        let reduced = header.get(13).copied().unwrap_or_default() & 0x80 != 0;
        let ecn = transport == Transport::Tcp && reduced && accepted.has(VIRTIO_NET_F_GUEST_ECN);
        self.header.gso_type = if ecn {
            kind | VIRTIO_NET_HDR_GSO_ECN
        } else {
            kind
        };
        self.header.gso_size = size;
        self.header.hdr_len = start.saturating_add(l4_len);
        Ok(())
    }

    fn insert_tag(&mut self, tag: u16) -> Result<(), Refused> {
        let shift = usize::from(TAG_LEN);
        if self.head_len < ADDRESSES_LEN {
            return Err(Refused::Other);
        }
        // From the end: the two places overlap.
        for at in (ADDRESSES_LEN..self.head_len).rev() {
            let byte = self.head.get(at).copied().unwrap_or_default();
            if let Some(to) = self.head.get_mut(at + shift) {
                *to = byte;
            }
        }
        self.head_len += shift;
        self.len = self.len.saturating_add(TAG_LEN.into());
        set(&mut self.head, ADDRESSES_LEN, 0x8100);
        set(&mut self.head, ADDRESSES_LEN + 2, tag);
        if self.header.flags != 0 {
            self.header.csum_start += TAG_LEN;
        }
        if self.header.gso_type != 0 {
            self.header.hdr_len = self.header.hdr_len.saturating_add(TAG_LEN);
        }
        if let Some(complete) = &mut self.complete {
            complete.start += shift;
        }
        Ok(())
    }

    /// Makes the checksum that is left to do. `segments` are those of the frame that was planned for.
    /// False when it has fewer bytes than it said.
    #[must_use]
    pub fn complete<'s>(&mut self, segments: impl Iterator<Item = &'s [u8]>) -> bool {
        let Some(Complete {
            transport,
            start,
            len,
        }) = self.complete
        else {
            return true;
        };
        let head = self.head().get(start..).unwrap_or_default();
        let head = head.get(..len).unwrap_or(head);
        let mut left = len - head.len();
        let mut sum = Sum::default();
        let mut crc = Crc32c::default();
        let mut add = |piece: &[u8]| match transport {
            Transport::Sctp => crc.add(piece),
            _ => sum.add(piece),
        };
        add(head);
        for piece in behind(segments, self.replaced) {
            let piece = piece.get(..left).unwrap_or(piece);
            left -= piece.len();
            add(piece);
        }
        let at = start + usize::from(transport.field());
        if transport == Transport::Sctp {
            let field = self.head.get_mut(at..at + 4).unwrap_or_default();
            for (to, from) in field.iter_mut().zip(crc.finish()) {
                *to = from;
            }
        } else {
            set(&mut self.head, at, checksum_of(transport, sum));
        }
        left == 0
    }

    /// The bytes to send, of the frame that was planned for.
    pub fn bytes<'s>(
        &'s self,
        segments: impl Iterator<Item = &'s [u8]>,
    ) -> impl Iterator<Item = &'s [u8]> {
        std::iter::once(self.head()).chain(behind(segments, self.replaced))
    }
}

/// What a driver takes.
#[derive(Clone, Copy)]
struct Accepted(u64);

impl Accepted {
    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    fn checksum(self) -> bool {
        self.has(VIRTIO_NET_F_GUEST_CSUM)
    }

    /// `kind` when the driver takes it. Who cuts a frame makes checksums (5.1.3.1).
    fn kind(self, bit: u32, kind: u8) -> Option<u8> {
        (self.checksum() && self.has(bit)).then_some(kind)
    }

    fn tcp(self, ip: Ip) -> Option<u8> {
        match ip {
            Ip::V4 => self.kind(VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_HDR_GSO_TCPV4),
            Ip::V6 => self.kind(VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_HDR_GSO_TCPV6),
        }
    }

    /// One datagram never becomes many, nor many one. Where nobody said which it is, fragments are
    /// what mbuf's flag is defined as.
    fn udp(self, ip: Ip, datagram: Datagram) -> Option<u8> {
        let one = || self.kind(VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_HDR_GSO_UDP);
        let bit = match ip {
            Ip::V4 => VIRTIO_NET_F_GUEST_USO4,
            Ip::V6 => VIRTIO_NET_F_GUEST_USO6,
        };
        let many = || self.kind(bit, VIRTIO_NET_HDR_GSO_UDP_L4);
        match datagram {
            Datagram::One => one(),
            Datagram::Many => many(),
            Datagram::Unknown => one().or_else(many),
        }
    }
}

/// Writes a big-endian word; false when it is not inside.
fn set(bytes: &mut [u8], at: usize, value: u16) -> bool {
    let Some(field) = bytes.get_mut(at..at + 2) else {
        return false;
    };
    field.copy_from_slice(&value.to_be_bytes());
    true
}

#[cfg(test)]
mod tests;
