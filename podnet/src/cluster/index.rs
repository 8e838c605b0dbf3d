//! The objects that exist, and which services an event concerns.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use podnet_common::wire::Family;

use super::Event;
use super::node::{LocalPods, Node, NodeAddresses, ProxySettings, ServiceCidr, family_of};
use super::object::{EndpointSlice, Key, Kind, Object, Service};
use super::pod::Pod;
use super::store::Store;
use super::topology::Place;

/// The index: all objects of a source that concern this node. What is not routed is left out: headless Services,
/// those of other proxies, Pods without ports on the node.
///
/// An event costs time in proportion to itself, not to what is indexed; but for news of the node itself, which
/// concern all services.
#[derive(Debug, Default)]
pub struct Index {
    settings: ProxySettings,
    services: Store<Arc<Service>>,
    slices: Store<Arc<EndpointSlice>>,
    nodes: Store<Node>,
    pods: Store<Arc<Pod>>,
    cidrs: Store<ServiceCidr>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
    addresses: NodeAddresses,
    /// Whether the source has said that this node has no object: that there is none, or none any more.
    node_is_missing: bool,
    dirty: BTreeSet<Key>,
}

impl Index {
    /// An empty index of a node with these settings.
    pub fn new(settings: ProxySettings) -> Self {
        let primary = settings.primary(Vec::new());
        Self { settings, addresses: NodeAddresses { primary, ..NodeAddresses::default() }, ..Self::default() }
    }

    /// Whether what an event says of a Service or a slice is known already.
    pub fn knows(&self, event: &Event) -> bool {
        match event {
            Event::Apply(object) if !is_routed(object) => !self.has(object.kind(), object.key()),
            Event::Apply(Object::Service(service)) => {
                self.services.objects.get(&service.key) == Some(service)
            }
            Event::Apply(Object::EndpointSlice(slice)) => self.slices.objects.get(&slice.key) == Some(slice),
            Event::Delete(kind @ (Kind::Service | Kind::EndpointSlice), key) => !self.has(*kind, key),
            _ => false,
        }
    }

