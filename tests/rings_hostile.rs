//! Whatever a guest writes, and whenever: no panic, no packet lost or freed twice, and no byte
//! written outside the buffers that it offered.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use rte_net_vhost::testing::{APART, BUFFERS, FakeDriver, FakeMemory, Frame, NEXT, RINGS};
use rte_net_vhost::virtio_net::{
    VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF,
};
use rte_net_vhost::virtqueue::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
};

/// Tables that indirect descriptors name.
const TABLES: u64 = BUFFERS.start;
/// Entries of tables that are filled.
const ENTRIES: usize = 64;
/// Bytes that only descriptors without the write flag name.
const READ_ONLY: u64 = APART.start;
const READ_ONLY_LEN: usize = 0x4000;

#[derive(Clone, Copy, Debug)]
struct Raw {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Raw {
    fn write(self, memory: &FakeMemory, at: u64, packed: bool) {
        // In a packed ring the id comes first, and the flags have marks for either turn, or none.
        let (third, fourth) = match packed {
            true => (self.next, self.flags ^ MARKS[usize::from(self.next & 3)]),
            false => (self.flags, self.next),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&third.to_le_bytes());
        bytes[14..].copy_from_slice(&fourth.to_le_bytes());
        memory.write(at, &bytes);
    }
}

/// What `AVAIL` and `USED` say in a packed descriptor.
const MARKS: [u16; 4] = [
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED,
    0,
];

fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0_u64..0x10_0000).prop_map(|skip| BUFFERS.start + 0x10_0000 + skip),
        3 => (0_u64..100).prop_map(|before| BUFFERS.end - before),
        2 => (0_u64..100).prop_map(|before| NEXT.end - before),
        2 => (0_u64..100).prop_map(|before| APART.end - before),
        1 => (0_u64..200).prop_map(|before| APART.start - 100 + before),
        1 => (0_u64..200).prop_map(|before| u64::MAX - before),
        1 => any::<u64>(),
    ]
}

fn lens() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0_u32),
        6 => 0_u32..40,
        4 => 40_u32..2000,
        1 => 2000_u32..100_000,
        1 => any::<u32>(),
    ]
}

fn raw(next: u16) -> impl Strategy<Value = Raw> {
    let next = prop_oneof![8 => 0..next, 1 => any::<u16>()];
    let flags = prop_oneof![
        3 => Just(0_u16),
        3 => Just(VRING_DESC_F_WRITE),
        3 => Just(VRING_DESC_F_NEXT),
        4 => Just(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE),
        1 => any::<u16>(),
    ];
    let buffer = (addresses(), lens(), flags, next.clone()).prop_map(|(addr, len, flags, next)| {
        // `addresses` never gives the read-only bytes but at their begin.
        let inside = addr.wrapping_add(len.into()) > READ_ONLY && addr < APART.end - 100;
        let write = if inside && addr > NEXT.end {
            VRING_DESC_F_WRITE
        } else {
            0
        };
        Raw {
            addr,
            len,
            flags: flags & !write,
            next,
        }
    });
    let only_read = (0_u64..0x3000, 0_u32..0x1000, any::<bool>(), next.clone()).prop_map(
        |(skip, len, more, next)| Raw {
            addr: READ_ONLY + skip,
            len,
            flags: if more { VRING_DESC_F_NEXT } else { 0 },
            next,
        },
    );
    let table = (0_u64..1024, 0_u32..80, 0_u32..20, any::<bool>(), next).prop_map(
        |(skip, entries, odd, more, next)| Raw {
            addr: TABLES + skip,
            len: 16 * entries + odd / 16,
            flags: VRING_DESC_F_INDIRECT | if more { VRING_DESC_F_NEXT } else { 0 },
            next,
        },
    );
    // The rings themselves as buffers.
    let rings = (0_u64..0x3000, 0_u32..300, any::<u16>()).prop_map(|(skip, len, next)| Raw {
        addr: RINGS.start + skip,
        len,
        flags: next & 7,
        next,
    });
    prop_oneof![12 => buffer, 2 => only_read, 3 => table, 1 => rings]
}

#[derive(Clone, Debug)]
enum Step {
    /// A descriptor of the ring.
    Descriptor(u16, Raw),
    /// An entry of the tables.
    Entry(usize, Raw),
    /// A head, made available; in a packed ring, descriptors from the device's place on.
    Head(u16),
    /// The available index; in a packed ring, the driver's event suppression.
    Jump(u16),
    Dequeue(usize),
    Enqueue(Vec<usize>),
    Collect,
    /// Packets that the pool has.
    Limit(usize),
    Restart,
}

fn steps() -> impl Strategy<Value = Step> {
    let frames = proptest::collection::vec(0_usize..3000, 0..8);
    prop_oneof![
        12 => (0_u16..256, raw(64)).prop_map(|(nth, raw)| Step::Descriptor(nth, raw)),
        8 => (0..ENTRIES, raw(16)).prop_map(|(nth, raw)| Step::Entry(nth, raw)),
        10 => (0_u16..64).prop_map(Step::Head),
        1 => any::<u16>().prop_map(Step::Head),
        1 => any::<u16>().prop_map(Step::Jump),
        4 => (0_usize..70).prop_map(Step::Dequeue),
        5 => frames.prop_map(Step::Enqueue),
        2 => Just(Step::Collect),
        1 => (0_usize..200).prop_map(Step::Limit),
        1 => Just(Step::Restart),
    ]
}

