//! The device of one connection: what the frontend set up, and what the port was told of it.
//!
//! A message changes the setup, and takes what it touches away from the port before it is
//! answered. [`Device::settle`] then, after the answer, hands over what has become ready and raises
//! the events.
#![forbid(unsafe_code)]

mod held;
mod iommu;
mod migration;
mod postcopy;
mod regions;
mod requests;

pub(super) use iommu::IotlbMessage;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::held::Held;
use self::iommu::Asking;
use super::bell::LateBell;
use super::error::RequestError;
use super::features::VHOST_USER_PROTOCOL_F_STATUS;
use super::postcopy::Postcopy;
use super::say;
use super::spawn::Spawn;
use super::turn::{Turn, Vid};
use super::voice::Voice;
use super::vring::{SetupError, Translated, VringSetup};
use super::{DeviceInfo, SessionConfig, SessionEvents};
use crate::memory::{Access, DirtyLog, Iotlb, IovaRange, MemoryTable, Questions};
use crate::virtqueue::Virtqueue;

/// The most vrings of a device.
const MAX_VRINGS: u32 = 256;

const STATUS_DRIVER_OK: u8 = 4;

/// What a device has from its port.
pub(super) struct Place {
    pub(super) voice: Arc<Voice>,
    pub(super) config: Arc<SessionConfig>,
    pub(super) events: Arc<dyn SessionEvents>,
    pub(super) turn: Arc<Turn>,
    /// Rings when the turn is free again, or a burst misses a translation.
    pub(super) bell: Arc<LateBell>,
    /// The port is closing: no more events.
    pub(super) ending: Arc<AtomicBool>,
    pub(super) spawn: Arc<dyn Spawn>,
    /// The frontend's.
    pub(super) socket: Arc<UnixStream>,
    pub(super) vid: Vid,
}

/// What the application knows of a vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    NotReady,
    Ready,
    /// It was told, and forgot it when the link went down.
    Forgotten,
}

struct Vring {
    setup: VringSetup,
    /// The port has the virtqueue, or `spare` has.
    running: bool,
    /// A virtqueue for which the port has no queue.
    spare: Option<Virtqueue>,
    told: Told,
    /// The port knows the kick eventfd.
    kick_told: bool,
    /// Behind an IOMMU: what its virtqueue misses.
    questions: Option<Arc<Questions>>,
    /// Where it lies, behind an IOMMU, while it runs.
    lies_in: Vec<IovaRange>,
    /// Its virtqueue waits for a translation.
    missed: bool,
    /// A copy engine that cannot be stopped has chains of it.
    held: Option<Held>,
    /// Nobody has looked yet at what the driver put there for us to fill.
    unseen: bool,
    /// Where it was when it started.
    begun: u16,
    /// How many slots were taken until it was stopped.
    taken: u16,
    /// A flush has stopped it: how many slots to look ahead when it starts again.
    near: Option<u16>,
    /// The setup does not make a virtqueue, and was not changed since.
    rejected: bool,
}

/// The device of one connection.
pub(super) struct Device {
    place: Place,
    features: u64,
    /// The last `SET_FEATURES` was refused.
    features_refused: bool,
    protocol_features: u64,
    status: u8,
    mtu: Option<u16>,
    memory: Option<Arc<MemoryTable>>,
    /// What the frontend told of its IOMMU.
    iotlb: Arc<Iotlb>,
    asking: Asking,
    /// Where to note what is written, while `VHOST_F_LOG_ALL` is acked.
    log: Option<Arc<DirtyLog>>,
    postcopy: Option<Postcopy>,
    /// Where the regions of the request at hand were mapped, when the frontend has to know.
    pub(super) bases: Option<Vec<u64>>,
    /// For requests to the frontend. It takes an end of file for the end of the device.
    channel: Option<OwnedFd>,
    vrings: Vec<Vring>,
    /// The link is up.
    up: bool,
    /// To be sent when the link is up.
    rarp: Option<[u8; 6]>,
    /// Waiting for the turn was logged.
    waits: bool,
    /// More vrings than queues was logged.
    surplus: bool,
    /// Why the request at hand failed, in more words than the `vhost` crate can carry.
    pub(super) failure: Option<RequestError>,
}

