//! What must become of a packet, straight from the objects: the contract in a form that runs.
//!
//! It is written to be compared with the contract's text, not to be quick, and shares nothing with podnet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::objects::{
    self, AddressType, BACKENDS, Conditions, Endpoint, Kind, PORTS, Port, Protocol, Range, Service, State,
    Target, node_of,
};
use super::scope::{Feature, Scope};
use crate::manifests::Family;

/// Where packets are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vantage {
    /// A pod on the node that is looked at.
    Pod,
    /// The first backend, which is a pod on that node.
    Backend,
    /// The node itself.
    Node,
    /// A machine that is not part of the cluster.
    Outside,
}

impl Vantage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pod, Self::Backend, Self::Node, Self::Outside];
    /// The backend that [`Vantage::Backend`] is.
    pub const BACKEND: usize = 0;
}

/// By which kind of an address a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A ClusterIP.
    ClusterIp,
    /// An address of the node.
    NodePort,
    /// An external IP.
    ExternalIp,
    /// An address in a load balancer's status.
    LoadBalancer,
}

/// Requests from one place to one address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// From where.
    pub from: Vantage,
    /// The Service whose address it is, or was, or could be.
    pub slot: u8,
    /// Which kind of an address.
    pub way: Way,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// Whom a backend takes the client for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client by its own address.
    Client,
    /// The node that is looked at, by any of its addresses.
    Node,
    /// The backend is the client; what address it sees itself by is not compared.
    Itself,
    /// Somebody else.
    Other(IpAddr),
}

/// What a request can meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A backend answers.
    Answer {
        /// Which one.
        backend: usize,
        /// At which port.
        port: u16,
        /// Whom it takes the client for.
        source: Source,
    },
    /// The request is refused at once.
    Refusal,
    /// Nothing comes back.
    Silence,
    /// Something that no proxy should do.
    Failure(String),
}

/// All that requests meet.
pub type Outcome = BTreeSet<Event>;

/// What must become of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// All that may happen, and must, unless one client is always sent to the same backend.
    pub outcome: Outcome,
    /// Whether it is.
    pub sticky: bool,
}

impl Expected {
    /// Whether `found` is what was expected.
    pub fn admits(&self, found: &Outcome) -> bool {
        if self.sticky { found.len() == 1 && found.is_subset(&self.outcome) } else { *found == self.outcome }
    }

    fn only(event: Event) -> Self {
        Self { outcome: [event].into(), sticky: false }
    }
}

/// The network that the Services are in.
pub struct Network {
    /// The node's own addresses that have its ports.
    pub node: [IpAddr; 2],
}

/// The probes that `state` is to be looked at with: to all that its Services name, and to all that those of
/// `before` did.
pub fn probes(scope: &Scope, network: &Network, before: &State, state: &State) -> Vec<Probe> {
    let mut probes = BTreeSet::new();
    for slot in before.keys().chain(state.keys()).copied() {
        for family in [Family::V4, Family::V6] {
            for (index, port) in PORTS.iter().enumerate() {
                for (way, address, number) in addresses(network, slot, family, *port) {
                    let (old, new) = (before.get(&slot), state.get(&slot));
                    let named = [old, new].into_iter().flatten().any(|service| names(service, way));
                    let unknown = new.is_some_and(|service| !service.ports.contains(&index));
                    if !named || way == Way::ClusterIp && unknown && !scope.has(Feature::UnknownPorts) {
                        continue;
                    }
                    for from in Vantage::ALL {
                        let outside = from == Vantage::Outside && way == Way::ClusterIp;
                        if !outside || scope.has(Feature::ClusterIpFromOutside) {
                            let protocol = port.protocol;
                            probes.insert(Probe { from, slot, way, address, port: number, protocol });
                        }
                    }
                }
            }
        }
    }
    probes.into_iter().collect()
}

/// Whether there is something in the Service about this kind of an address, be it for a proxy or not.
fn names(service: &Service, way: Way) -> bool {
    match way {
        Way::ClusterIp => true,
        Way::NodePort => matches!(service.kind, Kind::NodePort | Kind::LoadBalancer { .. }),
        Way::ExternalIp => service.external_ips,
        Way::LoadBalancer => matches!(service.kind, Kind::LoadBalancer { .. }),
    }
}

/// The addresses by which a Service could be reached, with ports.
fn addresses(network: &Network, slot: u8, family: Family, port: Port) -> [(Way, IpAddr, u16); 5] {
    let node = network.node[usize::from(family == Family::V6)];
    let ingress = |second| (Way::LoadBalancer, objects::ingress_ip(slot, family, second), port.number);
    [
        (Way::ClusterIp, objects::cluster_ip(slot, family), port.number),
        (Way::NodePort, node, port.node_port(slot)),
        (Way::ExternalIp, objects::external_ip(slot, family), port.number),
        ingress(false),
        ingress(true),
    ]
}

/// What must become of `probe` in `state`.
pub fn expect(state: &State, probe: &Probe) -> Expected {
    let service = state.get(&probe.slot).filter(|service| is_served(service, Family::of(probe.address)));
    let frontend = service.and_then(|service| Some((service, frontend(service, probe)?)));
    let Some((service, port)) = frontend else {
        return Expected::only(match probe.way {
            // Other ports of a Service's address are refused, others' addresses are passed over in silence.
            Way::ClusterIp if service.is_some() => Event::Refusal,
            Way::NodePort => Event::Refusal,
            _ => Event::Silence,
        });
    };
    if probe.way == Way::LoadBalancer && !is_admitted(service, probe.from) {
        return Expected::only(Event::Silence);
    }
    let sets = Sets::of(service, port, Family::of(probe.address));
    let external = probe.way != Way::ClusterIp;
    let local = if external {
        // What is sent from within does not come in from outside, whatever the address.
        service.is_external_local() && probe.from == Vantage::Outside
    } else {
        service.internal_local
    };
    let set = if local { &sets.local } else { &sets.cluster };
    if set.is_empty() {
        return Expected::only(if sets.anywhere { Event::Silence } else { Event::Refusal });
    }
    let outcome = set
        .iter()
        .map(|(backend, port)| Event::Answer {
            backend: *backend,
            port: *port,
            source: source(probe, *backend, external && service.is_external_local()),
        })
        .collect();
    Expected { outcome, sticky: service.affinity }
}

