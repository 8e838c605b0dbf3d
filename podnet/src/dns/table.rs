//! What the kernel is to hold of names: pure, of the memory of what it holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use hickory_proto::rr::Name;
use podnet_common::abi::{DNS_CLIENT_ENTRIES, DNS_SERVER_ENTRIES};
use podnet_common::dns::name::{NameEntry, NameKey};
use podnet_common::service::FrontendKey;
use podnet_common::wire::{Addr, Endpoint, Protocol};

use super::{Entry, EntryKind, Index};
use crate::cluster::object::Kind;

/// What the kernel's tables of names hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All names.
    pub names: Vec<(NameKey, NameEntry)>,
    /// Where the cluster's DNS is.
    pub servers: Vec<FrontendKey>,
    /// Whom answers are given to.
    pub clients: Vec<Addr>,
}

/// What to change in them: what goes first, since others may need the room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names that are no more.
    pub removed_names: Vec<NameKey>,
    /// New names, and others' new entries.
    pub names: Vec<(NameKey, NameEntry)>,
    /// Where the cluster's DNS is no more.
    pub removed_servers: Vec<FrontendKey>,
    /// Where it has come to be.
    pub servers: Vec<FrontendKey>,
    /// Who is answered no more.
    pub removed_clients: Vec<Addr>,
    /// Who is from now on.
    pub clients: Vec<Addr>,
    /// The serial of the names from then on if the table holds all that there are, so that others may be denied.
    pub complete: Option<u32>,
}

/// The tables of names as the kernel holds them.
#[derive(Debug)]
pub struct Table {
    capacity: usize,
    names: HashMap<NameKey, NameEntry>,
    servers: BTreeSet<FrontendKey>,
    clients: BTreeSet<Addr>,
    /// Names that there was no room for.
    waiting: BTreeMap<NameKey, Name>,
}

impl Table {
    /// Tables of `capacity` names that hold `snapshot`.
    pub fn adopt(capacity: u32, snapshot: Snapshot) -> Self {
        Self {
            capacity: capacity as usize,
            names: snapshot.names.into_iter().collect(),
            servers: snapshot.servers.into_iter().collect(),
            clients: snapshot.clients.into_iter().collect(),
            waiting: BTreeMap::new(),
        }
    }

    /// How many names wait for room. What is asked of them goes to the cluster's DNS, and no name is denied.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many names there are in the table.
    pub fn held(&self) -> usize {
        self.names.len()
    }

    /// Plans for all names of `index`: what is there beyond them goes.
    pub fn reconcile(&mut self, index: &Index, clients: BTreeSet<IpAddr>) -> Changes {
        let mut wanted: HashMap<NameKey, (Name, NameEntry)> = HashMap::new();
        for entry in index.entries() {
            if let Some((key, value)) = key_of(index, &entry.name).zip(value_of(&entry)) {
                wanted.insert(key, (entry.name, value));
            }
        }
        self.waiting.clear();
        let removed_names = self.names.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        let mut changes = Changes { removed_names, ..Changes::default() };
        self.names.retain(|key, _| wanted.contains_key(key));
        for (key, (name, value)) in wanted {
            self.set(key, name, value, &mut changes);
        }
        self.finish(index, clients, changes)
    }

    /// Plans for the names in `dirty`.
    pub fn plan(
        &mut self,
        index: &Index,
        dirty: impl IntoIterator<Item = Name>,
        clients: BTreeSet<IpAddr>,
    ) -> Changes {
        let mut changes = Changes::default();
        let mut wanted = BTreeMap::new();
        let waiting = std::mem::take(&mut self.waiting);
        for name in dirty.into_iter().chain(waiting.into_values()) {
            let Some(key) = key_of(index, &name) else { continue };
            match index.entry(&name).as_ref().and_then(value_of) {
                Some(value) => drop(wanted.insert(key, (name, value))),
                None => {
                    if self.names.remove(&key).is_some() {
                        changes.removed_names.push(key);
                    }
                }
            }
        }
        for (key, (name, value)) in wanted {
            self.set(key, name, value, &mut changes);
        }
        self.finish(index, clients, changes)
    }

    fn set(&mut self, key: NameKey, name: Name, value: NameEntry, changes: &mut Changes) {
        match self.names.get(&key) {
            Some(held) if *held == value => {}
            None if self.names.len() >= self.capacity => drop(self.waiting.insert(key, name)),
            _ => {
                self.names.insert(key, value);
                changes.names.push((key, value));
            }
        }
    }