    fn has(&self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Service => self.services.objects.contains_key(key),
            Kind::EndpointSlice => self.slices.objects.contains_key(key),
            Kind::Node | Kind::Pod | Kind::ServiceCidr | Kind::Namespace | Kind::NetworkPolicy => false,
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Listing(Kind::Service) => self.services.begin(),
            Event::Listing(Kind::EndpointSlice) => self.slices.begin(),
            Event::Listing(Kind::Node) => self.nodes.begin(),
            Event::Listing(Kind::Pod) => self.pods.begin(),
            Event::Listing(Kind::ServiceCidr) => self.cidrs.begin(),
            Event::Listing(Kind::Namespace | Kind::NetworkPolicy) => {}
            Event::Apply(object) if !is_routed(&object) => self.delete(object.kind(), object.key().clone()),
            Event::Apply(Object::Service(service)) => {
                let key = service.key.clone();
                if self.services.insert(&key, service).is_some() {
                    self.dirty.insert(key);
                }
            }
            Event::Apply(Object::EndpointSlice(slice)) => self.apply_slice(slice),
            Event::Apply(Object::Node(node)) => self.apply_node(node),
            Event::Apply(Object::Pod(pod)) => self.apply_pod(pod),
            Event::Apply(Object::ServiceCidr(cidr)) => {
                let key = cidr.key.clone();
                self.cidrs.insert(&key, cidr);
            }
            // They are not routed.
            Event::Apply(Object::Namespace(_) | Object::NetworkPolicy(_)) => {}
            Event::Delete(kind, key) => self.delete(kind, key),
            Event::Listed(kind) => {
                let vanished = match kind {
                    Kind::Service => self.services.finish(),
                    Kind::EndpointSlice => self.slices.finish(),
                    Kind::Node => self.nodes.finish(),
                    Kind::Pod => self.pods.finish(),
                    Kind::ServiceCidr => self.cidrs.finish(),
                    Kind::Namespace | Kind::NetworkPolicy => HashSet::new(),
                };
                for key in vanished {
                    self.delete(kind, key);
                }
                self.node_is_missing |= kind == Kind::Node && self.node().is_none();
            }
            Event::Refused(Kind::Service | Kind::EndpointSlice | Kind::Namespace | Kind::NetworkPolicy)
            | Event::Away(_) => {}
            Event::Refused(Kind::Node) => self.nodes.settled = true,
            Event::Refused(Kind::Pod) => self.pods.settled = true,
            Event::Refused(Kind::ServiceCidr) => self.cidrs.settled = true,
        }
    }

    fn apply_slice(&mut self, slice: Arc<EndpointSlice>) {
        let (key, service) = (slice.key.clone(), slice.service.clone());
        let Some(before) = self.slices.insert(&key, slice) else { return };
        if let Some(before) = before
            && before.service != service
        {
            self.unlink(before.service.clone(), &key);
        }
        self.slices_of.entry(service.clone()).or_default().insert(key);
        self.dirty.insert(service);
    }

    fn apply_node(&mut self, node: Node) {
        if node.key != Key::global(&self.settings.node) {
            return;
        }
        self.node_is_missing = false;
        let (key, now) = (node.key.clone(), node.clone());
        if let Some(before) = self.nodes.insert(&key, node) {
            self.node_changed(before.as_ref(), Some(&now));
        }
    }

    fn apply_pod(&mut self, pod: Arc<Pod>) {
        if *pod.node != *self.settings.node {
            return self.delete(Kind::Pod, pod.key.clone());
        }
        let key = pod.key.clone();
        if self.pods.insert(&key, pod).is_some() {
            self.dirty.insert(key);
        }
    }

    fn delete(&mut self, kind: Kind, key: Key) {
        match kind {
            Kind::Service => {
                if self.services.objects.remove(&key).is_some() {
                    self.dirty.insert(key);
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.slices.objects.remove(&key) {
                    self.unlink(slice.service.clone(), &key);
                }
            }
            Kind::Node => {
                if let Some(node) = self.nodes.objects.remove(&key) {
                    self.node_is_missing = true;
                    self.node_changed(Some(&node), None);
                }
            }
            Kind::Pod => {
                if self.pods.objects.remove(&key).is_some() {
                    self.dirty.insert(key);
                }
            }
            Kind::ServiceCidr => drop(self.cidrs.objects.remove(&key)),
            Kind::Namespace | Kind::NetworkPolicy => {}
        }
    }

    fn unlink(&mut self, service: Key, slice: &Key) {
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    fn node_changed(&mut self, before: Option<&Node>, now: Option<&Node>) {
        let zone = |node: Option<&Node>| node.and_then(|node| node.zone.clone());
        let cidrs = |node: Option<&Node>| node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        let other_pods = self.settings.pods == LocalPods::OfNode && cidrs(before) != cidrs(now);
        if zone(before) != zone(now) || other_pods {
            self.dirty.extend(self.services.objects.keys().cloned());
        }
        let primary = self.settings.primary(now.map(|node| node.primary.clone()).unwrap_or_default());
        if self.addresses.primary != primary {
            self.addresses.primary = primary;
            self.addresses_changed();
        }
    }

    /// Takes in the addresses of the node's interfaces.
    pub fn set_local_addresses(&mut self, local: BTreeSet<IpAddr>) {
        if self.addresses.local != local {
            self.addresses.local = local;
            self.addresses_changed();
        }
    }

    fn addresses_changed(&mut self) {
        let exposed = |service: &&Arc<Service>| {
            !service.source_ranges.is_empty() || service.ports.iter().any(|port| port.node_port.is_some())
        };
        let services = self.services.objects.values().filter(exposed).map(|service| &service.key);
        self.dirty.extend(services.chain(self.pods.objects.keys()).cloned());
    }

    /// Whether all kinds have been listed: before that, what is missing may only be unknown. Only Services and
    /// EndpointSlices are indispensable; the others may be refused.
    pub fn synced(&self) -> bool {
        let needed = self.services.listed && self.slices.listed;
        needed && self.nodes.settled && self.pods.settled && self.cidrs.settled
    }

    /// The services, and the pods with ports on the node, that have changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// The settings.
    pub const fn settings(&self) -> &ProxySettings {
        &self.settings
    }

    /// The addresses of this node.
    pub const fn addresses(&self) -> &NodeAddresses {
        &self.addresses
    }

    /// This node's object, if it is known.
    pub fn node(&self) -> Option<&Node> {
        self.nodes.objects.values().next()
    }

    /// The network of a family that has the cluster's pods, if it is addresses that tell them.
    pub fn pod_network(&self, family: Family) -> Option<IpNet> {
        let networks: &[IpNet] = match &self.settings.pods {
            LocalPods::ByInterface => &[],
            LocalPods::Within(networks) => networks,
            LocalPods::OfNode => self.node().map_or(&[], |node| node.pod_cidrs.as_slice()),
        };
        networks.iter().find(|network| family_of(network.addr()) == family).map(IpNet::trunc)
    }

    /// Where this node is.
    pub fn place(&self) -> Place<'_> {
        let zone = self.node().and_then(|node| node.zone.as_deref());
        Place { node: &self.settings.node, zone }
    }

    /// Whether load balancers may send this node new connections (KEP-3836). One that is gone, or that the
    /// cluster has never had, is not eligible, as kube-proxy has it; nothing speaks against one of which its source
    /// has not said anything yet, or never will.
    pub fn node_is_eligible(&self) -> bool {
        self.node().map_or(!self.node_is_missing, |node| !node.leaving)
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.objects.values().map(|service| &**service)
    }

    /// The keys of all that has service ports: of services, and of pods with ports on this node.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.services.objects.keys().chain(self.pods.objects.keys())
    }

    /// A service.
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.objects.get(key).map(|service| &**service)
    }

    /// A pod of this node that has ports on it.
    pub fn pod(&self, key: &Key) -> Option<&Pod> {
        self.pods.objects.get(key).map(|pod| &**pod)
    }

    /// All slices of a service, in the order of their names.
    pub fn slices(&self, service: &Key) -> impl Iterator<Item = &EndpointSlice> {
        let keys = self.slices_of.get(service).into_iter().flatten();
        keys.filter_map(|key| self.slices.objects.get(key)).map(|slice| &**slice)
    }

    /// The networks that ClusterIPs are taken from, in the order of their objects' names.
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        let mut objects: Vec<&ServiceCidr> = self.cidrs.objects.values().collect();
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        objects.into_iter().flat_map(|object| &object.cidrs).copied().collect()
    }
}

