//! What Services amount to on this node: their frontends, and who serves whom.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podnet_common::network::{Network, SERVICE_NETWORKS, ServiceNetworks};
use podnet_common::service::{BackendFlags, FrontendFlags, FrontendKey, FrontendKind, ServiceId};
use podnet_common::wire::{Be16, Endpoint, Family, Protocol};

use super::index::Index;
use super::node::{NodeAddresses, family_of, loopback};
use super::object::{Algorithm, EndpointSlice, Key, Policy, Port, Service, Weights};
use super::pod::{HostPort, Pod};
use super::topology::{Candidate, Place, Wanted, categorize, merge};
use crate::changes::SourceRange;

/// A port of a Service in one family, or what is like one: all other ports of a ClusterIP, a port of a pod on
/// its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name, empty if it has none.
    pub port: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family of its frontends and endpoints.
    pub family: Family,
    /// When the Service was created: the older of two that claim the same frontend has it.
    pub created: Option<i64>,
    /// Where clients reach it.
    pub frontends: Vec<Frontend>,
    /// Its endpoints, sorted, each once.
    pub members: Vec<Member>,
    /// For how many seconds a client stays with its endpoint; 0: each connection may go to another.
    pub affinity: u32,
    /// How many slots there are at the least for clients outside to choose from by a hash that is the same on all
    /// nodes; `None`: they choose by chance.
    pub maglev: Option<u32>,
    /// Who may use its frontends that are for certain sources only, sorted, each once.
    pub sources: Vec<IpNet>,
}

/// Where clients reach a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Address, port and protocol.
    pub key: FrontendKey,
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// Which sets of endpoints its clients get, and what else there is to know.
    pub flags: FrontendFlags,
}

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What it may be used for.
    pub flags: BackendFlags,
    /// How many connections it gets, in relation to the others; 0: none that are new, unless all have that.
    pub weight: u8,
}

/// The ports of what has `key`: of a Service, or of a pod on this node. None if there is no such thing.
pub fn service_ports(index: &Index, key: &Key) -> Vec<ServicePort> {
    match (index.service(key), index.pod(key)) {
        (Some(service), _) => of_service(index, service),
        (None, Some(pod)) => of_pod(index, pod),
        (None, None) => Vec::new(),
    }
}

/// The networks that ClusterIPs are taken from, as the kernel takes them: not more than
/// [`SERVICE_NETWORKS`], and unassigned addresses of what is beyond them are routed like any others.
pub fn service_networks(index: &Index) -> ServiceNetworks {
    let mut networks = ServiceNetworks::default();
    for (network, cidr) in networks.0.iter_mut().zip(index.service_cidrs()) {
        *network = Network::new(cidr.addr().into(), cidr.prefix_len());
    }
    networks
}

/// How many of the networks that ClusterIPs are taken from the kernel does not take.
pub fn service_networks_left_out(index: &Index) -> usize {
    index.service_cidrs().len().saturating_sub(SERVICE_NETWORKS)
}

/// The networks of the cluster's pods, one of a family at most, if it is addresses that tell pods.
pub fn pod_networks(index: &Index) -> Vec<SourceRange> {
    let networks = [Family::V4, Family::V6].into_iter().filter_map(|family| index.pod_network(family));
    networks.map(|network| SourceRange::of(ServiceId::PODS, &network)).collect()
}

pub(super) fn is_here(node: Option<&str>, here: Place<'_>) -> bool {
    !here.node.is_empty() && node == Some(here.node)
}

fn of_service(index: &Index, service: &Service) -> Vec<ServicePort> {
    let slices: Vec<&EndpointSlice> = index.slices(&service.key).collect();
    let mut ports = Vec::new();
    for &cluster_ip in &service.cluster_ips {
        let family = family_of(cluster_ip);
        for port in &service.ports {
            ports.push(of_port(index, service, &slices, cluster_ip, port));
        }
        if !service.ports.is_empty() {
            let rest = Frontend {
                key: FrontendKey::rest_of(cluster_ip.into()),
                kind: FrontendKind::CLUSTER_IP_REST,
                flags: FrontendFlags::NONE,
            };
            ports.push(ServicePort {
                port: "".into(),
                protocol: rest.key.protocol(),
                family,
                created: service.created,
                frontends: vec![rest],
                members: Vec::new(),
                affinity: 0,
                maglev: None,
                sources: Vec::new(),
            });
        }
    }
    ports
}

