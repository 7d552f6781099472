//! What a queue counts.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of size classes, the one below 64 bytes included.
pub const SIZE_BINS: usize = 8;

/// Counters of a queue. Only its poller adds; anybody may read, another process too. All zero is
/// the fresh state. Nothing ever sets them back: a reset is a baseline that the reader keeps.
#[derive(Debug, Default)]
#[repr(C)]
pub struct QueueCounters {
    /// Packets moved.
    pub packets: AtomicU64,
    /// Their bytes, without the virtio-net header.
    pub bytes: AtomicU64,
    /// Packets to a group address that is not broadcast.
    pub multicast: AtomicU64,
    /// Packets to ff:ff:ff:ff:ff:ff.
    pub broadcast: AtomicU64,
    /// Packets by size: below 64, 64, 65 to 127, 128 to 255, 256 to 511, 512 to 1023, 1024 to 1518,
    /// more.
    pub sizes: [AtomicU64; SIZE_BINS],
    /// Packets that a transmit burst was asked to send and did not.
    pub missed: AtomicU64,
    /// Calls made to the driver.
    pub guest_notifications: AtomicU64,
    /// Calls that failed, or that the driver wanted without a way to make them.
    pub guest_notifications_error: AtomicU64,
    /// Addresses of the driver's whose translation was known.
    pub iotlb_hits: AtomicU64,
    /// Addresses of the driver's that had to wait for one.
    pub iotlb_misses: AtomicU64,
    /// Packet buffers that could not be allocated.
    pub mbuf_alloc_failed: AtomicU64,
    /// Chains given back unused: an index, an address, a table or an access that does not fit.
    pub drop_bad_desc: AtomicU64,
    /// Chains given back unused: not longer than the virtio-net header.
    pub drop_short: AtomicU64,
    /// Packets too long: for a frame, or for the driver's buffers.
    pub drop_oversize: AtomicU64,
    /// Frames dropped because the pool ran dry in their middle.
    pub drop_no_mbuf: AtomicU64,
    /// Packets dropped because what they ask for cannot be done.
    pub drop_prepare: AtomicU64,
    /// Packets dropped because their headers are not where a request for a checksum says.
    pub drop_csum: AtomicU64,
    /// Packets dropped because they stand for several, and the driver does not take such ones.
    pub drop_gso: AtomicU64,
    /// What copy engines did.
    pub dma: DmaCounters,
}

/// Counters of a queue with copy engines. Whoever has the queue adds.
#[derive(Debug, Default)]
#[repr(C)]
pub struct DmaCounters {
    /// Copies that engines were given.
    pub copies: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Packets of which an engine copied something.
    pub packets: AtomicU64,
    /// Packets that are under way now.
    pub inflight: AtomicU64,
    /// Copies of the CPU: below the threshold, or too few at a time.
    pub cpu_small: AtomicU64,
    /// Copies of the CPU: no engine had room, or none is left.
    pub cpu_noroom: AtomicU64,
    /// Copies of the CPU: the engine does not reach the memory.
    pub cpu_noaddr: AtomicU64,
    /// Copies that failed.
    pub errors: AtomicU64,
    /// Copies that the CPU did again.
    pub redone: AtomicU64,
    /// Times that the queue was emptied with packets under way.
    pub drains: AtomicU64,
    /// Drains that ended an engine, because it took too long.
    pub drain_timeouts: AtomicU64,
    /// Times that an engine of the queue went on after an error.
    pub recoveries: AtomicU64,
    /// Engines of the queue that died.
    pub engine_dead: AtomicU64,
}

/// Adds without a locked instruction: there is one writer.
#[inline(always)]
pub fn add(counter: &AtomicU64, count: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(count);
    counter.store(sum, Ordering::Relaxed);
}

/// What one burst counts of the packets that it moves. Their number and the sum of their bytes reach
/// the counters once, at the end; what depends on the packet is counted where it belongs.
#[derive(Debug)]
pub struct Tally<'c> {
    counters: &'c QueueCounters,
    packets: u64,
    bytes: u64,
}

impl<'c> Tally<'c> {
    /// Nothing yet.
    #[inline(always)]
    pub fn new(counters: &'c QueueCounters) -> Self {
        Self {
            counters,
            packets: 0,
            bytes: 0,
        }
    }

    /// Counts a packet of `len` bytes that begins with `data`.
    #[inline(always)]
    pub fn add(&mut self, len: u32, data: &[u8]) {
        self.packets += 1;
        self.bytes += u64::from(len);
        if let Some(size) = self.counters.sizes.get(size_bin(len) % SIZE_BINS) {
            add(size, 1);
        }
        if data.first().is_some_and(|first| first & 1 != 0) {
            add_group(self.counters, data);
        }
    }

    /// Adds the sums to the counters.
    #[inline(always)]
    pub fn flush(self) {
        add(&self.counters.packets, self.packets);
        add(&self.counters.bytes, self.bytes);
    }
}

/// Apart from the tally, which then stays in registers. Not cold for those who send to a group, but
/// the way of all others should not make room for it.
#[cold]
#[inline(never)]
fn add_group(counters: &QueueCounters, data: &[u8]) {
    let group = if data.starts_with(&[0xff; 6]) {
        &counters.broadcast
    } else {
        &counters.multicast
    };
    add(group, 1);
}

/// The size class of each length; of longer packets, the last one.
static BINS: [u8; 2048] = {
    let mut bins = [0; 2048];
    let mut len = 0;
    while len < bins.len() {
        bins[len] = match len {
            0..64 => 0,
            64 => 1,
            65..128 => 2,
            128..256 => 3,
            256..512 => 4,
            512..1024 => 5,
            1024..=1518 => 6,
            _ => 7,
        };
        len += 1;
    }
    bins
};

/// The size class of a packet, without a branch that packets of many sizes would mislead.
#[inline(always)]
fn size_bin(len: u32) -> usize {
    let len = (len as usize).min(BINS.len() - 1);
    BINS.get(len).copied().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fall_into_the_classes_of_the_xstats() {
        let classes = [
            (0, 0),
            (63, 0),
            (64, 1),
            (65, 2),
            (127, 2),
            (128, 3),
            (255, 3),
            (256, 4),
            (511, 4),
            (512, 5),
            (1023, 5),
            (1024, 6),
            (1518, 6),
            (1519, 7),
            (u32::MAX, 7),
        ];
        for (len, bin) in classes {
            assert_eq!(size_bin(len), bin, "{len} bytes");
        }
    }

    #[test]
    fn group_and_broadcast_addresses_are_told_apart() {
        let counters = QueueCounters::default();
        let mut tally = Tally::new(&counters);
        tally.add(64, &[0xff; 64]);
        tally.add(64, &[1, 0, 0x5e, 0, 0, 1]);
        tally.add(64, &[2, 0, 0, 0, 0, 1]);
        tally.add(1, &[0xff]);
        tally.flush();
        assert_eq!(counters.broadcast.load(Ordering::Relaxed), 1);
        assert_eq!(counters.multicast.load(Ordering::Relaxed), 2);
        assert_eq!(counters.packets.load(Ordering::Relaxed), 4);
    }
}
