//! Where log lines go, and how often.
//!
//! Lines are written with the macros of the `log` crate and one of the targets below, which are
//! DPDK's log types, so that `--log-level` lines which people already use keep working:
//!
//! ```text
//! log::info!(target: CONFIG, "({path}) listening");
//! ```
//!
//! | macro | `PORT` | `CONFIG`, `DATA` |
//! |---|---|---|
//! | `error!` | ERR | ERR |
//! | `warn!` | WARNING | WARNING |
//! | `info!` | NOTICE: the life of a link | INFO |
//! | `debug!`, `trace!` | DEBUG | DEBUG |

#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The port as the application sees it; shown from NOTICE on, unless the application says otherwise.
pub const PORT: &str = "pmd.net.vhost";
/// Connections and messages; shown from INFO on. Lines begin with `VHOST_CONFIG: `.
pub const CONFIG: &str = "lib.vhost.config";
/// Rings and packets; shown from WARNING on. Lines begin with `VHOST_DATA: `.
pub const DATA: &str = "lib.vhost.data";

/// Lets a few lines through in each period, so that a peer cannot fill the log.
///
/// A static per kind of line:
///
/// ```text
/// static LIMIT: RateLimit = RateLimit::new(5, Duration::from_secs(1));
/// if let Some(dropped) = LIMIT.pass(Instant::now()) {
///     log::warn!(target: DATA, "({path}) …; {dropped} lines like this were left out");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimit {
    lines: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    began: Option<Instant>,
    passed: u32,
    dropped: u64,
}

impl RateLimit {
    /// At most `lines` in each `period`.
    pub const fn new(lines: u32, period: Duration) -> Self {
        Self {
            lines,
            period,
            state: Mutex::new(State {
                began: None,
                passed: 0,
                dropped: 0,
            }),
        }
    }

    /// Whether a line may be written now; if so, how many were dropped since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        // A panic elsewhere leaves plain numbers behind, so poisoning means nothing here.
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let over = state
            .began
            .is_none_or(|began| now.duration_since(began) >= self.period);
        if over {
            state.began = Some(now);
            state.passed = 0;
        }
        if state.passed >= self.lines {
            state.dropped = state.dropped.saturating_add(1);
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_above_the_limit_are_dropped_and_counted() {
        let limit = RateLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();

        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_millis(999)), None);

        assert_eq!(limit.pass(start + Duration::from_secs(1)), Some(2));
        assert_eq!(limit.pass(start + Duration::from_secs(1)), Some(0));
        assert_eq!(limit.pass(start + Duration::from_secs(1)), None);
    }
}
