//! A port that writes down what its session tells it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rte_net_vhost::session::{DeviceInfo, SessionEvents};
use rte_net_vhost::virtqueue::{Ring, SplitRing, Virtqueue};

/// Nothing in these tests takes longer, but on a machine that is out of breath.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Queue(u16, bool),
    Up(DeviceInfo),
    Down,
    Rarp([u8; 6]),
    Kick(u16, bool),
    LookAgain(u16),
}

type Hook = Box<dyn Fn(Event) + Send>;

#[derive(Default)]
pub(crate) struct Port {
    state: Mutex<State>,
    changed: Condvar,
    hook: Mutex<Option<Hook>>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    given: HashMap<u16, Virtqueue>,
    /// Vrings from here on have no queue.
    queues: Option<u16>,
    gives: usize,
}

impl Port {
    pub(crate) fn with_queues(queues: u16) -> Self {
        let port = Self::default();
        port.state.lock().unwrap().queues = Some(queues);
        port
    }

    /// Calls `hook` on the session's thread at each event.
    pub(crate) fn at_each_event(&self, hook: impl Fn(Event) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    fn note(&self, event: Event) {
        self.state.lock().unwrap().events.push(event);
        self.changed.notify_all();
        let hook = self.hook.lock();
        if let Some(hook) = &*hook.unwrap_or_else(PoisonError::into_inner) {
            hook(event);
        }
    }

    /// All events so far but those about kick files.
    pub(crate) fn events(&self) -> Vec<Event> {
        let state = self.state.lock().unwrap();
        let kick = |event: &&Event| !matches!(event, Event::Kick(..));
        state.events.iter().filter(kick).copied().collect()
    }

    pub(crate) fn kicks(&self) -> Vec<Event> {
        let state = self.state.lock().unwrap();
        let kick = |event: &&Event| matches!(event, Event::Kick(..));
        state.events.iter().filter(kick).copied().collect()
    }

    /// Waits until `count` events were raised, and returns all.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Event> {
        let end = Instant::now() + DEADLINE;
        loop {
            let events = self.events();
            if events.len() >= count {
                return events;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{count} events wanted, seen {events:?}");
            let state = self.state.lock().unwrap();
            drop(
                self.changed
                    .wait_timeout(state, left.min(Duration::from_millis(50))),
            );
        }
    }

    /// Takes `count` chains of split vring `index` and gives them back.
    pub(crate) fn use_chains(&self, index: u16, count: u16) {
        self.poll(index, |virtqueue| {
            let Virtqueue { ring, log, .. } = virtqueue;
            let ring = SplitRing::of(ring).unwrap();
            ring.take(count);
            for head in 0..count {
                ring.push_used(head, 1, 0);
            }
            match log {
                Some(log) => log.publish(ring),
                None => ring.publish_used(),
            };
            ring.wanted_call();
        });
    }

    /// Forgets the events so far.
    pub(crate) fn forget(&self) {
        self.state.lock().unwrap().events.clear();
    }

    /// The indices of the vrings that the port has.
    pub(crate) fn given(&self) -> Vec<u16> {
        let state = self.state.lock().unwrap();
        let mut given: Vec<u16> = state.given.keys().copied().collect();
        given.sort_unstable();
        given
    }

    /// How often a vring was handed over.
    pub(crate) fn gives(&self) -> usize {
        self.state.lock().unwrap().gives
    }

    /// Does `work` on vring `index`, as an lcore would.
    pub(crate) fn poll<R>(&self, index: u16, work: impl FnOnce(&mut Virtqueue) -> R) -> R {
        work(self.state.lock().unwrap().given.get_mut(&index).unwrap())
    }
}

impl SessionEvents for Port {
    fn give(&self, index: u16, virtqueue: Virtqueue) -> Option<Virtqueue> {
        let mut state = self.state.lock().unwrap();
        state.gives += 1;
        if state.queues.is_some_and(|queues| index >= queues) {
            return Some(virtqueue);
        }
        let before = state.given.insert(index, virtqueue);
        assert!(before.is_none(), "vring {index} given twice");
        None
    }

    fn take(&self, index: u16) -> Option<Virtqueue> {
        self.state.lock().unwrap().given.remove(&index)
    }

    fn alter(&self, index: u16, work: &mut dyn FnMut(&mut Virtqueue)) {
        if let Some(virtqueue) = self.state.lock().unwrap().given.get_mut(&index) {
            work(virtqueue);
        }
    }

    fn look_again(&self, index: u16) {
        self.note(Event::LookAgain(index));
    }

    fn queue_state(&self, index: u16, ready: bool) {
        self.note(Event::Queue(index, ready));
    }

    fn link_up(&self, device: &DeviceInfo) {
        self.note(Event::Up(*device));
    }

    fn link_down(&self) {
        self.note(Event::Down);
    }

    fn send_rarp(&self, mac: [u8; 6]) {
        self.note(Event::Rarp(mac));
    }

    fn kick_changed(&self, index: u16, kick: Option<&Arc<File>>) {
        self.note(Event::Kick(index, kick.is_some()));
    }
}
