//! The log lines of a port's connections.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::{Duration, Instant};

use crate::log::{CONFIG, RateLimit};

/// Lines of one port that are written in each [`PERIOD`], but for those that only developers read. A
/// peer can have as many lines written as it likes; a port with many queues that reconnects now and
/// then needs fewer.
const LINES: u32 = 300;
const PERIOD: Duration = Duration::from_secs(60);

/// Writes lines in the name of a port.
#[derive(Debug)]
pub(super) struct Voice {
    iface: String,
    limit: RateLimit,
}

impl Voice {
    /// For the port whose socket is at `iface`.
    pub(super) fn new(iface: &str) -> Self {
        Self {
            iface: iface.to_owned(),
            limit: RateLimit::new(LINES, PERIOD),
        }
    }

    /// Writes a line; the sink puts `VHOST_CONFIG: ` before it.
    pub(super) fn say(&self, level: log::Level, words: fmt::Arguments<'_>) {
        if !log::log_enabled!(target: CONFIG, level) {
            return;
        }
        // Whoever asks for all lines gets them.
        let left_out = match level {
            log::Level::Debug | log::Level::Trace => Some(0),
            _ => self.limit.pass(Instant::now()),
        };
        let iface = &self.iface;
        match left_out {
            None => {}
            Some(0) => log::log!(target: CONFIG, level, "({iface}) {words}"),
            Some(count) => {
                log::log!(target: CONFIG, level, "({iface}) {words} ({count} lines before it left out)")
            }
        }
    }
}

/// Logs a line of the protocol for the port of `$voice`.
macro_rules! say {
    ($level:ident, $voice:expr, $($words:tt)+) => {
        $voice.say(log::Level::$level, format_args!($($words)+))
    };
}
pub(super) use say;
