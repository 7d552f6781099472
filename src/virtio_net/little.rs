//! Frames of which so little is asked that no more than two words of them change.
#![forbid(unsafe_code)]

use super::VIRTIO_NET_F_GUEST_CSUM;
use super::checksum::Sum;
use super::header::VIRTIO_NET_HDR_F_NEEDS_CSUM;
use super::offload::{Asked, behind, checksum_of};
use super::parse::{Headers, IPV4_LEN, IPV6_LEN, Ip, Transport};

/// What is asked of a frame when that is no more than this; nothing by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Little {
    /// Bytes before the IP header.
    pub l2_len: u16,
    /// Bytes of the IP header.
    pub l3_len: u16,
    /// The version of IP.
    pub ip: Ip,
    /// The checksum of the IPv4 header.
    pub ip_checksum: bool,
    /// The checksum of TCP or UDP.
    pub transport: Option<Transport>,
    /// Not asked, but marked so by whoever received the frame: the transport's checksum is missing.
    pub marked: bool,
    /// A VLAN tag in front of all others.
    pub tag: Option<u16>,
}

impl Default for Little {
    #[inline(always)]
    fn default() -> Self {
        Self {
            l2_len: 0,
            l3_len: 0,
            ip: Ip::V4,
            ip_checksum: false,
            transport: None,
            marked: false,
            tag: None,
        }
    }
}

impl Asked {
    /// The same, when it is no more than that.
    pub fn little(self) -> Option<Little> {
        let more = self.unable
            || self.outer_ip.is_some()
            || self.segment_size.is_some()
            || self.received_segment_size != 0
            || self.transport == Some(Transport::Sctp)
            || self.transport.is_some() && self.ip.is_none()
            || self.received_partial && (self.transport.is_some() || self.ip_checksum);
        (!more).then_some(Little {
            l2_len: self.l2_len,
            l3_len: self.l3_len,
            ip: self.ip.unwrap_or(Ip::V4),
            ip_checksum: self.ip_checksum,
            transport: self.transport,
            marked: self.received_partial,
            tag: self.vlan,
        })
    }
}

impl Little {
    /// The same for a frame in which these headers were found: asks for what is marked.
    #[inline(always)]
    fn with(self, headers: &Headers) -> Option<Self> {
        Some(Self {
            l2_len: headers.l2_len,
            l3_len: headers.l3_len,
            ip: headers.ip?,
            transport: Some(headers.transport?),
            marked: false,
            ..self
        })
    }
}

#[cold]
#[inline(never)]
fn parse(head: &[u8]) -> Headers {
    Headers::parse(head)
}

/// How a frame as it is sent differs from the one that was given: two words at most, and a tag. Two
/// numbers, which stay in registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// From the lowest bits on, 16 each: where the transport's checksum begins; where its field is
    /// from there on, or 0: it stays; what stands there: the sum of the pseudo-header, or all of it;
    /// how many bytes have yet to be added, or 0: that is left to the driver.
    transport: u64,
    /// In the same way: where the checksum of the IP header is, or 0: it stays; what stands there; the
    /// tag; whether there is one.
    rest: u64,
}

/// The nth 16 bits of a number.
#[inline(always)]
fn part(number: u64, nth: u32) -> u16 {
    #[allow(clippy::cast_possible_truncation, reason = "16 bits are wanted")]
    let part = (number >> (16 * nth)) as u16;
    part
}

/// A number of four parts.
#[inline(always)]
fn number(parts: [u16; 4]) -> u64 {
    let [a, b, c, d] = parts.map(u64::from);
    a | b << 16 | c << 32 | d << 48
}

impl Changes {
    /// None that are known here: only a [`Plan`](super::Plan) tells.
    pub const UNKNOWN: Self = Self {
        transport: 0,
        rest: u64::MAX,
    };

    /// Those that `little` asks for, of a frame of `len` bytes that begins with `head`, for a driver that
    /// takes frames without checksum, or does not. `None` for frames that are unusual, or make no sense:
    /// then a [`Plan`](super::Plan) tells.
    #[inline(always)]
    pub fn of(little: Little, head: &[u8], len: usize, taken_unsummed: bool) -> Option<Self> {
        if little.marked {
            let changes = Self::of_marked(little, head, len, taken_unsummed);
            return (changes != Self::UNKNOWN).then_some(changes);
        }
        Self::of_asked(little, head, len, taken_unsummed)
    }

