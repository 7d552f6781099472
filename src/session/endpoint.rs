//! The socket of a port, and the threads that serve it.
//!
//! One thread waits at the sockets of all ports that listen ([`hall`](super::hall)), a port that
//! connects and reconnects has a thread for that, and each connection has one of its own.
//! [`Endpoint::stop`] ends them all.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;

use super::bell::Bell;
use super::connection::Connection;
use super::device::Place;
use super::hall::{Door, Seat, Usher};
use super::say;
use super::socket::{self, Claim, Listening};
use super::spawn::{Join, Spawn};
use super::turn::{Turn, Vid};
use super::voice::Voice;
use super::{SessionConfig, SessionEvents};

/// The most connections that one port has at a time. Only one of them has the rings, and each costs a
/// thread and some of the process's descriptors, which other ports need, too.
const MOST_CONNECTIONS: usize = 16;

/// Until a connection is accepted again, after one could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a port has no socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Nothing to listen at.
    #[error("iface= is empty, or not a path")]
    NoPath,
    /// A socket address has no room for it.
    #[error("iface={path}: {length} bytes, at most 107")]
    TooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Its directory is not there.
    #[error("iface={path}: there is no directory {directory}")]
    NoDirectory {
        /// The path.
        path: String,
        /// What is missing.
        directory: String,
    },
    /// A port of this process has it.
    #[error("iface={0}: another port of this process uses it")]
    OtherPort(String),
    /// Another process has it.
    #[error("iface={0}: another process listens there")]
    InUse(String),
    /// A file that is not ours.
    #[error("iface={0}: a file that is no socket is in the way; it was left alone")]
    NotASocket(String),
    /// The system refused.
    #[error("iface={path}: {source}")]
    Socket {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// No thread, or no descriptor for it.
    #[error("iface={path}: no thread: {source}")]
    Thread {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl EndpointError {
    /// The number for the application, positive.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoPath => libc::EINVAL,
            Self::TooLong { .. } => libc::ENAMETOOLONG,
            Self::NoDirectory { .. } => libc::ENOENT,
            Self::OtherPort(_) | Self::InUse(_) | Self::NotASocket(_) => libc::EADDRINUSE,
            Self::Socket { source, .. } | Self::Thread { source, .. } => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    }
}

/// A connection as the port's thread sees it.
struct Peer {
    /// Unlike the vid, never given again.
    serial: u64,
    vid: i32,
    socket: Arc<UnixStream>,
    /// Known once the thread runs.
    thread: Option<ThreadId>,
    join: Option<Box<dyn Join>>,
    over: bool,
}

/// What all threads of a port share.
struct Shared {
    voice: Arc<Voice>,
    config: Arc<SessionConfig>,
    events: Arc<dyn SessionEvents>,
    spawn: Arc<dyn Spawn>,
    turn: Arc<Turn>,
    waits: Waits,
    ending: Arc<AtomicBool>,
    peers: Mutex<Vec<Peer>>,
    serials: AtomicU64,
}

/// Who waits for connections, and wants to know when one is over.
enum Waits {
    /// The hall's thread.
    Hall(Usher),
    /// The port's own thread.
    Own(Arc<Bell>),
}

/// A process that is connected, as it was when it connected or began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Its number; `None` when the system does not tell.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: Option<u32>,
}

/// The socket of a port and all its connections.
pub struct Endpoint {
    shared: Arc<Shared>,
    waiting: Mutex<Option<Waiting>>,
}

/// How connections come about; nobody waits for them any more when this has ended.
enum Waiting {
    /// They are let in by the hall.
    Listening(Seat),
    /// This thread makes them.
    Connecting(Box<dyn Join>),
}

/// The socket of a port that listens.
struct Entrance {
    shared: Arc<Shared>,
    listening: Listening,
    manner: Mutex<Manner>,
}

#[derive(Debug, Default)]
struct Manner {
    /// Out of descriptors or threads, say: there is no use in hurrying.
    paused_until: Option<Instant>,
    /// That none could be accepted was logged.
    failing: bool,
    /// A connection was ended for another one to have its place.
    making_room: bool,
}

/// Notes the end of a connection's thread, however it comes about.
struct Leaving {
    shared: Arc<Shared>,
    serial: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        for peer in self.shared.peers().iter_mut() {
            peer.over |= peer.serial == self.serial;
        }
        match &self.shared.waits {
            Waits::Hall(usher) => usher.send(),
            Waits::Own(bell) => bell.ring(),
        }
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn iface(&self) -> &Voice {
        &self.voice
    }

