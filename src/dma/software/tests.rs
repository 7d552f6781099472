#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use super::*;

fn engine(size: u32) -> Software {
    Software::new(size, |body| {
        std::thread::Builder::new().spawn(body).map(|_| ())
    })
    .unwrap()
}

/// Polls until `count` copies were reported; their tags in order.
fn reports(engine: &mut Software, count: usize) -> Vec<Tag> {
    let mut tags = Vec::new();
    while tags.len() < count {
        let health = engine.poll(&mut |tag, outcome| {
            assert_eq!(outcome, Outcome::Copied);
            tags.push(tag);
        });
        assert_eq!(health, Health::Running);
        std::thread::yield_now();
    }
    tags
}

fn stage(engine: &mut Software, from: &[u8], to: &mut [u8], serial: u32) {
    let len = from.len() as u32;
    let copy = Transfer {
        from: engine.translate(from.as_ptr(), len).unwrap(),
        to: engine.translate(to.as_mut_ptr(), len).unwrap(),
        len,
    };
    // SAFETY: both outlive the engine's use: the tests wait for the report.
    unsafe { engine.stage(copy, Tag { serial, place: 3 }) };
}

#[test]
fn copies_are_done_and_reported_in_order() {
    let mut engine = engine(8);
    assert_eq!(engine.room(), 8);
    let from: Vec<u8> = (0..=255).collect();
    for turn in 0..1000_u32 {
        let mut to = vec![0; 4 * 64];
        for (nth, to) in (0..4).zip(to.chunks_mut(64)) {
            stage(
                &mut engine,
                &from[64 * nth..][..64],
                to,
                turn * 4 + nth as u32,
            );
        }
        assert_eq!(engine.room(), 4);
        engine.submit();
        let tags = reports(&mut engine, 4);
        let serials: Vec<_> = tags.iter().map(|tag| tag.serial).collect();
        assert_eq!(serials, (turn * 4..turn * 4 + 4).collect::<Vec<_>>());
        assert_eq!(to, from);
    }
}

#[test]
fn what_was_not_submitted_is_not_copied() {
    let mut engine = engine(8);
    let (from, mut to) = ([7; 32], [0; 32]);
    stage(&mut engine, &from, &mut to, 1);
    engine.poll(&mut |_, _| panic!("nothing was submitted"));
    engine.submit();
    reports(&mut engine, 1);
    assert_eq!(to, from);
}

#[test]
fn a_thread_that_sleeps_is_woken() {
    let mut engine = engine(8);
    let (from, mut to) = ([7; 32], [0; 32]);
    for turn in 0..3 {
        while !engine.ring.asleep.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        stage(&mut engine, &from, &mut to, turn);
        engine.submit();
        reports(&mut engine, 1);
    }
    assert_eq!(to, from);
}

#[test]
fn after_a_halt_nothing_is_written() {
    let mut engine = engine(8);
    assert_eq!(engine.halt(), Halted::Proven);
    let (from, mut to) = ([7; 32], [0; 32]);
    stage(&mut engine, &from, &mut to, 1);
    engine.submit();
    assert_eq!(engine.halt(), Halted::Proven);
    assert_eq!(to, [0; 32]);
}
