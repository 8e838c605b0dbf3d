//! Services as the kernel sees them: frontends, slots and backends.
//!
//! A frontend names a range of slots, a slot names a backend. User space writes backends first, then
//! slots in a range nobody uses, and then the frontend, whose one update moves new connections from the
//! old set to the new one: a packet sees either, never a mixture.

use core::fmt;
use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// Makes a type of one byte of bits, as it stands in the kernel's tables, from their names.
macro_rules! flags {
    ($(#[$doc:meta])+ $type:ident { $($(#[$bit_doc:meta])+ $name:ident = $bit:literal $label:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(transparent)]
        pub struct $type(u8);

        impl $type {
            /// None of them.
            pub const NONE: Self = Self(0);
            $($(#[$bit_doc])+ pub const $name: Self = Self($bit);)+

            /// Both these and `other`.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Whether all of `other` are among these.
            #[inline(always)]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let named = [$((Self::$name, $label)),+];
                f.debug_set()
                    .entries(named.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| name))
                    .finish()
            }
        }
    };
}

/// A Service address: the key of the frontend table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrontendKey {
    addr: Addr,
    port: Be16,
    protocol: Protocol,
    zero: u8,
    zero_tail: u32,
}

impl FrontendKey {
    /// The frontend of `protocol` at `endpoint`.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, protocol: Protocol) -> Self {
        Self { addr: endpoint.addr, port: endpoint.port, protocol, zero: 0, zero_tail: 0 }
    }

    /// The frontend of all other ports and protocols at `addr`, of kind [`FrontendKind::CLUSTER_IP_REST`]:
    /// there for a ClusterIP, without slots, so that what nobody serves there is refused.
    #[inline(always)]
    pub const fn rest_of(addr: Addr) -> Self {
        Self::new(Endpoint { addr, port: Be16::new(0) }, Protocol(0))
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
    /// The slots for clients inside: pods of this node, and the node itself.
    pub inside: SlotRange,
    /// The slots for all others.
    pub outside: SlotRange,
    /// The service port it belongs to.
    pub service: ServiceId,
    /// How many seconds a client's choice of a backend is remembered (`sessionAffinity: ClientIP`);
    /// 0: not at all.
    pub affinity: u32,
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// What else there is to know.
    pub flags: FrontendFlags,
    /// How a slot is chosen for a connection from outside.
    pub algorithm: Algorithm,
    zero: u8,
}

impl Frontend {
    /// A frontend of `kind` whose connections, from inside and outside, all go to `slots`.
    pub const fn new(kind: FrontendKind, service: ServiceId, slots: SlotRange) -> Self {
        Self {
            inside: slots,
            outside: slots,
            service,
            affinity: 0,
            kind,
            flags: FrontendFlags::NONE,
            algorithm: Algorithm::RANDOM,
            zero: 0,
        }
    }

    /// The same frontend with these slots for inside and outside.
    #[must_use]
    pub const fn with_slots(self, inside: SlotRange, outside: SlotRange) -> Self {
        Self { inside, outside, ..self }
    }

    /// Both ranges of slots, which may be the same.
    pub const fn ranges(&self) -> [SlotRange; 2] {
        [self.inside, self.outside]
    }
}

/// How a slot is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Algorithm(pub u8);

impl Algorithm {
    /// By chance.
    pub const RANDOM: Self = Self(0);
    /// By a [hash](crate::maglev) of addresses and ports, of the client's address alone where there is affinity: the
    /// slots are then a permutation that is the same on all nodes. Clients inside choose by chance.
    pub const MAGLEV: Self = Self(1);
}

/// Slots one after the other.
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
#[repr(C)]
pub struct SlotRange {
    /// The first of them; 0 if there are none.
    pub base: u32,
    /// How many there are; 0 when no endpoint can serve.
    pub count: u32,
}

impl SlotRange {
    /// The numbers of the slots.
    pub const fn indices(self) -> Range<u32> {
        self.base..self.base.saturating_add(self.count)
    }
}

/// What kind of address a frontend is.
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
pub struct FrontendKind(pub u8);

