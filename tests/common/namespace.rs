//! A network namespace of a test's own: the host's end of a guest's network, unseen by the machine.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;

use super::Outcome;

/// It goes away with its last user: this, and the processes inside.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes an empty one; wants root.
    pub(crate) fn new() -> Outcome<Self> {
        let made = thread::spawn(|| {
            // SAFETY: moves the calling thread, which ends below, to a new namespace; no memory.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let made = made.join().map_err(|_| "the namespace's thread panicked")?;
        let file = made.map_err(|error| format!("a network namespace: {error}"))?;
        Ok(Self { file })
    }

    /// The beginning of a command line that runs the rest inside.
    pub(crate) fn wrapper(&self) -> [String; 2] {
        let (process, file) = (std::process::id(), self.file.as_raw_fd());
        [
            "nsenter".to_owned(),
            format!("--net=/proc/{process}/fd/{file}"),
        ]
    }

    /// Runs a short program inside, which must succeed, and returns what it printed.
    pub(crate) fn run(&self, line: &str) -> Outcome<String> {
        let [program, file] = self.wrapper();
        let output = Command::new(program)
            .arg(file)
            .args(line.split_whitespace())
            .output()
            .map_err(|error| format!("{line}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => {
                let words = String::from_utf8_lossy(&output.stderr);
                Err(format!("{line}: {}{text}", words.trim()).into())
            }
        }
    }

    /// A socket that listens inside.
    pub(crate) fn listen(&self, address: SocketAddr) -> Outcome<TcpListener> {
        self.inside(move || TcpListener::bind(address))
    }

    /// A socket for datagrams inside; port 0 stands for any.
    pub(crate) fn datagrams(&self, port: u16) -> Outcome<UdpSocket> {
        self.inside(move || UdpSocket::bind(("0.0.0.0", port)))
    }

    /// A socket for datagrams without checksum, so that whoever receives them sees a byte that is wrong.
    pub(crate) fn unprotected_datagrams(&self) -> Outcome<UdpSocket> {
        let socket = self.datagrams(0)?;
        let (yes, size) = (1_i32, size_of::<i32>().try_into().unwrap_or(4));
        // SAFETY: the option's value is a local of the size that is told.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const yes).cast(),
                size,
            )
        };
        match set {
            0 => Ok(socket),
            _ => Err(format!("SO_NO_CHECK: {}", io::Error::last_os_error()).into()),
        }
    }

    /// A socket that sees all frames of all interfaces inside.
    pub(crate) fn frames(&self) -> Outcome<File> {
        self.inside(|| {
            let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be());
            // SAFETY: makes a socket; plain integers.
            let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: a descriptor that was just made, and has no other owner.
            let socket = unsafe { OwnedFd::from_raw_fd(socket) };
            Ok(File::from(socket))
        })
    }

    /// A socket stays in the namespace of the thread that made it.
    fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| format!("a network namespace: {error}"))?;
        let made = thread::spawn(move || {
            // SAFETY: moves the calling thread, which ends below, to the namespace that the
            // descriptor names; no memory.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            make()
        });
        let made = made.join().map_err(|_| "the namespace's thread panicked")?;
        Ok(made.map_err(|error| format!("a socket in a network namespace: {error}"))?)
    }
}
