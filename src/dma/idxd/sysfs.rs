//! What the kernel says of a work queue.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where work queues are. DPDK's driver reads the same two variables.
#[derive(Clone, Debug)]
pub struct Places {
    /// Device files: `DSA_DEV_PATH`, or `/dev/dsa`.
    pub devices: PathBuf,
    /// `DSA_SYSFS_PATH`, or `/sys/bus/dsa/devices`.
    pub sysfs: PathBuf,
}

impl Places {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let place = |variable: &str, otherwise: &str| {
            let path = env::var_os(variable).filter(|path| !path.is_empty());
            path.unwrap_or_else(|| otherwise.into()).into()
        };
        Self {
            devices: place("DSA_DEV_PATH", "/dev/dsa"),
            sysfs: place("DSA_SYSFS_PATH", "/sys/bus/dsa/devices"),
        }
    }
}

/// A work queue as it was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkQueue {
    /// Others may use it, too.
    pub shared: bool,
    /// Submissions that it holds: of a shared queue, those that all who share it may have.
    pub size: u32,
    /// Descriptors of a batch; 1 when it takes none.
    pub max_batch: u32,
    /// Bytes of a copy.
    pub max_transfer: u32,
    /// A device of version 1, whose batches the kernel does not take by write(2).
    pub version_1: bool,
}

/// What the kernel sets when nobody else does.
const DEFAULT_TRANSFER: u32 = 2 << 20;
/// Of the most that a copy's length can say.
const MOST_TRANSFER: u64 = 1 << 31;

fn unusable(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

/// Splits `wq1.2` into device 1 and queue 2.
pub fn parse(name: &str) -> Option<(u32, u32)> {
    let (device, queue) = name.strip_prefix("wq")?.split_once('.')?;
    let number = |digits: &str| -> Option<u32> {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    Some((number(device)?, number(queue)?))
}

impl WorkQueue {
    /// Reads what is known of the queue `name` (`wq0.1`).
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no such queue. `Unsupported`: not for us, with the reason.
    pub fn read(sysfs: &Path, name: &str) -> io::Result<Self> {
        let (device, _) = parse(name).ok_or(io::ErrorKind::InvalidInput)?;
        let of_queue = |what: &str| attribute(&sysfs.join(name).join(what));
        let of_device = |what: &str| attribute(&sysfs.join(format!("dsa{device}")).join(what));
        let number = |text: Option<String>| text.and_then(|text| parse_number(&text));

        let size = of_queue("size")?.ok_or(io::ErrorKind::NotFound)?;
        let size = parse_number(&size).and_then(|size| u32::try_from(size).ok());
        let size = size.filter(|&size| size > 0);
        // What older kernels do not tell is as it always was then.
        for (what, wanted) in [
            ("type", "user"),
            ("state", "enabled"),
            ("driver_name", "user"),
        ] {
            if let Some(found) = of_queue(what)?.filter(|found| found != wanted) {
                return Err(unusable(format!(
                    "{name}: {what} is {found:?}, not {wanted:?}"
                )));
            }
        }
        // Without it, the addresses of a process mean something else to the device.
        if number(of_device("pasid_enabled")?) == Some(0) {
            return Err(unusable(format!("{name}: no shared virtual memory")));
        }
        let transfer = number(of_queue("max_transfer_size")?);
        let transfer = transfer.unwrap_or(DEFAULT_TRANSFER.into());
        let batch = number(of_queue("max_batch_size")?).unwrap_or(1);
        let shared = of_queue("mode")?.is_some_and(|mode| mode == "shared");
        let size = size.ok_or_else(|| unusable(format!("{name}: has no size")))?;
        // Above it, the page that the kernel gives to processes refuses.
        let threshold = number(of_queue("threshold")?).filter(|&threshold| shared && threshold > 0);
        let threshold = threshold.and_then(|threshold| u32::try_from(threshold).ok());
        Ok(Self {
            shared,
            size: threshold.map_or(size, |threshold| size.min(threshold)),
            max_batch: u32::try_from(batch).unwrap_or(u32::MAX).max(1),
            max_transfer: u32::try_from(transfer.clamp(1, MOST_TRANSFER)).unwrap_or(u32::MAX),
            version_1: number(of_device("version")?).is_none_or(|version| version < 0x200),
        })
    }
}

/// A sysfs attribute; `None` when this kernel has none of that name.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It is there, but the queue's configuration does not have it.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
