//! Checksums that an application asks for and the guest does not take upon itself, in software.
#![forbid(unsafe_code)]

/// The transport protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// What is asked for, with the lengths that the application gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes before the IP header.
    pub(super) l2_len: usize,
    /// Bytes of the IP header, extensions and options included.
    pub(super) l3_len: usize,
    /// It is an IPv6 header.
    pub(super) ipv6: bool,
    /// The checksum of the IPv4 header.
    pub(super) header: bool,
    /// The checksum of TCP or UDP.
    pub(super) transport: Option<Transport>,
}

/// Bytes of an IPv4 header without options.
const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extensions.
const IPV6_LEN: usize = 40;

/// The ones' complement sum of RFC 1071 over pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    total: u64,
    /// An odd number of bytes was added so far.
    odd: bool,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(2);
        let mut sum = 0_u64;
        for word in &mut words {
            sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u64::from(*last) << 8;
        }
        // In a piece that begins at an odd place the bytes of each word stand the other way round.
        let sum = fold(sum);
        self.total += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= bytes.len() % 2 == 1;
    }

    fn finish(self) -> u16 {
        !fold(self.total)
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

/// Writes the checksums into the headers in `first`, the first segment of a packet; `rest` are the
/// others. `None`: the headers are not where the request says, and what is there is as it was, or
/// has a right IPv4 checksum.
pub(super) fn complete<'s>(
    first: &mut [u8],
    rest: impl Iterator<Item = &'s [u8]>,
    request: &Request,
) -> Option<()> {
    let packet = first.get_mut(request.l2_len..)?;
    let least = if request.ipv6 { IPV6_LEN } else { IPV4_LEN };
    if request.l3_len < least || packet.len() < request.l3_len {
        return None;
    }
    let (header, body) = packet.split_at_mut(request.l3_len);
    if request.header && !request.ipv6 {
        set(header, 10, 0)?;
        let mut sum = Sum::default();
        sum.add(header);
        set(header, 10, sum.finish())?;
    }
    let Some(transport) = request.transport else {
        return Some(());
    };
    let (field, protocol) = match transport {
        Transport::Tcp => (16, 6_u16),
        Transport::Udp => (6, 17),
    };
    // The IP header tells the length; behind it there may be padding.
    let (addresses, len) = if request.ipv6 {
        let extensions = u16::try_from(request.l3_len - IPV6_LEN).ok()?;
        (
            header.get(8..40)?,
            word(header, 4)?.checked_sub(extensions)?,
        )
    } else {
        let header_len = u16::try_from(request.l3_len).ok()?;
        (
            header.get(12..20)?,
            word(header, 2)?.checked_sub(header_len)?,
        )
    };
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add(&len.to_be_bytes());
    sum.add(&protocol.to_be_bytes());
    set(body, field, 0)?;
    let mut left = usize::from(len);
    let mut add = |piece: &[u8]| {
        let piece = piece.get(..left).unwrap_or(piece);
        sum.add(piece);
        left -= piece.len();
    };
    add(body);
    rest.for_each(add);
    if left != 0 {
        return None;
    }
    let checksum = match (transport, sum.finish()) {
        // 0 says that there is none (RFC 768).
        (Transport::Udp, 0) => 0xffff,
        (_, checksum) => checksum,
    };
    set(body, field, checksum)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(word.try_into().ok()?))
}

fn set(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes
        .get_mut(at..at + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet and IPv4 with `payload` of `protocol`, without checksums.
    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0; 12];
        packet.extend([
            8, 0, 0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0,
        ]);
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(payload);
        packet
    }

    fn request(transport: Transport) -> Request {
        Request {
            l2_len: 14,
            l3_len: 20,
            ipv6: false,
            header: true,
            transport: Some(transport),
        }
    }

    /// What a receiver does: the sum over all, checksum included, must be all ones.
    fn is_right(packet: &[u8], protocol: u8) -> bool {
        let mut header = Sum::default();
        header.add(&packet[14..34]);
        let mut transport = Sum::default();
        let len = u16::from_be_bytes([packet[16], packet[17]]) - 20;
        transport.add(&packet[26..34]);
        transport.add(&[0, protocol]);
        transport.add(&len.to_be_bytes());
        transport.add(&packet[34..34 + usize::from(len)]);
        header.finish() == 0 && transport.finish() == 0
    }

    #[test]
    fn both_checksums_are_right_for_odd_lengths_too() {
        for len in [8, 9, 100, 1471] {
            let mut packet = ipv4(17, &vec![0xa5; len]);
            assert!(complete(&mut packet, std::iter::empty(), &request(Transport::Udp)).is_some());
            assert!(is_right(&packet, 17), "{len} bytes");
        }
    }

    #[test]
    fn segments_that_end_at_odd_places_count_as_one_packet() {
        let payload: Vec<u8> = (0..=255).collect();
        let mut whole = ipv4(6, &payload);
        complete(&mut whole, std::iter::empty(), &request(Transport::Tcp)).unwrap();

        let mut first = ipv4(6, &payload);
        let rest = first.split_off(34 + 21);
        let rest = [&rest[..7], &rest[7..8], &rest[8..]];
        complete(&mut first, rest.into_iter(), &request(Transport::Tcp)).unwrap();

        let joined: Vec<u8> = first.into_iter().chain(rest.concat()).collect();
        assert_eq!(joined, whole);
        assert!(is_right(&joined, 6));
    }

    #[test]
    fn padding_behind_the_packet_does_not_count() {
        let mut packet = ipv4(17, &[1; 10]);
        packet.extend([0xff; 16]);
        complete(&mut packet, std::iter::empty(), &request(Transport::Udp)).unwrap();
        assert!(is_right(&packet, 17));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // The payload cancels the rest of the sum.
        let mut packet = ipv4(17, &[0; 10]);
        complete(&mut packet, std::iter::empty(), &request(Transport::Udp)).unwrap();
        let first = [packet[40], packet[41]];
        packet[42..44].copy_from_slice(&first);
        complete(&mut packet, std::iter::empty(), &request(Transport::Udp)).unwrap();
        assert_eq!(packet[40..42], [0xff, 0xff]);
    }

    #[test]
    fn ipv6_counts_its_extensions_as_header() {
        let mut packet = vec![0; 14 + 48];
        packet[14] = 0x60;
        packet[18..20].copy_from_slice(&20_u16.to_be_bytes());
        packet[22..54].fill(0x11);
        packet.extend([7; 12]);
        let asked = Request {
            l3_len: 48,
            ipv6: true,
            header: false,
            ..request(Transport::Udp)
        };
        complete(&mut packet, std::iter::empty(), &asked).unwrap();

        let mut sum = Sum::default();
        sum.add(&packet[22..54]);
        sum.add(&[0, 17, 0, 12]);
        sum.add(&packet[62..]);
        assert_eq!(sum.finish(), 0);
    }

    #[test]
    fn headers_that_are_not_there_are_refused() {
        let asked = request(Transport::Tcp);
        let mut short = ipv4(6, &[0; 17]);
        assert!(complete(&mut short, std::iter::empty(), &asked).is_none());
        let mut cut = ipv4(6, &[0; 20]);
        cut.truncate(50);
        assert!(complete(&mut cut, std::iter::empty(), &asked).is_none());
        let mut packet = ipv4(6, &[0; 20]);
        for (l2_len, l3_len) in [(60, 20), (14, 19), (14, 60)] {
            let odd = Request {
                l2_len,
                l3_len,
                ..asked
            };
            assert!(complete(&mut packet, std::iter::empty(), &odd).is_none());
        }
    }
}
