//! The objects that exist, and which services an event concerns.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Event;
use super::object::{EndpointSlice, Key, Kind, Object, Service};

/// The objects of one kind.
#[derive(Debug)]
struct Store<T> {
    objects: HashMap<Key, T>,
    /// While they are being listed: those that have not been named yet.
    unnamed: Option<HashSet<Key>>,
    /// Whether all of them have been listed at least once.
    listed: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), unnamed: None, listed: false }
    }
}

impl<T: PartialEq> Store<T> {
    fn begin(&mut self) {
        self.unnamed = Some(self.objects.keys().cloned().collect());
    }

    /// Ends a list; the keys of objects that were not in it.
    fn finish(&mut self) -> HashSet<Key> {
        self.listed = true;
        self.unnamed.take().unwrap_or_default()
    }

    /// Takes an object in; `None` if it is known just so, else what was known before.
    fn insert(&mut self, key: &Key, object: T) -> Option<Option<T>> {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(key);
        }
        if self.objects.get(key) == Some(&object) {
            return None;
        }
        Some(self.objects.insert(key.clone(), object))
    }
}

/// The index: all objects of a source.
///
/// An event costs time in proportion to itself, not to what is indexed.
#[derive(Debug, Default)]
pub struct Index {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    slices_of: HashMap<Key, BTreeSet<Key>>,
    dirty: BTreeSet<Key>,
}

impl Index {
    /// Takes an event in; whether the object that it names is new, changed or gone.
    pub fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Listing(Kind::Service) => self.services.begin(),
            Event::Listing(Kind::EndpointSlice) => self.slices.begin(),
            Event::Apply(Object::Service(service)) => {
                let key = service.key.clone();
                return self.services.insert(&key, service).is_some() && self.touch(key);
            }
            Event::Apply(Object::EndpointSlice(slice)) => return self.apply_slice(slice),
            Event::Delete(Kind::Service, key) => return self.delete_service(key),
            Event::Delete(Kind::EndpointSlice, key) => return self.delete_slice(&key),
            Event::Listed(Kind::Service) => {
                for key in self.services.finish() {
                    self.delete_service(key);
                }
            }
            Event::Listed(Kind::EndpointSlice) => {
                for key in self.slices.finish() {
                    self.delete_slice(&key);
                }
            }
        }
        false
    }

    fn touch(&mut self, service: Key) -> bool {
        self.dirty.insert(service);
        true
    }

    fn apply_slice(&mut self, slice: EndpointSlice) -> bool {
        let (key, service) = (slice.key.clone(), slice.service.clone());
        let Some(before) = self.slices.insert(&key, slice) else { return false };
        if let Some(before) = before
            && before.service != service
        {
            self.unlink(before.service, &key);
        }
        self.slices_of.entry(service.clone()).or_default().insert(key);
        self.touch(service)
    }

    fn delete_service(&mut self, key: Key) -> bool {
        self.services.objects.remove(&key).is_some() && self.touch(key)
    }

    fn delete_slice(&mut self, key: &Key) -> bool {
        let Some(slice) = self.slices.objects.remove(key) else { return false };
        self.unlink(slice.service, key);
        true
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

    /// Whether all kinds have been listed: before that, what is missing may only be unknown.
    pub fn synced(&self) -> bool {
        self.services.listed && self.slices.listed
    }

    /// The services that have changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.objects.values()
    }

    /// A service.
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.objects.get(key)
    }

    /// All slices of a service, in the order of their names.
    pub fn slices(&self, service: &Key) -> impl Iterator<Item = &EndpointSlice> {
        let keys = self.slices_of.get(service).into_iter().flatten();
        keys.filter_map(|key| self.slices.objects.get(key))
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::wire::Family;

    use super::*;

    fn service(name: &str, ip: &str) -> Event {
        Event::Apply(Object::Service(Service {
            key: Key::new("ns", name),
            created: None,
            cluster_ips: vec![ip.parse().unwrap()],
            ports: Vec::new(),
        }))
    }

    fn slice(name: &str, service: &str) -> Event {
        Event::Apply(Object::EndpointSlice(EndpointSlice {
            key: Key::new("ns", name),
            service: Key::new("ns", service),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }))
    }

    fn handle(index: &mut Index, events: impl IntoIterator<Item = Event>) -> Vec<String> {
        for event in events {
            index.handle(event);
        }
        index.take_dirty().iter().map(Key::to_string).collect()
    }

    fn listed() -> Index {
        let mut index = Index::default();
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

    #[test]
    fn synced_means_that_both_kinds_were_listed() {
        let mut index = Index::default();
        index.handle(Event::Listing(Kind::Service));
        index.handle(Event::Listed(Kind::Service));
        assert!(!index.synced());
        index.handle(Event::Listing(Kind::EndpointSlice));
        assert!(!index.synced());
        index.handle(Event::Listed(Kind::EndpointSlice));
        assert!(index.synced());
        index.handle(Event::Listing(Kind::Service));
        assert!(index.synced(), "what was known stays known while it is listed again");
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
