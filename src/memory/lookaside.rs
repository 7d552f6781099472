//! The cache of a virtqueue in front of the [`Iotlb`] of its device.
//!
//! Direct-mapped by the page of an address. What is in there was true when it was put in, and stays
//! until [`Lookaside::forget`]: whoever changes a translation calls that while no burst runs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use super::shared::{Place, words};
use super::{
    Access, Ahead, Cursor, Extent, Fault, Gpa, GuestRange, Iotlb, Iova, IovaRange, Lookups,
    MemoryTable, Miss, PAGE_BITS, Piece, Space, Translate,
};

const PAGE: u64 = 1 << PAGE_BITS;

/// Pages of buffers that the cache remembers.
const BUFFERS: usize = 1024;
/// Pages of indirect tables that the cache remembers.
const TABLES: usize = 256;
/// Translations that are put together for a buffer that crosses from one to the next.
const JOINED: usize = 64;
/// Questions that a virtqueue remembers to have asked, and the most that wait to be sent.
const ASKED: usize = 128;

/// Addresses that lie side by side in our address space.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u64,
    /// 0 when nothing is known.
    len: u64,
    place: Place,
    gpa: Gpa,
}

const EMPTY: Slot = Slot {
    first: 0,
    len: 0,
    place: Place::NOWHERE,
    gpa: Gpa(0),
};

/// Slots for `N` pages, a power of two.
struct Cache<const N: usize>(Box<[Slot]>);

impl<const N: usize> Cache<N> {
    fn new() -> Self {
        Self(vec![EMPTY; N].into())
    }

    /// The slot for the page of `at`.
    #[inline(always)]
    fn slot(&self, at: u64) -> Option<&Slot> {
        #[allow(clippy::cast_possible_truncation, reason = "the mask cuts it anyway")]
        let page = (at >> PAGE_BITS) as usize;
        self.0.get(page & (N - 1))
    }

    fn put(&mut self, at: u64, slot: Slot) {
        #[allow(clippy::cast_possible_truncation, reason = "the mask cuts it anyway")]
        let page = (at >> PAGE_BITS) as usize;
        if let Some(place) = self.0.get_mut(page & (N - 1)) {
            *place = slot;
        }
    }

    fn forget(&mut self, range: IovaRange) {
        for slot in &mut self.0 {
            let known = IovaRange::new(Iova(slot.first), slot.len);
            if known.is_some_and(|known| known.overlaps(range)) {
                *slot = EMPTY;
            }
        }
    }
}

/// Questions of a virtqueue that the connection's thread has yet to send.
pub struct Questions {
    list: Mutex<List>,
    /// Wakes that thread; never waits.
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug)]
struct List {
    items: [Miss; ASKED],
    len: usize,
}

impl fmt::Debug for Questions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Questions").field(&self.list).finish()
    }
}

impl Questions {
    /// No questions yet; `wake` is called, on an lcore, after some were noted.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            list: Mutex::new(List {
                items: [Miss::default(); ASKED],
                len: 0,
            }),
            wake: Box::new(wake),
        }
    }

    /// Takes out all that were noted.
    pub fn take(&self) -> Vec<Miss> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let len = std::mem::take(&mut list.len);
        list.items.get(..len).unwrap_or_default().to_vec()
    }

    /// Notes a question; whether there was room, and nobody else had the list.
    fn note(&self, miss: Miss) -> bool {
        let mut list = match self.list.try_lock() {
            Ok(list) => list,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let len = list.len;
        let Some(place) = list.items.get_mut(len) else {
            return false;
        };
        *place = miss;
        list.len = len + 1;
        true
    }
}

/// Asks for what a virtqueue misses, each thing once.
#[derive(Debug)]
struct Asker {
    questions: Arc<Questions>,
    /// The last ones that were asked, in turn.
    asked: [Miss; ASKED],
    next: usize,
    /// [`Iotlb::age`] when they were.
    age: u64,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It was asked before.
    Known,
    /// It will be sent.
    Noted,
    /// It must be asked again later.
    Refused,
}

impl Asker {
    fn ask(&mut self, miss: Miss, age: u64) -> Answer {
        if self.age != age {
            self.asked = [Miss::default(); ASKED];
            self.age = age;
        }
        if self.asked.contains(&miss) {
            return Answer::Known;
        }
        if !self.questions.note(miss) {
            return Answer::Refused;
        }
        if let Some(place) = self.asked.get_mut(self.next) {
            *place = miss;
        }
        self.next = (self.next + 1) % ASKED;
        Answer::Noted
    }
}

/// What a virtqueue knows of the [`Iotlb`], for one direction.
pub struct Lookaside {
    table: Arc<MemoryTable>,
    iotlb: Arc<Iotlb>,
    /// What the virtqueue does with buffers. All in `buffers` allow it.
    need: Access,
    buffers: Cache<BUFFERS>,
    tables: Cache<TABLES>,
    asker: Asker,
    ahead: Ahead,
}

impl fmt::Debug for Lookaside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = f.debug_struct("Lookaside");
        words.field("need", &self.need).finish_non_exhaustive()
    }
}

