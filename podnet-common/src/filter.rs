//! Telling in one memory access that a packet is not podnet's.
//!
//! Most packets at a pod's interface have nothing to do with a Service, or were led to a backend at the
//! socket already. Two sets of bits say so without a look-up in a hash table: one of the addresses that
//! are or were a frontend's, one of the endpoints that are or were a backend. A bit that is not set is
//! certain; a bit that is set leads to the tables, which know. User space sets bits before it writes what
//! they stand for, and never clears them, since flows outlive their frontends and backends.

use crate::wire::{Addr, Endpoint};

/// How many words of 64 bits one set has: with 100,000 members one in ten others is taken for a member.
const WORDS: u32 = 1 << 14;
/// How many words both sets have.
pub const FILTER_WORDS: u32 = 2 * WORDS;

/// The place of a member: the bits of `mask` in the word at `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which word.
    pub index: u32,
    /// Its one bit.
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

    /// The upper bits of a product depend on all bits of its factors (Knuth, TAOCP 6.4, multiplicative
    /// hashing; the multiplier is 2^64 divided by the golden ratio).
    #[inline(always)]
    const fn new(first: u32, addr: Addr, more: u64) -> Self {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let (high, low) = addr.halves();
        let mixed = (high.wrapping_mul(MULTIPLIER) ^ low).wrapping_mul(MULTIPLIER) ^ more;
        let hash = (mixed.wrapping_mul(MULTIPLIER) >> 44) as u32;
        Self { index: first + (hash >> 6), mask: 1 << (hash & 63) }
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn members_are_spread_over_their_set() {
        let addresses: Vec<IpAddr> =
            (0..50_000_u32).map(|n| Ipv4Addr::from_bits(0x0a60_0000 + n).into()).collect();
        let frontends: HashSet<(u32, u64)> = addresses
            .iter()
            .map(|ip| Place::of_frontend((*ip).into()))
            .map(|place| (place.index, place.mask))
            .collect();
        // 50,000 balls in 2^20 bins meet about 1,170 times.
        assert!(frontends.len() > 48_000, "{}", frontends.len());
        assert!(frontends.iter().all(|(index, mask)| *index < WORDS && mask.count_ones() == 1));
        let backends: HashSet<(u32, u64)> = addresses
            .iter()
            .flat_map(|ip| [80, 8080].map(|port| Endpoint::from(SocketAddr::new(*ip, port))))
            .map(Place::of_backend)
            .map(|place| (place.index, place.mask))
            .collect();
        assert!(backends.len() > 93_000, "{}", backends.len());
        assert!(backends.iter().all(|(index, _)| (WORDS..FILTER_WORDS).contains(index)));
    }
}
