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

/// The engine of this name has died, and is gone.
pub(super) fn note_death(name: &str) {
    registry().dead.push(name.to_owned());
}

/// The engine of this name; the first who asks for it has it made.
///
/// # Errors
///
/// What `make` says, or the engine has died.
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
    if registry.dead.iter().any(|dead| dead == name) {
        return Err(OpenError::Failed);
    }
    let channel = Arc::new(Channel::new(name, make()?));
    registry
        .open
        .push((name.to_owned(), Arc::downgrade(&channel)));
    Ok(channel)
}
