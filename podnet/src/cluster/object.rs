//! The objects podnet reads, with the fields it needs: parsed once, valid from then on.
//!
//! The rules are those of kube-proxy (`pkg/proxy/servicechangetracker.go`, `endpointslicecache.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use clap::ValueEnum;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use podnet_common::wire::{Addr, Family, Protocol};
use thiserror::Error;
use tracing::warn;

use super::node::{Node, ServiceCidr};
use super::pod::Pod;

/// The label that hands a Service to the proxy it names (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The value of [`PROXY_NAME`] that means podnet.
const OUR_NAME: &str = "podnet";
/// The label of headless Services, which the endpoint slice controller copies to their slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation by which a Service chooses an [`Algorithm`].
const ALGORITHM: &str = "podnet.io/algorithm";
/// The annotation by which a Service says what its endpoints weigh, by their Pods' names or their nodes'.
const WEIGHTS: &str = "podnet.io/weights";
/// The annotation by which a slice tells when the change began that it is the outcome of.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The longest name of a namespace, a Service or a port: that of a DNS label (RFC 1123).
const MAX_LABEL: usize = 63;
/// The longest name of most other objects: that of a DNS subdomain.
pub(super) const MAX_NAME: usize = 253;

/// How long a client stays with its endpoint where the Service does not say: the API server's default.
const AFFINITY: u32 = 10_800;
/// The longest time that the API server takes.
const MAX_AFFINITY: u32 = 86_400;

/// `namespace/name` of an object, or `name` of one that is in no namespace.
///
/// A Pod's has `pod:` before it, since a Pod may be called like a Service.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The key of the Pod `name` in `namespace`.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self(format!("pod:{namespace}/{name}").into())
    }

    /// The key of `name`, which is in no namespace.
    pub fn global(name: &str) -> Self {
        Self(name.into())
    }

    /// The namespace and the name.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or_default()
    }

    /// The namespace, of a Pod's key too.
    pub fn namespace(&self) -> &str {
        let (namespace, _) = self.parts();
        namespace.strip_prefix("pod:").unwrap_or(namespace)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of objects podnet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
    /// `v1` Namespace.
    Namespace,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Pod,
        Self::ServiceCidr,
        Self::Namespace,
        Self::NetworkPolicy,
    ];

    /// The name in messages and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Namespace => "Namespace",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
}

/// An object of any kind. Those that more than one index keeps are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// Some endpoints of a Service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Node),
    /// A Pod that has addresses.
    Pod(Arc<Pod>),
    /// A network that ClusterIPs are taken from.
    ServiceCidr(ServiceCidr),
    /// A Namespace, of which there is its name to know.
    Namespace(Key),
    /// A NetworkPolicy that says whom pods may send to, of which there is its key to know.
    NetworkPolicy(Key),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::Namespace(_) => Kind::Namespace,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
        }
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        match self {
            Self::Service(service) => &service.key,
            Self::EndpointSlice(slice) => &slice.key,
            Self::Node(node) => &node.key,
            Self::Pod(pod) => &pod.key,
            Self::ServiceCidr(cidr) => &cidr.key,
            Self::Namespace(key) | Self::NetworkPolicy(key) => key,
        }
    }
}

/// A Service: with cluster IPs, headless, or a name for something outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its key.
    pub key: Key,
    /// Whether podnet routes it: it has cluster IPs, and no label hands it to another proxy. All have names.
    pub routed: bool,
    /// The name outside that it stands for (`type: ExternalName`).
    pub external_name: Option<Box<str>>,
    /// When it was created, in seconds of the Unix epoch; `None` for one that no API server has seen.
    pub created: Option<i64>,
    /// Its cluster IPs, one of each family at most. A headless Service has none.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses outside of the cluster that its nodes serve.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that leave a packet's destination as it is.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use those addresses. In a family without a range everybody may.
    pub source_ranges: Vec<IpNet>,
    /// Who serves connections to cluster IPs.
    pub internal_policy: Policy,
    /// Who serves connections from outside to other addresses.
    pub external_policy: Policy,
    /// For how many seconds a client stays with its endpoint; 0: each connection may go to another.
    pub affinity: u32,
    /// How clients outside get an endpoint, if the Service says.
    pub algorithm: Option<Algorithm>,
    /// What its endpoints weigh.
    pub weights: Weights,
    /// Where load balancers ask whether this node has endpoints.
    pub health_check_port: Option<u16>,
    /// Its ports.
    pub ports: Vec<Port>,
}

