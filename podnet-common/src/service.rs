//! Services as the kernel sees them: frontends, slots and backends.
//!
//! A frontend names a range of slots, a slot names a backend. User space writes backends first, then
//! slots in a range nobody uses, and then the frontend, whose one update moves new connections from the
//! old set to the new one: a packet sees either, never a mixture.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// A Service address: the key of the frontend table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrontendKey {
    addr: Addr,
    port: Be16,
    protocol: Protocol,
    zero: [u8; 5],
}

impl FrontendKey {
    /// The frontend of `protocol` at `endpoint`.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, protocol: Protocol) -> Self {
        Self { addr: endpoint.addr, port: endpoint.port, protocol, zero: [0; 5] }
    }

    /// Address and port.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, port: self.port }
    }

    /// The transport protocol: the same port of two protocols is two frontends.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// Where a frontend's connections go: the value of the frontend table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// The first of its slots.
    pub base: u32,
    /// How many slots it has; 0 when no endpoint can serve: connections are refused.
    pub count: u32,
    /// The service port it belongs to.
    pub service: ServiceId,
}

/// A service port of one family, by a number that user space gave it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// An index into the backend table. 0 is never given out, so that an unwritten slot names nobody.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct BackendId(pub u32);

impl BackendId {
    /// What a slot holds that was never written.
    pub const NOBODY: Self = Self(0);
}

/// A backend as flows remember it. The generation tells a backend from a later one in the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BackendRef {
    /// Its place in the backend table.
    pub id: BackendId,
    /// The generation of the place at that time.
    pub generation: u32,
}

/// An endpoint of a service port: an element of the backend table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    addr: Addr,
    port: Be16,
    serving: u8,
    zero: u8,
    /// How often this place of the table has been given out.
    pub generation: u32,
    /// The service port it belongs to.
    pub service: ServiceId,
    zero_tail: u32,
}

impl Backend {
    /// A backend at `endpoint` that takes connections.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, service: ServiceId, generation: u32) -> Self {
        Self {
            addr: endpoint.addr,
            port: endpoint.port,
            serving: 1,
            zero: 0,
            generation,
            service,
            zero_tail: 0,
        }
    }

    /// The same backend after it has left: flows that can move away from it do.
    #[must_use]
    pub const fn gone(self) -> Self {
        Self { serving: 0, ..self }
    }

    /// Address and port of the pod.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, port: self.port }
    }

    /// Whether it may be sent packets of flows that could move.
    #[inline(always)]
    pub const fn serving(&self) -> bool {
        self.serving != 0
    }
}
