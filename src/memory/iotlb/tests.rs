#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::sorted::Sorted;
use super::*;

fn range(at: u64, size: u64) -> IovaRange {
    IovaRange::new(Iova(at), size).unwrap()
}

fn told(iotlb: &Iotlb, at: u64, size: u64, gpa: u64) -> bool {
    iotlb.insert(range(at, size), Gpa(gpa), Access::BOTH)
}

/// Where `at` lies, and how many bytes from there on.
fn found(iotlb: &Iotlb, at: u64, want: u64, need: Access) -> Option<(u64, u64)> {
    let extent = iotlb.extent(Iova(at), want, need)?;
    let skip = at - extent.iova.0;
    Some((extent.gpa.0 + skip, extent.len - skip))
}

#[test]
fn ranges_end_at_the_last_address_and_not_behind_it() {
    assert_eq!(IovaRange::new(Iova(0), 0), None);
    assert_eq!(IovaRange::new(Iova(u64::MAX), 2), None);
    assert!(range(u64::MAX, 1).overlaps(IovaRange::ALL));
    assert!(!range(0x1000, 0x1000).overlaps(range(0x2000, 1)));
    assert!(range(0x1000, 0x1001).overlaps(range(0x2000, 1)));
}

#[test]
fn translations_that_go_on_are_found_together() {
    let iotlb = Iotlb::default();
    told(&iotlb, 0x1000, 0x1000, 0xa000);
    told(&iotlb, 0x2000, 0x1000, 0xb000);
    told(&iotlb, 0x3000, 0x1000, 0xf000);
    let found = |at, want| found(&iotlb, at, want, Access::READ);
    assert_eq!(found(0x1800, 0x10), Some((0xa800, 0x800)));
    assert_eq!(found(0x1800, 0x801), Some((0xa800, 0x1800)));
    assert_eq!(found(0x1800, 0x1801), Some((0xa800, 0x1800)));
    assert_eq!(found(0x3fff, 1), Some((0xffff, 1)));
    assert_eq!(found(0x4000, 1), None);
    assert_eq!(found(0xfff, 1), None);
}

#[test]
fn a_translation_for_reading_is_none_for_writing() {
    let iotlb = Iotlb::default();
    iotlb.insert(range(0x1000, 0x1000), Gpa(0xa000), Access::READ);
    iotlb.insert(range(0x2000, 0x1000), Gpa(0xb000), Access::WRITE);
    assert!(found(&iotlb, 0x1000, 1, Access::READ).is_some());
    assert!(found(&iotlb, 0x1000, 1, Access::WRITE).is_none());
    assert!(found(&iotlb, 0x2000, 1, Access::WRITE).is_some());
    assert!(found(&iotlb, 0x2000, 1, Access::BOTH).is_none());
    // Nor do the two go together.
    let alone = found(&iotlb, 0x1000, 0x2000, Access::READ);
    assert_eq!(alone, Some((0xa000, 0x1000)));
}

#[test]
fn an_invalidation_takes_whole_translations_away() {
    let iotlb = Iotlb::default();
    told(&iotlb, 0x1000, 0x2000, 0xa000);
    told(&iotlb, 0x3000, 0x1000, 0xc000);
    let age = iotlb.age();
    iotlb.remove(range(0x2fff, 1));
    assert!(!iotlb.knows(Iova(0x1000), Access::READ));
    assert!(iotlb.knows(Iova(0x3000), Access::READ));
    assert_ne!(iotlb.age(), age, "what was removed can be asked for again");
    iotlb.remove(IovaRange::ALL);
    assert!(iotlb.is_empty());
}

#[test]
fn only_news_that_contradicts_is_a_change() {
    let iotlb = Iotlb::default();
    assert!(!told(&iotlb, 0x1000, 0x2000, 0xa000));
    assert!(!told(&iotlb, 0x1000, 0x2000, 0xa000), "the same again");
    assert!(!told(&iotlb, 0x2000, 0x4000, 0xb000), "more of the same");
    assert!(told(&iotlb, 0x1000, 0x1000, 0xf000), "another place");
    assert_eq!(
        found(&iotlb, 0x1fff, 1, Access::BOTH),
        Some((0xffff, 1)),
        "the news counts"
    );
    let less = iotlb.insert(range(0x2000, 0x1000), Gpa(0xb000), Access::READ);
    assert!(
        !less && iotlb.knows(Iova(0x2000), Access::BOTH),
        "the same place"
    );
}

#[test]
fn there_are_at_most_as_many_as_pages_of_memory() {
    let iotlb = Iotlb::default();
    iotlb.clear(5000 * 4096);
    for page in 0..20_000 {
        told(&iotlb, page * 0x1000, 0x800, 0xa000);
        assert!(
            iotlb.knows(Iova(page * 0x1000), Access::BOTH),
            "page {page}"
        );
    }
    assert!((4990..=5000).contains(&iotlb.len()), "{}", iotlb.len());
}

