//! The life of a port: configure, start, stop, close.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::shared::offer;
use super::{LINK, Port, PortError, lock, registry};
use crate::dpdk::ethdev::Event;
use crate::dpdk::thread::{self, ControlThread};
use crate::guard;
use crate::log::PORT;
use crate::session::{Endpoint, Join, SessionConfig, SessionEvents, Spawn, features};
use crate::virtqueue::{Allow, Gate};

/// Smallest MTU of IPv4 (RFC 791).
const LEAST_MTU: u16 = 68;

/// What the application asked for when it configured the port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Take the outer VLAN tag off received frames.
    pub(super) strip_vlan: bool,
    /// Hears of received frames whose checksum is missing; otherwise it is made here.
    pub(super) marks_checksums: bool,
    /// Wants to know whether the checksum of IPv4 headers is right.
    pub(super) check_ip: bool,
}

impl Port {
    /// The first time, makes the socket; each time, takes up what the application wants.
    pub(super) fn configure(self: &Arc<Self>, wanted: Wanted) -> Result<(), PortError> {
        self.adopt(wanted);
        let mut endpoint = lock(&self.endpoint);
        if endpoint.is_some() {
            return Ok(());
        }
        registry::add(self)?;
        let config = SessionConfig {
            iface: self.config.iface.clone(),
            client: self.config.client,
            vrings: self.config.queues.saturating_mul(2),
            features: features::word(offer(&self.config)),
            protocol_features: features::protocol_word(offer(&self.config)),
        };
        let events = Arc::clone(self) as Arc<dyn SessionEvents>;
        match Endpoint::start(config, events, Arc::new(ControlThreads)) {
            Ok(started) => {
                *endpoint = Some(started);
                Ok(())
            }
            Err(error) => {
                registry::remove(self);
                Err(error.into())
            }
        }
    }

    /// Takes up what the application wants; its queues are told at start.
    pub(super) fn adopt(&self, wanted: Wanted) {
        self.shared
            .vlan_strip
            .store(wanted.strip_vlan, Ordering::Relaxed);
        self.shared
            .complete_checksums
            .store(!wanted.marks_checksums, Ordering::Relaxed);
        self.shared
            .check_ip
            .store(wanted.check_ip, Ordering::Relaxed);
    }

    /// Lets lcores poll the first `rx` and `tx` queues.
    pub(super) fn start(&self, rx: u16, tx: u16) {
        self.shared.started.store(true, Ordering::Relaxed);
        for (queue, vring) in (0..rx).zip(&self.rx) {
            vring.gate.allow(Allow::Started);
            if let Some(lane) = self.rx_lane(queue) {
                lane.allow(Allow::Started);
            }
        }
        for (queue, vring) in (0..tx).zip(&self.tx) {
            vring.gate.allow(Allow::Started);
            if let Some(lane) = self.tx_lane(queue) {
                lane.allow(Allow::Started);
            }
        }
    }

    /// Stops all polling; no lcore is in a burst when this returns. The frontend notices nothing.
    pub(super) fn stop(&self) {
        self.shared.started.store(false, Ordering::Relaxed);
        self.forbid(Allow::Started);
        self.rx.iter().for_each(|vring| vring.forget_watched());
        if let Some(lanes) = &self.lanes {
            lanes.release_kept();
        }
    }

    /// Ends the connection and the socket. When this returns, nothing of the port uses its ethdev,
    /// even if the session's thread is the caller and goes on.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.stop();
        let endpoint = lock(&self.endpoint).take();
        if let Some(endpoint) = endpoint {
            endpoint.stop();
        }
        registry::remove(self);
        self.forbid(Allow::Attached);
        if let Some(lanes) = &self.lanes {
            lanes.close();
        }
        lock(&self.events).clear();
        self.shared.vid.store(-1, Ordering::Relaxed);
        self.interrupts.forget_kicks();
        let was_up = self.shared.attached.swap(false, Ordering::AcqRel)
            | self.owes_link_down.swap(false, Ordering::AcqRel);
        if was_up {
            self.dev().set_link(LINK);
            self.dev().raise(Event::LinkState);
        }
    }

    /// Accepts any MTU that IPv4 and the ethdev can have. Frames are never cut; the frontend's own
    /// MTU, if it has one, is the guest's limit.
    pub(super) fn check_mtu(&self, mtu: u16) -> Result<(), PortError> {
        if mtu < LEAST_MTU {
            return Err(PortError::Mtu {
                mtu,
                least: LEAST_MTU,
            });
        }
        Ok(())
    }

    /// Switches the interrupt of an rx queue; also before a frontend connects, and for all that do.
    pub(super) fn rx_interrupt(&self, queue: u16, wanted: bool) -> Result<(), PortError> {
        let vring = self
            .rx
            .get(usize::from(queue))
            .ok_or(PortError::NoQueue(queue))?;
        if wanted {
            // Nobody may poll for long, and what is under way belongs to the guest.
            if let Some(lanes) = &self.lanes {
                lanes.drain();
            }
            self.interrupts.drain(queue);
        }
        vring.want_kicks(wanted);
        self.wake_if_owed(queue);
        Ok(())
    }

    /// Wakes the sleeper of an rx queue in which buffers wait already: their kick was made, or left
    /// out, before anybody asked for it; or for which packets were kept.
    pub(super) fn wake_if_owed(&self, queue: u16) {
        let Some(vring) = self.rx.get(usize::from(queue)) else {
            return;
        };
        let waits = || self.shared.attached.load(Ordering::Relaxed) && vring.owes_wake();
        let kept = || self.rx_lane(queue).is_some_and(|lane| lane.kept() != 0);
        if waits() || kept() && vring.wants_wake() {
            self.interrupts.wake(queue);
        }
    }

    /// Lets lcores poll an rx queue, or keeps them out; none is in a burst of it then.
    pub(super) fn switch_rx(&self, queue: u16, on: bool) -> Result<(), PortError> {
        let vring = self.rx.get(usize::from(queue));
        switch(&vring.ok_or(PortError::NoQueue(queue))?.gate, on);
        match self.rx_lane(queue) {
            Some(lane) if on => lane.allow(Allow::Queue),
            Some(lane) => {
                lane.forbid(Allow::Queue);
                lane.release_kept();
            }
            None => {}
        }
        Ok(())
    }

    /// The same for a tx queue.
    pub(super) fn switch_tx(&self, queue: u16, on: bool) -> Result<(), PortError> {
        let vring = self.tx.get(usize::from(queue));
        switch(&vring.ok_or(PortError::NoQueue(queue))?.gate, on);
        match self.tx_lane(queue) {
            Some(lane) if on => lane.allow(Allow::Queue),
            Some(lane) => lane.forbid(Allow::Queue),
            None => {}
        }
        Ok(())
    }
}

fn switch<T>(gate: &Gate<T>, on: bool) {
    if on {
        gate.allow(Allow::Queue);
    } else {
        gate.forbid(Allow::Queue);
    }
}

/// The session's threads: EAL control threads, which are not pinned to the lcore that probed.
struct ControlThreads;

impl Spawn for ControlThreads {
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Box<dyn Join>> {
        let name = CString::new(name)?;
        let body = Box::new(|| guard::catch((), work));
        Ok(Box::new(Thread(thread::spawn(&name, body)?)))
    }
}

struct Thread(ControlThread);

impl Join for Thread {
    fn join(self: Box<Self>) {
        if let Err(error) = self.0.join() {
            log::error!(target: PORT, "a session's thread was not joined: {error}");
        }
    }
}
