//! Names and their addresses, for those who keep a table of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

use super::index::{Index, Rank, pod_label};
use super::lookup::Node;
use super::zone::dashed;
use crate::cluster::object::{Key, Service};

/// A name that is there.
///
/// Of what has no entry there is nothing, once the index is synced, but in two cases, which are to be left to
/// [`Index::lookup`]: names under `pod.<zone>`, of which more forms are known than are listed, and names left of a
/// Service that is there with two labels or with one that begins with an underscore, which may be its ports'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: absolute, in lower case.
    pub name: Name,
    /// What it is of.
    pub kind: EntryKind,
    /// Its IPv4 addresses, each once.
    pub v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses, each once.
    pub v6: Vec<Ipv6Addr>,
}

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The zone, its name server or version, a namespace: no addresses but the name server's.
    Zone,
    /// A Service with addresses: its own, or its endpoints'.
    Service,
    /// A Service that stands for another name: what that is, is to be left to [`Index::lookup`].
    Alias,
    /// An endpoint.
    Endpoint,
    /// A Pod.
    Pod,
}

impl Entry {
    fn new(name: Name, kind: EntryKind, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        Self { name, kind, v4, v6 }
    }
}

impl Index {
    /// The entry of a name of the zone; `None` if there is none.
    pub fn entry(&self, name: &Name) -> Option<Entry> {
        let name = name.to_lowercase();
        if !self.zone.contains(&name) {
            return None;
        }
        let depth = name.iter().len() - self.zone.domain().iter().len();
        let node = self.node(&name);
        let kind = match node {
            Node::Absent => return None,
            Node::Apex | Node::Version | Node::NameServer(_) | Node::Empty => EntryKind::Zone,
            Node::Alias(_) => EntryKind::Alias,
            Node::Pod(_) => EntryKind::Pod,
            Node::ClusterIp(..) => EntryKind::Service,
            Node::Endpoints(..) if depth == 3 => EntryKind::Service,
            Node::Endpoints(..) => EntryKind::Endpoint,
        };
        Some(Entry::new(name, kind, node.addresses()))
    }

