//! The `vhost` crate's request handler trait, for the messages that the crate serves.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::Device;
use super::error::RequestError;
use crate::memory::{Gpa, MemoryTable, RegionConfig, Uva};
use crate::virtqueue::RingAreas;

/// What the crate hands over of a region; the two base addresses are for postcopy.
type RegionBase = vhost::VhostUserMemoryRegionBase;

fn config(region: &VhostUserMemoryRegion) -> RegionConfig {
    RegionConfig {
        gpa: Gpa(region.guest_phys_addr),
        uva: Uva(region.user_addr),
        size: region.memory_size,
        offset: region.mmap_offset,
    }
}

/// For messages that never get to the crate: the table refuses them.
fn refused<T>() -> Result<T> {
    Err(Error::InvalidOperation("not supported"))
}

impl Device {
    /// Keeps the reason of a failure, since the crate's error has no room for it.
    fn keep<T>(&mut self, result: std::result::Result<T, RequestError>) -> Result<T> {
        result.map_err(|error| {
            self.failure = Some(error);
            Error::ReqHandlerError(io::Error::other("see the device"))
        })
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.forget_all();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let result = self.negotiate(features);
        self.keep(result)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let offered = self.offered_protocol_features();
        Ok(VhostUserProtocolFeatures::from_bits_retain(offered))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let result = self.negotiate_protocol(features);
        self.keep(result)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<RegionBase>>> {
        let regions = regions.iter().map(config).zip(files).collect();
        let result = self.set_memory(regions);
        self.keep(result).map(|()| None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MemoryTable::MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<RegionBase>> {
        let result = self.add_region(config(region), file);
        self.keep(result).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.remove_region(config(region));
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let result = self.set_size(index, num);
        self.keep(result)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let areas = RingAreas {
            descriptors: Uva(descriptor),
            available: Uva(available),
            used: Uva(used),
        };
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let result = self.set_areas(index, areas, logged.then_some(Gpa(log)));
        self.keep(result)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let result = self.set_base(index, base);
        self.keep(result)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let result = self.end(index);
        let base = self.keep(result)?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let result = self.set_kick(index, file);
        self.keep(result)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let result = self.set_call(index, file);
        self.keep(result)
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        // Errors of a ring are never signalled; the file is closed.
        let result = self.touch(index);
        self.keep(result)
    }

    // The table refuses the rest, or has a function of its own for it.

    fn reset_device(&mut self) -> Result<()> {
        refused()
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        refused()
    }

    fn set_vring_enable(&mut self, _index: u32, _enable: bool) -> Result<()> {
        refused()
    }

    fn get_config(
        &mut self,
        _offset: u32,
        _size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        refused()
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        refused()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        refused()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        refused()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        refused()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        refused()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        refused()
    }

    fn check_device_state(&mut self) -> Result<()> {
        refused()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        refused()
    }
}
