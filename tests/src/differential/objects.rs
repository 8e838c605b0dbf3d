//! Services and their EndpointSlices, in the terms of the lab: numbers in place of names and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::kubernetes::{NAMESPACE, zone};
use crate::manifests::Family;

/// How many Services there can be at a time, each in a slot with a name and addresses of its own.
pub const SLOTS: u8 = 6;
/// How many backends there are: the first half on the node that is looked at, the others on another one.
pub const BACKENDS: u8 = 6;
/// The names of the two nodes.
pub const NODES: [&str; 2] = ["a", "b"];
/// The ports that backends listen at.
pub const TARGET_PORTS: [u16; 2] = [8080, 8081];
/// The ports that a Service can have: a number on two protocols is two ports.
pub const PORTS: [Port; 4] = [
    Port { protocol: Protocol::Tcp, number: 80 },
    Port { protocol: Protocol::Udp, number: 80 },
    Port { protocol: Protocol::Tcp, number: 443 },
    Port { protocol: Protocol::Udp, number: 443 },
];

/// The Services that exist, by their slots.
pub type State = BTreeMap<u8, Service>;

/// What one step of a history does: Services put into slots, in place of those that were there, or removed.
pub type Step = BTreeMap<u8, Option<Service>>;

/// Carries a step out.
pub fn advance(state: &mut State, step: &Step) {
    for (slot, service) in step {
        match service {
            Some(service) => state.insert(*slot, service.clone()),
            None => state.remove(slot),
        };
    }
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Kubernetes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

impl Port {
    fn name(self) -> String {
        format!("{}-{}", self.protocol.name().to_lowercase(), self.number)
    }

    /// Its port on the nodes, for the Service in `slot`.
    pub fn node_port(self, slot: u8) -> u16 {
        30_000 + u16::from(slot) * 10 + u16::from(self.number == PORTS[2].number)
    }
}

/// What kind of a Service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the type ClusterIP.
    ClusterIp,
    /// Of the type NodePort.
    NodePort,
    /// Of the type LoadBalancer.
    LoadBalancer {
        /// `allocateLoadBalancerNodePorts`.
        node_ports: bool,
    },
    /// Without an address.
    Headless,
    /// An alias in DNS.
    ExternalName,
}

/// The families of a Service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// Both, IPv4 first.
    V4V6,
    /// Both, IPv6 first.
    V6V4,
}

impl Families {
    /// In their order.
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::V4V6 => &[Family::V4, Family::V6],
            Self::V6V4 => &[Family::V6, Family::V4],
        }
    }
}

/// An address in the status of a Service of the type LoadBalancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Which of the Service's two.
    pub second: bool,
    /// `ipMode`: VIP, Proxy, or not said.
    pub proxy: Option<bool>,
}

/// A range in `loadBalancerSourceRanges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Of addresses that are nobody's.
    Nobody,
    /// The client outside of the cluster.
    Outside,
    /// The pods.
    Pods,
    /// The node that is looked at.
    Node,
}

impl Range {
    /// In both families.
    pub fn cidrs(self) -> [&'static str; 2] {
        match self {
            Self::Nobody => ["192.0.2.0/24", "2001:db8:ffff::/48"],
            Self::Outside => ["172.18.0.200/32", "fd00:172:18::c8/128"],
            Self::Pods => ["10.244.0.0/16", "fd00:10:244::/48"],
            Self::Node => ["172.18.0.1/32", "fd00:172:18::1/128"],
        }
    }
}

/// The conditions of an endpoint, each as in the API: not said is not the same as `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// `ready`.
    pub ready: Option<bool>,
    /// `serving`.
    pub serving: Option<bool>,
    /// `terminating`.
    pub terminating: Option<bool>,
}

/// What a Service's slices say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its conditions.
    pub conditions: Conditions,
    /// The zones in its hints, by the nodes that are there.
    pub zones: [bool; 2],
    /// The nodes in its hints.
    pub nodes: [bool; 2],
}

