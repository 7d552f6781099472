//! The device behind an IOMMU: what the frontend tells of it, and what it is asked.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::error::RequestError;
use super::super::features::VIRTIO_F_IOMMU_PLATFORM;
use super::super::vring::Translated;
use super::super::{say, wire};
use super::Device;
use crate::memory::{Access, Iova, IovaRange, Miss, PAGE_BITS, Uva};
use crate::virtqueue::{Looked, Virtqueue};

/// A question that got no answer is asked again, if it still matters.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to look for what a bell would tell.
const UNBIDDEN: Duration = Duration::from_millis(100);

/// Questions without an answer.
const MOST_PENDING: usize = 16_384;

/// With so few of them it is time for more, if there are any.
const FEW_PENDING: usize = 64;

/// Questions that are sent without an answer to one of them.
const MOST_UNDER_WAY: usize = 256;

/// The same while a driver flushes again and again: the frontend still has the next one at hand, and soon
/// deals with those about the rings.
const FEW_UNDER_WAY: usize = 16;

/// After so many questions without a flush there may be none for long.
const CALM: u32 = 1024;

/// After a flush a ring is looked through twice as far as it came since the one before, and at least so
/// many slots.
const LEAST_AHEAD: u16 = 4;

/// An invalidation of so many bytes is no single buffer's.
const LARGE: u64 = 1 << 20;

/// Types of `IOTLB_MSG` (vhost-user, "An IOTLB message").
const IOTLB_MISS: u8 = 1;
const IOTLB_UPDATE: u8 = 2;
const IOTLB_INVALIDATE: u8 = 3;

/// `VHOST_USER_BACKEND_IOTLB_MSG`, on the backend channel.
const BACKEND_IOTLB_MSG: u32 = 1;

/// Payload of an `IOTLB_MSG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) struct IotlbMessage {
    iova: u64,
    size: u64,
    uaddr: u64,
    perm: u8,
    kind: u8,
}

impl IotlbMessage {
    /// Its length in bytes, with what fills the last word.
    pub(in crate::session) const LEN: usize = 32;

    /// What stands in `body`; what that lacks counts as zero.
    pub(in crate::session) fn from_bytes(body: &[u8]) -> Self {
        let number = |at: usize| {
            let bytes = body.get(at..).and_then(<[u8]>::first_chunk);
            u64::from_ne_bytes(bytes.copied().unwrap_or_default())
        };
        let byte = |at| body.get(at).copied().unwrap_or_default();
        Self {
            iova: number(0),
            size: number(8),
            uaddr: number(16),
            perm: byte(24),
            kind: byte(25),
        }
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let words = [self.iova, self.size, self.uaddr].map(u64::to_ne_bytes);
        let rest = [self.perm, self.kind];
        for (to, from) in bytes.iter_mut().zip(words.iter().flatten().chain(&rest)) {
            *to = *from;
        }
        bytes
    }
}

/// What was asked: a page, and what it is needed for.
type Page = (u64, Access);

/// A question that has no answer yet.
#[derive(Clone, Copy, Debug)]
struct Question {
    /// At which address in the page.
    iova: Iova,
    /// Which one it was, and when; `None` until it is sent.
    sent: Option<(u64, Instant)>,
}

/// Questions to the frontend.
///
/// A frontend answers one after the other, and each takes it some time. So only a few are under way, and
/// what a vring needs to start is sent at once, without having to wait behind a ring full of buffers.
#[derive(Debug)]
pub(super) struct Asking {
    /// Those without an answer.
    pending: BTreeMap<Page, Question>,
    /// By vring, those of them that wait until fewer are under way. What is not pending any more, or was
    /// sent meanwhile, does not count.
    waiting: BTreeMap<u16, VecDeque<Page>>,
    /// The vring whose question was sent last.
    turn: u16,
    /// How many were sent.
    sent: u64,
    /// Those that were sent and have no answer, in their order.
    under_way: BTreeMap<u64, Page>,
    /// How many were sent since the last flush.
    since_flush: u32,
    /// A question was passed over. Whoever needs the answer has to ask again.
    passed_over: bool,
    /// Messages that the channel has not taken yet.
    unsent: Vec<u8>,
    /// There may be more to ask for than before: there was an answer, or much was forgotten.
    answers: bool,
    /// That there is no way to ask was logged.
    complained: bool,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            turn: 0,
            sent: 0,
            under_way: BTreeMap::new(),
            since_flush: CALM,
            passed_over: false,
            unsent: Vec::new(),
            answers: false,
            complained: false,
        }
    }
}

