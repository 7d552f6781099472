//! Devices that we configure ourselves.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::dma::idxd::vfio::{Dsa, SharedDsa, VfioQueue};
use crate::testing::dma::{DsaDevice, DsaDeviceFault};

const WQCAP: usize = 0x20;
const OPCAP: usize = 0x40;

struct Host {
    fake: FakeContainer,
    model: DsaModel,
    device: DsaDevice,
}

impl Host {
    fn new() -> Self {
        let fake = FakeContainer::new();
        let model = DsaModel::mapped(&fake);
        let device = DsaDevice::new(&model);
        Self {
            fake,
            model,
            device,
        }
    }

    fn start(&self) -> io::Result<SharedDsa<DsaDevice>> {
        Ok(Arc::new(Mutex::new(Dsa::start(self.device.clone())?)))
    }

    fn take(
        &self,
        dsa: &SharedDsa<DsaDevice>,
        queue: u32,
    ) -> io::Result<Bench<DsaModel, VfioQueue<DsaDevice>>> {
        let container = Arc::new(self.fake.clone());
        let (access, limits) = VfioQueue::take(Arc::clone(dsa), queue, container)?;
        let queue = Queue::new(self.model.clone(), access, limits, 64)?;
        let bench = Bench::with(queue);
        self.fake.lend(&bench.memory);
        Ok(bench)
    }
}

#[test]
fn a_device_is_reset_configured_and_enabled_before_its_queues() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let bench = host.take(&dsa, 5).unwrap();

    assert!(host.device.is_bus_master());
    assert_eq!(host.device.commands(), [(5, 0), (1, 0), (6, 5)]);
    for queue in 0..8 {
        let words = [16, 0, 0x11, 21 | 3 << 5];
        assert_eq!(host.device.queue_words(queue), words);
    }
    for group in 0..4 {
        assert_eq!(host.device.group(group), (0x11 << group, 1 << group));
    }
    assert_eq!(bench.queue.max_copy(), 2 << 20);

    drop(bench);
    assert_eq!(host.device.commands()[3..], [(9, 1 << 5), (7, 1 << 5)]);
    drop(dsa);
    assert_eq!(host.device.commands()[5..], [(5, 0)]);
    assert!(!host.device.is_enabled());
    assert_eq!(host.fake.mapped(), 0);
}

#[test]
fn copies_of_two_queues_arrive() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let mut first = host.take(&dsa, 0).unwrap();
    let mut second = host.take(&dsa, 7).unwrap();

    first.burst(8);
    second.burst(3);

    assert_eq!(first.poll(), (copied(0..8), Health::Running));
    assert_eq!(second.poll(), (copied(0..3), Health::Running));
    assert!(first.arrived(7) && second.arrived(2));
    assert_eq!(host.model.bad(), 0);
}

#[test]
fn a_queue_is_taken_once_and_can_be_taken_again_later() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let bench = host.take(&dsa, 1).unwrap();
    let kind = |queue| host.take(&dsa, queue).err().map(|error| error.kind());

    assert_eq!(kind(1), Some(io::ErrorKind::ResourceBusy));
    assert_eq!(kind(8), Some(io::ErrorKind::NotFound));

    drop(bench);
    assert_eq!(kind(1), None);
}

#[test]
fn devices_that_cannot_copy_are_refused() {
    for (register, value) in [(0x00, 0), (WQCAP, 128), (WQCAP, 8 << 16), (OPCAP, 0b10)] {
        let host = Host::new();
        host.device.set(register, value);
        let error = host.start().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{register:#x}");
    }
}

#[test]
fn a_device_without_batches_gets_none() {
    let host = Host::new();
    host.device.set(OPCAP, 0b1000);
    let dsa = host.start().unwrap();
    let mut bench = host.take(&dsa, 0).unwrap();

    bench.burst(4);

    assert_eq!(bench.poll(), (copied(0..4), Health::Running));
    assert_eq!(host.model.batches(), 0);
}

#[test]
fn a_command_that_fails_or_hangs_is_an_error() {
    for command in [1, 5] {
        let host = Host::new();
        host.device.fault(DsaDeviceFault::Refuse(command));
        assert!(host.start().is_err());

        let host = Host::new();
        host.device.fault(DsaDeviceFault::Hang(command));
        let error = host.start().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
    let host = Host::new();
    let dsa = host.start().unwrap();
    host.device.fault(DsaDeviceFault::Refuse(6));
    assert!(host.take(&dsa, 0).is_err());
}

#[test]
fn a_removed_device_does_not_start_and_its_queues_are_dead() {
    let host = Host::new();
    host.device.fault(DsaDeviceFault::Removed);
    assert!(host.start().is_err());

    let host = Host::new();
    let dsa = host.start().unwrap();
    let mut bench = host.take(&dsa, 0).unwrap();
    host.model.hold();
    bench.burst(2);
    host.device.fault(DsaDeviceFault::Removed);

    assert_eq!(bench.queue.nudge(), Health::Dead);
    assert_eq!(bench.queue.halt(), Halted::Proven, "it was given back");
}

#[test]
fn an_error_that_the_device_tells_of_ends_the_queue() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let mut bench = host.take(&dsa, 0).unwrap();
    host.model.hold();
    bench.burst(2);
    host.device.fault(DsaDeviceFault::SoftwareError);

    assert_eq!(bench.queue.nudge(), Health::Dead);
    assert_eq!(bench.queue.halt(), Halted::Proven);
    host.model.go();
    assert!(!bench.arrived(0), "it was aborted");
}

#[test]
fn a_device_is_given_back_only_with_its_last_portal() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let mut first = host.take(&dsa, 0).unwrap();
    let mut second = host.take(&dsa, 1).unwrap();
    host.model.hold();
    first.burst(2);
    second.burst(2);
    host.device.fault(DsaDeviceFault::Hang(9));
    host.device.fault(DsaDeviceFault::NoFunctionReset);

    assert_eq!(first.queue.halt(), Halted::Unproven);
    assert_eq!(second.queue.halt(), Halted::Proven);

    host.model.go();
    assert!(!second.arrived(0));
}

#[test]
fn a_queue_that_does_not_abort_is_stopped_with_the_function() {
    let host = Host::new();
    let dsa = host.start().unwrap();
    let mut bench = host.take(&dsa, 0).unwrap();
    host.model.hold();
    bench.burst(2);
    host.device.fault(DsaDeviceFault::Hang(9));

    assert_eq!(bench.queue.halt(), Halted::Proven);

    assert_eq!(host.device.resets(), 1);
    host.model.go();
    assert!(!bench.arrived(0));
}