impl Lookaside {
    /// An empty cache for a virtqueue that uses its buffers for `need`.
    pub fn new(
        table: Arc<MemoryTable>,
        iotlb: Arc<Iotlb>,
        need: Access,
        questions: Arc<Questions>,
    ) -> Self {
        Self {
            asker: Asker {
                questions,
                asked: [Miss::default(); ASKED],
                next: 0,
                age: iotlb.age(),
            },
            table,
            iotlb,
            need,
            ahead: Ahead::default(),
            buffers: Cache::new(),
            tables: Cache::new(),
        }
    }

    /// Translates for the length of a burst.
    #[inline(always)]
    pub fn cursor(&mut self) -> IotlbCursor<'_> {
        IotlbCursor {
            memory: self.table.cursor(),
            table: &self.table,
            iotlb: &self.iotlb,
            need: self.need,
            buffers: &mut self.buffers,
            tables: &mut self.tables,
            asker: &mut self.asker,
            ahead: &mut self.ahead,
            asked: 0,
            full: false,
            lookups: Lookups::default(),
        }
    }

    /// Has the ring be looked through no further than `window` slots ahead, for now.
    pub fn look_near(&mut self, window: u16) {
        self.ahead.window = window.min(Ahead::FAR);
    }

    /// Forgets all that has to do with `range`. Whoever has it like this keeps bursts away, so no
    /// burst goes on with what was forgotten.
    pub fn forget(&mut self, range: IovaRange) {
        self.buffers.forget(range);
        self.tables.forget(range);
    }
}

/// Behind an IOMMU: translates for a virtqueue whose [`Lookaside`] is for the same access.
#[derive(Debug)]
pub enum Translated<const WRITES: bool> {}

impl<const WRITES: bool> Space for Translated<WRITES> {
    const ASKS: bool = true;
    type Held<'m> = IotlbCursor<'m>;
    type Cursor<'h, 'm: 'h> = &'h mut IotlbCursor<'m>;

    #[inline(always)]
    fn hold<'m>(
        _memory: &'m MemoryTable,
        lookaside: &'m mut Option<Box<Lookaside>>,
    ) -> Option<IotlbCursor<'m>> {
        let need = if WRITES { Access::WRITE } else { Access::READ };
        let lookaside = lookaside.as_deref_mut()?;
        (lookaside.need == need).then(|| lookaside.cursor())
    }

    #[inline(always)]
    fn cursor<'h, 'm: 'h>(cursor: &'h mut IotlbCursor<'m>) -> &'h mut IotlbCursor<'m> {
        cursor
    }

    #[inline(always)]
    fn release(cursor: IotlbCursor<'_>) -> Lookups {
        cursor.finish()
    }
}

/// Translates I/O virtual addresses for the length of a burst.
pub struct IotlbCursor<'m> {
    memory: Cursor<'m>,
    table: &'m MemoryTable,
    iotlb: &'m Iotlb,
    need: Access,
    buffers: &'m mut Cache<BUFFERS>,
    tables: &'m mut Cache<TABLES>,
    asker: &'m mut Asker,
    ahead: &'m mut Ahead,
    /// Questions in this burst that nobody asked before.
    asked: usize,
    /// There is no use in more questions in this burst.
    full: bool,
    lookups: Lookups,
}

/// Bytes side by side, in both of our addresses.
struct Found<'m> {
    gpa: Gpa,
    range: GuestRange<'m>,
}

/// What `slot` has of the `len` bytes at `at`.
#[inline(always)]
fn hit<'m>(slot: &Slot, at: Iova, len: usize, table: &'m MemoryTable) -> Option<Found<'m>> {
    let skip = at.0.wrapping_sub(slot.first);
    if skip >= slot.len {
        return None;
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a slot is inside a region, which is mapped, so both fit an address"
    )]
    let (skip, left) = (skip as usize, (slot.len - skip) as usize);
    Some(Found {
        gpa: Gpa(slot.gpa.0.wrapping_add(skip as u64)),
        // SAFETY: `slot` was made of a range of the table that the lookaside holds, and which is
        // `table`, with `slot.len` bytes (`IotlbCursor::fill`).
        range: unsafe { slot.place.range(skip, len.min(left), table) },
    })
}

impl<'m> IotlbCursor<'m> {
    /// Ends the burst: the questions go out.
    #[inline(always)]
    pub fn finish(self) -> Lookups {
        if self.asked != 0 {
            wake(self.asker);
        }
        self.lookups
    }

