//! What the session tells a port: rings to poll, the link, requests of the frontend.
//!
//! Everything here runs on the session's thread, without a lock while the application's callbacks
//! run, since they may call any function of the port, `close` included. After `close` nothing here
//! touches the ethdev any more.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{LINK, Port, lock};
use crate::datapath::{select_dequeue, select_enqueue};
use crate::dpdk::eal;
use crate::dpdk::ethdev::{Event, Link};
use crate::log::PORT;
use crate::session::features::VIRTIO_NET_F_MTU;
use crate::session::{DeviceInfo, SessionEvents};
use crate::virtqueue::{Allow, Virtqueue};

impl SessionEvents for Port {
    fn give(&self, index: u16, virtqueue: Virtqueue) -> Option<Virtqueue> {
        let pair = usize::from(index / 2);
        if index % 2 == 1 {
            let Some(vring) = self.rx.get(pair) else {
                return Some(virtqueue);
            };
            let before = if let Some(lane) = self.rx_lane(index / 2) {
                vring.show(&virtqueue);
                lane.give(virtqueue);
                None
            } else {
                let burst = select_dequeue(&virtqueue, eal::max_simd_bits());
                vring.install(virtqueue, burst)
            };
            self.wake_if_owed(index / 2);
            before
        } else {
            let Some(vring) = self.tx.get(pair) else {
                return Some(virtqueue);
            };
            if let Some(lane) = self.tx_lane(index / 2) {
                vring.show(&virtqueue);
                lane.give(virtqueue);
                return None;
            }
            let burst = select_enqueue(&virtqueue, eal::max_simd_bits());
            vring.install(virtqueue, burst)
        }
    }

    fn take(&self, index: u16) -> Option<Virtqueue> {
        let pair = usize::from(index / 2);
        if index % 2 == 1 {
            let vring = self.rx.get(pair)?;
            if let Some(lane) = self.rx_lane(index / 2) {
                vring.hide();
                return lane.take();
            }
            vring.take()
        } else {
            let vring = self.tx.get(pair)?;
            if let Some(lane) = self.tx_lane(index / 2) {
                vring.hide();
                return lane.take();
            }
            vring.take()
        }
    }

    fn alter(&self, index: u16, work: &mut dyn FnMut(&mut Virtqueue)) {
        let pair = usize::from(index / 2);
        if index % 2 == 1 {
            if let Some(lane) = self.rx_lane(index / 2) {
                lane.alter(work);
            } else if let Some(vring) = self.rx.get(pair) {
                vring.alter(work);
            }
        } else if let Some(lane) = self.tx_lane(index / 2) {
            lane.alter(work);
        } else if let Some(vring) = self.tx.get(pair) {
            vring.alter(work);
        }
    }

    fn look_again(&self, index: u16) {
        if index % 2 == 1 {
            self.wake_if_owed(index / 2);
        }
    }

    fn postcopy(&self, under_way: bool) {
        if let Some(lanes) = &self.lanes {
            lanes.suspend(under_way);
        }
    }

    fn queue_state(&self, index: u16, ready: bool) {
        if lock(&self.events).set(index, ready) {
            self.raise(Event::QueueState);
        }
    }

    fn link_up(&self, device: &DeviceInfo) {
        if self.is_closing() {
            return;
        }
        self.shared.vid.store(device.vid, Ordering::Relaxed);
        self.shared
            .features
            .store(device.features, Ordering::Relaxed);
        self.adopt_mtu(device);
        self.adopt_node();
        self.shared.attached.store(true, Ordering::Relaxed);
        self.allow(Allow::Attached);
        self.dev().set_link(Link { up: true, ..LINK });
        log::info!(target: PORT, "{}: link up, vid {}", self.name, device.vid);
        (0..self.shared.queues).for_each(|queue| self.wake_if_owed(queue));
        self.raise(Event::LinkState);
    }

    fn link_down(&self) {
        self.forbid(Allow::Attached);
        lock(&self.events).clear();
        self.shared.vid.store(-1, Ordering::Relaxed);
        if !self.shared.attached.swap(false, Ordering::AcqRel) {
            return;
        }
        log::info!(target: PORT, "{}: link down", self.name);
        if self.is_closing() {
            // `close` raises the event itself, on its caller's thread.
            self.owes_link_down.store(true, Ordering::Release);
            return;
        }
        self.dev().set_link(LINK);
        self.raise(Event::LinkState);
    }

    fn send_rarp(&self, mac: [u8; 6]) {
        self.shared.rarp.ask(mac);
        // Any queue may take it; one that sleeps would not look.
        for (queue, vring) in (0..).zip(&self.rx) {
            if vring.wants_wake() {
                self.interrupts.wake(queue);
            }
        }
    }

    fn kick_changed(&self, index: u16, kick: Option<&Arc<File>>) {
        if index % 2 == 1 {
            self.interrupts.set_kick(&self.name, index / 2, kick);
        }
    }
}

impl Port {
    /// The MTU that the frontend was given becomes the port's. Without one it stays as it is.
    fn adopt_mtu(&self, device: &DeviceInfo) {
        if device.features & VIRTIO_NET_F_MTU != 0
            && let Some(mtu) = device.mtu
        {
            self.dev().set_mtu(mtu);
        }
    }

    /// The port is where the guest's memory is: on the node of its first ring.
    fn adopt_node(&self) {
        let ring = self.rx.first().and_then(|vring| vring.place());
        if let Some(node) = ring.and_then(eal::node_of) {
            self.dev().set_numa_node(node);
        }
    }

    /// Runs the application's callbacks, unless the port is going away.
    fn raise(&self, event: Event) {
        if !self.is_closing() {
            self.dev().raise(event);
        }
    }
}
