//! MOVDIR64B and ENQCMD on processors that do not have them.
//!
//! A signal handler decodes the instruction at which the processor stopped, does what it does, and
//! goes on behind it. So the very instructions of the driver run in tests anywhere.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::{c_int, siginfo_t, ucontext_t};

/// From now on, in this process, both instructions work: where the processor does not know them,
/// and where ENQCMD is used without a process id for devices. A line that ENQCMD finds in use
/// refuses it.
pub fn stand_in_for_instructions() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        for signal in [libc::SIGILL, libc::SIGSEGV] {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            let fields = action.as_mut_ptr();
            // SAFETY: all zeroes are a valid `sigaction`: default action, no flags, empty mask.
            let action = unsafe { &mut *fields };
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the handler has the signature that SA_SIGINFO promises, and only uses memory.
            let result = unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
            assert_eq!(result, 0);
        }
    });
}

/// Where the registers are saved that an instruction calls 0 to 15.
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movdir64b,
    Enqcmd,
}

/// An instruction whose operand in memory is a register, perhaps with a short distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    kind: Kind,
    /// The register with the destination.
    line: usize,
    /// The register with the source.
    base: usize,
    distance: i8,
    len: usize,
}

/// Decodes `66` or `f2`, perhaps REX, `0f 38 f8 /r`.
fn decode(bytes: &[u8; 15]) -> Option<Instruction> {
    let mut rest = bytes.iter().copied();
    let kind = match rest.next()? {
        0x66 => Kind::Movdir64b,
        0xf2 => Kind::Enqcmd,
        _ => return None,
    };
    let mut byte = rest.next()?;
    let mut rex = 0;
    if byte & 0xf0 == 0x40 {
        rex = usize::from(byte & 0xf);
        byte = rest.next()?;
    }
    if [byte, rest.next()?, rest.next()?] != [0x0f, 0x38, 0xf8] {
        return None;
    }
    let form = usize::from(rest.next()?);
    let mut base = form & 7;
    if base == 4 {
        let scaled = usize::from(rest.next()?);
        // Only a base, no index.
        if scaled >> 3 & 7 != 4 || rex & 2 != 0 {
            return None;
        }
        base = scaled & 7;
    }
    let distance = match form >> 6 {
        0 if base != 5 => 0,
        1 => rest.next()?.cast_signed(),
        _ => return None,
    };
    Some(Instruction {
        kind,
        line: form >> 3 & 7 | (rex & 4) << 1,
        base: base | (rex & 1) << 3,
        distance,
        len: bytes.len() - rest.len(),
    })
}

extern "C" fn handle(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    const ZERO_FLAG: i64 = 1 << 6;
    const ARITHMETIC_FLAGS: i64 = 0x8d5;

    // SAFETY: the kernel passes the interrupted context, which is ours until we return.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let at = ptr::with_exposed_provenance::<[u8; 15]>(registers[libc::REG_RIP as usize] as usize);
    // SAFETY: the processor stopped at an instruction there, so it is mapped; a function's last
    // instruction is followed by others or by padding.
    let found = decode(&unsafe { at.read_unaligned() });
    let Some(instruction) = found else {
        // Not ours: it happens again, and then has its usual end.
        // SAFETY: sets the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    let value = |nth: usize| registers[REGISTERS[nth] as usize] as usize;
    let line = ptr::with_exposed_provenance::<AtomicU64>(value(instruction.line));
    let source = value(instruction.base).wrapping_add_signed(instruction.distance.into());
    let source = ptr::with_exposed_provenance::<[u64; 8]>(source);
    // SAFETY: the instruction's operand: 64 bytes that the driver wants to submit.
    let words = unsafe { source.read_unaligned() };
    assert!(line.is_aligned() && line.addr().is_multiple_of(64), "#GP");
    // SAFETY: the instruction's destination: a line of a mapped portal.
    let line = unsafe { std::slice::from_raw_parts(line, 8) };
    let taken = instruction.kind == Kind::Movdir64b || line[0].load(Ordering::Acquire) == 0;
    if taken {
        // The reader looks at the first word, which is never zero in a descriptor.
        for (to, word) in line.iter().zip(words).skip(1) {
            to.store(word, Ordering::Relaxed);
        }
        line[0].store(words[0], Ordering::Release);
    }
    if instruction.kind == Kind::Enqcmd {
        let flags = &mut registers[libc::REG_EFL as usize];
        *flags &= !ARITHMETIC_FLAGS;
        *flags |= if taken { 0 } else { ZERO_FLAG };
    }
    registers[libc::REG_RIP as usize] += instruction.len as i64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(bytes: &[u8]) -> Option<Instruction> {
        let mut padded = [0x90; 15];
        padded[..bytes.len()].copy_from_slice(bytes);
        decode(&padded)
    }

    #[test]
    fn what_an_assembler_makes_is_decoded() {
        let movdir = |line, base, distance, len| {
            let kind = Kind::Movdir64b;
            Some(Instruction {
                kind,
                line,
                base,
                distance,
                len,
            })
        };
        // movdir64b rax, [rdx]
        assert_eq!(
            instruction(&[0x66, 0x0f, 0x38, 0xf8, 0x02]),
            movdir(0, 2, 0, 5)
        );
        // movdir64b r9, [r12]
        let bytes = [0x66, 0x45, 0x0f, 0x38, 0xf8, 0x0c, 0x24];
        assert_eq!(instruction(&bytes), movdir(9, 12, 0, 7));
        // movdir64b rcx, [r13 + 0]
        let bytes = [0x66, 0x41, 0x0f, 0x38, 0xf8, 0x4d, 0x00];
        assert_eq!(instruction(&bytes), movdir(1, 13, 0, 7));
        // enqcmd rax, [rcx]
        let found = instruction(&[0xf2, 0x0f, 0x38, 0xf8, 0x01]).unwrap();
        assert_eq!((found.kind, found.line, found.base), (Kind::Enqcmd, 0, 1));
        // ud2
        assert_eq!(instruction(&[0x0f, 0x0b]), None);
    }
}
