//! Histories of Services.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::objects::{
    AddressType, BACKENDS, Conditions, Endpoint, Families, Ingress, Kind, Range, SLOTS, Service, Slice, Step,
    TARGET_PORTS, Target,
};
use super::scope::{Feature, Scope};
use crate::manifests::Family;

/// Histories: the first step fills an empty cluster, the others change some of it.
pub fn history(scope: &Scope) -> BoxedStrategy<Vec<Step>> {
    let size = usize::from(SLOTS);
    let first = btree_map(0..SLOTS, service(scope).prop_map(Some), 0..=size);
    let change = prop::option::weighted(0.85, service(scope));
    let later = vec(btree_map(0..SLOTS, change, 1..=size / 2), 0..=4);
    (first, later)
        .prop_map(|(first, mut later)| {
            later.insert(0, first);
            later
        })
        .boxed()
}

/// A value other than the usual one, if the scope has the feature.
fn only<T: Clone + std::fmt::Debug + 'static>(
    scope: &Scope,
    feature: Feature,
    usual: T,
    others: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    if scope.has(feature) { others.boxed() } else { Just(usual).boxed() }
}

fn service(scope: &Scope) -> BoxedStrategy<Service> {
    let families = select(vec![Families::V4V6, Families::V6V4, Families::V4, Families::V6]);
    let rarely = || prop::bool::weighted(0.08);
    let ports = (subsequence(vec![0, 1, 2, 3], 1..=4), prop::bool::weighted(0.3));
    let labels = (rarely(), rarely());
    let policies = (
        only(scope, Feature::InternalPolicy, false, prop::bool::weighted(0.3)),
        only(scope, Feature::ExternalPolicy, false, prop::bool::weighted(0.4)),
        only(scope, Feature::Affinity, false, prop::bool::weighted(0.2)),
    );
    let ranges = subsequence(vec![Range::Nobody, Range::Outside, Range::Pods, Range::Node], 0..=4);
    let external = (
        only(scope, Feature::ExternalIps, false, prop::bool::weighted(0.3)),
        only(scope, Feature::SourceRanges, Vec::new(), prop_oneof![Just(Vec::new()), ranges]),
        vec(ingress(), 0..=2),
    );
    let endpoints = prop::array::uniform6(endpoint(scope));
    let slices = vec(slice(scope), 0..=4);
    (kind(scope), families, ports, labels, policies, external, endpoints, slices)
        .prop_map(|(kind, families, ports, labels, policies, external, endpoints, slices)| Service {
            kind,
            families,
            ports: ports.0,
            unnamed: ports.1,
            foreign: labels.0,
            headless: labels.1,
            internal_local: policies.0,
            external_local: policies.1,
            affinity: policies.2,
            external_ips: external.0,
            source_ranges: external.1,
            ingress: external.2,
            endpoints,
            slices,
        })
        .boxed()
}

fn kind(scope: &Scope) -> BoxedStrategy<Kind> {
    let mut kinds = vec![(12, Kind::ClusterIp), (1, Kind::Headless), (1, Kind::ExternalName)];
    if scope.has(Feature::NodePort) {
        kinds.push((8, Kind::NodePort));
    }
    if scope.has(Feature::LoadBalancer) {
        kinds.push((4, Kind::LoadBalancer { node_ports: false }));
        if scope.has(Feature::NodePort) {
            kinds.push((8, Kind::LoadBalancer { node_ports: true }));
        }
    }
    let kinds = kinds.into_iter().map(|(weight, kind)| (weight, Just(kind))).collect();
    prop::strategy::Union::new_weighted(kinds).boxed()
}

fn ingress() -> impl Strategy<Value = Ingress> {
    (any::<bool>(), select(vec![None, Some(false), Some(true)]))
        .prop_map(|(second, proxy)| Ingress { second, proxy })
}

fn endpoint(scope: &Scope) -> BoxedStrategy<Endpoint> {
    // Most are as a Pod makes them, some as only a custom controller does.
    let usual = |ready, serving, terminating| Conditions {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(terminating),
    };
    let conditions = prop_oneof![
        6 => Just(usual(true, true, false)),
        2 => Just(usual(false, false, false)),
        2 => Just(usual(false, true, true)),
        1 => Just(usual(false, false, true)),
        2 => (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()).prop_map(
            |(ready, serving, terminating)| Conditions { ready, serving, terminating }
        ),
    ];
    let hints = || {
        select(vec![[false, false], [true, false], [true, false], [false, true], [false, true], [true, true]])
    };
    let zones = only(scope, Feature::Hints, [false; 2], hints());
    let nodes = only(scope, Feature::Hints, [false; 2], prop_oneof![2 => Just([false; 2]), 1 => hints()]);
    (conditions, zones, nodes)
        .prop_map(|(conditions, zones, nodes)| Endpoint { conditions, zones, nodes })
        .boxed()
}

fn slice(scope: &Scope) -> BoxedStrategy<Slice> {
    let address_type = prop_oneof![
        10 => Just(AddressType::Ip(Family::V4)),
        10 => Just(AddressType::Ip(Family::V6)),
        1 => Just(AddressType::Fqdn),
    ];
    let target = prop_oneof![
        8 => Just(Target::Number(TARGET_PORTS[0])),
        3 => Just(Target::Number(TARGET_PORTS[1])),
        1 => Just(Target::Unnumbered),
        1 => Just(Target::Absent),
    ];
    let labels = (prop::bool::weighted(0.95), prop::bool::weighted(0.05));
    let backends = vec(prop::bool::weighted(0.5), usize::from(BACKENDS));
    let terminating = only(scope, Feature::Contradictions, false, prop::bool::weighted(0.2));
    (address_type, prop::array::uniform4(target), labels, backends, terminating)
        .prop_map(|(address_type, targets, (owned, headless), backends, terminating)| Slice {
            address_type,
            owned,
            headless,
            targets,
            backends: std::array::from_fn(|backend| backends[backend]),
            terminating,
        })
        .boxed()
}