    fn ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Gives `socket` a thread and a device.
    fn adopt(self: &Arc<Self>, socket: UnixStream) -> io::Result<()> {
        let vid = Vid::take().ok_or_else(|| io::Error::other("1024 connections, no more"))?;
        let number = vid.get();
        let socket = Arc::new(socket);
        let place = Place {
            voice: Arc::clone(&self.voice),
            config: Arc::clone(&self.config),
            events: Arc::clone(&self.events),
            turn: Arc::clone(&self.turn),
            bell: Arc::default(),
            ending: Arc::clone(&self.ending),
            spawn: Arc::clone(&self.spawn),
            socket: Arc::clone(&socket),
            vid,
        };
        let connection = Connection::new(place)?;
        // The new thread waits here until it is entered, and `stop` sees either no thread or one
        // with a socket.
        let mut peers = self.peers();
        if self.ending() {
            return Ok(());
        }
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        peers.push(Peer {
            serial,
            vid: number,
            socket,
            thread: None,
            join: None,
            over: false,
        });
        let shared = Arc::clone(self);
        let work = move || {
            let leaving = Leaving { shared, serial };
            for peer in leaving.shared.peers().iter_mut() {
                if peer.serial == serial {
                    peer.thread = Some(thread::current().id());
                }
            }
            connection.run();
        };
        say!(Info, self.iface(), "new connection, handle {number}");
        let spawned = self
            .spawn
            .spawn(&format!("vhost-conn-{number}"), Box::new(work));
        match spawned {
            Ok(join) => {
                if let Some(peer) = peers.last_mut() {
                    peer.join = Some(join);
                }
                Ok(())
            }
            Err(error) => {
                peers.pop();
                Err(error)
            }
        }
    }

    /// Forgets connections that are over; how many are left.
    fn reap(&self) -> usize {
        let mut over = Vec::new();
        let left = {
            let mut peers = self.peers();
            over.extend(peers.extract_if(.., |peer| peer.over));
            peers.len()
        };
        // The threads have nothing left to do.
        for join in over.into_iter().filter_map(|peer| peer.join) {
            join.join();
        }
        left
    }

