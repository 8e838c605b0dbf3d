//! What the kernel's tables hold, and the changes that bring them to what is desired.
//!
//! A service port is installed when it holds a frontend: it then has an id, a place in the backend table
//! for each endpoint, and one contiguous range of slots. A place belongs to an endpoint of a service port
//! for as long as the endpoint stays. A changed set of endpoints goes to a new range, its frontends are
//! switched over, and the old range rests before it is used again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use podnet_common::abi;
use podnet_common::service::{
    Backend, BackendFlags, BackendId, Frontend, FrontendKey, FrontendKind, ServiceId, SlotRange,
};
use podnet_common::wire::{Endpoint, Family, Protocol};
use thiserror::Error;

use super::frontends::Frontends;
use super::name::PortName;
use super::places::Places;
use super::slots::Slots;
use crate::changes::Changes;
use crate::cluster::model::ServicePort;
use crate::cluster::object::Key;

/// A table whose places the ledger gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Frontends.
    Frontends,
    /// Slots.
    Slots,
    /// Backends.
    Backends,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Frontends, Self::Slots, Self::Backends];

    /// The name of the kernel's map.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frontends => abi::FRONTENDS,
            Self::Slots => abi::SLOTS,
            Self::Backends => abi::BACKENDS,
        }
    }

    /// The flag of `podnet agent` that sizes it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Frontends => "--max-frontends",
            Self::Slots | Self::Backends => "--max-slots",
        }
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The table.
    pub table: Table,
    /// Entries in use, those resting before they are used again included.
    pub used: u32,
    /// Entries that there are.
    pub capacity: u32,
}

/// A table has no room for a service. The service stays as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the table {} is full with {capacity} entries: raise {}; what is in it goes on working", table.name(), table.flag())]
pub struct Full {
    /// The table.
    pub table: Table,
    /// Its size.
    pub capacity: u32,
}

/// Two services claim one frontend: the older one has it, the other one waits until it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address and port.
    pub frontend: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The service that has it.
    pub winner: Key,
    /// The service that waits.
    pub loser: Key,
}

/// What an update has led to, besides changes.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Frontends that another service has, as far as that is new.
    pub conflicts: Vec<Conflict>,
    /// Services to be updated too: they have lost a frontend, or one that they wait for is free.
    pub affected: Vec<Key>,
}

/// Who of two comes first: the older one, then the one whose name does. One without a date is the oldest.
pub(super) type Rank = (Option<i64>, Key);

/// The rank of a service with `ports`.
pub(super) fn rank(service: &Key, ports: &[ServicePort]) -> Rank {
    (ports.first().and_then(|port| port.created), service.clone())
}

/// An endpoint that takes part in its service port.
const IN_USE: BackendFlags = BackendFlags::PRESENT.with(BackendFlags::SERVING);

/// A service port that is installed.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) id: ServiceId,
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) family: Family,
    pub(super) created: Option<i64>,
    pub(super) frontends: Vec<FrontendKey>,
    pub(super) range: SlotRange,
    /// Sorted by endpoint.
    pub(super) members: Vec<Member>,
}

/// An endpoint of a service port that is installed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    pub(super) id: BackendId,
    /// Whether a slot of the range names it; it only goes on with what it has otherwise.
    pub(super) slotted: bool,
}

impl Port {
    fn is(&self, port: &ServicePort) -> bool {
        self.name == port.port && self.protocol == port.protocol && self.family == port.family
    }

    fn member(&self, endpoint: &Endpoint) -> Option<&Member> {
        self.members.binary_search_by_key(endpoint, |member| member.endpoint).ok().map(|i| &self.members[i])
    }

    fn slotted(&self) -> impl Iterator<Item = &Endpoint> {
        self.members.iter().filter(|member| member.slotted).map(|member| &member.endpoint)
    }
}

/// What is to become of a service port.
struct Step<'a> {
    port: &'a ServicePort,
    frontends: Vec<FrontendKey>,
    /// Whether its endpoints need another range of slots.
    moves: bool,
}

