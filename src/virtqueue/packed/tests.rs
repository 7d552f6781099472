#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use proptest::prelude::*;

use super::*;
use crate::testing::{Buffer, FakeDriver, Frame, RINGS};
use crate::virtio_net::VIRTIO_F_EVENT_IDX;

fn packed(driver: &mut FakeDriver) -> &mut PackedRing {
    PackedRing::of(&mut driver.virtqueue().ring).unwrap()
}

fn map(driver: &FakeDriver, change: impl FnOnce(&mut RingConfig)) -> Result<(), AreaError> {
    let mut config = driver.config();
    change(&mut config);
    PackedRing::map(config, &driver.memory.table()).map(|_| ())
}

/// `position`, one descriptor further on.
fn step(position: u16, size: u16) -> u16 {
    if (position & 0x7fff) + 1 == size {
        (position ^ WRAP) & WRAP
    } else {
        position + 1
    }
}

/// The flags of the descriptor at `index`.
fn flags(driver: &FakeDriver, index: u16) -> u16 {
    let at = driver.table() + 16 * u64::from(index) + 14;
    u16::from_le_bytes(driver.memory.read(at, 2).try_into().unwrap())
}

#[test]
fn a_position_wraps_at_any_size() {
    let start = Position(WRAP | 3);
    assert_eq!(start.after(1, 5), Position(WRAP | 4));
    assert_eq!(start.after(2, 5), Position(0));
    assert_eq!(start.after(5, 5), Position(3));
    assert_eq!(Position(4).after(1, 5), Position(WRAP));
    let last = Position(32767);
    assert_eq!(last.after(1, 32768), Position(WRAP));
    assert_eq!(last.after(32768, 32768), Position(WRAP | 32767));
    assert_eq!(Position(0).after(1, 1), Position(WRAP));
}

#[test]
fn the_way_from_an_earlier_position_is_no_longer_than_the_ring() {
    for start in [WRAP | 3, 3] {
        let mut driver = FakeDriver::packed(5).starting_at(start);
        let ring = packed(&mut driver);
        let mut position = ring.position();
        for slots in 0..5 {
            assert_eq!(ring.slots_since(position), slots);
            position = match position & 0x7fff {
                0 => (position ^ WRAP) & WRAP | 4,
                _ => position - 1,
            };
        }
        // A whole turn, and more than that.
        assert_eq!(ring.slots_since(start ^ WRAP), 5);
        assert_eq!(ring.slots_since(start + 1), 5);
    }
}

#[test]
fn the_first_used_descriptor_becomes_visible_last() {
    let mut driver = FakeDriver::packed(4).starting_at(WRAP | 2);
    let ring = packed(&mut driver);
    for id in [7, 8, 9] {
        ring.push_used(id, 1, 5);
        ring.take(1);
    }
    // Those behind it are written, the last one in the next turn.
    let used = WRAP_BITS | VRING_DESC_F_WRITE;
    assert_eq!(flags(&driver, 3), used);
    assert_eq!(flags(&driver, 0), VRING_DESC_F_WRITE);
    assert_eq!(flags(&driver, 2), 0, "still the driver's");
    assert!(packed(&mut driver).publish_used());
    assert_eq!(flags(&driver, 2), used);
    assert!(!packed(&mut driver).publish_used(), "there is no more");
}

#[test]
fn a_used_descriptor_has_id_and_length_and_keeps_its_address() {
    let mut driver = FakeDriver::packed(4);
    let at = driver.describe(0, Buffer::writable(100));
    driver.make_available(0);
    let ring = packed(&mut driver);
    ring.push_used(0x1234, 1, 0x56789);
    ring.take(1);
    ring.publish_used();
    let bytes = driver.memory.read(driver.table(), 16);
    assert_eq!(bytes[..8], at.to_le_bytes());
    assert_eq!(bytes[8..12], 0x56789_u32.to_le_bytes());
    assert_eq!(bytes[12..14], 0x1234_u16.to_le_bytes());
    assert_eq!(bytes[14..], 0x8082_u16.to_le_bytes());
}

