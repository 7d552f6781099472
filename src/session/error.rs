//! Why a request of the frontend fails.
#![forbid(unsafe_code)]

use std::io;

use super::features;
use super::wire::MAX_FILES;
use crate::memory::{MapError, TableError};

/// Why a request fails. The frontend learns only that it did; the words are for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// No such vring; ends the connection.
    #[error("vring {0}, at most 255")]
    VringIndex(u32),
    /// Not served here.
    #[error("not supported")]
    Unsupported,
    /// More or fewer files than the message has.
    #[error("{got} files, {wanted} wanted")]
    Files {
        /// How many came.
        got: usize,
        /// How many the message has.
        wanted: String,
    },
    /// More files than any message has, or more than the system could hand over.
    #[error(
        "not all files came through: more than {MAX_FILES}, or the limit of open files is reached"
    )]
    FilesLost,
    /// The payload ends too early.
    #[error("{got} bytes, at least {wanted} wanted")]
    Short {
        /// How many came.
        got: usize,
        /// How many the message has.
        wanted: usize,
    },
    /// Feature bits that were not offered.
    #[error("features {} were not offered", features::names(*.0))]
    NotOffered(u64),
    /// Protocol feature bits that were not offered.
    #[error("protocol features {} were not offered", features::protocol_names(*.0))]
    ProtocolNotOffered(u64),
    /// Features may not change while the device runs.
    #[error("features change from {from:#x} to {to:#x} while the device runs")]
    FeaturesWhileRunning {
        /// The word in use.
        from: u64,
        /// The word asked for.
        to: u64,
    },
    /// The vring may not change while it runs.
    #[error("vring {0} is running")]
    Running(u16),
    /// The vring cannot be stopped.
    #[error("vring {0}: a copy engine that cannot be stopped may still write to it")]
    Held(u16),
    /// No ring of that size.
    #[error("vring {index}: {size} descriptors; a power of two up to 32768 wanted")]
    RingSize {
        /// The vring.
        index: u16,
        /// The size asked for.
        size: u32,
    },
    /// An index has 16 bits.
    #[error("vring {index}: base {base:#x} has more than 16 bits")]
    RingBase {
        /// The vring.
        index: u16,
        /// The index asked for.
        base: u32,
    },
    /// Addresses before memory.
    #[error("vring {0}: addresses before any memory table; is guest memory shared (share=on)?")]
    AddressesWithoutMemory(u16),
    /// A file that is no eventfd could block us.
    #[error("vring {index}: {found} instead of an eventfd")]
    NotAnEventfd {
        /// The vring.
        index: u16,
        /// What the file is.
        found: String,
    },
    /// No network has such an MTU.
    #[error("MTU {0}; 68 to 65535 wanted")]
    Mtu(u64),
    /// The device status has eight bits.
    #[error("status {0:#x} has more than 8 bits")]
    Status(u64),
    /// Not a stream socket.
    #[error("the file is no stream socket")]
    NotASocket,
    /// No such kind of message about the IOMMU, from a frontend.
    #[error("type {0}, neither an update (2) nor an invalidation (3)")]
    IotlbType(u8),
    /// An access that nobody knows, or none.
    #[error("access {0:#x}; 1 to read, 2 to write, 3 for both")]
    IotlbAccess(u8),
    /// An empty range, or one that goes past the last address.
    #[error("{size:#x} bytes at {iova:#x}")]
    IotlbRange {
        /// First address.
        iova: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A translation to nowhere.
    #[error("address {0:#x} is in no memory region")]
    IotlbAddress(u64),
    /// A region cannot be mapped.
    #[error("region {nth}, {size:#x} bytes at guest {gpa:#x}, not mapped: {source}")]
    Map {
        /// Its place in the message.
        nth: usize,
        /// Its first address.
        gpa: u64,
        /// Its length.
        size: u64,
        /// The reason.
        source: MapError,
    },
    /// Not a description of a log.
    #[error("{0} bytes, 16 wanted")]
    LogSize(usize),
    /// The dirty log cannot be mapped.
    #[error("dirty log of {size:#x} bytes at {offset:#x} of its file, not mapped: {source}")]
    Log {
        /// Its length.
        size: u64,
        /// Where it begins.
        offset: u64,
        /// The reason.
        source: MapError,
    },
    /// The regions do not go together.
    #[error("{0}")]
    Table(#[from] TableError),
    /// Not what a postcopy migration does now.
    #[error("postcopy: {0}")]
    Postcopy(&'static str),
    /// What the `vhost` crate found.
    #[error("{0}")]
    Protocol(vhost::vhost_user::Error),
    /// The system refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl RequestError {
    /// Whether the connection ends even when the frontend waits for an answer.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(self, Self::VringIndex(_))
    }
}
