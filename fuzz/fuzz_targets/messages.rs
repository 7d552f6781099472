//! A frontend that sends any messages with any files, over a socket, and whose rings are polled when
//! they are ready.
//!
//! The input is messages: number, control, files, length of the payload (a byte each), payload.
//! Whatever comes, the connection ends when the frontend leaves, and no file stays open.
//! `cargo xtask fuzz messages`.
#![no_main]

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use rte_net_vhost::datapath::{QueueCounters, Release, select_dequeue, select_enqueue};
use rte_net_vhost::session::features::{Offer, protocol_word, word};
use rte_net_vhost::session::{DeviceInfo, Endpoint, SessionConfig, SessionEvents, StdThreads};
use rte_net_vhost::testing::{FakePacket, FakePool};
use rte_net_vhost::virtqueue::Virtqueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Nothing takes a tenth of this.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of guest memory.
const MEMORY: usize = 0x10000;
/// A long input is no better than two short ones.
const MOST_MESSAGES: usize = 48;
/// The most files that go with one message: one more than is ever right.
const MOST_FILES: usize = 9;
/// Counting open files is slow, so it is done once in so many inputs.
const EVERY: u32 = 256;

/// A port that polls each of its rings once, when it gets it and when it gives it back.
#[derive(Default)]
struct Port(Mutex<HashMap<u16, Virtqueue>>);

/// Even vrings are sent to, odd ones are received from.
fn poll(index: u16, virtqueue: &mut Virtqueue) {
    let mut pool = FakePool::new(2048);
    let counters = QueueCounters::default();
    if index.is_multiple_of(2) {
        let packets = [1, 3].map(|parts| pool.packet(&vec![&[7; 1000][..]; parts]));
        let taken = select_enqueue(virtqueue, u16::MAX)(virtqueue, &pool, &packets, &counters);
        pool.release(&packets[taken..]);
    } else {
        let mut packets = [FakePacket::default(); 8];
        let count = select_dequeue(virtqueue, u16::MAX)(virtqueue, &pool, &mut packets, &counters);
        pool.release(&packets[..count]);
    }
    assert_eq!(pool.live(), 0);
}

impl SessionEvents for Port {
    fn give(&self, index: u16, mut virtqueue: Virtqueue) -> Option<Virtqueue> {
        if index >= 4 {
            return Some(virtqueue);
        }
        poll(index, &mut virtqueue);
        let before = self.0.lock().unwrap().insert(index, virtqueue);
        assert!(before.is_none(), "vring {index} was given twice");
        None
    }

    fn take(&self, index: u16) -> Option<Virtqueue> {
        let mut virtqueue = self.0.lock().unwrap().remove(&index)?;
        poll(index, &mut virtqueue);
        Some(virtqueue)
    }

    fn alter(&self, index: u16, work: &mut dyn FnMut(&mut Virtqueue)) {
        if let Some(virtqueue) = self.0.lock().unwrap().get_mut(&index) {
            work(virtqueue);
        }
    }

    fn look_again(&self, index: u16) {
        if let Some(virtqueue) = self.0.lock().unwrap().get_mut(&index) {
            poll(index, virtqueue);
        }
    }

    fn queue_state(&self, _index: u16, _ready: bool) {}
    fn link_up(&self, _device: &DeviceInfo) {}
    fn link_down(&self) {}
    fn send_rarp(&self, _mac: [u8; 6]) {}
    fn kick_changed(&self, _index: u16, _kick: Option<&Arc<File>>) {}
}

