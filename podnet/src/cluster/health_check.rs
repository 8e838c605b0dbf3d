//! What load balancers ask a node for about a Service with `externalTrafficPolicy: Local`.

use std::collections::BTreeSet;

use podnet_common::wire::{Addr, Family};

use super::index::Index;
use super::model::is_here;
use super::object::{EndpointSlice, Key, Service};

/// What they ask for (`spec.healthCheckNodePort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: Key,
    /// The port that they ask at.
    pub port: u16,
    /// How many endpoints of this node are ready; those that terminate are not.
    pub local_endpoints: usize,
}

impl HealthCheck {
    /// That of the Service with `key`, if there is one that has it.
    pub fn of(index: &Index, key: &Key) -> Option<Self> {
        let service = index.service(key)?;
        let port = service.health_check_port?;
        Some(Self { service: key.clone(), port, local_endpoints: local_endpoints(index, service) })
    }
}

/// How many pods of this node are ready to serve: by the family that knows of more of them.
fn local_endpoints(index: &Index, service: &Service) -> usize {
    let here = index.place();
    let of_family = |family| {
        let slices = index.slices(&service.key).filter(|slice| slice.family == family);
        let served = |slice: &&EndpointSlice| {
            service.ports.iter().any(|port| slice.ports.iter().any(|target| target.name == port.name))
        };
        let endpoints = slices.filter(served).flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|it| it.ready && is_here(it.node.as_deref(), here));
        ready.map(|it| it.addr).collect::<BTreeSet<Addr>>().len()
    };
    of_family(Family::V4).max(of_family(Family::V6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Event;
    use crate::cluster::manifests;
    use crate::cluster::node::ProxySettings;

    #[test]
    fn health_checks_count_what_is_ready_here() {
        let mut index = Index::new(ProxySettings { node: "here".to_owned(), ..ProxySettings::default() });
        let mut apply = |text: &str| {
            manifests::parse(text).unwrap().into_iter().for_each(|it| index.handle(Event::Apply(it)));
        };
        apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
             spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, \
             clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80}, {name: b, port: 81}]}\n\
             ---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\n\
             spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n",
        );
        for (kind, endpoints) in [
            (
                "IPv4",
                "{addresses: [10.0.0.1], nodeName: here}, {addresses: [10.0.0.2]}, \
                 {addresses: [10.0.0.3], nodeName: here, \
                 conditions: {ready: false, serving: true, terminating: true}}, \
                 {addresses: [10.0.0.4], nodeName: here}",
            ),
            ("IPv6", "{addresses: ['fd00::a'], nodeName: here}, {addresses: ['fd00::b'], nodeName: here}"),
        ] {
            apply(&format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {kind}\n\
                 metadata: {{name: web-{}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
                 ports: [{{port: 80}}, {{name: b, port: 81}}]\nendpoints: [{endpoints}]\n",
                kind.to_lowercase()
            ));
        }
        let key = Key::new("shop", "web");
        let check = HealthCheck { service: key.clone(), port: 31000, local_endpoints: 2 };
        assert_eq!(HealthCheck::of(&index, &key), Some(check));
        assert_eq!(HealthCheck::of(&index, &Key::new("shop", "api")), None);
        assert_eq!(HealthCheck::of(&index, &Key::new("shop", "none")), None);
    }
}