impl FrontendKind {
    /// An address of `spec.clusterIPs`.
    pub const CLUSTER_IP: Self = Self(0);
    /// An address of the node, at `nodePort`.
    pub const NODE_PORT: Self = Self(1);
    /// An address of `status.loadBalancer.ingress`.
    pub const LOAD_BALANCER: Self = Self(2);
    /// An address of `spec.externalIPs`.
    pub const EXTERNAL_IP: Self = Self(3);
    /// An address of the node, at a `hostPort` of a pod on it.
    pub const HOST_PORT: Self = Self(4);

    /// All ports of an address of `spec.clusterIPs` that no Service has.
    pub const CLUSTER_IP_REST: Self = Self(5);

    /// The name for people, as in the field's own objects.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CLUSTER_IP | Self::CLUSTER_IP_REST => "ClusterIP",
            Self::NODE_PORT => "NodePort",
            Self::LOAD_BALANCER => "LoadBalancer",
            Self::EXTERNAL_IP => "externalIP",
            Self::HOST_PORT => "hostPort",
            _ => "unknown",
        }
    }
}

flags! {
    /// Properties of a frontend: one byte of bits.
    FrontendFlags {
        /// The inside slots hold the Local set, else the Cluster set.
        INSIDE_LOCAL = 0x01 "inside-local",
        /// The outside slots hold the Local set, else the Cluster set.
        OUTSIDE_LOCAL = 0x02 "outside-local",
        /// Without inside slots, what comes from inside is dropped, else it is refused.
        INSIDE_DROP = 0x04 "inside-drop",
        /// Without outside slots, what comes from outside is dropped, else it is refused.
        OUTSIDE_DROP = 0x08 "outside-drop",
        /// Only sources in a range of this service port may use it (`loadBalancerSourceRanges`).
        SOURCE_RANGES = 0x10 "source-ranges",
        /// Connections get the node's address as their source, wherever they come from (`masqueradeAll`).
        MASQUERADE = 0x20 "masquerade",
        /// Only the node's own sockets know this address: it is a loopback address.
        LOOPBACK = 0x40 "loopback",
        /// Connections from outside of the networks [`ServiceId::PODS`] get the node's address as their source,
        /// and no others (`detectLocalMode`, where addresses tell pods).
        POD_NETWORKS = 0x80 "pod-networks",
    }
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

impl ServiceId {
    /// The number of no service port: its source ranges are the networks of the cluster's pods.
    pub const PODS: Self = Self(0);
}

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
    /// What it may be used for.
    pub flags: BackendFlags,
    zero: u8,
    /// How often this place of the table has been given out.
    pub generation: u32,
    /// The service port it belongs to.
    pub service: ServiceId,
    zero_tail: u32,
}

impl Backend {
    /// A backend at `endpoint`.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, service: ServiceId, generation: u32, flags: BackendFlags) -> Self {
        Self { addr: endpoint.addr, port: endpoint.port, flags, zero: 0, generation, service, zero_tail: 0 }
    }

    /// The same backend after it has left: flows that can move away from it do, others are reset.
    #[must_use]
    pub const fn gone(self) -> Self {
        Self { flags: BackendFlags::NONE, ..self }
    }

    /// Address and port of the pod.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, port: self.port }
    }

    /// Whether it may be sent packets of flows that could move.
    #[inline(always)]
    pub const fn serving(&self) -> bool {
        self.flags.has(BackendFlags::SERVING)
    }
}

flags! {
    /// What a backend may be used for: one byte of bits, none of a backend that is gone.
    BackendFlags {
        /// It is an endpoint of the service port, be it ready or not: connections that it has may go on.
        PRESENT = 0x01 "present",
        /// It serves: datagrams of flows that it has go on to it.
        SERVING = 0x02 "serving",
        /// It is on this node.
        LOCAL = 0x04 "local",
        /// It is in the Cluster set of its service port.
        IN_CLUSTER = 0x08 "in-cluster",
        /// It is in the Local set of its service port.
        IN_LOCAL = 0x10 "in-local",
    }
}
