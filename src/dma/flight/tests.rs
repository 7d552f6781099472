#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use super::*;

const NOTHING: Transfer = Transfer {
    from: Addr(0),
    to: Addr(0),
    len: 4,
};

fn plan(flight: &mut Flight<u32>, from: &[u8; 4], to: &mut [u8; 4]) -> bool {
    // SAFETY: the tests keep both longer than the flight.
    unsafe { flight.plan((from.as_ptr(), to.as_mut_ptr()), NOTHING, 77) }
}

/// Appends `packet`; the place of its slot, when it has copies.
fn append(flight: &mut Flight<u32>, packet: u32) -> Option<u16> {
    let mut at = None;
    flight.append(Some(packet), |_, place| at = Some(place));
    at
}

#[test]
fn slots_come_out_in_order_when_their_copies_have_ended() {
    let mut flight = Flight::new(4, 8);
    let (from, mut to) = ([1; 4], [0; 4]);
    for packet in 0..3 {
        assert!(plan(&mut flight, &from, &mut to));
        assert_eq!(append(&mut flight, packet), Some(packet as u16));
    }
    append(&mut flight, 3);
    assert!(!flight.fits(1));
    assert_eq!(flight.room(), 0);
    // Nobody asked whether it fits: the oldest slot does not land for it.
    flight.give(Given {
        id: 9,
        slots: 1,
        len: 0,
    });
    assert!(plan(&mut flight, &from, &mut to));
    assert_eq!(append(&mut flight, 4), None);
    assert_eq!(flight.land(|_, _| {}), None);
    assert_eq!(flight.len(), 4);
    assert_eq!(flight.planned(), 0);
    let board = Arc::clone(flight.board());
    board.done(1, Outcome::Copied);
    assert_eq!(flight.land(|_, _| {}), None);
    board.done(0, Outcome::Copied);
    assert_eq!(
        flight.land(|_, _| {}).map(|landed| landed.packet),
        Some(Some(0))
    );
    assert_eq!(
        flight.land(|_, _| {}).map(|landed| landed.packet),
        Some(Some(1))
    );
    assert_eq!(flight.land(|_, _| {}), None);
    board.done(2, Outcome::Copied);
    assert_eq!(
        flight.land(|_, _| {}).map(|landed| landed.packet),
        Some(Some(2))
    );
    assert_eq!(
        flight.land(|_, _| {}).map(|landed| landed.packet),
        Some(Some(3))
    );
    assert!(flight.is_empty());
    assert_eq!(to, [0; 4], "no engine was there");
}

#[test]
fn a_slot_with_a_failed_copy_is_copied_whole() {
    let mut flight = Flight::new(4, 8);
    let (from, mut one, mut two) = ([1, 2, 3, 4], [0; 4], [0; 4]);
    plan(&mut flight, &from, &mut one);
    plan(&mut flight, &from, &mut two);
    let place = append(&mut flight, 9).unwrap();
    let board = Arc::clone(flight.board());
    board.done(place, Outcome::Failed);
    board.give_up(place);
    let mut notes = Vec::new();
    let landed = flight.land(|note, len| notes.push((note, len))).unwrap();
    assert_eq!(notes, [(77, 4); 2]);
    assert_eq!((landed.packet, landed.redone), (Some(9), 2));
    assert_eq!((one, two), (from, from));
    assert_eq!(flight.take_events().errors, 1);
    assert_eq!(flight.take_events(), Events::default());
    // The next user of the place starts anew.
    for packet in 0..4 {
        append(&mut flight, packet);
    }
    assert_eq!(flight.land(|_, _| {}).map(|landed| landed.redone), Some(0));
}

#[test]
fn planned_copies_can_be_the_cpus_after_all() {
    let mut flight = Flight::new(4, 2);
    let (from, mut one, mut two) = ([1, 2, 3, 4], [0; 4], [0; 4]);
    assert!(plan(&mut flight, &from, &mut one));
    assert!(plan(&mut flight, &from, &mut two));
    assert!(!plan(&mut flight, &from, &mut two), "there is no room");
    assert_eq!(flight.planned(), 2);
    flight.copy_planned(|note, len| assert_eq!((note, len), (77, 4)));
    assert_eq!((one, two), (from, from));
    assert_eq!(append(&mut flight, 5), None);
    assert_eq!(
        flight.land(|_, _| {}).map(|landed| landed.packet),
        Some(Some(5))
    );
    assert!(plan(&mut flight, &from, &mut one), "and there is again");
}

#[test]
fn chains_come_out_with_their_slot() {
    let mut flight = Flight::<u32>::new(8, 8);
    let chain = |id| Given {
        id,
        slots: 1,
        len: u32::from(id) * 10,
    };
    for id in 0..3 {
        flight.give(chain(id));
    }
    flight.append(Some(1), |_, _| {});
    flight.give(chain(3));
    flight.append(None, |_, _| {});
    assert!(flight.fits(4));
    assert!(!flight.fits(5));
    assert_eq!(flight.land(|_, _| {}).map(|landed| landed.chains), Some(3));
    for id in 0..3 {
        assert_eq!(flight.next_chain(), Some(chain(id)));
    }
    let landed = flight.land(|_, _| {}).unwrap();
    assert_eq!((landed.packet, landed.chains), (None, 1));
    assert_eq!(flight.next_chain(), Some(chain(3)));
    assert_eq!(flight.next_chain(), None);
}

#[test]
fn a_copy_that_was_refused_is_done_and_is_no_error() {
    let mut flight = Flight::new(4, 8);
    let (from, mut to) = ([1; 4], [0; 4]);
    assert!(plan(&mut flight, &from, &mut to));
    append(&mut flight, 0);
    flight.board().done(0, Outcome::Refused);
    assert_eq!(flight.land(|_, _| {}).map(|landed| landed.redone), Some(1));
    assert_eq!(flight.take_events(), Events::default());
    assert_eq!(to, from);
}