/// The ledger. An update costs time in proportion to the service, not to the tables.
#[derive(Debug)]
pub struct Ledger {
    pub(super) frontends: Frontends,
    pub(super) slots: Slots,
    pub(super) places: Places,
    pub(super) services: HashMap<Key, Vec<Port>>,
    pub(super) owners: HashMap<ServiceId, Key>,
    pub(super) last_id: ServiceId,
    /// What has been decided and not been taken, but for frontends.
    pub(super) changes: Changes,
    /// Who waits for a frontend that another service has.
    waiters: HashMap<FrontendKey, BTreeSet<Rank>>,
    /// The same by service, with the rank it waits by.
    waits: HashMap<Key, (Option<i64>, Vec<FrontendKey>)>,
    /// Whether entries have come free that no [`advance`](Self::advance) has told of.
    room: bool,
}

impl Ledger {
    pub(super) fn new(frontends: Frontends, slots: Slots, places: Places) -> Self {
        Self {
            frontends,
            slots,
            places,
            services: HashMap::new(),
            owners: HashMap::new(),
            last_id: ServiceId(0),
            changes: Changes::default(),
            waiters: HashMap::new(),
            waits: HashMap::new(),
            room: false,
        }
    }

    /// Moves time on to `now`: what was freed before comes into use again. Whether that, or changes taken
    /// before, made room.
    ///
    /// To be called after the changes taken last have been carried out.
    pub fn advance(&mut self, now: Instant) -> bool {
        let slots = self.slots.advance(now);
        let places = self.places.advance(now);
        std::mem::take(&mut self.room) | slots | places
    }

    /// Brings `service` to have exactly `ports`; no ports remove it.
    ///
    /// # Errors
    /// [`Full`] if a table has no room for them; nothing has changed then.
    pub fn update(&mut self, service: &Key, ports: &[ServicePort]) -> Result<Outcome, Full> {
        let rank = rank(service, ports);
        let (steps, lost) = self.steps(&rank, ports);
        let ranges = self.make_room(service, &steps)?;

        let mut outcome = Outcome::default();
        self.wait(&rank, lost, &mut outcome);
        let mut installed = self.services.remove(service).unwrap_or_default();
        let mut next = Vec::with_capacity(steps.len());
        for (step, range) in steps.into_iter().zip(ranges) {
            let port = match installed.iter().position(|port| port.is(step.port)) {
                Some(index) => installed.swap_remove(index),
                None => self.new_port(service, step.port),
            };
            next.push(self.install(service, port, step, range, &mut outcome));
        }
        for port in installed {
            self.uninstall(port, &mut outcome);
        }
        for key in next.iter().flat_map(|port| &port.frontends) {
            if let Some(first) = self.waiters.get(key).and_then(BTreeSet::first)
                && *first < rank
            {
                outcome.affected.push(first.1.clone());
            }
        }
        if !next.is_empty() {
            self.services.insert(service.clone(), next);
        }
        Ok(outcome)
    }

    /// Notes how old a service is that may have been adopted: the tables do not tell.
    pub(super) fn date(&mut self, (created, service): &Rank) {
        self.services.get_mut(service).into_iter().flatten().for_each(|port| port.created = *created);
    }

    /// What of `ports` needs no new frontends.
    pub fn held(&self, service: &Key, mut ports: Vec<ServicePort>) -> Vec<ServicePort> {
        for port in &mut ports {
            let protocol = port.protocol;
            port.frontends.retain(|frontend| {
                let holder = self.holder(&FrontendKey::new(*frontend, protocol));
                holder.is_some_and(|(_, holder)| holder == *service)
            });
        }
        ports
    }

