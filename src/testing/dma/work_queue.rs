//! A DSA work queue as the kernel shows it: a device file and a folder in sysfs, with a thread
//! behind them that is the device.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::DsaModel;
use crate::dma::idxd::descriptor::Descriptor;
use crate::dma::idxd::sysfs::Places;

/// How descriptors get to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The portal can be mapped.
    Page,
    /// It cannot, but written to.
    Write,
}

/// The queue `wq0.0`. It is gone when dropped.
pub struct FakeWorkQueue {
    folder: PathBuf,
    model: DsaModel,
    stop: Arc<AtomicBool>,
    device: Option<JoinHandle<()>>,
}

impl FakeWorkQueue {
    /// A dedicated queue for 16 submissions and batches of 8.
    pub fn new(way: Way) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("net-vhost-dsa-{}-{nth}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        for part in ["dev", "sys/wq0.0", "sys/dsa0"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let queue = Self {
            folder,
            model: DsaModel::new(),
            stop: Arc::default(),
            device: None,
        };
        for (name, value) in [
            ("size", "16"),
            ("max_batch_size", "8"),
            ("max_transfer_size", "2097152"),
            ("type", "user"),
            ("mode", "dedicated"),
            ("state", "enabled"),
            ("name", "copies"),
            ("driver_name", "user"),
        ] {
            queue.say(&format!("wq0.0/{name}"), value);
        }
        queue.say("dsa0/version", "0x200");
        queue.say("dsa0/pasid_enabled", "1");
        queue.plug_in(way)
    }

    fn plug_in(mut self, way: Way) -> Self {
        let path = self.folder.join("dev/wq0.0");
        let (model, stop) = (self.model.clone(), Arc::clone(&self.stop));
        self.device = Some(match way {
            Way::Page => {
                let page = Page::create(&path);
                thread::spawn(move || page.serve(&model, &stop))
            }
            Way::Write => {
                let pipe = make_pipe(&path);
                thread::spawn(move || serve_pipe(pipe, &model, &stop))
            }
        });
        self
    }

    /// Sets an attribute; without a value it is taken away.
    pub fn say(&self, attribute: &str, value: &str) {
        let path = self.folder.join("sys").join(attribute);
        match value {
            "" => fs::remove_file(path).unwrap(),
            _ => fs::write(path, format!("{value}\n")).unwrap(),
        }
    }

    /// Where a driver finds it.
    pub fn places(&self) -> Places {
        Places {
            devices: self.folder.join("dev"),
            sysfs: self.folder.join("sys"),
        }
    }

    /// Takes the device away: nothing that is submitted from now on is seen.
    pub fn unplug(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(device) = self.device.take() {
            device.join().unwrap();
        }
    }

    /// What is behind it.
    pub fn model(&self) -> &DsaModel {
        &self.model
    }
}

impl Drop for FakeWorkQueue {
    fn drop(&mut self) {
        self.unplug();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A portal's page from the device's side: a line is free when its first word is zero.
struct Page(usize);

const PAGE: usize = 4096;

impl Page {
    fn create(path: &Path) -> Self {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        let file = file.unwrap();
        file.set_len(PAGE as u64).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self(start.expose_provenance())
    }

    fn serve(&self, model: &DsaModel, stop: &AtomicBool) {
        let start = ptr::with_exposed_provenance::<AtomicU64>(self.0);
        // SAFETY: the mapping of `create`, which lives as long as `self`; the driver's side is
        // another mapping, written by instructions.
        let words = unsafe { std::slice::from_raw_parts(start, PAGE / 8) };
        let mut lines = words.chunks_exact(8).cycle().peekable();
        while !stop.load(Ordering::Relaxed) {
            let line = lines.peek().unwrap();
            if line[0].load(Ordering::Acquire) == 0 {
                thread::yield_now();
                continue;
            }
            let mut descriptor = Descriptor::default();
            for (to, word) in descriptor.0.iter_mut().zip(*line) {
                *to = word.load(Ordering::Relaxed);
            }
            line[0].store(0, Ordering::Release);
            lines.next();
            model.submit(descriptor);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: the mapping of `create`, which nobody uses any more.
        unsafe { libc::munmap(start, PAGE) };
    }
}

/// Pipes can be opened for both directions and written, but not mapped.
fn make_pipe(path: &Path) -> File {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives through the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(path).unwrap()
}

fn serve_pipe(mut pipe: File, model: &DsaModel, stop: &AtomicBool) {
    let mut bytes = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        // Writes of up to 4096 bytes are not torn.
        if !matches!(pipe.read(&mut bytes), Ok(64)) {
            thread::yield_now();
            continue;
        }
        let mut descriptor = Descriptor::default();
        for (to, word) in descriptor.0.iter_mut().zip(bytes.as_chunks().0) {
            *to = u64::from_le_bytes(*word);
        }
        model.submit(descriptor);
    }
}
