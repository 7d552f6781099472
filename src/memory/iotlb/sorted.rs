//! Things in the order of their keys, in lists of bounded length: looking one up takes two binary
//! searches and cannot panic, which the trees of the standard library can; adding or removing one
//! moves no more than a list.
#![forbid(unsafe_code)]

/// A list that grows beyond this becomes two.
const LONGEST: usize = 512;

#[derive(Debug)]
pub(super) struct Sorted<T> {
    /// None is empty, and all keys of one come before all keys of the next.
    lists: Vec<Vec<(u64, T)>>,
    len: usize,
}

/// Where something stands, until the next change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    list: usize,
    nth: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self {
            lists: Vec::new(),
            len: 0,
        }
    }
}

impl<T: Copy> Sorted<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The last one whose key is at most `key`.
    pub(super) fn until(&self, key: u64) -> Option<Position> {
        let begins = |list: &Vec<(u64, T)>| list.first().is_some_and(|&(first, _)| first <= key);
        let list = self.lists.partition_point(begins).checked_sub(1)?;
        let items = self.lists.get(list)?;
        let nth = items.partition_point(|&(at, _)| at <= key).checked_sub(1)?;
        Some(Position { list, nth })
    }

    pub(super) fn get(&self, at: Position) -> Option<(u64, T)> {
        self.lists.get(at.list)?.get(at.nth).copied()
    }

    /// The one after `at`; `None` when that was the last.
    pub(super) fn after(&self, at: Position) -> Option<Position> {
        let Position { list, nth } = at;
        let next = match nth + 1 < self.lists.get(list)?.len() {
            true => Position { list, nth: nth + 1 },
            false => Position {
                list: list + 1,
                nth: 0,
            },
        };
        self.get(next).map(|_| next)
    }

    /// The first one whose key is more than `key`; otherwise the first of all.
    pub(super) fn behind(&self, key: u64) -> Option<Position> {
        let first = Position { list: 0, nth: 0 };
        let next = self.until(key).map_or(Some(first), |at| self.after(at));
        next.or_else(|| self.get(first).map(|_| first))
    }

    /// Adds `item` under a key that is not there yet.
    pub(super) fn insert(&mut self, key: u64, item: T) {
        let place = self.until(key);
        let place = place.map_or(Position { list: 0, nth: 0 }, |at| Position {
            nth: at.nth + 1,
            ..at
        });
        self.len += 1;
        let Some(items) = self.lists.get_mut(place.list) else {
            self.lists.push(vec![(key, item)]);
            return;
        };
        items.insert(place.nth.min(items.len()), (key, item));
        if items.len() > LONGEST {
            let half = items.split_off(LONGEST / 2);
            self.lists.insert(place.list + 1, half);
        }
    }

    /// Takes out what stands at `at`.
    pub(super) fn remove(&mut self, at: Position) {
        let Some(items) = self.lists.get_mut(at.list) else {
            return;
        };
        if at.nth < items.len() {
            items.remove(at.nth);
            self.len -= 1;
        }
        if items.is_empty() {
            self.lists.remove(at.list);
        }
    }
}
