//! The engines of one queue.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::Halted;
use super::channel::{Burst, Channel};
use super::flight::Board;
use crate::memory::{MemoryTable, Region};

/// An engine and the number by which it knows the queue's flight.
#[derive(Debug)]
struct Line {
    channel: Arc<Channel>,
    user: u32,
}

/// The engines of one queue, which take turns.
#[derive(Debug)]
pub struct Engines {
    lines: Box<[Line]>,
    turn: usize,
    threshold: u32,
    eager: bool,
}

/// How a queue was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// In time, or nothing was under way.
    InTime,
    /// Engines took too long and are dead; the CPU did the rest.
    Late,
    /// An engine that took too long may still write: its packets stay where they are, for ever.
    Never,
}

impl Engines {
    /// `channels` for the flight of `board`; copies of at least `threshold` bytes are theirs, with 0
    /// however few they are.
    pub fn new(channels: &[Arc<Channel>], board: &Arc<Board>, threshold: u32) -> Self {
        let line = |channel: &Arc<Channel>| Line {
            user: channel.attach(board),
            channel: Arc::clone(channel),
        };
        Self {
            lines: channels.iter().map(line).collect(),
            turn: 0,
            threshold: threshold.max(1),
            eager: threshold == 0,
        }
    }

    /// Copies that all engines together can have.
    pub fn depth(channels: &[Arc<Channel>]) -> usize {
        channels.iter().map(|channel| channel.depth()).sum()
    }

    /// Bytes from which on a copy is for an engine, and the most that is one copy.
    #[inline]
    pub fn threshold(&self) -> u32 {
        self.threshold
    }

    /// Whether the engines want copies even if there are few.
    #[inline]
    pub fn are_eager(&self) -> bool {
        self.eager
    }

    /// Whether no engine is left.
    #[inline]
    pub fn are_dead(&self) -> bool {
        self.lines.iter().all(|line| line.channel.is_dead())
    }

    /// The engine whose turn it is, with the longest copy that it takes; `None` when all are dead or
    /// others have it just now.
    #[inline]
    pub fn take_turn(&mut self) -> Option<(Burst<'_>, u32)> {
        let after = self.turn.wrapping_add(1);
        self.turn = if after < self.lines.len() { after } else { 0 };
        let (before, from) = self.lines.split_at_checked(self.turn)?;
        let line = from
            .iter()
            .chain(before)
            .find(|line| !line.channel.is_dead())?;
        Some((line.channel.burst(line.user)?, line.channel.max_copy()))
    }

    /// Polls each engine once, but those that others use just now.
    #[inline]
    pub fn reap(&self) {
        self.lines.iter().for_each(|line| line.channel.reap());
    }

    /// The watchdog's look at each engine.
    pub fn watch(&self, now: Instant) {
        self.lines.iter().for_each(|line| line.channel.watch(now));
    }

    /// Polls until `land` says that nothing is under way any more, for as long as the engines
    /// may be silent; then ends the engines that are late. For control threads: others are waited for.
    ///
    /// An engine that was told again has half of that time since then: this thread may itself have
    /// been late.
    pub fn drain(&self, mut land: impl FnMut() -> bool) -> Drained {
        if land() {
            return Drained::InTime;
        }
        let began = Instant::now();
        let patience = self.lines.iter().map(|line| line.channel.patience());
        let patience = patience.max().unwrap_or_default();
        let mut nudged = None::<Instant>;
        loop {
            self.lines.iter().for_each(|line| line.channel.reap_now());
            if land() {
                return Drained::InTime;
            }
            let over = nudged.is_some_and(|nudged| nudged.elapsed() >= patience / 2);
            // What a dead engine has not given back it never will.
            if over || self.are_dead() {
                break;
            }
            if nudged.is_none() && began.elapsed() >= patience / 2 {
                let now = Instant::now();
                self.lines.iter().for_each(|line| line.channel.nudge(now));
                nudged = Some(now);
            }
            std::thread::yield_now();
        }
        let late = |line: &&Line| line.channel.has_copies_of(line.user);
        let mut proven = true;
        for line in self.lines.iter().filter(late) {
            let halted = line.channel.kill("it is late when its queue must be empty");
            proven &= halted == Halted::Proven;
        }
        match land() && proven {
            true => Drained::Late,
            false => Drained::Never,
        }
    }

    /// Lets the engines that are not dead reach `memory`, until it is unmapped: that may take long, and a
    /// queue stops and starts with many a message.
    pub fn reach(&self, memory: &MemoryTable) {
        self.bar_the_dead(memory);
        let alive = self.lines.iter().filter(|line| !line.channel.is_dead());
        for Line { channel, .. } in alive {
            for region in memory.regions() {
                region.admit(channel.id(), || Box::new(Reached::new(channel, region)));
            }
        }
    }

    /// Takes `memory` away from those that are dead. One that still runs may be stopped by this.
    pub fn bar_the_dead(&self, memory: &MemoryTable) {
        let dead = self.lines.iter().filter(|line| line.channel.is_dead());
        for Line { channel, .. } in dead {
            for region in memory.regions() {
                region.evict(|name| name == channel.id());
            }
        }
    }
}

/// A region that an engine was let into.
struct Reached {
    channel: Arc<Channel>,
    start: usize,
    len: usize,
}

impl Reached {
    fn new(channel: &Arc<Channel>, region: &Region) -> Self {
        let (start, len) = region.mapping();
        channel.map(start, len);
        Self {
            channel: Arc::clone(channel),
            start: start.addr(),
            len,
        }
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        // Only a number to the engine.
        let start = std::ptr::without_provenance(self.start);
        self.channel.unmap(start, self.len);
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.lines
            .iter()
            .for_each(|line| line.channel.detach(line.user));
    }
}
