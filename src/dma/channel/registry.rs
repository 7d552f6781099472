//! The engines of this process, by name.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::super::Engine;
use super::Channel;

/// Why an engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none of that name, or it does not do what is needed.
    #[error("{0}")]
    Unusable(String),
    /// Somebody else has it.
    #[error("{0}")]
    Busy(String),
    /// It failed earlier.
    #[error("it failed earlier in this process, and is not used again")]
    Failed,
}

/// An engine that is open, or on its way out.
#[derive(Debug)]
struct Open {
    name: String,
    number: u64,
    channel: Weak<Channel>,
}

/// The engines of this process that are in use, and the names of those that have died.
#[derive(Debug, Default)]
struct Registry {
    open: Vec<Open>,
    last: u64,
    dead: Vec<String>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    open: Vec::new(),
    last: 0,
    dead: Vec::new(),
});
/// An engine has gone.
static GONE: Condvar = Condvar::new();
/// How long one may take to go: longer than a thread gets to end a copy.
const GOES: Duration = Duration::from_secs(3);

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of an engine in the registry, until the engine is stopped and closed.
#[derive(Debug)]
pub(super) struct Entry(u64);

impl Drop for Entry {
    fn drop(&mut self) {
        registry().open.retain(|open| open.number != self.0);
        GONE.notify_all();
    }
}

/// Waits for engines that are on their way out: to open one of them, or one of the same device, would
/// fail now, or be undone by their last reset.
fn settle(registry: MutexGuard<'static, Registry>) -> MutexGuard<'static, Registry> {
    let going = |registry: &mut Registry| {
        let mut open = registry.open.iter();
        open.any(|open| open.channel.strong_count() == 0)
    };
    let settled = GONE.wait_timeout_while(registry, GOES, going);
    settled.unwrap_or_else(PoisonError::into_inner).0
}

/// Whether two names are of one engine, or of an engine and of a part of it, which is behind `#`.
fn overlap(one: &str, other: &str) -> bool {
    let parts = |name: &str| match name.split_once('#') {
        Some((engine, part)) => (engine.to_owned(), Some(part.to_owned())),
        None => (name.to_owned(), None),
    };
    let ((engine, part), (other_engine, other_part)) = (parts(one), parts(other));
    engine == other_engine && (part == other_part || part.is_none() || other_part.is_none())
}

/// The engine of this name has died, and is gone.
pub(super) fn note_death(name: &str) {
    registry().dead.push(name.to_owned());
}

/// The engine of this name; the first who asks for it has it made.
///
/// # Errors
///
/// What `make` says, the engine has died, or part of it is open under another name.
pub fn open(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn Engine>, OpenError>,
) -> Result<Arc<Channel>, OpenError> {
    let find = |registry: &Registry| {
        let known = registry.open.iter().find(|open| open.name == name);
        known.and_then(|open| open.channel.upgrade())
    };
    let mut registry = registry();
    if let Some(channel) = find(&registry) {
        return Ok(channel);
    }
    registry = settle(registry);
    // Somebody else may have waited, too.
    if let Some(channel) = find(&registry) {
        return Ok(channel);
    }
    if let Some(open) = registry.open.iter().find(|open| overlap(&open.name, name)) {
        let known = &open.name;
        return Err(OpenError::Busy(format!("it is in use here as {known}")));
    }
    if registry.dead.iter().any(|dead| overlap(dead, name)) {
        return Err(OpenError::Failed);
    }
    let mut channel = Channel::new(name, make()?);
    registry.last += 1;
    channel.entry = Some(Entry(registry.last));
    let channel = Arc::new(channel);
    let open = Open {
        name: name.to_owned(),
        number: registry.last,
        channel: Arc::downgrade(&channel),
    };
    registry.open.push(open);
    Ok(channel)
}