    /// All entries, each once, in no order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let of_zone = [&[][..], &["svc"], &["pod"], &["dns-version"], &["dns"], &["ns", "dns"]];
        let of_zone = of_zone.into_iter().filter_map(|labels| self.entry(&self.zone.name(labels)?));
        let named = self.namespaces.objects.keys().map(ToString::to_string);
        let of_services = self.services_in.keys().map(ToString::to_string);
        let others = of_services.filter(|name| !self.namespaces.objects.contains_key(&Key::global(name)));
        let namespaces = named.chain(others).flat_map(|namespace| {
            let names = ["svc", "pod"].map(|tree| self.zone.name(&[&namespace, tree]));
            names.into_iter().flatten().map(|name| Entry::new(name, EntryKind::Zone, []))
        });
        let services = self.services.objects.values().flat_map(|service| self.entries_of(service));
        of_zone.chain(namespaces).chain(services).chain(self.pod_entries())
    }

    /// The entries of a Service and of its endpoints.
    fn entries_of(&self, service: &Service) -> Vec<Entry> {
        let (namespace, name) = service.key.parts();
        let own = self.service_name(&service.key).and_then(|name| self.entry(&name));
        if service.external_name.is_some() {
            return own.into_iter().collect();
        }
        let mut called: BTreeMap<String, (Rank, Vec<IpAddr>)> = BTreeMap::new();
        for (_, endpoint) in self.ready_endpoints(&service.key) {
            let ip = endpoint.addr.to_ip();
            let hostname = endpoint.hostname.as_deref().map(|name| (name.to_owned(), Rank::Hostname));
            let pod = pod_label(endpoint).map(|name| (name.to_owned(), Rank::Pod));
            for (label, rank) in hostname.into_iter().chain(pod).chain([(dashed(ip), Rank::Address)]) {
                let (best, ips) = called.entry(label).or_insert((rank, Vec::new()));
                if rank < *best {
                    (*best, *ips) = (rank, Vec::new());
                }
                if rank == *best && !ips.contains(&ip) {
                    ips.push(ip);
                }
            }
        }
        let endpoints = called.into_iter().filter_map(|(label, (_, ips))| {
            let name = self.zone.name(&[&label, name, namespace, "svc"])?;
            Some(Entry::new(name, EntryKind::Endpoint, ips))
        });
        own.into_iter().chain(endpoints).collect()
    }

    /// The entries of all Pods that are known.
    fn pod_entries(&self) -> impl Iterator<Item = Entry> {
        let mut last: Option<IpAddr> = None;
        let mut seen: Vec<&str> = Vec::new();
        self.owners.iter().filter_map(move |(ip, owner)| {
            if last.replace(*ip) != Some(*ip) {
                seen.clear();
            }
            let namespace = self.pod_namespace(*ip, owner).filter(|its| !seen.contains(its))?;
            seen.push(namespace);
            let name = self.zone.name(&[&dashed(*ip), namespace, "pod"])?;
            Some(Entry::new(name, EntryKind::Pod, [*ip]))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use podnet_common::wire::Family;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Event;
    use crate::cluster::object::EndpointSlice;
    use crate::cluster::object::{self, Kind, Object};
    use crate::cluster::pod::Pod;
    use crate::dns::zone::Settings;

    fn service() -> impl Strategy<Value = Object> {
        (0..3u8, 0..2u8, 0..4u8).prop_map(|(name, namespace, sort)| {
            let key = Key::new(&format!("ns-{namespace}"), &format!("s-{name}"));
            let ips = match sort {
                0 => vec![IpAddr::from([10, 96, 0, name])],
                1 => vec![IpAddr::from([10, 96, 1, name]), IpAddr::from(Ipv6Addr::LOCALHOST)],
                _ => Vec::new(),
            };
            let mut service = Service::new(key, ips, Vec::new());
            service.external_name = (sort == 3).then(|| "example.com".into());
            Object::Service(service.into())
        })
    }

    fn endpoint() -> impl Strategy<Value = object::Endpoint> {
        let pods = prop_oneof![Just(""), Just("p-0"), Just("p-1"), Just("p.2"), Just("10-0-0-1")];
        (0..4u8, pods, prop_oneof![Just(""), Just("p-0"), Just("h")], any::<bool>()).prop_map(
            |(host, pod, hostname, ready)| {
                let mut endpoint = object::Endpoint::new(IpAddr::from([10, 0, 0, host]).into());
                endpoint.pod = (!pod.is_empty()).then(|| pod.into());
                endpoint.hostname = (!hostname.is_empty()).then(|| hostname.into());
                endpoint.ready = ready;
                endpoint
            },
        )
    }

    fn slice() -> impl Strategy<Value = Object> {
        (0..3u8, 0..3u8, 0..2u8, prop::collection::vec(endpoint(), 0..4)).prop_map(
            |(name, service, namespace, endpoints)| {
                let namespace = format!("ns-{namespace}");
                let slice = EndpointSlice {
                    key: Key::new(&namespace, &format!("e-{name}")),
                    service: Key::new(&namespace, &format!("s-{service}")),
                    headless: false,
                    family: Family::V4,
                    ports: Vec::new(),
                    endpoints,
                    trigger: None,
                };
                Object::EndpointSlice(slice.into())
            },
        )
    }

    fn pod() -> impl Strategy<Value = Object> {
        (0..3u8, 0..4u8, 0..2u8).prop_map(|(name, host, namespace)| {
            let pod = Pod {
                key: Key::pod(&format!("ns-{namespace}"), &format!("p-{name}")),
                created: None,
                node: "here".into(),
                ips: vec![IpAddr::from([10, 0, 0, host])],
                ports: Vec::new(),
                answers: true,
            };
            Object::Pod(pod.into())
        })
    }

    fn object() -> impl Strategy<Value = Object> {
        let namespace = (0..3u8).prop_map(|name| Object::Namespace(Key::global(&format!("ns-{name}"))));
        let nameserver = Just(Object::Service(
            Service::new(Key::new("kube-system", "kube-dns"), vec![[10, 96, 0, 10].into()], Vec::new())
                .into(),
        ));
        prop_oneof![3 => service(), 4 => slice(), 2 => pod(), 1 => namespace, 1 => nameserver]
    }

    fn event() -> impl Strategy<Value = Event> {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace];
        let kind = prop::sample::select(kinds.to_vec());
        prop_oneof![
            6 => object().prop_map(Event::Apply),
            3 => object().prop_map(|object| Event::Delete(object.kind(), object.key().clone())),
            1 => (kind, any::<bool>()).prop_map(
                |(kind, begins)| if begins { Event::Listing(kind) } else { Event::Listed(kind) }
            ),
        ]
    }

    fn sorted(mut entry: Entry) -> (Name, Entry) {
        entry.v4.sort_unstable();
        entry.v6.sort_unstable();
        (entry.name.clone(), entry)
    }

    fn all(index: &Index) -> HashMap<Name, Entry> {
        let mut all = HashMap::new();
        for entry in index.entries() {
            let (name, entry) = sorted(entry);
            assert!(all.insert(name, entry).is_none(), "each is there once");
        }
        all
    }

    proptest! {
        /// A table of entries, mended by the names that change, is what a new one would be.
        #[test]
        fn a_table_that_follows_the_names_that_change_is_right(
            events in prop::collection::vec(event(), 1..40),
        ) {
            let mut index = Index::new(&Settings::default(), 0);
            let mut table = all(&index);
            for event in events {
                index.handle(&event, 0);
                for name in index.take_dirty() {
                    match index.entry(&name) {
                        Some(entry) => {
                            let (name, entry) = sorted(entry);
                            table.insert(name, entry);
                        }
                        None => drop(table.remove(&name)),
                    }
                }
                prop_assert_eq!(&table, &all(&index), "after {:?}", event);
            }
        }
    }

    /// What concerns few names costs little: an endpoint that comes is its Service's and its own.
    #[test]
    fn an_event_changes_no_names_but_its_own() {
        let mut index = Index::new(&Settings::default(), 0);
        let mut slice = EndpointSlice {
            key: Key::new("shop", "db-1"),
            service: Key::new("shop", "db"),
            headless: true,
            family: Family::V4,
            ports: Vec::new(),
            endpoints: (1..100)
                .map(|host| object::Endpoint::new(IpAddr::from([10, 0, 0, host]).into()))
                .collect(),
            trigger: None,
        };
        let db = Service::new(Key::new("shop", "db"), Vec::new(), Vec::new());
        index.handle(&Event::Apply(Object::Service(db.into())), 0);
        index.handle(&Event::Apply(Object::EndpointSlice(slice.clone().into())), 0);
        assert_eq!(index.take_dirty().len(), 3 + 99, "two of the namespace, and all of the Service");
        slice.endpoints.push(object::Endpoint::new(IpAddr::from([10, 0, 0, 100]).into()));
        index.handle(&Event::Apply(Object::EndpointSlice(slice.into())), 0);
        let mut dirty: Vec<String> = index.take_dirty().iter().map(Name::to_string).collect();
        dirty.sort();
        assert_eq!(dirty, ["10-0-0-100.db.shop.svc.cluster.local.", "db.shop.svc.cluster.local."]);
    }
}
