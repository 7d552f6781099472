//! Messages on the socket: read whole ones, write replies.
//!
//! A peer may cut a message into any pieces; files come with the first of them. All files that the
//! kernel hands over end up in the [`Message`], so that dropping it closes them.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};

/// Length of a header: request, flags, size; each 32 bits in the machine's byte order.
const HEADER: usize = 12;
/// The longest payload: what the `vhost` crate takes.
pub(super) const MAX_BODY: usize = vhost::vhost_user::message::MAX_MSG_SIZE;
/// More than any payload that the `vhost` crate answers with: it tells numbers, and states of vrings.
const MAX_ANSWER: usize = 244;
/// The most files that one message may carry: what the `vhost` crate takes.
pub(super) const MAX_FILES: usize = vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
/// The most files that the kernel passes at once (`SCM_MAX_FD`).
const KERNEL_MAX_FILES: usize = 253;

const FLAG_VERSION_MASK: u32 = 3;
const FLAG_VERSION: u32 = 1;
const FLAG_REPLY: u32 = 4;
const FLAG_NEED_REPLY: u32 = 8;

/// One message of the frontend.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// Its number.
    pub(super) request: u32,
    /// The frontend waits for an answer in any case.
    pub(super) need_reply: bool,
    /// The payload.
    pub(super) body: Vec<u8>,
    /// Files that came with it.
    pub(super) files: Vec<OwnedFd>,
    /// Files are missing: more came than any message has, or our table has no room.
    pub(super) files_lost: bool,
}

/// Why no more message can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The end, between two messages.
    #[error("closed by the frontend")]
    Closed,
    /// The end, within a message.
    #[error("closed in the middle of a message")]
    Cut,
    /// A payload that no message has.
    #[error("request {request} with a payload of {size} bytes, at most {MAX_BODY}")]
    TooLong {
        /// Number of the request.
        request: u32,
        /// Length that the header tells.
        size: u32,
    },
    /// Another protocol.
    #[error("version {0} of the protocol, not {FLAG_VERSION}")]
    Version(u32),
    /// The system refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = super::messages::name(self.request);
        let (size, files) = (self.body.len(), self.files.len());
        write!(f, "{name}: {size} bytes, {files} files")?;
        if self.need_reply {
            write!(f, ", reply wanted")?;
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(word.unwrap_or_default())
}

impl Message {
    /// Waits for the next message of `socket` and reads all of it.
    ///
    /// Blocks as long as the peer keeps the rest back; shutdown(2) of the socket ends that.
    pub(super) fn read(socket: &UnixStream) -> Result<Self, ReadError> {
        let mut message = Self::default();
        let mut header = [0; HEADER];
        let mut filled = 0;
        while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match message.receive(socket, rest)? {
                0 if filled == 0 => return Err(ReadError::Closed),
                0 => return Err(ReadError::Cut),
                count => filled += count,
            }
        }
        let (flags, size) = (word(&header, 4), word(&header, 8));
        message.request = word(&header, 0);
        message.need_reply = flags & FLAG_NEED_REPLY != 0;
        if flags & FLAG_VERSION_MASK != FLAG_VERSION {
            return Err(ReadError::Version(flags & FLAG_VERSION_MASK));
        }
        let length = usize::try_from(size).ok().filter(|size| *size <= MAX_BODY);
        let request = message.request;
        let length = length.ok_or(ReadError::TooLong { request, size })?;
        message.body.resize(length, 0);
        let mut filled = 0;
        while let Some(rest) = message.body.get_mut(filled..).filter(|r| !r.is_empty()) {
            // Files that come with the payload belong to nothing; without a buffer for them the
            // kernel closes them.
            match retry(|| recv(socket, &mut *rest, RecvFlags::empty()))? {
                (_, 0) => return Err(ReadError::Cut),
                (_, count) => filled += count,
            }
        }
        Ok(message)
    }

    /// One recvmsg(2), files included.
    fn receive(&mut self, socket: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry(|| {
            let mut parts = [IoSliceMut::new(into)];
            recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = part {
                self.files.extend(files);
            }
        }
        self.files_lost |= received.flags.contains(ReturnFlags::CTRUNC);
        // A peer that sends some with each byte of a header must not fill the process's table.
        if self.files.len() > MAX_FILES {
            self.files.truncate(MAX_FILES);
            self.files_lost = true;
        }
        Ok(received.bytes)
    }

    /// Passes the message on to `socket`, without a wish for an answer.
    pub(super) fn forward(self, socket: &UnixStream) -> io::Result<()> {
        let files: Vec<BorrowedFd<'_>> = self.files.iter().map(AsFd::as_fd).collect();
        send(socket, self.request, FLAG_VERSION, &self.body, &files)
    }
}

/// A message of ours, without a wish for an answer.
pub(super) fn request(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(request_len(body.len()));
    // A length that does not fit is no message of ours.
    let size = u32::try_from(body.len()).unwrap_or_default();
    for word in [number, FLAG_VERSION, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// Length of a message with a payload of `body` bytes.
pub(super) const fn request_len(body: usize) -> usize {
    HEADER + body
}

/// Sends as much of `bytes` as `socket` takes now; how many that was.
pub(super) fn send_some(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry(|| rustix::net::send(&socket, bytes, flags))
}

/// What a request is answered with.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The payload.
    pub(super) body: Vec<u8>,
    /// A file that goes with it.
    pub(super) file: Option<OwnedFd>,
}

impl From<Vec<u8>> for Reply {
    fn from(body: Vec<u8>) -> Self {
        Self { body, file: None }
    }
}

impl From<u64> for Reply {
    fn from(number: u64) -> Self {
        number.to_ne_bytes().to_vec().into()
    }
}

/// Answers `request`. Blocks while the peer does not read; shutdown(2) ends that.
pub(super) fn reply(socket: &UnixStream, request: u32, reply: &Reply) -> io::Result<()> {
    let files: Vec<BorrowedFd<'_>> = reply.file.iter().map(AsFd::as_fd).collect();
    let flags = FLAG_VERSION | FLAG_REPLY;
    send(socket, request, flags, &reply.body, &files)
}

/// The payload of the answer that waits in `socket`, if there is one.
pub(super) fn waiting_reply(socket: &UnixStream) -> io::Result<Option<Reply>> {
    let mut answer = [0; HEADER + MAX_ANSWER];
    let count = match retry(|| recv(socket, &mut answer, RecvFlags::DONTWAIT)) {
        Ok((_, count)) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    if count == answer.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let body = answer.get(HEADER..count);
    Ok(body.map(|body| body.to_vec().into()))
}

fn send(
    socket: &UnixStream,
    request: u32,
    flags: u32,
    body: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let size = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // A peer that is gone is an error here, not a signal to the whole process.
        sent += retry(|| {
            sendmsg(
                socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
    }
    Ok(())
}

/// Calls `work` again as long as a signal cuts it short.
pub(super) fn retry<T>(mut work: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match work() {
            Err(Errno::INTR) => (),
            result => return Ok(result?),
        }
    }
}
