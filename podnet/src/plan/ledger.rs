//! What the kernel's tables hold, and the changes that bring them to what is desired.
//!
//! A service port is installed when it holds a frontend: it then has an id, a place in the backend table
//! for each endpoint that a connection may go to, and one contiguous range of slots for each of its two sets of
//! endpoints, or one for both if they are the same. A place belongs to an endpoint of a service port
//! for as long as the endpoint stays, be it in a set or not; its flags change in place. A changed set goes to a
//! new range, its frontends are switched over, and the old range rests before it is used again. A set has one slot for
//! each endpoint, or as many as the permutation needs by which clients outside choose (`maglev`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter::repeat_n;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use podnet_common::abi;
use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKey, FrontendKind,
    ServiceId, SlotRange,
};
use podnet_common::wire::{Endpoint, Family, Protocol};
use thiserror::Error;

use super::frontends::Frontends;
use super::maglev;
use super::name::PortName;
use super::places::Places;
use super::slots::Slots;
use crate::changes::{Changes, SourceRange};
use crate::cluster::model::{self, ServicePort};
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
    /// Source ranges.
    Sources,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Frontends, Self::Slots, Self::Backends, Self::Sources];

    /// The name of the kernel's map.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frontends => abi::FRONTENDS,
            Self::Slots => abi::SLOTS,
            Self::Backends => abi::BACKENDS,
            Self::Sources => abi::SOURCES,
        }
    }

    /// The flag of `podnet agent` that sizes it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Frontends | Self::Sources => "--max-frontends",
            Self::Slots => "--max-slots",
            Self::Backends => "--max-backends",
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

/// The sets of endpoints that slots are for.
pub(super) const SETS: [BackendFlags; 2] = [BackendFlags::IN_CLUSTER, BackendFlags::IN_LOCAL];

/// A service port that is installed.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) id: ServiceId,
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) family: Family,
    pub(super) created: Option<i64>,
    pub(super) frontends: Vec<FrontendKey>,
    /// The slots of each set.
    pub(super) slots: [Slotted; 2],
    /// Sorted by endpoint.
    pub(super) members: Vec<Member>,
    /// Sorted.
    pub(super) sources: Vec<SourceRange>,
}

/// A range of slots, and whom they hold: each one as often as it weighs in this order, or all of them in a permutation.
#[derive(Clone, Debug, Default)]
pub(super) struct Slotted {
    pub(super) range: SlotRange,
    pub(super) ids: Vec<(BackendId, u8)>,
    pub(super) permuted: bool,
    /// The slots of a permutation that was taken over: it does not tell of whom it is made.
    pub(super) permutation: Vec<BackendId>,
}

/// An endpoint of a set and what it weighs there.
type Share = (Endpoint, u8);

/// The shares of members: what they weigh, in lowest terms. Those that weigh nothing have none, unless nobody does.
fn shares<'a>(members: impl Iterator<Item = &'a model::Member> + Clone) -> Vec<Share> {
    let common = members.clone().fold(0, |common, member| gcd(common, member.weight));
    let share = |member: &model::Member| match common {
        0 => Some((member.endpoint, 1)),
        common => (member.weight > 0).then_some((member.endpoint, member.weight / common)),
    };
    members.filter_map(share).collect()
}

/// The greatest common divisor; 0 of nothing but zeroes.
const fn gcd(mut a: u8, mut b: u8) -> u8 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What all of `shares` weigh.
fn sum(shares: &[Share]) -> u32 {
    shares.iter().map(|(_, weight)| u32::from(*weight)).sum()
}

/// What the slots of a range hold that has `shares`, sorted by endpoint, of the backends in `ids`: a permutation of them,
/// or each one as often as it weighs.
fn contents(range: SlotRange, shares: &[Share], ids: &[BackendId], permuted: bool) -> Vec<BackendId> {
    if !permuted {
        let times = |((_, weight), id): (&Share, &BackendId)| repeat_n(*id, (*weight).into());
        return shares.iter().zip(ids).flat_map(times).collect();
    }
    let slots = maglev::permutation(range.count, shares);
    slots.into_iter().map(|index| ids[index]).collect()
}

/// An endpoint of a service port that is installed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    pub(super) id: BackendId,
    pub(super) flags: BackendFlags,
}

impl Member {
    pub(super) const fn of(id: BackendId, backend: &Backend) -> Self {
        Self { endpoint: backend.endpoint(), id, flags: backend.flags }
    }
}

/// The slots that clients inside and clients outside get.
pub(super) fn slots_of([cluster, local]: [SlotRange; 2], flags: FrontendFlags) -> (SlotRange, SlotRange) {
    let of = |is_local| if is_local { local } else { cluster };
    (of(flags.has(FrontendFlags::INSIDE_LOCAL)), of(flags.has(FrontendFlags::OUTSIDE_LOCAL)))
}