impl Asking {
    /// Asks for `miss` when it is the turn of vring `index`, unless that was done.
    fn ask(&mut self, index: u16, miss: Miss) {
        if let Some(page) = self.note(miss) {
            self.waiting.entry(index).or_default().push_back(page);
        }
    }

    /// Asks for `miss` next, unless that is under way.
    fn ask_at_once(&mut self, miss: Miss) {
        self.note(miss);
        self.send(page_of(miss));
    }

    /// Notes that `miss` is to be asked for; `None` if it was noted before, or there are too many.
    fn note(&mut self, miss: Miss) -> Option<Page> {
        let page = page_of(miss);
        if self.pending.contains_key(&page) || self.pending.len() >= MOST_PENDING {
            return None;
        }
        let Miss { iova, .. } = miss;
        self.pending.insert(page, Question { iova, sent: None });
        Some(page)
    }

    /// Sends the question for `page`, if it waits.
    fn send(&mut self, page: Page) {
        let Some(question) = self.pending.get_mut(&page) else {
            return;
        };
        if question.sent.is_some() {
            return;
        }
        self.sent += 1;
        self.since_flush = self.since_flush.saturating_add(1);
        self.under_way.insert(self.sent, page);
        question.sent = Some((self.sent, Instant::now()));
        // Frontends know no question for writing alone.
        let (_, need) = page;
        let wanted = match need {
            Access::READ => Access::READ,
            _ => Access::BOTH,
        };
        let message = IotlbMessage {
            iova: question.iova.0,
            size: 0,
            uaddr: 0,
            perm: wanted.bits(),
            kind: IOTLB_MISS,
        };
        let message = wire::request(BACKEND_IOTLB_MSG, &message.to_bytes());
        self.unsent.extend(message);
    }

    /// Sends as many of those that wait as may be under way, of each vring in turn.
    fn send_waiting(&mut self) {
        let most = match self.since_flush {
            ..CALM => FEW_UNDER_WAY,
            _ => MOST_UNDER_WAY,
        };
        while self.under_way.len() < most {
            let behind = self
                .turn
                .checked_add(1)
                .and_then(|next| self.waiting.range(next..).next());
            let Some((&index, _)) = behind.or_else(|| self.waiting.first_key_value()) else {
                return;
            };
            self.turn = index;
            match self.waiting.get_mut(&index).and_then(VecDeque::pop_front) {
                Some(page) => self.send(page),
                None => drop(self.waiting.remove(&index)),
            }
        }
    }

    /// Takes the questions out that an update of `range` for `access` answers.
    fn answered(&mut self, range: IovaRange, access: Access) {
        self.answers = true;
        let pages = range.pages(PAGE_BITS);
        let pages = (*pages.start(), Access::default())..=(*pages.end(), Access::BOTH);
        let asked = self.pending.range(pages);
        let answered = asked
            .filter(|&(&(_, need), question)| range.contains(question.iova) && access.covers(need))
            .map(|(&page, question)| (page, question.sent));
        for (page, sent) in answered.collect::<Vec<_>>() {
            self.pending.remove(&page);
            if let Some((number, _)) = sent {
                self.under_way.remove(&number);
                self.pass_over(number);
            }
        }
    }

    /// Forgets the questions before this one, which has its answer. Frontends keep the order, and say
    /// nothing when there was nothing at an address; there may be something by now.
    fn pass_over(&mut self, number: u64) {
        let later = self.under_way.split_off(&number);
        for page in std::mem::replace(&mut self.under_way, later).into_values() {
            self.pending.remove(&page);
            self.passed_over = true;
        }
    }

    /// Forgets all questions; those that still matter will come again.
    fn forget(&mut self) {
        self.pending.clear();
        self.waiting.clear();
        self.under_way.clear();
        self.withdraw();
    }

    /// The driver flushed all that was told. Forgets what waits to be asked; what still matters will come
    /// again.
    fn flushed(&mut self) {
        self.since_flush = 0;
        self.waiting.clear();
        self.pending.retain(|_, question| question.sent.is_some());
    }

    /// Forgets what got no answer for too long; whether there was any.
    fn forget_old(&mut self) -> bool {
        let mut any = false;
        while let Some(oldest) = self.under_way.first_entry() {
            let sent = self
                .pending
                .get(oldest.get())
                .and_then(|question| question.sent);
            if sent.is_some_and(|(_, at)| at.elapsed() < PATIENCE) {
                break;
            }
            self.pending.remove(&oldest.remove());
            any = true;
        }
        any
    }