#[test]
fn nothing_is_taken_that_is_not_marked_for_this_turn() {
    for (position, marks) in [(WRAP, 0x80), (0, 0x8000)] {
        let mut driver = FakeDriver::packed(4).starting_at(position);
        for wrong in [0, 0x80, 0x8000, 0x8080] {
            let at = driver.table() + 14;
            driver.memory.write(at, &u16::to_le_bytes(wrong));
            let ring = packed(&mut driver);
            assert_eq!(ring.available(9), if wrong == marks { 4 } else { 0 });
            assert_eq!(ring.run(9).peek(0).is_some(), wrong == marks);
        }
    }
}

#[test]
fn a_base_outside_the_ring_is_refused() {
    let driver = FakeDriver::packed(5);
    for base in [5, 0x7fff, 0x8005, 0xffff] {
        let outcome = map(&driver, |config| config.base = base);
        let expected = AreaError::Base {
            base: base & 0x7fff,
            size: 5,
        };
        assert_eq!(outcome, Err(expected));
    }
    for base in [0, 4, 0x8000, 0x8004] {
        assert_eq!(map(&driver, |config| config.base = base), Ok(()));
    }
    assert!(map(&driver, |config| config.size = 0).is_err());
}

#[test]
fn areas_must_be_aligned() {
    let driver = FakeDriver::packed(5);
    assert_eq!(map(&driver, |_| {}), Ok(()));
    let ring = map(&driver, |config| config.areas.descriptors.0 += 8);
    assert!(matches!(ring, Err(AreaError::Unaligned { align: 16, .. })));
    for odd in [1, 3] {
        let driver_area = map(&driver, |config| config.areas.available.0 += odd);
        assert!(matches!(driver_area, Err(AreaError::Unaligned { .. })));
        let device_area = map(&driver, |config| config.areas.used.0 += odd);
        assert!(matches!(device_area, Err(AreaError::Unaligned { .. })));
    }
}

