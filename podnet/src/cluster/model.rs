//! What a Service amounts to: its frontends and who serves them.

use std::sync::Arc;

use podnet_common::wire::{Addr, Be16, Endpoint, Family, Protocol};

use super::index::Index;
use super::object::{EndpointSlice, Key, Port, Service};

/// A port of a Service in one family.
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
    pub frontends: Vec<Endpoint>,
    /// Who takes new connections, sorted, each once.
    pub endpoints: Vec<Endpoint>,
    /// Who takes no new connections and goes on with those it has, sorted, each once.
    pub draining: Vec<Endpoint>,
}

/// Whether podnet routes a protocol.
fn routed(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP)
}

/// The ports of a Service that podnet does not route.
pub fn unrouted(service: &Service) -> impl Iterator<Item = &Port> {
    service.ports.iter().filter(|port| !routed(port.protocol))
}

/// The ports of the Service `key`: none if there is no such Service.
pub fn service_ports(index: &Index, key: &Key) -> Vec<ServicePort> {
    let Some(service) = index.service(key) else { return Vec::new() };
    let slices: Vec<&EndpointSlice> = index.slices(key).collect();
    let mut ports = Vec::new();
    for ip in &service.cluster_ips {
        let addr = Addr::from(*ip);
        for port in service.ports.iter().filter(|port| routed(port.protocol)) {
            let (endpoints, draining) = endpoints(&slices, addr.family(), port);
            ports.push(ServicePort {
                port: port.name.clone(),
                protocol: port.protocol,
                family: addr.family(),
                created: service.created,
                frontends: vec![Endpoint { addr, port: Be16::new(port.number) }],
                endpoints,
                draining,
            });
        }
    }
    ports
}