    /// Sends no more of the messages that are on their way.
    fn withdraw(&mut self) {
        // The rest of a message that was begun must follow.
        let begun = self.unsent.len() % wire::request_len(IotlbMessage::LEN);
        self.unsent.truncate(begun);
    }
}

fn page_of(miss: Miss) -> Page {
    (miss.iova.0 >> PAGE_BITS, miss.need)
}

impl Device {
    pub(super) fn behind_iommu(&self) -> bool {
        self.features & VIRTIO_F_IOMMU_PLATFORM != 0
    }

    /// `IOTLB_MSG`. When this returns, no lcore uses what is invalid now.
    pub(in crate::session) fn iotlb(&mut self, message: IotlbMessage) -> Result<(), RequestError> {
        match message.kind {
            IOTLB_UPDATE => self.update(message),
            IOTLB_INVALIDATE => {
                self.invalidate(message);
                Ok(())
            }
            kind => Err(RequestError::IotlbType(kind)),
        }
    }

    fn update(&mut self, message: IotlbMessage) -> Result<(), RequestError> {
        let IotlbMessage {
            iova,
            size,
            uaddr,
            perm,
            ..
        } = message;
        let access = Access::from_bits(perm).ok_or(RequestError::IotlbAccess(perm))?;
        let beyond = RequestError::IotlbRange { iova, size };
        let whole = IovaRange::new(Iova(iova), size).ok_or(beyond)?;
        let memory = self.memory.as_ref();
        let found = memory.and_then(|memory| memory.gpa(Uva(uaddr)));
        let (gpa, left) = found.ok_or(RequestError::IotlbAddress(uaddr))?;
        let range = IovaRange::new(Iova(iova), size.min(left)).unwrap_or(whole);
        if self.iotlb.insert(range, gpa, access) {
            self.forget_cached(range);
        }
        self.asking.answered(range, access);
        if std::mem::take(&mut self.asking.passed_over) {
            self.iotlb.ask_again();
        }
        self.go_on();
        Ok(())
    }

    fn invalidate(&mut self, message: IotlbMessage) {
        // QEMU describes the invalidation of all addresses as one of 2^64 bytes.
        let range = match message.size {
            0 => IovaRange::ALL,
            size => IovaRange::new(Iova(message.iova), size)
                .unwrap_or(IovaRange::from(Iova(message.iova))),
        };
        self.iotlb.remove(range);
        self.forget_cached(range);
        if range.size() >= LARGE {
            // Drivers that unmap in batches do this again and again. What they still offer will be
            // missed, so it is asked for before a packet needs it; once what the rings need is there.
            self.asking.flushed();
            let fills = |index: &u16| index.is_multiple_of(2);
            let running = self.indices(|vring| vring.running);
            for index in running.into_iter().filter(fills) {
                if let Some(vring) = self.at(index) {
                    vring.unseen = true;
                }
            }
            self.asking.answers = true;
        }
    }

    /// Has all virtqueues forget `range`. Those that lie in it stop; they may start again when this
    /// message is dealt with.
    fn forget_cached(&mut self, range: IovaRange) {
        for index in self.indices(|vring| vring.running) {
            let Some(vring) = self.at(index) else {
                continue;
            };
            if vring.lies_in.iter().any(|area| area.overlaps(range)) {
                self.pause(index);
                if let Some(vring) = self.at(index).filter(|_| range.size() >= LARGE) {
                    let near = vring.taken.saturating_mul(2).max(LEAST_AHEAD);
                    vring.near = Some(near);
                }
                continue;
            }
            let mut forget = |virtqueue: &mut Virtqueue| {
                if let Some(lookaside) = &mut virtqueue.lookaside {
                    lookaside.forget(range);
                }
            };
            match &mut vring.spare {
                Some(spare) => forget(spare),
                None => self.place.events.alter(index, &mut forget),
            }
        }
    }

    /// Something is known now: vrings that waited for it may start, and who sleeps over a buffer that
    /// could not be read should look again.
    fn go_on(&mut self) {
        let events = Arc::clone(&self.place.events);
        for (index, vring) in (0..).zip(&mut self.vrings) {
            if !vring.running {
                vring.rejected = false;
            } else if std::mem::take(&mut vring.missed) {
                events.look_again(index);
            }
        }
    }

