//! The slot table: who may write where.

use std::time::Instant;

use podnet_common::service::SlotRange;

use super::quarantine::Quarantine;
use super::ranges::Ranges;

#[derive(Debug)]
pub(super) struct Slots {
    size: u32,
    ranges: Ranges,
    quarantine: Quarantine<SlotRange>,
}

impl Slots {
    pub(super) fn new(size: u32) -> Self {
        Self { size, ranges: Ranges::new(size), quarantine: Quarantine::default() }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many slots are held or resting.
    pub(super) fn used(&self) -> u32 {
        self.size - self.ranges.free()
    }

    pub(super) fn reserve(&mut self, range: SlotRange) -> bool {
        self.ranges.reserve(range)
    }

    /// Takes a range for each of `counts`, or none at all; `keep` slots remain free then.
    pub(super) fn take(&mut self, counts: &[u32], keep: u32) -> Option<Vec<SlotRange>> {
        let wanted = counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        if wanted > 0 && wanted + u64::from(keep) > u64::from(self.ranges.free()) {
            return None;
        }
        let mut taken = Vec::with_capacity(counts.len());
        for &count in counts {
            match self.ranges.take(count) {
                Some(range) => taken.push(range),
                None => {
                    self.put_back(taken);
                    return None;
                }
            }
        }
        Some(taken)
    }

    /// Frees ranges that nobody has seen: they need no rest.
    pub(super) fn put_back(&mut self, ranges: Vec<SlotRange>) {
        ranges.into_iter().for_each(|range| self.ranges.release(range));
    }

    /// Frees a range that packets may still be reading.
    pub(super) fn retire(&mut self, range: SlotRange) {
        if range.count > 0 {
            self.quarantine.put(range);
        }
    }

    /// Lets those slots rest that are free here and were not in `before`, the same table's past: packets may
    /// still be reading them.
    pub(super) fn follow(&mut self, before: &Self) {
        for range in self.ranges.beyond(&before.ranges) {
            if self.ranges.reserve(range) {
                self.quarantine.put(range);
            }
        }
    }

    /// Moves time on; whether that made room.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        let rested = self.quarantine.advance(now);
        rested.iter().for_each(|&range| self.ranges.release(range));
        !rested.is_empty()
    }
}
