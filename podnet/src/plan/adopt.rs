//! Taking over tables that an earlier agent has left.

use std::collections::{BTreeMap, HashMap, HashSet};

use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRange,
};

use super::frontends::Frontends;
use super::ledger::{Ledger, Member, Port, Slotted, count, distinct, slots_of};
use super::name::PortName;
use super::places::Places;
use super::slots::Slots;
use crate::changes::{Capacity, Snapshot, SourceRange};

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
        let places = 1..capacity.backends;
        let backends: HashMap<BackendId, Backend> =
            snapshot.backends.iter().copied().filter(|(id, _)| places.contains(&id.0)).collect();
        let mut ledger = Self::new(
            Frontends::adopt(capacity.frontends, &snapshot.frontends),
            Slots::new(capacity.slots),
            Places::adopt(capacity.backends, &backends),
        );
        let remains = Remains::new(snapshot, &backends);
        ledger.last_id = remains.last_id(snapshot);
        let mut adopted = HashSet::new();
        for (&id, frontends) in &remains.frontends {
            let slots = ledger.adopt_slots(frontends);
            let port = remains.port(id, slots.map(|range| remains.slotted(range, frontends)));
            let service = remains.names.get(&id).map(|name| name.service.clone());
            match (service, port) {
                (Some(service), Some(port)) if adopted.insert((service.clone(), identity(&port))) => {
                    ledger.owners.insert(id, service.clone());
                    ledger.services.entry(service).or_default().push(port);
                }
                _ => {
                    frontends.iter().for_each(|(key, _)| ledger.frontends.unset(key));
                    distinct(slots).into_iter().for_each(|range| ledger.slots.retire(range));
                }
            }
        }
        ledger.sources = count(of_services(snapshot).count());
        ledger.drop_orphans(&remains, snapshot);
        ledger
    }

    /// Takes over the slots of a service port with these frontends: a range for each set of endpoints.
    ///
    /// Frontends on their way from one range to the next are as good on either, and all are led to the first
    /// of them: there may be no room for what is desired, and then they stay on it.
    fn adopt_slots(&mut self, frontends: &[(FrontendKey, Frontend)]) -> [SlotRange; 2] {
        let mut found = [Vec::new(), Vec::new()];
        for (_, frontend) in frontends {
            let local = [FrontendFlags::INSIDE_LOCAL, FrontendFlags::OUTSIDE_LOCAL];
            for (range, local) in frontend.ranges().into_iter().zip(local) {
                if range.count > 0 {
                    found[usize::from(frontend.flags.has(local))].push(range);
                }
            }
        }
        let mut all: Vec<SlotRange> = found.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|range| self.slots.reserve(*range));
        let current = found.map(|set| set.into_iter().filter(|range| all.contains(range)).min());
        let current = current.map(Option::unwrap_or_default);
        all.iter().filter(|range| !current.contains(range)).for_each(|range| self.slots.retire(*range));
        for (key, frontend) in frontends {
            let (inside, outside) = slots_of(current, frontend.flags);
            self.frontends.set(*key, frontend.with_slots(inside, outside));
        }
        current
    }

    fn drop_orphans(&mut self, remains: &Remains<'_>, snapshot: &Snapshot) {
        let kept: HashSet<BackendId> =
            self.services.values().flatten().flat_map(|port| &port.members).map(|member| member.id).collect();
        for (&id, backend) in remains.backends {
            if is_present(backend) && !kept.contains(&id) {
                self.leave(backend.service, &Member::of(id, backend));
            }
        }
        let names = snapshot.names.iter().map(|(id, _)| *id);
        self.changes.removed_names.extend(names.filter(|id| !self.owners.contains_key(id)));
        let sources = of_services(snapshot).filter(|range| !self.owners.contains_key(&range.service));
        self.changes.removed_sources.extend(sources);
    }
}

/// The source ranges of service ports.
fn of_services(snapshot: &Snapshot) -> impl Iterator<Item = &SourceRange> {
    snapshot.sources.iter().filter(|range| range.service != ServiceId::PODS)
}

/// What tells the ports of a service apart.
fn identity(port: &Port) -> (String, u8, podnet_common::wire::Family) {
    (port.name.to_string(), port.protocol.0, port.family)
}

/// Whether the kernel takes a place for a backend's.
pub(super) const fn is_present(backend: &Backend) -> bool {
    backend.flags.has(BackendFlags::PRESENT)
}

