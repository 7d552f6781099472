//! The memory of a device whose guest comes by postcopy migration.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::error::RequestError;
use super::super::features::VHOST_USER_PROTOCOL_F_PAGEFAULT;
use super::super::postcopy::Postcopy;
use super::super::say;
use super::Device;
use crate::memory::Userfault;

impl Device {
    /// The migration that the frontend has begun.
    fn begun(&mut self) -> Result<&mut Postcopy, RequestError> {
        let postcopy = self.postcopy.as_mut();
        postcopy.ok_or(RequestError::Postcopy("POSTCOPY_ADVISE has not come"))
    }

    fn may_come_so(&self) -> Result<(), RequestError> {
        if self.protocol_features & VHOST_USER_PROTOCOL_F_PAGEFAULT == 0 {
            return Err(RequestError::Postcopy("PAGEFAULT is not negotiated"));
        }
        Ok(())
    }

    /// `POSTCOPY_ADVISE`; the descriptor on which the frontend hears of page faults. QEMU asks once
    /// for each queue pair: all get the same, so that it does not matter which of them listens.
    pub(in crate::session) fn advise(&mut self) -> Result<OwnedFd, RequestError> {
        self.may_come_so()?;
        if let Some(postcopy) = &self.postcopy {
            return Ok(postcopy.share()?);
        }
        let postcopy = Postcopy::begin(&self.place.socket, &*self.place.spawn)?;
        let shared = postcopy.share()?;
        self.postcopy = Some(postcopy);
        self.place.events.postcopy(true);
        // Nor may engines keep pages that the frontend is about to replace.
        for region in self.memory.iter().flat_map(|memory| memory.regions()) {
            region.evict(|_| true);
        }
        say!(Info, self.iface(), "postcopy begins");
        Ok(shared)
    }

    /// `POSTCOPY_LISTEN`: memory that is mapped from now on is still on its way.
    pub(in crate::session) fn listen(&mut self) -> Result<(), RequestError> {
        let mapped = self.region_count();
        let postcopy = self.begun()?;
        if mapped != 0 && postcopy.userfault().is_none() {
            return Err(RequestError::Postcopy("there is memory already"));
        }
        postcopy.listen();
        Ok(())
    }

    /// What memory has to be mapped with, from `POSTCOPY_LISTEN` to `POSTCOPY_END`.
    pub(super) fn userfault(&self) -> Option<&Arc<Userfault>> {
        self.postcopy.as_ref().and_then(Postcopy::userfault)
    }

    /// Whether the frontend has to know where its memory is mapped.
    pub(in crate::session) fn listens(&self) -> bool {
        self.userfault().is_some()
    }

    /// The frontend says that it is ready for page faults in all memory that it was told of.
    pub(in crate::session) fn acknowledge(&mut self, failure: u64) -> Result<(), RequestError> {
        let postcopy = self.begun()?;
        if !postcopy.awaits_ack() {
            return Err(RequestError::Postcopy("no acknowledgement is awaited"));
        }
        if failure != 0 {
            return Err(RequestError::Postcopy("the frontend is not ready for it"));
        }
        // Vrings start when the message is settled.
        postcopy.acknowledged();
        Ok(())
    }

    /// `POSTCOPY_END`: all memory is here. This, too, comes once for each queue pair.
    pub(in crate::session) fn end_postcopy(&mut self) -> Result<(), RequestError> {
        self.may_come_so()?;
        if self.forget_postcopy() {
            say!(Info, self.iface(), "postcopy is over");
        }
        Ok(())
    }

    /// Nothing is awaited of the migration any more; whether there was one.
    pub(super) fn forget_postcopy(&mut self) -> bool {
        let begun = self.postcopy.take().is_some();
        if begun {
            self.place.events.postcopy(false);
        }
        begun
    }

    /// Memory of the frontend was mapped at `bases`.
    pub(super) fn tell_bases(&mut self, bases: Vec<u64>) {
        if let Some(postcopy) = self.postcopy.as_mut().filter(|p| p.userfault().is_some()) {
            postcopy.await_ack();
            self.bases = Some(bases);
        }
    }
}