fn driver(packed: bool, size: u16, features: u8) -> FakeDriver {
    let driver = match packed {
        true => FakeDriver::packed(size),
        false => FakeDriver::split(size.next_power_of_two()),
    };
    let mut driver = driver.packet_room(512).with_calls();
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_F_IN_ORDER,
    ];
    for (nth, bit) in bits.into_iter().enumerate() {
        if features & 1 << nth != 0 {
            driver = driver.feature(bit);
        }
    }
    driver.pool.limit(300);
    driver.memory.write(READ_ONLY, &[0x3c; READ_ONLY_LEN]);
    driver
}

/// Where a driver's ring lies.
#[derive(Clone, Copy)]
struct Rings {
    table: u64,
    available: u64,
    size: u16,
    packed: bool,
}

impl Rings {
    fn of(driver: &FakeDriver) -> Self {
        Self {
            table: driver.table(),
            available: driver.available(),
            size: driver.size(),
            packed: driver.is_packed(),
        }
    }

    /// Marks the packed descriptor at `index` as available in one turn or the other.
    fn mark(self, memory: &FakeMemory, index: u16, turn: bool) {
        let at = self.table + 16 * u64::from(index % self.size) + 14;
        let flags = memory.read(at, 2);
        let flags = u16::from_le_bytes(flags.try_into().unwrap()) & !MARKS[2];
        let flags = flags | MARKS[usize::from(!turn)];
        memory.write(at, &flags.to_le_bytes());
    }
}

/// One step of the guest alone.
fn write_step(memory: &FakeMemory, rings: Rings, step: &Step) {
    match *step {
        Step::Descriptor(nth, raw) => {
            let at = rings.table + 16 * u64::from(nth % rings.size);
            raw.write(memory, at, rings.packed);
        }
        Step::Entry(nth, raw) => raw.write(memory, TABLES + 16 * nth as u64, rings.packed),
        Step::Head(head) if rings.packed => rings.mark(memory, head, head & 0x100 == 0),
        Step::Head(head) => {
            let slot = u64::from(head.wrapping_mul(31) % rings.size);
            memory.write(rings.available + 4 + 2 * slot, &head.to_le_bytes());
        }
        Step::Jump(by) if rings.packed => {
            memory.write(rings.available, &by.to_le_bytes());
            memory.write(rings.available + 2, &(by % 5).to_le_bytes());
        }
        Step::Jump(by) => memory.write(rings.available + 2, &by.to_le_bytes()),
        _ => {}
    }
}

fn check(driver: &FakeDriver) {
    assert_eq!(driver.pool.live(), 0);
    assert!(driver.memory.canaries_are_whole());
    let read_only = driver.memory.read(READ_ONLY, READ_ONLY_LEN);
    assert!(read_only.iter().all(|&byte| byte == 0x3c));
}

fn run(driver: &mut FakeDriver, step: &Step) {
    match step {
        Step::Head(head) if driver.is_packed() => {
            let position = driver.virtqueue().position();
            for nth in 0..=head % 3 {
                let index = (position & 0x7fff) + nth;
                let turn = (position & 0x8000 != 0) ^ (index >= driver.size());
                Rings::of(driver).mark(&driver.memory, index, turn);
            }
        }
        Step::Head(head) => driver.make_available(*head),
        Step::Dequeue(count) => {
            driver.dequeue(*count);
        }
        Step::Enqueue(lens) => {
            let frames: Vec<Frame> = lens.iter().map(|&len| Frame::new(len, 7)).collect();
            driver.enqueue(&frames);
        }
        Step::Collect => {
            driver.used();
        }
        Step::Limit(limit) => driver.pool.limit(*limit),
        Step::Restart => {
            driver.stop();
        }
        _ => {
            write_step(&driver.memory, Rings::of(driver), step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_that_a_guest_writes_does_harm(
        packed in any::<bool>(),
        size in prop_oneof![1_u16..20, 1_u16..=256],
        features in 0_u8..16,
        steps in proptest::collection::vec(steps(), 20..200),
    ) {
        let mut driver = driver(packed, size, features);
        for step in &steps {
            run(&mut driver, step);
        }
        driver.dequeue(64);
        check(&driver);
    }

    #[test]
    fn no_bytes_in_the_rings_do_harm(
        packed in any::<bool>(),
        size in prop_oneof![1_u16..20, 1_u16..=256],
        features in 0_u8..16,
        bytes in proptest::collection::vec(any::<u8>(), 16..8192),
        steps in proptest::collection::vec(steps(), 1..20),
    ) {
        let mut driver = driver(packed, size, features);
        driver.memory.write(driver.table(), &bytes);
        for step in &steps {
            run(&mut driver, step);
        }
        check(&driver);
    }
}

#[test]
fn a_guest_that_writes_while_we_read_does_no_harm() {
    for features in 0..32 {
        let mut driver = driver(features & 1 != 0, 61, features >> 1);
        let memory = driver.memory.clone();
        let rings = Rings::of(&driver);
        let end = Arc::new(AtomicBool::new(false));
        let guest = {
            let end = Arc::clone(&end);
            std::thread::spawn(move || {
                let mut runner = TestRunner::new(Config::default());
                let steps: Vec<Step> = (0..5000)
                    .map(|_| steps().new_tree(&mut runner).unwrap().current())
                    .collect();
                for step in steps.iter().cycle() {
                    write_step(&memory, rings, step);
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        };
        let deadline = Instant::now() + Duration::from_millis(100);
        while Instant::now() < deadline {
            driver.dequeue(32);
            driver.enqueue(&[Frame::new(64, 1), Frame::new(1400, 2)]);
        }
        end.store(true, Ordering::Relaxed);
        guest.join().unwrap();
        check(&driver);
    }
}