/// Whether there is something of an object to be routed, or that routing goes by.
fn is_routed(object: &Object) -> bool {
    match object {
        Object::Service(service) => service.routed,
        Object::EndpointSlice(slice) => !slice.headless,
        Object::Pod(pod) => !pod.ports.is_empty(),
        Object::Node(_) | Object::ServiceCidr(_) => true,
        Object::Namespace(_) | Object::NetworkPolicy(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manifests;

    /// The events of some manifests.
    fn applied(text: &str) -> Vec<Event> {
        manifests::parse(text).unwrap().into_iter().map(Event::Apply).collect()
    }

    fn service(name: &str, ip: &str) -> Event {
        with_spec(name, &format!("clusterIP: {ip}, ports: [{{port: 80}}]"))
    }

    fn with_spec(name: &str, spec: &str) -> Event {
        let metadata = format!("{{name: {name}, namespace: ns}}");
        applied(&format!("{{apiVersion: v1, kind: Service, metadata: {metadata}, spec: {{{spec}}}}}"))
            .remove(0)
    }

    fn node(name: &str, zone: &str, ip: &str) -> Event {
        applied(&format!(
            "apiVersion: v1\nkind: Node\n\
             metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n\
             status: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n"
        ))
        .remove(0)
    }

    fn pod(name: &str, node: &str) -> Event {
        applied(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: ns}}\n\
             spec: {{nodeName: {node}, containers: [{{name: a, ports: [{{containerPort: 1, hostPort: 2}}]}}]}}\n\
             status: {{podIP: 10.0.0.1}}\n"
        ))
        .remove(0)
    }

    fn slice(name: &str, service: &str) -> Event {
        let slice = EndpointSlice {
            key: Key::new("ns", name),
            service: Key::new("ns", service),
            headless: false,
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            trigger: None,
        };
        Event::Apply(Object::EndpointSlice(slice.into()))
    }

    fn handle(index: &mut Index, events: impl IntoIterator<Item = Event>) -> Vec<String> {
        for event in events {
            index.handle(event);
        }
        index.take_dirty().iter().map(Key::to_string).collect()
    }

    fn listed() -> Index {
        let mut index = Index::new(ProxySettings { node: "here".to_owned(), ..ProxySettings::default() });
        let events = [
            Event::Listing(Kind::Service),
            service("a", "10.96.0.1"),
            service("b", "10.96.0.2"),
            Event::Listed(Kind::Service),
            Event::Listing(Kind::EndpointSlice),
            slice("a-1", "a"),
            slice("a-2", "a"),
            Event::Listed(Kind::EndpointSlice),
        ];
        handle(&mut index, events);
        index
    }

    fn list(index: &mut Index, kind: Kind) {
        index.handle(Event::Listing(kind));
        index.handle(Event::Listed(kind));
    }

    #[test]
    fn synced_means_that_all_kinds_were_listed() {
        let mut index = Index::default();
        // Others have nothing to do with routes.
        let routed = |kind: &Kind| !matches!(kind, Kind::Namespace | Kind::NetworkPolicy);
        for kind in Kind::ALL.into_iter().filter(routed) {
            assert!(!index.synced(), "{kind:?}");
            list(&mut index, kind);
        }
        assert!(index.synced());
        index.handle(Event::Listing(Kind::Service));
        assert!(index.synced(), "what was known stays known while it is listed again");
    }

    #[test]
    fn synced_needs_services_and_slices_and_does_without_the_others() {
        let mut index = Index::default();
        Kind::ALL.into_iter().for_each(|kind| index.handle(Event::Refused(kind)));
        assert!(!index.synced());
        list(&mut index, Kind::Service);
        assert!(!index.synced());
        list(&mut index, Kind::EndpointSlice);
        assert!(index.synced());
    }

    #[test]
    fn nodes_and_pods_of_others_are_none_of_ours() {
        let mut index = listed();
        assert_eq!(handle(&mut index, [node("there", "z", "192.0.2.2"), pod("p", "there")]), [""; 0]);
        assert!(index.node().is_none() && index.keys().count() == 2);
        assert_eq!(handle(&mut index, [pod("p", "here")]), ["pod:ns/p"]);
        assert_eq!(handle(&mut index, [Event::Delete(Kind::Pod, Key::pod("ns", "p"))]), ["pod:ns/p"]);
    }

    #[test]
    fn news_of_the_node_concern_whom_they_change() {
        let mut index = listed();
        let port = "clusterIP: 10.96.0.3, type: NodePort, ports: [{port: 80, nodePort: 30080}]";
        let ranges = "clusterIP: 10.96.0.4, loadBalancerSourceRanges: [192.0.2.0/24], ports: [{port: 80}]";
        handle(&mut index, [with_spec("port", port), with_spec("ranges", ranges), pod("p", "here")]);
        let all = ["ns/a", "ns/b", "ns/port", "ns/ranges", "pod:ns/p"];
        assert_eq!(handle(&mut index, [node("here", "z", "192.0.2.1")]), all);
        assert_eq!(index.addresses().primary, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(index.place().zone, Some("z"));
        assert_eq!(handle(&mut index, [node("here", "z", "192.0.2.1")]), [""; 0]);
        assert_eq!(handle(&mut index, [node("here", "z", "192.0.2.3")]), all[2..]);
        assert_eq!(handle(&mut index, [node("here", "y", "192.0.2.3")]), all[..4]);
        index.set_local_addresses(["192.0.2.3".parse().unwrap()].into());
        assert_eq!(handle(&mut index, []), all[2..]);
        index.set_local_addresses(["192.0.2.3".parse().unwrap()].into());
        assert_eq!(handle(&mut index, []), [""; 0]);
        assert_eq!(handle(&mut index, [Event::Delete(Kind::Node, Key::global("here"))]), all);
    }

    #[test]
    fn the_primary_ip_of_the_settings_wins_in_its_family() {
        let settings = ProxySettings {
            node: "here".to_owned(),
            primary_ip: Some("192.0.2.9".parse().unwrap()),
            ..ProxySettings::default()
        };
        let mut index = Index::new(settings);
        let primary =
            |index: &Index| index.addresses().primary.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(primary(&index), ["192.0.2.9"], "whatever the Node has");
        handle(&mut index, [node("here", "z", "192.0.2.1")]);
        assert_eq!(primary(&index), ["192.0.2.9"]);
        handle(&mut index, [node("here", "z", "'2001:db8::1'")]);
        assert_eq!(primary(&index), ["192.0.2.9", "2001:db8::1"]);
        handle(&mut index, [Event::Delete(Kind::Node, Key::global("here"))]);
        assert_eq!(primary(&index), ["192.0.2.9"]);
    }

    #[test]
    fn a_node_that_leaves_is_not_eligible() {
        let mut index = listed();
        assert!(index.node_is_eligible(), "nothing is known against it yet");
        for (more, eligible) in [
            ("", true),
            ("spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}", false),
            ("spec: {taints: [{key: other, effect: NoSchedule}]}", true),
        ] {
            handle(
                &mut index,
                applied(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here}}\n{more}")),
            );
            assert_eq!(index.node_is_eligible(), eligible, "{more}");
        }
        let deleted = "metadata: {name: here, deletionTimestamp: \"2026-01-01T00:00:00Z\"}";
        handle(&mut index, applied(&format!("apiVersion: v1\nkind: Node\n{deleted}\n")));
        assert!(!index.node_is_eligible());
    }

    #[test]
    fn a_node_that_the_cluster_does_not_have_is_not_eligible() {
        let mut index = listed();
        list(&mut index, Kind::Node);
        assert!(!index.node_is_eligible(), "there is none");
        handle(&mut index, [node("here", "z", "192.0.2.1")]);
        assert!(index.node_is_eligible());
        handle(&mut index, [Event::Delete(Kind::Node, Key::global("there"))]);
        assert!(index.node_is_eligible());
        handle(&mut index, [Event::Delete(Kind::Node, Key::global("here"))]);
        assert!(!index.node_is_eligible(), "it is gone");
        handle(&mut index, [node("here", "z", "192.0.2.1")]);
        assert!(index.node_is_eligible(), "it is back");
        list(&mut index, Kind::Node);
        assert!(!index.node_is_eligible(), "it went while it was not watched");

        let mut index = listed();
        handle(&mut index, [Event::Refused(Kind::Node)]);
        assert!(index.node_is_eligible(), "nobody says what it is");
    }

    #[test]
    fn an_event_concerns_its_service_only() {
        let mut index = listed();
        assert_eq!(handle(&mut index, [service("a", "10.96.0.9")]), ["ns/a"]);
        assert_eq!(handle(&mut index, [slice("b-1", "b")]), ["ns/b"]);
        assert_eq!(handle(&mut index, [Event::Delete(Kind::Service, Key::new("ns", "a"))]), ["ns/a"]);
    }

    #[test]
    fn an_object_that_is_as_it_was_concerns_nobody() {
        let mut index = listed();
        assert_eq!(handle(&mut index, [service("a", "10.96.0.1"), slice("a-1", "a")]), [""; 0]);
        assert_eq!(handle(&mut index, [Event::Delete(Kind::Service, Key::new("ns", "none"))]), [""; 0]);
    }

    #[test]
    fn what_is_not_routed_is_left_out() {
        let mut index = listed();
        assert_eq!(handle(&mut index, [with_spec("c", "clusterIP: None")]), [""; 0]);
        assert_eq!(
            handle(&mut index, applied("{apiVersion: v1, kind: Namespace, metadata: {name: ns}}")),
            [""; 0]
        );
        let headless = with_spec("a", "clusterIP: None");
        assert!(!index.knows(&headless), "it was routed");
        assert_eq!(handle(&mut index, [headless.clone()]), ["ns/a"]);
        assert!(index.service(&Key::new("ns", "a")).is_none() && index.knows(&headless));
    }

    #[test]
    fn a_slice_that_changes_hands_concerns_both_services() {
        let mut index = listed();
        assert_eq!(handle(&mut index, [slice("a-1", "b")]), ["ns/a", "ns/b"]);
        let names: Vec<_> = index.slices(&Key::new("ns", "b")).map(|slice| slice.key.to_string()).collect();
        assert_eq!(names, ["ns/a-1"]);
    }

    #[test]
    fn a_relist_removes_what_has_vanished_meanwhile() {
        let mut index = listed();
        let services = [Event::Listing(Kind::Service), service("a", "10.96.0.1")];
        assert_eq!(handle(&mut index, services), [""; 0], "nothing goes before the list is complete");
        assert_eq!(handle(&mut index, [Event::Listed(Kind::Service)]), ["ns/b"]);
        assert!(index.service(&Key::new("ns", "b")).is_none());

        let slices = [
            Event::Listing(Kind::EndpointSlice),
            slice("a-2", "a"),
            // The list broke off, and begins anew.
            Event::Listing(Kind::EndpointSlice),
            slice("a-1", "a"),
            Event::Listed(Kind::EndpointSlice),
        ];
        assert_eq!(handle(&mut index, slices), ["ns/a"]);
        assert_eq!(index.slices(&Key::new("ns", "a")).count(), 1);
    }
}
