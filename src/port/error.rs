//! Why an operation on a port failed: words for the operator, a number for the application.
#![forbid(unsafe_code)]

use std::io;

use crate::devargs::DevargsError;
use crate::dma::channel::OpenError;
use crate::guard::Errno;
use crate::session::EndpointError;

/// Why an operation on a port failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error("the port is closed")]
    Closed,
    #[error("only the process that made the port can do this")]
    Secondary,
    #[error("no shared memory left")]
    NoMemory,
    #[error("no port is left, or the name is in use")]
    NoPort,
    #[error("the arguments are not UTF-8")]
    NotText,
    #[error(transparent)]
    Devargs(#[from] DevargsError),
    #[error("iface={iface} is the socket of port {owner} already")]
    IfaceInUse { iface: String, owner: String },
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("queue {0} is above the devargs' queues=")]
    NoQueue(u16),
    #[error("mbufs have room for {room} bytes, at least {least} are needed")]
    SmallMbufs { room: u16, least: u16 },
    #[error("no mempool was given")]
    NoPool,
    #[error("rx interrupts: {0}")]
    Interrupts(#[source] io::Error),
    #[error("{queue}: engine {engine}: {source}")]
    Engine {
        queue: String,
        engine: String,
        source: OpenError,
    },
    #[error("the thread that looks after copy engines: {0}")]
    Thread(#[source] io::Error),
    #[error("MTU {mtu}, from {least} to 65535 is allowed")]
    Mtu { mtu: u16, least: u16 },
}

impl Errno for PortError {
    fn errno(&self) -> i32 {
        match self {
            Self::Closed => libc::ENODEV,
            Self::Secondary => libc::ENOTSUP,
            Self::NoMemory => libc::ENOMEM,
            Self::NoPort => libc::EEXIST,
            Self::IfaceInUse { .. } => libc::EADDRINUSE,
            Self::Endpoint(error) => error.errno(),
            Self::Engine {
                source: OpenError::Busy(_),
                ..
            } => libc::EBUSY,
            Self::Engine { .. } => libc::ENODEV,
            Self::Interrupts(error) | Self::Thread(error) => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
            Self::NotText
            | Self::Devargs(_)
            | Self::NoQueue(_)
            | Self::SmallMbufs { .. }
            | Self::NoPool
            | Self::Mtu { .. } => libc::EINVAL,
        }
    }
}
