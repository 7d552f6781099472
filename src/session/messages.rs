//! Which messages there are, and who serves them.
//!
//! What the `vhost` crate can do, it does ([`Run::Crate`]); the rest is here: requests that it does
//! not know, and some for which it asks more of the frontend than is needed.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::os::fd::OwnedFd;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::device::{Device, IotlbMessage};
use super::error::RequestError;
use super::wire::{MAX_FILES, Message, Reply};

/// What a request comes to: its reply, if it has one of its own.
pub(super) type Outcome = Result<Option<Reply>, RequestError>;

/// A request as the table describes it.
struct Entry {
    number: u32,
    name: &'static str,
    /// How many files may come with it.
    files: Files,
    /// The shortest payload.
    size: usize,
    run: Run,
}

#[derive(Clone, Copy)]
enum Files {
    Zero,
    One,
    UpTo(usize),
}

/// Who serves a message.
#[derive(Clone, Copy)]
pub(super) enum Run {
    /// The `vhost` crate, which calls `handler`.
    Crate,
    /// This function.
    Own(fn(&mut Device, &[u8], Vec<OwnedFd>) -> Outcome),
    /// Nobody.
    Refused,
}

use Files::{One, UpTo, Zero};
use Run::{Crate, Own, Refused};

const ANY: Files = UpTo(MAX_FILES);
const SET_MEM_TABLE: u32 = 5;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
/// Bytes of a region in a memory table.
const REGION: usize = 32;

macro_rules! messages {
    ($($number:literal $name:ident: $files:expr, $size:literal, $run:expr;)*) => {
        /// All known requests.
        const TABLE: &[Entry] = &[$(Entry {
            number: $number,
            name: stringify!($name),
            files: $files,
            size: $size,
            run: $run,
        },)*];
    };
}

messages! {
    1 GET_FEATURES: Zero, 0, Crate;
    2 SET_FEATURES: Zero, 8, Crate;
    3 SET_OWNER: Zero, 0, Crate;
    4 RESET_OWNER: Zero, 0, Crate;
    5 SET_MEM_TABLE: ANY, 8, Crate;
    // The crate answers with a payload; frontends know that of none.
    6 SET_LOG_BASE: One, 16, Own(set_log_base);
    7 SET_LOG_FD: One, 0, Own(set_log_fd);
    8 SET_VRING_NUM: Zero, 8, Crate;
    9 SET_VRING_ADDR: Zero, 40, Crate;
    10 SET_VRING_BASE: Zero, 8, Crate;
    11 GET_VRING_BASE: Zero, 8, Crate;
    12 SET_VRING_KICK: UpTo(1), 8, Crate;
    13 SET_VRING_CALL: UpTo(1), 8, Crate;
    14 SET_VRING_ERR: UpTo(1), 8, Crate;
    15 GET_PROTOCOL_FEATURES: Zero, 0, Crate;
    16 SET_PROTOCOL_FEATURES: Zero, 8, Crate;
    // The crate wants MQ negotiated for this.
    17 GET_QUEUE_NUM: Zero, 0, Own(get_queue_num);
    // The crate wants PROTOCOL_FEATURES negotiated and no value but 0 and 1.
    18 SET_VRING_ENABLE: Zero, 8, Own(set_vring_enable);
    19 SEND_RARP: Zero, 8, Own(send_rarp);
    20 NET_SET_MTU: Zero, 8, Own(net_set_mtu);
    21 SET_BACKEND_REQ_FD: One, 0, Own(set_backend_req_fd);
    22 IOTLB_MSG: Zero, 32, Own(iotlb_msg);
    23 SET_VRING_ENDIAN: ANY, 0, Refused;
    24 GET_CONFIG: ANY, 0, Refused;
    25 SET_CONFIG: ANY, 0, Refused;
    26 CREATE_CRYPTO_SESSION: ANY, 0, Refused;
    27 CLOSE_CRYPTO_SESSION: ANY, 0, Refused;
    28 POSTCOPY_ADVISE: Zero, 0, Own(postcopy_advise);
    29 POSTCOPY_LISTEN: Zero, 0, Own(postcopy_listen);
    30 POSTCOPY_END: Zero, 0, Own(postcopy_end);
    31 GET_INFLIGHT_FD: ANY, 0, Refused;
    32 SET_INFLIGHT_FD: ANY, 0, Refused;
    33 GPU_SET_SOCKET: ANY, 0, Refused;
    34 RESET_DEVICE: ANY, 0, Refused;
    35 VRING_KICK: ANY, 0, Refused;
    36 GET_MAX_MEM_SLOTS: Zero, 0, Crate;
    37 ADD_MEM_REG: One, 40, Crate;
    38 REM_MEM_REG: UpTo(1), 40, Crate;
    39 SET_STATUS: Zero, 8, Own(set_status);
    40 GET_STATUS: Zero, 0, Own(get_status);
    41 GET_SHARED_OBJECT: ANY, 0, Refused;
    42 SET_DEVICE_STATE_FD: ANY, 0, Refused;
    43 CHECK_DEVICE_STATE: ANY, 0, Refused;
    44 GET_SHMEM_CONFIG: ANY, 0, Refused;
}

