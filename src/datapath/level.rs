//! For which instructions of the CPU the loops of the short bodies are compiled.

/// A set of instructions.
pub(super) trait Level {
    /// Whether a loop of these instructions copies as fast as libc does.
    const WIDE: bool;

    /// Runs `work`, which is compiled into this call for the level. Not inlined: its loops have the
    /// registers for themselves.
    fn run<T>(work: impl FnOnce() -> T) -> T;
}

/// What every CPU has that the plugin runs on.
#[derive(Debug)]
pub(super) enum Baseline {}

impl Level for Baseline {
    const WIDE: bool = false;

    #[inline(never)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// Vectors of 32 bytes, and a few instructions on bits that came with them.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub(super) enum Avx2 {}

#[cfg(target_arch = "x86_64")]
impl Level for Avx2 {
    const WIDE: bool = true;

    #[inline(always)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        #[inline(never)]
        fn compiled<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        // SAFETY: `select` names this level only where `has_avx2` tells that the CPU has all four.
        unsafe { compiled(work) }
    }
}

/// Whether the CPU has what [`Avx2`] needs, and the application allows vectors of `simd_bits`.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx2(simd_bits: u16) -> bool {
    use std::arch::is_x86_feature_detected as has;
    simd_bits >= 256 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("lzcnt")
}