/// What a slice says of a port of its Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing.
    Absent,
    /// That it is there, and no number.
    Unnumbered,
    /// One of [`TARGET_PORTS`].
    Number(u16),
}

/// The addresses in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// IPv4 or IPv6.
    Ip(Family),
    /// Names.
    Fqdn,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// What is in it.
    pub address_type: AddressType,
    /// The label that says whose it is.
    pub owned: bool,
    /// The label of slices of headless Services.
    pub headless: bool,
    /// What it says of each of [`PORTS`].
    pub targets: [Target; 4],
    /// Which backends it has.
    pub backends: [bool; BACKENDS as usize],
    /// Whether it says of all of them that they terminate, whatever other slices say.
    pub terminating: bool,
}

/// A Service and its slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its kind.
    pub kind: Kind,
    /// Its families.
    pub families: Families,
    /// Its ports, as indices of [`PORTS`].
    pub ports: Vec<usize>,
    /// Whether its only port has no name.
    pub unnamed: bool,
    /// The label that gives it to another proxy.
    pub foreign: bool,
    /// The label of headless Services.
    pub headless: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// Whether it has external IPs.
    pub external_ips: bool,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Vec<Range>,
    /// What is in its status.
    pub ingress: Vec<Ingress>,
    /// What is said of the backends.
    pub endpoints: [Endpoint; BACKENDS as usize],
    /// The slices.
    pub slices: Vec<Slice>,
}

impl Service {
    /// Whether it has a port of this index, and which name it has.
    pub fn port_name(&self, index: usize) -> Option<String> {
        let name = if self.unnamed && self.ports.len() == 1 { String::new() } else { PORTS[index].name() };
        self.ports.contains(&index).then_some(name)
    }

    /// Whether it has a ClusterIP.
    pub fn has_cluster_ip(&self) -> bool {
        !matches!(self.kind, Kind::Headless | Kind::ExternalName)
    }

    /// Whether the API takes `externalTrafficPolicy`.
    fn is_external(&self) -> bool {
        matches!(self.kind, Kind::NodePort | Kind::LoadBalancer { .. }) || self.has_external_ips()
    }

    /// Whether it has external IPs. The API takes them for any Service, and proxies for those with a ClusterIP.
    pub fn has_external_ips(&self) -> bool {
        self.external_ips && self.has_cluster_ip()
    }

    /// Whether outside clients are sent to this node's endpoints only.
    pub fn is_external_local(&self) -> bool {
        self.external_local && self.is_external()
    }

    /// Whether it has ports on the nodes.
    pub fn has_node_ports(&self) -> bool {
        matches!(self.kind, Kind::NodePort | Kind::LoadBalancer { node_ports: true })
    }

    /// What a slice says of a backend.
    pub fn conditions(&self, slice: &Slice, backend: usize) -> Conditions {
        let conditions = self.endpoints[backend].conditions;
        // Of two slices that say different things of an endpoint that terminates, kube-proxy takes either.
        if !slice.terminating || conditions.terminating == Some(true) {
            return conditions;
        }
        Conditions { ready: Some(false), terminating: Some(true), ..conditions }
    }
}

/// The name of the Service in a slot.
pub fn name(slot: u8) -> String {
    format!("s{slot}")
}

/// An address of the Service in a slot.
pub fn cluster_ip(slot: u8, family: Family) -> IpAddr {
    numbered(family, [10, 96, 1], [0xfd00, 0x10, 0x96], slot)
}

/// An external IP of the Service in a slot.
pub fn external_ip(slot: u8, family: Family) -> IpAddr {
    numbered(family, [203, 0, 113], [0x2001, 0xdb8, 1], slot)
}

/// An address that a load balancer has for the Service in a slot.
pub fn ingress_ip(slot: u8, family: Family, second: bool) -> IpAddr {
    numbered(family, [198, 51, 100], [0x2001, 0xdb8, 2], slot + if second { 100 } else { 0 })
}

