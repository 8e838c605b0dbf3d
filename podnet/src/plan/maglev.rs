//! The slots of a set whose backends are chosen by a hash: a permutation that all nodes work out alike.
//!
//! Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, 3.4): each backend
//! has an order of its own in which it would like the slots, and they take turns until none is left. Shares differ by
//! one slot, and when a backend comes or leaves, few slots change hands between the others.

use std::iter::repeat_n;

use podnet_common::conntrack::Tuple;
use podnet_common::maglev::hash;
use podnet_common::wire::{Be16, Endpoint, Protocol};

/// How many slots a set may have: primes, so that whoever goes through them in steps of any size comes by all.
pub const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];

/// How many slots a set has where nobody says: 32 KiB, in which the shares of 40 backends differ by a hundredth.
pub const USUAL: u32 = 4093;

/// How many slots each backend has at the least, so that shares differ by no more than a tenth.
const LEAST: u32 = 10;

/// How many slots a set of so many backends, or of what they weigh, gets where `wanted`, a prime, are asked for.
pub(super) fn size(wanted: u32, backends: u32) -> u32 {
    let least = backends.saturating_mul(LEAST);
    let mut sizes = [wanted].into_iter().chain(SIZES);
    let enough = sizes.find(|&size| size >= wanted && size >= least);
    enough.unwrap_or(SIZES[SIZES.len() - 1])
}

/// Which of `endpoints`, by its index, has each of `size` slots, of which it takes as many a turn as it weighs. Their
/// order matters: it is to be the same everywhere.
pub(super) fn permutation(size: u32, endpoints: &[(Endpoint, u8)]) -> Vec<usize> {
    let mut slots: Vec<Option<usize>> = vec![None; size as usize];
    let mut wishes: Vec<Wishes> = endpoints.iter().map(|(endpoint, _)| Wishes::of(*endpoint, size)).collect();
    let turns = endpoints.iter().enumerate().flat_map(|(turn, (_, weight))| repeat_n(turn, (*weight).into()));
    for turn in turns.cycle().take(slots.len()) {
        if let Some(wish) = wishes[turn].by_ref().take(slots.len()).find(|it| slots[*it as usize].is_none()) {
            slots[wish as usize] = Some(turn);
        }
    }
    slots.into_iter().flatten().collect()
}

/// The slots in the order in which a backend would like them.
struct Wishes {
    next: u32,
    step: u32,
    size: u32,
}

impl Wishes {
    fn of(endpoint: Endpoint, size: u32) -> Self {
        let number = |which: u16, below: u32| {
            let other = Endpoint { port: Be16::new(which), ..Endpoint::default() };
            let hash = hash(&Tuple::between(endpoint, other, Protocol(0)));
            u32::try_from((u64::from(hash) * u64::from(below)) >> 32).unwrap_or_default()
        };
        Self { next: number(1, size), step: 1 + number(2, size - 1), size }
    }
}

impl Iterator for Wishes {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let wish = self.next;
        self.next = (self.next + self.step) % self.size;
        Some(wish)
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::wire::Addr;

    use super::*;

    fn endpoints(count: u32) -> Vec<(Endpoint, u8)> {
        let addr = |n: u32| Addr::from(std::net::IpAddr::from((0x0af4_0000 + n).to_be_bytes()));
        (0..count).map(|n| (Endpoint { addr: addr(n), port: Be16::new(8080) }, 1)).collect()
    }

    #[test]
    fn a_set_has_ten_slots_for_each_backend() {
        assert_eq!((size(4093, 1), size(4093, 409), size(4093, 410)), (4093, 4093, 8191));
        assert_eq!(size(251, 1_000_000), 131_071);
    }

    #[test]
    fn shares_differ_by_one_slot() {
        for count in [1, 2, 3, 10, 100, 409] {
            let slots = permutation(4093, &endpoints(count));
            let mut shares = vec![0_usize; count as usize];
            slots.iter().for_each(|&index| shares[index] += 1);
            assert_eq!(slots.len(), 4093);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }

    #[test]
    fn shares_are_by_weight() {
        let weights = [1_u8, 5, 2, 0, 20];
        let weighted: Vec<_> =
            endpoints(5).iter().zip(weights).map(|((at, _), weight)| (*at, weight)).collect();
        let mut shares = [0_u32; 5];
        permutation(4093, &weighted).into_iter().for_each(|index| shares[index] += 1);
        for (share, weight) in shares.into_iter().zip(weights) {
            let expected = 4093 * u32::from(weight) / 28;
            assert!(share.abs_diff(expected) <= weight.into(), "{shares:?}");
        }
    }

    /// The shares of who leaves go to the others, and of the others' own slots few go to another: less than one in
    /// thirty here.
    #[test]
    fn few_slots_change_hands() {
        for count in [3_u32, 10, 100] {
            let before = endpoints(count);
            let slots = permutation(4093, &before);
            for gone in [0, count / 2, count - 1] {
                let after: Vec<_> =
                    before.iter().copied().filter(|it| *it != before[gone as usize]).collect();
                let now = permutation(4093, &after);
                let stayed = slots.iter().zip(&now).filter(|(old, _)| before[**old] != before[gone as usize]);
                let moved = stayed.clone().filter(|(old, new)| before[**old] != after[**new]).count();
                let stayed = stayed.count();
                assert!(moved * 30 < stayed, "{count} backends: {moved} of {stayed}");
            }
        }
    }
}
