//! What the messages do to a device.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;

use super::super::error::RequestError;
use super::super::features::{
    self, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_RING_PACKED, VIRTIO_NET_F_MQ,
};
use super::super::say;
use super::super::vring::eventfd;
use super::Device;
use crate::memory::Gpa;
use crate::virtqueue::RingAreas;

const STATUS_FEATURES_OK: u8 = 8;

impl Device {
    pub(in crate::session) fn offered_features(&self) -> u64 {
        self.place.config.features
    }

    pub(in crate::session) fn offered_protocol_features(&self) -> u64 {
        self.place.config.protocol_features
    }

    pub(in crate::session) fn negotiate(&mut self, word: u64) -> Result<(), RequestError> {
        let surplus = word & !self.place.config.features;
        if surplus != 0 {
            self.features_refused = true;
            self.status &= !STATUS_FEATURES_OK;
            return Err(RequestError::NotOffered(surplus));
        }
        self.features_refused = false;
        if word == self.features {
            return Ok(());
        }
        // The log of a migration is switched on and off under a running device.
        if self.up && (word ^ self.features) & !VHOST_F_LOG_ALL != 0 {
            let from = self.features;
            return Err(RequestError::FeaturesWhileRunning { from, to: word });
        }
        say!(
            Info,
            self.iface(),
            "negotiated features {word:#x}: {}",
            features::names(word)
        );
        self.while_paused(|device| device.features = word);
        if !self.up && word & VIRTIO_NET_F_MQ == 0 {
            self.keep_first_pair();
        }
        Ok(())
    }

    /// What an earlier driver set up beyond its first queue pair means nothing to one that knows no
    /// others.
    fn keep_first_pair(&mut self) {
        for index in self.indices(|_| true).into_iter().skip(2) {
            self.pause(index);
            self.forget_kick(index);
            self.tell_not_ready(index);
        }
        self.vrings.truncate(2);
    }

    pub(in crate::session) fn negotiate_protocol(&mut self, word: u64) -> Result<(), RequestError> {
        let surplus = word & !self.place.config.protocol_features;
        if surplus != 0 {
            return Err(RequestError::ProtocolNotOffered(surplus));
        }
        say!(
            Info,
            self.iface(),
            "negotiated protocol features {word:#x}: {}",
            features::protocol_names(word)
        );
        self.protocol_features = word;
        Ok(())
    }

    pub(in crate::session) fn forget_all(&mut self) {
        self.forget_postcopy();
        self.link_down();
        for index in self.indices(|_| true) {
            self.pause(index);
            self.forget_kick(index);
            if let Some(vring) = self.at(index) {
                vring.setup.reset();
            }
        }
        self.memory = None;
        self.forget_translations();
        self.log = None;
        self.channel = None;
        self.features = 0;
        self.protocol_features = 0;
    }

    pub(in crate::session) fn set_size(
        &mut self,
        index: u32,
        size: u32,
    ) -> Result<(), RequestError> {
        let packed = self.packed();
        let (index, vring) = self.vring(index)?;
        let same = vring.setup.size().map(u32::from) == Some(size);
        if vring.running && !same {
            return Err(RequestError::Running(index));
        }
        if !vring.setup.set_size(size, packed) {
            return Err(RequestError::RingSize { index, size });
        }
        Ok(())
    }

    pub(in crate::session) fn set_areas(
        &mut self,
        index: u32,
        areas: RingAreas,
        used_log: Option<Gpa>,
    ) -> Result<(), RequestError> {
        let without_memory = self.memory.is_none();
        let (index, vring) = self.vring(index)?;
        if without_memory {
            return Err(RequestError::AddressesWithoutMemory(index));
        }
        let running = vring.running;
        self.pause(index);
        if let Some(vring) = self.at(index) {
            vring.setup.set_areas(areas, used_log);
        }
        if running {
            // A frontend does this when a migration begins; the ring goes on.
            self.start(index);
        }
        Ok(())
    }

