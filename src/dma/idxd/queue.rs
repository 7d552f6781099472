//! A work queue as an engine: descriptors, submissions, completions.
//!
//! What is staged lies in a ring. A submission is a copy alone, or a list of them that does not
//! cross the ring's end, with a record of its own. Submissions finish in any order; their places
//! are taken again in order.

mod report;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::descriptor::{self, Completion, Descriptor};
use super::portal::Portal;
use crate::dma::vfio::{Memory, Reach};
use crate::dma::{Addr, Engine, Halted, Health, Outcome, Tag, Transfer};
use report::Strikes;

/// How a queue is reached, beside its portal.
pub trait Access: Send {
    /// Memory that the device reaches.
    ///
    /// # Errors
    ///
    /// There is none.
    fn allocate(&self, len: usize) -> io::Result<Memory>;

    /// The device's addresses are ours.
    fn shares_addresses(&self) -> bool;

    /// As [`Engine::translate`].
    fn translate(&self, va: *const u8, len: u32) -> Option<Addr>;

    /// As [`Engine::reach`].
    fn reach(&mut self) -> Option<&mut Reach> {
        None
    }

    /// The device tells of an error, or is gone.
    fn has_failed(&self) -> bool;

    /// Stops the queue for good; whether it certainly writes no more. The portal is gone.
    fn stop(&mut self) -> bool;
}

/// What a queue can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Submissions at a time.
    pub submissions: u32,
    /// Descriptors of a batch; 1 when it takes none.
    pub batch: u32,
    /// Bytes of a copy.
    pub transfer: u32,
}

/// Sizes of ring that a queue may have.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 64..=32768;
/// More submissions help nobody: a burst is mostly one.
const MOST_SUBMISSIONS: u32 = 256;
const DESCRIPTOR_WORDS: usize = 8;
const RECORD_WORDS: usize = 4;
/// Descriptors that are handed over in one go when there are no batches.
const GO: usize = 16;

