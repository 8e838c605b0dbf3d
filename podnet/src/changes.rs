//! What the planner and the kernel's tables tell each other: a snapshot one way, changes the other.

use ipnet::IpNet;
use podnet_common::abi::ServiceName;
use podnet_common::network::ServiceNetworks;
use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey, ServiceId};
use podnet_common::wire::Addr;

/// How many entries each table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends: Service addresses times ports.
    pub frontends: u32,
    /// Slots: endpoints, counted once per service port and family that they serve, or the permutations of them by
    /// which clients outside choose.
    pub slots: u32,
    /// Backends: endpoints, counted once per service port and family that they serve.
    pub backends: u32,
    /// Flows that pass through tc; each takes two entries.
    pub flows: u32,
    /// Sockets that are led to a backend.
    pub sockets: u32,
    /// Clients whose backend is remembered (`sessionAffinity`), once per service port.
    pub clients: u32,
    /// Names of Services and namespaces, where queries for them are answered.
    pub names: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: 65_536,
            slots: 262_144,
            backends: 262_144,
            flows: 1_048_576,
            sockets: 262_144,
            clients: 65_536,
            names: 65_536,
        }
    }
}

/// Sources of a service port that may use its load balancers' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRange {
    /// The service port.
    pub service: ServiceId,
    /// The first of the sources.
    pub addr: Addr,
    /// How many bits they share, counted in their own family.
    pub length: u8,
}

impl SourceRange {
    /// The sources of `service` in `network`.
    pub fn of(service: ServiceId, network: &IpNet) -> Self {
        Self { service, addr: network.addr().into(), length: network.prefix_len() }
    }
}

/// What the kernel's tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All frontends.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// The slots that frontends point at, in their order.
    pub slots: Vec<(u32, BackendId)>,
    /// All places of the backend table that were ever given out, those whose backend is gone included:
    /// their generation is what tells flows apart.
    pub backends: Vec<(BackendId, Backend)>,
    /// The service ports' names.
    pub names: Vec<(ServiceId, ServiceName)>,
    /// All source ranges, and the networks of the cluster's pods.
    pub sources: Vec<SourceRange>,
    /// The networks that ClusterIPs are taken from.
    pub networks: ServiceNetworks,
}

/// Changes of the kernel's tables, each list in its own right, to be carried out in the order of the
/// fields: what is pointed at before what points at it, and removals after what replaces them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Backends that are new.
    pub backends: Vec<(BackendId, Backend)>,
    /// Slots to write, all of them in ranges that no frontend points at.
    pub slots: Vec<(u32, BackendId)>,
    /// Names of new service ports.
    pub names: Vec<(ServiceId, ServiceName)>,
    /// Source ranges that are new.
    pub sources: Vec<SourceRange>,
    /// Frontends to write: new ones and ones that move to another range.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// The networks that ClusterIPs are taken from, if they change. Their new addresses have their frontends
    /// by then.
    pub networks: Option<ServiceNetworks>,
    /// Frontends to remove.
    pub removed_frontends: Vec<FrontendKey>,
    /// Source ranges to remove.
    pub removed_sources: Vec<SourceRange>,
    /// Backends that have left, as [`Backend::gone`] makes them.
    pub gone: Vec<(BackendId, Backend)>,
    /// Names of service ports that are no more.
    pub removed_names: Vec<ServiceId>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
