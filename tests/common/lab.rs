//! What a test needs around its processes: a folder, names, memory, order, and a check at the end.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;

/// Two of these tests at once would fight for the processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Where DPDK's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Reserved 2 MB pages, without a hugetlbfs mount.
    HugePages,
    /// Ordinary pages (`--no-huge`).
    Ordinary,
}

impl Memory {
    /// Huge pages if enough of them are free for two processes, else ordinary ones.
    pub(crate) fn available() -> Self {
        let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .unwrap_or(0);
        let refused = std::env::var_os("NET_VHOST_NO_HUGE").is_some();
        if free >= 256 && !refused {
            Self::HugePages
        } else {
            Self::Ordinary
        }
    }

    /// EAL's options for it. Nothing is left behind when the process is killed.
    pub(crate) fn eal_args(self) -> &'static [&'static str] {
        match self {
            Self::HugePages => &["--in-memory", "--single-file-segments"],
            Self::Ordinary => &["--no-huge", "-m", "512"],
        }
    }
}

/// The surroundings of one test, which runs alone while it holds this.
pub(crate) struct Lab {
    name: String,
    folder: PathBuf,
    logs: PathBuf,
    /// The memory that all DPDK processes of this test use.
    pub(crate) memory: Memory,
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    /// Waits its turn and makes a folder with a short path, since a socket's path has 107 bytes.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("nv-{}-{number}", process::id()));
        let logs = target_folder().join("test-logs").join(name);
        let _ = fs::remove_dir_all(&logs);
        for made in [&folder, &logs] {
            fs::create_dir_all(made).map_err(|error| format!("{}: {error}", made.display()))?;
        }
        Ok(Self {
            name: name.to_owned(),
            folder,
            logs,
            memory: Memory::available(),
            _alone: alone,
        })
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A path in the test's folder, for a command line.
    pub(crate) fn path_text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The name of the test.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Cargo's target folder, for what is worth keeping from one run to the next.
    pub(crate) fn target_folder(&self) -> PathBuf {
        target_folder()
    }

    /// A `--file-prefix` that no other process has.
    pub(crate) fn file_prefix(&self, role: &str) -> String {
        let folder = self
            .folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        format!("{folder}-{role}")
    }

    /// Where something that a process writes is kept after the test.
    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(name)
    }

    /// A file for what a process prints; kept after the test.
    pub(crate) fn log_file(&self, name: &str) -> Option<File> {
        File::options()
            .create(true)
            .append(true)
            .open(self.log_path(name))
            .ok()
    }

    /// Waits until a socket, or any file, is at `path`.
    pub(crate) fn wait_for_file(&self, path: &Path) -> Outcome {
        eventually(&format!("{} appears", path.display()), || path.exists())
    }

    /// The check at a test's end: the processes were ended (they are dropped, or they have quit) and
    /// nothing that they made is left.
    pub(crate) fn finish(self) -> Outcome {
        let sockets = self.sockets();
        if !sockets.is_empty() {
            return Err(format!("{}: sockets left behind: {sockets:?}", self.name).into());
        }
        let folder = self.folder.display().to_string();
        eventually("no process with this test's folder is left", || {
            processes_that_mention(&folder).is_empty()
        })
    }

    /// The sockets in the test's folder.
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .map(|entry| entry.path())
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        // EAL leaves its runtime folders, even with --in-memory.
        let prefix = self.file_prefix("");
        for parent in runtime_folders() {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
    }
}

/// Where EAL keeps what belongs to a `--file-prefix`.
fn runtime_folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/var/run/dpdk"), PathBuf::from("/tmp/dpdk")];
    if let Some(own) = std::env::var_os("XDG_RUNTIME_DIR") {
        folders.push(PathBuf::from(own).join("dpdk"));
    }
    folders
}

/// Cargo's target folder. It has the logs: `test-logs/<test>/<process>.out`.
fn target_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let profile = own.ancestors().find(|folder| folder.join("deps").is_dir());
    let target = profile.and_then(Path::parent).map(Path::to_owned);
    target.unwrap_or_else(std::env::temp_dir)
}

/// The ids of processes that have `text` on their command line.
pub(crate) fn processes_that_mention(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&command)
                .contains(text)
                .then_some(id)
        })
        .collect()
}

/// Waits until something is true that no stream tells.
pub(crate) fn eventually(what: &str, mut is_true: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + super::SOON;
    while !is_true() {
        if Instant::now() >= deadline {
            return Err(format!("in {:?}, this did not come true: {what}", super::SOON).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Notes that a test cannot run here. `cargo xtask test` counts and prints these.
pub(crate) fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(list) = std::env::var_os("NET_VHOST_SKIP_LIST") {
        use std::io::Write;
        if let Ok(mut file) = File::options().create(true).append(true).open(list) {
            let _ = writeln!(file, "{test}: {reason}");
        }
    }
}
