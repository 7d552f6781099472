//! Running other programs, with their output on the screen and in hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Outcome;

/// Set by SIGINT and SIGTERM; whoever waits looks at it, ends what it started and leaves.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How a program ended and what it printed, both streams in the order they came.
pub(crate) struct Finished {
    /// Did it return 0?
    pub(crate) success: bool,
    /// Its output.
    pub(crate) text: String,
}

/// Makes [`interrupted`] true when the user or CI wants us to end.
pub(crate) fn watch_for_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = note_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler only stores to an atomic, which a signal handler may do.
        unsafe { libc::signal(signal, handler) };
    }
}

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Has somebody asked us to end?
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Cargo's target folder of the repository.
pub(crate) fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    own.map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// The cargo that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs a program in the repository to its end, showing what it prints; ends it with all its
/// children when it takes longer than `patience` or we are interrupted.
pub(crate) fn run(command: Command, patience: Duration) -> Outcome<Finished> {
    run_showing(command, patience, true)
}

/// Like [`run`], but shows nothing.
pub(crate) fn run_quietly(command: Command, patience: Duration) -> Outcome<Finished> {
    run_showing(command, patience, false)
}

fn run_showing(mut command: Command, patience: Duration, show: bool) -> Outcome<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let (sender, lines) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let deadline = Instant::now() + patience;
    let mut text = String::new();
    let mut problem = None;
    let status = loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if show {
                    println!("{line}");
                }
                text.push_str(&line);
                text.push('\n');
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(10)),
        }
        if let Ok(Some(status)) = child.try_wait() {
            break status;
        }
        if interrupted() || Instant::now() >= deadline {
            problem = Some(match interrupted() {
                true => "interrupted".to_owned(),
                false => format!("{program}: not finished after {patience:?}, ended"),
            });
            if let Ok(id) = i32::try_from(child.id()) {
                // SAFETY: sends a signal to the group that `process_group(0)` made for our child,
                // which was not waited for yet.
                unsafe { libc::killpg(id, libc::SIGKILL) };
            }
            break child
                .wait()
                .map_err(|error| format!("{program}: {error}"))?;
        }
    };
    for line in lines.try_iter() {
        if show {
            println!("{line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    let _ = std::io::stdout().flush();
    match problem {
        Some(problem) => Err(problem.into()),
        None => Ok(Finished {
            success: status.success(),
            text,
        }),
    }
}

/// Runs a short program silently and returns what it printed if it succeeded.
pub(crate) fn capture(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
