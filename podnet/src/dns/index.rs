//! What has a name, by name and by address, and which names an event changes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::zone::{Settings, Zone, dashed, undashed};
use crate::cluster::Event;
use crate::cluster::node::ServiceCidr;
use crate::cluster::object::{Endpoint, EndpointSlice, Key, Kind, Object, Service};
use crate::cluster::pod::Pod;
use crate::cluster::store::Store;

/// The longest label of a name (RFC 1035).
const MAX_LABEL: usize = 63;

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A Service, as a cluster IP.
    Service(Key),
    /// An endpoint of a slice.
    Slice(Key),
    /// A Pod of this node.
    Pod(Key),
}

/// The index: all that has a name.
///
/// An event costs time in proportion to itself, not to what is indexed. The objects are those of the other index.
#[derive(Debug)]
pub struct Index {
    pub(super) zone: Zone,
    /// The Service that is the zones' name server.
    pub(super) nameserver: Key,
    pub(super) services: Store<Arc<Service>>,
    pub(super) slices: Store<Arc<EndpointSlice>>,
    pods: Store<Arc<Pod>>,
    pub(super) namespaces: Store<Key>,
    cidrs: Store<ServiceCidr>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
    /// Namespaces with Services, and with how many: they may be known before, or without, their own objects.
    pub(super) services_in: BTreeMap<Box<str>, usize>,
    pub(super) owners: BTreeSet<(IpAddr, Owner)>,
    serial: u32,
    /// Whether the source is away, and kinds that it does not give.
    pub(super) away: bool,
    pub(super) refused: BTreeSet<Kind>,
    dirty: HashSet<Name>,
}

impl Index {
    /// An empty index, made at a time in seconds of the Unix epoch.
    pub fn new(settings: &Settings, now: u32) -> Self {
        Self {
            zone: Zone::new(&settings.domain, settings.ttl),
            nameserver: settings.service.clone(),
            services: Store::default(),
            slices: Store::default(),
            pods: Store::default(),
            namespaces: Store::default(),
            cidrs: Store::default(),
            slices_of: HashMap::new(),
            services_in: BTreeMap::new(),
            owners: BTreeSet::new(),
            serial: now,
            away: false,
            refused: BTreeSet::new(),
            dirty: HashSet::new(),
        }
    }

    /// The cluster's zone.
    pub const fn zone(&self) -> &Zone {
        &self.zone
    }

    /// When something changed last, in seconds of the Unix epoch: the serial number of SOA records.
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether all that has a name has been listed: before that, what is missing may only be unknown. Once it is
    /// so it stays so: while the source is away, its last word stands.
    pub fn synced(&self) -> bool {
        self.services.listed && self.slices.listed && self.namespaces.settled && self.pods.settled
    }

    /// The names whose addresses, or whose being there, may have changed since the last call: absolute, in lower
    /// case. Reverse names are left out, and names of ports, which go with their Service.
    pub fn take_dirty(&mut self) -> HashSet<Name> {
        std::mem::take(&mut self.dirty)
    }

    /// Takes an event in, at a time in seconds of the Unix epoch.
    pub fn handle(&mut self, event: &Event, now: u32) {
        let changed = match event {
            Event::Listing(kind) => {
                self.begin(*kind);
                false
            }
            Event::Apply(object) => self.apply(object),
            Event::Delete(kind, key) => self.delete(*kind, key),
            Event::Listed(kind) => {
                self.refused.remove(kind);
                let mut changed = false;
                for key in self.finish(*kind) {
                    changed |= self.delete(*kind, &key);
                }
                changed
            }
            Event::Refused(kind) => {
                match kind {
                    Kind::Pod => self.pods.settled = true,
                    Kind::Namespace => self.namespaces.settled = true,
                    Kind::Service
                    | Kind::EndpointSlice
                    | Kind::Node
                    | Kind::ServiceCidr
                    | Kind::NetworkPolicy => {}
                }
                self.refused.insert(*kind);
                false
            }
            Event::Away(away) => {
                self.away = *away;
                false
            }
        };
        if changed {
            self.serial = self.serial.max(now);
        }
    }

    fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.begin(),
            Kind::EndpointSlice => self.slices.begin(),
            Kind::Pod => self.pods.begin(),
            Kind::Namespace => self.namespaces.begin(),
            Kind::ServiceCidr => self.cidrs.begin(),
            Kind::Node | Kind::NetworkPolicy => {}
        }
    }

    fn finish(&mut self, kind: Kind) -> HashSet<Key> {
        match kind {
            Kind::Service => self.services.finish(),
            Kind::EndpointSlice => self.slices.finish(),
            Kind::Pod => self.pods.finish(),
            Kind::Namespace => self.namespaces.finish(),
            Kind::ServiceCidr => self.cidrs.finish(),
            Kind::Node | Kind::NetworkPolicy => HashSet::new(),
        }
    }

    /// Takes an object in; whether that changes anything.
    fn apply(&mut self, object: &Object) -> bool {
        match object {
            Object::Service(service) => {
                let Some(before) = self.services.insert(&service.key, service.clone()) else { return false };
                self.service_changed(before.as_deref(), Some(service));
            }
            Object::EndpointSlice(slice) => {
                let Some(before) = self.slices.insert(&slice.key, slice.clone()) else { return false };
                self.slice_changed(before.as_deref(), Some(slice));
            }
            Object::Pod(pod) => {
                let Some(before) = self.pods.insert(&pod.key, pod.clone()) else { return false };
                self.pod_changed(before.as_deref(), Some(pod));
            }
            Object::Namespace(key) => {
                if self.namespaces.insert(key, key.clone()).is_none() {
                    return false;
                }
                self.namespace_changed(&key.to_string());
            }
            Object::ServiceCidr(cidr) => return self.cidrs.insert(&cidr.key, cidr.clone()).is_some(),
            Object::Node(_) | Object::NetworkPolicy(_) => return false,
        }
        true
    }

    fn delete(&mut self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Service => {
                let Some(service) = self.services.objects.remove(key) else { return false };
                self.service_changed(Some(&service), None);
            }
            Kind::EndpointSlice => {
                let Some(slice) = self.slices.objects.remove(key) else { return false };
                self.slice_changed(Some(&slice), None);
            }
            Kind::Pod => {
                let Some(pod) = self.pods.objects.remove(key) else { return false };
                self.pod_changed(Some(&pod), None);
            }
            Kind::Namespace => {
                if self.namespaces.objects.remove(key).is_none() {
                    return false;
                }
                self.namespace_changed(&key.to_string());
            }
            Kind::ServiceCidr => return self.cidrs.objects.remove(key).is_some(),
            Kind::Node | Kind::NetworkPolicy => return false,
        }
        true
    }

    fn service_changed(&mut self, before: Option<&Service>, now: Option<&Service>) {
        let Some(key) = now.or(before).map(|service| service.key.clone()) else { return };
        for ip in before.into_iter().flat_map(|service| &service.cluster_ips) {
            self.owners.remove(&(*ip, Owner::Service(key.clone())));
        }
        for ip in now.into_iter().flat_map(|service| &service.cluster_ips) {
            self.owners.insert((*ip, Owner::Service(key.clone())));
        }
        let (namespace, name) = key.parts();
        match (before.is_some(), now.is_some()) {
            (false, true) => {
                let count = self.services_in.entry(namespace.into()).or_default();
                *count += 1;
                if *count == 1 {
                    self.namespace_changed(namespace);
                }
            }
            (true, false) => {
                if let Some(count) = self.services_in.get_mut(namespace) {
                    *count -= 1;
                    if *count == 0 {
                        self.services_in.remove(namespace);
                        self.namespace_changed(namespace);
                    }
                }
            }
            _ => {}
        }
        self.mark(&[name, namespace, "svc"]);
        if key == self.nameserver {
            self.mark(&["dns"]);
            self.mark(&["ns", "dns"]);
        }
        let has_endpoints = |it: Option<&Service>| it.is_some_and(|it| it.external_name.is_none());
        if has_endpoints(before) != has_endpoints(now) {
            let labels: Vec<String> = self.ready_endpoints(&key).flat_map(|(_, it)| labels(it)).collect();
            for label in labels {
                self.mark(&[&label, name, namespace, "svc"]);
            }
        }
    }

    fn slice_changed(&mut self, before: Option<&EndpointSlice>, now: Option<&EndpointSlice>) {
        let Some(key) = now.or(before).map(|slice| slice.key.clone()) else { return };
        if let Some(before) = before {
            for endpoint in &before.endpoints {
                self.owners.remove(&(endpoint.addr.to_ip(), Owner::Slice(key.clone())));
            }
            if let Some(slices) = self.slices_of.get_mut(&before.service) {
                slices.remove(&key);
                if slices.is_empty() {
                    self.slices_of.remove(&before.service);
                }
            }
        }
        if let Some(now) = now {
            for endpoint in &now.endpoints {
                self.owners.insert((endpoint.addr.to_ip(), Owner::Slice(key.clone())));
            }
            self.slices_of.entry(now.service.clone()).or_default().insert(key);
        }
        let moved = before.zip(now).is_some_and(|(before, now)| before.service != now.service);
        let none = HashSet::new;
        let (old, new) = (before.map_or_else(none, named), now.map_or_else(none, named));
        for (slice, endpoints, others) in [(before, &old, &new), (now, &new, &old)] {
            let Some(slice) = slice else { continue };
            let mut changed = endpoints.iter().filter(|it| moved || !others.contains(*it)).peekable();
            if changed.peek().is_none() {
                continue;
            }
            let (namespace, service) = slice.service.parts();
            self.mark(&[service, namespace, "svc"]);
            for it in changed {
                for label in labels(it.0) {
                    self.mark(&[&label, service, namespace, "svc"]);
                }
                if it.0.pod.is_some() {
                    self.mark(&[&dashed(it.0.addr.to_ip()), namespace, "pod"]);
                }
            }
        }
    }

    fn pod_changed(&mut self, before: Option<&Pod>, now: Option<&Pod>) {
        for (pod, is_there) in [(before, false), (now, true)] {
            for ip in pod.into_iter().flat_map(|pod| &pod.ips) {
                let Some(pod) = pod else { continue };
                let owner = (*ip, Owner::Pod(pod.key.clone()));
                if is_there {
                    self.owners.insert(owner);
                } else {
                    self.owners.remove(&owner);
                }
                self.mark(&[&dashed(*ip), pod.key.namespace(), "pod"]);
            }
        }
    }

    fn namespace_changed(&mut self, namespace: &str) {
        self.mark(&[namespace, "svc"]);
        self.mark(&[namespace, "pod"]);
    }

    /// Notes that a name may have changed.
    fn mark(&mut self, labels: &[&str]) {
        self.dirty.extend(self.zone.name(labels));
    }

    /// Whether there is such a namespace, by its own object or by a Service in it.
    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.services_in.contains_key(namespace)
            || self.namespaces.objects.contains_key(&Key::global(namespace))
    }

    /// A Service.
    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.objects.get(&Key::new(namespace, name)).map(|service| &**service)
    }

    /// The slices of a Service.
    pub(super) fn slices_of(&self, service: &Key) -> impl Iterator<Item = &EndpointSlice> {
        let keys = self.slices_of.get(service).into_iter().flatten();
        keys.filter_map(|key| self.slices.objects.get(key)).map(|slice| &**slice)
    }

    /// The endpoints of a Service that have names: the ready ones, which those are that are to be published
    /// before they are (`publishNotReadyAddresses`).
    pub(super) fn ready_endpoints(&self, service: &Key) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
        self.slices_of(service).flat_map(|slice| {
            let endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            endpoints.map(move |endpoint| (slice, endpoint))
        })
    }

    /// The ready endpoints of a Service that are called `label`. Hostnames go before the names of Pods, and these
    /// before addresses.
    pub(super) fn endpoints_called(&self, service: &Key, label: &str) -> Vec<(&EndpointSlice, &Endpoint)> {
        let ip = undashed(label).filter(|ip| dashed(*ip) == label);
        let mut best = Rank::Address;
        let mut found = Vec::new();
        for (slice, endpoint) in self.ready_endpoints(service) {
            let rank = match endpoint {
                it if it.hostname.as_deref() == Some(label) => Rank::Hostname,
                it if it.pod.as_deref() == Some(label) => Rank::Pod,
                it if Some(it.addr.to_ip()) == ip => Rank::Address,
                _ => continue,
            };
            if rank < best {
                best = rank;
                found.clear();
            }
            if rank == best {
                found.push((slice, endpoint));
            }
        }
        found
    }

    /// Whether a Pod of the namespace with this address is known.
    pub(super) fn has_pod(&self, namespace: &str, ip: IpAddr) -> bool {
        self.pods_at(ip).any(|its| its == namespace)
    }

    /// The namespaces of the Pods that are known to have this address.
    fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        self.owners_of(ip).filter_map(move |owner| self.pod_namespace(ip, owner))
    }

    /// The namespace of the Pod by which an owner has an address, if it is by one.
    pub(super) fn pod_namespace<'a>(&'a self, ip: IpAddr, owner: &'a Owner) -> Option<&'a str> {
        match owner {
            Owner::Service(_) => None,
            Owner::Pod(key) => Some(key.namespace()),
            Owner::Slice(key) => {
                let mut endpoints = self.slices.objects.get(key)?.endpoints.iter();
                let is_pod = endpoints.any(|it| it.pod.is_some() && it.addr.to_ip() == ip);
                is_pod.then(|| key.namespace())
            }
        }
    }

    /// Who has an address: Services first.
    pub(super) fn owners_of(&self, ip: IpAddr) -> impl Iterator<Item = &Owner> {
        let first = (ip, Owner::Service(Key::global("")));
        self.owners.range(first..).take_while(move |(its, _)| *its == ip).map(|(_, owner)| owner)
    }

    /// A slice.
    pub(super) fn slice(&self, key: &Key) -> Option<&EndpointSlice> {
        self.slices.objects.get(key).map(|slice| &**slice)
    }

    /// The network of cluster IPs that an address is of.
    pub(super) fn service_network(&self, ip: IpAddr) -> Option<IpNet> {
        let networks = self.cidrs.objects.values().flat_map(|cidr| &cidr.cidrs);
        networks.filter(|network| network.contains(&ip)).max_by_key(|network| network.prefix_len()).copied()
    }
}