    /// Forgets all translations and questions; after a change of the memory, or when a ring ends.
    pub(super) fn forget_translations(&mut self) {
        let regions = self.memory.iter().flat_map(|memory| memory.regions());
        let memory = regions.map(|region| region.config().size).sum();
        self.iotlb.clear(memory);
        self.asking.forget();
    }

    /// Asks the frontend for all that vring `index` needs to start, of which `miss` is the first.
    pub(super) fn ask_at_once(&mut self, index: u16, miss: Miss, translated: Option<&Translated>) {
        let vring = self.vrings.get(usize::from(index)).zip(translated);
        let unknown = vring.map(|(vring, known)| vring.setup.unknown(self.features, known));
        match unknown.filter(|unknown| !unknown.is_empty()) {
            Some(unknown) => {
                for miss in unknown {
                    self.asking.ask_at_once(miss);
                }
            }
            // Within a page, or outside the areas.
            None => self.asking.ask_at_once(miss),
        }
    }

    /// A new channel: whatever was asked on the one before was not heard.
    pub(super) fn ask_anew(&mut self) {
        self.asking = Asking::default();
        self.iotlb.ask_again();
        self.go_on();
    }

    /// Has what got no answer for too long asked again, by whoever still needs it.
    pub(super) fn ask_again(&mut self) {
        if self.asking.forget_old() {
            // A frontend that does not listen must not have more and more to read.
            self.asking.withdraw();
            self.iotlb.ask_again();
            self.go_on();
        }
    }

    /// Asks for what the lcores missed.
    pub(super) fn ask_on(&mut self) {
        if !self.behind_iommu() {
            return;
        }
        let stirred = self.collect() | std::mem::take(&mut self.asking.answers);
        if stirred && self.asking.pending.len() < FEW_PENDING {
            // The driver transmits, and will be answered: lcores look at the buffers for that only
            // when there is something to put into them.
            for index in self.indices(|vring| vring.running && vring.unseen) {
                self.look_ahead(index);
            }
            self.collect();
        }
        self.send_questions();
    }

    /// Takes up the questions of all vrings; whether there were any.
    fn collect(&mut self) -> bool {
        let mut any = false;
        for (index, vring) in (0..).zip(&mut self.vrings) {
            let questions = vring.questions.iter().filter(|_| vring.running);
            for miss in questions.flat_map(|list| list.take()) {
                any = true;
                vring.missed = true;
                // It may have come meanwhile.
                if !self.iotlb.knows(miss.iova, miss.need) {
                    self.asking.ask(index, miss);
                }
            }
        }
        any
    }

    /// Asks for what vring `index` has, on behalf of its lcore.
    fn look_ahead(&mut self, index: u16) {
        let events = Arc::clone(&self.place.events);
        let Some(vring) = self.at(index) else { return };
        let mut looked = Looked::Empty;
        let mut look = |virtqueue: &mut Virtqueue| looked = virtqueue.look_ahead();
        match &mut vring.spare {
            // Nobody fills it.
            Some(_) => (),
            None => events.alter(index, &mut look),
        }
        vring.unseen = looked != Looked::All;
    }

    fn send_questions(&mut self) {
        self.asking.send_waiting();
        let Some(channel) = &self.channel else {
            let nobody = !std::mem::take(&mut self.asking.unsent).is_empty();
            if nobody && !std::mem::replace(&mut self.asking.complained, true) {
                say!(
                    Warn,
                    self.iface(),
                    "the frontend cannot be asked for translations: it gave no backend channel"
                );
            }
            return;
        };
        let unsent = &mut self.asking.unsent;
        while !unsent.is_empty() {
            match wire::send_some(channel, unsent) {
                Ok(sent) => drop(unsent.drain(..sent.min(unsent.len()))),
                // What does not go out now does with the next message, or after `PATIENCE`.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    unsent.clear();
                    if !std::mem::replace(&mut self.asking.complained, true) {
                        say!(Warn, self.iface(), "backend channel: {error}");
                    }
                    return;
                }
            }
        }
    }

    /// When to call [`settle`](Self::settle) although nothing happened.
    pub(in crate::session) fn timeout(&self) -> Option<Duration> {
        // No descriptor was left for a bell.
        if (self.waits || self.behind_iommu()) && self.place.bell.get().is_err() {
            return Some(UNBIDDEN);
        }
        (!self.asking.pending.is_empty()).then_some(PATIENCE)
    }
}