impl Service {
    /// A Service that is reached at its cluster IPs only, and served from everywhere.
    pub fn new(key: Key, cluster_ips: Vec<IpAddr>, ports: Vec<Port>) -> Self {
        Self {
            key,
            routed: !cluster_ips.is_empty(),
            external_name: None,
            created: None,
            cluster_ips,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity: 0,
            algorithm: None,
            weights: Weights::default(),
            health_check_port: None,
            ports,
        }
    }

    /// Whether its name is for its endpoints' addresses instead of one of its own.
    pub fn is_headless(&self) -> bool {
        self.cluster_ips.is_empty() && self.external_name.is_none()
    }
}

/// What endpoints weigh: how many connections they get, in relation to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights(Box<[(Box<str>, u8)]>);

impl Weights {
    /// What an endpoint weighs by the name of its Pod, else by that of its node; 1 if neither is said to weigh anything.
    pub fn of(&self, pod: Option<&str>, node: Option<&str>) -> u8 {
        let named = |name: &str| self.0.iter().find(|(known, _)| **known == *name).map(|(_, weight)| *weight);
        pod.and_then(named).or_else(|| node.and_then(named)).unwrap_or(1)
    }
}

/// How clients outside of the cluster get an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// By chance.
    #[default]
    Random,
    /// By their addresses and ports: every node chooses the same endpoint for the same ones, and few others when an
    /// endpoint comes or leaves.
    Maglev,
}

/// Whose endpoints serve connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// All nodes'.
    #[default]
    Cluster,
    /// The node's that they arrive at.
    Local,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, not 0.
    pub number: u16,
    /// The number that it has on nodes, if it has one.
    pub node_port: Option<u16>,
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// The name of the Service's port that it is for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, not 0.
    pub number: u16,
}

/// Some endpoints of a Service, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its key.
    pub key: Key,
    /// The Service.
    pub service: Key,
    /// Whether it is of a headless Service, which is not routed.
    pub headless: bool,
    /// The family of the endpoints.
    pub family: Family,
    /// The ports that each endpoint has.
    pub ports: Vec<TargetPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When what the slice tells began to happen: a Pod or the Service changed.
    pub trigger: Option<Timestamp>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub addr: Addr,
    /// The name of its node, if it is on one.
    pub node: Option<Arc<str>>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it answers, be it about to leave or not.
    pub serving: bool,
    /// Whether it is about to leave.
    pub terminating: bool,
    /// For whom it is.
    pub hints: Hints,
    /// The name that it has under its Service's, if it was given one.
    pub hostname: Option<Box<str>>,
    /// The name of its Pod, which is of the slice's namespace, if it is one's.
    pub pod: Option<Box<str>>,
}

impl Endpoint {
    /// An endpoint that is ready, on no node, for everybody and without a name.
    pub fn new(addr: Addr) -> Self {
        Self {
            addr,
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            hints: Hints::default(),
            hostname: None,
            pod: None,
        }
    }
}

/// For whom an endpoint is, by the controller that spreads a Service's clients; empty where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Clients on these nodes.
    pub nodes: Box<[Arc<str>]>,
    /// Clients in these zones.
    pub zones: Box<[Arc<str>]>,
}

/// Why an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {key}: {field}: {reason}")]
pub struct Invalid {
    /// The object's kind.
    pub kind: &'static str,
    /// `namespace/name`, as far as it is known.
    pub key: String,
    /// The path of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// A Kubernetes type that podnet reads.
pub trait Parse {
    /// The kind of the objects it is parsed into.
    const KIND: Kind;

    /// The object's key.
    ///
    /// # Errors
    /// [`Invalid`] if it has no name, or one that Kubernetes would not take.
    fn key(&self) -> Result<Key, Invalid>;