    /// Asks the IOTLB what is at `at`, for a slot.
    fn fill(&mut self, at: Iova, len: usize, need: Access) -> Result<Slot, Fault> {
        let want = (len as u64).max(1);
        let looked = self
            .iotlb
            .look(|entries| match entries.extent(at, want, need, JOINED) {
                Some(extent) => Ok(extent),
                None => Err(()),
            });
        let Extent { iova, gpa, len } = match looked {
            Some(Ok(extent)) => extent,
            Some(Err(())) => return Err(self.miss(at, want, need)),
            // It changes just now.
            None => {
                self.full = true;
                return Err(Fault::Miss);
            }
        };
        // The part before `at` is of no use, but the slot is found by any address of the page.
        let skip = (at.0 - iova.0).min(at.0 & (PAGE - 1));
        let first = at.0 - skip;
        let gpa = Gpa(gpa.0.wrapping_add(first - iova.0));
        let len = usize::try_from(len - (first - iova.0)).unwrap_or(usize::MAX);
        // Translations are told as addresses of the frontend, inside regions; they are forgotten
        // before the table changes.
        let range = self.memory.piece(gpa, len).ok_or(Fault::Malformed)?;
        Ok(Slot {
            first,
            len: range.len() as u64,
            place: Place::of(range),
            gpa,
        })
    }

    /// Asks for `at`, and for all pages after it up to `len` bytes.
    fn miss(&mut self, at: Iova, len: u64, need: Access) -> Fault {
        let Self {
            iotlb,
            asker,
            asked,
            full,
            ..
        } = self;
        let age = iotlb.age();
        let last = at.0.saturating_add(len - 1);
        let looked = iotlb.look(|entries| {
            let mut page = at.0;
            for _ in 0..ASKED {
                let iova = Iova(page);
                // More than it remembers would be asked again and again.
                if *asked < ASKED && !entries.knows(iova, need) {
                    match asker.ask(Miss { iova, need }, age) {
                        Answer::Known => (),
                        Answer::Noted => *asked += 1,
                        Answer::Refused => *full = true,
                    }
                }
                match (page | (PAGE - 1)).checked_add(1) {
                    Some(next) if next <= last => page = next,
                    _ => break,
                }
            }
        });
        *full |= looked.is_none() || *asked >= ASKED;
        self.lookups.misses += 1;
        Fault::Miss
    }

    #[cold]
    #[inline(never)]
    fn find_buffer(&mut self, at: Iova, len: usize) -> Result<Found<'m>, Fault> {
        let slot = self.fill(at, len, self.need)?;
        self.buffers.put(at.0, slot);
        hit(&slot, at, len, self.table).ok_or(Fault::Malformed)
    }

    #[cold]
    #[inline(never)]
    fn find_table(&mut self, at: Iova, len: usize) -> Result<Found<'m>, Fault> {
        let slot = self.fill(at, len, Access::READ)?;
        self.tables.put(at.0, slot);
        hit(&slot, at, len, self.table).ok_or(Fault::Malformed)
    }

    #[inline(always)]
    fn buffer(&self, at: Iova, len: usize) -> Option<Found<'m>> {
        hit(self.buffers.slot(at.0)?, at, len, self.table)
    }
}

impl<'m> Translate<'m> for IotlbCursor<'m> {
    #[inline(always)]
    fn whole(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        if let Some(found) = self.buffer(at, len)
            && found.range.len() == len
        {
            self.lookups.hits += 1;
            return Some(found.range);
        }
        let found = self.find_buffer(at, len).ok()?;
        (found.range.len() == len).then_some(found.range)
    }

    #[inline(always)]
    fn known(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        let found = self.buffer(at, len)?;
        let whole = found.range.len() == len;
        self.lookups.hits += u64::from(whole);
        whole.then_some(found.range)
    }

    #[inline(always)]
    fn known_table(&mut self, at: Iova, len: usize) -> Option<GuestRange<'m>> {
        let found = hit(self.tables.slot(at.0)?, at, len, self.table)?;
        (found.range.len() == len).then_some(found.range)
    }

    #[inline(always)]
    fn piece(&mut self, at: Iova, len: usize) -> Result<Piece, Fault> {
        let found = match self.buffer(at, len) {
            Some(found) if found.range.len() == len => found,
            _ => self.find_buffer(at, len)?,
        };
        Ok(Piece {
            gpa: found.gpa,
            len: found.range.len(),
        })
    }

    fn descriptor_words(&mut self, at: Iova) -> Result<[u64; 2], Fault> {
        let mut fault = Fault::Malformed;
        let words = words(|filled, wanted| {
            let at = Iova(at.0.checked_add(filled as u64)?);
            let known = self.tables.slot(at.0);
            if let Some(found) = known.and_then(|slot| hit(slot, at, wanted, self.table)) {
                return Some(found.range);
            }
            match self.find_table(at, wanted) {
                Ok(found) => Some(found.range),
                Err(why) => {
                    fault = why;
                    None
                }
            }
        });
        words.ok_or(fault)
    }

    #[inline(always)]
    fn memory(&mut self) -> &mut Cursor<'m> {
        &mut self.memory
    }

    #[inline(always)]
    fn ahead(&mut self) -> Option<&mut Ahead> {
        Some(self.ahead)
    }

    #[inline(always)]
    fn asked(&self) -> bool {
        self.asked != 0
    }

    #[inline(always)]
    fn may_ask(&self) -> bool {
        !self.full
    }
}

#[cold]
#[inline(never)]
fn wake(asker: &Asker) {
    (asker.questions.wake)();
}
