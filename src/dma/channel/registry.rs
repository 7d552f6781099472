//! The engines of this process, by name.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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

/// The engines of this process that are in use, and the names of those that have died.
#[derive(Debug, Default)]
struct Registry {
    open: Vec<(String, Weak<Channel>)>,
    dead: Vec<String>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    open: Vec::new(),
    dead: Vec::new(),
});

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
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
    let mut registry = registry();
    registry
        .open
        .retain(|(_, channel)| channel.strong_count() != 0);
    let known = registry.open.iter().find(|(known, _)| known == name);
    if let Some(channel) = known.and_then(|(_, channel)| channel.upgrade()) {
        return Ok(channel);
    }
    if let Some((known, _)) = registry.open.iter().find(|(known, _)| overlap(known, name)) {
        return Err(OpenError::Busy(format!("it is in use here as {known}")));
    }
    if registry.dead.iter().any(|dead| overlap(dead, name)) {
        return Err(OpenError::Failed);
    }
    let channel = Arc::new(Channel::new(name, make()?));
    registry
        .open
        .push((name.to_owned(), Arc::downgrade(&channel)));
    Ok(channel)
}