impl Port {
    fn is(&self, port: &ServicePort) -> bool {
        self.name == port.port && self.protocol == port.protocol && self.family == port.family
    }

    fn member(&self, endpoint: &Endpoint) -> Option<&Member> {
        self.members.binary_search_by_key(endpoint, |member| member.endpoint).ok().map(|i| &self.members[i])
    }

    /// The range of `count` slots that holds exactly these shares in this order, or in a permutation.
    fn holding(&self, shares: &[Share], count: u32, permuted: bool) -> Option<SlotRange> {
        let known = shares.iter().map(|(endpoint, weight)| Some((self.member(endpoint)?.id, *weight)));
        let ids: Vec<(BackendId, u8)> = known.collect::<Option<_>>()?;
        let held = self.slots.iter().find(|slotted| {
            let like = slotted.permuted == permuted && slotted.range.count == count;
            like && if slotted.permutation.is_empty() {
                slotted.ids == ids
            } else {
                let ids: Vec<BackendId> = ids.iter().map(|(id, _)| *id).collect();
                slotted.permutation == contents(slotted.range, shares, &ids, permuted)
            }
        });
        held.map(|slotted| slotted.range)
    }

    /// Its ranges of slots, each once.
    fn ranges(&self) -> Vec<SlotRange> {
        distinct(self.slots.each_ref().map(|slotted| slotted.range))
    }
}

/// Two ranges, or one if they are the same; empty ones are none.
pub(super) fn distinct([cluster, local]: [SlotRange; 2]) -> Vec<SlotRange> {
    let mut ranges = vec![cluster, local];
    ranges.dedup();
    ranges.retain(|range| range.count > 0);
    ranges
}

/// The slots of a set that is to be.
#[derive(Clone, Copy, Debug)]
enum Room {
    /// Those that hold it already.
    Held(SlotRange),
    /// So many others.
    New(u32),
    /// Those of the Cluster set, which is the same.
    OfCluster,
}

/// What is to become of a service port.
struct Step<'a> {
    port: &'a ServicePort,
    frontends: Vec<model::Frontend>,
    rooms: [Room; 2],
    /// Who has a share of each set, and which of the sets are permuted.
    shares: [Vec<Share>; 2],
    permuted: [bool; 2],
}

impl<'a> Step<'a> {
    fn new(port: &'a ServicePort, frontends: Vec<model::Frontend>, current: Option<&Port>) -> Self {
        let uses_local = |frontend: &model::Frontend| {
            let flags = [FrontendFlags::INSIDE_LOCAL, FrontendFlags::OUTSIDE_LOCAL];
            flags.map(|flag| frontend.flags.has(flag))
        };
        let [cluster, local] = [false, true].map(|local| {
            let used = frontends.iter().flat_map(uses_local).any(|it| it == local);
            shares(port.members.iter().filter(|member| used && member.flags.has(SETS[usize::from(local)])))
        });
        let wanted = [false, true].map(|local| {
            let outside = |it: &model::Frontend| it.flags.has(FrontendFlags::OUTSIDE_LOCAL) == local;
            let hashed =
                frontends.iter().any(|it| algorithm(port, it.kind) == Algorithm::MAGLEV && outside(it));
            port.maglev.filter(|_| hashed)
        });
        let room = |set: &[Share], wanted: Option<u32>| {
            if set.is_empty() {
                return Room::Held(SlotRange::default());
            }
            let count = wanted.map_or(sum(set), |wanted| maglev::size(wanted, sum(set)));
            let held = current.and_then(|current| current.holding(set, count, wanted.is_some()));
            held.map_or(Room::New(count), Room::Held)
        };
        let [of_cluster, of_local] = wanted;
        let (rooms, wanted) = if local == cluster {
            let both = of_cluster.or(of_local);
            ([room(&cluster, both), Room::OfCluster], [both, both])
        } else {
            ([room(&cluster, of_cluster), room(&local, of_local)], wanted)
        };
        let permuted = wanted.map(|wanted| wanted.is_some());
        Self { port, frontends, rooms, shares: [cluster, local], permuted }
    }

    /// How many new slots its sets need.
    fn new_slots(&self) -> impl Iterator<Item = u32> {
        self.rooms.into_iter().filter_map(|room| match room {
            Room::New(count) => Some(count),
            Room::Held(_) | Room::OfCluster => None,
        })
    }

    /// How many slots its sets have in the end.
    fn all_slots(&self) -> u32 {
        let of = |room| match room {
            Room::New(count) => count,
            Room::Held(range) => range.count,
            Room::OfCluster => 0,
        };
        self.rooms.into_iter().map(of).sum()
    }