    /// The object as podnet needs it; `None` if it is not podnet's business.
    ///
    /// # Errors
    /// [`Invalid`] naming the field that breaks a rule of the API.
    fn parse(self) -> Result<Option<Object>, Invalid>;
}

impl Parse for core::Service {
    const KIND: Kind = Kind::Service;

    fn key(&self) -> Result<Key, Invalid> {
        key(Self::KIND, &self.metadata, MAX_LABEL)
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let invalid = |field, reason| invalid(Self::KIND, &key, field, reason);
        let spec = self.spec.unwrap_or_default();
        let other_proxy = label(&self.metadata, PROXY_NAME).is_some_and(|name| name != OUR_NAME);
        if spec.type_.as_deref() == Some("ExternalName") {
            let name = external_name(spec.external_name.unwrap_or_default());
            let named = name.inspect_err(
                |reason| warn!(service = %key, field = "spec.externalName", "{reason}, and ignored"),
            );
            let service =
                |name| Service { external_name: Some(name), ..Service::new(key, Vec::new(), Vec::new()) };
            return Ok(named.ok().map(|name| Object::Service(service(name).into())));
        }
        let mut headless = false;
        let mut cluster_ips = Vec::new();
        for text in spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect()) {
            headless |= text == "None";
            if text.is_empty() || text == "None" {
                continue;
            }
            let ip: IpAddr =
                text.parse().map_err(|_| invalid("spec.clusterIPs", format!("{text:?} is not an IP")))?;
            cluster_ips.push(ip);
        }
        if headless {
            // The ports that count are those of its endpoints.
            return Ok(Some(Object::Service(Service::new(key, Vec::new(), Vec::new()).into())));
        }
        // The API server has yet to give it some.
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let mut ports = Vec::new();
        for port in spec.ports.unwrap_or_default() {
            let numbered = |field, port: i32| {
                number(port).ok_or_else(|| invalid(field, format!("{port} is not between 1 and 65535")))
            };
            let node_port = port.node_port.filter(|&port| port != 0);
            ports.push(Port {
                name: port_name(port.name).map_err(|reason| invalid("spec.ports[].name", reason))?,
                protocol: protocol(port.protocol.as_deref())
                    .map_err(|reason| invalid("spec.ports[].protocol", reason))?,
                number: numbered("spec.ports[].port", port.port)?,
                node_port: node_port.map(|port| numbered("spec.ports[].nodePort", port)).transpose()?,
            });
        }
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let external_ips = usable(&key, "spec.externalIPs", spec.external_ips.unwrap_or_default());
        // Others have no say in connections from outside (`ExternallyAccessible` in pkg/api/v1/service).
        let exposed = matches!(kind, "NodePort" | "LoadBalancer") || !external_ips.is_empty();
        let external_policy = match spec.external_traffic_policy.as_deref() {
            Some("Local") if exposed => Policy::Local,
            _ => Policy::Cluster,
        };
        let internal_policy = match spec.internal_traffic_policy.as_deref() {
            Some("Local") => Policy::Local,
            _ => Policy::Cluster,
        };
        let checked = kind == "LoadBalancer" && external_policy == Policy::Local;
        let ingress = self.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
        let balancers = ingress.into_iter().filter(|one| one.ip_mode.as_deref().is_none_or(|it| it == "VIP"));
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
            config.and_then(|seconds| u32::try_from(seconds).ok()).filter(|&seconds| seconds > 0)
        });
        let service = Service {
            routed: !other_proxy,
            external_name: None,
            created: created(&self.metadata),
            cluster_ips,
            load_balancer_ips: usable(
                &key,
                "status.loadBalancer.ingress[].ip",
                balancers.filter_map(|one| one.ip).filter(|ip| !ip.is_empty()),
            ),
            external_ips,
            source_ranges: source_ranges(&key, spec.load_balancer_source_ranges.unwrap_or_default()),
            internal_policy,
            external_policy,
            affinity: affinity.map_or(0, |seconds| seconds.unwrap_or(AFFINITY).min(MAX_AFFINITY)),
            algorithm: algorithm(&key, &self.metadata),
            weights: weights(&key, &self.metadata),
            health_check_port: spec.health_check_node_port.and_then(number).filter(|_| checked),
            ports,
            key,
        };
        Ok(Some(Object::Service(service.into())))
    }
}