    /// The services that are installed.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
    }

    /// The services that wait for a frontend which another one has.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Key> {
        self.waits.keys()
    }

    /// Remembers what the tables do not tell and the ledger `before` of the same tables knew: who waits for
    /// whom, and what was in use.
    pub(super) fn follow(&mut self, before: Self) {
        self.waiters = before.waiters;
        self.waits = before.waits;
        self.slots.follow(&before.slots);
        self.places.follow(&before.places);
    }

    /// How full the tables are.
    pub fn usage(&self) -> [Usage; 3] {
        let (frontends, slots, places) = (&self.frontends, &self.slots, &self.places);
        [
            Usage { table: Table::Frontends, used: frontends.used(), capacity: frontends.size() },
            Usage { table: Table::Slots, used: slots.used(), capacity: slots.size() },
            Usage { table: Table::Backends, used: places.size() - places.free(), capacity: places.size() },
        ]
    }

    /// Takes all changes that have been decided, in one batch.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        self.room |= self.frontends.drain(&mut changes);
        changes
    }

    /// Who has a frontend.
    fn holder(&self, key: &FrontendKey) -> Option<Rank> {
        let id = self.frontends.get(key)?.service;
        let service = self.owners.get(&id)?;
        let created = self.services.get(service)?.iter().find(|port| port.id == id)?.created;
        Some((created, service.clone()))
    }

    /// What is to be done for each port that gets a frontend, and the frontends that others have.
    fn steps<'a>(&self, rank: &Rank, ports: &'a [ServicePort]) -> (Vec<Step<'a>>, Vec<(FrontendKey, Key)>) {
        let installed = self.services.get(&rank.1).map_or(&[][..], Vec::as_slice);
        let (mut steps, mut lost, mut claimed) = (Vec::new(), Vec::new(), HashSet::new());
        for port in ports {
            let mut frontends = Vec::new();
            for frontend in &port.frontends {
                let key = FrontendKey::new(*frontend, port.protocol);
                match self.holder(&key) {
                    Some(holder) if holder.1 != rank.1 && holder < *rank => lost.push((key, holder.1)),
                    _ if claimed.insert(key) => frontends.push(key),
                    _ => {}
                }
            }
            if !frontends.is_empty() {
                let current = installed.iter().find(|candidate| candidate.is(port));
                let moves = current.is_none_or(|current| {
                    current.range.count as usize != port.endpoints.len()
                        || !current.slotted().eq(&port.endpoints)
                });
                steps.push(Step { port, frontends, moves });
            }
        }
        (steps, lost)
    }

    /// Sees that the steps find room, and takes a range of slots for each; one that does not move gets an
    /// empty one.
    fn make_room(&mut self, service: &Key, steps: &[Step<'_>]) -> Result<Vec<SlotRange>, Full> {
        let installed = self.services.get(service).map_or(&[][..], Vec::as_slice);
        let (mut frontends, mut places, mut counts, mut before) = (0_usize, 0_usize, Vec::new(), 0);
        for step in steps {
            frontends += step.frontends.iter().filter(|key| self.frontends.needs_room(key)).count();
            let current = installed.iter().find(|candidate| candidate.is(step.port));
            let known = |endpoint| current.is_some_and(|current| current.member(endpoint).is_some());
            places += step.port.endpoints.iter().filter(|&endpoint| !known(endpoint)).count();
            before += current.map_or(0, |current| current.range.count);
            counts.push(if step.moves { count(step.port.endpoints.len()) } else { 0 });
        }
        let after: usize = steps.iter().map(|step| step.port.endpoints.len()).sum();
        // The last sixteenth is for services that only change: when they cannot move to another range,
        // connections go on being sent to endpoints that have left.
        let keep = |size: u32| if after > before as usize { size / 16 } else { 0 };

        if frontends > (self.frontends.size().saturating_sub(self.frontends.used())) as usize {
            return Err(Full { table: Table::Frontends, capacity: self.frontends.size() });
        }
        let slots = Full { table: Table::Slots, capacity: self.slots.size() };
        let ranges = self.slots.take(&counts, keep(self.slots.size())).ok_or(slots)?;
        if places > 0 && places > self.places.free().saturating_sub(keep(self.places.size())) as usize {
            self.slots.put_back(ranges);
            return Err(Full { table: Table::Backends, capacity: self.places.size() });
        }
        Ok(ranges)
    }

    /// Notes which frontends a service waits for.
    fn wait(&mut self, rank: &Rank, lost: Vec<(FrontendKey, Key)>, outcome: &mut Outcome) {
        let (created, before) = self.waits.remove(&rank.1).unwrap_or_default();
        let old_rank = (created, rank.1.clone());
        for key in &before {
            if let Some(waiters) = self.waiters.get_mut(key) {
                waiters.remove(&old_rank);
                if waiters.is_empty() {
                    self.waiters.remove(key);
                }
            }
        }
        let mut waits = Vec::with_capacity(lost.len());
        for (key, winner) in lost {
            self.waiters.entry(key).or_default().insert(rank.clone());
            if !before.contains(&key) {
                outcome.conflicts.push(Conflict {
                    frontend: key.endpoint().into(),
                    protocol: key.protocol(),
                    winner,
                    loser: rank.1.clone(),
                });
            }
            waits.push(key);
        }
        if !waits.is_empty() {
            self.waits.insert(rank.1.clone(), (rank.0, waits));
        }
    }

    fn new_port(&mut self, service: &Key, port: &ServicePort) -> Port {
        let id = loop {
            self.last_id.0 = self.last_id.0.wrapping_add(1);
            if self.last_id != ServiceId(0) && !self.owners.contains_key(&self.last_id) {
                break self.last_id;
            }
        };
        self.owners.insert(id, service.clone());
        let name = PortName { service: service.clone(), port: port.port.clone() };
        self.changes.names.push((id, name.encode()));
        Port {
            id,
            name: port.port.clone(),
            protocol: port.protocol,
            family: port.family,
            created: port.created,
            frontends: Vec::new(),
            range: SlotRange::default(),
            members: Vec::new(),
        }
    }

    /// Brings a port to what the step says; `range` is where its endpoints move, if they do.
    fn install(
        &mut self,
        service: &Key,
        mut port: Port,
        step: Step<'_>,
        range: SlotRange,
        outcome: &mut Outcome,
    ) -> Port {
        let desired = step.port;
        let mut members = Vec::with_capacity(desired.endpoints.len() + desired.draining.len());
        for &endpoint in &desired.endpoints {
            let id = match port.member(&endpoint) {
                Some(member) => Some(member.id),
                None => self.places.take().map(|(id, generation)| {
                    self.changes.backends.push((id, Backend::new(endpoint, port.id, generation, IN_USE)));
                    id
                }),
            };
            members.extend(id.map(|id| Member { endpoint, id, slotted: true }));
        }
        let draining = desired.draining.iter().filter_map(|endpoint| port.member(endpoint));
        members.extend(draining.map(|member| Member { slotted: false, ..*member }));
        members.sort_unstable_by_key(|member| member.endpoint);
        let before = std::mem::replace(&mut port.members, members);

        if step.moves {
            self.slots.retire(std::mem::replace(&mut port.range, range));
            let slotted = port.members.iter().filter(|member| member.slotted);
            self.changes.slots.extend((range.base..).zip(slotted.map(|member| member.id)));
        }
        let frontend = Frontend::new(FrontendKind::CLUSTER_IP, port.id, port.range);
        for key in std::mem::replace(&mut port.frontends, step.frontends) {
            if !port.frontends.contains(&key) {
                self.give_up(&port, &key, outcome);
            }
        }
        for key in &port.frontends {
            if let Some(loser) = self.holder(key).filter(|holder| holder.1 != *service) {
                outcome.affected.push(loser.1);
            }
            self.frontends.set(*key, frontend);
        }
        for member in before {
            if port.member(&member.endpoint).is_none() {
                self.leave(port.id, &member);
            }
        }
        port.created = desired.created;
        port
    }

    fn uninstall(&mut self, port: Port, outcome: &mut Outcome) {
        for key in &port.frontends {
            self.give_up(&port, key, outcome);
        }
        self.slots.retire(port.range);
        for member in &port.members {
            self.leave(port.id, member);
        }
        self.owners.remove(&port.id);
        self.changes.removed_names.push(port.id);
    }

    /// Removes a frontend, unless somebody else has got it meanwhile.
    fn give_up(&mut self, port: &Port, key: &FrontendKey, outcome: &mut Outcome) {
        if self.frontends.get(key).is_some_and(|frontend| frontend.service == port.id) {
            self.frontends.unset(key);
            // All of them: the first may have changed its mind, or find no room.
            let waiters = self.waiters.get(key).into_iter().flatten();
            outcome.affected.extend(waiters.map(|rank| rank.1.clone()));
        }
    }

    /// Marks a backend as gone, and frees its place.
    pub(super) fn leave(&mut self, service: ServiceId, member: &Member) {
        let backend = Backend::new(member.endpoint, service, self.places.generation(member.id), IN_USE);
        self.changes.gone.push((member.id, backend.gone()));
        self.places.retire(member.id);
    }
}

/// A number of endpoints, as the tables count them.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