    /// The ranges of its sets; `new` are those for the sets that need new slots.
    fn ranges(&self, new: &mut impl Iterator<Item = SlotRange>) -> [SlotRange; 2] {
        let [cluster, local] = self.rooms;
        let mut of = |room| match room {
            Room::Held(range) => Some(range),
            Room::New(_) => Some(new.next().unwrap_or_default()),
            Room::OfCluster => None,
        };
        let cluster = of(cluster).unwrap_or_default();
        [cluster, of(local).unwrap_or(cluster)]
    }
}

/// The ledger. An update costs time in proportion to the service, not to the tables.
#[derive(Debug)]
pub struct Ledger {
    pub(super) frontends: Frontends,
    pub(super) slots: Slots,
    pub(super) places: Places,
    /// How many source ranges the kernel has and is about to have.
    pub(super) sources: u32,
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
            sources: 0,
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
        let mut new = self.make_room(service, &steps)?.into_iter();

        let mut outcome = Outcome::default();
        self.wait(&rank, lost, &mut outcome);
        let mut installed = self.services.remove(service).unwrap_or_default();
        let mut next = Vec::with_capacity(steps.len());
        for step in steps {
            let ranges = step.ranges(&mut new);
            let port = match installed.iter().position(|port| port.is(step.port)) {
                Some(index) => installed.swap_remove(index),
                None => self.new_port(service, step.port),
            };
            next.push(self.install(service, port, step, ranges, &mut outcome));
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
            port.frontends.retain(|frontend| {
                let holder = self.holder(&frontend.key);
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
    pub fn usage(&self) -> [Usage; 4] {
        let (frontends, slots, places) = (&self.frontends, &self.slots, &self.places);
        [
            Usage { table: Table::Frontends, used: frontends.used(), capacity: frontends.size() },
            Usage { table: Table::Slots, used: slots.used(), capacity: slots.size() },
            Usage { table: Table::Backends, used: places.size() - places.free(), capacity: places.size() },
            Usage { table: Table::Sources, used: self.sources, capacity: frontends.size() },
        ]
    }

    /// Takes all changes that have been decided, in one batch.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        self.room |= self.frontends.drain(&mut changes);
        self.room |= !changes.removed_sources.is_empty();
        self.sources = self.sources.saturating_sub(count(changes.removed_sources.len()));
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
                match self.holder(&frontend.key) {
                    Some(holder) if holder.1 != rank.1 && holder < *rank => {
                        lost.push((frontend.key, holder.1));
                    }
                    _ if claimed.insert(frontend.key) => frontends.push(*frontend),
                    _ => {}
                }
            }
            if !frontends.is_empty() {
                let current = installed.iter().find(|candidate| candidate.is(port));
                steps.push(Step::new(port, frontends, current));
            }
        }
        (steps, lost)
    }

