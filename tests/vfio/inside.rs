//! Tests that run in the guest, with the device that `DEVICE` names.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rte_net_vhost::dma::vfio::{
    Container, Device, Function, Memory, PciId, Reach, Registers, Type1, function, pci_id,
};

fn device() -> String {
    std::env::var("DEVICE").expect("the guest's first process says which device")
}

fn container() -> Arc<dyn Container> {
    Arc::new(Type1::new().unwrap())
}

/// Memory of ours, which no container knows.
fn pages(count: usize) -> Memory {
    Memory::shared(count * 4096).unwrap()
}

fn va(memory: &Memory) -> usize {
    memory.words().as_ptr().addr()
}

fn fill(memory: &Memory, seed: u64) {
    for (word, value) in memory.words().iter().zip(seed..) {
        word.store(value, Relaxed);
    }
}

fn equal(one: &Memory, other: &Memory) -> bool {
    let words = one.words().iter().zip(other.words());
    words
        .into_iter()
        .all(|(a, b)| a.load(Relaxed) == b.load(Relaxed))
}

/// QEMU's teaching device: a page of its own, and an engine that copies from and to it.
mod edu {
    use super::*;

    const FROM: usize = 0x80;
    const TO: usize = 0x88;
    const COUNT: usize = 0x90;
    const COMMAND: usize = 0x98;
    const ITS_PAGE: u64 = 0x40000;
    /// Some versions do not take the whole page.
    const LEN: u16 = 2048;
    const START: u64 = 1;
    const TO_MEMORY: u64 = 2;

    struct Bench {
        own: Arc<Type1>,
        container: Arc<dyn Container>,
        edu: Device,
        reach: Reach,
    }

    impl Bench {
        fn new() -> Self {
            let own = Arc::new(Type1::new().unwrap());
            let container = Arc::clone(&own) as Arc<dyn Container>;
            let edu = Device::open(&device(), Arc::clone(&container)).unwrap();
            let reach = Reach::new(Arc::clone(&container));
            Self {
                own,
                container,
                edu,
                reach,
            }
        }

        fn run(&self, from: u64, to: u64, command: u64) {
            self.edu.write64(FROM, from);
            self.edu.write64(TO, to);
            self.edu.write64(COUNT, LEN.into());
            self.edu.write64(COMMAND, command);
            while self.edu.read64(COMMAND) & START != 0 {
                std::hint::spin_loop();
            }
        }

        /// Copies half a page into the device and out again, by way of the device's addresses.
        fn copy(&self, from: u64, to: u64) {
            self.run(from, ITS_PAGE, START);
            self.run(ITS_PAGE, to, START | TO_MEMORY);
        }

        fn at(&self, memory: &Memory) -> u64 {
            self.reach.translate(va(memory), LEN.into()).unwrap().0
        }
    }

    fn equal(one: &Memory, other: &Memory) -> bool {
        let words = one.words().iter().zip(other.words());
        words
            .take(usize::from(LEN) / 8)
            .all(|(a, b)| a.load(Relaxed) == b.load(Relaxed))
    }

    fn opened_reset_and_released() {
        assert_eq!(
            pci_id(&device()).unwrap(),
            PciId {
                vendor: 0x1234,
                device: 0x11e8
            }
        );
        let mut bench = Bench::new();
        assert_eq!(bench.edu.read32(0) & 0xff, 0xed, "its identification");
        let mut id = [0; 4];
        bench.edu.config_read(0, &mut id).unwrap();
        assert_eq!(id, [0x34, 0x12, 0xe8, 0x11]);
        bench.edu.write32(4, 0x1234_5678);
        assert_eq!(bench.edu.read32(4), !0x1234_5678, "a live register");

        // A group belongs to one container.
        let other = container();
        let error = Device::open(&device(), other).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let again = Device::open(&device(), Arc::clone(&bench.container));
        assert_eq!(again.err().unwrap().kind(), io::ErrorKind::AlreadyExists);

        assert!(bench.edu.release());
        assert_eq!(bench.edu.read32(0), u32::MAX);
        assert!(bench.edu.config_read(0, &mut id).is_err());
        // And then it can be opened anew.
        let bench = Bench::new();
        assert_eq!(bench.edu.read32(0) & 0xff, 0xed);
    }

