//! Ranges of addresses: who may use a load balancer's address, and which addresses are a cluster's to give.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::service::ServiceId;
use crate::wire::{Addr, Family};

/// A source of a service port: the data of a key of the longest-prefix table of source ranges
/// (`loadBalancerSourceRanges`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Source {
    service: ServiceId,
    zero: [u8; 4],
    addr: Addr,
}

impl Source {
    /// How many bits a key of one address has.
    pub const BITS: u32 = 64 + 128;

    /// What `addr` is to `service`.
    #[inline(always)]
    pub const fn new(service: ServiceId, addr: Addr) -> Self {
        Self { service, zero: [0; 4], addr }
    }

    /// The service port.
    pub const fn service(&self) -> ServiceId {
        self.service
    }

    /// The address.
    pub const fn addr(&self) -> Addr {
        self.addr
    }

    /// How many bits the key of a range has whose addresses share their first `length` bits, counted in
    /// their own family.
    pub const fn bits_of(&self, length: u8) -> u32 {
        64 + mapped(self.addr, length)
    }
}

/// Addresses that share their first bits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Network {
    high: u64,
    low: u64,
    high_mask: u64,
    low_mask: u64,
}

impl Network {
    /// No address at all.
    pub const NONE: Self = Self { high: 1, low: 0, high_mask: 0, low_mask: 0 };

    /// The addresses that share the first `length` bits of `addr`, counted in its own family.
    #[expect(clippy::cast_possible_truncation, reason = "each half of the mask is taken as 64 bits")]
    pub const fn new(addr: Addr, length: u8) -> Self {
        let length = mapped(addr, length);
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
        let (high_mask, low_mask) = (((mask >> 64) as u64).to_be(), (mask as u64).to_be());
        let (high, low) = addr.halves();
        Self { high: high & high_mask, low: low & low_mask, high_mask, low_mask }
    }

    /// Whether `addr` is one of them.
    #[inline(always)]
    pub const fn contains(&self, addr: Addr) -> bool {
        let (high, low) = addr.halves();
        high & self.high_mask == self.high && low & self.low_mask == self.low
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::NONE
    }
}

/// How many networks [`ServiceNetworks`] holds.
pub const SERVICE_NETWORKS: usize = 8;

/// The networks that ClusterIPs are taken from (ServiceCIDR): what is sent to an address of theirs that no
/// Service has is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceNetworks(pub [Network; SERVICE_NETWORKS]);

impl ServiceNetworks {
    /// Whether `addr` is in one of them.
    #[inline(always)]
    pub const fn contain(&self, addr: Addr) -> bool {
        let mut i = 0;
        while i < SERVICE_NETWORKS {
            if self.0[i].contains(addr) {
                return true;
            }
            i += 1;
        }
        false
    }
}

/// The first `length` bits of an address of the family of `addr`, counted in the form of both families.
const fn mapped(addr: Addr, length: u8) -> u32 {
    match addr.family() {
        Family::V4 => 96 + length as u32,
        Family::V6 => length as u32,
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_network_holds_what_shares_its_first_bits() {
        let v4 = Network::new(addr("10.96.1.2"), 16);
        assert!(v4.contains(addr("10.96.255.1")));
        assert!(!v4.contains(addr("10.97.0.1")));
        assert!(!v4.contains(addr("fd00::1")));
        let v6 = Network::new(addr("fd00:10:96::"), 108);
        assert!(v6.contains(addr("fd00:10:96::f:ffff")));
        assert!(!v6.contains(addr("fd00:10:96::10:0")));
        assert!(Network::new(addr("10.0.0.1"), 0).contains(addr("1.2.3.4")));
        assert!(!Network::new(addr("10.0.0.1"), 0).contains(addr("::1")));
        assert!(Network::new(addr("::"), 0).contains(addr("::1")));
    }

    #[test]
    fn no_network_holds_nothing() {
        for text in ["0.0.0.0", "::", "::1", "255.255.255.255"] {
            assert!(!ServiceNetworks::default().contain(addr(text)), "{text}");
        }
    }

    #[test]
    fn a_range_of_sources_counts_the_service_and_the_family() {
        let source = Source::new(ServiceId(7), addr("192.0.2.0"));
        assert_eq!(source.bits_of(24), 64 + 96 + 24);
        assert_eq!(Source::new(ServiceId(7), addr("2001:db8::")).bits_of(32), 64 + 32);
        assert_eq!(source.bits_of(32), Source::BITS);
    }
}