    /// As [`of`](Self::of), for a frame of which nothing is asked and that is marked, when it is as most are:
    /// TCP or UDP over IPv4, with no tag, no options and no fragments. `None` for all others.
    #[inline(always)]
    pub fn of_usual(frame: &[u8], taken_unsummed: bool) -> Option<Self> {
        const START: u16 = 34;
        let start = frame.first_chunk::<42>()?;
        let &[.., k0, k1, version, _, l0, l1, _, _, f0, f1, _, protocol] =
            start.first_chunk::<24>()?;
        if [k0, k1, version] != [0x08, 0x00, 0x45] || (f0 & 0x3f) | f1 != 0 {
            return None;
        }
        let (offset, least) = match protocol {
            17 => (6, 8),
            6 => {
                let &[.., tcp_len, _, _, _, _, _, _, _] = frame.first_chunk::<54>()?;
                (tcp_len >= 0x50).then_some((16, 20))?
            }
            _ => return None,
        };
        // Behind the IP packet there may be padding.
        let carried = u16::from_be_bytes([l0, l1]).saturating_sub(IPV4_LEN);
        if usize::from(START) + usize::from(carried) > frame.len() || carried < least {
            return None;
        }
        let (_, addresses) = start
            .first_chunk::<{ START as usize }>()?
            .split_last_chunk()?;
        let mut sum = Sum::default();
        sum.add_words(*addresses);
        sum.add_word(carried);
        sum.add_word(protocol.into());
        let left = if taken_unsummed { 0 } else { carried };
        Some(Self {
            transport: number([START, offset, sum.folded(), left]),
            rest: 0,
        })
    }

    /// Apart, so that what is asked stays in registers.
    #[inline(never)]
    fn of_marked(little: Little, head: &[u8], len: usize, taken_unsummed: bool) -> Self {
        let headers = Headers::usual(head).unwrap_or_else(|| parse(head));
        let little = little.with(&headers);
        let changes = little.and_then(|little| Self::of_asked(little, head, len, taken_unsummed));
        changes.unwrap_or(Self::UNKNOWN)
    }

    #[inline(always)]
    fn of_asked(little: Little, head: &[u8], len: usize, taken_unsummed: bool) -> Option<Self> {
        let (mut ip_at, mut ip_value) = (0, 0);
        let with = |transport: u64, ip_at: u16, ip_value: u16| {
            let (tag, tagged) = match little.tag {
                Some(tag) => (tag, 1),
                None => (0, 0),
            };
            let rest = number([ip_at, ip_value, tag, tagged]);
            Some(Self { transport, rest })
        };
        if little.transport.is_none() && !little.ip_checksum {
            return with(0, 0, 0);
        }
        let network = head.get(usize::from(little.l2_len)..)?;
        let l3_len = usize::from(little.l3_len);
        // Of the pseudo-header.
        let mut sum = Sum::default();
        let ip_len = match little.ip {
            Ip::V4 => {
                let header = network.first_chunk::<{ IPV4_LEN as usize }>()?.as_slice();
                let (first, rest) = header.split_first_chunk::<8>()?;
                let (&[t0, t1, _, _], rest) = rest.split_first_chunk::<4>()?;
                sum.add_words(*rest.first_chunk()?);
                if l3_len < usize::from(IPV4_LEN) {
                    return None;
                }
                if little.ip_checksum {
                    if l3_len != usize::from(IPV4_LEN) {
                        return None;
                    }
                    let mut header = sum;
                    header.add_words(*first);
                    header.add_words([t0, t1, 0, 0, 0, 0, 0, 0]);
                    ip_at = little.l2_len.checked_add(IP_FIELD)?;
                    ip_value = header.finish();
                }
                let [_, _, l0, l1, ..] = *first;
                usize::from(u16::from_be_bytes([l0, l1]))
            }
            Ip::V6 => {
                let (&[_, _, _, _, l0, l1, _, _], rest) = network.split_first_chunk()?;
                let addresses = rest.first_chunk::<32>()?;
                for words in addresses.as_chunks().0 {
                    sum.add_words(*words);
                }
                if l3_len < usize::from(IPV6_LEN) {
                    return None;
                }
                usize::from(IPV6_LEN) + usize::from(u16::from_be_bytes([l0, l1]))
            }
        };
        let (offset, protocol, least) = match little.transport {
            Some(Transport::Udp) => (6, 17, 8),
            Some(Transport::Tcp) => (16, 6, 20),
            Some(Transport::Sctp) => return None,
            None => return with(0, ip_at, ip_value),
        };
        // Behind the IP packet there may be padding. The field must be where it can be written.
        let carried = ip_len.saturating_sub(l3_len);
        let start = usize::from(little.l2_len) + l3_len;
        if start + carried > len || carried < least || start + offset + 2 > head.len() {
            return None;
        }
        let start = u16::try_from(start).ok()?;
        let carried = u16::try_from(carried).ok()?;
        let offset = u16::try_from(offset).ok()?;
        sum.add_word(carried);
        sum.add_word(protocol);
        let left = if taken_unsummed { 0 } else { carried };
        let transport = number([start, offset, sum.folded(), left]);
        with(transport, ip_at, ip_value)
    }

