//! The copies that an engine has.
#![forbid(unsafe_code)]

use super::super::Tag;

/// A copy that the engine has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copying {
    serial: u32,
    pub(super) user: u32,
    pub(super) place: u16,
    live: bool,
}

/// Copies that the engine has, by number.
#[derive(Debug)]
pub(super) struct Copies {
    all: Box<[Copying]>,
    /// Numbers that are free: the first `left`.
    free: Box<[u16]>,
    pub(super) left: usize,
    serial: u32,
    /// Reports that were believed.
    pub(super) reported: u64,
}

impl Copies {
    /// Room for `most`.
    pub(super) fn new(most: usize) -> Self {
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        Self {
            all: vec![Copying::default(); most.into()].into(),
            free: (0..most).rev().collect(),
            left: most.into(),
            serial: 0,
            reported: 0,
        }
    }

    /// How many there can be.
    pub(super) fn depth(&self) -> usize {
        self.all.len()
    }

    /// How many there are.
    pub(super) fn outstanding(&self) -> usize {
        self.all.len() - self.left
    }

    /// Puts a number back on the list, on which it was before: there is room.
    fn release(free: &mut [u16], left: &mut usize, number: u16) {
        if let Some(place) = free.get_mut(*left) {
            *place = number;
            *left += 1;
        }
    }

    /// Notes a copy of the slot at `place` of flight `user`, if there is room.
    pub(super) fn add(&mut self, user: u32, place: u16) -> Option<Tag> {
        let last = self.left.checked_sub(1)?;
        let number = *self.free.get(last)?;
        self.left = last;
        self.serial = self.serial.wrapping_add(1);
        *self.all.get_mut(usize::from(number))? = Copying {
            serial: self.serial,
            user,
            place,
            live: true,
        };
        Some(Tag {
            serial: self.serial,
            place: number,
        })
    }

    /// The copy of `tag`, once.
    pub(super) fn take(&mut self, tag: Tag) -> Option<Copying> {
        let place = self.all.get_mut(usize::from(tag.place))?;
        if !place.live || place.serial != tag.serial {
            return None;
        }
        place.live = false;
        let copy = *place;
        Self::release(&mut self.free, &mut self.left, tag.place);
        self.reported = self.reported.wrapping_add(1);
        Some(copy)
    }

    /// Whether there are copies of flight `user`.
    pub(super) fn has(&self, user: u32) -> bool {
        let busy = |copy: &Copying| copy.live && copy.user == user;
        self.outstanding() != 0 && self.all.iter().any(busy)
    }

    /// Ends all copies that are left, each with `end`.
    pub(super) fn end_all(&mut self, mut end: impl FnMut(Copying)) {
        for (number, copy) in (0..).zip(&mut self.all) {
            if std::mem::replace(&mut copy.live, false) {
                Self::release(&mut self.free, &mut self.left, number);
                end(*copy);
            }
        }
    }
}