/// What a test does to both.
#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64, u64, u8),
    Remove(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let insert = (0_u64..64, 1_u64..20, 0_u64..3, 1_u8..4)
        .prop_map(|(at, size, shift, access)| Step::Insert(at, size, shift, access));
    let remove = (0_u64..64, 1_u64..20).prop_map(|(at, size)| Step::Remove(at, size));
    prop_oneof![4 => insert, 1 => remove]
}

/// What one address of the model means: which update told it first and unbroken, where it lies, and what for.
type Byte = (u64, u64, u8);

proptest! {
    #[test]
    fn any_updates_and_invalidations_give_what_a_list_of_bytes_gives(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let iotlb = Iotlb::default();
        let mut bytes: BTreeMap<u64, Byte> = BTreeMap::new();
        let mut serial = 0;
        for step in steps {
            match step {
                Step::Insert(at, size, shift, access) => {
                    let gpa = at + 1000 * (shift + 1);
                    let changes = (at..at + size).any(|byte| {
                        bytes.get(&byte).is_some_and(|&(_, old, _)| old != gpa + (byte - at))
                    });
                    // The parts left and right of the news are translations of their own.
                    serial += 1;
                    let behind = serial;
                    if let Some(&(split, ..)) = bytes.get(&(at + size)) {
                        for (_, byte) in bytes.range_mut(at + size..) {
                            if byte.0 == split {
                                byte.0 = behind;
                            }
                        }
                    }
                    let mut before = None;
                    for byte in 0..size {
                        // Where both were granted is a translation of its own.
                        let place = gpa + byte;
                        let old = bytes.get(&(at + byte)).filter(|old| old.1 == place);
                        let more = old.filter(|old| old.2 & !access != 0);
                        let own = more.map(|old| old.0);
                        if byte == 0 || own != before {
                            serial += 1;
                        }
                        before = own;
                        let access = access | more.map_or(0, |old| old.2);
                        bytes.insert(at + byte, (serial, place, access));
                    }
                    let bits = Access::from_bits(access).unwrap();
                    prop_assert_eq!(iotlb.insert(range(at, size), Gpa(gpa), bits), changes);
                }
                Step::Remove(at, size) => {
                    let hit: Vec<u64> = bytes.range(at..at + size).map(|(_, b)| b.0).collect();
                    bytes.retain(|_, byte| !hit.contains(&byte.0));
                    iotlb.remove(range(at, size));
                }
            }
            for at in 0..90 {
                for need in [Access::READ, Access::WRITE, Access::BOTH] {
                    let fits = |at| bytes.get(&at).filter(|byte| byte.2 & need.bits() == need.bits());
                    let naive = fits(at).map(|&(_, gpa, _)| {
                        let goes_on = |n: &u64| fits(at + n).is_some_and(|b: &Byte| b.1 == gpa + n);
                        (gpa, (0..90).take_while(goes_on).count() as u64)
                    });
                    prop_assert_eq!(found(&iotlb, at, 90, need), naive, "at {} for {:?}", at, need);
                    prop_assert_eq!(iotlb.knows(Iova(at), need), naive.is_some());
                }
            }
        }
    }

    #[test]
    fn lists_in_order_are_a_tree(keys in prop::collection::vec((0_u64..3000, any::<bool>()), 1..3000)) {
        let (mut sorted, mut tree) = (Sorted::default(), BTreeMap::new());
        for (key, add) in keys {
            if add && !tree.contains_key(&key) {
                sorted.insert(key, key + 7);
                tree.insert(key, key + 7);
            } else if let Some(at) = sorted.until(key) {
                let (found, _) = sorted.get(at).unwrap();
                sorted.remove(at);
                tree.remove(&found).unwrap();
            }
            prop_assert_eq!(sorted.len(), tree.len());
            let until = sorted.until(key);
            let naive = tree.range(..=key).next_back().map(|(k, v)| (*k, *v));
            prop_assert_eq!(until.and_then(|at| sorted.get(at)), naive);
            let next = until.and_then(|at| sorted.after(at));
            let after = tree.range(key + 1..).next().map(|(k, v)| (*k, *v));
            if until.is_some() {
                prop_assert_eq!(next.and_then(|at| sorted.get(at)), after);
            }
            let behind = sorted.behind(key).and_then(|at| sorted.get(at));
            let first = tree.iter().next().map(|(k, v)| (*k, *v));
            prop_assert_eq!(behind, after.or(first));
        }
    }
}
