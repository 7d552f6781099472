#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

fn file(length: u64) -> File {
    let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, length).unwrap();
    file.into()
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Pages for a log of `size` bytes at `offset` of a file.
fn pages(file: &File, size: u64, offset: u64) -> DirtyPages {
    let log = DirtyLog::map(file.try_clone().unwrap(), size, offset).unwrap();
    DirtyPages::new(Arc::new(log), Arc::default())
}

const PAGE: u64 = 1 << PAGE_SHIFT;

#[test]
fn bits_stand_in_the_order_of_pages_from_the_offset_on() {
    for offset in [0, 8, 13, 4096, 4097, 5000] {
        let file = file(offset + 32);
        let mut dirty = pages(&file, 32, offset);
        for page in [0, 9, 63, 64, 255] {
            dirty.mark_at(Gpa(page * PAGE + 17), 1);
        }
        assert!(
            bytes(&file).iter().all(|&byte| byte == 0),
            "not written yet"
        );
        dirty.flush();
        let mut expected = vec![0; usize::try_from(offset).unwrap()];
        expected.extend([1, 2, 0, 0, 0, 0, 0, 0x80, 1]);
        expected.resize(expected.len() + 22, 0);
        expected.push(0x80);
        assert_eq!(bytes(&file), expected, "offset {offset}");
    }
}

#[test]
fn what_lies_beyond_the_log_is_ignored() {
    for size in 1..20 {
        // The bytes behind the log are another's.
        let file = file(64);
        let mut dirty = pages(&file, size, 0);
        assert_eq!(dirty.log.end(), Gpa(size * 8 * PAGE));
        dirty.mark_at(Gpa(0), 400 * PAGE);
        dirty.mark_at(Gpa(u64::MAX - 1), 2);
        dirty.mark_at(Gpa(u64::MAX), 8);
        dirty.mark_at(Gpa(1 << 62), PAGE);
        dirty.flush();
        let set = bytes(&file).iter().filter(|&&byte| byte == 0xff).count();
        assert_eq!(set as u64, size);
        assert!(bytes(&file)[set..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn words_that_share_a_place_are_all_written() {
    let file = file(1 << 20);
    let mut dirty = pages(&file, 1 << 20, 0);
    let stride = WORD_PAGES * COLLECTED as u64 * PAGE;
    let places: Vec<u64> = (0..100).map(|nth| nth * stride).collect();
    for &at in &places {
        dirty.mark_at(Gpa(at), 1);
    }
    dirty.flush();
    let set: u32 = bytes(&file).iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(set, 100);
}

#[test]
fn bits_that_others_set_stay() {
    let file = file(8);
    file.write_all_at(&[0x55; 8], 0).unwrap();
    let mut dirty = pages(&file, 8, 0);
    dirty.mark_at(Gpa(PAGE), 2 * PAGE);
    dirty.flush();
    assert_eq!(bytes(&file)[0], 0x57);
    dirty.flush();
    assert_eq!(bytes(&file)[1..], [0x55; 7]);
}

#[test]
fn an_empty_range_marks_nothing() {
    let file = file(8);
    let mut dirty = pages(&file, 8, 0);
    dirty.mark_at(Gpa(PAGE), 0);
    dirty.flush();
    assert_eq!(bytes(&file), [0; 8]);
}

#[test]
fn a_log_must_fit_its_file() {
    for (length, size, offset) in [
        (64, 0, 0),
        (64, 65, 0),
        (64, 64, 1),
        (64, 1, u64::MAX),
        (64, u64::MAX, 1),
        (0, 8, 0),
    ] {
        assert!(DirtyLog::map(file(length), size, offset).is_err());
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    let reader: std::os::fd::OwnedFd = reader.into();
    assert!(DirtyLog::map(reader.into(), 8, 0).is_err());
}