/// Whether proxies have anything to do with the Service in this family.
fn is_served(service: &Service, family: Family) -> bool {
    service.has_cluster_ip() && !service.foreign && service.families.list().contains(&family)
}

/// The port of the Service that a probe is sent to.
fn frontend(service: &Service, probe: &Probe) -> Option<usize> {
    let index = service.ports.iter().copied().find(|index| {
        let port = PORTS[*index];
        let number = if probe.way == Way::NodePort { port.node_port(probe.slot) } else { port.number };
        port.protocol == probe.protocol && number == probe.port
    })?;
    let is_there = match probe.way {
        Way::ClusterIp => true,
        Way::NodePort => service.has_node_ports(),
        Way::ExternalIp => service.has_external_ips(),
        Way::LoadBalancer => matches!(service.kind, Kind::LoadBalancer { .. }) && has_ingress(service, probe),
    };
    is_there.then_some(index)
}

fn has_ingress(service: &Service, probe: &Probe) -> bool {
    service.ingress.iter().any(|ingress| {
        let address = objects::ingress_ip(probe.slot, Family::of(probe.address), ingress.second);
        address == probe.address && ingress.proxy != Some(true)
    })
}

fn is_admitted(service: &Service, from: Vantage) -> bool {
    let range = match from {
        Vantage::Pod | Vantage::Backend => Range::Pods,
        Vantage::Node => Range::Node,
        Vantage::Outside => Range::Outside,
    };
    service.source_ranges.is_empty() || service.source_ranges.contains(&range)
}

/// The endpoints of a port, as backends and their ports.
struct Sets {
    cluster: BTreeSet<(usize, u16)>,
    local: BTreeSet<(usize, u16)>,
    anywhere: bool,
}

impl Sets {
    fn of(service: &Service, index: usize, family: Family) -> Self {
        let endpoints = endpoints(service, index, family);
        let ready = |place: &&(usize, u16)| endpoints[*place].ready.unwrap_or(true);
        let draining = |place: &&(usize, u16)| {
            let Conditions { serving, terminating, .. } = endpoints[*place];
            serving.unwrap_or(true) && terminating.unwrap_or(false)
        };
        let here = |place: &&(usize, u16)| node_of(place.0) == 0;
        let ready_ones: BTreeSet<_> = endpoints.keys().filter(ready).copied().collect();
        let draining_ones: BTreeSet<_> = endpoints.keys().filter(draining).copied().collect();
        let or = |first: BTreeSet<_>, second: BTreeSet<_>| if first.is_empty() { second } else { first };
        let near = |set: &BTreeSet<_>| set.iter().filter(here).copied().collect();
        Self {
            local: or(near(&ready_ones), near(&draining_ones)),
            anywhere: !ready_ones.is_empty() || !draining_ones.is_empty(),
            cluster: or(by_hints(service, ready_ones), draining_ones),
        }
    }
}

/// What is said of the endpoints of a port.
fn endpoints(service: &Service, index: usize, family: Family) -> BTreeMap<(usize, u16), Conditions> {
    let mut found = BTreeMap::new();
    for slice in &service.slices {
        let Target::Number(port) = slice.targets[index] else { continue };
        if slice.address_type != AddressType::Ip(family) || !slice.owned || slice.headless {
            continue;
        }
        for backend in (0..usize::from(BACKENDS)).filter(|backend| slice.backends[*backend]) {
            let conditions = service.conditions(slice, backend);
            let known = found.entry((backend, port)).or_insert(conditions);
            // Of two things that are said, the one of a pod that does not terminate.
            if conditions.terminating != Some(true) {
                *known = conditions;
            }
        }
    }
    found
}

/// Those of the ready endpoints that hints prefer: node hints first, each only if all endpoints have them and
/// one is for here.
fn by_hints(service: &Service, ready: BTreeSet<(usize, u16)>) -> BTreeSet<(usize, u16)> {
    for hints in [|endpoint: &Endpoint| endpoint.nodes, |endpoint: &Endpoint| endpoint.zones] {
        let of = |place: &(usize, u16)| hints(&service.endpoints[place.0]);
        let all = ready.iter().all(|place| of(place) != [false; 2]);
        if all && ready.iter().any(|place| of(place)[0]) {
            return ready.into_iter().filter(|place| of(place)[0]).collect();
        }
    }
    ready
}

/// Whom a backend takes the client for.
fn source(probe: &Probe, backend: usize, kept: bool) -> Source {
    match probe.from {
        Vantage::Node => Source::Node,
        Vantage::Backend if backend == Vantage::BACKEND => Source::Itself,
        Vantage::Pod | Vantage::Backend => Source::Client,
        // A client outside is masqueraded where the reply would not come back through this node.
        Vantage::Outside if kept => Source::Client,
        Vantage::Outside if probe.way != Way::ClusterIp && node_of(backend) == 0 => Source::Client,
        Vantage::Outside => Source::Node,
    }
}
