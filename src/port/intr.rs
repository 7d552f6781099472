//! Rx interrupts of a port: its kick eventfds, and who waits for them.
//!
//! The epoll fds that the application gets are made at start, whether there is a frontend or not.
//! Each kick eventfd is shared with the session, and stays open until it was taken out of the epoll fd.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::dpdk::intr::{RxInterrupts, drain};
use crate::log::PORT;

#[derive(Debug)]
pub(super) struct Interrupts(Mutex<State>);

#[derive(Debug)]
struct State {
    /// There while the application wants interrupts.
    vector: Option<RxInterrupts>,
    /// By rx queue.
    kicks: Vec<Option<Arc<File>>>,
}

impl Interrupts {
    pub(super) fn new(queues: u16) -> Self {
        let kicks = (0..queues).map(|_| None).collect();
        Self(Mutex::new(State {
            vector: None,
            kicks,
        }))
    }

    /// Sets the kick eventfd of an rx queue; a number without queue is ignored.
    pub(super) fn set_kick(&self, port: &str, queue: u16, kick: Option<&Arc<File>>) {
        let mut state = lock(&self.0);
        let State { vector, kicks } = &mut *state;
        let Some(place) = kicks.get_mut(usize::from(queue)) else {
            return;
        };
        if let (Some(vector), Some(old)) = (&vector, &place)
            && queue < vector.queues()
            && let Err(error) = vector.remove(queue, old.as_fd())
        {
            log::debug!(target: PORT, "{port}: rxq {queue}: old kick fd: {error}");
        }
        *place = kick.cloned();
        if let (Some(vector), Some(new)) = (vector, place) {
            add(vector, port, queue, new);
        }
    }

    /// Replaces the interrupts of all queues; `None`: the application wants none. `publish` tells
    /// ethdev before the old ones go.
    pub(super) fn replace(
        &self,
        port: &str,
        new: Option<RxInterrupts>,
        publish: impl FnOnce(Option<&RxInterrupts>),
    ) {
        let mut state = lock(&self.0);
        if let Some(vector) = &new {
            for (queue, kick) in (0..).zip(&state.kicks) {
                if let Some(kick) = kick {
                    add(vector, port, queue, kick);
                }
            }
        }
        publish(new.as_ref());
        state.vector = new;
    }

    /// Wakes who waits for an rx queue, as a kick would.
    pub(super) fn wake(&self, queue: u16) {
        if let Some(vector) = &lock(&self.0).vector {
            vector.wake(queue);
        }
    }

    /// Takes back the kicks that were made so far, so that the next one wakes.
    pub(super) fn drain(&self, queue: u16) {
        let state = lock(&self.0);
        if let Some(vector) = &state.vector {
            vector.rest(queue);
        }
        if let Some(Some(kick)) = state.kicks.get(usize::from(queue)) {
            drain(kick.as_fd());
        }
    }

    /// Gives up all of the session's fds.
    pub(super) fn forget_kicks(&self) {
        lock(&self.0).kicks.fill_with(|| None);
    }
}

fn add(vector: &RxInterrupts, port: &str, queue: u16, kick: &File) {
    // The application may use fewer queues than the frontend.
    if queue < vector.queues()
        && let Err(error) = vector.add(queue, kick.as_fd())
    {
        log::error!(target: PORT, "{port}: rxq {queue}: no interrupts: {error}");
    }
}