#[test]
fn areas_must_be_mapped_to_their_last_byte() {
    let driver = FakeDriver::packed(5);
    let end = |len: u64| driver.memory.uva(RINGS.end - len);
    assert_eq!(map(&driver, |c| c.areas.descriptors = end(80)), Ok(()));
    assert_eq!(map(&driver, |c| c.areas.available = end(4)), Ok(()));
    assert_eq!(map(&driver, |c| c.areas.used = end(4)), Ok(()));
    for (area, len) in [(0, 64), (1, 2), (2, 2)] {
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
fn kicks_are_wanted_or_not_by_a_flag() {
    let mut driver = FakeDriver::packed(8);
    let view = driver.virtqueue().view();
    view.want_kicks(false, WRAP);
    assert_eq!(driver.used_flags(), VRING_PACKED_EVENT_FLAG_DISABLE);
    view.want_kicks(true, WRAP | 3);
    assert_eq!(driver.used_flags(), VRING_PACKED_EVENT_FLAG_ENABLE);
    assert_eq!(driver.kick_after(), 0);
}

#[test]
fn kicks_are_wanted_from_a_position_when_that_was_negotiated() {
    let mut driver = FakeDriver::packed(8).feature(VIRTIO_F_EVENT_IDX);
    let view = driver.virtqueue().view();
    view.want_kicks(true, WRAP | 3);
    assert_eq!(driver.used_flags(), VRING_PACKED_EVENT_FLAG_DESC);
    assert_eq!(driver.kick_after(), WRAP | 3);
    view.want_kicks(false, WRAP | 4);
    assert_eq!(driver.used_flags(), VRING_PACKED_EVENT_FLAG_DISABLE);
}

#[test]
fn a_view_tells_how_many_descriptors_wait() {
    for start in [WRAP, WRAP | 3, 3] {
        let mut driver = FakeDriver::packed(5).starting_at(start);
        let view = driver.virtqueue().view();
        assert_eq!(view.available(start), 0);
        driver.send(&Frame::new(64, 1));
        driver.offer(&[10, 64].map(Buffer::readable));
        assert_eq!(view.available(start), 3);
        assert_eq!(view.available(step(start, 5)), 2);
        driver.offer(&[10, 64].map(Buffer::readable));
        assert_eq!(view.available(start), 5);
    }
}

#[test]
fn a_view_of_no_place_in_the_ring_sees_nothing() {
    let mut driver = FakeDriver::packed(5);
    let view = driver.virtqueue().view();
    for position in [5, 0x7fff, 0x8005, 0xffff] {
        assert_eq!(view.available(position), 0);
        view.monitor(position);
    }
}

#[test]
fn the_word_to_wait_for_is_the_flags_of_the_next_descriptor() {
    let mut driver = FakeDriver::packed(5).starting_at(3);
    for position in [3, 4, WRAP, WRAP | 1] {
        let view = driver.virtqueue().view();
        let monitor = view.monitor(position);
        let word = packed(&mut driver).descriptors.flags_ptr(position & 7);
        assert_eq!(monitor.word, word);
        assert!(monitor.wake_on_match);
        let met = |driver: &FakeDriver| flags(driver, position & 7) & monitor.mask == monitor.value;
        assert!(!met(&driver));
        driver.send(&Frame::new(64, 1));
        assert!(met(&driver));
        driver.dequeue(1);
        assert!(!met(&driver), "it was used");
        driver.used();
    }
}

#[test]
fn an_event_outside_the_ring_does_no_harm() {
    let mut driver = FakeDriver::packed(5)
        .feature(VIRTIO_F_EVENT_IDX)
        .with_calls();
    for event in [5, 0x7fff, 0x8005, 0xffff] {
        driver.call_after(event);
        for _ in 0..7 {
            driver.send(&Frame::new(64, 1));
            assert_eq!(driver.dequeue(1).len(), 1);
            driver.used();
        }
    }
    for flags in [3, 0xfffc, 0xffff] {
        driver.set_flags(flags);
        driver.send(&Frame::new(64, 1));
        assert_eq!(driver.dequeue(1).len(), 1);
        driver.used();
    }
}

#[test]
fn an_event_means_nothing_when_it_was_not_negotiated() {
    let mut driver = FakeDriver::packed(8).with_calls();
    driver.call_after(5);
    for _ in 0..3 {
        driver.send(&Frame::new(64, 1));
        driver.dequeue(1);
        assert_eq!(driver.calls(), 1);
    }
}

/// Sizes of rings, small ones more often.
fn sizes() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 1_u16..20, 1 => 20_u16..2000, 1 => Just(32768_u16)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_call_is_made_when_the_event_is_passed_step_by_step(
        size in sizes(),
        start in any::<u16>(),
        bursts in proptest::collection::vec((any::<u16>(), -2_i16..3, 0_u16..32), 1..20),
    ) {
        let inside = |position: u16| position & WRAP | ((position & !WRAP) % size);
        let start = inside(start);
        let mut driver = FakeDriver::packed(size).starting_at(start).feature(VIRTIO_F_EVENT_IDX);
        let mut position = start;
        let mut first = true;
        for (event, near, slots) in bursts {
            let slots = slots.min(size);
            // Anywhere in the ring, or around where the burst ends.
            let event = if near == 0 {
                inside(event)
            } else {
                let steps = slots.saturating_add_signed(near);
                (0..steps).fold(position, |at, _| step(at, size))
            };
            driver.call_after(event);
            let mut passed = false;
            for _ in 0..slots {
                passed |= position == event;
                position = step(position, size);
            }
            let ring = packed(&mut driver);
            if slots == 0 {
                continue;
            }
            ring.push_used(0, slots, 0);
            ring.take(slots);
            prop_assert!(ring.publish_used());
            prop_assert_eq!(ring.wants_call(), passed | first, "event {:#x}", event);
            prop_assert_eq!(ring.position(), position);
            first = false;
        }
    }
}
