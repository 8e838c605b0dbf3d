//! Contiguous ranges of a table, by best fit.

use std::collections::{BTreeMap, BTreeSet};

use podnet_common::service::SlotRange;

/// The free ranges of a table. Every operation costs the logarithm of their number.
#[derive(Debug)]
pub(super) struct Ranges {
    /// Base to count; no two of them touch.
    by_base: BTreeMap<u32, u32>,
    /// The same as (count, base).
    by_count: BTreeSet<(u32, u32)>,
    free: u32,
}

impl Ranges {
    /// A table of `size` slots, all free.
    pub(super) fn new(size: u32) -> Self {
        let mut ranges = Self { by_base: BTreeMap::new(), by_count: BTreeSet::new(), free: 0 };
        ranges.release(SlotRange { base: 0, count: size });
        ranges
    }

    /// How many slots are free.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Takes `count` slots out of the smallest range that has them.
    pub(super) fn take(&mut self, count: u32) -> Option<SlotRange> {
        if count == 0 {
            return Some(SlotRange::default());
        }
        let &(available, base) = self.by_count.range((count, 0)..).next()?;
        self.remove(base, available);
        self.insert(base + count, available - count);
        Some(SlotRange { base, count })
    }

    /// Takes a certain range; `false` if not all of it is free.
    pub(super) fn reserve(&mut self, range: SlotRange) -> bool {
        let Some(end) = range.base.checked_add(range.count) else { return false };
        if range.count == 0 {
            return true;
        }
        let Some((&base, &available)) = self.by_base.range(..=range.base).next_back() else { return false };
        if end > base + available {
            return false;
        }
        self.remove(base, available);
        self.insert(base, range.base - base);
        self.insert(end, base + available - end);
        true
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, range: SlotRange) {
        let SlotRange { mut base, mut count } = range;
        if count == 0 {
            return;
        }
        if let Some((&before, &length)) = self.by_base.range(..base).next_back()
            && before + length == base
        {
            self.remove(before, length);
            (base, count) = (before, length + count);
        }
        if let Some(&length) = self.by_base.get(&(base + count)) {
            self.remove(base + count, length);
            count += length;
        }
        self.insert(base, count);
    }

    /// What is free here and is not in `other`.
    pub(super) fn beyond(&self, other: &Self) -> Vec<SlotRange> {
        let mut beyond = Vec::new();
        for (&base, &count) in &self.by_base {
            let (mut next, end) = (base, base + count);
            let first = other.by_base.range(..=base).next_back();
            for (&free, &length) in first.into_iter().chain(other.by_base.range(base + 1..end)) {
                if free > next {
                    beyond.push(SlotRange { base: next, count: free - next });
                }
                next = next.max((free + length).min(end));
            }
            if end > next {
                beyond.push(SlotRange { base: next, count: end - next });
            }
        }
        beyond
    }

    fn insert(&mut self, base: u32, count: u32) {
        if count > 0 {
            self.by_base.insert(base, count);
            self.by_count.insert((count, base));
            self.free += count;
        }
    }

    fn remove(&mut self, base: u32, count: u32) {
        self.by_base.remove(&base);
        self.by_count.remove(&(count, base));
        self.free -= count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_has_come_free_is_told_apart() {
        let taken = |list: &[(u32, u32)]| {
            let mut ranges = Ranges::new(20);
            assert!(list.iter().all(|&(base, count)| ranges.reserve(SlotRange { base, count })));
            ranges
        };
        let before = taken(&[(0, 1), (3, 4), (10, 2), (19, 1)]);
        let now = taken(&[(0, 1), (4, 2), (14, 2)]);
        let beyond: Vec<_> = now.beyond(&before).iter().map(|range| (range.base, range.count)).collect();
        assert_eq!(beyond, [(3, 1), (6, 1), (10, 2), (19, 1)]);
        assert_eq!(before.beyond(&before), []);
        let all = taken(&[(0, 20)]);
        assert_eq!(all.beyond(&before), []);
        assert_eq!(taken(&[]).beyond(&all), [SlotRange { base: 0, count: 20 }]);
    }

    #[test]
    fn the_smallest_range_that_fits_is_taken() {
        let mut ranges = Ranges::new(20);
        assert!(ranges.reserve(SlotRange { base: 4, count: 1 }));
        assert!(ranges.reserve(SlotRange { base: 8, count: 1 }));
        assert_eq!(ranges.take(3), Some(SlotRange { base: 5, count: 3 }));
        assert_eq!(ranges.take(4), Some(SlotRange { base: 0, count: 4 }));
        assert_eq!(ranges.take(12), None);
        assert_eq!(ranges.take(0), Some(SlotRange::default()));
    }

    #[test]
    fn a_range_that_is_taken_cannot_be_reserved() {
        let mut ranges = Ranges::new(10);
        assert!(ranges.reserve(SlotRange { base: 2, count: 3 }));
        assert!(!ranges.reserve(SlotRange { base: 4, count: 1 }));
        assert!(!ranges.reserve(SlotRange { base: 0, count: 3 }));
        assert!(!ranges.reserve(SlotRange { base: 9, count: 2 }));
        assert!(!ranges.reserve(SlotRange { base: u32::MAX, count: 2 }));
        assert!(ranges.reserve(SlotRange { base: 5, count: 5 }));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(
            steps in prop::collection::vec((1_u32..20, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut ranges = Ranges::new(100);
            let mut held: Vec<SlotRange> = Vec::new();
            for (count, which, give_back) in steps {
                if give_back && !held.is_empty() {
                    ranges.release(held.swap_remove(which.index(held.len())));
                } else if let Some(range) = ranges.take(count) {
                    prop_assert!(range.base + range.count <= 100);
                    for other in &held {
                        prop_assert!(
                            range.base + range.count <= other.base || other.base + other.count <= range.base
                        );
                    }
                    held.push(range);
                }
                prop_assert_eq!(ranges.free(), 100 - held.iter().map(|range| range.count).sum::<u32>());
            }
            held.drain(..).for_each(|range| ranges.release(range));
            prop_assert_eq!(ranges.take(100), Some(SlotRange { base: 0, count: 100 }));
        }
    }
}
