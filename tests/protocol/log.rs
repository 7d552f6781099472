//! What an operator reads.

use std::sync::{Mutex, Once, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use crate::Place;
use crate::raw::*;
use rte_net_vhost::session::features::*;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl Log for Lines {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        about.target() == "lib.vhost.config"
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            LINES
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    }

    fn flush(&self) {}
}

/// The lines that `work` on a fresh endpoint leads to.
fn lines(work: impl FnOnce(&Place)) -> Vec<String> {
    static ONCE: Once = Once::new();
    let place = Place::new();
    ONCE.call_once(|| log::set_logger(&Lines).unwrap());
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    log::set_max_level(LevelFilter::Debug);
    let (endpoint, _) = place.serve();
    work(&place);
    drop(endpoint);
    log::set_max_level(LevelFilter::Off);
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *lines)
}

#[test]
fn every_line_names_the_port() {
    let mut path = String::new();
    let lines = lines(|place| {
        path = place.config().iface;
        Raw::connect(&place.path()).refused(60, &[], &[]);
    });
    assert!(
        lines
            .iter()
            .all(|line| line.contains(&format!("({path}) ")))
    );
    let failed = format!("ERROR ({path}) request 60: not supported");
    assert!(lines.contains(&failed), "{lines:#?}");
}

#[test]
fn memory_that_is_not_shared_is_named_once_as_the_cause() {
    let lines = lines(|place| {
        let frontend = Frontend::connect(&place.path(), 2);
        frontend.negotiate(VHOST_USER_F_PROTOCOL_FEATURES, 0);
        frontend.share(&[]);
        frontend.start(0..1);
        frontend.raw.sync();
    });
    let hint = |line: &&String| line.starts_with("WARN") && line.contains("share=on");
    assert_eq!(lines.iter().filter(hint).count(), 1, "{lines:#?}");
}

#[test]
fn a_peer_cannot_fill_the_log() {
    let mut path = String::new();
    let lines = lines(|place| {
        path = place.config().iface;
        log::set_max_level(LevelFilter::Info);
        let raw = Raw::connect(&place.path());
        for _ in 0..1000 {
            raw.refused(60, &[], &[]);
        }
    });
    // What a port says in its first minute.
    assert_eq!(lines.len(), 300, "{:#?}", lines.last());
    let failed = format!("ERROR ({path}) request 60: not supported");
    assert_eq!(lines.last(), Some(&failed));
}
