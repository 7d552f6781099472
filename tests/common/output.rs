//! What a process wrote, for waiting on.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;

/// The text that one or several streams have delivered so far.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Arc<(Mutex<Text>, Condvar)>,
    name: String,
}

#[derive(Default)]
struct Text {
    text: String,
    open_streams: usize,
    log: Option<File>,
}

impl Output {
    /// Nothing so far; everything that comes is also written to `log`.
    pub(crate) fn new(name: &str, log: Option<File>) -> Self {
        let text = Text {
            log,
            ..Text::default()
        };
        Self {
            shared: Arc::new((Mutex::new(text), Condvar::new())),
            name: name.to_owned(),
        }
    }

    /// Collects a stream until its end, on a thread of its own.
    pub(crate) fn collect(&self, mut stream: impl Read + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        lock(&shared.0).open_streams += 1;
        thread::spawn(move || {
            let mut piece = [0; 4096];
            let mut partial = Vec::new();
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                partial.extend_from_slice(&piece[..length]);
                // A character may be cut by the read; the rest comes with the next one.
                let whole = match std::str::from_utf8(&partial) {
                    Ok(_) => partial.len(),
                    Err(error) if error.error_len().is_none() => error.valid_up_to(),
                    Err(_) => partial.len(),
                };
                let rest = partial.split_off(whole);
                let mut text = lock(&shared.0);
                if let Some(log) = &mut text.log {
                    let _ = log.write_all(&partial);
                }
                text.text.push_str(&String::from_utf8_lossy(&partial));
                drop(text);
                partial = rest;
                shared.1.notify_all();
            }
            lock(&shared.0).open_streams -= 1;
            shared.1.notify_all();
        });
    }

    /// The current end of the text. Take it before the action whose answer is awaited.
    pub(crate) fn mark(&self) -> usize {
        lock(&self.shared.0).text.len()
    }

    /// Everything since `mark`.
    pub(crate) fn since(&self, mark: usize) -> String {
        lock(&self.shared.0).text[mark..].to_owned()
    }

    /// Waits until the text after `mark` contains `wanted`; returns the position behind it.
    pub(crate) fn wait_for(&self, wanted: &str, mark: usize, patience: Duration) -> Outcome<usize> {
        let describe = format!("`{wanted}`");
        self.wait_until(&describe, patience, |text| {
            let found = text[mark..].find(wanted)?;
            Some(mark + found + wanted.len())
        })
    }

    /// Waits until `find` finds something in the whole text.
    pub(crate) fn wait_until<T>(
        &self,
        what: &str,
        patience: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + patience;
        let mut text = lock(&self.shared.0);
        loop {
            if let Some(found) = find(&text.text) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.open_streams == 0 {
                let reason = if left.is_zero() {
                    format!("did not come within {patience:?}")
                } else {
                    "did not come before the end of the output".to_owned()
                };
                return Err(format!(
                    "{}: {what} {reason}. Last output:\n{}",
                    self.name,
                    tail(&text.text)
                )
                .into());
            }
            text = self
                .shared
                .1
                .wait_timeout(text, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(text, _)| text);
        }
    }

    /// The end of the text, for messages.
    pub(crate) fn tail(&self) -> String {
        tail(&lock(&self.shared.0).text)
    }
}

fn lock(text: &Mutex<Text>) -> std::sync::MutexGuard<'_, Text> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last 30 lines, each with a margin.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(30));
    last.map(|line| format!("    | {line}\n")).collect()
}