fn find(number: u32) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.number == number)
}

/// What to call request `number` in a log line.
pub(super) fn name(number: u32) -> String {
    find(number).map_or_else(
        || format!("request {number}"),
        |entry| entry.name.to_owned(),
    )
}

/// Whether `message`, between `POSTCOPY_LISTEN` and `POSTCOPY_END`, is the frontend's
/// acknowledgement of addresses that we told. QEMU sends it with the number of its last message
/// about memory. It is never answered, whatever its flags say.
pub(super) fn acknowledges(message: &Message) -> bool {
    let about_memory = matches!(message.request, SET_MEM_TABLE | ADD_MEM_REG | REM_MEM_REG);
    about_memory && message.body.len() == 8 && message.files.is_empty()
}

/// Who serves `message`, when its files and its length are as they should be.
pub(super) fn check(message: &Message) -> Result<Run, RequestError> {
    let entry = find(message.request).ok_or(RequestError::Unsupported)?;
    if message.files_lost {
        return Err(RequestError::FilesLost);
    }
    let got = message.files.len();
    let (fits, wanted) = match entry.files {
        Files::Zero => (got == 0, "none".to_owned()),
        Files::One => (got == 1, "one".to_owned()),
        Files::UpTo(most) => (got <= most, format!("at most {most}")),
    };
    if !fits {
        return Err(RequestError::Files { got, wanted });
    }
    let (got, wanted) = (message.body.len(), entry.size);
    if got < wanted {
        return Err(RequestError::Short { got, wanted });
    }
    // The crate knows no table without regions.
    if entry.number == SET_MEM_TABLE && word(&message.body, 0) == 0 {
        return Ok(Own(clear_memory));
    }
    Ok(entry.run)
}

/// Makes the payload of `message` what the crate takes: not longer than the request has it, since what
/// stands behind means nothing, and with zeroes where nothing is meant.
pub(super) fn trim(message: &mut Message) {
    let Some(entry) = find(message.request) else {
        return;
    };
    let mut length = entry.size;
    if entry.number == SET_MEM_TABLE {
        let regions = word(&message.body, 0) as usize;
        length = length.saturating_add(regions.saturating_mul(REGION));
        if let Some(padding) = message.body.get_mut(4..8) {
            padding.fill(0);
        }
    }
    message.body.truncate(length);
}

/// The 32-bit word `at` bytes into a payload; what the payload lacks counts as zero.
fn word(body: &[u8], at: usize) -> u32 {
    let bytes = body.get(at..).and_then(<[u8]>::first_chunk);
    u32::from_ne_bytes(bytes.copied().unwrap_or_default())
}

/// The payload as a 64-bit number.
pub(super) fn number(body: &[u8]) -> u64 {
    u64::from_ne_bytes(body.first_chunk().copied().unwrap_or_default())
}