fn numbered(family: Family, v4: [u8; 3], v6: [u16; 3], slot: u8) -> IpAddr {
    let last = slot + 1;
    match family {
        Family::V4 => [v4[0], v4[1], v4[2], last].into(),
        Family::V6 => [v6[0], v6[1], v6[2], 0, 0, 0, 1, last.into()].into(),
    }
}

/// The node that a backend is on, as an index of [`NODES`].
pub fn node_of(backend: usize) -> usize {
    usize::from(backend >= usize::from(BACKENDS / 2))
}

/// What a state is in the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The Services, by name.
    pub services: BTreeMap<String, Value>,
    /// Their `status.loadBalancer`, by name.
    pub statuses: BTreeMap<String, Value>,
    /// The EndpointSlices, by name.
    pub slices: BTreeMap<String, Value>,
}

/// What the Services of `state` are in the API, where the backends have these addresses.
pub fn objects(state: &State, backends: &[[IpAddr; 2]]) -> Objects {
    let mut objects = Objects::default();
    for (slot, service) in state {
        let name = name(*slot);
        objects.services.insert(name.clone(), service_object(*slot, service));
        if matches!(service.kind, Kind::LoadBalancer { .. }) {
            objects.statuses.insert(name.clone(), ingress(*slot, service));
        }
        for (number, slice) in service.slices.iter().enumerate() {
            let object = slice_object(&name, number, service, slice, backends);
            objects.slices.insert(slice_name(&name, number, slice), object);
        }
    }
    objects
}

fn address_type(slice: &Slice) -> &'static str {
    match slice.address_type {
        AddressType::Ip(family) => family.name(),
        AddressType::Fqdn => "FQDN",
    }
}

/// The name of a slice. The type of addresses cannot be changed in place; and kube-proxy 1.37 serves a slice that
/// loses the label of its Service for ever, though it has been deleted.
fn slice_name(service: &str, number: usize, slice: &Slice) -> String {
    let suffix = if slice.owned { "" } else { "-orphan" };
    format!("{service}-{number}-{}{suffix}", address_type(slice).to_lowercase())
}

