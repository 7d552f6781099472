//! The `vhost` crate's frontend, as Cloud Hypervisor and others use it.

use std::os::fd::AsRawFd;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::Place;
use crate::port::Event;
use crate::raw::{self, UVA};
use rte_net_vhost::session::features::*;

#[test]
fn the_vhost_crates_frontend_gets_its_device() {
    let place = Place::new();
    let (endpoint, port) = place.serve();
    let mut frontend = Frontend::connect(place.path(), 4).unwrap();
    frontend.set_owner().unwrap();
    assert_eq!(frontend.get_features().unwrap(), offered());
    let features = VIRTIO_F_VERSION_1
        | VIRTIO_RING_F_EVENT_IDX
        | VIRTIO_NET_F_MQ
        | VHOST_USER_F_PROTOCOL_FEATURES;
    frontend.set_features(features).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), offered_protocol());
    // It knows no messages for the status.
    let protocol = protocol & !VhostUserProtocolFeatures::STATUS;
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), 128);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    let memory = raw::memory(0x10000);
    let region = |gpa: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: 0x10000,
        userspace_addr: UVA + gpa,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    frontend.set_mem_table(&[region(0)]).unwrap();
    frontend.add_mem_region(&region(0x10000)).unwrap();
    for index in 0..2 {
        let at = UVA + index as u64 * 0x4000;
        frontend.set_vring_num(index, 256).unwrap();
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + 0x2000,
            avail_ring_addr: at + 0x1000,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        let event = EventFd::new(0).unwrap();
        frontend.set_vring_call(index, &event).unwrap();
        frontend.set_vring_kick(index, &event).unwrap();
        frontend.set_vring_err(index, &event).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    let events = port.wait_for(3);
    assert_eq!(events[..2], [Event::Queue(0, true), Event::Queue(1, true)]);
    assert!(matches!(events[2], Event::Up(device) if device.features == features));
    frontend.remove_mem_region(&region(0x10000)).unwrap();
    frontend.set_vring_enable(0, false).unwrap();
    assert_eq!(frontend.get_vring_base(1).unwrap(), 0);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0);
    frontend.set_vring_num(0, 7).unwrap_err();
    drop(frontend);
    drop(endpoint);
    drop(memory);
    place.no_file_left();
}
