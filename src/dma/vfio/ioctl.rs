//! VFIO's ioctls, each as a safe function.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::c_int;
use vfio_bindings::bindings::vfio as uapi;

use super::Piece;

/// The number of VFIO's `nth` ioctl: `_IO(';', 100 + nth)`.
const fn number(nth: u32) -> libc::c_ulong {
    ((uapi::VFIO_TYPE as u32) << 8 | (uapi::VFIO_BASE + nth)) as libc::c_ulong
}

const GET_API_VERSION: libc::c_ulong = number(0);
const CHECK_EXTENSION: libc::c_ulong = number(1);
const SET_IOMMU: libc::c_ulong = number(2);
const GROUP_GET_STATUS: libc::c_ulong = number(3);
const GROUP_SET_CONTAINER: libc::c_ulong = number(4);
const GROUP_GET_DEVICE_FD: libc::c_ulong = number(6);
const DEVICE_GET_INFO: libc::c_ulong = number(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = number(8);
const DEVICE_RESET: libc::c_ulong = number(11);
const IOMMU_GET_INFO: libc::c_ulong = number(12);
const IOMMU_MAP_DMA: libc::c_ulong = number(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = number(14);

/// The system's answer, or its error.
fn answer(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An ioctl whose argument is a number.
fn with_number(file: &File, request: libc::c_ulong, number: libc::c_ulong) -> io::Result<c_int> {
    // SAFETY: only called below, with requests that take a number and touch no memory of ours.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), request, number) })
}

/// An ioctl whose argument is a struct that begins with its own size.
fn with_struct<T>(file: &File, request: libc::c_ulong, argument: &mut T) -> io::Result<c_int> {
    // SAFETY: only called below, with the struct of the request (linux/vfio.h), whose `argsz` says
    // how much of it the kernel may read and write.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

pub(super) fn api_version(container: &File) -> io::Result<c_int> {
    with_number(container, GET_API_VERSION, 0)
}

pub(super) fn has_type1v2(container: &File) -> io::Result<bool> {
    let extension = uapi::VFIO_TYPE1v2_IOMMU;
    Ok(with_number(container, CHECK_EXTENSION, extension.into())? == 1)
}

pub(super) fn set_type1v2(container: &File) -> io::Result<()> {
    with_number(container, SET_IOMMU, uapi::VFIO_TYPE1v2_IOMMU.into()).map(|_| ())
}

/// The bits of `VFIO_GROUP_FLAGS_*`.
pub(super) fn group_status(group: &File) -> io::Result<u32> {
    let mut status = uapi::vfio_group_status {
        argsz: size::<uapi::vfio_group_status>(),
        flags: 0,
    };
    with_struct(group, GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

pub(super) fn group_set_container(group: &File, container: &File) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    with_struct(group, GROUP_SET_CONTAINER, &mut fd).map(|_| ())
}

pub(super) fn group_device(group: &File, bdf: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(bdf)?;
    // SAFETY: the request reads a string, which ends with NUL and lives through the call.
    let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    let fd = answer(fd)?;
    // SAFETY: a new descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn device_info(device: &File) -> io::Result<uapi::vfio_device_info> {
    let mut info = uapi::vfio_device_info {
        argsz: size::<uapi::vfio_device_info>(),
        ..Default::default()
    };
    with_struct(device, DEVICE_GET_INFO, &mut info)?;
    Ok(info)
}

pub(super) fn region_info(device: &File, index: u32) -> io::Result<uapi::vfio_region_info> {
    let mut info = uapi::vfio_region_info {
        argsz: size::<uapi::vfio_region_info>(),
        index,
        ..Default::default()
    };
    with_struct(device, DEVICE_GET_REGION_INFO, &mut info)?;
    Ok(info)
}

pub(super) fn device_reset(device: &File) -> io::Result<()> {
    with_number(device, DEVICE_RESET, 0).map(|_| ())
}

/// The container's answer to `VFIO_IOMMU_GET_INFO`, with all capabilities, as it lies in memory.
pub(super) fn iommu_info(container: &File) -> io::Result<Vec<u8>> {
    // Far more than any kernel says; a multiple of the struct's alignment.
    const ROOM: usize = 4096;
    #[repr(C, align(8))]
    struct Answer([u8; ROOM]);

    let mut info = Answer([0; ROOM]);
    let room = u32::try_from(ROOM).unwrap_or(0);
    if let Some(argsz) = info.0.first_chunk_mut() {
        *argsz = room.to_ne_bytes();
    }
    with_struct(container, IOMMU_GET_INFO, &mut info)?;
    Ok(info.0.to_vec())
}

pub(super) fn map_dma(container: &File, piece: &Piece) -> io::Result<()> {
    let mut map = uapi::vfio_iommu_type1_dma_map {
        argsz: size::<uapi::vfio_iommu_type1_dma_map>(),
        flags: uapi::VFIO_DMA_MAP_FLAG_READ | uapi::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: piece.va as u64,
        iova: piece.iova,
        size: piece.len as u64,
    };
    with_struct(container, IOMMU_MAP_DMA, &mut map).map(|_| ())
}

/// Returns how much was unmapped: the kernel does not call it an error when there was nothing.
pub(super) fn unmap_dma(container: &File, piece: &Piece) -> io::Result<u64> {
    let mut unmap = uapi::vfio_iommu_type1_dma_unmap {
        argsz: size::<uapi::vfio_iommu_type1_dma_unmap>(),
        iova: piece.iova,
        size: piece.len as u64,
        ..Default::default()
    };
    with_struct(container, IOMMU_UNMAP_DMA, &mut unmap)?;
    Ok(unmap.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernels_header() {
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(GROUP_GET_DEVICE_FD, 0x3b6a);
        assert_eq!(DEVICE_RESET, 0x3b6f);
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
        assert_eq!(IOMMU_UNMAP_DMA, 0x3b72);
        assert_eq!(size::<uapi::vfio_iommu_type1_dma_map>(), 32);
        assert_eq!(size::<uapi::vfio_iommu_type1_dma_unmap>(), 24);
    }
}