    /// Sees that the steps find room, and takes a range of slots for each set that needs a new one.
    fn make_room(&mut self, service: &Key, steps: &[Step<'_>]) -> Result<Vec<SlotRange>, Full> {
        let installed = self.services.get(service).map_or(&[][..], Vec::as_slice);
        let (mut frontends, mut places, mut sources, mut before) = (0_usize, 0_usize, 0_usize, 0);
        for step in steps {
            frontends +=
                step.frontends.iter().filter(|frontend| self.frontends.needs_room(&frontend.key)).count();
            let current = installed.iter().find(|candidate| candidate.is(step.port));
            let known = |endpoint| current.is_some_and(|current| current.member(endpoint).is_some());
            let taking = step.port.members.iter().filter(|member| takes_connections(member.flags));
            places += taking.filter(|member| !known(&member.endpoint)).count();
            sources += step.port.sources.len();
            for current in current.into_iter() {
                before += current.ranges().iter().map(|range| range.count).sum::<u32>();
                sources = sources.saturating_sub(current.sources.len());
            }
        }
        let counts: Vec<u32> = steps.iter().flat_map(Step::new_slots).collect();
        let after: u32 = steps.iter().map(Step::all_slots).sum();
        // The last sixteenth is for services that only change: when they cannot move to another range,
        // connections go on being sent to endpoints that have left.
        let keep = |size: u32| if after > before { size / 16 } else { 0 };

        let size = self.frontends.size();
        if frontends > size.saturating_sub(self.frontends.used()) as usize {
            return Err(Full { table: Table::Frontends, capacity: size });
        }
        if sources > size.saturating_sub(self.sources) as usize {
            return Err(Full { table: Table::Sources, capacity: size });
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
            // Two that share an address need not share a port.
            let rest = key == FrontendKey::rest_of(key.endpoint().addr);
            if !rest && !before.contains(&key) {
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
            slots: Default::default(),
            members: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Brings a port to what the step says; `ranges` are those of its sets.
    fn install(
        &mut self,
        service: &Key,
        mut port: Port,
        step: Step<'_>,
        ranges: [SlotRange; 2],
        outcome: &mut Outcome,
    ) -> Port {
        let desired = step.port;
        let members = desired.members.iter().filter_map(|member| self.member(&port, member)).collect();
        let before = std::mem::replace(&mut port.members, members);
        self.move_slots(&mut port, ranges, &step);
        self.update_sources(&mut port, &desired.sources);

        let keys = step.frontends.iter().map(|frontend| frontend.key).collect();
        for key in std::mem::replace(&mut port.frontends, keys) {
            if !port.frontends.contains(&key) {
                self.give_up(&port, &key, outcome);
            }
        }
        for &model::Frontend { key, kind, flags } in &step.frontends {
            if let Some(loser) = self.holder(&key).filter(|holder| holder.1 != *service) {
                outcome.affected.push(loser.1);
            }
            let (inside, outside) = slots_of(ranges, flags);
            let mut frontend = Frontend::new(kind, port.id, inside).with_slots(inside, outside);
            (frontend.flags, frontend.affinity) = (flags, desired.affinity);
            frontend.algorithm = algorithm(desired, kind);
            self.frontends.set(key, frontend);
        }
        for member in before {
            if port.member(&member.endpoint).is_none() {
                self.leave(port.id, &member);
            }
        }
        port.created = desired.created;
        port
    }

    /// An endpoint that a port is to have, with its place. One that takes no connections and never did has
    /// none to go on with, and needs no place.
    fn member(&mut self, port: &Port, desired: &model::Member) -> Option<Member> {
        let &model::Member { endpoint, flags, .. } = desired;
        let (id, generation) = match port.member(&endpoint) {
            Some(member) if member.flags == flags => return Some(*member),
            Some(member) => (member.id, self.places.generation(member.id)),
            None if takes_connections(flags) => self.places.take()?,
            None => return None,
        };
        self.changes.backends.push((id, Backend::new(endpoint, port.id, generation, flags)));
        Some(Member { endpoint, id, flags })
    }

    /// Has the sets of a port in `ranges`, and frees those that it had before.
    fn move_slots(&mut self, port: &mut Port, ranges: [SlotRange; 2], step: &Step<'_>) {
        let before = port.ranges();
        let mut written = Vec::new();
        port.slots = [0, 1].map(|set| {
            let (range, permuted, shares) = (ranges[set], step.permuted[set], &step.shares[set]);
            // All of them have just got their place.
            let ids = shares.iter().filter_map(|(endpoint, _)| port.member(endpoint)).map(|member| member.id);
            let ids: Vec<BackendId> = ids.collect();
            if range.count > 0 && !before.contains(&range) && !written.contains(&range) {
                self.changes.slots.extend(range.indices().zip(contents(range, shares, &ids, permuted)));
                written.push(range);
            }
            let weights = shares.iter().map(|(_, weight)| *weight);
            let ids = ids.into_iter().zip(weights).collect();
            Slotted { range, ids, permuted, permutation: Vec::new() }
        });
        let now = port.ranges();
        before.into_iter().filter(|range| !now.contains(range)).for_each(|range| self.slots.retire(range));
    }

    fn update_sources(&mut self, port: &mut Port, desired: &[IpNet]) {
        let service = port.id;
        let mut sources: Vec<SourceRange> =
            desired.iter().map(|network| SourceRange::of(service, network)).collect();
        sources.sort_unstable();
        let before = std::mem::replace(&mut port.sources, sources);
        let new = port.sources.iter().filter(|range| !before.contains(range));
        let known = self.changes.sources.len();
        self.changes.sources.extend(new);
        self.sources += count(self.changes.sources.len() - known);
        self.changes.removed_sources.extend(before.iter().filter(|range| !port.sources.contains(range)));
    }

    fn uninstall(&mut self, mut port: Port, outcome: &mut Outcome) {
        for key in &port.frontends {
            self.give_up(&port, key, outcome);
        }
        port.ranges().into_iter().for_each(|range| self.slots.retire(range));
        for member in &port.members {
            self.leave(port.id, member);
        }
        self.update_sources(&mut port, &[]);
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
        let generation = self.places.generation(member.id);
        let backend = Backend::new(member.endpoint, service, generation, BackendFlags::NONE);
        self.changes.gone.push((member.id, backend));
        self.places.retire(member.id);
    }
}

/// How a port's backends are chosen at a frontend of `kind`. Other nodes have a ClusterIP of their own.
fn algorithm(port: &ServicePort, kind: FrontendKind) -> Algorithm {
    match port.maglev {
        Some(_) if kind != FrontendKind::CLUSTER_IP => Algorithm::MAGLEV,
        _ => Algorithm::RANDOM,
    }
}

/// Whether an endpoint is in a set, so that new connections may go to it.
fn takes_connections(flags: BackendFlags) -> bool {
    SETS.iter().any(|set| flags.has(*set))
}

/// A number of things, as the tables count them.
pub(super) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