    fn finish(&mut self, index: &Index, clients: BTreeSet<IpAddr>, mut changes: Changes) -> Changes {
        let servers = index.servers().into_iter().map(|at| FrontendKey::new(at, Protocol::UDP));
        let servers = servers.take(DNS_SERVER_ENTRIES as usize).collect();
        (changes.servers, changes.removed_servers) = replace(&mut self.servers, servers);
        let clients = clients.into_iter().map(Addr::from).take(DNS_CLIENT_ENTRIES as usize).collect();
        (changes.clients, changes.removed_clients) = replace(&mut self.clients, clients);
        changes.complete = (index.knows_all() && self.waiting.is_empty()).then(|| index.serial());
        changes
    }
}

/// Puts `new` in the place of `held`; what is new, and what is no more.
fn replace<T: Copy + Ord + Hash>(held: &mut BTreeSet<T>, new: BTreeSet<T>) -> (Vec<T>, Vec<T>) {
    let old = std::mem::replace(held, new);
    (held.difference(&old).copied().collect(), old.difference(held).copied().collect())
}

/// The key of a name that the kernel's table is for: a Service's or a namespace's, not too long.
fn key_of(index: &Index, name: &Name) -> Option<NameKey> {
    let depth = name.iter().len().checked_sub(index.zone().domain().iter().len())?;
    let labels: Option<Vec<&str>> =
        name.iter().take(depth).map(|label| std::str::from_utf8(label).ok()).collect();
    match labels?[..] {
        [namespace, "svc"] => NameKey::new([namespace]),
        [service, namespace, "svc"] => NameKey::new([service, namespace]),
        _ => None,
    }
}

/// What the kernel is to know of a name.
fn value_of(entry: &Entry) -> Option<NameEntry> {
    match entry.kind {
        EntryKind::Zone => Some(NameEntry::new([])),
        EntryKind::Alias => Some(NameEntry::LEFT_ALONE),
        EntryKind::Service => {
            let v4 = entry.v4.iter().copied().map(IpAddr::from);
            Some(NameEntry::new(v4.chain(entry.v6.iter().copied().map(IpAddr::from))))
        }
        EntryKind::Endpoint | EntryKind::Pod => None,
    }
}

