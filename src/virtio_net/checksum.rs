//! The checksums of IP, TCP and UDP (RFC 1071), and that of SCTP (RFC 9260, appendix A).
#![forbid(unsafe_code)]

/// A ones' complement sum over pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Words as this machine reads them: such a sum only has to be turned round at its end.
    total: u64,
    /// An odd number of bytes was added so far.
    odd: bool,
}

impl Sum {
    /// Adds bytes that follow on the ones before.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = fold(words(bytes));
        // In a piece that begins at an odd place the bytes of each word stand the other way round.
        self.total += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds four words, where the number of bytes before is even.
    #[inline]
    pub fn add_words(&mut self, words: [u8; 8]) {
        let words = u64::from_ne_bytes(words);
        self.total += (words & 0xffff_ffff) + (words >> 32);
    }

    /// Adds one word, where the number of bytes before is even.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        self.total += u64::from(word.to_be());
    }

    /// The sum itself.
    #[inline]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.total))
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The sum of all 16-bit words, not folded; a last odd byte counts as the first of a word.
///
/// Lanes of 32 bits into sums of 64: that leaves the compiler vectors, and no carry is ever lost.
#[inline]
fn words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let mut sum = 0;
    if !blocks.is_empty() {
        let mut lanes = [0_u64; 16];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        sum = lanes.iter().sum();
    }
    let (eights, rest) = rest.as_chunks::<8>();
    for words in eights {
        let words = u64::from_ne_bytes(*words);
        sum += (words & 0xffff_ffff) + (words >> 32);
    }
    let (quad, rest) = match rest.split_first_chunk::<4>() {
        Some((quad, rest)) => (*quad, rest),
        None => ([0; 4], rest),
    };
    let (pair, rest) = match rest.split_first_chunk::<2>() {
        Some((pair, rest)) => (*pair, rest),
        None => ([0; 2], rest),
    };
    let last = rest.first().map_or([0; 2], |byte| [*byte, 0]);
    sum + u64::from(u32::from_ne_bytes(quad))
        + u64::from(u16::from_ne_bytes(pair))
        + u64::from(u16::from_ne_bytes(last))
}

/// Both halves together with their carry, twice: turned round, each half is added to the other.
#[inline]
fn fold(sum: u64) -> u16 {
    let [_, _, _, _, sum @ ..] = sum.wrapping_add(sum.rotate_left(32)).to_le_bytes();
    let sum = u32::from_le_bytes(sum);
    let [_, _, sum @ ..] = sum.wrapping_add(sum.rotate_left(16)).to_le_bytes();
    u16::from_le_bytes(sum)
}

/// A CRC32c over pieces of any length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32c {
    /// Adds bytes that follow on the ones before.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let nth = (self.0 ^ u32::from(*byte)) & 0xff;
            let step = CRC_STEPS.get(nth as usize).copied().unwrap_or_default();
            self.0 = step ^ self.0 >> 8;
        }
    }

    /// The checksum as it stands in the field.
    pub(super) fn finish(self) -> [u8; 4] {
        (!self.0).to_le_bytes()
    }
}

/// What each value of a byte does to the CRC.
const CRC_STEPS: [u32; 256] = {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut steps = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        steps[byte as usize] = crc;
        byte += 1;
    }
    steps
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::naive_sum;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.finish(), !0xddf2);
    }

    #[test]
    fn a_long_run_of_ones_loses_no_carry() {
        let mut sum = Sum::default();
        sum.add(&vec![0xff; 256 * 1024]);
        assert_eq!(sum.folded(), 0xffff);
        sum.add_word(1);
        assert_eq!(sum.folded(), 1);
    }

    #[test]
    fn the_check_value_of_crc32c_comes_out() {
        let mut crc = Crc32c::default();
        crc.add(b"12345");
        crc.add(b"6789");
        assert_eq!(crc.finish(), 0xe306_9283_u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn pieces_have_the_sum_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..700),
            cuts in prop::collection::vec(0..700_usize, 0..4),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut sum = Sum::default();
            let mut at = 0;
            for cut in cuts {
                sum.add(&bytes[at..cut]);
                at = cut;
            }
            // 0 and 0xffff are the same number.
            prop_assert_eq!(sum.folded() % 0xffff, naive_sum(&bytes) % 0xffff);
            prop_assert_eq!(sum.folded() == 0, bytes.iter().all(|byte| *byte == 0));
        }
    }
}
