//! The services that are measured: as podnet's objects, and as what an `nft` ruleset is made from.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use podnet::cluster::Event;
use podnet::cluster::object::{self, EndpointSlice, Key, Kind, Object, Port, TargetPort};
use podnet_common::wire::{Addr, Family, Protocol};

/// The namespace of all services.
pub(crate) const NAMESPACE: &str = "bench";
/// The port of all services.
pub(crate) const PORT: u16 = 80;
/// The first of the ports that services have on nodes.
const NODE_PORTS: u16 = 30_000;
/// For how many seconds clients stay with their endpoints: the API server's default.
const AFFINITY: u32 = 10_800;

/// A service of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its number.
    pub(crate) number: u32,
    /// Whether it has its port for UDP too, and not for TCP only.
    pub(crate) udp: bool,
    /// Whether a client stays with its endpoint.
    pub(crate) affinity: bool,
    /// Whether it has a NodePort, a load balancer's and an external address too.
    pub(crate) all_frontends: bool,
    /// Who serves it.
    pub(crate) endpoints: Vec<SocketAddrV4>,
}

impl Service {
    /// One that has TCP and a ClusterIP only.
    pub(crate) fn new(number: u32, endpoints: Vec<SocketAddrV4>) -> Self {
        Self { number, udp: false, affinity: false, all_frontends: false, endpoints }
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(offset(Ipv4Addr::new(10, 96, 0, 1), self.number), PORT)
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        format!("service-{}", self.number)
    }

    /// The name of the slice of those of its endpoints that have this port.
    pub(crate) fn slice_name(&self, port: u16) -> String {
        format!("{}-{port}", self.name())
    }

    /// Its protocols, as Kubernetes numbers and `nft` names them.
    pub(crate) fn protocols(&self) -> impl Iterator<Item = (Protocol, &'static str)> {
        let all = [(Protocol::TCP, "tcp"), (Protocol::UDP, "udp")];
        all.into_iter().take(if self.udp { 2 } else { 1 })
    }

    fn key(&self) -> Key {
        Key::new(NAMESPACE, &self.name())
    }

    fn targets(&self, number: u16) -> Vec<TargetPort> {
        let target = |(protocol, name): (_, &str)| TargetPort { name: name.into(), protocol, number };
        self.protocols().map(target).collect()
    }

    /// The Service and its slice as YAML.
    ///
    /// Only for services whose endpoints have one port.
    pub(crate) fn yaml(&self) -> String {
        let (name, address) = (self.name(), self.address());
        let target = self.endpoints.first().map_or(PORT, SocketAddrV4::port);
        let mut yaml = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec:\n  \
             clusterIP: {ip}\n  clusterIPs: [{ip}]\n  ipFamilies: [IPv4]\n  ports:\n  \
             - {{name: tcp, protocol: TCP, port: {PORT}, targetPort: {target}}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {NAMESPACE}\n  \
             name: {slice}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
             ports:\n- {{name: tcp, protocol: TCP, port: {target}}}\nendpoints:\n",
            ip = address.ip(),
            slice = self.slice_name(target)
        );
        for endpoint in &self.endpoints {
            let _ = writeln!(
                yaml,
                "- addresses: [{}]\n  conditions: {{ready: true, serving: true, terminating: false}}",
                endpoint.ip()
            );
        }
        yaml
    }

    /// The Service.
    fn object(&self) -> Object {
        let node_port = self.all_frontends.then(|| self.node_port());
        let port =
            |(protocol, name): (_, &str)| Port { name: name.into(), protocol, number: PORT, node_port };
        let address = IpAddr::V4(*self.address().ip());
        let further = |base| {
            let address = self.all_frontends.then(|| IpAddr::V4(offset(base, self.number)));
            address.into_iter().collect()
        };
        let service = object::Service {
            created: Some(1_700_000_000 + i64::from(self.number)),
            affinity: if self.affinity { AFFINITY } else { 0 },
            external_ips: further(Ipv4Addr::new(203, 0, 112, 0)),
            load_balancer_ips: further(Ipv4Addr::new(198, 18, 0, 0)),
            ..object::Service::new(self.key(), vec![address], self.protocols().map(port).collect())
        };
        Object::Service(service.into())
    }