impl Index {
    /// Where the cluster's DNS is, by UDP: its Service, and its endpoints, whether they are ready or not.
    pub fn servers(&self) -> BTreeSet<Endpoint> {
        let (namespace, name) = self.nameserver.parts();
        let service = self.service(namespace, name);
        let ports = service.into_iter().flat_map(|service| &service.ports);
        let ports = ports.filter(|port| port.protocol == Protocol::UDP);
        let own = ports.flat_map(|port| {
            let ips = service.into_iter().flat_map(|service| &service.cluster_ips);
            ips.map(|ip| std::net::SocketAddr::new(*ip, port.number).into())
        });
        let behind = self.slices_of(&self.nameserver).flat_map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::UDP);
            ports.flat_map(|port| {
                let number = podnet_common::wire::Be16::new(port.number);
                slice.endpoints.iter().map(move |endpoint| Endpoint { addr: endpoint.addr, port: number })
            })
        });
        own.chain(behind).collect()
    }

    /// Whether what is not indexed is not there: all has been listed, and its source tells of all that is new.
    pub fn knows_all(&self) -> bool {
        let current = self.services.is_current() && self.slices.is_current() && self.namespaces.is_current();
        let refused =
            [Kind::Service, Kind::EndpointSlice, Kind::Namespace].map(|kind| self.refused.contains(&kind));
        current && !self.away && refused == [false; 3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Event, manifests};
    use crate::dns::Settings;

    const CLUSTER: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: tcp, port: 53}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [10.244.0.2]}, {addresses: [10.244.0.3], conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
";

    fn index() -> Index {
        let mut index = Index::new(&Settings::default(), 7);
        apply(&mut index, CLUSTER);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Pod] {
            // An empty list is of no objects; what is named while it lasts stays.
            index.handle(&Event::Listing(kind), 7);
            apply(&mut index, CLUSTER);
            index.handle(&Event::Listed(kind), 7);
        }
        index
    }

    fn apply(index: &mut Index, manifests: &str) {
        for object in manifests::parse(manifests).unwrap() {
            index.handle(&Event::Apply(object), 7);
        }
    }

    fn key(labels: &[&str]) -> NameKey {
        NameKey::new(labels.iter().copied()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_services_and_namespaces_are_held() {
        let mut index = index();
        let mut table = Table::adopt(100, Snapshot::default());
        let client = BTreeSet::from([ip("10.244.0.9")]);
        let changes = table.reconcile(&index, client.clone());
        let names: HashMap<_, _> = changes.names.iter().copied().collect();
        assert_eq!(names[&key(&["web", "shop"])], NameEntry::new([ip("10.96.0.20")]));
        assert_eq!(names[&key(&["elsewhere", "shop"])], NameEntry::LEFT_ALONE);
        assert_eq!(names[&key(&["kube-dns", "kube-system"])], NameEntry::new([ip("10.96.0.10")]));
        for namespace in ["empty", "shop", "kube-system"] {
            assert_eq!(names[&key(&[namespace])], NameEntry::new([]), "{namespace}");
        }
        assert_eq!(names.len(), 6, "endpoints are left to the cluster's DNS");
        let udp =
            |at: &str| FrontendKey::new(at.parse::<std::net::SocketAddr>().unwrap().into(), Protocol::UDP);
        let servers = ["10.96.0.10:53", "10.244.0.2:53", "10.244.0.3:53"].map(udp);
        assert_eq!(BTreeSet::from_iter(changes.servers), BTreeSet::from(servers));
        assert_eq!(changes.clients, [Addr::from(ip("10.244.0.9"))]);
        assert_eq!(changes.complete, None, "nobody has said that these are all namespaces");
        index.handle(&Event::Refused(Kind::Namespace), 7);
        assert_eq!(table.plan(&index, [], client).complete, None, "nor may anybody");

        index.handle(&Event::Listing(Kind::Namespace), 7);
        apply(&mut index, CLUSTER);
        index.handle(&Event::Listed(Kind::Namespace), 7);
        let changes = table.plan(&index, [], BTreeSet::new());
        assert_eq!(changes.complete, Some(7));
        let mut complete = |event: Event| {
            index.handle(&event, 7);
            table.plan(&index, [], BTreeSet::new()).complete
        };
        assert_eq!(complete(Event::Away(true)), None, "there may be new ones");
        assert_eq!(complete(Event::Away(false)), Some(7));
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Namespace] {
            assert_eq!(complete(Event::Refused(kind)), None, "{kind:?} may not be read any more");
            assert_eq!(complete(Event::Listing(kind)), None, "{kind:?} is being listed anew");
            complete(Event::Listed(kind));
        }
        assert_eq!((changes.clients, changes.removed_clients.len()), (vec![], 1));
        assert!(changes.names.is_empty() && changes.servers.is_empty() && changes.removed_servers.is_empty());
    }

    #[test]
    fn names_follow_their_services() {
        let mut index = index();
        let mut table = Table::adopt(100, Snapshot::default());
        table.reconcile(&index, BTreeSet::new());
        index.take_dirty();
        apply(&mut index, &CLUSTER.replace("10.96.0.20", "10.96.0.21"));
        let dirty = index.take_dirty();
        let changes = table.plan(&index, dirty, BTreeSet::new());
        assert_eq!(changes.names, [(key(&["web", "shop"]), NameEntry::new([ip("10.96.0.21")]))]);
        index.handle(&Event::Delete(Kind::Service, crate::cluster::object::Key::new("shop", "web")), 9);
        let dirty = index.take_dirty();
        let changes = table.plan(&index, dirty, BTreeSet::new());
        assert_eq!((changes.removed_names, changes.names), (vec![key(&["web", "shop"])], vec![]));
    }

    /// What a table without room does not hold is there all the same.
    #[test]
    fn nothing_is_denied_while_names_wait_for_room() {
        let mut index = index();
        index.handle(&Event::Listing(Kind::Namespace), 7);
        apply(&mut index, CLUSTER);
        index.handle(&Event::Listed(Kind::Namespace), 7);
        let mut table = Table::adopt(5, Snapshot::default());
        let changes = table.reconcile(&index, BTreeSet::new());
        assert_eq!((changes.names.len(), table.waiting(), changes.complete), (5, 1, None));
        assert_eq!(table.plan(&index, [], BTreeSet::new()).complete, None);
        index.take_dirty();
        index.handle(&Event::Delete(Kind::Service, crate::cluster::object::Key::new("shop", "elsewhere")), 9);
        let dirty = index.take_dirty();
        let changes = table.plan(&index, dirty, BTreeSet::new());
        assert_eq!((table.waiting(), table.held(), changes.complete), (0, 5, Some(9)));
    }

    #[test]
    fn what_earlier_agents_have_left_is_mended() {
        let index = index();
        let snapshot = Snapshot {
            names: vec![
                (key(&["gone", "shop"]), NameEntry::new([])),
                (key(&["web", "shop"]), NameEntry::new([ip("10.96.0.20")])),
            ],
            servers: vec![FrontendKey::new(Endpoint::default(), Protocol::UDP)],
            clients: vec![Addr::from(ip("10.244.0.9"))],
        };
        let changes = Table::adopt(100, snapshot).reconcile(&index, BTreeSet::new());
        assert_eq!(changes.removed_names, [key(&["gone", "shop"])]);
        assert!(changes.names.iter().all(|(name, _)| *name != key(&["web", "shop"])), "it is right as it is");
        assert_eq!((changes.removed_servers.len(), changes.removed_clients.len()), (1, 1));
    }
}