/// The other side of the socket, and what a frontend can hand over.
struct World {
    path: PathBuf,
    port: Arc<Port>,
    memory: File,
    files: [OwnedFd; 3],
    /// Open files while nobody is connected.
    idle: usize,
    inputs: AtomicU32,
    _endpoint: Endpoint,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("vhost-fuzz-{}", std::process::id()));
    // Not postcopy: there is nobody here to bring the pages.
    let offer = Offer {
        tso: true,
        datagrams: true,
        iommu: true,
        ..Offer::default()
    };
    let config = SessionConfig {
        iface: path.to_str().unwrap().to_owned(),
        client: false,
        vrings: 4,
        features: word(offer),
        protocol_features: protocol_word(offer),
    };
    let port = Arc::new(Port::default());
    let endpoint = Endpoint::start(config, Arc::clone(&port) as _, Arc::new(StdThreads)).unwrap();
    let file = |size: usize| {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size as u64).unwrap();
        file
    };
    let memory = file(MEMORY).into();
    // For a channel to the frontend: nobody is at its other end.
    let (channel, _) = UnixStream::pair().unwrap();
    let files = [
        eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        file(4096),
        channel.into(),
    ];
    World {
        path,
        port,
        memory,
        files,
        idle: open_files().len(),
        inputs: AtomicU32::new(0),
        _endpoint: endpoint,
    }
});

/// The open files of the kinds that are handed over or made for a connection; the fuzzer has files of
/// its own.
fn open_files() -> Vec<String> {
    let ours = |file: &String| {
        ["socket:", "anon_inode:", "/memfd:"]
            .iter()
            .any(|kind| file.starts_with(kind))
    };
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|file| Some(file.to_str()?.to_owned()))
        .filter(ours)
        .collect()
}

/// Waits until `seen` is as it should be.
#[track_caller]
fn until<T: std::fmt::Debug>(see: impl Fn() -> T, right: impl Fn(&T) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = see();
        if right(&seen) {
            break;
        }
        assert!(Instant::now() < end, "{seen:?}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl World {
    /// The file that two bits of `which` name.
    fn file(&self, which: u8, nth: usize) -> BorrowedFd<'_> {
        match usize::from(which >> (2 * (nth % 4)) & 3) {
            0 => self.memory.as_fd(),
            other => self.files[other - 1].as_fd(),
        }
    }

    /// Says one message; false when nobody listens any more.
    fn say(&self, socket: &UnixStream, [request, control, which, _]: [u8; 4], body: &[u8]) -> bool {
        let flags = 1 + u32::from(control >> 1 & 1) + 8 * u32::from(control & 1);
        let mut bytes = Vec::new();
        for word in [request.into(), flags, body.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(body);
        let whole = control & 4 == 0;
        let (first, second) = bytes.split_at(if whole { bytes.len() } else { bytes.len() / 2 });
        let files: Vec<_> = (0..usize::from(control >> 4).min(MOST_FILES))
            .map(|nth| self.file(which, nth))
            .collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        let none = &mut SendAncillaryBuffer::default();
        let flags = SendFlags::NOSIGNAL;
        sendmsg(socket, &[IoSlice::new(first)], &mut control, flags).is_ok()
            && (whole || sendmsg(socket, &[IoSlice::new(second)], none, flags).is_ok())
    }
}

fuzz_target!(|data: &[u8]| {
    let world = &*WORLD;
    world.memory.write_all_at(&[0; MEMORY], 0).unwrap();
    let mut socket = UnixStream::connect(&world.path).unwrap();
    let mut rest = data;
    for _ in 0..MOST_MESSAGES {
        let Some((&head, behind)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let (body, behind) = behind.split_at(behind.len().min(head[3].into()));
        rest = behind;
        if !world.say(&socket, head, body) {
            break;
        }
    }
    // The other side may have ended it already.
    let _ = socket.shutdown(Shutdown::Write);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = Vec::new();
    if let Err(error) = socket.read_to_end(&mut answers) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    until(|| world.port.0.lock().unwrap().len(), |left| *left == 0);
    let inputs = world.inputs.fetch_add(1, Ordering::Relaxed);
    if inputs.is_multiple_of(EVERY) {
        drop(socket);
        until(open_files, |files| files.len() == world.idle);
    }
});
