//! Choosing by a hash: every node sends a new connection to the same backend, whatever the others have done.
//!
//! A Service's slots are a permutation of its backends that all nodes work out alike (Maglev; Eisenbud et al., NSDI
//! 2016, 3.4), of which few change when a backend comes or leaves. A packet's addresses and ports say which slot.

use crate::conntrack::Tuple;

/// A number that depends on all bits of `tuple`, and on nothing else: the same on all nodes of one byte order.
///
/// What follows from a product's bits are those above them, so that the upper half is folded onto the lower one after
/// each multiplication (the multipliers are MurmurHash3's, by Austin Appleby).
#[inline(always)]
pub const fn hash(tuple: &Tuple) -> u32 {
    const FIRST: u64 = 0xff51_afd7_ed55_8ccd;
    const SECOND: u64 = 0xc4ce_b9fe_1a85_ec53;
    let (source, destination) = (tuple.source(), tuple.destination());
    let ports = (source.port.raw() as u64) << 16 | destination.port.raw() as u64;
    let ((a, b), (c, d)) = (source.addr.halves(), destination.addr.halves());
    let mixed = mix(a ^ (ports << 8 | tuple.protocol().0 as u64), FIRST);
    let mixed = mix(mixed ^ b, SECOND);
    let mixed = mix(mixed ^ c, FIRST);
    let mixed = mix(mixed ^ d, SECOND);
    (mix(mixed, FIRST) >> 32) as u32
}

#[inline(always)]
const fn mix(value: u64, multiplier: u64) -> u64 {
    let product = value.wrapping_mul(multiplier);
    product ^ product >> 32
}
