//! A frontend that can say anything.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::port::DEADLINE;

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const RESET_OWNER: u32 = 4;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_LOG_BASE: u32 = 6;
pub(crate) const SET_LOG_FD: u32 = 7;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const GET_QUEUE_NUM: u32 = 17;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const SEND_RARP: u32 = 19;
pub(crate) const NET_SET_MTU: u32 = 20;
pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
pub(crate) const IOTLB_MSG: u32 = 22;
pub(crate) const GET_CONFIG: u32 = 24;
pub(crate) const POSTCOPY_ADVISE: u32 = 28;
pub(crate) const POSTCOPY_LISTEN: u32 = 29;
pub(crate) const POSTCOPY_END: u32 = 30;
pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(crate) const ADD_MEM_REG: u32 = 37;
pub(crate) const REM_MEM_REG: u32 = 38;
pub(crate) const SET_STATUS: u32 = 39;
pub(crate) const GET_STATUS: u32 = 40;

pub(crate) const NEED_REPLY: u32 = 8;

/// Set in the payload of `SET_VRING_KICK` and its like: no file.
pub(crate) const NO_FILE: u64 = 0x100;

/// Guest-physical address 0 in the frontend's address space.
pub(crate) const UVA: u64 = 0x7000_0000_0000;
/// Bytes of memory for each vring: descriptors, available ring, used ring.
pub(crate) const RING_ROOM: u64 = 0x4000;
pub(crate) const RING_SIZE: u32 = 256;