/// A port of a Service in the family of `cluster_ip`.
fn of_port(
    index: &Index,
    service: &Service,
    slices: &[&EndpointSlice],
    cluster_ip: IpAddr,
    port: &Port,
) -> ServicePort {
    let family = family_of(cluster_ip);
    let external = external(index, service, port, family);
    let (internally, externally) =
        (service.internal_policy == Policy::Local, service.external_policy == Policy::Local);
    let wanted = Wanted {
        cluster: !internally || !external.is_empty(),
        local: internally || externally && !external.is_empty(),
    };
    let here = index.place();
    let candidates = candidates(slices, family, port, here, &service.weights);
    let categories = categorize(&candidates, here, wanted);

    let mut inside = FrontendFlags::NONE;
    if index.settings().masquerade_all {
        inside = inside.with(FrontendFlags::MASQUERADE);
    }
    if index.pod_network(family).is_some() {
        inside = inside.with(FrontendFlags::POD_NETWORKS);
    }
    if internally {
        inside = inside.with(FrontendFlags::INSIDE_LOCAL).with(FrontendFlags::OUTSIDE_LOCAL);
    }
    if internally && categories.anywhere {
        inside = inside.with(FrontendFlags::INSIDE_DROP).with(FrontendFlags::OUTSIDE_DROP);
    }
    let mut outside = FrontendFlags::NONE;
    if externally {
        outside = outside.with(FrontendFlags::OUTSIDE_LOCAL);
    }
    if externally && categories.anywhere {
        outside = outside.with(FrontendFlags::OUTSIDE_DROP);
    }
    let key = |ip: IpAddr, number| {
        FrontendKey::new(Endpoint { addr: ip.into(), port: Be16::new(number) }, port.protocol)
    };
    let mut frontends =
        vec![Frontend { key: key(cluster_ip, port.number), kind: FrontendKind::CLUSTER_IP, flags: inside }];
    frontends.extend(external.into_iter().map(|(ip, number, kind, flags)| Frontend {
        key: key(ip, number),
        kind,
        flags: outside.with(flags),
    }));
    let members = candidates.iter().zip(categories.flags);
    ServicePort {
        port: port.name.clone(),
        protocol: port.protocol,
        family,
        created: service.created,
        frontends,
        members: members.map(|(it, flags)| Member { endpoint: it.at, flags, weight: it.weight }).collect(),
        affinity: service.affinity,
        maglev: match service.algorithm.unwrap_or(index.settings().algorithm) {
            Algorithm::Random => None,
            Algorithm::Maglev => Some(index.settings().maglev_slots),
        },
        sources: sources(index, service, family),
    }
}

/// The addresses and ports at which a port of a Service is reached from outside.
fn external(
    index: &Index,
    service: &Service,
    port: &Port,
    family: Family,
) -> Vec<(IpAddr, u16, FrontendKind, FrontendFlags)> {
    let none = FrontendFlags::NONE;
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter().copied().filter(|ip| family_of(*ip) == family).collect()
    };
    let restricted = service.source_ranges.iter().any(|range| family_of(range.addr()) == family);
    let balancer = if restricted { FrontendFlags::SOURCE_RANGES } else { none };
    let balancers = of_family(&service.load_balancer_ips).into_iter();
    let mut found: Vec<_> =
        balancers.map(|ip| (ip, port.number, FrontendKind::LOAD_BALANCER, balancer)).collect();
    let external = of_family(&service.external_ips).into_iter();
    found.extend(external.map(|ip| (ip, port.number, FrontendKind::EXTERNAL_IP, none)));
    if let Some(number) = port.node_port {
        let settings = index.settings();
        let nodes = index.addresses().of_node_ports(family, &settings.node_port_addresses);
        found.extend(nodes.into_iter().map(|ip| (ip, number, FrontendKind::NODE_PORT, none)));
        let loopback = NodeAddresses::of_loopback(family, settings);
        found.extend(loopback.map(|ip| (ip, number, FrontendKind::NODE_PORT, FrontendFlags::LOOPBACK)));
    }
    found
}