/// The Cluster set of a port (`CategorizeEndpoints` in kube-proxy's `topology.go`), and those endpoints
/// outside of it that are still serving.
///
/// The set is all that are ready, or, if none is, all that are serving though they terminate (KEP-1669).
/// An endpoint that is in two slices, as when it moves from one to the other, is what the better one of
/// its two entries says.
fn endpoints(slices: &[&EndpointSlice], family: Family, port: &Port) -> (Vec<Endpoint>, Vec<Endpoint>) {
    let (mut ready, mut terminating, mut serving) = (Vec::new(), Vec::new(), Vec::new());
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for target in
            slice.ports.iter().filter(|target| target.name == port.name && target.protocol == port.protocol)
        {
            for endpoint in &slice.endpoints {
                let place = Endpoint { addr: endpoint.addr, port: Be16::new(target.number) };
                if endpoint.ready {
                    ready.push(place);
                } else if endpoint.serving && endpoint.terminating {
                    terminating.push(place);
                }
                if endpoint.serving {
                    serving.push(place);
                }
            }
        }
    }
    let mut set = if ready.is_empty() { terminating } else { ready };
    set.sort_unstable();
    set.dedup();
    serving.retain(|endpoint| set.binary_search(endpoint).is_err());
    serving.sort_unstable();
    serving.dedup();
    (set, serving)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cluster::Event;
    use crate::cluster::object::{self, Object};

    const READY: (bool, bool, bool) = (true, true, false);
    const TERMINATING: (bool, bool, bool) = (false, true, true);
    const DEAD: (bool, bool, bool) = (false, false, true);

    fn key() -> Key {
        Key::new("shop", "web")
    }

    fn port(name: &str, protocol: Protocol, number: u16) -> Port {
        Port { name: name.into(), protocol, number }
    }

    fn place(ip: &str, port: u16) -> Endpoint {
        Endpoint { addr: Addr::from(ip.parse::<IpAddr>().unwrap()), port: Be16::new(port) }
    }

    fn index(cluster_ips: &[&str], ports: &[Port]) -> Index {
        let mut index = Index::default();
        index.handle(Event::Apply(Object::Service(Service {
            key: key(),
            created: None,
            cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports: ports.to_vec(),
        })));
        index
    }

    fn add(index: &mut Index, name: &str, ports: &[Port], endpoints: &[(&str, (bool, bool, bool))]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|&(ip, (ready, serving, terminating))| object::Endpoint {
                addr: place(ip, 0).addr,
                ready,
                serving,
                terminating,
            })
            .collect();
        index.handle(Event::Apply(Object::EndpointSlice(EndpointSlice {
            key: Key::new("shop", name),
            service: key(),
            family: endpoints.first().map_or(Family::V4, |endpoint| endpoint.addr.family()),
            ports: ports.to_vec(),
            endpoints,
        })));
    }

    fn only(index: &Index) -> ServicePort {
        let mut ports = service_ports(index, &key());
        assert_eq!(ports.len(), 1);
        ports.remove(0)
    }

    #[test]
    fn frontends_of_the_same_number_on_two_protocols_are_two() {
        let ports = [port("dns", Protocol::UDP, 53), port("dns-tcp", Protocol::TCP, 53)];
        let found = service_ports(&index(&["10.96.0.10"], &ports), &key());
        assert_eq!(
            found.iter().map(|port| port.protocol).collect::<Vec<_>>(),
            [Protocol::UDP, Protocol::TCP]
        );
        assert!(found.iter().all(|port| port.frontends == [place("10.96.0.10", 53)]));
    }

    #[test]
    fn frontends_of_dual_stack_have_each_their_own_slices() {
        let web = [port("http", Protocol::TCP, 80)];
        let mut index = index(&["10.96.0.1", "fd00::1"], &web);
        add(&mut index, "v4", &[port("http", Protocol::TCP, 8080)], &[("10.0.0.1", READY)]);
        add(&mut index, "v6", &[port("http", Protocol::TCP, 8081)], &[("fd00::a", READY)]);
        let found = service_ports(&index, &key());
        assert_eq!(found[0].endpoints, [place("10.0.0.1", 8080)]);
        assert_eq!(found[1].frontends, [place("fd00::1", 80)]);
        assert_eq!(found[1].endpoints, [place("fd00::a", 8081)]);
    }

    #[test]
    fn objects_slices_of_one_service_are_merged_and_duplicates_kept_once() {
        let web = [port("", Protocol::TCP, 80)];
        let mut index = index(&["10.96.0.1"], &web);
        add(&mut index, "a", &web, &[("10.0.0.2", READY), ("10.0.0.1", DEAD)]);
        add(&mut index, "b", &web, &[("10.0.0.1", READY), ("10.0.0.2", READY)]);
        let found = only(&index);
        assert_eq!(found.endpoints, [place("10.0.0.1", 80), place("10.0.0.2", 80)]);
        assert_eq!(found.draining, []);
    }

    #[test]
    fn objects_ports_match_by_name_and_protocol() {
        let mut index = index(&["10.96.0.1"], &[port("x", Protocol::TCP, 80)]);
        add(
            &mut index,
            "a",
            &[port("y", Protocol::TCP, 1), port("x", Protocol::UDP, 2)],
            &[("10.0.0.1", READY)],
        );
        assert_eq!(only(&index).endpoints, []);
        add(&mut index, "b", &[port("x", Protocol::TCP, 3)], &[("10.0.0.1", READY)]);
        assert_eq!(only(&index).endpoints, [place("10.0.0.1", 3)]);
    }

    #[test]
    fn cluster_set_is_the_ready_endpoints_and_the_serving_ones_drain() {
        let web = [port("", Protocol::TCP, 80)];
        let mut index = index(&["10.96.0.1"], &web);
        add(&mut index, "a", &web, &[("10.0.0.1", READY), ("10.0.0.2", TERMINATING), ("10.0.0.3", DEAD)]);
        let found = only(&index);
        assert_eq!(found.endpoints, [place("10.0.0.1", 80)]);
        assert_eq!(found.draining, [place("10.0.0.2", 80)]);
    }

    #[test]
    fn cluster_set_falls_back_to_serving_and_terminating() {
        let web = [port("", Protocol::TCP, 80)];
        let mut index = index(&["10.96.0.1"], &web);
        let idle = (false, true, false);
        add(&mut index, "a", &web, &[("10.0.0.1", TERMINATING), ("10.0.0.2", DEAD), ("10.0.0.3", idle)]);
        let found = only(&index);
        assert_eq!(found.endpoints, [place("10.0.0.1", 80)]);
        assert_eq!(found.draining, [place("10.0.0.3", 80)]);
    }

    #[test]
    fn no_endpoint_anywhere_leaves_the_frontend() {
        let found = only(&index(&["10.96.0.1"], &[port("", Protocol::TCP, 80)]));
        assert_eq!((found.frontends.len(), found.endpoints.len()), (1, 0));
    }

    #[test]
    fn frontends_of_sctp_are_not_routed() {
        let index = index(&["10.96.0.1"], &[port("s", Protocol(132), 80), port("t", Protocol::TCP, 80)]);
        assert_eq!(&*only(&index).port, "t");
        let service = index.service(&key()).unwrap();
        assert_eq!(unrouted(service).map(|port| &*port.name).collect::<Vec<_>>(), ["s"]);
    }
}
