//! What a frontend wants while it migrates its guest.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use super::super::error::RequestError;
use super::super::features::VHOST_F_LOG_ALL;
use super::super::say;
use super::super::vring::{SetupError, Translated};
use super::Device;
use crate::memory::{DirtyLog, Gpa};
use crate::virtqueue::Virtqueue;

impl Device {
    /// `SET_LOG_BASE`. Running vrings go on with the new log; when it cannot be mapped, with the one
    /// before.
    pub(in crate::session) fn set_log(
        &mut self,
        file: File,
        size: u64,
        offset: u64,
    ) -> Result<(), RequestError> {
        let log = DirtyLog::map(file, size, offset).map_err(|source| RequestError::Log {
            size,
            offset,
            source,
        })?;
        let end = log.end();
        let used = self.features & VHOST_F_LOG_ALL != 0;
        let log = Some(Arc::new(log));
        if used {
            self.while_paused(|device| device.log = log);
        } else {
            self.log = log;
        }
        say!(Info, self.iface(), "dirty log of {size:#x} bytes");
        if end < self.memory_end() {
            say!(
                Warn,
                self.iface(),
                "the dirty log ends at {end:x?}, before guest memory: writes behind that are lost \
                 to a migration"
            );
        }
        Ok(())
    }

    /// The first guest-physical address behind all memory.
    fn memory_end(&self) -> Gpa {
        let last = self
            .memory
            .as_ref()
            .and_then(|memory| memory.regions().last());
        last.map_or(Gpa(0), |region| {
            let config = region.config();
            Gpa(config.gpa.0.saturating_add(config.size))
        })
    }

    /// `virtqueue`, which notes what it writes when the guest is migrated. Behind an IOMMU the address
    /// of its used ring's log is translated like that of the used ring.
    pub(super) fn logged(
        &self,
        index: u16,
        virtqueue: Virtqueue,
        translated: Option<&Translated>,
    ) -> Result<Virtqueue, SetupError> {
        let log = self.log.as_ref();
        let Some(log) = log.filter(|_| self.features & VHOST_F_LOG_ALL != 0) else {
            return Ok(virtqueue);
        };
        let vring = self.vrings.get(usize::from(index));
        let used = vring.and_then(|vring| vring.setup.used_log());
        let used = match (used, translated) {
            (Some(at), Some(translated)) => Some(translated.log(at)?),
            (used, _) => used,
        };
        Ok(virtqueue.logged(Arc::clone(log), used))
    }
}
