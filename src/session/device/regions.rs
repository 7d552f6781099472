//! The memory of a device.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use super::super::error::RequestError;
use super::super::say;
use super::Device;
use crate::memory::{MemoryTable, Region, RegionConfig};

impl Device {
    /// Maps the `nth` region of a message.
    fn map(
        &self,
        nth: usize,
        config: RegionConfig,
        file: File,
    ) -> Result<Arc<Region>, RequestError> {
        let region = match self.userfault() {
            Some(userfault) => Region::map_awaited(config, file, userfault),
            None => Region::map(config, file),
        };
        let region = region.map_err(|source| RequestError::Map {
            nth,
            gpa: config.gpa.0,
            size: config.size,
            source,
        })?;
        Ok(Arc::new(region))
    }

    /// Where a region is mapped already.
    fn known(&self, config: RegionConfig, file: &File) -> Option<u64> {
        let regions = self.memory.as_ref()?.regions();
        let known = regions.iter().find(|region| region.is(config, file));
        known.map(|region| region.base())
    }

    /// `SET_MEM_TABLE`. The same table again changes nothing; otherwise running vrings go on in the
    /// new one, and without events. After a failure there is no memory at all.
    pub(in crate::session) fn set_memory(
        &mut self,
        regions: Vec<(RegionConfig, File)>,
    ) -> Result<(), RequestError> {
        if self.memory.is_some() && self.region_count() == regions.len() {
            let known = regions.iter();
            let known = known.map(|(config, file)| self.known(*config, file));
            if let Some(bases) = known.collect() {
                self.tell_bases(bases);
                return Ok(());
            }
        }
        // Mapping takes its time; rings run in the old table meanwhile.
        let mapped = (0..).zip(regions);
        let mapped: Result<Vec<_>, _> = mapped
            .map(|(nth, (config, file))| self.map(nth, config, file))
            .collect();
        let table = mapped.and_then(|regions| {
            let bases = regions.iter().map(|region| region.base()).collect();
            Ok((MemoryTable::new(regions)?, bases))
        });
        match table {
            Ok((table, bases)) => {
                self.tell_bases(bases);
                self.replace_memory(table);
                Ok(())
            }
            Err(error) => {
                self.while_paused(|device| {
                    device.memory = None;
                    device.forget_translations();
                });
                Err(error)
            }
        }
    }

    /// `ADD_MEM_REG`. A region that is there already is no error: QEMU before 8.0 describes its
    /// memory once for each queue pair.
    pub(in crate::session) fn add_region(
        &mut self,
        config: RegionConfig,
        file: File,
    ) -> Result<(), RequestError> {
        if let Some(base) = self.known(config, &file) {
            self.tell_bases(vec![base]);
            return Ok(());
        }
        let region = self.map(self.region_count(), config, file)?;
        let base = region.base();
        let table = match &self.memory {
            Some(memory) => memory.with(region)?,
            None => MemoryTable::new(vec![region])?,
        };
        self.tell_bases(vec![base]);
        self.replace_memory(table);
        Ok(())
    }

    /// `REM_MEM_REG`. A region that is gone already is no error, for the same reason as in
    /// [`add_region`](Self::add_region).
    pub(in crate::session) fn remove_region(&mut self, config: RegionConfig) {
        let memory = self.memory.as_ref();
        match memory.and_then(|memory| memory.without(config)) {
            Some(table) => self.replace_memory(table),
            None => say!(
                Debug,
                self.iface(),
                "no region of {:#x} bytes at {:#x} to remove",
                config.size,
                config.gpa.0
            ),
        }
    }

    pub(super) fn region_count(&self) -> usize {
        self.memory
            .as_ref()
            .map_or(0, |memory| memory.regions().len())
    }

    fn replace_memory(&mut self, table: MemoryTable) {
        self.while_paused(|device| {
            device.memory = Some(Arc::new(table));
            device.forget_translations();
        });
        say!(
            Info,
            self.iface(),
            "memory table of {} regions",
            self.region_count()
        );
    }
}
