//! The socket of a port.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use super::{SessionConfig, SessionEvents, Spawn};

/// Why a port has no socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The system refused.
    #[error("{path}: {source}")]
    Socket {
        /// Path of the socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl EndpointError {
    /// The number for the application, positive.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Socket { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// The socket of a port and all its connections.
pub struct Endpoint {}

impl Endpoint {
    /// Makes the socket appear and serves it on threads of its own until [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// The path is not usable, or there is no thread.
    pub fn start(
        _config: SessionConfig,
        _events: Arc<dyn SessionEvents>,
        _spawn: Arc<dyn Spawn>,
    ) -> Result<Self, EndpointError> {
        Ok(Self {})
    }

    /// Ends everything; when it returns, no further event is raised and the path is free. Called
    /// from within an event it does not wait for the thread that raises it.
    pub fn stop(&self) {}
}