pub(crate) fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let mut bytes = Vec::new();
    for word in [request, 1 | flags, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn u64s(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// How often `event` was written to since it was last asked.
pub(crate) fn count(event: &OwnedFd) -> u64 {
    let flags = rustix::fs::fcntl_getfl(event).unwrap();
    rustix::fs::fcntl_setfl(event, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut counter = [0; 8];
    match rustix::io::read(event, &mut counter) {
        Ok(_) => u64::from_ne_bytes(counter),
        Err(_) => 0,
    }
}

pub(crate) fn memory(size: u64) -> File {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    file.into()
}

pub(crate) fn u16_at(file: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

/// A region of a memory table: guest address, size, frontend address, offset in its file.
pub(crate) type Region = [u64; 4];

pub(crate) fn table(regions: &[Region]) -> Vec<u8> {
    let mut body = u64s(&[regions.len() as u64]);
    for region in regions {
        body.extend(u64s(region));
    }
    body
}

pub(crate) struct Raw {
    pub(crate) socket: UnixStream,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn over(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket }
    }

    pub(crate) fn send(&self, bytes: &[u8], files: &[&dyn AsFd]) {
        let files: Vec<RawFd> = files.iter().map(|f| f.as_fd().as_raw_fd()).collect();
        let sent = self.socket.send_with_fds(&[bytes], &files).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a request that is not acknowledged.
    pub(crate) fn tell(&self, request: u32, body: &[u8], files: &[&dyn AsFd]) {
        self.send(&message(request, 0, body), files);
    }

    /// The answer to `request`.
    pub(crate) fn answer(&self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.socket).read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request, 5));
        let mut body = vec![0; word(8) as usize];
        (&self.socket).read_exact(&mut body).unwrap();
        body
    }

    /// The file that comes with the answer to `request`.
    pub(crate) fn answer_file(&self, request: u32) -> Option<File> {
        let mut header = [0; 12];
        let (count, file) = self.socket.recv_with_fd(&mut header).unwrap();
        assert_eq!(count, header.len());
        assert_eq!(header[..], u32s(&[request, 5, 0]));
        file
    }

    pub(crate) fn answer_u64(&self, request: u32) -> u64 {
        u64::from_ne_bytes(self.answer(request).try_into().unwrap())
    }

    /// Sends a request with a reply of its own.
    pub(crate) fn get(&self, request: u32) -> u64 {
        self.tell(request, &[], &[]);
        self.answer_u64(request)
    }

    /// Sends a request and returns its acknowledgement.
    pub(crate) fn ack(&self, request: u32, body: &[u8], files: &[&dyn AsFd]) -> u64 {
        self.send(&message(request, NEED_REPLY, body), files);
        self.answer_u64(request)
    }

    #[track_caller]
    pub(crate) fn ok(&self, request: u32, body: &[u8], files: &[&dyn AsFd]) {
        assert_eq!(
            self.ack(request, body, files),
            0,
            "request {request} failed"
        );
    }

    #[track_caller]
    pub(crate) fn refused(&self, request: u32, body: &[u8], files: &[&dyn AsFd]) {
        assert_eq!(
            self.ack(request, body, files),
            1,
            "request {request} worked"
        );
    }

    /// Waits until the backend has closed the connection.
    #[track_caller]
    pub(crate) fn closed(&self) {
        let mut byte = [0];
        match (&self.socket).read(&mut byte) {
            Ok(0) => (),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => (),
            other => panic!("not closed: {other:?}"),
        }
    }

    /// Makes sure that all that was sent before has been dealt with, events included.
    pub(crate) fn sync(&self) {
        self.get(GET_FEATURES);
        self.get(GET_FEATURES);
    }

    pub(crate) fn vring_base(&self, index: u32) -> u32 {
        self.tell(GET_VRING_BASE, &u32s(&[index, 0]), &[]);
        let state = self.answer(GET_VRING_BASE);
        assert_eq!(state[..4], index.to_ne_bytes());
        u32::from_ne_bytes(state[4..].try_into().unwrap())
    }
}

/// A frontend with memory and vrings.
pub(crate) struct Frontend {
    pub(crate) raw: Raw,
    pub(crate) memory: File,
    pub(crate) kicks: Vec<OwnedFd>,
    pub(crate) calls: Vec<OwnedFd>,
}

impl Frontend {
    /// A frontend with memory for `vrings` vrings, none of which are set up.
    pub(crate) fn new(raw: Raw, vrings: u64) -> Self {
        Self {
            raw,
            memory: memory(vrings * RING_ROOM),
            kicks: (0..vrings).map(|_| event()).collect(),
            calls: (0..vrings).map(|_| event()).collect(),
        }
    }

    pub(crate) fn connect(path: &Path, vrings: u64) -> Self {
        Self::new(Raw::connect(path), vrings)
    }

    pub(crate) fn size(&self) -> u64 {
        self.memory.metadata().unwrap().len()
    }

    /// Negotiates `features` and `protocol` and hands over the memory.
    pub(crate) fn negotiate(&self, features: u64, protocol: u64) {
        self.raw.ok(SET_OWNER, &[], &[]);
        self.raw.ok(SET_FEATURES, &u64s(&[features]), &[]);
        self.raw.ok(SET_PROTOCOL_FEATURES, &u64s(&[protocol]), &[]);
        self.share(&[[0, self.size(), UVA, 0]]);
    }

    /// Sets a memory table of `regions`, all from the same file.
    pub(crate) fn share(&self, regions: &[Region]) {
        let files = vec![&self.memory as &dyn AsFd; regions.len()];
        self.raw.ok(SET_MEM_TABLE, &table(regions), &files);
    }

    /// `SET_VRING_ADDR` for vring `index`.
    pub(crate) fn addresses(index: u32) -> Vec<u8> {
        let at = UVA + u64::from(index) * RING_ROOM;
        let mut body = u32s(&[index, 0]);
        body.extend(u64s(&[at, at + 0x2000, at + 0x1000, 0]));
        body
    }

    /// Sets vring `index` up at `base`, but for enabling it.
    pub(crate) fn set_up(&self, index: u32, base: u32) {
        let nth = index as usize;
        let raw = &self.raw;
        raw.ok(SET_VRING_NUM, &u32s(&[index, RING_SIZE]), &[]);
        raw.ok(SET_VRING_BASE, &u32s(&[index, base]), &[]);
        raw.ok(SET_VRING_ADDR, &Self::addresses(index), &[]);
        raw.ok(SET_VRING_KICK, &u64s(&[index.into()]), &[&self.kicks[nth]]);
        raw.ok(SET_VRING_CALL, &u64s(&[index.into()]), &[&self.calls[nth]]);
    }

    pub(crate) fn enable(&self, index: u32, enabled: u32) {
        let body = u32s(&[index, enabled]);
        self.raw.ok(SET_VRING_ENABLE, &body, &[]);
    }

    /// Sets up and enables the vrings in `indices`.
    pub(crate) fn start(&self, indices: std::ops::Range<u32>) {
        for index in indices {
            self.set_up(index, 0);
            self.enable(index, 1);
        }
    }

    /// `used.idx` of vring `index`.
    pub(crate) fn used_index(&self, index: u64) -> u16 {
        u16_at(&self.memory, index * RING_ROOM + 0x2002)
    }
}