/// By what an endpoint is called so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Hostname,
    Pod,
    Address,
}

/// An endpoint, by what names depend on.
struct Named<'a>(&'a Endpoint);

impl Named<'_> {
    fn parts(&self) -> (IpAddr, bool, Option<&str>, Option<&str>) {
        let Endpoint { addr, ready, hostname, pod, .. } = self.0;
        (addr.to_ip(), *ready, hostname.as_deref(), pod.as_deref())
    }
}

impl PartialEq for Named<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Named<'_> {}

impl std::hash::Hash for Named<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

fn named(slice: &EndpointSlice) -> HashSet<Named<'_>> {
    slice.endpoints.iter().map(Named).collect()
}

/// The Pod's name as a label, if it is one.
pub(super) fn pod_label(endpoint: &Endpoint) -> Option<&str> {
    endpoint.pod.as_deref().filter(|name| name.len() <= MAX_LABEL && !name.contains('.'))
}

/// The name of an endpoint under its Service's: what SRV and PTR records call it.
pub(super) fn label(endpoint: &Endpoint) -> Cow<'_, str> {
    let named = endpoint.hostname.as_deref().or_else(|| pod_label(endpoint));
    named.map_or_else(|| dashed(endpoint.addr.to_ip()).into(), Cow::Borrowed)
}

/// All labels that an endpoint may be called by.
fn labels(endpoint: &Endpoint) -> impl Iterator<Item = String> {
    let named = endpoint.hostname.as_deref().into_iter().chain(pod_label(endpoint));
    named.map(str::to_owned).chain([dashed(endpoint.addr.to_ip())])
}