    /// Ends the oldest connection that is not served, so that a new one has a place.
    fn make_room(&self) {
        let holder = self.turn.holder();
        let peers = self.peers();
        let mut idle = peers
            .iter()
            .filter(|peer| !peer.over && Some(peer.vid) != holder);
        if let Some(oldest) = idle.next() {
            let (vid, most) = (oldest.vid, MOST_CONNECTIONS);
            say!(
                Warn,
                self.iface(),
                "connection {vid} ends: {most} are too many, and it is not served"
            );
            // Its thread does the rest; it fails when the other side has gone.
            let _ = oldest.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Whether the port has as many connections as it ever does.
    fn is_full(&self) -> bool {
        self.peers().iter().filter(|peer| !peer.over).count() >= MOST_CONNECTIONS
    }

    /// The thread of a port that connects.
    fn connect(self: &Arc<Self>, bell: &Bell, mut socket: Option<UnixStream>) {
        let mut backoff = Backoff::default();
        let mut silent = false;
        while !self.ending() {
            let begin = Instant::now();
            let adopted = match socket.take() {
                Some(socket) => Ok(socket),
                None => socket::connect(&self.config.iface),
            };
            match adopted.and_then(|socket| self.adopt(socket)) {
                Ok(()) => {
                    silent = false;
                    while !self.ending() && self.reap() != 0 {
                        if bell.wait(None, None).is_err() {
                            return;
                        }
                    }
                    backoff.lost(begin.elapsed());
                }
                Err(error) => {
                    if !std::mem::replace(&mut silent, true) {
                        say!(Info, self.iface(), "not connected yet: {error}; trying on");
                    }
                    backoff.failed();
                }
            }
            if !self.ending() && !backoff.delay.is_zero() {
                // Woken early only to end.
                let _ = bell.wait(None, Some(backoff.delay));
            }
        }
    }
}

impl Entrance {
    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts those that wait and have a place.
    fn accept(&self) -> io::Result<()> {
        // Each port has its turn, whatever goes on at one of them.
        for _ in 0..MOST_CONNECTIONS {
            if self.shared.ending() || self.shared.is_full() {
                break;
            }
            match self.listening.listener().accept() {
                Ok((socket, _)) => self.shared.adopt(socket)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                // The other side did not wait.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Door for Entrance {
    fn socket(&self) -> BorrowedFd<'_> {
        self.listening.listener().as_fd()
    }

    fn admits(&self) -> bool {
        let full = self.shared.is_full();
        let mut manner = self.manner();
        manner.making_room &= full;
        // The end of a connection sends the hall's thread here.
        !manner.making_room && manner.paused_until.is_none() && !self.shared.ending()
    }

    fn pause(&self) -> Option<Duration> {
        let until = self.manner().paused_until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn serve(&self, at_the_door: bool) {
        self.shared.reap();
        let now = Instant::now();
        let mut manner = self.manner();
        if manner.paused_until.is_some_and(|until| until <= now) {
            manner.paused_until = None;
        }
        if !at_the_door {
            return;
        }
        if self.shared.is_full() {
            manner.making_room = true;
            self.shared.make_room();
            return;
        }
        match self.accept() {
            Ok(()) => manner.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut manner.failing, true) {
                    say!(
                        Error,
                        self.shared.iface(),
                        "no connection accepted: {error}"
                    );
                }
                manner.paused_until = Some(now + PAUSE);
            }
        }
    }
}

/// How long to wait before the next attempt to connect.
#[derive(Debug, Default)]
struct Backoff {
    delay: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(10);
    const LAST: Duration = Duration::from_secs(1);
    /// How long a connection lasts that was not refused.
    const STEADY: Duration = Duration::from_millis(100);

    fn failed(&mut self) {
        self.delay = (self.delay * 2).clamp(Self::FIRST, Self::LAST);
    }

    /// A connection that lasted for `lived` is lost. The next attempt is made at once, unless the
    /// other side hangs up again and again.
    fn lost(&mut self, lived: Duration) {
        if lived >= Self::STEADY {
            self.delay = Duration::ZERO;
        } else {
            self.failed();
        }
    }
}

impl Endpoint {
    /// Makes the socket appear and serves it on threads of its own until [`stop`](Self::stop).
    ///
    /// In client mode a frontend that is not there yet is no error; it is tried again.
    ///
    /// # Errors
    ///
    /// The path is not usable, or there is no thread.
    pub fn start(
        config: SessionConfig,
        events: Arc<dyn SessionEvents>,
        spawn: Arc<dyn Spawn>,
    ) -> Result<Self, EndpointError> {
        let path = config.iface.clone();
        let no_thread = |source| EndpointError::Thread {
            path: path.clone(),
            source,
        };
        let claim = Claim::new(&path)?;
        let (client, voice) = (config.client, Arc::new(Voice::new(&path)));
        let make = |waits| {
            Arc::new(Shared {
                voice: Arc::clone(&voice),
                config: Arc::new(config),
                events,
                spawn: Arc::clone(&spawn),
                turn: Arc::default(),
                waits,
                ending: Arc::default(),
                peers: Mutex::default(),
                serials: AtomicU64::new(0),
            })
        };
        let (shared, waiting) = if client {
            let bell = Arc::new(Bell::new().map_err(no_thread)?);
            let shared = make(Waits::Own(Arc::clone(&bell)));
            let serving = Arc::clone(&shared);
            let first = socket::connect(&path).ok();
            let work = move || {
                let _claim = claim;
                serving.connect(&bell, first);
            };
            let thread = spawn.spawn("vhost-connect", Box::new(work));
            (shared, Waiting::Connecting(thread.map_err(no_thread)?))
        } else {
            let listening = Listening::new(&path, claim)?;
            let seat = Seat::take(&*spawn).map_err(no_thread)?;
            let shared = make(Waits::Hall(seat.usher()));
            let entrance = Entrance {
                shared: Arc::clone(&shared),
                listening,
                manner: Mutex::default(),
            };
            seat.open(Arc::new(entrance)).map_err(no_thread)?;
            (shared, Waiting::Listening(seat))
        };
        let mode = if client { "client" } else { "server" };
        say!(Info, voice, "socket is up, {mode} mode");
        Ok(Self {
            shared,
            waiting: Mutex::new(Some(waiting)),
        })
    }

    /// The processes behind the connections, the oldest first.
    pub fn frontends(&self) -> Vec<Frontend> {
        let peers = self.shared.peers();
        let there = peers.iter().filter(|peer| !peer.over);
        there
            .map(|peer| {
                let credentials = socket_peercred(&peer.socket).ok();
                Frontend {
                    pid: credentials.map(|credentials| credentials.pid.as_raw_nonzero().get()),
                    uid: credentials.map(|credentials| credentials.uid.as_raw()),
                }
            })
            .collect()
    }

    /// Ends everything; when it returns, no further event is raised and the path is free.
    ///
    /// Called from within an event it cannot wait for the thread that raises it: that one goes on
    /// when the event returns, takes back what was given, raises `link_down` if the link was up, and
    /// ends.
    pub fn stop(&self) {
        self.shared.ending.store(true, Ordering::Release);
        for peer in self.shared.peers().iter() {
            // Fails when the other side has gone.
            let _ = peer.socket.shutdown(std::net::Shutdown::Both);
        }
        if let Waits::Own(bell) = &self.shared.waits {
            bell.ring();
        }
        let waiting = self.waiting.lock();
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiting) = waiting {
            match waiting {
                Waiting::Listening(seat) => drop(seat),
                Waiting::Connecting(thread) => thread.join(),
            }
            say!(Info, self.shared.iface(), "socket is closed");
        }
        let peers = {
            let mut peers = self.shared.peers();
            let here = thread::current().id();
            if peers.iter().any(|peer| peer.thread == Some(here)) {
                return;
            }
            std::mem::take(&mut *peers)
        };
        for join in peers.into_iter().filter_map(|peer| peer.join) {
            join.join();
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_after_a_long_connection_is_immediate() {
        let mut backoff = Backoff::default();
        backoff.lost(Duration::from_secs(5));
        assert_eq!(backoff.delay, Duration::ZERO);
        backoff.failed();
        assert_eq!(backoff.delay, Duration::from_millis(10));
        backoff.failed();
        assert_eq!(backoff.delay, Duration::from_millis(20));
    }

    #[test]
    fn attempts_are_never_more_than_a_second_apart() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.failed();
        }
        assert_eq!(backoff.delay, Duration::from_secs(1));
    }
}
