//! What a work queue is told and what it answers, as laid out in Linux's `idxd.h`.
#![forbid(unsafe_code)]

/// Words of a descriptor that a driver fills.
pub const FLAGS: usize = 0;
/// Where the completion record is.
pub const RECORD: usize = 1;
/// The source, or the list of a batch.
pub const FROM: usize = 2;
/// The destination.
pub const TO: usize = 3;
/// Bytes, or descriptors of a batch.
pub const SIZE: usize = 4;

/// The first word: process 0, flags in the middle, operation on top.
const fn head(operation: u64, flags: u64) -> u64 {
    operation << 56 | flags << 32
}

const BATCH: u64 = 1;
const MEMORY_MOVE: u64 = 3;
const RECORD_IS_VALID: u64 = 0x04;
const WANTS_RECORD: u64 = 0x08;
/// Writes go to the last-level cache, not to memory.
const CACHE_CONTROL: u64 = 0x100;

/// A copy that reports in any case.
pub const COPY: u64 = head(MEMORY_MOVE, RECORD_IS_VALID | WANTS_RECORD | CACHE_CONTROL);
/// A copy in a batch, which reports only if it fails.
pub const COPY_IN_BATCH: u64 = head(MEMORY_MOVE, RECORD_IS_VALID | CACHE_CONTROL);
const LIST: u64 = head(BATCH, RECORD_IS_VALID | WANTS_RECORD);

/// A descriptor, as the portal takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Descriptor(pub [u64; 8]);

impl Descriptor {
    /// A batch of `count` descriptors at `list`.
    pub fn batch(list: u64, count: u32, record: u64) -> Self {
        Self([LIST, record, list, 0, count.into(), 0, 0, 0])
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *to = word.to_le_bytes();
        }
        bytes
    }
}

/// The first word of a completion record; zero until there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion(pub u64);

/// What has to be done about a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Success,
    /// A page was missing: the rest is for the CPU.
    Partial,
    /// Members of a batch failed: their records tell.
    Members,
    /// All of it is for the CPU.
    Redo,
    /// The same, and it should not happen often.
    Strike,
    /// The same, and the queue does not understand us or is broken.
    Broken,
}

impl Completion {
    /// What the status (low byte) means. Its two highest bits describe a page fault.
    pub fn verdict(self) -> Verdict {
        match self.0 & 0x3f {
            0x01 => Verdict::Success,
            0x03 => Verdict::Partial,
            0x04 => Verdict::Strike,
            0x05 => Verdict::Members,
            0x06 => Verdict::Redo,
            _ => Verdict::Broken,
        }
    }

    /// Bytes, or descriptors of a batch, that were done.
    pub fn completed(self) -> u32 {
        let [.., a, b, c, d] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Those bytes are the last ones: the engine copied from the end.
    pub fn is_backwards(self) -> bool {
        self.0 & 0xff00 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_are_what_dpdks_driver_writes() {
        assert_eq!(COPY, 0x0300_010c_0000_0000);
        assert_eq!(COPY_IN_BATCH, 0x0300_0104_0000_0000);
        let batch = Descriptor::batch(0x1000, 7, 0x2020);
        assert_eq!(batch.0[..5], [0x0100_000c_0000_0000, 0x2020, 0x1000, 0, 7]);
    }

    #[test]
    fn a_completion_is_read_byte_by_byte() {
        let completion = Completion(0x0000_0123_0000_0183);
        assert_eq!(completion.verdict(), Verdict::Partial);
        assert_eq!(completion.completed(), 0x123);
        assert!(completion.is_backwards());
        assert!(!Completion(3).is_backwards());
    }

    #[test]
    fn each_status_of_the_header_has_its_answer() {
        let verdict = |status| Completion(status).verdict();
        assert_eq!(verdict(0x01), Verdict::Success);
        assert_eq!(verdict(0x04), Verdict::Strike);
        assert_eq!(verdict(0x05), Verdict::Members);
        assert_eq!(verdict(0x06), Verdict::Redo);
        for broken in [2, 0x10, 0x13, 0x16, 0x1a, 0x1c, 0x1d, 0x1f, 0x20, 0x22] {
            assert_eq!(verdict(broken), Verdict::Broken, "{broken:#x}");
        }
    }

    #[test]
    fn bytes_are_little_endian_words() {
        let descriptor = Descriptor([0x0807_0605_0403_0201, 0, 0, 0, 0, 0, 0, 0xff]);
        let bytes = descriptor.bytes();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[56..], [0xff, 0, 0, 0, 0, 0, 0, 0]);
    }
}