/// The name that a Service stands for, as the API server would take it; or an address, which it takes too.
fn external_name(name: String) -> Result<Box<str>, String> {
    let labels = name.strip_suffix('.').unwrap_or(&name);
    let is_label = |label: &str| {
        let fits = (1..=MAX_LABEL).contains(&label.len());
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.parse::<IpAddr>().is_ok() || labels.len() <= MAX_NAME && labels.split('.').all(is_label) {
        Ok(name.into())
    } else {
        Err(format!("{name:?} is not a DNS name"))
    }
}

/// How the Service would have clients get an endpoint; what is no algorithm is reported and ignored.
fn algorithm(key: &Key, metadata: &ObjectMeta) -> Option<Algorithm> {
    let text = annotation(metadata, ALGORITHM)?;
    let algorithm = Algorithm::from_str(text, false);
    algorithm
        .inspect_err(|_| {
            warn!(service = %key, annotation = ALGORITHM, "{text:?} is neither random nor maglev, and ignored")
        })
        .ok()
}

/// What the Service says that its endpoints weigh; what says nothing of that is reported and ignored.
fn weights(key: &Key, metadata: &ObjectMeta) -> Weights {
    const MOST: u8 = 100;
    let text = annotation(metadata, WEIGHTS).unwrap_or_default();
    let one = |part: &str| {
        let named = part.trim().split_once('=').and_then(|(name, weight)| {
            let weight = weight.trim().parse().ok().filter(|weight| *weight <= MOST)?;
            Some((name.trim().into(), weight)).filter(|(name, _): &(Box<str>, u8)| !name.is_empty())
        });
        if named.is_none() {
            warn!(
                service = %key,
                annotation = WEIGHTS,
                "{part:?} is not NAME=WEIGHT, with the name of a Pod or a node and a weight up to {MOST}, and ignored"
            );
        }
        named
    };
    Weights(text.split(',').filter(|part| !part.trim().is_empty()).filter_map(one).collect())
}

/// The addresses of a list; what is none is reported and left out, as kube-proxy does.
fn usable(key: &Key, field: &'static str, texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    let parse = |text: String| {
        let ip = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
        ip.inspect_err(|_| warn!(service = %key, field, "{text:?} is not an IP, and ignored")).ok()
    };
    texts.into_iter().filter_map(parse).collect()
}

