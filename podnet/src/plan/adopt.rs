//! Taking over tables that an earlier agent has left.

use std::collections::{BTreeMap, HashMap, HashSet};

use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey, ServiceId, SlotRange};

use super::frontends::Frontends;
use super::ledger::{Ledger, Member, Port};
use super::name::PortName;
use super::places::Places;
use super::slots::Slots;
use crate::changes::{Capacity, Snapshot};

impl Ledger {
    /// A ledger of tables of `capacity` that hold `snapshot`.
    ///
    /// An earlier agent may have been killed anywhere between two writes. What cannot be told whose it is
    /// (a name without a frontend, a backend of no service) is among the first changes, as removed.
    ///
    /// What is free needs no rest: packets that read what that agent freed last were through long before
    /// this one had started and read the tables. An agent that reads them anew is quicker, and lets rest
    /// what it knew as used (`follow`).
    pub fn adopt(capacity: &Capacity, snapshot: &Snapshot) -> Self {
        let places = 1..capacity.slots;
        let backends: HashMap<BackendId, Backend> =
            snapshot.backends.iter().copied().filter(|(id, _)| places.contains(&id.0)).collect();
        let mut ledger = Self::new(
            Frontends::adopt(capacity.frontends, &snapshot.frontends),
            Slots::new(capacity.slots),
            Places::adopt(capacity.slots, &backends),
        );
        let remains = Remains::new(snapshot, &backends);
        ledger.last_id = remains.last_id(snapshot);
        let mut adopted = HashSet::new();
        for (&id, frontends) in &remains.frontends {
            let mut ranges: Vec<SlotRange> = frontends.iter().map(|(_, frontend)| range(frontend)).collect();
            ranges.dedup();
            // Frontends on their way from one range to the next are as good on either.
            let mut ranges = ranges.into_iter().filter(|range| ledger.slots.reserve(*range));
            let current = ranges.next();
            let on_the_way: Vec<SlotRange> = ranges.collect();
            on_the_way.into_iter().for_each(|range| ledger.slots.retire(range));
            if let Some(range) = current {
                // There may be no room for what is desired, and then all of them stay on this one.
                for (key, frontend) in frontends.iter().filter(|(_, frontend)| self::range(frontend) != range)
                {
                    ledger.frontends.set(*key, frontend.with_slots(range, range));
                }
            }
            let port = remains.port(id, current.unwrap_or_default());
            let service = remains.names.get(&id).map(|name| name.service.clone());
            match (service, port) {
                (Some(service), Some(port)) if adopted.insert((service.clone(), identity(&port))) => {
                    ledger.owners.insert(id, service.clone());
                    ledger.services.entry(service).or_default().push(port);
                }
                _ => {
                    frontends.iter().for_each(|(key, _)| ledger.frontends.unset(key));
                    ledger.slots.retire(current.unwrap_or_default());
                }
            }
        }
        ledger.drop_orphans(&remains, snapshot);
        ledger
    }

    fn drop_orphans(&mut self, remains: &Remains<'_>, snapshot: &Snapshot) {
        let kept: HashSet<BackendId> =
            self.services.values().flatten().flat_map(|port| &port.members).map(|member| member.id).collect();
        for (&id, backend) in remains.backends {
            if backend.serving() && !kept.contains(&id) {
                self.leave(backend.service, &Member { endpoint: backend.endpoint(), id, slotted: false });
            }
        }
        let names = snapshot.names.iter().map(|(id, _)| *id);
        self.changes.removed_names.extend(names.filter(|id| !self.owners.contains_key(id)));
    }
}

/// What tells the ports of a service apart.
fn identity(port: &Port) -> (String, u8, podnet_common::wire::Family) {
    (port.name.to_string(), port.protocol.0, port.family)
}

fn range(frontend: &Frontend) -> SlotRange {
    if frontend.inside.count == 0 { SlotRange::default() } else { frontend.inside }
}

/// A snapshot, by service port.
struct Remains<'a> {
    frontends: BTreeMap<ServiceId, Vec<(FrontendKey, Frontend)>>,
    names: HashMap<ServiceId, PortName>,
    slots: HashMap<u32, BackendId>,
    backends: &'a HashMap<BackendId, Backend>,
    serving: HashMap<ServiceId, Vec<BackendId>>,
}

impl<'a> Remains<'a> {
    fn new(snapshot: &Snapshot, backends: &'a HashMap<BackendId, Backend>) -> Self {
        let mut frontends: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, frontend) in &snapshot.frontends {
            frontends.entry(frontend.service).or_default().push((*key, *frontend));
        }
        frontends
            .values_mut()
            .for_each(|list| list.sort_unstable_by_key(|(key, frontend)| (frontend.inside, *key)));
        let mut serving: HashMap<_, Vec<_>> = HashMap::new();
        for (id, backend) in backends.iter().filter(|(_, backend)| backend.serving()) {
            serving.entry(backend.service).or_default().push(*id);
        }
        let names = snapshot.names.iter();
        Self {
            frontends,
            names: names.filter_map(|(id, name)| Some((*id, PortName::decode(name)?))).collect(),
            slots: snapshot.slots.iter().copied().collect(),
            backends,
            serving,
        }
    }

    /// The service port with `id`, whose slots are `range`; `None` if its frontends contradict each other.
    fn port(&self, id: ServiceId, range: SlotRange) -> Option<Port> {
        let frontends = self.frontends.get(&id)?;
        let (first, _) = frontends.first()?;
        let (protocol, family) = (first.protocol(), first.endpoint().addr.family());
        if frontends
            .iter()
            .any(|(key, _)| key.protocol() != protocol || key.endpoint().addr.family() != family)
        {
            return None;
        }
        let slots: Vec<BackendId> =
            range.indices().filter_map(|slot| self.slots.get(&slot).copied()).collect();
        let slotted: HashSet<BackendId> = slots.into_iter().collect();
        let mut ids = self.serving.get(&id).cloned().unwrap_or_default();
        // Of two backends at one endpoint the one that is in use stays.
        ids.sort_unstable_by_key(|id| (self.backends[id].endpoint(), !slotted.contains(id), *id));
        ids.dedup_by_key(|id| self.backends[id].endpoint());
        let members = ids.into_iter().map(|id| Member {
            endpoint: self.backends[&id].endpoint(),
            id,
            slotted: slotted.contains(&id),
        });
        Some(Port {
            id,
            name: self.names.get(&id)?.port.clone(),
            protocol,
            family,
            created: None,
            frontends: frontends.iter().map(|(key, _)| *key).collect(),
            range,
            members: members.collect(),
        })
    }

    /// The highest id that is or was in use.
    fn last_id(&self, snapshot: &Snapshot) -> ServiceId {
        let backends = self.backends.values().map(|backend| backend.service);
        let names = snapshot.names.iter().map(|(id, _)| *id);
        let frontends = self.frontends.keys().copied();
        backends.chain(names).chain(frontends).max().unwrap_or_default()
    }
}
