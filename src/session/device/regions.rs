//! The memory of a device.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use super::super::error::RequestError;
use super::super::say;
use super::Device;
use crate::memory::{MemoryTable, Region, RegionConfig};

/// Maps the `nth` region of a message.
fn map(nth: usize, config: RegionConfig, file: File) -> Result<Arc<Region>, RequestError> {
    let region = Region::map(config, file).map_err(|source| RequestError::Map {
        nth,
        gpa: config.gpa.0,
        size: config.size,
        source,
    })?;
    Ok(Arc::new(region))
}

impl Device {
    /// `SET_MEM_TABLE`. The same table again changes nothing; otherwise running vrings go on in the
    /// new one, and without events. After a failure there is no memory at all.
    pub(in crate::session) fn set_memory(
        &mut self,
        regions: Vec<(RegionConfig, File)>,
    ) -> Result<(), RequestError> {
        if let Some(memory) = &self.memory {
            let known = |(config, file): &(RegionConfig, File)| {
                memory.regions().iter().any(|r| r.is(*config, file))
            };
            if memory.regions().len() == regions.len() && regions.iter().all(known) {
                return Ok(());
            }
        }
        // Mapping takes its time; rings run in the old table meanwhile.
        let mapped = (0..).zip(regions);
        let mapped: Result<Vec<_>, _> = mapped
            .map(|(nth, (config, file))| map(nth, config, file))
            .collect();
        let table = mapped.and_then(|regions| Ok(MemoryTable::new(regions)?));
        match table {
            Ok(table) => {
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
        if let Some(memory) = &self.memory
            && memory.regions().iter().any(|r| r.is(config, &file))
        {
            return Ok(());
        }
        let region = map(self.region_count(), config, file)?;
        let table = match &self.memory {
            Some(memory) => memory.with(region)?,
            None => MemoryTable::new(vec![region])?,
        };
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

    fn region_count(&self) -> usize {
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