impl Device {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            features: 0,
            features_refused: false,
            protocol_features: 0,
            status: 0,
            mtu: None,
            memory: None,
            iotlb: Arc::default(),
            asking: Asking::default(),
            log: None,
            postcopy: None,
            bases: None,
            channel: None,
            vrings: Vec::new(),
            up: false,
            rarp: None,
            waits: false,
            surplus: false,
            failure: None,
        }
    }

    fn iface(&self) -> &Voice {
        &self.place.voice
    }

    /// Vring `index`; those below it come into being with it.
    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), RequestError> {
        let beyond = RequestError::VringIndex(index);
        let nth = usize::try_from(index).ok().filter(|_| index < MAX_VRINGS);
        let (Some(nth), Ok(short)) = (nth, u16::try_from(index)) else {
            return Err(beyond);
        };
        while self.vrings.len() <= nth {
            self.vrings.push(Vring {
                setup: VringSetup::new()?,
                running: false,
                spare: None,
                told: Told::NotReady,
                kick_told: false,
                questions: None,
                lies_in: Vec::new(),
                missed: false,
                held: None,
                unseen: false,
                begun: 0,
                taken: 0,
                near: None,
                rejected: false,
            });
        }
        let vring = self.vrings.get_mut(nth).ok_or(beyond)?;
        vring.rejected = false;
        Ok((short, vring))
    }

    /// The indices of all vrings for which `which` holds.
    fn indices(&self, which: impl Fn(&Vring) -> bool) -> Vec<u16> {
        let all = (0..).zip(&self.vrings);
        all.filter(|(_, vring)| which(vring))
            .map(|(index, _)| index)
            .collect()
    }

    fn at(&mut self, index: u16) -> Option<&mut Vring> {
        self.vrings.get_mut(usize::from(index))
    }

    /// Takes vring `index` away from the port. When this returns, nobody touches it, and its index
    /// is in the setup.
    fn pause(&mut self, index: u16) {
        let events = Arc::clone(&self.place.events);
        let Some(vring) = self.at(index).filter(|vring| vring.running) else {
            return;
        };
        vring.running = false;
        if let Some(virtqueue) = vring.spare.take().or_else(|| events.take(index)) {
            if virtqueue.is_held() {
                vring.held = Some(Held::new(&vring.setup, &virtqueue));
            }
            vring.taken = virtqueue.slots_since(vring.begun);
            vring.setup.set_base(virtqueue.stop());
        }
    }

    /// Hands vring `index` to the port if it is complete; `false` when it must wait for the turn.
    fn start(&mut self, index: u16) -> bool {
        let startable = |vring: &Vring| !vring.running && !vring.rejected && vring.setup.complete();
        if !self.is(index, startable) {
            return true;
        }
        if self.is_held(index) {
            self.tell_held(index);
            return true;
        }
        let (features, memory) = (self.features, self.memory.clone());
        let translated = self.translated(index);
        let untouchable = self.postcopy.as_ref().is_some_and(Postcopy::awaits_ack);
        let Some(vring) = self.at(index).filter(|_| !untouchable) else {
            return true;
        };
        let activated = vring
            .setup
            .activate(memory.as_ref(), features, translated.as_ref());
        let activated =
            activated.and_then(|virtqueue| self.logged(index, virtqueue, translated.as_ref()));
        let mut virtqueue = match activated {
            Ok(virtqueue) => virtqueue,
            Err(error) => {
                if let Some(vring) = self.at(index) {
                    vring.rejected = true;
                }
                match error {
                    SetupError::Miss(miss) => {
                        say!(Debug, self.iface(), "vring {index}: {error}");
                        self.ask_at_once(index, miss, translated.as_ref());
                    }
                    // Messages that make it whole may be under way.
                    SetupError::NoSize | SetupError::NoAddresses => {
                        say!(Debug, self.iface(), "vring {index}: {error}");
                    }
                    _ => say!(Warn, self.iface(), "vring {index} not ready: {error}"),
                }
                return true;
            }
        };
        if !self.take_turn() {
            return false;
        }
        if let Some(found) = virtqueue.resumed() {
            say!(
                Warn,
                self.iface(),
                "vring {index}: goes on at {found}, where its used ring ends, not at the base"
            );
        }
        if let Some(vring) = self.at(index) {
            vring.begun = virtqueue.position();
            let near = vring.near.take().zip(virtqueue.lookaside.as_mut());
            if let Some((near, lookaside)) = near {
                lookaside.look_near(near);
            }
        }
        let place = &self.place;
        let spare = place.events.give(index, virtqueue);
        if spare.is_some() && !std::mem::replace(&mut self.surplus, true) {
            let served = place.config.vrings;
            say!(
                Warn,
                place.voice,
                "vring {index} is ready, but nobody polls it: the port serves {served} vrings"
            );
        }
        let events = Arc::clone(&place.events);
        let Some(vring) = self.at(index) else {
            return true;
        };
        vring.running = true;
        vring.held = None;
        vring.spare = spare;
        if let Some(translated) = translated {
            vring.unseen = translated.need == Access::WRITE;
            vring.lies_in = vring.setup.lies_in(features);
            vring.questions = Some(translated.questions);
        } else {
            vring.lies_in.clear();
            vring.questions = None;
        }
        if !vring.kick_told && vring.setup.kick().is_some() {
            vring.kick_told = true;
            events.kick_changed(index, vring.setup.kick());
        }
        // The driver may wait for what an earlier backend, or an earlier turn of ours, gave back
        // without a word, and whoever sleeps on our side for what was offered meanwhile.
        vring.setup.wake();
        true
    }

    /// What vring `index` needs behind an IOMMU; `None` when there is none.
    fn translated(&self, index: u16) -> Option<Translated> {
        if !self.behind_iommu() {
            return None;
        }
        // Without one `timeout` has us look now and then.
        let bell = self.place.bell.get().ok().cloned();
        let ring = move || {
            if let Some(bell) = &bell {
                bell.ring();
            }
        };
        Some(Translated {
            iotlb: Arc::clone(&self.iotlb),
            // Drivers transmit on odd vrings.
            need: match index % 2 {
                0 => Access::WRITE,
                _ => Access::READ,
            },
            questions: Arc::new(Questions::new(ring)),
        })
    }

    fn take_turn(&mut self) -> bool {
        let place = &self.place;
        let ours = place.turn.take(place.vid.get(), &place.bell);
        if !ours && !self.waits {
            say!(
                Info,
                self.iface(),
                "connection {} waits: another frontend is served",
                self.place.vid.get()
            );
        }
        self.waits = !ours;
        ours
    }

    /// Runs `change` while no vring is with the port; afterwards those that were and still can be
    /// are there again, at the index where they were.
    fn while_paused<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let running = self.indices(|vring| vring.running);
        for &index in &running {
            self.pause(index);
        }
        let result = change(self);
        for vring in &mut self.vrings {
            vring.rejected = false;
        }
        for index in running {
            self.start(index);
        }
        result
    }

    /// The kick eventfd of vring `index` is about to be closed.
    fn forget_kick(&mut self, index: u16) {
        let events = Arc::clone(&self.place.events);
        if let Some(vring) = self.at(index).filter(|vring| vring.kick_told) {
            vring.kick_told = false;
            events.kick_changed(index, None);
        }
    }

    /// Tells the application that vring `index` is not ready, if it believes otherwise.
    fn tell_not_ready(&mut self, index: u16) {
        let events = Arc::clone(&self.place.events);
        let Some(vring) = self.at(index) else { return };
        let told = std::mem::replace(&mut vring.told, Told::NotReady);
        if told == Told::Ready {
            events.queue_state(index, false);
        }
    }

    fn tell_ready(&mut self, index: u16) {
        let events = Arc::clone(&self.place.events);
        if let Some(vring) = self.at(index) {
            vring.told = Told::Ready;
            events.queue_state(index, true);
        }
    }

    fn link_down(&mut self) {
        if !std::mem::replace(&mut self.up, false) {
            return;
        }
        say!(Info, self.iface(), "device stops");
        self.place.events.link_down();
        for vring in &mut self.vrings {
            if vring.told == Told::Ready {
                vring.told = Told::Forgotten;
            }
        }
    }

    fn is(&self, index: u16, which: impl Fn(&Vring) -> bool) -> bool {
        self.vrings.get(usize::from(index)).is_some_and(which)
    }

    /// Whether the first queue pair runs and the driver has said that it is ready.
    fn ready(&self) -> bool {
        let status = self.protocol_features & VHOST_USER_PROTOCOL_F_STATUS != 0;
        self.is(0, |vring| vring.running)
            && self.is(1, |vring| vring.running)
            && (!status || self.status & STATUS_DRIVER_OK != 0)
    }

    fn ending(&self) -> bool {
        self.place.ending.load(Ordering::Acquire)
    }

    /// After each message, and when the turn may be free: hands over what has become ready, and
    /// raises the events. Any of these may close the port.
    pub(super) fn settle(&mut self) {
        self.ask_again();
        let end = u16::try_from(self.vrings.len()).unwrap_or(u16::MAX);
        // Asked once: a turn that comes while we are at it would begin in the middle of the vrings.
        let mut waits = false;
        for index in 0..end {
            if self.ending() {
                return;
            }
            waits = waits || !self.start(index);
            if self.is(index, |vring| vring.running) {
                let told = self.at(index).map(|vring| vring.told);
                if told == Some(Told::NotReady) || told == Some(Told::Forgotten) && self.up {
                    self.tell_ready(index);
                }
            } else {
                self.tell_not_ready(index);
            }
            if index == 1 && !self.up && self.ready() && !self.ending() {
                self.link_up();
            }
        }
        self.pass_rarp();
        self.ask_on();
        if !self.up && !self.vrings.iter().any(|vring| vring.running) {
            let waits = self.waits && self.vrings.iter().any(|vring| vring.setup.complete());
            if !waits {
                self.waits = false;
                self.place.turn.leave(self.place.vid.get());
            }
        }
    }

    /// Tells the port of the RARP frame that the frontend asked for, as soon as there is a link.
    fn pass_rarp(&mut self) {
        if self.up
            && !self.ending()
            && let Some(mac) = self.rarp.take()
        {
            self.place.events.send_rarp(mac);
        }
    }

    fn link_up(&mut self) {
        for index in [0, 1] {
            if self.is(index, |vring| vring.told == Told::Forgotten) {
                self.tell_ready(index);
            }
        }
        let device = DeviceInfo {
            vid: self.place.vid.get(),
            features: self.features,
            mtu: self.mtu,
        };
        say!(
            Info,
            self.iface(),
            "device {} is ready, features {:#x}",
            device.vid,
            device.features
        );
        self.up = true;
        self.place.events.link_up(&device);
    }

    /// The connection is over: gives everything up.
    pub(super) fn disconnect(&mut self) {
        // First of all: an lcore may be waiting for a page in a burst.
        self.forget_postcopy();
        self.link_down();
        for index in self.indices(|_| true) {
            self.pause(index);
            self.forget_kick(index);
            // Without a link there was no other event that could tell.
            self.tell_not_ready(index);
        }
        self.vrings.clear();
        self.memory = None;
        self.forget_translations();
        self.log = None;
        self.channel = None;
        self.place.turn.leave(self.place.vid.get());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.disconnect();
    }
}
