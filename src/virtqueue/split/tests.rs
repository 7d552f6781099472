#![forbid(unsafe_code)]

use crate::memory::AreaError;
use crate::testing::{BUFFERS, FakeDriver, Frame, RINGS};
use crate::virtio_net::VIRTIO_F_EVENT_IDX;
use crate::virtqueue::{Ring, SplitRing, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::super::notify::tests::calls_for;
use super::event_passed;

fn split(driver: &mut FakeDriver) -> &mut SplitRing {
    SplitRing::of(&mut driver.virtqueue().ring).unwrap()
}

fn with_event_index() -> FakeDriver {
    FakeDriver::split(256)
        .feature(VIRTIO_F_EVENT_IDX)
        .with_calls()
}

fn map(driver: &FakeDriver, change: impl FnOnce(&mut super::RingConfig)) -> Result<(), AreaError> {
    let mut config = driver.config();
    change(&mut config);
    SplitRing::map(config, &driver.memory.table()).map(|_| ())
}

#[test]
fn the_way_from_an_earlier_index_is_no_longer_than_the_ring() {
    let mut driver = FakeDriver::split(8).starting_at(3);
    let ring = split(&mut driver);
    for (before, slots) in [
        (3, 0),
        (1, 2),
        (0xfffe, 5),
        (0xfffb, 8),
        (0xfff0, 8),
        (4, 8),
    ] {
        assert_eq!(ring.slots_since(before), slots);
    }
}

#[test]
fn an_event_index_inside_the_step_is_passed() {
    assert!(event_passed(5, 6, 5));
    assert!(event_passed(5, 9, 3));
    assert!(!event_passed(5, 5, 3));
    assert!(!event_passed(5, 9, 6));
}

#[test]
fn an_event_index_is_passed_across_the_wrap() {
    assert!(event_passed(0xffff, 2, 0xfffe));
    assert!(event_passed(0, 1, 0xffff));
    assert!(!event_passed(2, 2, 0xfffe));
}

#[test]
fn an_event_index_beyond_the_wrap_is_met() {
    let mut driver = with_event_index().starting_at(0xfff0);
    calls_for(&mut driver, 1);
    driver.call_after(2);
    assert_eq!(calls_for(&mut driver, 17), 0);
    assert_eq!(calls_for(&mut driver, 1), 1);
}

#[test]
fn the_flags_mean_nothing_beside_an_event_index() {
    let mut driver = with_event_index();
    driver.set_flags(VRING_AVAIL_F_NO_INTERRUPT);
    calls_for(&mut driver, 1);
    driver.call_after(1);
    assert_eq!(calls_for(&mut driver, 1), 1);
}

#[test]
fn kicks_are_wanted_or_not_by_a_flag() {
    let mut driver = FakeDriver::split(8);
    let view = driver.virtqueue().view();
    view.want_kicks(false, 0);
    assert_eq!(driver.used_flags(), VRING_USED_F_NO_NOTIFY);
    view.want_kicks(true, 0);
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn kicks_are_wanted_from_an_index_when_that_was_negotiated() {
    let mut driver = FakeDriver::split(8).feature(VIRTIO_F_EVENT_IDX);
    let view = driver.virtqueue().view();
    view.want_kicks(true, 7);
    assert_eq!(driver.kick_after(), 7);
    view.want_kicks(false, 9);
    assert_eq!(driver.kick_after(), 7);
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn a_view_tells_how_many_chains_wait() {
    let mut driver = FakeDriver::split(8).starting_at(0xfffe);
    let view = driver.virtqueue().view();
    assert_eq!(view.available(0xfffe), 0);
    for seed in 0..5 {
        driver.send(&Frame::new(64, seed));
    }
    assert_eq!(view.available(0xfffe), 5);
    assert_eq!(view.available(3), 0);
    driver.set_available_index(0x7000);
    assert_eq!(view.available(0xfffe), 8, "never more than the ring holds");
}

#[test]
fn a_ring_never_claims_more_chains_than_it_holds() {
    let mut driver = FakeDriver::split(8).starting_at(0xfffe);
    for index in [6, 7, 0x7000, 0xfffd] {
        driver.set_available_index(index);
        assert_eq!(split(&mut driver).available(u16::MAX), 8);
    }
    driver.set_available_index(5);
    assert_eq!(split(&mut driver).available(u16::MAX), 7);
}

#[test]
fn a_view_outlives_its_ring() {
    let mut driver = FakeDriver::split(8);
    let view = driver.virtqueue().view();
    driver.stop();
    driver.send(&Frame::new(64, 1));
    assert_eq!(view.available(0), 1);
}

#[test]
fn a_ring_resumes_where_the_used_index_is() {
    let mut driver = FakeDriver::split(8).starting_at(5);
    let mut config = driver.config();
    config.base = 3;
    let ring = SplitRing::map(config, &driver.memory.table()).unwrap();
    assert_eq!(ring.resumed(), Some(5));
    assert_eq!(ring.position(), 5);
    assert_eq!(driver.virtqueue().resumed(), None);
}

#[test]
fn areas_must_be_aligned() {
    let driver = FakeDriver::split(8);
    assert_eq!(map(&driver, |_| {}), Ok(()));
    let table = map(&driver, |config| config.areas.descriptors.0 += 8);
    assert!(matches!(table, Err(AreaError::Unaligned { align: 16, .. })));
    let available = map(&driver, |config| config.areas.available.0 += 1);
    assert!(matches!(available, Err(AreaError::Unaligned { .. })));
    let used = map(&driver, |config| config.areas.used.0 += 2);
    assert!(matches!(used, Err(AreaError::Unaligned { align: 4, .. })));
}

#[test]
fn areas_must_be_mapped_to_their_last_byte() {
    let driver = FakeDriver::split(8).feature(VIRTIO_F_EVENT_IDX);
    // Table, available and used ring of 8, with their event indices.
    let end = |len: u64| {
        let at = (RINGS.end - len) & !15;
        driver.memory.uva(at)
    };
    assert_eq!(map(&driver, |c| c.areas.descriptors = end(128)), Ok(()));
    assert_eq!(map(&driver, |c| c.areas.available = end(22)), Ok(()));
    assert_eq!(map(&driver, |c| c.areas.used = end(70)), Ok(()));
    for (area, len) in [(0, 112), (1, 16), (2, 64)] {
        let outcome = map(&driver, |c| match area {
            0 => c.areas.descriptors = end(len),
            1 => c.areas.available = end(len),
            _ => c.areas.used = end(len),
        });
        let unmapped = matches!(outcome, Err(AreaError::Unmapped { .. }));
        assert!(unmapped, "area {area}: {outcome:?}");
    }
}

#[test]
fn the_event_index_belongs_to_its_area() {
    let driver = FakeDriver::split(8).feature(VIRTIO_F_EVENT_IDX);
    // The region ends on 16 bytes; 20 bytes of an available ring of 8 end 4 before that.
    let at = driver.memory.uva(RINGS.end - 20);
    let unmapped = map(&driver, |config| config.areas.available = at);
    assert!(matches!(unmapped, Err(AreaError::Unmapped { len: 22, .. })));
    let without = map(&driver, |config| {
        config.areas.available = at;
        config.event_idx = false;
    });
    assert_eq!(without, Ok(()));
}

#[test]
fn an_area_in_two_regions_is_refused() {
    let driver = FakeDriver::split(256);
    let at = driver.memory.uva(BUFFERS.end - 16);
    let outcome = map(&driver, |config| config.areas.descriptors = at);
    assert!(matches!(outcome, Err(AreaError::Unmapped { .. })));
}

#[test]
fn a_size_that_is_no_power_of_two_is_refused() {
    let driver = FakeDriver::split(256);
    for size in [0, 3, 100, 255] {
        assert!(map(&driver, |config| config.size = size).is_err(), "{size}");
    }
}

#[test]
fn used_elements_are_not_visible_before_they_are_published() {
    let mut driver = FakeDriver::split(8);
    let ring = split(&mut driver);
    ring.take(1);
    ring.push_used(3, 1, 7);
    assert_eq!(driver.used(), []);
    assert!(split(&mut driver).publish_used());
    assert_eq!(driver.used().len(), 1);
}

#[test]
fn the_word_to_wait_for_is_the_available_index() {
    let mut driver = FakeDriver::split(8).starting_at(0x105);
    let monitor = driver.virtqueue().view().monitor(0x105);
    assert_eq!(monitor.word, split(&mut driver).available_index.as_ptr());
    assert_eq!((monitor.mask, monitor.value), (7, 5));
    assert!(!monitor.wake_on_match);
}