    pub(in crate::session) fn set_base(
        &mut self,
        index: u32,
        base: u32,
    ) -> Result<(), RequestError> {
        let packed = self.packed();
        let (index, vring) = self.vring(index)?;
        if vring.running {
            return Err(RequestError::Running(index));
        }
        // The upper half tells where a packed ring gives back, which is the same place with us.
        let low = if packed { base & 0xffff } else { base };
        let low = u16::try_from(low).map_err(|_| RequestError::RingBase { index, base })?;
        vring.setup.set_base(low);
        Ok(())
    }

    fn packed(&self) -> bool {
        self.features & VIRTIO_F_RING_PACKED != 0
    }

    /// Ends vring `index`, and the link; the index at which the ring goes on.
    pub(in crate::session) fn end(&mut self, index: u32) -> Result<u16, RequestError> {
        let (index, _) = self.vring(index)?;
        self.link_down();
        self.pause(index);
        self.forget_kick(index);
        self.forget_translations();
        let (packed, held) = (self.packed(), self.is_held(index));
        let (_, vring) = self.vring(index.into())?;
        vring.setup.forget();
        if held {
            return Err(RequestError::Held(index));
        }
        Ok(vring.setup.base(packed))
    }

    /// Takes vring `index` away in order to change one of its files, and tells so.
    fn interrupt(&mut self, index: u16) {
        if self.is(index, |vring| vring.running) {
            self.pause(index);
            self.tell_not_ready(index);
        }
    }

    pub(in crate::session) fn set_kick(
        &mut self,
        index: u8,
        file: Option<File>,
    ) -> Result<(), RequestError> {
        let index = u16::from(index);
        let file = eventfd(index, file)?;
        self.vring(index.into())?;
        self.interrupt(index);
        self.forget_kick(index);
        let enables = self.features & VHOST_USER_F_PROTOCOL_FEATURES == 0;
        let (_, vring) = self.vring(index.into())?;
        vring.setup.set_kick(file);
        if enables {
            vring.setup.set_enabled(true);
        }
        Ok(())
    }

    pub(in crate::session) fn set_call(
        &mut self,
        index: u8,
        file: Option<File>,
    ) -> Result<(), RequestError> {
        let index = u16::from(index);
        let file = eventfd(index, file)?;
        self.vring(index.into())?;
        self.interrupt(index);
        let (_, vring) = self.vring(index.into())?;
        vring.setup.set_call(file);
        Ok(())
    }

    pub(in crate::session) fn enable(
        &mut self,
        index: u32,
        enabled: bool,
    ) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        vring.setup.set_enabled(enabled);
        if !enabled {
            self.pause(index);
        }
        Ok(())
    }

    /// The frontend names a vring in a message without effect.
    pub(in crate::session) fn touch(&mut self, index: u8) -> Result<(), RequestError> {
        self.vring(index.into()).map(|_| ())
    }

    /// The port knows of the frame before the answer; without a link, once there is one.
    pub(in crate::session) fn send_rarp(&mut self, mac: [u8; 6]) {
        self.rarp = Some(mac);
        self.pass_rarp();
    }

    pub(in crate::session) fn set_mtu(&mut self, mtu: u64) -> Result<(), RequestError> {
        let fits = u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68);
        self.mtu = Some(fits.ok_or(RequestError::Mtu(mtu))?);
        Ok(())
    }

    pub(in crate::session) fn set_channel(&mut self, channel: OwnedFd) {
        self.channel = Some(channel);
        self.ask_anew();
    }

    pub(in crate::session) fn set_status(&mut self, status: u64) -> Result<(), RequestError> {
        let mut status = u8::try_from(status).map_err(|_| RequestError::Status(status))?;
        if self.features_refused {
            status &= !STATUS_FEATURES_OK;
        }
        self.status = status;
        Ok(())
    }

    pub(in crate::session) fn status(&self) -> u8 {
        self.status
    }
}