/// Who may use a Service's load balancers in one family. Where a range holds the node, the balancers' own
/// addresses are among them: some platforms give these to nodes, which then use them as their source.
fn sources(index: &Index, service: &Service, family: Family) -> Vec<IpNet> {
    let of_family = |ip: IpAddr| family_of(ip) == family;
    let ranges = service.source_ranges.iter().copied().filter(|range| of_family(range.addr()));
    let mut sources: Vec<IpNet> = ranges.collect();
    if sources.iter().any(|range| index.addresses().any_primary_in(range)) {
        let balancers = service.load_balancer_ips.iter().copied().filter(|ip| of_family(*ip));
        sources.extend(balancers.map(IpNet::from));
    }
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// The endpoints of a port, sorted, each once.
fn candidates<'a>(
    slices: &[&'a EndpointSlice],
    family: Family,
    port: &Port,
    here: Place<'_>,
    weights: &Weights,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for target in
            slice.ports.iter().filter(|target| target.name == port.name && target.protocol == port.protocol)
        {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                at: Endpoint { addr: endpoint.addr, port: Be16::new(target.number) },
                local: is_here(endpoint.node.as_deref(), here),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                hints: &endpoint.hints,
                weight: weights.of(endpoint.pod.as_deref(), endpoint.node.as_deref()),
            }));
        }
    }
    merge(&mut candidates);
    candidates
}

/// The ports of a pod on its node.
fn of_pod(index: &Index, pod: &Pod) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for &ip in &pod.ips {
        for port in &pod.ports {
            let frontends = host_addresses(index, port, family_of(ip));
            if frontends.is_empty() {
                continue;
            }
            let flags = [BackendFlags::SERVING, BackendFlags::LOCAL, BackendFlags::IN_CLUSTER];
            let member = Member {
                endpoint: Endpoint { addr: ip.into(), port: Be16::new(port.container) },
                flags: flags.into_iter().fold(BackendFlags::PRESENT, BackendFlags::with),
                weight: 1,
            };
            let frontend = |ip: IpAddr| Frontend {
                key: FrontendKey::new(
                    Endpoint { addr: ip.into(), port: Be16::new(port.host) },
                    port.protocol,
                ),
                kind: FrontendKind::HOST_PORT,
                flags: if ip.is_loopback() { FrontendFlags::LOOPBACK } else { FrontendFlags::NONE },
            };
            ports.push(ServicePort {
                port: match port.ip {
                    Some(ip) => format!("{}@{ip}", port.host).into(),
                    None => port.host.to_string().into(),
                },
                protocol: port.protocol,
                family: family_of(ip),
                created: pod.created,
                frontends: frontends.into_iter().map(frontend).collect(),
                members: vec![member],
                affinity: 0,
                maglev: None,
                sources: Vec::new(),
            });
        }
    }
    ports
}