    /// Its port on nodes. There are enough for as many services as it is asked of.
    fn node_port(&self) -> u16 {
        NODE_PORTS.saturating_add(u16::try_from(self.number).unwrap_or(u16::MAX))
    }

    /// Its slices: all endpoints of a slice have one port.
    pub(crate) fn slices(&self) -> impl Iterator<Item = Object> {
        let mut ports: Vec<u16> = self.endpoints.iter().map(SocketAddrV4::port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports.into_iter().map(|port| {
            let endpoints = self.endpoints.iter().filter(|endpoint| endpoint.port() == port);
            let slice = EndpointSlice {
                key: Key::new(NAMESPACE, &self.slice_name(port)),
                service: self.key(),
                headless: false,
                family: Family::V4,
                ports: self.targets(port),
                endpoints: endpoints
                    .map(|endpoint| object::Endpoint::new(Addr::from(IpAddr::V4(*endpoint.ip()))))
                    .collect(),
                trigger: None,
            };
            Object::EndpointSlice(slice.into())
        })
    }
}

/// `count` services with the same endpoints; those of the numbers in `targets` are reached by UDP too.
pub(crate) fn alike(count: u32, endpoints: &[SocketAddrV4], targets: &[u32]) -> Vec<Service> {
    let service =
        |number| Service { udp: targets.contains(&number), ..Service::new(number, endpoints.to_vec()) };
    (0..count).map(service).collect()
}

/// The numbers of `wanted` among `count` services, as far apart as can be.
pub(crate) fn spread(wanted: u32, count: u32) -> Vec<u32> {
    let wanted = wanted.min(count).max(1);
    (0..wanted).map(|place| place * (count / wanted)).collect()
}

/// `count` services with `endpoints` endpoints each, all of them different.
pub(crate) fn apart(count: u32, endpoints: u32) -> Vec<Service> {
    (0..count).map(|number| Service::new(number, pods(number, endpoints))).collect()
}

fn pods(number: u32, endpoints: u32) -> Vec<SocketAddrV4> {
    (0..endpoints).map(|place| pod(number * endpoints + place)).collect()
}

/// A pod somewhere in the cluster.
pub(crate) fn pod(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(offset(Ipv4Addr::new(10, 128, 0, 1), number), 8080)
}

fn offset(base: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + number)
}

/// What a source says that has just these services.
pub(crate) fn events(services: &[Service]) -> Vec<Event> {
    let mut events = vec![Event::Listing(Kind::Service)];
    events.extend(services.iter().map(|service| Event::Apply(service.object())));
    events.extend([Event::Listed(Kind::Service), Event::Listing(Kind::EndpointSlice)]);
    events.extend(services.iter().flat_map(Service::slices).map(Event::Apply));
    events.push(Event::Listed(Kind::EndpointSlice));
    events
}

#[cfg(test)]
mod tests {
    use podnet::cluster::index::Index;
    use podnet::cluster::model::service_ports;

    use super::*;

    #[test]
    fn targets_are_spread_over_all_services() {
        assert_eq!(spread(3, 9), [0, 3, 6]);
        assert_eq!(spread(10, 10).len(), 10);
        assert_eq!(spread(10, 2), [0, 1]);
    }

    #[test]
    fn endpoints_of_two_ports_are_in_two_slices() {
        let endpoints =
            [SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2)];
        let services = alike(3, &endpoints, &[1]);
        assert_eq!(events(&services).len(), 4 + 3 + 6);
        assert_eq!(services.iter().map(|service| service.protocols().count()).sum::<usize>(), 4);
    }

    #[test]
    fn all_frontends_are_four_for_each_port() {
        let service = Service { udp: true, all_frontends: true, ..Service::new(7, vec![pod(0)]) };
        let mut index = Index::default();
        index.set_local_addresses([IpAddr::from([172, 18, 0, 1])].into());
        for event in events(std::slice::from_ref(&service)) {
            index.handle(event);
        }
        let ports = service_ports(&index, &service.key());
        let frontends = |protocol| {
            let ports = ports.iter().filter(|port| port.protocol == protocol && !port.members.is_empty());
            ports.map(|port| port.frontends.len()).sum::<usize>()
        };
        assert_eq!([Protocol::TCP, Protocol::UDP].map(frontends), [4, 4]);
    }
}
