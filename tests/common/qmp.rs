//! QEMU's own protocol: one connection for as long as the machine runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::Outcome;
use super::lab::eventually;

/// A QEMU that may be told what to do.
///
/// The connection is made once and kept: a monitor that is still parting with one client turns the next
/// one away.
pub(crate) struct Qmp {
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    socket: UnixStream,
    answers: BufReader<UnixStream>,
    commands: u32,
}

impl Qmp {
    /// For the socket at `path`, which need not be there yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            connection: Mutex::new(None),
        }
    }

    /// Where the socket is.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Runs a command with arguments, in JSON; returns the answer.
    pub(crate) fn run(&self, command: &str, arguments: &str) -> Outcome<String> {
        let mut kept = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let connection = match &mut *kept {
            Some(connection) => connection,
            none => none.insert(self.connect()?),
        };
        connection.run(command, arguments)
    }

    fn connect(&self) -> Outcome<Connection> {
        let mut socket = None;
        eventually("QEMU's monitor can be reached", || {
            socket = UnixStream::connect(&self.path).ok();
            socket.is_some()
        })?;
        let socket = socket.ok_or("QEMU's monitor cannot be reached")?;
        let failed = |error: std::io::Error| format!("QMP: {error}");
        socket.set_read_timeout(Some(super::SOON)).map_err(failed)?;
        let answers = BufReader::new(socket.try_clone().map_err(failed)?);
        let mut connection = Connection {
            socket,
            answers,
            commands: 0,
        };
        connection.run("qmp_capabilities", "{}")?;
        Ok(connection)
    }
}

impl Connection {
    fn run(&mut self, command: &str, arguments: &str) -> Outcome<String> {
        let failed = |error: std::io::Error| format!("QMP {command}: {error}");
        self.commands += 1;
        let id = format!("\"id\": {}", self.commands);
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}, {id}}}");
        // At once: QEMU needs no end of line to obey, and after `quit` nobody would take it.
        let written = self.socket.write_all(format!("{line}\n").as_bytes());
        written.map_err(failed)?;
        // A greeting and events may come before the answer.
        loop {
            let mut answer = String::new();
            let length = self.answers.read_line(&mut answer).map_err(failed)?;
            if length == 0 {
                return Err(format!("QMP {command}: QEMU closed its monitor").into());
            }
            let ours = [",", "}"].map(|end| format!("{id}{end}"));
            let ours = ours.iter().any(|end| answer.contains(end));
            match ours {
                true if answer.contains("\"return\"") => return Ok(answer.trim_end().to_owned()),
                true => return Err(format!("QMP {command}: {answer}").into()),
                false => {}
            }
        }
    }
}
