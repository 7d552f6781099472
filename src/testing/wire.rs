//! Frames with headers, and their checksums in the plainest words.
#![forbid(unsafe_code)]

use crate::virtio_net::{Ip, Transport};

/// How to build a frame; its checksums are zero.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// VLAN tags.
    pub tags: usize,
    /// The version of IP.
    pub ip: Ip,
    /// Bytes of IPv4 options, or of an IPv6 extension.
    pub options: usize,
    /// The transport.
    pub transport: Transport,
    /// Bytes behind its header.
    pub payload: usize,
}

impl Build {
    /// Without tags and options.
    pub const fn new(ip: Ip, transport: Transport, payload: usize) -> Self {
        Self {
            tags: 0,
            ip,
            options: 0,
            transport,
            payload,
        }
    }

    /// Bytes of Ethernet and tags.
    pub fn l2_len(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Bytes of the IP header.
    pub fn l3_len(&self) -> usize {
        let base = match self.ip {
            Ip::V4 => 20,
            Ip::V6 => 40,
        };
        base + self.options
    }

    /// Where the transport begins.
    pub fn l4(&self) -> usize {
        self.l2_len() + self.l3_len()
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let kind: u16 = match self.ip {
            Ip::V4 => 0x0800,
            Ip::V6 => 0x86dd,
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in (0..self.tags).rev() {
            frame.extend(if tag == 0 { [0x81, 0] } else { [0x88, 0xa8] });
            frame.extend([0, 7]);
        }
        frame.extend(kind.to_be_bytes());
        let least = usize::from(self.transport.least());
        let carried = least + self.payload;
        match self.ip {
            Ip::V4 => {
                let total = (20 + self.options + carried) as u16;
                let [high, low] = total.to_be_bytes();
                let version = 0x45 + (self.options / 4) as u8;
                frame.extend([version, 0, high, low, 0, 1, 0x40, 0, 64]);
                frame.extend([self.transport.protocol(), 0, 0]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
                frame.extend(vec![1; self.options]);
            }
            Ip::V6 => {
                let [high, low] = ((self.options + carried) as u16).to_be_bytes();
                let protocol = self.transport.protocol();
                let next = if self.options == 0 { protocol } else { 60 };
                frame.extend([0x60, 0, 0, 0, high, low, next, 64]);
                frame.extend((1..=32).map(|byte| byte * 7));
                if self.options != 0 {
                    frame.extend([protocol, (self.options / 8 - 1) as u8]);
                    frame.extend(vec![1; self.options - 2]);
                }
            }
        }
        let mut header = vec![0; least];
        header[0] = 0x80;
        if self.transport == Transport::Tcp {
            header[12] = 0x50;
        }
        if self.transport == Transport::Udp {
            header[4..6].copy_from_slice(&(carried as u16).to_be_bytes());
        }
        frame.extend(header);
        frame.extend((0..self.payload).map(|nth| (nth * 31 + (nth >> 8) + 5) as u8));
        frame
    }

    /// What a receiver finds: the sum over pseudo-header and transport is all ones, or the CRC fits.
    pub fn transport_is_right(&self, frame: &[u8]) -> bool {
        let carried = &frame[self.l4()..];
        if self.transport == Transport::Sctp {
            let mut zeroed = carried.to_vec();
            zeroed[8..12].fill(0);
            return crc32c(&zeroed).to_le_bytes() == carried[8..12];
        }
        if self.transport == Transport::Udp && carried[6..8] == [0, 0] {
            return false;
        }
        naive_sum(&[&self.pseudo(frame), carried].concat()) == 0xffff
    }

    /// The pseudo-header of the transport.
    pub fn pseudo(&self, frame: &[u8]) -> Vec<u8> {
        let ip = &frame[self.l2_len()..];
        let addresses = match self.ip {
            Ip::V4 => &ip[12..20],
            Ip::V6 => &ip[8..40],
        };
        let carried = (frame.len() - self.l4()) as u32;
        let tail = [carried.to_be_bytes(), [0, 0, 0, self.transport.protocol()]].concat();
        [addresses, &tail].concat()
    }

    /// Whether the checksum of the IPv4 header is right.
    pub fn ip_is_right(&self, frame: &[u8]) -> bool {
        self.ip == Ip::V6 || naive_sum(&frame[self.l2_len()..self.l4()]) == 0xffff
    }
}

/// The sum of RFC 1071, word by word.
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or_default();
        sum += u64::from(u16::from_be_bytes([word[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// CRC32c, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}
