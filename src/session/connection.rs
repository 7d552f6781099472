//! One connection: reads messages, has them served, answers.
//!
//! Its thread may block on a frontend that is slow, silent or does not read: shutdown(2) of the
//! socket wakes it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::BackendReqHandler;

use super::bell::LateBell;
use super::device::{Device, Place};
use super::error::RequestError;
use super::messages::{self, Outcome, Run};
use super::say;
use super::voice::Voice;
use super::wire::{self, Message, ReadError};

/// The `vhost` crate's request handler, behind a socket pair.
///
/// The crate reads messages itself, but takes no payload that comes in pieces, gives up on
/// anything unknown before it is read to its end, and acknowledges only what it served and only
/// after `REPLY_ACK`. So it gets whole messages that need no acknowledgement.
struct CrateHandler {
    ours: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
}

impl CrateHandler {
    fn new(device: &Arc<Mutex<Device>>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok(Self {
            ours,
            handler: BackendReqHandler::from_stream(theirs, Arc::clone(device)),
        })
    }

    fn serve(&mut self, message: Message) -> Outcome {
        message.forward(&self.ours)?;
        self.handler
            .handle_request()
            .map_err(RequestError::Protocol)?;
        Ok(wire::waiting_reply(&self.ours)?)
    }
}

/// A connection and its device.
pub(super) struct Connection {
    voice: Arc<Voice>,
    socket: Arc<UnixStream>,
    bell: Arc<LateBell>,
    device: Arc<Mutex<Device>>,
    crate_handler: CrateHandler,
}

/// Why a connection ends.
enum End {
    /// The frontend left, or was cut off.
    Read(ReadError),
    /// It cannot go on after this.
    Failed,
    /// The system refused.
    System(io::Error),
}

impl Connection {
    pub(super) fn new(place: Place) -> io::Result<Self> {
        let socket = Arc::clone(&place.socket);
        let (voice, bell) = (Arc::clone(&place.voice), Arc::clone(&place.bell));
        let device = Arc::new(Mutex::new(Device::new(place)));
        Ok(Self {
            voice,
            socket,
            bell,
            crate_handler: CrateHandler::new(&device)?,
            device,
        })
    }

    /// The device, for the length of one message. Only this connection's thread asks for it, and it
    /// is no lock that an event of the port could need.
    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the frontend until it leaves.
    pub(super) fn run(mut self) {
        let end = loop {
            match self.step() {
                Ok(()) => (),
                Err(end) => break end,
            }
        };
        self.device().disconnect();
        // The frontend's end of file says that nothing of its memory is in use any more.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        match end {
            End::Read(ReadError::Closed) => say!(Info, self.voice, "connection closed"),
            End::Read(error) => say!(Warn, self.voice, "connection ends: {error}"),
            End::System(error) => say!(Warn, self.voice, "connection ends: {error}"),
            End::Failed => say!(Warn, self.voice, "connection ends after a failed request"),
        }
    }

    /// Waits for a message, or for the turn.
    fn step(&mut self) -> Result<(), End> {
        let timeout = self.device().timeout();
        let readable = self.bell.wait(self.socket.as_fd(), timeout);
        if !readable.map_err(End::System)? {
            self.device().settle();
            return Ok(());
        }
        let message = Message::read(&self.socket).map_err(End::Read)?;
        say!(Debug, self.voice, "{message}");
        let request = message.request;
        let listens = self.device().listens();
        if listens && messages::acknowledges(&message) {
            let done = self.device().acknowledge(messages::number(&message.body));
            done.map_err(|error| self.failed(request, &error))?;
            self.device().settle();
            return Ok(());
        }
        let need_reply = message.need_reply;
        let answer = match self.serve(message, listens) {
            Ok(Some(body)) => Some(body),
            Ok(None) => need_reply.then(|| 0.into()),
            Err(error) => {
                let end = self.failed(request, &error);
                if error.ends_connection() || !need_reply {
                    return Err(end);
                }
                Some(1.into())
            }
        };
        if let Some(answer) = answer {
            wire::reply(&self.socket, request, &answer).map_err(End::System)?;
        }
        self.device().settle();
        Ok(())
    }

    fn failed(&self, request: u32, error: &RequestError) -> End {
        say!(Error, self.voice, "{}: {error}", messages::name(request));
        End::Failed
    }

    fn serve(&mut self, mut message: Message, listens: bool) -> Outcome {
        match messages::check(&message)? {
            Run::Own(serve) => {
                let files = std::mem::take(&mut message.files);
                serve(&mut self.device(), &message.body, files)
            }
            Run::Crate => {
                messages::trim(&mut message);
                let body = listens.then(|| message.body.clone());
                let outcome = self.crate_handler.serve(message);
                let (failure, bases) = {
                    let mut device = self.device();
                    (device.failure.take(), device.bases.take())
                };
                let reply = outcome.map_err(|error| failure.unwrap_or(error))?;
                let mapped = body.zip(bases);
                Ok(
                    reply
                        .or_else(|| mapped.map(|(body, bases)| messages::with_bases(body, &bases))),
                )
            }
            Run::Refused => Err(RequestError::Unsupported),
        }
    }
}