/// The source ranges: the API server lets spaces and worse pass, which kube-proxy trims and leaves out. A range
/// of all addresses of a family is as good as none of that family.
fn source_ranges(key: &Key, texts: Vec<String>) -> Vec<IpNet> {
    let parse = |text: String| {
        let range = text.trim().parse::<IpNet>().ok().filter(|range| is_of_one_family(*range));
        if range.is_none() {
            let field = "spec.loadBalancerSourceRanges";
            warn!(service = %key, field, "{text:?} is not a range of addresses, and ignored");
        }
        range.map(|range| range.trunc())
    };
    let mut ranges: Vec<IpNet> = texts.into_iter().filter_map(parse).collect();
    for all in ranges.clone().iter().filter(|range| range.prefix_len() == 0) {
        ranges.retain(|range| range.addr().is_ipv4() != all.addr().is_ipv4());
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// Whether a range holds no IPv4 addresses in IPv6's form: podnet takes these for IPv4's.
fn is_of_one_family(range: IpNet) -> bool {
    !matches!(range, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some())
}

pub(super) fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

impl Parse for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn key(&self) -> Result<Key, Invalid> {
        // A subdomain name: the controller appends to the Service's.
        key(Self::KIND, &self.metadata, MAX_NAME)
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let invalid = |field, reason| invalid(Self::KIND, &key, field, reason);
        let service = match label(&self.metadata, SERVICE_NAME) {
            Some(name) if !name.is_empty() => Key::new(namespace(&self.metadata), name),
            _ => return Ok(None),
        };
        let headless = label(&self.metadata, HEADLESS).is_some();
        // As for kube-proxy, what is no time is no trigger.
        let trigger = annotation(&self.metadata, TRIGGER_TIME).and_then(|time| time.parse().ok());
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return Ok(None),
            other => {
                return Err(invalid("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN")));
            }
        };
        let mut ports = Vec::new();
        for port in self.ports.unwrap_or_default() {
            // No number means "any", which a Service cannot use.
            let Some(number) = port.port.and_then(number) else { continue };
            ports.push(TargetPort {
                name: port_name(port.name).map_err(|reason| invalid("ports[].name", reason))?,
                protocol: protocol(port.protocol.as_deref())
                    .map_err(|reason| invalid("ports[].protocol", reason))?,
                number,
            });
        }
        let mut endpoints = Vec::new();
        for endpoint in into_vec(self.endpoints) {
            // The API says of further addresses that they are fungible, and proxies ignore them.
            let Some(text) = endpoint.addresses.first() else { continue };
            let addr = text.parse::<IpAddr>().ok().map(Addr::from).filter(|addr| addr.family() == family);
            let addr = addr.ok_or_else(|| {
                invalid("endpoints[].addresses", format!("{text:?} is not an {} address", self.address_type))
            })?;
            let conditions = endpoint.conditions.unwrap_or_default();
            let hints = endpoint.hints.unwrap_or_default();
            let (nodes, zones) = (hints.for_nodes.unwrap_or_default(), hints.for_zones.unwrap_or_default());
            endpoints.push(Endpoint {
                addr,
                node: endpoint.node_name.map(Arc::from),
                hints: Hints {
                    nodes: nodes.into_iter().map(|node| node.name.into()).collect(),
                    zones: zones.into_iter().map(|zone| zone.name.into()).collect(),
                },
                hostname: endpoint
                    .hostname
                    .filter(|name| !name.is_empty())
                    .map(|name| name.to_lowercase().into()),
                pod: endpoint
                    .target_ref
                    .filter(|target| target.kind.as_deref() == Some("Pod"))
                    .and_then(|target| target.name)
                    .map(Box::from),
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
            });
        }
        let slice = EndpointSlice { key, service, headless, family, ports, endpoints, trigger };
        Ok(Some(Object::EndpointSlice(slice.into())))
    }
}

impl Parse for core::Namespace {
    const KIND: Kind = Kind::Namespace;

    fn key(&self) -> Result<Key, Invalid> {
        names(Self::KIND, &self.metadata, MAX_LABEL).map(|(_, name)| Key::global(name))
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        self.key().map(|key| Some(Object::Namespace(key)))
    }
}

impl Parse for networking::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;

    fn key(&self) -> Result<Key, Invalid> {
        key(Self::KIND, &self.metadata, MAX_NAME)
    }

    /// Where the policy does not say for which directions it is, it is for that of pods to others if it has rules for
    /// that.
    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let spec = self.spec.unwrap_or_default();
        let egress = match spec.policy_types {
            Some(types) => types.iter().any(|kind| kind == "Egress"),
            None => spec.egress.is_some(),
        };
        Ok(egress.then_some(Object::NetworkPolicy(key)))
    }
}

/// A list field that is required in some versions of the API and optional in others.
fn into_vec<T>(list: impl Into<Option<Vec<T>>>) -> Vec<T> {
    list.into().unwrap_or_default()
}

pub(super) fn invalid(kind: Kind, key: &Key, field: &'static str, reason: String) -> Invalid {
    Invalid { kind: kind.name(), key: key.to_string(), field, reason }
}

pub(super) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or("default")
}

fn key(kind: Kind, metadata: &ObjectMeta, max_name: usize) -> Result<Key, Invalid> {
    let (namespace, name) = names(kind, metadata, max_name)?;
    Ok(Key::new(namespace, name))
}

