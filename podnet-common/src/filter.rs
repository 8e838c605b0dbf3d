//! Telling in one memory access that a packet is not podnet's.
//!
//! Most packets at a pod's interface have nothing to do with a Service, or were led to a backend at the
//! socket already. Two sets of bits say so without a look-up in a hash table: one of the addresses that
//! are or were a frontend's, one of the endpoints that are or were a backend, and of their addresses. A member has two bits in one
//! word (a blocked Bloom filter; Putze, Sanders, Singler 2007). Bits that are not set are certain; bits that
//! are set lead to the tables, which know. User space sets bits before it writes what
//! they stand for, and never clears them, since flows outlive their frontends and backends.

use crate::wire::{Addr, Endpoint};

/// How many words of 64 bits one set has: with 100,000 members one in thirty others is taken for a member.
const WORDS: u32 = 1 << 14;
/// How many words both sets have.
pub const FILTER_WORDS: u32 = 2 * WORDS;

/// The place of a member: all bits of `mask` in the word at `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which word.
    pub index: u32,
    /// Its bits.
    pub mask: u64,
}

impl Place {
    /// Where it stands that `addr` is or was a frontend's.
    #[inline(always)]
    pub const fn of_frontend(addr: Addr) -> Self {
        Self::new(0, addr, 0)
    }

    /// Where it stands that `endpoint` is or was a backend.
    #[inline(always)]
    pub const fn of_backend(endpoint: Endpoint) -> Self {
        Self::new(WORDS, endpoint.addr, endpoint.port.raw() as u64)
    }

    /// Where it stands that `addr` is or was a backend's, whatever the port: later fragments have none.
    #[inline(always)]
    pub const fn of_backends(addr: Addr) -> Self {
        // No endpoint has the port 0.
        Self::new(WORDS, addr, 0)
    }

    /// A product's bits depend only on those below them of its factors, so the upper half is folded onto the
    /// lower one before each multiplication (the multipliers are MurmurHash3's, by Austin Appleby).
    #[inline(always)]
    const fn new(first: u32, addr: Addr, more: u64) -> Self {
        const FIRST: u64 = 0xff51_afd7_ed55_8ccd;
        const SECOND: u64 = 0xc4ce_b9fe_1a85_ec53;
        let (high, low) = addr.halves();
        let mixed = high.wrapping_mul(FIRST) ^ low ^ more.wrapping_mul(SECOND);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(FIRST);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(SECOND);
        let hash = (mixed >> 38) as u32;
        Self { index: first + (hash >> 12), mask: 1 << (hash & 63) | 1 << (hash >> 6 & 63) }
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};
    use std::collections::HashMap;
    use std::vec::Vec;

    use super::*;
    use crate::wire::Be16;

    fn addresses(first: u32, count: u32) -> impl Iterator<Item = Addr> {
        (first..first + count).map(|bits| Addr::from(IpAddr::V4(Ipv4Addr::from_bits(bits))))
    }

    /// How many of `others` are taken for one of `members`, in hundredths.
    fn false_positives(members: &[Place], others: &[Place]) -> usize {
        let mut words: HashMap<u32, u64> = HashMap::new();
        for place in members {
            *words.entry(place.index).or_default() |= place.mask;
        }
        let taken =
            |place: &&Place| words.get(&place.index).is_some_and(|word| word & place.mask == place.mask);
        assert!(members.iter().all(|place| taken(&place)), "every member is one");
        others.iter().filter(taken).count() * 100 / others.len()
    }

    #[test]
    fn few_others_are_taken_for_members() {
        let frontends: Vec<Place> = addresses(0x0a60_0000, 100_000).map(Place::of_frontend).collect();
        let pods: Vec<Place> = addresses(0x0af4_0000, 60_000).map(Place::of_frontend).collect();
        assert!(frontends.iter().all(|place| place.index < WORDS));
        assert!(false_positives(&frontends[..1000], &pods) == 0);
        assert!(false_positives(&frontends, &pods) <= 4, "{}", false_positives(&frontends, &pods));

        let at = |port| move |addr| Place::of_backend(Endpoint { addr, port: Be16::new(port) });
        let backends: Vec<Place> = addresses(0x0af4_0000, 100_000).map(at(8080)).collect();
        let clients: Vec<Place> =
            (32_768..=65_535).flat_map(|port| addresses(0x0af4_0001, 2).map(at(port))).collect();
        assert!(backends.iter().all(|place| (WORDS..FILTER_WORDS).contains(&place.index)));
        assert!(false_positives(&backends, &clients) <= 4, "{}", false_positives(&backends, &clients));
    }
}
