//! The path of a port: who may use it, and how the socket gets there.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use once_cell::sync::Lazy;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::endpoint::EndpointError;

/// The longest path, in bytes, that fits a socket address with its final zero.
const MAX_PATH: usize = 107;
/// How many connections may wait for `accept`.
const BACKLOG: i32 = 128;

/// The paths of all ports of the process.
static CLAIMED: Lazy<Mutex<HashSet<Spot>>> = Lazy::new(Mutex::default);

/// A path, however it is spelt: device and inode of its directory, and the name in it. Without such a
/// directory it is the path as it was given.
type Spot = (Option<(u64, u64)>, PathBuf);

/// The right of one port of this process to use a path, until dropped.
#[derive(Debug)]
pub(super) struct Claim(Spot);

impl Claim {
    /// Claims `path`, however it is spelt.
    pub(super) fn new(path: &str) -> Result<Self, EndpointError> {
        let length = path.len();
        if length > MAX_PATH {
            let path = path.to_owned();
            return Err(EndpointError::TooLong { path, length });
        }
        if path.is_empty() || path.contains('\0') {
            return Err(EndpointError::NoPath);
        }
        let spot = spot(Path::new(path));
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if !claimed.insert(spot.clone()) {
            return Err(EndpointError::OtherPort(path.to_owned()));
        }
        Ok(Self(spot))
    }

    /// Whether the directory was there.
    fn has_directory(&self) -> bool {
        let (directory, _) = &self.0;
        directory.is_some()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.remove(&self.0);
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where `path` leads; the file itself need not exist.
fn spot(path: &Path) -> Spot {
    let about = fs::metadata(directory(path)).ok();
    match about.filter(fs::Metadata::is_dir) {
        Some(about) => {
            let name = path.file_name().unwrap_or(path.as_os_str());
            (Some((about.dev(), about.ino())), name.into())
        }
        None => (None, path.to_owned()),
    }
}

/// A listening socket and its file.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that we made.
    file: Option<(u64, u64)>,
    _claim: Claim,
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let about = fs::symlink_metadata(path)?;
    Ok((about.dev(), about.ino()))
}

impl Listening {
    /// Makes the socket. One that nobody serves is replaced; anything else at the path is left
    /// alone.
    pub(super) fn new(path: &str, claim: Claim) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Socket {
            path: path.to_owned(),
            source,
        };
        let file = Path::new(path);
        let directory = directory(file);
        if !claim.has_directory() {
            return Err(EndpointError::NoDirectory {
                path: path.to_owned(),
                directory: directory.display().to_string(),
            });
        }
        // Another process may find the same stale socket at the same time.
        let _lock = lock(directory);
        let listener = match bound(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                make_room(path)?;
                bound(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(failed)?;
        let listening = Self {
            listener: listener.into(),
            path: file.to_owned(),
            file: identity(file).ok(),
            _claim: claim,
        };
        let made = rustix::net::listen(&listening.listener, BACKLOG);
        made.map_err(|error| failed(error.into()))?;
        Ok(listening)
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The path may belong to somebody else by now.
        if self.file.is_some() && identity(&self.path).ok() == self.file {
            // Fails when it is gone already, or the directory is closed to us: nothing to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps other backends out of `directory` for a moment. Whoever cannot lock goes on without.
fn lock(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    for _ in 0..20 {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(file),
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(5)),
            Err(_) => return None,
        }
    }
    None
}

/// Removes a socket that nobody serves.
fn make_room(path: &str) -> Result<(), EndpointError> {
    let Ok(about) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !about.file_type().is_socket() {
        return Err(EndpointError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => fs::remove_file(path)
            .map_err(|source| EndpointError::Socket {
                path: path.to_owned(),
                source,
            }),
        // Gone in the meantime.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(EndpointError::InUse(path.to_owned())),
    }
}

/// A socket at `path`, at which nobody listens yet.
fn bound(path: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    Ok(socket?)
}

/// Connects to `path` without waiting for room in the other side's queue.
pub(super) fn connect(path: &str) -> io::Result<UnixStream> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}