/// The namespace and the name of an object, both as Kubernetes would take them.
pub(super) fn names(kind: Kind, metadata: &ObjectMeta, max_name: usize) -> Result<(&str, &str), Invalid> {
    let (namespace, name) = (namespace(metadata), metadata.name.as_deref().unwrap_or_default());
    let check = |field, text: &str, max| {
        let reason = match text.len() {
            0 => "must be set".to_owned(),
            length if length > max => format!("is longer than {max} characters"),
            _ if text.contains(['/', ':']) => format!("{text:?} is not a name"),
            _ => return Ok(()),
        };
        Err(invalid(kind, &Key::new(namespace, name), field, reason))
    };
    check("metadata.namespace", namespace, MAX_LABEL)?;
    check("metadata.name", name, max_name)?;
    Ok((namespace, name))
}

pub(super) fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let labels: &BTreeMap<String, String> = metadata.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|&number| number != 0)
}

fn port_name(name: Option<String>) -> Result<Arc<str>, String> {
    let name = name.unwrap_or_default();
    if name.len() > MAX_LABEL || name.contains(['/', ':']) {
        return Err(format!("{name:?} is not a port name"));
    }
    Ok(name.into())
}

pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(other) => Err(format!("{other:?} is not TCP, UDP or SCTP")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Result<Option<Object>, Invalid> {
        serde_json::from_value::<core::Service>(value).unwrap().parse()
    }

    fn slice(value: serde_json::Value) -> Result<Option<Object>, Invalid> {
        serde_json::from_value::<discovery::EndpointSlice>(value).unwrap().parse()
    }

    #[test]
    fn a_service_keeps_its_addresses_and_ports() {
        let parsed = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 80}],
            },
        }));
        let Ok(Some(Object::Service(service))) = parsed else { panic!("{parsed:?}") };
        assert_eq!(service.key, Key::new("shop", "web"));
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.ports[0].protocol, Protocol::UDP);
        assert_eq!((&*service.ports[1].name, service.ports[1].protocol), ("", Protocol::TCP));
    }

    /// A Service with more in its spec and its status.
    fn exposed(spec: serde_json::Value, status: serde_json::Value) -> Service {
        let mut whole = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        match service(json!({"metadata": {"name": "web"}, "spec": whole, "status": status})) {
            Ok(Some(Object::Service(service))) => Arc::unwrap_or_clone(service),
            other => panic!("{other:?}"),
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn load_balancers_that_are_proxies_or_names_are_left_out() {
        let ingress = json!([
            {"ip": "192.0.2.1"},
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"},
        ]);
        let found = exposed(json!({"type": "LoadBalancer"}), json!({"loadBalancer": {"ingress": ingress}}));
        assert_eq!(found.load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2"]));
        assert_eq!(found.ports[0].node_port, Some(30080));
        let ports = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                           "ports": [{"port": 80}]});
        assert_eq!(exposed(ports, json!({})).ports[0].node_port, None);
    }

    #[test]
    fn source_ranges_are_trimmed_and_ill_ones_ignored() {
        let ranges = |list: serde_json::Value| -> Vec<String> {
            let found = exposed(json!({"loadBalancerSourceRanges": list}), json!({})).source_ranges;
            found.iter().map(IpNet::to_string).collect()
        };
        assert_eq!(
            ranges(json!([" 192.0.2.7/24\t", "2001:db8::/32", "nobody", "192.0.2.0/33", "192.0.2.0/24"])),
            ["192.0.2.0/24", "2001:db8::/32"]
        );
        assert_eq!(
            ranges(json!(["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"])),
            ["fd00::/8"],
            "all of IPv4 is none"
        );
        assert_eq!(ranges(json!(["::ffff:10.0.0.0/104"])), [""; 0]);
    }

    #[test]
    fn external_ips_that_are_none_are_ignored() {
        let found = exposed(json!({"externalIPs": ["192.0.2.9", "nobody", "2001:db8::9"]}), json!({}));
        assert_eq!(found.external_ips, ips(&["192.0.2.9", "2001:db8::9"]));
    }

    #[test]
    fn policies_are_cluster_unless_they_are_local_and_matter() {
        let policies = |spec| {
            let found = exposed(spec, json!({}));
            (found.internal_policy, found.external_policy)
        };
        let local = |kind: &str| json!({"type": kind, "externalTrafficPolicy": "Local"});
        assert_eq!(policies(json!({})), (Policy::Cluster, Policy::Cluster));
        assert_eq!(policies(local("NodePort")).1, Policy::Local);
        assert_eq!(policies(local("LoadBalancer")).1, Policy::Local);
        assert_eq!(policies(local("ClusterIP")).1, Policy::Cluster, "it is not reached from outside");
        assert_eq!(policies(json!({"internalTrafficPolicy": "Local"})).0, Policy::Local);
        let external = json!({"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.9"]});
        assert_eq!(policies(external).1, Policy::Local);
    }

    #[test]
    fn affinity_lasts_three_hours_unless_the_service_says_otherwise() {
        let affinity = |spec| exposed(spec, json!({})).affinity;
        assert_eq!(affinity(json!({})), 0);
        assert_eq!(affinity(json!({"sessionAffinity": "None"})), 0);
        assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), 10_800);
        let of = |seconds| {
            json!({"sessionAffinity": "ClientIP",
                   "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
        };
        assert_eq!(affinity(of(5)), 5);
        assert_eq!(affinity(of(1_000_000)), 86_400);
    }

    #[test]
    fn health_checks_are_of_load_balancers_with_the_local_policy() {
        let port = |kind: &str, policy: &str| {
            let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31000});
            exposed(spec, json!({})).health_check_port
        };
        assert_eq!(port("LoadBalancer", "Local"), Some(31000));
        assert_eq!(port("LoadBalancer", "Cluster"), None);
        assert_eq!(port("NodePort", "Local"), None);
    }

    #[test]
    fn endpoints_keep_their_node_and_hints_and_names() {
        let parsed = slice(json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "a", "hostname": "first",
                "targetRef": {"kind": "Pod", "name": "web-0"}, "hints": {
                "forZones": [{"name": "y"}, {"name": "z"}], "forNodes": [{"name": "a"}]}},
                {"addresses": ["10.0.0.2"], "hostname": "", "targetRef": {"kind": "Node", "name": "a"}}],
        }));
        let Ok(Some(Object::EndpointSlice(slice))) = parsed else { panic!("{parsed:?}") };
        assert_eq!(slice.endpoints[0].node.as_deref(), Some("a"));
        assert_eq!(slice.endpoints[0].hints.zones, ["y".into(), "z".into()].into());
        assert_eq!(slice.endpoints[0].hints.nodes, ["a".into()].into());
        let names = |number: usize| {
            let endpoint: &Endpoint = &slice.endpoints[number];
            (endpoint.hostname.as_deref(), endpoint.pod.as_deref())
        };
        assert_eq!(names(0), (Some("first"), Some("web-0")));
        assert_eq!(names(1), (None, None));
    }

    #[test]
    fn services_of_others_are_not_routed() {
        let with = |labels: serde_json::Value, spec: serde_json::Value| match service(
            json!({"metadata": {"name": "a", "labels": labels}, "spec": spec}),
        ) {
            Ok(Some(Object::Service(service))) => service,
            other => panic!("{other:?}"),
        };
        let routed = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        assert!(with(json!({}), routed.clone()).routed);
        assert!(with(json!({PROXY_NAME: "podnet"}), routed.clone()).routed);
        assert!(with(json!({HEADLESS: ""}), routed.clone()).routed, "only slices go by this label");
        assert!(!with(json!({PROXY_NAME: "other"}), routed).routed);
        let headless = with(json!({}), json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        assert!(headless.is_headless() && !headless.routed);
        let external = with(json!({}), json!({"type": "ExternalName", "externalName": "example.com"}));
        assert_eq!((external.external_name.as_deref(), external.routed), (Some("example.com"), false));
        assert!(!external.is_headless());
    }

    #[test]
    fn a_service_without_an_address_so_far_is_none() {
        assert_eq!(service(json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}})), Ok(None));
    }

    #[test]
    fn endpoints_weigh_what_their_service_says() {
        let with = |text: &str| {
            let metadata = json!({"name": "a", "annotations": {WEIGHTS: text}});
            match service(json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}})) {
                Ok(Some(Object::Service(service))) => service.weights.clone(),
                other => panic!("{other:?}"),
            }
        };
        let weights = with("web-0 = 3, big=5,out=0");
        let of = |pod, node| weights.of(pod, node);
        assert_eq!((of(Some("web-0"), Some("big")), of(Some("web-1"), Some("big"))), (3, 5));
        assert_eq!((of(Some("out"), None), of(None, None), of(Some("web-1"), Some("small"))), (0, 1, 1));
        assert_eq!(with("a=101,b,c=-1,=,d=x,e=100").0.len(), 1, "only the last one says something");
        assert_eq!(with(""), Weights::default());
    }

    #[test]
    fn a_service_without_a_usable_external_name_is_none() {
        let of = |name: &str| {
            service(
                json!({"metadata": {"name": "a"}, "spec": {"type": "ExternalName", "externalName": name}}),
            )
        };
        for name in ["example.com", "example.com.", "_a.example", "192.0.2.1", "2001:db8::1"] {
            assert!(of(name).unwrap().is_some(), "{name}");
        }
        for name in ["", ".", "a..b", "a b", "http://example.com"] {
            assert_eq!(of(name).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn an_invalid_field_is_named() {
        let error = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 70000}]},
        }));
        assert_eq!(
            error.unwrap_err().to_string(),
            "Service shop/web: spec.ports[].port: 70000 is not between 1 and 65535"
        );
    }

    #[test]
    fn nil_conditions_are_ready_and_serving_and_not_terminating() {
        let parsed = slice(json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": null, "port": 8080}, {"name": "any"}, {"name": "zero", "port": 0}],
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}],
        }));
        let Ok(Some(Object::EndpointSlice(slice))) = parsed else { panic!("{parsed:?}") };
        assert_eq!(slice.service, Key::new("default", "web"));
        assert_eq!(slice.ports.len(), 1, "ports without a number are ignored");
        let addr = Addr::from("10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(slice.endpoints, [Endpoint::new(addr)]);
    }

    #[test]
    fn slices_are_of_services_and_of_addresses() {
        let of = |labels: serde_json::Value, kind: &str| {
            slice(json!({
                "metadata": {"name": "s", "labels": labels}, "addressType": kind, "endpoints": [],
            }))
            .unwrap()
        };
        assert!(of(json!({SERVICE_NAME: "web"}), "IPv6").is_some());
        assert_eq!(of(json!({SERVICE_NAME: "web"}), "FQDN"), None);
        assert_eq!(of(json!({}), "IPv4"), None);
        for (labels, headless) in
            [(json!({SERVICE_NAME: "web"}), false), (json!({SERVICE_NAME: "web", HEADLESS: ""}), true)]
        {
            let Some(Object::EndpointSlice(slice)) = of(labels, "IPv4") else { panic!("no slice") };
            assert_eq!(slice.headless, headless);
        }
    }

    #[test]
    fn a_slice_tells_when_its_change_began() {
        let of = |annotations: serde_json::Value| {
            let parsed = slice(json!({
                "metadata": {"name": "s", "labels": {SERVICE_NAME: "web"}, "annotations": annotations},
                "addressType": "IPv4", "endpoints": [],
            }));
            let Ok(Some(Object::EndpointSlice(slice))) = parsed else { panic!("{parsed:?}") };
            slice.trigger
        };
        let trigger = of(json!({TRIGGER_TIME: "2026-11-25T00:12:06.5Z"})).unwrap();
        assert_eq!(trigger.as_millisecond(), 1_795_565_526_500);
        assert_eq!(of(json!({})), None);
        assert_eq!(of(json!({TRIGGER_TIME: "yesterday"})), None);
    }

    #[test]
    fn an_address_of_the_wrong_family_is_an_error() {
        let error = slice(json!({
            "metadata": {"name": "s", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}],
        }));
        assert!(error.unwrap_err().to_string().ends_with("\"10.0.0.1\" is not an IPv6 address"));
    }
}
