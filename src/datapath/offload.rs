//! What the header of a frame from the guest asks for, done or noted in the packet.
#![forbid(unsafe_code)]

use super::{Checksum, Datagram, Marks, Packet, PacketPool, RxRules};
use crate::virtio_net::{
    HEADERS_LEN, Header, Headers, Missing, Sum, Transport, VIRTIO_NET_F_CSUM, behind, checksum_of,
    receive, receive_legacy,
};

/// Takes up what `header`, which is not plain, says of a finished packet. The driver's features say
/// whether it may leave checksums out; marks do not depend on it, since nobody trusts them.
#[inline(never)]
pub(super) fn take_up<P: PacketPool>(
    pool: &P,
    packet: &mut P::Packet,
    header: Header,
    features: u64,
) {
    if header.is_missing_sum() && take_up_sum(pool, packet, header, features, Headers::usual) {
        return;
    }
    take_up_any(pool, packet, header, features);
}

/// Takes up that the checksum is missing from a packet whose headers `look` knows; false when it is another
/// packet.
#[inline(always)]
fn take_up_sum<P: PacketPool>(
    pool: &P,
    packet: &mut P::Packet,
    header: Header,
    features: u64,
    look: impl Fn(&[u8]) -> Option<Headers>,
) -> bool {
    let first = packet.segments().next().unwrap_or_default();
    let whole = first.len() == packet.len() as usize;
    if let Some(headers) = look(first)
        && let Some(transport) = headers.transport
        && header.csum_start <= headers.l2_len + headers.l3_len + headers.l4_len
        && whole
        && pool.rules() != RxRules::Request
    {
        let mut checksum = Checksum::Missing;
        if pool.rules() == RxRules::Complete && features & 1 << VIRTIO_NET_F_CSUM != 0 {
            let start = usize::from(headers.l2_len + headers.l3_len);
            let mut sum = Sum::default();
            sum.add(first.get(start..).unwrap_or_default());
            let value = checksum_of(transport, sum);
            let field = start + usize::from(transport.field());
            pool.store(packet, field, value.to_be_bytes());
            checksum = Checksum::Good;
        }
        let marks = Marks {
            headers,
            checksum,
            segment_size: 0,
            datagram: Datagram::Unknown,
        };
        pool.mark(packet, marks);
        return true;
    }
    false
}

/// The same for any header and any frame.
#[inline(never)]
fn take_up_any<P: PacketPool>(pool: &P, packet: &mut P::Packet, header: Header, features: u64) {
    if header.is_missing_sum() && take_up_sum(pool, packet, header, features, Headers::less_usual) {
        return;
    }
    let mut start = [0; HEADERS_LEN];
    let first = packet.segments().next().unwrap_or_default();
    let first_len = first.len();
    let headers = if first_len >= HEADERS_LEN || first_len == packet.len() as usize {
        Headers::parse(first)
    } else {
        let mut bytes = packet.segments().flatten();
        let len = (&mut bytes).zip(&mut start).fold(0, |len, (from, to)| {
            *to = *from;
            len + 1
        });
        Headers::parse(start.get(..len).unwrap_or_default())
    };
    let complete = match pool.rules() {
        RxRules::Request => {
            if let Some(asked) = receive_legacy(&header, &headers, first_len) {
                pool.ask(packet, asked);
            }
            return;
        }
        RxRules::Complete => features & 1 << VIRTIO_NET_F_CSUM != 0,
        RxRules::Mark => false,
    };
    let received = receive(&header, &headers, packet.len());
    let mut checksum = Checksum::Unknown;
    match (received.missing, headers.transport) {
        (Missing::Sum { start, field }, _) => {
            // The sum cannot be 0, unless all is, and 0 could mean that there is no checksum.
            let value = match sum_from(packet, start.into()).finish() {
                0 => 0xffff,
                value => value,
            };
            if (field + 2) as usize <= first_len {
                pool.store(packet, field as usize, value.to_be_bytes());
            }
        }
        (Missing::Transport, Some(transport)) => {
            checksum = Checksum::Missing;
            if complete && transport != Transport::Sctp {
                let start = usize::from(headers.l2_len) + usize::from(headers.l3_len);
                let value = checksum_of(transport, sum_from(packet, start));
                let field = start + usize::from(transport.field());
                if pool.store(packet, field, value.to_be_bytes()) {
                    checksum = Checksum::Good;
                }
            }
        }
        _ => {}
    }
    let marks = Marks {
        headers,
        checksum,
        segment_size: received.segment_size,
        datagram: received.datagram,
    };
    pool.mark(packet, marks);
}

/// The sum of all bytes of a packet from `start` on.
fn sum_from<T: Packet>(packet: &T, start: usize) -> Sum {
    let mut sum = Sum::default();
    behind(packet.segments(), start).for_each(|bytes| sum.add(bytes));
    sum
}

#[cfg(test)]
mod tests;
