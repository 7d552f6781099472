//! What became of the copies of a submission, and what is done about it.

use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use super::{Access, Portal, Queue, Submission};
use crate::dma::idxd::descriptor::{self, Completion, Verdict};
use crate::dma::{Outcome, Tag};

/// Errors that are pardoned a few times.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    first: Option<Instant>,
    count: u32,
}

impl Strikes {
    const MOST: u32 = 3;
    const PERIOD: Duration = Duration::from_secs(10);

    /// One more; whether it is one too many.
    fn add(&mut self) -> bool {
        if self
            .first
            .is_none_or(|first| first.elapsed() > Self::PERIOD)
        {
            self.first = Some(Instant::now());
            self.count = 0;
        }
        self.count += 1;
        self.count >= Self::MOST
    }
}

impl<P: Portal, A: Access> Queue<P, A> {
    /// Reports the copies of a submission.
    pub(super) fn report(
        &mut self,
        submission: Submission,
        completion: Completion,
        done: &mut dyn FnMut(Tag, Outcome),
    ) {
        let verdict = completion.verdict();
        for nth in 0..submission.count {
            let sequence = submission.first.wrapping_add(nth);
            let outcome = match verdict {
                Verdict::Success => Outcome::Copied,
                Verdict::Members if submission.count > 1 => {
                    let all_were_tried = completion.completed() == submission.count;
                    self.member(sequence, all_were_tried)
                }
                Verdict::Members => self.judge(Verdict::Broken, completion, sequence),
                // In a batch it says nothing of the single copies.
                Verdict::Partial if submission.count > 1 => Outcome::Failed,
                _ if nth == 0 => self.judge(verdict, completion, sequence),
                _ => Outcome::Failed,
            };
            self.tell(sequence, outcome, done);
        }
    }

    /// A copy of a batch of which some failed. Those that did not have no record.
    fn member(&mut self, sequence: u32, all_were_tried: bool) -> Outcome {
        let (words, _) = self.record(sequence);
        let word = words.first().map_or(0, |word| word.load(Acquire));
        match word & 0xff {
            0 if all_were_tried => Outcome::Copied,
            0 => Outcome::Failed,
            _ => {
                let completion = Completion(word);
                self.judge(completion.verdict(), completion, sequence)
            }
        }
    }

    fn judge(&mut self, verdict: Verdict, completion: Completion, sequence: u32) -> Outcome {
        match verdict {
            Verdict::Success => return Outcome::Copied,
            Verdict::Partial => return self.finish(sequence, completion),
            Verdict::Redo | Verdict::Members => {}
            Verdict::Strike => self.dead |= self.strikes.add(),
            Verdict::Broken => {
                let word = completion.0;
                log::error!(target: crate::log::PORT, "DSA: a copy ended with {word:#x}");
                self.dead = true;
            }
        }
        Outcome::Failed
    }

    /// Copies what a missing page has left; the processor brings the page in.
    fn finish(&self, sequence: u32, completion: Completion) -> Outcome {
        let (words, _) = self.descriptor(sequence);
        let word = |at: usize| words.get(at).map(|word| word.load(Relaxed));
        let (Some(from), Some(to), Some(size)) = (
            word(descriptor::FROM),
            word(descriptor::TO),
            word(descriptor::SIZE),
        ) else {
            return Outcome::Failed;
        };
        let Some(left) = size.checked_sub(completion.completed().into()) else {
            return Outcome::Failed; // more than there was
        };
        if !self.access.shares_addresses() {
            return Outcome::Failed;
        }
        // Done at the front, the rest is behind; done from the end, the rest is in front.
        let skip = match completion.is_backwards() {
            true => 0,
            false => size - left,
        };
        let (Ok(left), Ok(skip)) = (usize::try_from(left), usize::try_from(skip)) else {
            return Outcome::Failed;
        };
        let at = |start: u64| Some(usize::try_from(start).ok()? + skip);
        let (Some(from), Some(to)) = (at(from), at(to)) else {
            return Outcome::Failed;
        };
        let from = ptr::with_exposed_provenance::<u8>(from);
        let to = ptr::with_exposed_provenance_mut::<u8>(to);
        // SAFETY: part of what `stage` was given, where the addresses are ours: allocated until the
        // copy is reported, which comes next (contract of `Engine::stage`). The device is done with
        // this copy. `translate` exposed the provenance.
        unsafe { ptr::copy(from, to, left) };
        Outcome::Copied
    }
}