    /// The VLAN tag that goes in front of all others.
    #[inline(always)]
    pub fn tag(self) -> Option<u16> {
        (part(self.rest, 3) != 0).then_some(part(self.rest, 2))
    }

    /// Makes the transport's checksum, if that is left to do. `head` is the start of the frame, and
    /// `segments` are all of it, which `add` adds to a sum.
    #[inline(always)]
    pub fn complete<'s>(
        &mut self,
        head: &[u8],
        segments: impl Iterator<Item = &'s [u8]>,
        add: impl Fn(Sum, &[u8]) -> Sum,
    ) {
        let [start, offset, value, left] = [0, 1, 2, 3].map(|nth| part(self.transport, nth));
        let mut sum = Sum::default();
        sum.add_word(value);
        // Takes away what stands in the field now.
        let at = usize::from(start) + usize::from(offset);
        let old = head.get(at..).unwrap_or_default();
        let old = old.first_chunk().copied().unwrap_or_default();
        sum.add_word(!u16::from_be_bytes(old));
        let mut left = usize::from(left);
        for piece in behind(segments, start.into()) {
            let piece = piece.get(..left).unwrap_or(piece);
            left -= piece.len();
            sum = add(sum, piece);
        }
        let transport = match offset {
            6 => Transport::Udp,
            _ => Transport::Tcp,
        };
        let value = checksum_of(transport, sum);
        // What was left stays there: the driver is asked for nothing.
        self.transport = number([start, offset, value, part(self.transport, 3)]);
    }

    /// Whether [`complete`](Self::complete) is to be called.
    #[inline(always)]
    pub fn is_incomplete(self) -> bool {
        part(self.transport, 3) != 0
    }

    /// Bytes at the start of the frame in which all changes are.
    #[inline(always)]
    pub fn reach(self) -> usize {
        self.words()
            .map(|word| word.at + 2)
            .max()
            .unwrap_or_default()
    }

    /// The first ten bytes of the header in words of eight and of two, for a frame in which everything is
    /// `shift` bytes later.
    #[inline(always)]
    pub fn header(self, shift: usize) -> (u64, u16) {
        let offset = part(self.transport, 1);
        if offset == 0 || self.is_incomplete() {
            return (0, 0);
        }
        let start = u64::from(part(self.transport, 0)) + shift as u64;
        let flags = u64::from(VIRTIO_NET_HDR_F_NEEDS_CSUM);
        (flags | start << 48, offset)
    }

    /// The transport's checksum, or what stands there for the driver.
    #[inline(always)]
    pub fn transport_word(self) -> Option<Word> {
        let [start, offset, value] = [0, 1, 2].map(|nth| part(self.transport, nth));
        (offset != 0).then_some(Word {
            at: usize::from(start) + usize::from(offset),
            value: value.to_be_bytes(),
        })
    }

    /// The IP header's.
    #[inline(always)]
    pub fn ip_word(self) -> Option<Word> {
        let [at, value] = [0, 1].map(|nth| part(self.rest, nth));
        (at != 0).then_some(Word {
            at: at.into(),
            value: value.to_be_bytes(),
        })
    }

    /// Both.
    #[inline]
    pub fn words(self) -> impl Iterator<Item = Word> {
        self.transport_word().into_iter().chain(self.ip_word())
    }
}

/// A word of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it is.
    pub at: usize,
    /// What stands there.
    pub value: [u8; 2],
}

/// Where the checksum is in an IPv4 header.
const IP_FIELD: u16 = 10;

/// Whether a driver with these features takes frames without checksum.
pub fn takes_unsummed(features: u64) -> bool {
    features & 1 << VIRTIO_NET_F_GUEST_CSUM != 0
}

#[cfg(test)]
mod tests;
