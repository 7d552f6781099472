//! Where a channel's registers are, and their bits, under the names of Linux's and DPDK's drivers.
#![forbid(unsafe_code)]

/// Channels, low 5 bits.
pub(super) const CHANCNT: usize = 0x00;
/// Binary logarithm of the longest copy, low 5 bits.
pub(super) const XFERCAP: usize = 0x01;
/// Major version in the high half, minor in the low.
pub(super) const CBVER: usize = 0x08;
/// What the channel does besides copying.
pub(super) const CHANCTRL: usize = 0x80;
/// What it is told to do.
pub(super) const CHANCMD: usize = 0x84;
/// The doorbell: descriptors since CHAINADDR was written, modulo 65536.
pub(super) const DMACOUNT: usize = 0x86;
/// The last descriptor that it finished, and its state.
pub(super) const CHANSTS: usize = 0x88;
/// The first descriptor; writing it arms the channel.
pub(super) const CHAINADDR: usize = 0x90;
/// Where it writes CHANSTS to memory.
pub(super) const CHANCMP: usize = 0x98;
/// What went wrong; a bit is cleared by writing it.
pub(super) const CHANERR: usize = 0xa8;
/// In the configuration space: more of what went wrong, before version 3.3.
pub(super) const CHANERR_INT: u16 = 0x180;

/// A driver has it.
pub(super) const CHANCTRL_IN_USE: u16 = 0x100;
/// Stop at any error, and write the completion then, too.
pub(super) const CHANCTRL_RUN: u16 = 0x0c;

/// Reads as one until the reset is done.
pub(super) const CHANCMD_RESET: u8 = 0x20;
/// Stop behind the descriptor in work.
pub(super) const CHANCMD_SUSPEND: u8 = 0x04;

/// All that the doorbell said is done.
pub(super) const CHANSTS_IDLE: u64 = 1;
/// It was suspended.
pub(super) const CHANSTS_SUSPENDED: u64 = 2;
/// An error stopped it.
pub(super) const CHANSTS_HALTED: u64 = 3;
/// It has a chain and waits for the doorbell.
pub(super) const CHANSTS_ARMED: u64 = 4;

/// The first version that we drive: Sandy Bridge.
pub(super) const VERSION_3_2: u8 = 0x32;
/// Without CHANERR_INT.
pub(super) const VERSION_3_3: u8 = 0x33;
/// Goes on behind a descriptor that failed.
pub(super) const VERSION_3_4: u8 = 0x34;

/// Control bits of a descriptor: a copy, with completion.
pub(super) const COPY: u64 = 0x08;
/// No copy, with completion.
pub(super) const NOTHING: u64 = 0x28;

/// The state in CHANSTS and in the completion word.
pub(super) fn state_of(status: u64) -> u64 {
    status & 7
}

/// Whether a channel in that state reads and writes nothing.
pub(super) fn is_still(state: u64) -> bool {
    matches!(state, CHANSTS_IDLE | CHANSTS_SUSPENDED | CHANSTS_HALTED)
}