fn answer(number: u64) -> Outcome {
    Ok(Some(number.into()))
}

/// A message about memory regions, with the addresses at which we mapped them instead of the
/// frontend's own.
pub(super) fn with_bases(mut body: Vec<u8>, bases: &[u64]) -> Reply {
    // In a table as in a single one: eight bytes, then regions of four words each.
    let regions = body.get_mut(8..).unwrap_or_default();
    for (region, base) in regions.chunks_exact_mut(REGION).zip(bases) {
        if let Some(address) = region.get_mut(16..24) {
            address.copy_from_slice(&base.to_ne_bytes());
        }
    }
    body.into()
}

fn clear_memory(device: &mut Device, _body: &[u8], files: Vec<OwnedFd>) -> Outcome {
    if !files.is_empty() {
        return Err(RequestError::Files {
            got: files.len(),
            wanted: "none".to_owned(),
        });
    }
    device.set_memory(Vec::new())?;
    Ok(None)
}

fn set_log_base(device: &mut Device, body: &[u8], files: Vec<OwnedFd>) -> Outcome {
    if body.len() != 16 {
        return Err(RequestError::LogSize(body.len()));
    }
    let (size, offset) = (number(body), number(body.get(8..).unwrap_or_default()));
    if let Some(file) = files.into_iter().next() {
        device.set_log(file.into(), size, offset)?;
    }
    // The answer is a reply without a payload, also when none was asked for.
    Ok(Some(Vec::new().into()))
}

/// A file to announce changes of the dirty log; there is nobody to announce them to.
fn set_log_fd(_device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    Ok(None)
}

/// The same for every port: a frontend that moves to another host must not find fewer.
fn get_queue_num(_device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    answer(128)
}

fn set_vring_enable(device: &mut Device, body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.enable(word(body, 0), word(body, 4) != 0)?;
    Ok(None)
}

fn send_rarp(device: &mut Device, body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.send_rarp(body.first_chunk().copied().unwrap_or_default());
    Ok(None)
}

fn net_set_mtu(device: &mut Device, body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.set_mtu(number(body))?;
    Ok(None)
}

fn set_backend_req_fd(device: &mut Device, _body: &[u8], files: Vec<OwnedFd>) -> Outcome {
    let channel = files.into_iter().next();
    let is_socket = |file: &OwnedFd| matches!(socket_type(file), Ok(SocketType::STREAM));
    let channel = channel.filter(is_socket).ok_or(RequestError::NotASocket)?;
    device.set_channel(channel);
    Ok(None)
}

fn iotlb_msg(device: &mut Device, body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.iotlb(IotlbMessage::from_bytes(body))?;
    Ok(None)
}

fn postcopy_advise(device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    let file = Some(device.advise()?);
    let body = Vec::new();
    Ok(Some(Reply { body, file }))
}

fn postcopy_listen(device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.listen()?;
    Ok(None)
}

fn postcopy_end(device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.end_postcopy()?;
    answer(0)
}

fn set_status(device: &mut Device, body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    device.set_status(number(body))?;
    Ok(None)
}

fn get_status(device: &mut Device, _body: &[u8], _files: Vec<OwnedFd>) -> Outcome {
    answer(device.status().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_has_no_gaps() {
        for (entry, number) in TABLE.iter().zip(1..) {
            assert_eq!(entry.number, number, "{}", entry.name);
        }
    }

    #[test]
    fn what_a_short_payload_lacks_counts_as_zero() {
        assert_eq!(word(&[1, 0, 0, 0, 2], 4), 0);
        assert_eq!(number(&[1, 2, 3]), 0);
    }

    #[test]
    fn a_message_with_a_surplus_file_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let message = Message {
            request: 1,
            files: vec![file.into()],
            ..Message::default()
        };
        assert!(matches!(
            check(&message),
            Err(RequestError::Files { got: 1, .. })
        ));
    }
}
