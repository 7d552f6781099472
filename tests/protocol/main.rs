//! The vhost-user side of a port, seen from the other end of the socket.
//!
//! The tests take turns: they count the open files of the process.

mod fuzz;
mod held;
mod iommu;
mod life;
// Linked with DPDK, the driver's constructor may take the logger's place first.
#[cfg(not(feature = "dpdk"))]
mod log;
mod memory;
mod migration;
mod port;
mod postcopy;
mod raw;
mod requests;
mod rings;
mod stock_frontend;
mod vanish;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use port::{DEADLINE, Port};
use rte_net_vhost::session::features;
use rte_net_vhost::session::{Endpoint, SessionConfig, StdThreads};

/// An epoll fd in `/proc`.
const EPOLL: &str = "anon_inode:[eventpoll]";

static TURN: Mutex<()> = Mutex::new(());

/// A directory of its own, removed at the end, and the sole use of the process.
struct Place {
    directory: PathBuf,
    files: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut template = std::env::temp_dir();
        template.push(format!("vhost-protocol-{}", std::process::id()));
        std::fs::create_dir_all(&template).unwrap();
        Self {
            directory: template,
            files: open_files(),
            _turn: turn,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn config(&self) -> SessionConfig {
        SessionConfig {
            iface: self.path().to_str().unwrap().to_owned(),
            client: false,
            vrings: 8,
            features: features::offered(),
            protocol_features: features::offered_protocol(),
        }
    }

    fn client(&self) -> SessionConfig {
        SessionConfig {
            client: true,
            ..self.config()
        }
    }

    fn serve(&self) -> (Endpoint, Arc<Port>) {
        self.serve_with(self.config(), Port::default())
    }

    fn serve_with(&self, config: SessionConfig, port: Port) -> (Endpoint, Arc<Port>) {
        let port = Arc::new(port);
        (start(config, &port).unwrap(), port)
    }

    /// Fails when there are not as many open files as at the beginning.
    #[track_caller]
    fn no_file_left(&self) {
        until(|| open_files() == self.files);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

type Started = Result<Endpoint, rte_net_vhost::session::EndpointError>;

fn start(config: SessionConfig, port: &Arc<Port>) -> Started {
    Endpoint::start(config, Arc::clone(port) as _, Arc::new(StdThreads))
}

/// The threads of this process that have this name, by their folders in `/proc`.
fn threads(name: &str) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let paths = tasks.map(|task| task.path());
    let is = |found: String| found.trim_end() == name;
    paths
        .filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(is))
        .collect()
}

/// What the open files are, as `/proc` calls them.
fn links() -> Vec<PathBuf> {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .collect()
}

/// How many open files are called so.
fn files_of(name: &str) -> usize {
    links()
        .iter()
        .filter(|link| link.as_os_str() == name)
        .count()
}

/// How many open files there are beside the epoll fd and the bell of the thread that lets frontends in,
/// which stays a moment when the last port has gone.
fn open_files() -> usize {
    let count = || {
        let links = links();
        let is = |link: &&PathBuf| link.as_os_str() == EPOLL;
        links.len() - 2 * links.iter().filter(is).count()
    };
    // The thread may close the two at this moment.
    loop {
        let files = count();
        if files == count() {
            return files;
        }
    }
}

#[track_caller]
fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "did not come true in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