const NOBODY: Tag = Tag {
    serial: u32::MAX,
    place: u16::MAX,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Started,
    /// The queue did not take it.
    Refused,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Submission {
    first: u32,
    count: u32,
    progress: Progress,
}

/// A work queue.
pub struct Queue<P: Portal, A: Access> {
    /// First, so that nothing is submitted to a queue that is gone.
    portal: Option<P>,
    access: A,
    /// Descriptors, their records, and records of batches; only taken out when the device may still
    /// write to it.
    memory: Option<Memory>,
    tags: Box<[Tag]>,
    /// Size less one; the size is a power of two.
    mask: u32,
    staged: u32,
    started: u32,
    limits: Limits,
    /// A power of two of places; those from `oldest` to before `next` are in use.
    submissions: Box<[Submission]>,
    oldest: u32,
    next: u32,
    strikes: Strikes,
    /// It refused a submission, and has finished none since: others share it.
    full: bool,
    quiet: bool,
    dead: bool,
}

impl<P: Portal, A: Access> Queue<P, A> {
    /// An engine of a queue that is ready.
    ///
    /// # Errors
    ///
    /// There is no memory.
    pub fn new(portal: P, access: A, limits: Limits, ring: u32) -> io::Result<Self> {
        let size = ring.clamp(*RING_SIZES.start(), *RING_SIZES.end());
        let size = size.next_power_of_two();
        let submissions = limits.submissions.clamp(1, MOST_SUBMISSIONS);
        let places = submissions.next_power_of_two() as usize;
        let words = size as usize * (DESCRIPTOR_WORDS + RECORD_WORDS) + places * RECORD_WORDS;
        let memory = access.allocate(words * size_of::<u64>())?;
        let empty = Submission {
            first: 0,
            count: 0,
            progress: Progress::Done,
        };
        Ok(Self {
            portal: Some(portal),
            access,
            memory: Some(memory),
            tags: vec![NOBODY; size as usize].into(),
            mask: size - 1,
            staged: 0,
            started: 0,
            limits: Limits {
                submissions,
                batch: limits.batch.clamp(1, size),
                transfer: limits.transfer,
            },
            submissions: vec![empty; places].into(),
            oldest: 0,
            next: 0,
            strikes: Strikes::default(),
            full: false,
            quiet: false,
            dead: false,
        })
    }

    /// Where it submits to; `None` when it was halted.
    pub fn portal(&self) -> Option<&P> {
        self.portal.as_ref()
    }

    fn place(&self, sequence: u32) -> usize {
        (sequence & self.mask) as usize
    }

    fn submission_place(&self, sequence: u32) -> usize {
        sequence as usize & (self.submissions.len() - 1)
    }

    fn submission(&self, sequence: u32) -> Option<Submission> {
        self.submissions
            .get(self.submission_place(sequence))
            .copied()
    }

    /// `count` words of the memory, and where the device finds them; empty when there are none.
    #[inline]
    fn words(&self, at: usize, count: usize) -> (&[AtomicU64], u64) {
        let Some(memory) = &self.memory else {
            return (&[], 0);
        };
        let words = memory.words().get(at..at + count).unwrap_or(&[]);
        (words, memory.iova() + at as u64 * 8)
    }

    fn descriptor(&self, sequence: u32) -> (&[AtomicU64], u64) {
        self.words(self.place(sequence) * DESCRIPTOR_WORDS, DESCRIPTOR_WORDS)
    }

    fn record(&self, sequence: u32) -> (&[AtomicU64], u64) {
        let records = self.tags.len() * DESCRIPTOR_WORDS;
        self.words(records + self.place(sequence) * RECORD_WORDS, RECORD_WORDS)
    }

    fn batch_record(&self, submission: u32) -> (&[AtomicU64], u64) {
        let records = self.tags.len() * (DESCRIPTOR_WORDS + RECORD_WORDS);
        let at = self.submission_place(submission) * RECORD_WORDS;
        self.words(records + at, RECORD_WORDS)
    }

    /// The first copy that is not reported.
    fn first_unreported(&self) -> u32 {
        match self.submission(self.oldest) {
            Some(submission) if self.oldest != self.next => submission.first,
            _ => self.started,
        }
    }

    fn free_submissions(&self) -> u32 {
        let used = self.next.wrapping_sub(self.oldest);
        self.limits.submissions.saturating_sub(used)
    }

    /// Copies that fit into the submissions that are free, from the first that is not started.
    fn submittable(&self) -> u32 {
        let free = self.free_submissions();
        let batch = self.limits.batch;
        let to_end = self.mask + 1 - (self.started & self.mask);
        let for_end = to_end.div_ceil(batch);
        match free.checked_sub(for_end) {
            Some(rest) => to_end.saturating_add(rest.saturating_mul(batch)),
            None => free.saturating_mul(batch),
        }
    }

    /// Copies one list or one alone, up to `GO` alone at once; `false` when none is left.
    fn submit_next(&mut self) -> bool {
        let left = self.staged.wrapping_sub(self.started);
        let to_end = self.mask + 1 - (self.started & self.mask);
        let count = left.min(to_end).min(self.limits.batch);
        match count {
            0 => return false,
            1 => self.submit_alone(),
            _ => self.submit_list(count),
        }
        true
    }

    fn submit_alone(&mut self) {
        let left = self.staged.wrapping_sub(self.started);
        // With batches, only the odd one at the end is alone.
        let most = match self.limits.batch {
            1 => GO,
            _ => 1,
        };
        let mut go = [Descriptor::default(); GO];
        let mut count: u32 = 0;
        for (line, nth) in go.iter_mut().zip(0..left).take(most) {
            let (words, _) = self.descriptor(self.started.wrapping_add(nth));
            for (to, word) in line.0.iter_mut().zip(words) {
                *to = word.load(Relaxed);
            }
            if let Some(head) = line.0.first_mut() {
                *head = descriptor::COPY;
            }
            count += 1;
        }
        let taken = self.push(go.get(..count as usize).unwrap_or(&[]));
        for nth in 0..count {
            self.add(1, (nth as usize) < taken);
        }
    }

    fn submit_list(&mut self, count: u32) {
        let (_, list) = self.descriptor(self.started);
        let (words, record) = self.batch_record(self.next);
        if let Some(word) = words.first() {
            word.store(0, Relaxed);
        }
        let taken = self.push(&[Descriptor::batch(list, count, record)]);
        self.add(count, taken == 1);
    }

    fn push(&mut self, descriptors: &[Descriptor]) -> usize {
        let Some(portal) = self.portal.as_mut().filter(|_| !self.dead) else {
            return 0;
        };
        // What the descriptors point to was written before: the portals fence.
        match portal.push(descriptors) {
            Ok(taken) => taken,
            Err(error) => {
                log::error!(target: crate::log::PORT, "DSA: the work queue takes nothing: {error}");
                self.dead = true;
                0
            }
        }
    }

    /// Notes that the next `count` copies are a submission.
    fn add(&mut self, count: u32, taken: bool) {
        self.full |= !taken;
        let place = self.submission_place(self.next);
        if let Some(submission) = self.submissions.get_mut(place) {
            *submission = Submission {
                first: self.started,
                count,
                progress: match taken {
                    true => Progress::Started,
                    false => Progress::Refused,
                },
            };
        }
        self.next = self.next.wrapping_add(1);
        self.started = self.started.wrapping_add(count);
    }

    /// What became of a submission; `None` while it runs.
    fn completion(&self, sequence: u32, submission: Submission) -> Option<Completion> {
        let (words, _) = match submission.count {
            1 => self.record(submission.first),
            _ => self.batch_record(sequence),
        };
        let word = words.first()?.load(Acquire);
        (word & 0xff != 0).then_some(Completion(word))
    }

    fn tell(&self, sequence: u32, outcome: Outcome, done: &mut dyn FnMut(Tag, Outcome)) {
        if let Some(&tag) = self.tags.get(self.place(sequence)) {
            done(tag, outcome);
        }
    }

    fn set_done(&mut self, sequence: u32) {
        let place = self.submission_place(sequence);
        if let Some(submission) = self.submissions.get_mut(place) {
            submission.progress = Progress::Done;
        }
    }

    fn free_finished(&mut self) {
        while self.oldest != self.next {
            match self.submission(self.oldest) {
                Some(submission) if submission.progress == Progress::Done => {}
                _ => break,
            }
            self.oldest = self.oldest.wrapping_add(1);
        }
    }
}

impl<P: Portal, A: Access> Engine for Queue<P, A> {
    fn room(&self) -> usize {
        // To ask a full queue again and again costs more than to copy.
        if self.dead || self.full {
            return 0;
        }
        let used = self.staged.wrapping_sub(self.first_unreported());
        let in_ring = (self.mask + 1).saturating_sub(used);
        let staged = self.staged.wrapping_sub(self.started);
        in_ring.min(self.submittable().saturating_sub(staged)) as usize
    }

    unsafe fn stage(&mut self, copy: Transfer, tag: Tag) {
        let (record, record_at) = self.record(self.staged);
        if let Some(word) = record.first() {
            word.store(0, Relaxed);
        }
        let (words, _) = self.descriptor(self.staged);
        let values = [
            descriptor::COPY_IN_BATCH,
            record_at,
            copy.from.0,
            copy.to.0,
            copy.len.into(),
        ];
        for (word, value) in words.iter().zip(values) {
            word.store(value, Relaxed);
        }
        let place = self.place(self.staged);
        if let Some(owner) = self.tags.get_mut(place) {
            *owner = tag;
        }
        self.staged = self.staged.wrapping_add(1);
    }

    fn submit(&mut self) {
        while self.submit_next() {}
    }

    fn poll(&mut self, done: &mut dyn FnMut(Tag, Outcome)) -> Health {
        if self.portal.is_none() {
            return Health::Dead;
        }
        let mut at = self.oldest;
        let (mut finished, mut waits) = (false, false);
        while at != self.next {
            if let Some(submission) = self.submission(at) {
                match submission.progress {
                    Progress::Done => {}
                    Progress::Refused => {
                        let outcome = match self.dead {
                            true => Outcome::Failed,
                            false => Outcome::Refused,
                        };
                        for nth in 0..submission.count {
                            let sequence = submission.first.wrapping_add(nth);
                            self.tell(sequence, outcome, done);
                        }
                        self.set_done(at);
                    }
                    Progress::Started => {
                        if let Some(completion) = self.completion(at, submission) {
                            self.report(submission, completion, done);
                            self.set_done(at);
                            finished = true;
                        } else {
                            waits = true;
                        }
                    }
                }
            }
            at = at.wrapping_add(1);
        }
        self.free_finished();
        self.quiet &= !finished;
        // When nothing of ours is in it, only asking tells.
        self.full &= waits && !finished;
        match self.dead {
            true => Health::Dead,
            false => Health::Running,
        }
    }

    fn recover(&mut self) -> bool {
        // A queue does not halt by itself: it works, or it does not.
        !self.dead
    }

    fn nudge(&mut self) -> Health {
        if self.oldest != self.next {
            // There is no doorbell to repeat, but a page fault may take its time: once.
            self.dead |= self.quiet || self.access.has_failed();
            self.quiet = true;
        }
        match self.dead {
            true => Health::Dead,
            false => Health::Running,
        }
    }

    fn halt(&mut self) -> Halted {
        self.dead = true;
        self.portal = None;
        match self.access.stop() {
            true => Halted::Proven,
            false => {
                if let Some(memory) = self.memory.take() {
                    memory.leak();
                }
                Halted::Unproven
            }
        }
    }

    fn translate(&self, va: *const u8, len: u32) -> Option<Addr> {
        self.access.translate(va, len)
    }

    fn max_copy(&self) -> u32 {
        self.limits.transfer
    }

    fn reach(&mut self) -> Option<&mut Reach> {
        self.access.reach()
    }
}

impl<P: Portal, A: Access> Drop for Queue<P, A> {
    fn drop(&mut self) {
        if self.portal.is_some() {
            self.halt();
        }
    }
}
