//! An IOMMU that leaves addresses as they are, but has to be asked for each page of them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::memory::{Access, Gpa, Iotlb, Iova, IovaRange, Lookaside, Miss, Questions};
use crate::virtqueue::Virtqueue;

/// The frontend's side of a fake driver's IOMMU.
#[derive(Debug)]
pub(super) struct FakeIommu {
    iotlb: Arc<Iotlb>,
    questions: Arc<Questions>,
    bursts: u32,
    /// What was asked so far.
    pub(super) asked: Vec<Miss>,
}

impl FakeIommu {
    pub(super) fn new() -> Self {
        Self {
            iotlb: Arc::default(),
            questions: Arc::new(Questions::new(|| ())),
            bursts: 0,
            asked: Vec::new(),
        }
    }

    /// Puts itself before the memory of `virtqueue`, whose next burst uses buffers for `need`. Now and
    /// then it forgets all that was known.
    pub(super) fn before_a_burst(&mut self, virtqueue: &mut Virtqueue, need: Access) {
        let lookaside = virtqueue.lookaside.get_or_insert_with(|| {
            Box::new(Lookaside::new(
                Arc::clone(&virtqueue.memory),
                Arc::clone(&self.iotlb),
                need,
                Arc::clone(&self.questions),
            ))
        });
        self.bursts += 1;
        if self.bursts.is_multiple_of(5) {
            self.iotlb.remove(IovaRange::ALL);
            lookaside.forget(IovaRange::ALL);
        }
    }

    /// Answers the questions of a burst, as far as there is memory; whether there was any.
    pub(super) fn answer(&mut self, virtqueue: &Virtqueue) -> bool {
        let mut any = false;
        for miss in self.questions.take() {
            self.asked.push(miss);
            let at = miss.iova.0;
            let regions = virtqueue.memory.regions().iter();
            let mut regions = regions.map(|region| region.config());
            let Some(region) = regions.find(|r| at.wrapping_sub(r.gpa.0) < r.size) else {
                continue;
            };
            let page = at & !0xfff;
            let first = page.max(region.gpa.0);
            let end = (page + 0x1000).min(region.gpa.0 + region.size);
            let range = IovaRange::new(Iova(first), end - first).unwrap();
            self.iotlb.insert(range, Gpa(first), miss.need);
            any = true;
        }
        any
    }
}
