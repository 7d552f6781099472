//! Where C calls Rust: the only `catch_unwind`, results as C wants them, C strings.
//!
//! A process holds ports of many tenants. A panic must end one operation, session or queue, and
//! never the process, as it would at an `extern "C"` boundary without this.

use core::ffi::{CStr, c_char, c_int};
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use crate::log::PORT;

/// An error that C knows by a number.
pub trait Errno {
    /// A positive `errno`.
    fn errno(&self) -> c_int;
}

/// Runs `op`; when it panics, logs that and returns `fallback`.
///
/// What `op` shares with others may be half changed after a panic: the caller gives it up (ends the
/// session, poisons the queue) or has locks that tell.
pub fn catch<T>(fallback: T, op: impl FnOnce() -> T) -> T {
    match panic::catch_unwind(AssertUnwindSafe(op)) {
        Ok(value) => value,
        Err(payload) => {
            log::error!(target: PORT, "internal error: {}", message(payload.as_ref()));
            // Dropping what a panic carries may panic again.
            std::mem::forget(payload);
            fallback
        }
    }
}

/// Runs an operation for C: 0, or a negative errno; -EFAULT after a panic.
pub fn errno<E: Errno>(op: impl FnOnce() -> Result<(), E>) -> c_int {
    count(|| op().map(|()| 0))
}

/// Runs an operation for C that answers with a number: that, or a negative errno; -EFAULT after a
/// panic.
pub fn count<E: Errno>(op: impl FnOnce() -> Result<c_int, E>) -> c_int {
    catch(-libc::EFAULT, || {
        op().unwrap_or_else(|error| -error.errno().saturating_abs())
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "panic"
    }
}

/// Text from C; `None` for null and for what is not UTF-8.
///
/// # Safety
///
/// `text` is null or a string that lives, unchanged, as long as the result is used.
pub unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: see above.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().ok()
}

/// Writes `text` into an array of C's, cut where it does not fit, with a final NUL.
#[allow(
    clippy::cast_possible_wrap,
    reason = "char is signed in C here; the bits are the same"
)]
pub fn fill(array: &mut [c_char], text: &str) {
    let Some(room) = array.len().checked_sub(1) else {
        return;
    };
    let len = text.len().min(room);
    for (to, from) in array.iter_mut().zip(text.as_bytes().iter().take(len)) {
        *to = *from as c_char;
    }
    array[len] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refused;

    impl Errno for Refused {
        fn errno(&self) -> c_int {
            libc::ENOTSUP
        }
    }

    #[test]
    fn a_result_becomes_a_negative_errno() {
        assert_eq!(errno(|| Ok::<_, Refused>(())), 0);
        assert_eq!(errno(|| Err(Refused)), -libc::ENOTSUP);
        assert_eq!(count(|| Ok::<_, Refused>(17)), 17);
    }

    #[test]
    fn a_panic_does_not_reach_c() {
        assert_eq!(
            errno(|| -> Result<(), Refused> { panic!("seen by the log") }),
            -libc::EFAULT
        );
        assert_eq!(catch(0, || panic!("{}", 1)), 0);
    }

    #[test]
    fn text_that_does_not_fit_is_cut() {
        let mut array = [1; 4];

        fill(&mut array, "abcdef");
        assert_eq!(array, [b'a' as c_char, b'b' as c_char, b'c' as c_char, 0]);

        fill(&mut array, "x");
        assert_eq!(array[..2], [b'x' as c_char, 0]);

        fill(&mut [], "x");
    }
}
