#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use core::ffi::{CStr, c_char, c_int, c_void};
use std::cell::RefCell;

use super::library::{Conf, Info};
use super::*;
use crate::testing::dma::FakeContainer;

/// A dmadev of this thread, which is what the library says and does.
#[derive(Debug, Default)]
struct Device {
    channels: u16,
    started: bool,
    descriptors: u16,
    /// Copies between two submissions.
    batch: u16,
    staged: u16,
    submitted: u16,
    next: u16,
    /// Reports an error in each call, and no copy.
    insists: bool,
    polls: u32,
}

thread_local! {
    static DEVICE: RefCell<Device> = RefCell::default();
}

fn device<T>(change: impl FnOnce(&mut Device) -> T) -> T {
    DEVICE.with_borrow_mut(change)
}

unsafe extern "C" fn id_by_name(name: *const c_char) -> c_int {
    // SAFETY: the driver passes strings.
    match unsafe { CStr::from_ptr(name) } == c"device" {
        true => 0,
        false => -libc::EINVAL,
    }
}

unsafe extern "C" fn info_get(_: i16, info: *mut Info) -> c_int {
    // SAFETY: the driver passes room for it.
    let info = unsafe { &mut *info };
    info.capabilities = MEM_TO_MEM | COPY | SVA;
    (info.max_vchans, info.max_desc, info.min_desc) = (1, 4096, 64);
    info.nb_vchans = device(|device| device.channels);
    0
}

unsafe extern "C" fn configure(_: i16, conf: *const Conf) -> c_int {
    // SAFETY: the driver passes one.
    let channels = unsafe { (*conf).first } as u16;
    device(|device| match (device.started, channels) {
        (true, _) => -libc::EBUSY,
        (_, 0) => -libc::EINVAL,
        _ => {
            device.channels = channels;
            0
        }
    })
}

unsafe extern "C" fn vchan_setup(_: i16, _: u16, conf: *const Conf) -> c_int {
    // SAFETY: the driver passes one.
    let descriptors = unsafe { (*conf).nb_desc };
    device(|device| device.descriptors = descriptors);
    0
}

unsafe extern "C" fn start(_: i16) -> c_int {
    device(|device| device.started = true);
    0
}

unsafe extern "C" fn stop(_: i16) -> c_int {
    device(|device| device.started = false);
    0
}

unsafe extern "C" fn copy(_: *mut c_void, _: u16, _: u64, _: u64, _: u32, _: u64) -> c_int {
    device(|device| {
        assert!(device.capacity() > 0, "there was room");
        device.staged += 1;
        device.next = device.next.wrapping_add(1);
        device.next.wrapping_sub(1).into()
    })
}

unsafe extern "C" fn submit(_: *mut c_void, _: u16) -> c_int {
    device(|device| device.submitted += std::mem::take(&mut device.staged));
    0
}

unsafe extern "C" fn completed(
    _: *mut c_void,
    _: u16,
    most: u16,
    last: *mut u16,
    error: *mut bool,
) -> u16 {
    let (count, index, insists) = device(|device| {
        device.polls += 1;
        assert!(device.polls < 1000, "a poll without end");
        let count = match device.insists {
            true => 0,
            false => most.min(device.submitted),
        };
        device.submitted -= count;
        let pending = device.submitted + device.staged;
        let index = device.next.wrapping_sub(pending).wrapping_sub(1);
        (count, index, device.insists)
    });
    // SAFETY: the driver passes room for it.
    unsafe { last.write(index) };
    // SAFETY: as above.
    unsafe { error.write(insists) };
    count
}

unsafe extern "C" fn completed_status(
    _: *mut c_void,
    _: u16,
    _: u16,
    _: *mut u16,
    _: *mut c_int,
) -> u16 {
    0
}

unsafe extern "C" fn burst_capacity(_: *const c_void, _: u16) -> u16 {
    device(|device| device.capacity())
}

impl Device {
    fn capacity(&self) -> u16 {
        let left = self.descriptors - 1 - self.staged - self.submitted;
        left.min(self.batch - self.staged)
    }
}

/// Opens what there is.
fn open(vchan: Option<u16>, ring_size: u32) -> Result<Dmadev, OpenError> {
    let object = FastPath {
        private: std::ptr::null_mut(),
        copy: Some(copy),
        copy_sg: std::ptr::null(),
        fill: std::ptr::null(),
        submit: Some(submit),
        completed: Some(completed),
        completed_status: Some(completed_status),
        burst_capacity: Some(burst_capacity),
    };
    let object: *const FastPath = Box::leak(Box::new(object));
    let library = Library {
        id_by_name,
        info_get,
        configure,
        vchan_setup,
        start,
        stop,
        objects: Box::leak(Box::new(object.cast())),
    };
    Dmadev::open_in(
        library,
        Wanted {
            name: "device",
            vchan,
            ring_size,
            stops_in_name_only: false,
            container: || Arc::new(FakeContainer::new()),
        },
    )
}

fn refusal(vchan: u16) -> String {
    open(Some(vchan), 64).err().unwrap().to_string()
}

#[test]
fn a_channel_that_the_application_has_not_set_up_is_refused() {
    assert_eq!(
        refusal(0),
        "the application has given the dmadev 0 channels, so there is none behind #0"
    );
    device(|device| device.channels = 2);
    assert_eq!(
        refusal(1),
        "the application has not started the dmadev whose channel is behind #"
    );
    device(|device| (device.started, device.descriptors, device.batch) = (true, 64, 64));
    assert!(refusal(2).starts_with("the application has given the dmadev 2 channels"));
    assert!(open(Some(1), 64).is_ok());
    assert!(
        device(|device| device.started),
        "and it is not ours to stop"
    );
}

/// Stages all that there is room for.
fn fill(engine: &mut Dmadev) -> usize {
    let room = engine.room();
    for place in 0..room {
        let transfer = Transfer {
            from: Addr(0),
            to: Addr(64),
            len: 64,
        };
        let tag = Tag {
            serial: 0,
            place: place as u16,
        };
        // SAFETY: nobody copies.
        unsafe { engine.stage(transfer, tag) };
    }
    engine.submit();
    room
}

#[test]
fn an_engine_is_deeper_than_a_batch() {
    device(|device| (device.channels, device.started) = (1, true));
    device(|device| (device.descriptors, device.batch) = (256, 32));
    let mut engine = open(Some(0), 256).unwrap();
    assert_eq!(engine.depth(), 255);
    let batches: Vec<_> = (0..9).map(|_| fill(&mut engine)).collect();
    assert_eq!(batches, [32, 32, 32, 32, 32, 32, 32, 31, 0]);
    let mut done = 0;
    assert_eq!(engine.poll(&mut |_, _| done += 1), Health::Running);
    assert_eq!((done, engine.room()), (255, 32));
}

#[test]
fn an_engine_is_as_deep_as_asked_for_while_the_application_has_copies() {
    device(|device| (device.channels, device.started) = (1, true));
    device(|device| (device.descriptors, device.batch) = (512, 512));
    device(|device| device.submitted = 400);
    assert_eq!(open(Some(0), 256).unwrap().depth(), 255);
}

#[test]
fn an_error_that_is_of_no_copy_is_the_end() {
    device(|device| (device.channels, device.started) = (1, true));
    device(|device| (device.descriptors, device.batch) = (64, 64));
    let mut engine = open(Some(0), 64).unwrap();
    fill(&mut engine);
    device(|device| device.insists = true);
    assert_eq!(engine.poll(&mut |_, _| {}), Health::Dead);
}
