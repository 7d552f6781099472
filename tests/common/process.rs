//! A child process that cannot outlive its owner.

use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Lab, Outcome, Output};

/// A running program with its output collected. It is killed, by its id, when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// Its standard output and, unless asked otherwise, standard error.
    pub(crate) stdout: Output,
    /// Its standard error.
    pub(crate) stderr: Output,
}

impl Process {
    /// Starts `command` with pipes for its three streams. `name` names its log files.
    pub(crate) fn spawn(lab: &Lab, name: &str, mut command: Command) -> Outcome<Self> {
        let stdout = Output::new(name, lab.log_file(&format!("{name}.out")));
        let stderr = Output::new(
            &format!("{name} (stderr)"),
            lab.log_file(&format!("{name}.err")),
        );
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that whatever it starts can be ended with it.
            .process_group(0);
        // SAFETY: the closure runs in the forked child before exec and only makes a system call.
        unsafe { command.pre_exec(die_with_parent) };
        let mut child = command
            .spawn()
            .map_err(|error| format!("{name}: {:?}: {error}", command.get_program()))?;
        let stdin = child.stdin.take();
        if let Some(stream) = child.stdout.take() {
            stdout.collect(stream);
        }
        if let Some(stream) = child.stderr.take() {
            stderr.collect(stream);
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            stdout,
            stderr,
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes one line to its standard input.
    pub(crate) fn write_line(&mut self, line: &str) -> Outcome {
        let stdin = self.stdin.as_mut().ok_or("standard input is closed")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .map_err(|error| format!("{}: `{line}`: {error}\n{}", self.name, self.stderr.tail()))?;
        Ok(())
    }

    /// Closes its standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Has it ended?
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, patience: Duration) -> Outcome<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let tail = self.stdout.tail();
                return Err(format!(
                    "{}: still running after {patience:?}. Last output:\n{tail}",
                    self.name
                )
                .into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end, which must be a success.
    pub(crate) fn wait_success(&mut self, patience: Duration) -> Outcome {
        let status = self.wait(patience)?;
        if status.success() {
            return Ok(());
        }
        let how = match status.signal() {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("returned {:?}", status.code()),
        };
        Err(format!(
            "{} {how}. Last output:\n{}{}",
            self.name,
            self.stdout.tail(),
            self.stderr.tail()
        )
        .into())
    }

    /// Sends a signal to it alone.
    pub(crate) fn signal(&self, signal: i32) -> Outcome {
        let id = i32::try_from(self.id()).map_err(|error| error.to_string())?;
        // SAFETY: sends a signal, touches no memory; the id is of our own child, not yet waited for.
        if unsafe { libc::kill(id, signal) } == 0 {
            return Ok(());
        }
        Err(format!("{}: kill: {}", self.name, io::Error::last_os_error()).into())
    }

    /// Ends it at once, with all that it started.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            if let Ok(id) = i32::try_from(self.id()) {
                // SAFETY: as in `signal`; the group was made by `spawn` and has the child's id.
                unsafe { libc::killpg(id, libc::SIGKILL) };
            }
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks the kernel to kill the calling process when its parent ends.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
