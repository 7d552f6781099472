//! Where the headers of a frame are: Ethernet, up to two VLAN tags, IP, and the transport above it.
#![forbid(unsafe_code)]

use super::checksum::Sum;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

/// A transport with a checksum that can be left to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// Where the checksum's field is in the header.
    pub const fn field(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
            Self::Sctp => 8,
        }
    }

    /// The number in the IP header.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Bytes of the shortest header.
    pub const fn least(self) -> u16 {
        match self {
            Self::Tcp => 20,
            Self::Udp => 8,
            Self::Sctp => 12,
        }
    }

    fn of(protocol: u8) -> Option<Self> {
        match protocol {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Bytes of an Ethernet header.
const ETHERNET: u16 = 14;
/// Bytes of a VLAN tag.
const TAG: u16 = 4;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4_LEN: u16 = 20;
/// Bytes of an IPv6 header without extensions.
pub(super) const IPV6_LEN: u16 = 40;
/// The most IPv6 extensions that are followed.
const MAX_EXTENSIONS: usize = 5;

/// What a frame begins with. Lengths end with the first header that is not known or not whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Ethernet and tags.
    pub l2_len: u16,
    /// The version of IP.
    pub ip: Option<Ip>,
    /// IP with options or extensions.
    pub l3_len: u16,
    /// The transport; none in a fragment.
    pub transport: Option<Transport>,
    /// The transport's header.
    pub l4_len: u16,
}

impl Headers {
    /// As [`parse`](Self::parse), for frames as most are: TCP or UDP over IPv4, with no tag, no options
    /// and no fragments. `None` for all others.
    #[inline(always)]
    pub fn usual(frame: &[u8]) -> Option<Self> {
        let start = frame.first_chunk::<42>()?;
        let &[.., k0, k1, version, _, _, _, _, _, f0, f1, _, protocol] =
            start.first_chunk::<24>()?;
        if [k0, k1, version] != [0x08, 0x00, 0x45] || (f0 & 0x3f) | f1 != 0 {
            return None;
        }
        let (transport, l4_len) = match protocol {
            17 => (Transport::Udp, Transport::Udp.least()),
            6 => {
                let tcp = frame.first_chunk::<54>()?;
                let &[.., offset, _, _, _, _, _, _, _] = tcp;
                let len = u16::from(offset >> 4) * 4;
                (len >= Transport::Tcp.least()).then_some((Transport::Tcp, len))?
            }
            _ => return None,
        };
        Some(Self {
            l2_len: ETHERNET,
            ip: Some(Ip::V4),
            l3_len: IPV4_LEN,
            transport: Some(transport),
            l4_len,
        })
    }

    /// As [`usual`](Self::usual), with a tag or over IPv6 or both. Apart, since the compiler reckons with the
    /// lengths of the others.
    #[inline]
    pub fn less_usual(frame: &[u8]) -> Option<Self> {
        let &[.., k0, k1, _, _, t0, t1] = frame.first_chunk::<18>()?;
        let (l2_len, kind) = match [k0, k1] {
            [0x81, 0x00] => (ETHERNET + TAG, [t0, t1]),
            kind => (ETHERNET, kind),
        };
        let header = frame.get(usize::from(l2_len)..)?;
        let (ip, l3_len, protocol) = match kind {
            [0x86, 0xdd] => {
                let &[_, _, _, _, _, _, next, ..] = header.first_chunk::<40>()?;
                (Ip::V6, IPV6_LEN, next)
            }
            [0x08, 0x00] => {
                let &[version, _, _, _, _, _, f0, f1, _, protocol, ..] =
                    header.first_chunk::<20>()?;
                if version != 0x45 || (f0 & 0x3f) | f1 != 0 {
                    return None;
                }
                (Ip::V4, IPV4_LEN, protocol)
            }
            _ => return None,
        };
        let header = header.get(usize::from(l3_len)..)?;
        let (transport, l4_len) = match protocol {
            17 if header.len() >= 8 => (Transport::Udp, Transport::Udp.least()),
            6 => {
                let &[.., offset, _, _, _, _, _, _, _] = header.first_chunk::<20>()?;
                let len = u16::from(offset >> 4) * 4;
                (len >= Transport::Tcp.least()).then_some((Transport::Tcp, len))?
            }
            _ => return None,
        };
        Some(Self {
            l2_len,
            ip: Some(ip),
            l3_len,
            transport: Some(transport),
            l4_len,
        })
    }

    /// Looks at the start of a frame. 192 bytes are enough for all but odd ones.
    pub fn parse(frame: &[u8]) -> Self {
        let mut headers = Self::default();
        let Some(protocol) = headers.parse_to_transport(frame) else {
            return headers;
        };
        let at = usize::from(headers.l2_len) + usize::from(headers.l3_len);
        let Some(header) = frame.get(at..) else {
            return headers;
        };
        headers.transport = Transport::of(protocol).filter(|transport| {
            headers.l4_len = match transport {
                Transport::Tcp => u16::from(header.get(12).copied().unwrap_or_default() >> 4) * 4,
                other => other.least(),
            };
            headers.l4_len >= transport.least() && header.len() >= usize::from(transport.least())
        });
        if headers.transport.is_none() {
            headers.l4_len = 0;
        }
        headers
    }

    /// Everything below the transport; its number, when there is one.
    fn parse_to_transport(&mut self, frame: &[u8]) -> Option<u8> {
        let mut kind = word(frame, 12)?;
        self.l2_len = ETHERNET;
        // The outer tag of two has another number than a single one.
        let tags = match kind {
            0x8100 => 1,
            0x88a8 => 2,
            _ => 0,
        };
        if tags != 0 {
            self.l2_len += TAG * tags;
            kind = word(frame, usize::from(self.l2_len) - 2)?;
        }
        let header = frame.get(usize::from(self.l2_len)..)?;
        match kind {
            0x0800 => self.parse_ipv4(header),
            0x86dd => self.parse_ipv6(header),
            _ => None,
        }
    }

    fn parse_ipv4(&mut self, header: &[u8]) -> Option<u8> {
        let len = u16::from(header.first()? & 0xf) * 4;
        if len < IPV4_LEN || header.len() < usize::from(len) {
            return None;
        }
        self.ip = Some(Ip::V4);
        self.l3_len = len;
        // More fragments follow, or came before.
        let fragment = word(header, 6)? & 0x3fff != 0;
        if fragment {
            return None;
        }
        header.get(9).copied()
    }

    fn parse_ipv6(&mut self, header: &[u8]) -> Option<u8> {
        if header.len() < usize::from(IPV6_LEN) {
            return None;
        }
        self.ip = Some(Ip::V6);
        self.l3_len = IPV6_LEN;
        let mut next = *header.get(6)?;
        for _ in 0..MAX_EXTENSIONS {
            match next {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => {
                    let at = usize::from(self.l3_len);
                    let len = u16::from(*header.get(at + 1)?) * 8 + 8;
                    if header.len() < at + usize::from(len) {
                        return None;
                    }
                    next = *header.get(at)?;
                    self.l3_len += len;
                }
                // Fragment.
                44 => return None,
                _ => return Some(next),
            }
        }
        None
    }
}

/// Whether the checksum of a frame's IPv4 header is right; `None` when `start`, with which the frame
/// begins, has no whole IPv4 header.
pub fn ip_checksum_is_right(start: &[u8]) -> Option<bool> {
    let headers = Headers::parse(start);
    if headers.ip != Some(Ip::V4) {
        return None;
    }
    let at = usize::from(headers.l2_len);
    let mut sum = Sum::default();
    sum.add(start.get(at..at + usize::from(headers.l3_len))?);
    Some(sum.finish() == 0)
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ethernet(kinds: &[u16]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for (nth, kind) in kinds.iter().enumerate() {
            if nth != 0 {
                frame.extend([0, 5]);
            }
            frame.extend(kind.to_be_bytes());
        }
        frame
    }

    fn ipv4(protocol: u8, options: usize) -> Vec<u8> {
        let mut header = vec![0; 20 + options];
        header[0] = 0x45 + u8::try_from(options / 4).unwrap();
        header[9] = protocol;
        header
    }

    fn tcp(options: usize) -> Vec<u8> {
        let mut header = vec![0; 20 + options];
        header[12] = u8::try_from((5 + options / 4) << 4).unwrap();
        header
    }

    fn lens(frame: &[u8]) -> (u16, u16, u16) {
        let headers = Headers::parse(frame);
        (headers.l2_len, headers.l3_len, headers.l4_len)
    }

    #[test]
    fn tcp_over_ipv4_with_options_and_tags() {
        for (kinds, l2_len) in [
            (&[0x0800][..], 14),
            (&[0x8100, 0x0800], 18),
            (&[0x88a8, 0x8100, 0x0800], 22),
        ] {
            let frame = [ethernet(kinds), ipv4(6, 8), tcp(12)].concat();
            let headers = Headers::parse(&frame);
            assert_eq!(lens(&frame), (l2_len, 28, 32));
            assert_eq!(headers.transport, Some(Transport::Tcp));
            assert_eq!(headers.ip, Some(Ip::V4));
        }
    }

    #[test]
    fn extensions_belong_to_the_ipv6_header() {
        let mut ip = vec![0; 40 + 8 + 16];
        ip[0] = 0x60;
        ip[40] = 60;
        ip[48] = 17;
        ip[49] = 1;
        let mut frame = [ethernet(&[0x86dd]), ip, vec![0; 8]].concat();
        assert_eq!(lens(&frame), (14, 64, 8));
        assert_eq!(Headers::parse(&frame).transport, Some(Transport::Udp));
        // A fragment has no transport, as far as one can tell.
        frame[14 + 40] = 44;
        assert_eq!(Headers::parse(&frame).transport, None);
    }

    #[test]
    fn fragments_and_headers_that_are_not_whole_have_no_transport() {
        let mut frame = [ethernet(&[0x0800]), ipv4(6, 0), tcp(0)].concat();
        assert!(Headers::parse(&frame).transport.is_some());
        frame[14 + 6] = 0x40;
        assert!(
            Headers::parse(&frame).transport.is_some(),
            "do not fragment"
        );
        for fragment in [0x20, 0x01] {
            frame[14 + 6] = fragment;
            assert_eq!(Headers::parse(&frame).transport, None);
        }
        frame[14 + 6] = 0;
        frame.pop();
        assert_eq!(Headers::parse(&frame).transport, None);
        frame[14] = 0x44;
        assert_eq!(Headers::parse(&frame).ip, None);
    }

    #[test]
    fn the_checksum_of_an_ipv4_header_is_checked() {
        let mut frame = [ethernet(&[0x8100, 0x0800]), ipv4(6, 4), tcp(0)].concat();
        assert_eq!(ip_checksum_is_right(&frame), Some(false));
        // 0x46 of the first word and the protocol.
        frame[18 + 10..18 + 12].copy_from_slice(&(!(0x4600_u16 + 6)).to_be_bytes());
        assert_eq!(ip_checksum_is_right(&frame), Some(true));
        assert_eq!(ip_checksum_is_right(&frame[..41]), None);
        assert_eq!(ip_checksum_is_right(&ethernet(&[0x86dd])), None);
    }

    #[test]
    fn a_usual_frame_is_found_to_be_the_same_at_a_glance() {
        let tcp_frame = [ethernet(&[0x0800]), ipv4(6, 0), tcp(12)].concat();
        let udp_frame = [ethernet(&[0x0800]), ipv4(17, 0), vec![0; 8]].concat();
        for frame in [&tcp_frame, &udp_frame] {
            assert_eq!(Headers::usual(frame), Some(Headers::parse(frame)));
        }
        for (at, value) in [
            (12, 0x86),
            (14, 0x46),
            (20, 0x20),
            (21, 1),
            (23, 132),
            (46, 0x40),
        ] {
            let mut frame = tcp_frame.clone();
            frame[at] = value;
            assert_eq!(Headers::usual(&frame), None, "byte {at}");
        }
        assert_eq!(Headers::usual(&tcp_frame[..53]), None);
        assert_eq!(Headers::usual(&udp_frame[..41]), None);
    }

    #[test]
    fn a_tag_and_ipv6_are_seen_at_a_glance_too() {
        let ipv6 = |next| {
            let mut header = vec![0; 40];
            header[0] = 0x60;
            header[6] = next;
            header
        };
        for (kinds, ip, transport) in [
            (&[0x8100, 0x0800][..], ipv4(6, 0), tcp(12)),
            (&[0x8100, 0x0800], ipv4(17, 0), vec![0; 8]),
            (&[0x86dd], ipv6(6), tcp(0)),
            (&[0x86dd], ipv6(17), vec![0; 8]),
            (&[0x8100, 0x86dd], ipv6(17), vec![0; 8]),
        ] {
            let mut frame = [ethernet(kinds), ip, transport].concat();
            assert_eq!(Headers::less_usual(&frame), Some(Headers::parse(&frame)));
            frame.truncate(frame.len() - 13);
            assert_eq!(Headers::less_usual(&frame), None);
        }
        for kinds in [&[0x88a8, 0x8100, 0x86dd][..], &[0x8100, 0x8100, 0x86dd]] {
            let frame = [ethernet(kinds), ipv6(17), vec![0; 8]].concat();
            assert_eq!(Headers::less_usual(&frame), None);
        }
        let extended = [ethernet(&[0x86dd]), ipv6(60), vec![0; 60]].concat();
        assert_eq!(Headers::less_usual(&extended), None);
    }

    proptest! {
        #[test]
        fn what_is_seen_at_a_glance_is_what_is_parsed(
            mut frame in prop::collection::vec(any::<u8>(), 40..60),
            protocol in prop::sample::select(vec![6, 17_u8]),
        ) {
            frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            frame[20..22].copy_from_slice(&[0x40, 0]);
            frame[23] = protocol;
            if let Some(usual) = Headers::usual(&frame) {
                prop_assert_eq!(usual, Headers::parse(&frame));
            }
        }

        #[test]
        fn so_is_what_has_a_tag_or_another_version(
            mut frame in prop::collection::vec(any::<u8>(), 50..90),
            kinds in prop::sample::select(vec![[0x86dd_u16, 0], [0x8100, 0x86dd], [0x8100, 0x0800]]),
            protocol in prop::sample::select(vec![6, 17, 60_u8]),
        ) {
            frame[12..14].copy_from_slice(&kinds[0].to_be_bytes());
            let at = if kinds[1] == 0 { 14 } else { 18 };
            if at == 18 {
                frame[16..18].copy_from_slice(&kinds[1].to_be_bytes());
            }
            if kinds.contains(&0x0800) {
                frame[at] = 0x45;
                frame[at + 6..at + 8].copy_from_slice(&[0x40, 0]);
                frame[at + 9] = protocol;
            } else {
                frame[at + 6] = protocol;
            }
            if let Some(usual) = Headers::less_usual(&frame) {
                prop_assert_eq!(usual, Headers::parse(&frame));
            }
        }

        #[test]
        fn any_bytes_can_be_parsed(
            mut frame in prop::collection::vec(any::<u8>(), 0..200),
            kind in prop::sample::select(vec![0x0800, 0x86dd, 0x8100, 0x88a8_u16]),
        ) {
            if let Some(bytes) = frame.get_mut(12..14) {
                bytes.copy_from_slice(&kind.to_be_bytes());
            }
            let headers = Headers::parse(&frame);
            let whole = usize::from(headers.l2_len) + usize::from(headers.l3_len);
            if let Some(transport) = headers.transport {
                prop_assert!(whole + usize::from(transport.least()) <= frame.len());
                prop_assert!(headers.ip.is_some());
            }
        }
    }
}