fn service_object(slot: u8, service: &Service) -> Value {
    let mut labels = serde_json::Map::new();
    if service.foreign {
        labels.insert("service.kubernetes.io/service-proxy-name".into(), "another".into());
    }
    if service.headless {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    let metadata = json!({"name": name(slot), "namespace": NAMESPACE, "labels": labels});
    let ports: Vec<_> = service.ports.iter().map(|index| port_object(slot, service, *index)).collect();
    let mut spec = json!({"ports": ports});
    if service.kind == Kind::ExternalName {
        spec["type"] = "ExternalName".into();
        spec["externalName"] = "podnet.example".into();
        return json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    }
    let families = service.families.list();
    let addresses: Vec<_> = families.iter().map(|family| cluster_ip(slot, *family).to_string()).collect();
    let addresses = if service.kind == Kind::Headless { vec!["None".to_owned()] } else { addresses };
    spec["clusterIP"] = addresses[0].clone().into();
    spec["clusterIPs"] = addresses.into();
    spec["ipFamilies"] = families.iter().map(|family| family.name()).collect();
    spec["ipFamilyPolicy"] = if families.len() == 2 { "RequireDualStack" } else { "SingleStack" }.into();
    spec["type"] = match service.kind {
        Kind::NodePort => "NodePort",
        Kind::LoadBalancer { .. } => "LoadBalancer",
        _ => "ClusterIP",
    }
    .into();
    spec["internalTrafficPolicy"] = policy(service.internal_local).into();
    if service.is_external() {
        spec["externalTrafficPolicy"] = policy(service.is_external_local()).into();
    }
    if service.affinity {
        spec["sessionAffinity"] = "ClientIP".into();
    }
    if service.has_external_ips() {
        spec["externalIPs"] = families.iter().map(|family| external_ip(slot, *family).to_string()).collect();
    }
    if let Kind::LoadBalancer { node_ports } = service.kind {
        spec["allocateLoadBalancerNodePorts"] = node_ports.into();
        if service.is_external_local() {
            spec["healthCheckNodePort"] = (32_000 + u16::from(slot)).into();
        }
        if !service.source_ranges.is_empty() {
            let cidrs = service.source_ranges.iter().flat_map(|range| range.cidrs());
            spec["loadBalancerSourceRanges"] = cidrs.collect();
        }
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn port_object(slot: u8, service: &Service, index: usize) -> Value {
    let port = PORTS[index];
    let mut object = json!({
        "name": service.port_name(index),
        "protocol": port.protocol.name(),
        "port": port.number,
        "targetPort": TARGET_PORTS[0],
    });
    if service.has_node_ports() {
        object["nodePort"] = port.node_port(slot).into();
    }
    object
}

fn ingress(slot: u8, service: &Service) -> Value {
    let mut list = Vec::new();
    for ingress in &service.ingress {
        for family in service.families.list() {
            let mut entry = json!({"ip": ingress_ip(slot, *family, ingress.second).to_string()});
            if let Some(proxy) = ingress.proxy {
                entry["ipMode"] = if proxy { "Proxy" } else { "VIP" }.into();
            }
            list.push(entry);
        }
    }
    json!({"ingress": list})
}

fn slice_object(
    name: &str,
    number: usize,
    service: &Service,
    slice: &Slice,
    backends: &[[IpAddr; 2]],
) -> Value {
    let mut labels = serde_json::Map::new();
    if slice.owned {
        labels.insert("kubernetes.io/service-name".into(), name.into());
    }
    if slice.headless {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    let mut ports = Vec::new();
    for (index, target) in slice.targets.iter().enumerate() {
        let Some(port) = service.port_name(index) else { continue };
        let mut object = json!({"name": port, "protocol": PORTS[index].protocol.name()});
        match target {
            Target::Absent => continue,
            Target::Unnumbered => {}
            Target::Number(target) => object["port"] = (*target).into(),
        }
        ports.push(object);
    }
    let endpoints = (0..).zip(slice.backends).filter(|(_, has)| *has);
    let endpoints: Vec<_> = endpoints
        .map(|(backend, _)| {
            let address = match slice.address_type {
                AddressType::Ip(Family::V4) => backends[backend][0].to_string(),
                AddressType::Ip(Family::V6) => backends[backend][1].to_string(),
                AddressType::Fqdn => format!("backend-{backend}.podnet.example"),
            };
            let hints = &service.endpoints[backend];
            let named = |names: [bool; 2], name: fn(&str) -> String| -> Vec<_> {
                let names = NODES.iter().zip(names).filter(|(_, has)| *has);
                names.map(|(node, _)| json!({"name": name(node)})).collect()
            };
            let mut object = json!({
                "addresses": [address],
                "conditions": conditions(service.conditions(slice, backend)),
                "nodeName": NODES[node_of(backend)],
            });
            let (zones, nodes) = (named(hints.zones, zone), named(hints.nodes, str::to_owned));
            if !zones.is_empty() {
                object["hints"]["forZones"] = zones.into();
            }
            if !nodes.is_empty() {
                object["hints"]["forNodes"] = nodes.into();
            }
            object
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": slice_name(name, number, slice), "namespace": NAMESPACE, "labels": labels},
        "addressType": address_type(slice),
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn conditions(conditions: Conditions) -> Value {
    let Conditions { ready, serving, terminating } = conditions;
    let mut object = json!({});
    for (name, value) in [("ready", ready), ("serving", serving), ("terminating", terminating)] {
        if let Some(value) = value {
            object[name] = value.into();
        }
    }
    object
}