    fn memory_is_reached_while_it_is_mapped() {
        let mut bench = Bench::new();
        let (from, to) = (pages(1), pages(1));
        fill(&from, 1000);
        for memory in [&from, &to] {
            bench.reach.map(va(memory), 4096).unwrap();
        }
        let (source, target) = (bench.at(&from), bench.at(&to));

        // Without bus master nothing moves, and nothing tells.
        bench.copy(source, target);
        assert!(!equal(&from, &to));

        function::enable(&bench.edu).unwrap();
        bench.copy(source, target);
        assert!(equal(&from, &to));

        // What is not mapped any more is not written.
        bench.reach.unmap(va(&to), 4096);
        assert_eq!(bench.reach.translate(va(&to), 1), None);
        fill(&to, 7);
        let before = pages(1);
        fill(&before, 7);
        bench.copy(source, target);
        assert!(equal(&to, &before));

        // And mapped again it is.
        bench.reach.map(va(&to), 4096).unwrap();
        let target = bench.at(&to);
        bench.copy(source, target);
        assert!(equal(&from, &to));

        // A range may have several users.
        let mut second = Reach::new(Arc::clone(&bench.container));
        second.map(va(&to), 4096).unwrap();
        bench.reach.unmap(va(&to), 4096);
        fill(&to, 7);
        bench.copy(source, target);
        assert!(equal(&from, &to), "the other one still has it");
    }

    fn what_cannot_be_mapped_is_refused() {
        let container = container();
        let error = container.map(va(&pages(1)), 4096).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "no device yet");
        let error = Device::open("0000:00:1e.7", Arc::clone(&container));
        assert_eq!(error.err().unwrap().kind(), io::ErrorKind::NotFound);

