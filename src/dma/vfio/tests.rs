#![forbid(unsafe_code)]

use std::sync::Arc;

use super::*;
use crate::dma::Addr;
use crate::testing::dma::FakeContainer;

#[test]
fn only_the_full_form_of_an_address_becomes_part_of_a_path() {
    for good in ["0000:00:04.0", "0001:e7:1f.7"] {
        assert!(is_bdf(good), "{good}");
    }
    for bad in [
        "00:04.0",
        "0000:00:04.8",
        "0000:00:04.a",
        "0000:E7:04.0",
        "../../../sys",
        "0000:00:04.0/",
        "0000/00/04.0",
        "",
    ] {
        assert!(!is_bdf(bad), "{bad}");
    }
}

#[test]
fn an_address_is_known_only_if_all_bytes_are_in_one_piece() {
    let fake = FakeContainer::new();
    let memory = Memory::shared(0x4000).unwrap();
    let at = memory.words().as_ptr().addr();
    let mut reach = Reach::new(Arc::new(fake.clone()));

    assert_eq!(reach.translate(at, 1), None);
    reach.map(at, 0x2000).unwrap();
    reach.map(at + 0x2000, 0x2000).unwrap();

    let first = reach.translate(at, 0x2000).unwrap();
    assert_eq!(fake.host(first.0, 0x2000), Some(at));
    assert_eq!(
        reach.translate(at + 0x1fff, 1),
        Some(Addr(first.0 + 0x1fff))
    );
    assert_eq!(reach.translate(at + 0x1fff, 2), None);
    assert_eq!(reach.translate(at + 0x4000, 1), None);
    assert_eq!(reach.translate(at - 1, 1), None);
    assert_eq!(reach.translate(at, 0), None);
    assert_eq!(reach.translate(usize::MAX, 2), None);
}

#[test]
fn a_range_stays_mapped_until_its_last_engine_has_unmapped_it() {
    let fake = FakeContainer::new();
    let memory = Memory::shared(0x2000).unwrap();
    let at = memory.words().as_ptr().addr();
    let mut one = Reach::new(Arc::new(fake.clone()));
    let mut other = Reach::new(Arc::new(fake.clone()));
    one.map(at, 0x2000).unwrap();
    other.map(at, 0x2000).unwrap();
    assert!(one.map(at, 0x1000).is_err());

    one.unmap(at, 0x2000);
    one.unmap(at, 0x2000); // once too often

    assert_eq!(one.translate(at, 1), None);
    assert!(other.translate(at, 1).is_some());
    assert_eq!(fake.mapped(), 1);
    other.unmap(at, 0x2000);
    assert_eq!(fake.mapped(), 0);
}

#[test]
fn memory_that_the_container_knows_needs_no_mapping() {
    let fake = FakeContainer::new();
    let memory = vec![0_u8; 100];
    fake.lend(&memory);
    let reach = Reach::new(Arc::new(fake.clone()));

    let at = memory.as_ptr().addr();
    for _ in 0..2 {
        let address = reach.translate(at + 10, 90).unwrap();
        assert_eq!(fake.host(address.0, 90), Some(at + 10));
        assert_eq!(reach.translate(at + 10, 91), None);
    }
}

#[test]
fn memory_that_the_container_lost_is_not_remembered() {
    let fake = FakeContainer::new();
    let memory = vec![0_u8; 100];
    fake.lend(&memory);
    let reach = Reach::new(Arc::new(fake.clone()));
    let at = memory.as_ptr().addr();
    assert!(reach.translate(at, 100).is_some());

    fake.take_back();

    assert_eq!(reach.translate(at, 100), None);
    fake.lend(&memory);
    assert!(reach.translate(at, 100).is_some());
}

#[test]
fn memory_for_a_device_is_zeroed_and_unmapped_with_its_owner() {
    let fake = FakeContainer::new();
    let container: Arc<dyn Container> = Arc::new(fake.clone());

    let memory = Memory::of(&container, 5000).unwrap();

    assert!(memory.words().len() * 8 >= 5000);
    assert!(memory.words().iter().all(|word| word.as_ptr().is_aligned()));
    assert!(fake.host(memory.iova(), 5000).is_some());
    drop(memory);
    assert_eq!(fake.mapped(), 0);
}

#[test]
fn a_bar_is_a_file_of_registers_and_nothing_beyond() {
    let file = rustix::fs::memfd_create("bar", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(file);
    file.set_len(4096).unwrap();
    let bar = function::Bar::map(&file, 0, 4096).unwrap();

    bar.write(0x84, 0x1234_5678_u32);
    bar.write(4095, 7_u8);
    bar.write(4094, 0xffff_u16);
    bar.write(4096, 7_u8);
    bar.write(0x86, u32::MAX); // not aligned: no register

    assert_eq!(bar.read::<u16>(0x86), Some(0x1234));
    assert_eq!(bar.read::<u8>(4095), Some(0xff));
    assert_eq!(bar.read::<u8>(4096), None);
    assert_eq!(bar.read::<u64>(0x84), None);
    assert!(bar.line(4032).is_some());
    assert!(bar.line(4096).is_none() && bar.line(32).is_none());
}
