//! The C program `benches/loopback`: building and running it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use crate::command::{capture, root, run, run_quietly, target};
use crate::common::{Driver, Memory, Outcome};

use super::cells::Group;
use super::results::{Line, parse_line, value_of};

/// The program, ready to run.
pub(super) struct Tool {
    program: PathBuf,
    memory: Memory,
    cores: Cores,
}

/// Two processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    /// The peer's, and that of all threads that are not measured.
    pub(super) control: usize,
    /// Nothing else is to run there.
    pub(super) measure: usize,
}

/// What one process told.
pub(super) struct Report {
    pub(super) lines: Vec<Line>,
    /// Core cycles of the block of additions in the quietest moment.
    pub(super) block: Option<f64>,
}

impl Tool {
    /// Compiles it, if that was not done yet.
    pub(super) fn build(cores: Cores) -> Outcome<Self> {
        let program = compile("loopback", &root().join("benches/loopback"))?;
        Ok(Self {
            program,
            memory: Memory::available(),
            cores,
        })
    }

    /// Runs all cells of a group in a process of their own.
    pub(super) fn run(
        &self,
        driver: &Driver,
        group: &Group,
        ms: u32,
        block: Option<f64>,
    ) -> Outcome<Report> {
        let socket = format!("/tmp/net-vhost-bench-{}.sock", process::id());
        let cells: Vec<String> = group.cells.iter().map(|cell| cell.argument()).collect();
        let mut command = self.command(&self.program, driver);
        command
            .args(group.setup.arguments())
            .arg(format!("cells={}", cells.join(",")))
            .arg(format!("ms={ms}"))
            .arg(format!("socket={socket}"))
            .arg(format!("control={}", self.cores.control))
            .arg(format!("measure={}", self.cores.measure));
        if let Some(block) = block {
            command.arg(format!("block={block}"));
        }
        // A cell takes up to four times as long when the machine is busy.
        let longest = Duration::from_millis(u64::from(ms) * 4 * group.cells.len() as u64);
        let finished = run_quietly(command, longest + Duration::from_secs(60));
        let _ = fs::remove_file(&socket);
        let finished = finished?;
        if !finished.success {
            let last = finished.text.lines().last().unwrap_or("died silently");
            return Err(format!("{}: {last}", group.setup).into());
        }
        let mut report = Report {
            lines: Vec::new(),
            block: None,
        };
        for line in finished.text.lines() {
            report.lines.extend(parse_line(line));
            match line.split_whitespace().next() {
                Some("driver") => check_driver(driver, value_of(line, "path"))?,
                Some("cell-end") => {
                    report.block = value_of(line, "block").and_then(|text| text.parse().ok());
                }
                _ => {}
            }
        }
        Ok(report)
    }

    /// A program of ours with a driver, kept off the measuring processor except for its lcore.
    pub(super) fn command(&self, program: &Path, driver: &Driver) -> Command {
        let mut command = Command::new(program);
        command.arg(match driver {
            Driver::Stock => "plugin=stock".to_owned(),
            Driver::Plugin(path) => format!("plugin={}", path.display()),
        });
        match self.memory {
            Memory::HugePages => command.env_remove("NET_VHOST_NO_HUGE"),
            Memory::Ordinary => command.env("NET_VHOST_NO_HUGE", "1"),
        };
        let measure = self.cores.measure;
        let keep_off = move || {
            leave_core(measure);
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls on memory of its own stack.
        unsafe { command.pre_exec(keep_off) };
        command
    }

    /// Huge pages or not.
    pub(super) fn memory(&self) -> Memory {
        self.memory
    }

    /// Where things run.
    pub(super) fn cores(&self) -> Cores {
        self.cores
    }
}

/// Compiles the C files of a folder against the installed DPDK when they are newer than the program.
pub(super) fn compile(name: &str, sources: &Path) -> Outcome<PathBuf> {
    let folder = target().join("bench");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let program = folder.join(name);
    let entries =
        fs::read_dir(sources).map_err(|error| format!("{}: {error}", sources.display()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let age = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let built = age(&program);
    if built.is_some() && files.iter().all(|file| age(file) < built) {
        return Ok(program);
    }
    let flags = capture("pkg-config", &["--cflags", "--libs", "libdpdk"])
        .ok_or("pkg-config does not know libdpdk")?;
    let mut command = Command::new("cc");
    command
        .args(["-O2", "-g", "-Wall", "-Wextra", "-o"])
        .arg(&program);
    let is_source = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "c");
    command.args(files.iter().filter(is_source));
    // The headers of DPDK are full of warnings of their own.
    for flag in flags.split_whitespace() {
        match flag.strip_prefix("-I") {
            Some(folder) => command.args(["-isystem", folder]),
            None => command.arg(flag),
        };
    }
    command.args(["-lm", "-ldl", "-lpthread"]);
    match run(command, Duration::from_secs(600))?.success {
        true => Ok(program),
        false => Err(format!("{name} does not compile").into()),
    }
}

/// Both drivers have the same name; the file of the burst function tells them apart.
fn check_driver(driver: &Driver, path: Option<&str>) -> Outcome {
    let served = path.and_then(|path| Path::new(path).canonicalize().ok());
    let right = match (driver, &served) {
        (Driver::Plugin(plugin), Some(served)) => plugin == served,
        (Driver::Stock, Some(served)) => served
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("librte_net_vhost.so.")),
        (_, None) => false,
    };
    match right {
        true => Ok(()),
        false => Err(format!("{driver:?} was asked for, {path:?} served the port").into()),
    }
}

/// Lets this thread and its children run anywhere but on one processor, if there is another.
pub(super) fn leave_core(core: usize) {
    // SAFETY: a set of processors is an array of bits; all of them 0 is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: `set` is writable and `size` bytes long.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut set) } != 0 {
        return;
    }
    if core < 8 * size {
        // SAFETY: the bit lies in the set.
        unsafe { libc::CPU_CLR(core, &mut set) };
    }
    // SAFETY: `set` is readable and `size` bytes long. The kernel refuses an empty set, which is fine.
    unsafe { libc::sched_setaffinity(0, size, &raw const set) };
}
