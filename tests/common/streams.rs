//! TCP streams between a guest and the host's end of its network.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{Guest, Lab, Outcome, SOON};

/// Bytes without a pattern.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// What both sides' `sha256sum` prints of the same bytes.
pub(crate) fn sha256(lab: &Lab, bytes: &[u8]) -> Outcome<String> {
    let file = lab.path("bytes");
    std::fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    let output = Command::new("sha256sum").arg(&file).output();
    let output = output.map_err(|error| format!("sha256sum: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// The next connection; no test waits for ever.
fn accept(listener: &TcpListener) -> Outcome<TcpStream> {
    let failed = |error: std::io::Error| format!("accept: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let deadline = Instant::now() + SOON;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(failed(error).into());
            }
            Err(_) if Instant::now() >= deadline => return Err("no connection came".into()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(SOON)).map_err(failed)?;
    stream.set_write_timeout(Some(SOON)).map_err(failed)?;
    Ok(stream)
}

/// Sends all of `bytes` on the next connection and returns what comes back meanwhile.
pub(crate) fn converse(listener: &TcpListener, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let stream = accept(listener)?;
    let (mut reader, mut writer) = (&stream, &stream);
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(bytes)?;
            stream_end(writer)
        });
        let mut received = Vec::new();
        let read = reader.read_to_end(&mut received);
        let sent = sent.join().map_err(|_| "the sender panicked")?;
        sent.map_err(|error| format!("sending a stream: {error}"))?;
        read.map_err(|error| format!("a stream after {} bytes: {error}", received.len()))?;
        Ok(received)
    })
}

fn stream_end(stream: &TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)
}

/// Runs `nc` in the guest against the host, which sends `bytes`; returns what the host got and the
/// hash of what the guest got.
pub(crate) fn stream(
    guest: &mut Guest,
    listener: &TcpListener,
    bytes: &[u8],
    guest_sends: &str,
) -> Outcome<(Vec<u8>, String)> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let (ip, port) = (address.ip(), address.port());
    thread::scope(|scope| {
        let host = scope.spawn(|| converse(listener, bytes));
        let hash = guest.run(&format!(
            "nc {ip} {port} <{guest_sends} >/got && sha256sum </got"
        ));
        let received = host.join().map_err(|_| "the host's side panicked")?;
        let hash = hash?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok((received?, hash))
    })
}
