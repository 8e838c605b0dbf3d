//! Session affinity (`sessionAffinity: ClientIP`): which backend a client had last.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::conntrack::Time;
use crate::service::{BackendRef, ServiceId};
use crate::wire::{Addr, Be32};

/// A client of a service port: the key of the affinity table. All frontends of a service port share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffinityKey {
    client: Addr,
    service: ServiceId,
    zero: [u8; 4],
}

impl AffinityKey {
    /// What is remembered of `client` at `service`.
    #[inline(always)]
    pub const fn new(service: ServiceId, client: Addr) -> Self {
        Self { client, service, zero: [0; 4] }
    }
}

/// The sockets of a network namespace, as a client: when one calls `connect()`, its address is not chosen
/// yet, but a pod has a namespace of its own.
///
/// The form is an IPv6 multicast address (RFC 4291, 2.7), which is no packet's source.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the cookie are kept")]
pub const fn sockets_of(netns_cookie: u64) -> Addr {
    Addr::from_words([
        Be32::new(0xff00_0000),
        Be32::new(0),
        Be32::from_raw((netns_cookie >> 32) as u32),
        Be32::from_raw(netns_cookie as u32),
    ])
}

/// The choice that is remembered: the value of the affinity table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Affinity {
    /// The backend.
    pub backend: BackendRef,
    /// When the client last opened a connection.
    pub seen: Time,
}

impl Affinity {
    /// A choice made or confirmed at `now`.
    #[inline(always)]
    pub const fn new(backend: BackendRef, now: Time) -> Self {
        Self { backend, seen: now }
    }

    /// Whether it still counts at `now`, where it does for `seconds`.
    #[inline(always)]
    pub const fn holds(&self, seconds: u32, now: Time) -> bool {
        now.since(self.seen) < Time::seconds(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_ends_with_its_timeout() {
        let affinity = Affinity::new(BackendRef::default(), Time(1000));
        assert!(affinity.holds(1, Time(1000)));
        assert!(affinity.holds(10, Time(1000 + Time::seconds(10) - 1)));
        assert!(!affinity.holds(10, Time(1000 + Time::seconds(10))));
        assert!(affinity.holds(86_400, Time(1000 + Time::seconds(86_399))));
    }

    #[test]
    fn network_namespaces_are_different_clients() {
        assert_ne!(sockets_of(1), sockets_of(2));
        assert_ne!(sockets_of(1), sockets_of(1 << 32));
        assert_eq!(sockets_of(7), sockets_of(7));
    }
}
