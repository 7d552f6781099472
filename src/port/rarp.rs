//! The frame that tells switches where a guest is now (RFC 903), made for a guest that cannot.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the frame, padding included.
pub(super) const FRAME_LEN: u32 = 64;

/// Marks a word that holds an address.
const ASKED: u64 = 1 << 48;

/// At most one frame that waits to be received. All zero: none.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Pending(AtomicU64);

impl Pending {
    /// Asks for a frame from `mac`. A frame that still waits is replaced.
    pub(super) fn ask(&self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        let word = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        self.0.store(word | ASKED, Ordering::Relaxed);
    }

    /// Whether a frame waits; a plain load.
    #[inline(always)]
    pub(super) fn is_some(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Takes the frame's address; only one caller gets it.
    pub(super) fn take(&self) -> Option<[u8; 6]> {
        let word = self.0.swap(0, Ordering::Relaxed);
        let [_, _, mac @ ..] = word.to_be_bytes();
        (word != 0).then_some(mac)
    }

    /// Puts an address back that could not be served, unless there is a newer one.
    pub(super) fn put_back(&self, mac: [u8; 6]) {
        let again = Self::default();
        again.ask(mac);
        let word = again.0.into_inner();
        // A newer request is the better one.
        let _ = self
            .0
            .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The broadcast frame in the name of `mac`.
pub(super) fn frame(mac: [u8; 6]) -> [u8; FRAME_LEN as usize] {
    const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
    // Hardware Ethernet, protocol IPv4, address lengths 6 and 4, operation "request reverse".
    const FIXED: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    const NO_IP: [u8; 4] = [0; 4];
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac,
        &ETHERTYPE_RARP,
        &FIXED,
        &mac,
        &NO_IP,
        &mac,
        &NO_IP,
    ];
    let mut frame = [0; FRAME_LEN as usize];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    #[test]
    fn the_frame_is_a_padded_reverse_request() {
        let frame = frame(MAC);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], MAC);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], MAC);
        assert_eq!(frame[38..], [0; 26]);
    }

    #[test]
    fn one_caller_gets_the_request() {
        let pending = Pending::default();
        assert!(!pending.is_some());
        pending.ask([0; 6]);
        assert!(pending.is_some());
        assert_eq!(pending.take(), Some([0; 6]));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn a_request_that_failed_does_not_replace_a_newer_one() {
        let pending = Pending::default();
        pending.put_back(MAC);
        assert_eq!(pending.take(), Some(MAC));

        pending.ask([1; 6]);
        pending.put_back(MAC);
        assert_eq!(pending.take(), Some([1; 6]));
    }
}