        let mut bench = Bench::new();
        let memory = pages(1);
        assert!(
            bench.reach.map(va(&memory) + 8, 4096).is_err(),
            "not a page"
        );
        assert_eq!(bench.reach.translate(va(&memory) + 8, 1), None);
        bench.reach.map(va(&memory), 4096).unwrap();
    }

    fn what_is_added_is_known_until_it_is_removed() {
        let bench = Bench::new();
        function::enable(&bench.edu).unwrap();
        let (from, to) = (pages(2), pages(4));
        fill(&from, 77);
        for at in [va(&from), va(&from) + 4096] {
            bench.own.add(at, 4096).unwrap();
        }
        bench.own.add(va(&to), 4 * 4096).unwrap();
        bench.own.add(va(&to) + 4096, 4096).unwrap(); // has it already

        bench.copy(bench.at(&from), bench.at(&to));
        assert!(equal(&from, &to));

        // Two pages side by side for us may be so for the device.
        let both = bench.reach.translate(va(&from), 2 * 4096);
        let second = bench.reach.translate(va(&from) + 4096, 4096).unwrap();
        assert!(both.is_none_or(|both| both.0 + 4096 == second.0));

        // The rest stays; what was one mapping goes as a whole.
        let source = bench.at(&from);
        bench.own.remove(va(&from), 4096);
        bench.own.remove(va(&to) + 8192, 4096);
        assert_eq!(bench.reach.translate(va(&from), 1), None);
        assert_eq!(bench.reach.translate(va(&from) + 4096, 4096), Some(second));
        assert_eq!(bench.reach.translate(va(&to), 1), None);
        bench.own.remove(va(&to), 4 * 4096); // is gone already

        // And again, also where the device finds it elsewhere now.
        let taken = pages(1);
        bench.own.add(va(&taken), 4096).unwrap();
        bench.own.add(va(&from), 4096).unwrap();
        bench.own.add(va(&to), 4 * 4096).unwrap();
        fill(&to, 1);
        bench.copy(bench.at(&from), bench.at(&to));
        assert!(equal(&from, &to));
        assert!(source >= 4 << 30);
    }

    fn what_was_added_goes_with_the_last_device() {
        let mut bench = Bench::new();
        let memory = pages(1);
        bench.own.add(va(&memory), 4096).unwrap();
        assert!(bench.reach.translate(va(&memory), 1).is_some());

        assert!(bench.edu.release());

        assert_eq!(bench.reach.translate(va(&memory), 1), None);
        let error = bench.own.add(va(&memory), 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "no device");
        bench.own.remove(va(&memory), 4096);
        let edu = Device::open(&device(), Arc::clone(&bench.container)).unwrap();
        bench.own.add(va(&memory), 4096).unwrap();
        assert!(bench.reach.translate(va(&memory), 1).is_some());
        drop(edu);
    }

    fn too_many_mappings_are_refused_with_a_remedy() {
        let limit = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
        fs::write(limit, "2").unwrap();
        let bench = Bench::new();
        fs::write(limit, "65535").unwrap();
        let memory = pages(3);
        let mut added = (0..3).map(|nth| bench.own.add(va(&memory) + nth * 4096, 4096));
        assert!(added.next().unwrap().is_ok());
        assert!(added.next().unwrap().is_ok());
        let error = added.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("dma_entry_limit"), "{error}");
        bench.own.remove(va(&memory), 4096);
        bench.own.add(va(&memory) + 8192, 4096).unwrap();
    }

    fn devices_memory_comes_and_goes() {
        let bench = Bench::new();
        for _ in 0..3 {
            let memory = Memory::of(&bench.container, 10_000).unwrap();
            function::enable(&bench.edu).unwrap();
            fill(&memory, 5);
            bench.run(memory.iova(), ITS_PAGE, START);
            bench.run(ITS_PAGE, memory.iova() + 4096, START | TO_MEMORY);
            let words = memory.words();
            for nth in 0..usize::from(LEN) / 8 {
                assert_eq!(words[512 + nth].load(Relaxed), 5 + nth as u64);
            }
        }
    }

    fn all() {
        opened_reset_and_released();
        memory_is_reached_while_it_is_mapped();
        what_cannot_be_mapped_is_refused();
        what_is_added_is_known_until_it_is_removed();
        what_was_added_goes_with_the_last_device();
        too_many_mappings_are_refused_with_a_remedy();
        devices_memory_comes_and_goes();
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn wide_addresses_are_our_own() {
        all();
        let mut bench = Bench::new();
        let memory = pages(1);
        bench.reach.map(va(&memory), 4096).unwrap();
        assert_eq!(bench.at(&memory), va(&memory) as u64);
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn narrow_addresses_are_chosen() {
        all();
        let mut bench = Bench::new();
        let memory = pages(1);
        bench.reach.map(va(&memory), 4096).unwrap();
        let at = bench.at(&memory);
        assert!((4 << 30..1 << 39).contains(&at), "{at:#x}");
    }
}

/// The model of an I/OAT channel behind vfio-user.
mod ioat {
    use super::*;

    use rte_net_vhost::dma::ioat::{self, Ioat};
    use rte_net_vhost::dma::{Addr, Engine, Halted, Health, Outcome, Tag, Transfer};

    struct Bench {
        channel: Ioat<Device>,
        from: Memory,
        to: Memory,
    }

    const PAGES: usize = 16;

    impl Bench {
        fn new() -> Self {
            let mut channel =
                ioat::open(&device(), 64, |bdf| Device::open(bdf, container())).unwrap();
            let (from, to) = (pages(PAGES), pages(PAGES));
            fill(&from, 1 << 40);
            for memory in [&from, &to] {
                let at = memory.words().as_ptr().cast();
                channel.map(at, PAGES * 4096).unwrap();
            }
            Self { channel, from, to }
        }

        fn at(&self, memory: &Memory, offset: usize, len: u32) -> Addr {
            let at = memory.words().as_ptr().cast::<u8>().wrapping_add(offset);
            self.channel.translate(at, len).unwrap()
        }

        fn stage(&mut self, nth: u16, from: Addr, to: Addr, len: u32) {
            let tag = Tag {
                serial: 1,
                place: nth,
            };
            // SAFETY: both are mapped (`translate`) and live until the channel is dropped; nobody
            // looks at them between submission and report.
            unsafe { self.channel.stage(Transfer { from, to, len }, tag) };
        }

        /// Copies all pages in pieces of `len`; what was reported.
        fn copy_all(&mut self, len: u32) -> usize {
            let whole = PAGES * 4096;
            let mut reported = 0;
            let mut offset = 0;
            let mut nth = 0;
            while offset < whole || reported < nth {
                while offset < whole && self.channel.room() > 0 {
                    let part = len.min(u32::try_from(whole - offset).unwrap());
                    let from = self.at(&self.from, offset, part);
                    let to = self.at(&self.to, offset, part);
                    self.stage(u16::try_from(nth).unwrap(), from, to, part);
                    nth += 1;
                    offset += part as usize;
                }
                self.channel.submit();
                let health = self.channel.poll(&mut |tag, outcome| {
                    assert_eq!(outcome, Outcome::Copied);
                    assert_eq!(usize::from(tag.place), reported);
                    reported += 1;
                });
                assert_eq!(health, Health::Running);
            }
            reported
        }

        /// The next report, and the channel's health.
        fn wait(&mut self) -> (Vec<(u16, Outcome)>, Health) {
            loop {
                let mut seen = Vec::new();
                let mut tell = |tag: Tag, outcome| seen.push((tag.place, outcome));
                let health = self.channel.poll(&mut tell);
                if !seen.is_empty() || health != Health::Running {
                    return (seen, health);
                }
            }
        }
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn copies_arrive_through_kernel_and_iommu() {
        for len in [65536, 4096, 1500, 333] {
            let mut bench = Bench::new();
            let at = bench.at(&bench.to, 0, 1).0;
            assert_eq!(at, va(&bench.to) as u64, "our own addresses");
            assert_eq!(bench.channel.max_copy(), 1 << 20);

            let copies = bench.copy_all(len);

            assert_eq!(copies, (PAGES * 4096).div_ceil(len as usize));
            assert!(equal(&bench.from, &bench.to), "{len}");
        }
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn a_copy_to_unmapped_memory_halts_and_the_rest_goes_on() {
        let mut bench = Bench::new();
        let lost = pages(1);
        let lost_at = lost.words().as_ptr().cast();
        bench.channel.map(lost_at, 4096).unwrap();
        let unmapped = bench.channel.translate(lost_at, 4096).unwrap();
        bench.channel.unmap(lost_at, 4096);

        for nth in 0..6 {
            let offset = usize::from(nth) * 4096;
            let from = bench.at(&bench.from, offset, 4096);
            let to = match nth {
                3 => unmapped,
                _ => bench.at(&bench.to, offset, 4096),
            };
            bench.stage(nth, from, to, 4096);
        }
        bench.channel.submit();

        let mut seen = Vec::new();
        while seen.len() < 4 {
            let (some, _) = bench.wait();
            seen.extend(some);
        }
        let copied = |nth| (nth, Outcome::Copied);
        let failed = (3, Outcome::Failed);
        assert_eq!(seen, [copied(0), copied(1), copied(2), failed]);
        assert_eq!(bench.wait().1, Health::Halted);
        assert!(bench.channel.recover());
        assert_eq!(bench.channel.error(), 1 << 1, "destination address");
        // The channel may still be at work on the last one when the one before is reported.
        let mut rest = Vec::new();
        while rest.len() < 2 {
            let (some, health) = bench.wait();
            assert_eq!(health, Health::Running);
            rest.extend(some);
        }
        assert_eq!(rest, [copied(4), copied(5)]);
        assert!(lost.words().iter().all(|word| word.load(Relaxed) == 0));
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn a_halted_channel_is_over_and_can_be_opened_again() {
        let mut bench = Bench::new();
        bench.copy_all(4096);

        assert_eq!(bench.channel.halt(), Halted::Proven);

        assert_eq!(bench.channel.room(), 0);
        drop(bench);
        let mut bench = Bench::new();
        bench.copy_all(4096);
        assert!(equal(&bench.from, &bench.to));
    }

    #[test]
    #[ignore = "runs inside the guest"]
    fn a_channel_whose_bus_master_is_taken_hangs_and_comes_back() {
        let mut bench = Bench::new();
        let command = format!("/sys/bus/pci/devices/{}/config", device());
        let set = |value: u8| {
            let file = fs::File::options().write(true).open(&command).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[value], 4).unwrap();
        };
        set(2);
        let (from, to) = (bench.at(&bench.from, 0, 4096), bench.at(&bench.to, 0, 4096));
        bench.stage(0, from, to, 4096);
        bench.channel.submit();
        assert_eq!(bench.channel.nudge(), Health::Halted);
        set(6);

        assert!(bench.channel.recover());

        assert_eq!(bench.wait().0, [(0, Outcome::Failed)]);
        bench.copy_all(4096);
        assert!(equal(&bench.from, &bench.to));
    }
}
