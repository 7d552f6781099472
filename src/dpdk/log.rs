//! Carries lines of the `log` crate into DPDK's log, under the types that `crate::log` names.

use core::sync::atomic::{AtomicU32, Ordering};
use std::ffi::{CStr, CString};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::sys::{
    RTE_LOG_DEBUG, RTE_LOG_ERR, RTE_LOG_INFO, RTE_LOG_NOTICE, RTE_LOG_WARNING, rte_log,
    rte_log_can_log, rte_log_register_type_and_pick_level,
};
use crate::log::{CONFIG, DATA, PORT};

/// One of DPDK's log types that this driver writes to.
struct LogType {
    target: &'static str,
    name: &'static CStr,
    /// Shown unless the application picks another level.
    level: u32,
    prefix: &'static str,
    /// What `info!` means here.
    info: u32,
    /// DPDK's number of it.
    id: AtomicU32,
}

/// The type of EAL's own lines, for what is logged before [`install`].
const EAL: u32 = 0;

static TYPES: [LogType; 3] = [
    LogType {
        target: PORT,
        name: c"pmd.net.vhost",
        level: RTE_LOG_NOTICE,
        prefix: "",
        info: RTE_LOG_NOTICE,
        id: AtomicU32::new(EAL),
    },
    LogType {
        target: CONFIG,
        name: c"lib.vhost.config",
        level: RTE_LOG_INFO,
        prefix: "VHOST_CONFIG: ",
        info: RTE_LOG_INFO,
        id: AtomicU32::new(EAL),
    },
    LogType {
        target: DATA,
        name: c"lib.vhost.data",
        level: RTE_LOG_WARNING,
        prefix: "VHOST_DATA: ",
        info: RTE_LOG_INFO,
        id: AtomicU32::new(EAL),
    },
];

struct DpdkLog;

/// Registers the log types with the levels that the application picked for them, and becomes the
/// `log` crate's logger. Called once, when the library is loaded.
pub fn install() {
    for kind in &TYPES {
        // SAFETY: a string that is copied. If the stock library registered it too, its number is
        // given out again.
        let id = unsafe { rte_log_register_type_and_pick_level(kind.name.as_ptr(), kind.level) };
        kind.id
            .store(u32::try_from(id).unwrap_or(EAL), Ordering::Relaxed);
    }
    // DPDK filters by type, at run time, so nothing is filtered before. When there is a logger
    // already, as in test programs, it keeps its place.
    if log::set_logger(&DpdkLog).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}

/// The type for a target; lines of other crates, such as `vhost`, are about connections.
fn kind_of(target: &str) -> &'static LogType {
    let [port, config, data] = &TYPES;
    match target {
        _ if target == port.target => port,
        _ if target == data.target => data,
        _ => config,
    }
}

fn level_of(kind: &LogType, level: Level) -> u32 {
    match level {
        Level::Error => RTE_LOG_ERR,
        Level::Warn => RTE_LOG_WARNING,
        Level::Info => kind.info,
        Level::Debug | Level::Trace => RTE_LOG_DEBUG,
    }
}

impl Log for DpdkLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let kind = kind_of(metadata.target());
        // SAFETY: no condition.
        unsafe {
            rte_log_can_log(
                kind.id.load(Ordering::Relaxed),
                level_of(kind, metadata.level()),
            )
        }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let kind = kind_of(record.target());
        let line = line(kind.prefix, record);
        let level = level_of(kind, record.level());
        // SAFETY: the format takes one string, and gets one.
        unsafe {
            rte_log(
                level,
                kind.id.load(Ordering::Relaxed),
                c"%s\n".as_ptr(),
                line.as_ptr(),
            );
        }
    }

    fn flush(&self) {}
}

fn line(prefix: &str, record: &Record<'_>) -> CString {
    let mut text = format!("{prefix}{}", record.args()).into_bytes();
    // Names that a peer chose may hold any byte.
    text.iter_mut()
        .filter(|byte| **byte == 0)
        .for_each(|byte| *byte = b'?');
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_names_of_the_types() {
        for kind in &TYPES {
            assert_eq!(kind.name.to_str(), Ok(kind.target));
            assert_eq!(kind_of(kind.target).name, kind.name);
        }
        assert_eq!(kind_of("vhost::vhost_user").name, c"lib.vhost.config");
    }

    #[test]
    fn info_is_notice_on_the_port() {
        assert_eq!(level_of(kind_of(PORT), Level::Info), RTE_LOG_NOTICE);
        assert_eq!(level_of(kind_of(CONFIG), Level::Info), RTE_LOG_INFO);
    }

    #[test]
    fn a_nul_byte_does_not_cut_a_line() {
        let record = Record::builder().args(format_args!("a\0b")).build();

        assert_eq!(
            line("VHOST_CONFIG: ", &record).as_c_str(),
            c"VHOST_CONFIG: a?b"
        );
    }
}