/// The addresses of the node at which it has a pod's port. At the loopback address it has it in IPv4 only.
fn host_addresses(index: &Index, port: &HostPort, family: Family) -> Vec<IpAddr> {
    match port.ip {
        Some(ip) if family_of(ip) != family => Vec::new(),
        Some(ip) if !ip.is_unspecified() => vec![ip],
        _ => {
            let loopback = (family == Family::V4).then_some(loopback(family));
            index.addresses().reachable(family).chain(loopback).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Event;
    use crate::cluster::manifests;
    use crate::cluster::node::{LocalPods, ProxySettings};

    const READY: &str = "";
    const TERMINATING: &str = "conditions: {ready: false, serving: true, terminating: true}";
    const DEAD: &str = "conditions: {ready: false, serving: false, terminating: true}";
    const IDLE: &str = "conditions: {ready: false, serving: true}";
    const HERE: &str = "nodeName: here";

    const IN_CLUSTER: BackendFlags = BackendFlags::IN_CLUSTER;
    const IN_LOCAL: BackendFlags = BackendFlags::IN_LOCAL;

    fn settings() -> ProxySettings {
        ProxySettings { node: "here".to_owned(), ..ProxySettings::default() }
    }

    /// An index of a node with addresses of both families and the Service `shop/web`.
    fn index(settings: ProxySettings, spec: &str) -> Index {
        let mut index = Index::new(settings);
        let local = ["127.0.0.1", "::1", "192.0.2.1", "192.0.2.129", "2001:db8::1", "fe80::1"];
        index.set_local_addresses(local.map(|ip| ip.parse().unwrap()).into());
        apply(
            &mut index,
            "apiVersion: v1\nkind: Node\nmetadata: {name: here, labels: {topology.kubernetes.io/zone: z}}\n\
             status: {addresses: [{type: InternalIP, address: 192.0.2.1},
                                  {type: InternalIP, address: 2001:db8::1}]}\n",
        );
        service(&mut index, spec);
        index
    }

    fn apply(index: &mut Index, text: &str) {
        for object in manifests::parse(text).unwrap() {
            index.handle(Event::Apply(object));
        }
    }

    fn service(index: &mut Index, spec: &str) {
        let metadata = "{name: web, namespace: shop}";
        apply(index, &format!("{{apiVersion: v1, kind: Service, metadata: {metadata}, {spec}}}"));
    }

    /// A slice of `shop/web`, each endpoint by its address and what else there is of it.
    fn slice(index: &mut Index, name: &str, ports: &str, endpoints: &[(&str, &str)]) {
        let kind = if endpoints.iter().any(|(ip, _)| ip.contains(':')) { "IPv6" } else { "IPv4" };
        let endpoints: Vec<String> =
            endpoints.iter().map(|(ip, more)| format!("{{addresses: ['{ip}'], {more}}}")).collect();
        apply(
            index,
            &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {kind}\nmetadata: \
                 {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
                 ports: [{ports}]\nendpoints: [{}]\n",
                endpoints.join(", ")
            ),
        );
    }

    const PORT: &str = "{port: 80}";

    fn ports(index: &Index) -> Vec<ServicePort> {
        service_ports(index, &Key::new("shop", "web"))
    }

    /// The only port that is not all others.
    fn only(index: &Index) -> ServicePort {
        let mut found = ports(index);
        found.retain(|port| port.protocol != Protocol(0));
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn with(port: &ServicePort, flag: BackendFlags) -> Vec<String> {
        let members = port.members.iter().filter(|member| member.flags.has(flag));
        members.map(|member| std::net::SocketAddr::from(member.endpoint).to_string()).collect()
    }

    fn frontends(port: &ServicePort) -> Vec<String> {
        let one = |frontend: &Frontend| {
            let socket = std::net::SocketAddr::from(frontend.key.endpoint());
            format!("{} {socket} {:?}", frontend.kind.name(), frontend.flags)
        };
        port.frontends.iter().map(one).collect()
    }

    const PLAIN: &str = "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}";

    #[test]
    fn frontends_of_the_same_number_on_two_protocols_are_two() {
        let spec = "spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, \
                    port: 53}, {name: sctp, port: 53, protocol: SCTP}]}";
        let found = ports(&index(settings(), spec));
        let protocols: Vec<_> = found.iter().map(|port| port.protocol).collect();
        assert_eq!(protocols, [Protocol::UDP, Protocol::TCP, Protocol::SCTP, Protocol(0)]);
        assert!(found[..3].iter().all(|port| frontends(port) == ["ClusterIP 10.96.0.10:53 {}"]));
    }

    #[test]
    fn frontends_of_any_other_port_are_one_for_each_cluster_ip() {
        let spec = "spec: {clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [192.0.2.9], ports: [{port: 80}, \
                    {name: b, port: 81}]}";
        let found = ports(&index(settings(), spec));
        let rest: Vec<_> = found.iter().filter(|port| port.protocol == Protocol(0)).collect();
        let addresses: Vec<_> = rest.iter().map(|port| frontends(port)).collect();
        assert_eq!(addresses, [["ClusterIP 10.96.0.1:0 {}"], ["ClusterIP [fd00::1]:0 {}"]]);
        assert!(rest.iter().all(|port| port.members.is_empty()));
        let none = ports(&index(settings(), "spec: {clusterIP: 10.96.0.1}"));
        assert_eq!(none, [], "a Service without ports has nothing to refuse others by");
    }

    #[test]
    fn frontends_of_dual_stack_have_each_their_own_slices() {
        let spec = "spec: {clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80}]}";
        let mut index = index(settings(), spec);
        slice(&mut index, "v4", "{port: 8080}", &[("10.0.0.1", READY)]);
        slice(&mut index, "v6", "{port: 8081}", &[("fd00::a", READY)]);
        let found = ports(&index);
        assert_eq!(with(&found[0], IN_CLUSTER), ["10.0.0.1:8080"]);
        assert_eq!(frontends(&found[2]), ["ClusterIP [fd00::1]:80 {}"]);
        assert_eq!(with(&found[2], IN_CLUSTER), ["[fd00::a]:8081"]);
    }

    #[test]
    fn frontends_of_node_ports_are_at_the_primary_addresses() {
        let spec = "spec: {type: NodePort, clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80, nodePort: \
                    30080}]}";
        let found = ports(&index(settings(), spec));
        assert_eq!(frontends(&found[0]), ["ClusterIP 10.96.0.1:80 {}", "NodePort 192.0.2.1:30080 {}"]);
        assert_eq!(frontends(&found[2]), ["ClusterIP [fd00::1]:80 {}", "NodePort [2001:db8::1]:30080 {}"]);
    }

    #[test]
    fn frontends_of_node_ports_are_where_the_settings_say() {
        let spec = "spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}";
        let at = |addresses: &str, localhost_node_ports| {
            let node_port_addresses = addresses.parse().unwrap();
            let settings = ProxySettings { node_port_addresses, localhost_node_ports, ..settings() };
            frontends(&only(&index(settings, spec))).split_off(1)
        };
        let all = ["NodePort 192.0.2.1:30080 {}", "NodePort 192.0.2.129:30080 {}"];
        let loopback = "NodePort 127.0.0.1:30080 {\"loopback\"}";
        assert_eq!(at("0.0.0.0/0", false), all);
        assert_eq!(at("192.0.2.128/25", false), all[1..]);
        assert_eq!(at("2001:db8::/32", false), all, "a family without a network has all");
        assert_eq!(at("primary", true), [all[0], loopback]);
        assert_eq!(at("127.0.0.0/8,192.0.2.0/25", false), [all[0], loopback]);
    }

    #[test]
    fn frontends_of_node_ports_without_a_node_are_at_all_addresses() {
        let spec = "spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}";
        let mut index = index(settings(), spec);
        index.handle(Event::Delete(crate::cluster::object::Kind::Node, Key::global("here")));
        assert_eq!(frontends(&only(&index)).len(), 3);
    }

    const BALANCED: &str = "spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}], \
                            externalIPs: [198.51.100.1, '2001:db8:1::1'], POLICY}, \
                            status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: '2001:db8:1::2'}]}}";

    fn balanced(policy: &str) -> Index {
        index(settings(), &BALANCED.replace("POLICY", policy))
    }

    #[test]
    fn frontends_of_load_balancers_and_external_ips_are_of_the_services_families() {
        assert_eq!(
            frontends(&only(&balanced(""))),
            [
                "ClusterIP 10.96.0.1:80 {}",
                "LoadBalancer 203.0.113.1:80 {}",
                "externalIP 198.51.100.1:80 {}",
                "NodePort 192.0.2.1:30080 {}",
            ]
        );
    }

    #[test]
    fn source_ranges_are_of_load_balancers_only() {
        let port = only(&balanced("loadBalancerSourceRanges: [198.51.100.0/24, 'fd00::/8']"));
        let restricted: Vec<_> = port
            .frontends
            .iter()
            .filter(|frontend| frontend.flags.has(FrontendFlags::SOURCE_RANGES))
            .map(|frontend| frontend.kind)
            .collect();
        assert_eq!(restricted, [FrontendKind::LOAD_BALANCER]);
        assert_eq!(port.sources, ["198.51.100.0/24".parse().unwrap()]);
        let other = only(&balanced("loadBalancerSourceRanges: ['fd00::/8']"));
        assert_eq!((other.sources.len(), other.frontends[1].flags), (0, FrontendFlags::NONE));
    }

    #[test]
    fn source_ranges_that_hold_the_node_admit_the_load_balancer_itself() {
        let port = only(&balanced("loadBalancerSourceRanges: [192.0.2.0/24]"));
        let expected: [IpNet; 2] = ["192.0.2.0/24".parse().unwrap(), "203.0.113.1/32".parse().unwrap()];
        assert_eq!(port.sources, expected);
    }

    #[test]
    fn affinity_is_of_the_service_port() {
        let spec = "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: ClientIP}";
        let found = ports(&index(settings(), spec));
        assert_eq!(found.iter().map(|port| port.affinity).collect::<Vec<_>>(), [10_800, 0]);
    }

    #[test]
    fn masquerade_all_is_of_cluster_ips_only() {
        let all = ProxySettings { masquerade_all: true, ..settings() };
        let port = only(&index(all, &BALANCED.replace("POLICY", "")));
        let masqueraded = |frontend: &Frontend| frontend.flags.has(FrontendFlags::MASQUERADE);
        assert_eq!(port.frontends.iter().map(masqueraded).collect::<Vec<_>>(), [true, false, false, false]);
    }

    #[test]
    fn pods_are_told_by_addresses_in_families_that_have_a_network() {
        let spec =
            "spec: {clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [192.0.2.9], ports: [{port: 80}]}";
        let flagged = |index: &Index| {
            let all = ports(index).into_iter().flat_map(|port| port.frontends);
            let flagged = all.filter(|frontend| frontend.flags.has(FrontendFlags::POD_NETWORKS));
            flagged.map(|it| it.key.endpoint().addr.to_ip().to_string()).collect::<Vec<_>>()
        };
        let networks = |index: &Index| {
            let text = |range: SourceRange| {
                assert_eq!(range.service, ServiceId::PODS);
                format!("{}/{}", range.addr.to_ip(), range.length)
            };
            pod_networks(index).into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(flagged(&index(settings(), spec)), [""; 0]);
        let within = |cidrs: [&str; 2]| {
            let pods = LocalPods::Within(cidrs.map(|cidr| cidr.parse().unwrap()).to_vec());
            index(ProxySettings { pods, ..settings() }, spec)
        };
        let one = within(["10.244.1.1/16", "10.245.0.0/16"]);
        assert_eq!((flagged(&one), networks(&one)), (vec!["10.96.0.1".into()], vec!["10.244.0.0/16".into()]));
        assert_eq!(networks(&within(["10.244.0.0/16", "fd00:244::/64"])).len(), 2);

        let mut index = index(ProxySettings { pods: LocalPods::OfNode, ..settings() }, spec);
        assert_eq!((flagged(&index), networks(&index)), (vec![], vec![]), "the node has none yet");
        index.take_dirty();
        let node =
            "apiVersion: v1\nkind: Node\nmetadata: {name: here}\nspec: {podCIDRs: ['fd00:244:1::/64']}\n";
        apply(&mut index, node);
        assert_eq!(index.take_dirty().len(), 1);
        assert_eq!(
            (flagged(&index), networks(&index)),
            (vec!["fd00::1".into()], vec!["fd00:244:1::/64".into()])
        );
        apply(&mut index, node);
        assert!(index.take_dirty().is_empty());
    }

    #[test]
    fn policy_internal_local_serves_cluster_ips_by_this_node_only() {
        let spec = "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], internalTrafficPolicy: Local}";
        let mut index = index(settings(), spec);
        let local = "ClusterIP 10.96.0.1:80 {\"inside-local\", \"outside-local\"}";
        assert_eq!(frontends(&only(&index)), [local], "no endpoint anywhere is refused");
        slice(&mut index, "a", PORT, &[("10.0.0.1", READY)]);
        let dropped = local.replace('}', ", \"inside-drop\", \"outside-drop\"}");
        assert_eq!(frontends(&only(&index)), [dropped], "none local is dropped");
        slice(&mut index, "a", PORT, &[("10.0.0.1", READY), ("10.0.0.2", HERE)]);
        let port = only(&index);
        assert_eq!(with(&port, IN_LOCAL), ["10.0.0.2:80"]);
        assert_eq!(with(&port, IN_CLUSTER), [""; 0], "nobody needs the Cluster set");
    }

    #[test]
    fn policy_external_local_is_for_clients_outside() {
        let mut index = balanced("externalTrafficPolicy: Local");
        slice(&mut index, "a", PORT, &[("10.0.0.1", READY), ("10.0.0.2", HERE)]);
        let port = only(&index);
        let flags = "{\"outside-local\", \"outside-drop\"}";
        assert_eq!(
            frontends(&port),
            [
                "ClusterIP 10.96.0.1:80 {}".to_owned(),
                format!("LoadBalancer 203.0.113.1:80 {flags}"),
                format!("externalIP 198.51.100.1:80 {flags}"),
                format!("NodePort 192.0.2.1:30080 {flags}"),
            ]
        );
        assert_eq!(with(&port, IN_CLUSTER), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(with(&port, IN_LOCAL), ["10.0.0.2:80"]);
        slice(&mut index, "a", PORT, &[("10.0.0.1", DEAD)]);
        let refused = frontends(&only(&index));
        assert_eq!(refused[1], "LoadBalancer 203.0.113.1:80 {\"outside-local\"}", "none anywhere");
    }

    #[test]
    fn policies_are_of_one_service_port_together() {
        let mut index = balanced("internalTrafficPolicy: Local");
        slice(&mut index, "a", PORT, &[("10.0.0.1", READY), ("10.0.0.2", HERE)]);
        let port = only(&index);
        assert_eq!(with(&port, IN_CLUSTER), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(with(&port, IN_LOCAL), ["10.0.0.2:80"]);
        assert_eq!(frontends(&port)[3], "NodePort 192.0.2.1:30080 {}");
    }

    #[test]
    fn objects_slices_of_one_service_are_merged_and_duplicates_kept_once() {
        let mut index = index(settings(), PLAIN);
        slice(&mut index, "a", PORT, &[("10.0.0.2", READY), ("10.0.0.1", DEAD)]);
        slice(&mut index, "b", PORT, &[("10.0.0.1", HERE), ("10.0.0.2", READY)]);
        let found = only(&index);
        assert_eq!(with(&found, IN_CLUSTER), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(with(&found, BackendFlags::LOCAL), ["10.0.0.1:80"]);
        assert_eq!(found.members.len(), 2);
    }

    #[test]
    fn objects_ports_match_by_name_and_protocol() {
        let spec = "spec: {clusterIP: 10.96.0.1, ports: [{name: x, port: 80}]}";
        let mut index = index(settings(), spec);
        slice(
            &mut index,
            "a",
            "{name: y, port: 1}, {name: x, port: 2, protocol: UDP}",
            &[("10.0.0.1", READY)],
        );
        assert_eq!(only(&index).members, []);
        slice(&mut index, "b", "{name: x, port: 3}", &[("10.0.0.1", READY)]);
        assert_eq!(with(&only(&index), IN_CLUSTER), ["10.0.0.1:3"]);
    }

    #[test]
    fn endpoints_outside_of_the_sets_stay_present() {
        let mut index = index(settings(), PLAIN);
        let all = [("10.0.0.1", READY), ("10.0.0.2", TERMINATING), ("10.0.0.3", DEAD), ("10.0.0.4", IDLE)];
        slice(&mut index, "a", PORT, &all);
        let found = only(&index);
        assert_eq!(with(&found, IN_CLUSTER), ["10.0.0.1:80"]);
        assert_eq!(with(&found, BackendFlags::PRESENT).len(), 4);
        assert_eq!(with(&found, BackendFlags::SERVING), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]);
    }

    #[test]
    fn endpoints_are_chosen_by_the_zone_of_the_node() {
        let mut index = index(settings(), PLAIN);
        let hint = |zone: &str| format!("hints: {{forZones: [{{name: {zone}}}]}}");
        slice(&mut index, "a", PORT, &[("10.0.0.1", &hint("z")), ("10.0.0.2", &hint("y"))]);
        assert_eq!(with(&only(&index), IN_CLUSTER), ["10.0.0.1:80"]);
    }

    #[test]
    fn services_that_become_external_names_and_back_have_frontends_again() {
        let mut index = index(settings(), PLAIN);
        index.handle(Event::Delete(crate::cluster::object::Kind::Service, Key::new("shop", "web")));
        assert_eq!(ports(&index), []);
        service(&mut index, PLAIN);
        assert_eq!(frontends(&only(&index)), ["ClusterIP 10.96.0.1:80 {}"]);
    }

    fn pod(ports: &str) -> Vec<ServicePort> {
        let mut index = index(settings(), PLAIN);
        apply(
            &mut index,
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\n\
                 spec: {{nodeName: here, containers: [{{name: a, ports: [{ports}]}}]}}\n\
                 status: {{podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::a'}}]}}\n"
            ),
        );
        service_ports(&index, &Key::pod("shop", "web"))
    }

    #[test]
    fn host_port_is_at_all_addresses_of_the_node() {
        let found = pod("{containerPort: 80, hostPort: 8080}");
        assert_eq!(found.len(), 2);
        assert_eq!(&*found[0].port, "8080");
        assert_eq!(
            frontends(&found[0]),
            [
                "hostPort 192.0.2.1:8080 {}",
                "hostPort 192.0.2.129:8080 {}",
                "hostPort 127.0.0.1:8080 {\"loopback\"}",
            ]
        );
        assert_eq!(with(&found[0], IN_CLUSTER.with(BackendFlags::SERVING)), ["10.0.0.1:80"]);
        assert_eq!(frontends(&found[1]), ["hostPort [2001:db8::1]:8080 {}"]);
        assert_eq!(with(&found[1], IN_CLUSTER.with(BackendFlags::LOCAL)), ["[fd00::a]:80"]);
    }

    #[test]
    fn host_port_may_be_at_one_address_or_one_family() {
        let one = pod("{containerPort: 53, hostPort: 53, hostIP: 192.0.2.7, protocol: UDP}");
        assert_eq!(one.len(), 1);
        assert_eq!((&*one[0].port, one[0].protocol), ("53@192.0.2.7", Protocol::UDP));
        assert_eq!(frontends(&one[0]), ["hostPort 192.0.2.7:53 {}"]);
        let family = pod("{containerPort: 80, hostPort: 80, hostIP: '::'}");
        assert_eq!(family.len(), 1);
        assert_eq!(frontends(&family[0]), ["hostPort [2001:db8::1]:80 {}"]);
        let loopback = pod("{containerPort: 80, hostPort: 80, hostIP: 127.0.0.1}");
        assert_eq!(frontends(&loopback[0]), ["hostPort 127.0.0.1:80 {\"loopback\"}"]);
    }

    #[test]
    fn service_networks_are_those_of_all_service_cidrs() {
        let mut index = index(settings(), PLAIN);
        assert_eq!(service_networks(&index), ServiceNetworks::default());
        let cidr = |name: &str, cidrs: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\n\
                 spec: {{cidrs: [{cidrs}]}}\n---\n"
            )
        };
        apply(
            &mut index,
            &(cidr("more", "10.97.0.0/24") + &cidr("kubernetes", "10.96.0.0/16, 'fd00:10::/112'")),
        );
        let networks = service_networks(&index);
        let contains = |ip: &str| networks.contain(ip.parse::<IpAddr>().unwrap().into());
        assert!(contains("10.96.255.1") && contains("10.97.0.1") && contains("fd00:10::1"));
        assert!(!contains("10.97.1.1") && !contains("fd00:11::1"));
        assert_eq!(service_networks_left_out(&index), 0);
    }
}