/// A snapshot, by service port.
struct Remains<'a> {
    frontends: BTreeMap<ServiceId, Vec<(FrontendKey, Frontend)>>,
    names: HashMap<ServiceId, PortName>,
    /// Sorted.
    slots: &'a [(u32, BackendId)],
    backends: &'a HashMap<BackendId, Backend>,
    present: HashMap<ServiceId, Vec<BackendId>>,
    sources: HashMap<ServiceId, Vec<SourceRange>>,
}

impl<'a> Remains<'a> {
    fn new(snapshot: &'a Snapshot, backends: &'a HashMap<BackendId, Backend>) -> Self {
        let mut frontends: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, frontend) in &snapshot.frontends {
            frontends.entry(frontend.service).or_default().push((*key, *frontend));
        }
        frontends.values_mut().for_each(|list| list.sort_unstable_by_key(|(key, _)| *key));
        let mut present: HashMap<_, Vec<_>> = HashMap::new();
        for (id, backend) in backends.iter().filter(|(_, backend)| is_present(backend)) {
            present.entry(backend.service).or_default().push(*id);
        }
        let mut sources: HashMap<_, Vec<_>> = HashMap::new();
        for range in &snapshot.sources {
            sources.entry(range.service).or_default().push(*range);
        }
        sources.values_mut().for_each(|list| list.sort_unstable());
        let names = snapshot.names.iter();
        Self {
            frontends,
            names: names.filter_map(|(id, name)| Some((*id, PortName::decode(name)?))).collect(),
            slots: &snapshot.slots,
            backends,
            present,
            sources,
        }
    }

    /// A range of `frontends` with whom its slots hold.
    fn slotted(&self, range: SlotRange, frontends: &[(FrontendKey, Frontend)]) -> Slotted {
        let from = |slot: u32| self.slots.partition_point(|(index, _)| *index < slot);
        let held = &self.slots[from(range.base)..from(range.indices().end)];
        let held = || held.iter().map(|(_, id)| *id);
        let permuted = frontends
            .iter()
            .any(|(_, frontend)| frontend.algorithm == Algorithm::MAGLEV && frontend.outside == range);
        if !permuted {
            let mut ids: Vec<(BackendId, u8)> = Vec::new();
            for id in held() {
                match ids.last_mut() {
                    Some((last, weight)) if *last == id => *weight = weight.saturating_add(1),
                    _ => ids.push((id, 1)),
                }
            }
            return Slotted { range, ids, permuted, permutation: Vec::new() };
        }
        Slotted { range, permutation: held().collect(), ids: Vec::new(), permuted }
    }

    /// The service port with `id`; `None` if its frontends contradict each other.
    fn port(&self, id: ServiceId, slots: [Slotted; 2]) -> Option<Port> {
        let frontends = self.frontends.get(&id)?;
        let (first, _) = frontends.first()?;
        let (protocol, family) = (first.protocol(), first.endpoint().addr.family());
        if frontends
            .iter()
            .any(|(key, _)| key.protocol() != protocol || key.endpoint().addr.family() != family)
        {
            return None;
        }
        let named =
            slots.iter().flat_map(|slotted| slotted.ids.iter().map(|(id, _)| id).chain(&slotted.permutation));
        let slotted: HashSet<BackendId> = named.copied().collect();
        let mut ids = self.present.get(&id).cloned().unwrap_or_default();
        // Of two backends at one endpoint the one that is in use stays.
        ids.sort_unstable_by_key(|id| (self.backends[id].endpoint(), !slotted.contains(id), *id));
        ids.dedup_by_key(|id| self.backends[id].endpoint());
        let members = ids.into_iter().map(|id| Member::of(id, &self.backends[&id]));
        Some(Port {
            id,
            name: self.names.get(&id)?.port.clone(),
            protocol,
            family,
            created: None,
            frontends: frontends.iter().map(|(key, _)| *key).collect(),
            slots,
            members: members.collect(),
            sources: self.sources.get(&id).cloned().unwrap_or_default(),
        })
    }

    /// The highest id that is or was in use.
    fn last_id(&self, snapshot: &Snapshot) -> ServiceId {
        let backends = self.backends.values().map(|backend| backend.service);
        let names = snapshot.names.iter().map(|(id, _)| *id);
        let frontends = self.frontends.keys().copied();
        let sources = self.sources.keys().copied();
        backends.chain(names).chain(frontends).chain(sources).max().unwrap_or_default()
    }
}
