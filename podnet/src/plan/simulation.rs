//! Histories of services, carried out element by element on tables in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_common::abi::ServiceName;
use podnet_common::network::Network;
use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKey, FrontendKind,
    ServiceId, SlotRange,
};
use podnet_common::wire::{Addr, Be16, Endpoint, Family, Protocol};
use proptest::prelude::*;

use super::adopt::is_present;
use super::ledger::SETS;
use super::quarantine::REST;
use super::*;
use crate::changes::SourceRange;
use crate::cluster::model::{self, Member};

/// How many slots clients outside choose from by a hash.
const MAGLEV: u32 = 61;

/// The kernel's tables.
#[derive(Clone, Debug, Default)]
struct Tables {
    frontends: HashMap<FrontendKey, Frontend>,
    slots: BTreeMap<u32, BackendId>,
    backends: BTreeMap<BackendId, Backend>,
    names: BTreeMap<ServiceId, ServiceName>,
    sources: BTreeSet<SourceRange>,
    networks: ServiceNetworks,
    /// When a slot was last pointed at, and when a backend left.
    slot_used: HashMap<u32, Instant>,
    backend_left: HashMap<BackendId, Instant>,
}

/// Where a frontend leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// The service port's name.
    name: String,
    kind: FrontendKind,
    flags: FrontendFlags,
    affinity: u32,
    algorithm: Algorithm,
    inside: Endpoints,
    outside: Endpoints,
}

/// Endpoints with their places.
type Endpoints = BTreeMap<Endpoint, (BackendId, u32)>;

/// The same without what only the tables know, but with what the endpoints may be used for, and with whom the
/// frontend is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meaning {
    name: String,
    kind: FrontendKind,
    flags: FrontendFlags,
    affinity: u32,
    algorithm: Algorithm,
    inside: BTreeMap<Endpoint, BackendFlags>,
    outside: BTreeMap<Endpoint, BackendFlags>,
    sources: BTreeSet<(Addr, u8)>,
}

enum Write {
    Backend(BackendId, Backend),
    Slot(u32, BackendId),
    Name(ServiceId, ServiceName),
    Source(SourceRange),
    Networks(ServiceNetworks),
    RemoveSource(SourceRange),
    Frontend(FrontendKey, Frontend),
    RemoveFrontend(FrontendKey),
    Gone(BackendId, Backend),
    RemoveName(ServiceId),
}

/// The changes one by one, in the order in which the kernel edge carries them out.
fn writes(changes: Changes) -> Vec<Write> {
    let mut list: Vec<Write> = Vec::new();
    list.extend(changes.backends.into_iter().map(|(id, backend)| Write::Backend(id, backend)));
    list.extend(changes.slots.into_iter().map(|(slot, id)| Write::Slot(slot, id)));
    list.extend(changes.names.into_iter().map(|(id, name)| Write::Name(id, name)));
    list.extend(changes.sources.into_iter().map(Write::Source));
    list.extend(changes.frontends.into_iter().map(|(key, frontend)| Write::Frontend(key, frontend)));
    list.extend(changes.networks.map(Write::Networks));
    list.extend(changes.removed_frontends.into_iter().map(Write::RemoveFrontend));
    list.extend(changes.removed_sources.into_iter().map(Write::RemoveSource));
    list.extend(changes.gone.into_iter().map(|(id, backend)| Write::Gone(id, backend)));
    list.extend(changes.removed_names.into_iter().map(Write::RemoveName));
    list
}

/// A backend in its place, with other flags.
fn with_flags(mut backend: Backend, flags: BackendFlags) -> Backend {
    backend.flags = flags;
    backend
}

impl Tables {
    fn carry_out(&mut self, write: Write, now: Instant) {
        let rested = |since: Option<&Instant>| since.is_none_or(|since| now.duration_since(*since) >= REST);
        match write {
            Write::Backend(id, backend) => {
                let before = self.backends.insert(id, backend);
                if let Some(before) = before.filter(is_present) {
                    let same = with_flags(before, backend.flags);
                    assert!(is_present(&backend) && same == backend, "{id:?} is taken");
                    return;
                }
                assert!(id.0 > 0 && rested(self.backend_left.get(&id)), "{id:?} is used again too soon");
                assert!(before.is_none_or(|before| before.generation != backend.generation));
            }
            Write::Slot(slot, id) => {
                assert!(rested(self.slot_used.get(&slot)), "slot {slot} is used again too soon");
                self.slots.insert(slot, id);
            }
            Write::Name(id, name) => assert_eq!(self.names.insert(id, name), None),
            Write::Frontend(key, frontend) => {
                self.leave(&key, now);
                self.frontends.insert(key, frontend);
            }
            Write::RemoveFrontend(key) => {
                self.leave(&key, now);
                assert!(self.frontends.remove(&key).is_some());
            }
            Write::Gone(id, backend) => {
                let before = self.backends.insert(id, backend).unwrap();
                assert_eq!(before.gone(), backend, "only whether it serves may change");
                self.backend_left.insert(id, now);
            }
            Write::Source(range) => assert!(self.sources.insert(range), "{range:?} is there"),
            Write::RemoveSource(range) => assert!(self.sources.remove(&range), "{range:?} is not there"),
            Write::Networks(networks) => self.networks = networks,
            Write::RemoveName(id) => assert!(self.names.remove(&id).is_some()),
        }
    }

    fn leave(&mut self, key: &FrontendKey, now: Instant) {
        if let Some(frontend) = self.frontends.get(key) {
            let slots = frontend.ranges().into_iter().flat_map(SlotRange::indices);
            self.slot_used.extend(slots.map(|slot| (slot, now)));
        }
    }

    fn resolve(&self, key: &FrontendKey) -> Option<Target> {
        let frontend = self.frontends.get(key)?;
        let endpoints = |range: SlotRange| -> Endpoints {
            let one = |slot| {
                let id = self.slots[&slot];
                let backend = self.backends[&id];
                let ours = is_present(&backend) && backend.service == frontend.service;
                assert!(ours, "{key:?} leads astray");
                (backend.endpoint(), (id, backend.generation))
            };
            let endpoints: Endpoints = range.indices().map(one).collect();
            endpoints
        };
        let outside = endpoints(frontend.outside);
        Some(Target {
            name: PortName::decode(&self.names[&frontend.service]).unwrap().to_string(),
            kind: frontend.kind,
            flags: frontend.flags,
            affinity: frontend.affinity,
            algorithm: frontend.algorithm,
            inside: endpoints(frontend.inside),
            outside,
        })
    }

    /// Who may use a frontend that is for certain sources only.
    fn sources(&self, key: &FrontendKey) -> BTreeSet<(Addr, u8)> {
        let frontend = self.frontends.get(key).filter(|it| it.flags.has(FrontendFlags::SOURCE_RANGES));
        let Some(frontend) = frontend else { return BTreeSet::new() };
        let ours = self.sources.iter().filter(|range| range.service == frontend.service);
        ours.map(|range| (range.addr, range.length)).collect()
    }

    fn meaning(&self, key: &FrontendKey, target: Target) -> Meaning {
        let flags = |endpoints: Endpoints| {
            let one = |(endpoint, (id, _))| (endpoint, self.backends[&id].flags);
            endpoints.into_iter().map(one).collect()
        };
        Meaning {
            name: target.name,
            kind: target.kind,
            flags: target.flags,
            affinity: target.affinity,
            algorithm: target.algorithm,
            inside: flags(target.inside),
            outside: flags(target.outside),
            sources: self.sources(key),
        }
    }

    fn resolve_all(&self) -> BTreeMap<FrontendKey, Target> {
        self.frontends.keys().filter_map(|key| Some((*key, self.resolve(key)?))).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let ranges = self.frontends.values().flat_map(Frontend::ranges);
        let slots: BTreeSet<u32> = ranges.flat_map(SlotRange::indices).collect();
        let used = slots.into_iter().map(|slot| (slot, self.slots[&slot]));
        Snapshot {
            frontends: self.frontends.iter().map(|(key, frontend)| (*key, *frontend)).collect(),
            slots: used.collect(),
            backends: self.backends.iter().map(|(id, backend)| (*id, *backend)).collect(),
            names: self.names.iter().map(|(id, name)| (*id, *name)).collect(),
            sources: self.sources.iter().copied().collect(),
            networks: self.networks,
        }
    }
}

/// What is desired, and what a history has made of it so far.
struct World {
    capacity: Capacity,
    desired: BTreeMap<Key, Vec<ServicePort>>,
    tables: Tables,
    planner: Planner,
    now: Instant,
}

impl World {
    fn new(frontends: u32, slots: u32) -> Self {
        let capacity = Capacity { frontends, slots, ..Capacity::default() };
        Self {
            capacity,
            desired: BTreeMap::new(),
            tables: Tables::default(),
            planner: Planner::adopt(&capacity, &Snapshot::default()),
            now: Instant::now(),
        }
    }

    fn plan(&mut self, dirty: &[Key]) -> Plan {
        let desired = &self.desired;
        self.planner.plan(self.now, dirty.iter().cloned().collect(), |key| {
            desired.get(key).cloned().unwrap_or_default()
        })
    }

    fn restart(&mut self) -> Plan {
        self.planner = Planner::adopt(&self.capacity, &self.tables.snapshot());
        self.reconcile()
    }

    fn adopt_again(&mut self) -> Plan {
        self.planner.adopt_again(&self.capacity, &self.tables.snapshot());
        self.reconcile()
    }

    fn reconcile(&mut self) -> Plan {
        let desired = &self.desired;
        self.planner
            .reconcile(self.now, desired.keys().cloned(), |key| desired.get(key).cloned().unwrap_or_default())
    }

    /// Carries out the first `limit` writes of `changes`: at each of them, a frontend leads where it led
    /// before or where it leads in the end, and an endpoint that stays keeps its place.
    fn carry_out(&mut self, changes: Changes, limit: usize) {
        let before = self.tables.resolve_all();
        let mut end = self.tables.clone();
        writes(changes.clone()).into_iter().for_each(|write| end.carry_out(write, self.now));
        let after = end.resolve_all();
        let places = |targets: &BTreeMap<FrontendKey, Target>| -> BTreeMap<_, _> {
            let all = targets.iter().flat_map(|(key, target)| {
                let port = (target.name.clone(), key.protocol(), key.endpoint().addr.family());
                let endpoints = target.inside.iter().chain(&target.outside);
                endpoints.map(move |(endpoint, place)| ((port.clone(), *endpoint), *place))
            });
            all.collect()
        };
        let stayed = places(&after);
        for (member, place) in places(&before) {
            assert!(stayed.get(&member).is_none_or(|now| *now == place), "{member:?} changes places");
        }
        let sources_before: HashMap<_, _> =
            before.keys().map(|key| (*key, self.tables.sources(key))).collect();
        for write in writes(changes).into_iter().take(limit) {
            self.tables.carry_out(write, self.now);
            assert!(self.tables.frontends.len() <= self.capacity.frontends as usize);
            for key in before.keys().chain(after.keys()) {
                let current = self.tables.resolve(key);
                assert!(
                    current.as_ref() == before.get(key) || current.as_ref() == after.get(key),
                    "{key:?} leads neither where it did nor where it will"
                );
                let stays = before.get(key).zip(after.get(key)).is_some_and(|(a, b)| a.name == b.name);
                if stays && current.is_some_and(|it| it.flags.has(FrontendFlags::SOURCE_RANGES)) {
                    let (now, end) = (self.tables.sources(key), end.sources(key));
                    assert!(sources_before[key].intersection(&end).all(|it| now.contains(it)), "{key:?}");
                }
            }
        }
    }

    /// Where every frontend should lead, if there is room for all.
    fn expected(&self) -> BTreeMap<FrontendKey, Meaning> {
        let mut expected = BTreeMap::new();
        let mut services: Vec<_> = self.desired.iter().collect();
        services.sort_by_key(|(key, ports)| (ports.first().and_then(|port| port.created), (*key).clone()));
        for (service, ports) in services {
            for port in ports {
                let set = |local| -> BTreeMap<_, _> {
                    let set = SETS[usize::from(local)];
                    let members = port.members.iter().filter(|member| member.flags.has(set));
                    let none = members.clone().all(|member| member.weight == 0);
                    let members = members.filter(|member| none || member.weight > 0);
                    members.map(|member| (member.endpoint, member.flags)).collect()
                };
                let meaning = |frontend: &model::Frontend| Meaning {
                    name: PortName { service: service.clone(), port: port.port.clone() }.to_string(),
                    kind: frontend.kind,
                    flags: frontend.flags,
                    affinity: port.affinity,
                    algorithm: match port.maglev {
                        Some(_) if frontend.kind != FrontendKind::CLUSTER_IP => Algorithm::MAGLEV,
                        _ => Algorithm::RANDOM,
                    },
                    inside: set(frontend.flags.has(FrontendFlags::INSIDE_LOCAL)),
                    outside: set(frontend.flags.has(FrontendFlags::OUTSIDE_LOCAL)),
                    sources: match frontend.flags.has(FrontendFlags::SOURCE_RANGES) {
                        true => {
                            port.sources.iter().map(|net| (net.addr().into(), net.prefix_len())).collect()
                        }
                        false => BTreeSet::new(),
                    },
                };
                for frontend in &port.frontends {
                    expected.entry(frontend.key).or_insert_with(|| meaning(frontend));
                }
            }
        }
        expected
    }

    fn actual(&self) -> BTreeMap<FrontendKey, Meaning> {
        let targets = self.tables.resolve_all().into_iter();
        targets.map(|(key, target)| (key, self.tables.meaning(&key, target))).collect()
    }

    /// Checks that the slots of each set hold each endpoint as often as it weighs, or a permutation of them: that where
    /// a hash says which.
    fn check_slots(&self) {
        for (key, frontend) in &self.tables.frontends {
            let name = PortName::decode(&self.tables.names[&frontend.service]).unwrap();
            let of_service = &self.desired[&name.service];
            let is_owner = |port: &&ServicePort| {
                port.port == name.port && port.frontends.iter().any(|it| it.key == *key)
            };
            let port = of_service.iter().find(is_owner).unwrap();
            let local = [FrontendFlags::INSIDE_LOCAL, FrontendFlags::OUTSIDE_LOCAL];
            for (side, (range, local)) in frontend.ranges().into_iter().zip(local).enumerate() {
                let set = SETS[usize::from(frontend.flags.has(local))];
                let members = port.members.iter().filter(|member| member.flags.has(set));
                let none = members.clone().all(|member| member.weight == 0);
                let weight = |member: &Member| if none { 1 } else { member.weight };
                let all: Vec<_> = members.map(|it| (it.endpoint, weight(it))).filter(|it| it.1 > 0).collect();
                let divisor =
                    (1..=100).rev().find(|by| all.iter().all(|(_, weight)| weight % by == 0)).unwrap_or(1);
                let shares: Vec<_> =
                    all.into_iter().map(|(endpoint, weight)| (endpoint, weight / divisor)).collect();
                let sum: u32 = shares.iter().map(|(_, weight)| u32::from(*weight)).sum();
                let plain: Vec<_> = shares
                    .iter()
                    .flat_map(|(at, weight)| std::iter::repeat_n(*at, (*weight).into()))
                    .collect();
                let slots = maglev::permutation(maglev::size(MAGLEV, sum), &shares);
                let permuted: Vec<_> = slots.into_iter().map(|index| shares[index].0).collect();
                let slot = |slot| self.tables.backends[&self.tables.slots[&slot]].endpoint();
                let held: Vec<_> = range.indices().map(slot).collect();
                let hashed = side == 1 && frontend.algorithm == Algorithm::MAGLEV;
                assert!(
                    held == permuted || held == plain && (!hashed || plain.is_empty()),
                    "{key:?}: {held:?}"
                );
            }
        }
    }

    /// Deletes all services and waits: nothing may remain.
    fn drain(&mut self) {
        let all: Vec<Key> = self.desired.keys().cloned().collect();
        self.desired.clear();
        let plan = self.plan(&all);
        self.carry_out(plan.changes, usize::MAX);
        for _ in 0..2 {
            self.now += REST;
            assert_eq!(self.plan(&[]).changes, Changes::default());
        }
        assert_eq!(self.planner.usage().map(|usage| usage.used), [0; 4]);
        assert!(!self.planner.is_waiting());
        assert!(self.tables.frontends.is_empty() && self.tables.names.is_empty());
        assert!(self.tables.sources.is_empty());
        assert!(self.tables.backends.values().all(|backend| backend.flags == BackendFlags::NONE));
    }
}

fn endpoint(family: Family, host: u8, port: u16) -> Endpoint {
    let ip: IpAddr = match family {
        Family::V4 => [10, 0, 0, host].into(),
        Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into(),
    };
    Endpoint { addr: Addr::from(ip), port: Be16::new(port) }
}

/// Flags by the bits of a number.
fn flags<T>(bits: u8, all: &[T], none: T, with: impl Fn(T, T) -> T) -> T
where
    T: Copy,
{
    let set = all.iter().zip(0..).filter(|(_, bit)| bits & 1 << bit != 0);
    set.fold(none, |flags, (flag, _)| with(flags, *flag))
}

fn frontend_flags(bits: u8) -> FrontendFlags {
    let all = [
        FrontendFlags::INSIDE_LOCAL,
        FrontendFlags::OUTSIDE_LOCAL,
        FrontendFlags::OUTSIDE_DROP,
        FrontendFlags::SOURCE_RANGES,
    ];
    flags(bits, &all, FrontendFlags::NONE, FrontendFlags::with)
}

fn backend_flags(bits: u8) -> BackendFlags {
    let all = [BackendFlags::IN_CLUSTER, BackendFlags::IN_LOCAL, BackendFlags::SERVING];
    flags(bits, &all, BackendFlags::PRESENT, BackendFlags::with)
}

/// A service's ports: some of four, of either family; the services contend for few frontends.
fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = |name: &'static str, protocol| {
        (
            any::<bool>(),
            prop::collection::btree_map(0_u8..8, (0_u8..3, 0_u8..16), 1..3),
            prop::collection::btree_map(0_u8..8, 0_u8..8, 0..6),
            0_u32..2,
            prop::option::weighted(0.2, Just(MAGLEV)),
            prop::collection::btree_set(1_u8..4, 0..2),
        )
            .prop_map(move |(v6, frontends, members, affinity, maglev, sources)| {
                let family = if v6 { Family::V6 } else { Family::V4 };
                let frontend = |(host, (kind, bits)): (u8, (u8, u8))| {
                    let endpoint = endpoint(family, host + 100, 80);
                    model::Frontend {
                        key: match protocol {
                            Protocol(0) => FrontendKey::rest_of(endpoint.addr),
                            protocol => FrontendKey::new(endpoint, protocol),
                        },
                        kind: FrontendKind(kind),
                        flags: frontend_flags(bits),
                    }
                };
                let member = |(host, bits)| Member {
                    endpoint: endpoint(family, host, 80),
                    flags: backend_flags(bits),
                    weight: if bits & 8 == 0 { 1 } else { host % 4 },
                };
                let source = |host| IpNet::from(endpoint(family, host, 80).addr.to_ip());
                ServicePort {
                    port: name.into(),
                    protocol,
                    family,
                    created: None,
                    frontends: frontends.into_iter().map(frontend).collect(),
                    members: members.into_iter().map(member).collect(),
                    affinity,
                    maglev,
                    sources: sources.into_iter().map(source).collect(),
                }
            })
    };
    let ports = (
        prop::option::of(port("a", Protocol::TCP)),
        prop::option::of(port("b", Protocol::UDP)),
        prop::option::of(port("", Protocol::TCP)),
        prop::option::of(port("", Protocol(0))),
        prop::option::of(0_i64..3),
    );
    ports.prop_map(|(a, b, c, rest, created)| {
        let mut list: Vec<ServicePort> = [a, b, c, rest].into_iter().flatten().collect();
        list.iter_mut().for_each(|port| port.created = created);
        list
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// The services' ports change together, and time passes before.
    Change(Vec<(u8, Vec<ServicePort>)>, u64),
    /// The agent is killed after so many writes, and starts again.
    Kill(Vec<(u8, Vec<ServicePort>)>, prop::sample::Index),
    /// The kernel refuses to go on after so many writes, and then takes them.
    Refuse(Vec<(u8, Vec<ServicePort>)>, prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = || prop::collection::vec((0_u8..4, ports()), 1..4);
    let step = prop_oneof![
        3 => (batch(), 0_u64..3000).prop_map(|(batch, wait)| Step::Change(batch, wait)),
        1 => (batch(), any::<prop::sample::Index>()).prop_map(|(batch, limit)| Step::Kill(batch, limit)),
        1 => (batch(), any::<prop::sample::Index>()).prop_map(|(batch, limit)| Step::Refuse(batch, limit)),
    ];
    prop::collection::vec(step, 1..12)
}

fn desire(world: &mut World, batch: Vec<(u8, Vec<ServicePort>)>) -> Vec<Key> {
    let change = |(service, ports): (u8, Vec<ServicePort>)| {
        let key = Key::new("ns", &format!("s{service}"));
        if ports.is_empty() {
            world.desired.remove(&key);
        } else {
            world.desired.insert(key.clone(), ports);
        }
        key
    };
    batch.into_iter().map(change).collect()
}

fn run(world: &mut World, step: Step) {
    match step {
        Step::Change(batch, wait) => {
            world.now += Duration::from_millis(wait);
            let dirty = desire(world, batch);
            let plan = world.plan(&dirty);
            world.carry_out(plan.changes, usize::MAX);
        }
        Step::Kill(batch, limit) => {
            let dirty = desire(world, batch);
            let plan = world.plan(&dirty);
            let limit = limit.index(writes(plan.changes.clone()).len() + 1);
            world.carry_out(plan.changes, limit);
            // An agent takes longer to start than packets are under way.
            world.now += REST;
            let plan = world.restart();
            world.carry_out(plan.changes, usize::MAX);
        }
        Step::Refuse(batch, limit) => {
            let dirty = desire(world, batch);
            let plan = world.plan(&dirty);
            let limit = limit.index(writes(plan.changes.clone()).len() + 1);
            world.carry_out(plan.changes, limit);
            // At once: packets may still be under way.
            let plan = world.adopt_again();
            world.carry_out(plan.changes, usize::MAX);
        }
    }
}

/// A number of cases that takes a second or two, or as many as `PROPTEST_CASES` says.
fn cases() -> ProptestConfig {
    let usual = ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => usual,
        None => ProptestConfig { cases: 64, ..usual },
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_history_ends_as_desired_without_a_gap_or_a_leak(history in steps()) {
        let mut world = World::new(1000, 10_000);
        for step in history {
            run(&mut world, step);
            prop_assert_eq!(world.actual(), world.expected());
            world.check_slots();
            let adopted = Planner::adopt(&world.capacity, &world.tables.snapshot()).reconcile(
                world.now,
                world.desired.keys().cloned(),
                |key| world.desired.get(key).cloned().unwrap_or_default(),
            );
            prop_assert_eq!(adopted.changes, Changes::default());
        }
        world.drain();
    }

    #[test]
    fn tables_without_room_keep_what_works(history in steps()) {
        let mut world = World::new(8, 520);
        for step in history {
            run(&mut world, step);
        }
        // What found no room finds it as soon as the others leave it.
        while let Some(key) = world.desired.keys().next_back().cloned().filter(|_| world.desired.len() > 1) {
            world.desired.remove(&key);
            let plan = world.plan(&[key]);
            world.carry_out(plan.changes, usize::MAX);
        }
        for _ in 0..4 {
            world.now += REST;
            let plan = world.plan(&[]);
            world.carry_out(plan.changes, usize::MAX);
        }
        prop_assert!(!world.planner.is_waiting());
        prop_assert_eq!(world.actual(), world.expected());
        world.check_slots();
        world.drain();
    }
}

const SERVING: BackendFlags = BackendFlags::PRESENT.with(BackendFlags::SERVING);

fn member(host: u8, flags: BackendFlags) -> Member {
    Member { endpoint: endpoint(Family::V4, host, 80), flags, weight: 1 }
}

fn service(frontend: u8, endpoints: &[u8], created: Option<i64>) -> Vec<ServicePort> {
    vec![ServicePort {
        port: "".into(),
        protocol: Protocol::TCP,
        family: Family::V4,
        created,
        frontends: vec![model::Frontend {
            key: FrontendKey::new(endpoint(Family::V4, frontend, 80), Protocol::TCP),
            kind: FrontendKind::CLUSTER_IP,
            flags: FrontendFlags::NONE,
        }],
        members: endpoints.iter().map(|&host| member(host, SERVING.with(BackendFlags::IN_CLUSTER))).collect(),
        affinity: 0,
        maglev: None,
        sources: Vec::new(),
    }]
}

fn set(world: &mut World, name: &str, ports: Vec<ServicePort>) -> Plan {
    let key = Key::new("ns", name);
    world.desired.insert(key.clone(), ports);
    let plan = world.plan(&[key]);
    world.carry_out(plan.changes.clone(), usize::MAX);
    plan
}

#[test]
fn a_change_writes_what_it_changes_and_no_more() {
    let mut world = World::new(10, 100);
    set(&mut world, "web", service(100, &[1, 2, 3], None));
    assert_eq!(set(&mut world, "web", service(100, &[1, 2, 3], None)).changes, Changes::default());
    let changes = set(&mut world, "web", service(100, &[1, 3, 4], None)).changes;
    assert_eq!((changes.backends.len(), changes.slots.len(), changes.gone.len()), (1, 3, 1));
    assert_eq!((changes.frontends.len(), changes.names.len()), (1, 0));
}

#[test]
fn a_draining_endpoint_goes_on_serving_what_it_has() {
    let mut world = World::new(10, 100);
    set(&mut world, "web", service(100, &[1, 2], None));
    let mut ports = service(100, &[1], None);
    ports[0].members.extend([member(2, SERVING), member(3, SERVING)]);
    let before = world.tables.backends.clone();
    let changes = set(&mut world, "web", ports.clone()).changes;
    assert_eq!(changes.gone, [], "it still serves");
    let [(id, backend)] = changes.backends[..] else {
        panic!("one that never took connections has none to go on with: {changes:?}")
    };
    assert_eq!(backend, with_flags(before[&id], SERVING), "only its flags change, in its place");
    ports[0].members[1].flags = BackendFlags::PRESENT;
    let changes = set(&mut world, "web", ports).changes;
    assert_eq!(changes.backends, [(id, with_flags(backend, BackendFlags::PRESENT))]);
    assert_eq!((changes.gone.len(), changes.frontends.len(), changes.slots.len()), (0, 0, 0));
    assert_eq!(set(&mut world, "web", service(100, &[1], None)).changes.gone.len(), 1);
}

#[test]
fn the_older_of_two_claims_holds_and_the_other_takes_over() {
    let mut world = World::new(10, 100);
    set(&mut world, "young", service(100, &[1], Some(2)));
    let plan = set(&mut world, "old", service(100, &[2], Some(1)));
    assert_eq!(world.actual(), world.expected());
    assert_eq!(
        plan.conflicts,
        [Conflict {
            frontend: "10.0.0.100:80".parse().unwrap(),
            protocol: Protocol::TCP,
            winner: Key::new("ns", "old"),
            loser: Key::new("ns", "young"),
        }]
    );
    assert_eq!(set(&mut world, "young", service(100, &[3], Some(2))).conflicts, [], "told once");

    world.desired.remove(&Key::new("ns", "old"));
    let plan = world.plan(&[Key::new("ns", "old")]);
    assert_eq!(plan.changes.removed_frontends, [], "it changes hands without a gap");
    world.carry_out(plan.changes, usize::MAX);
    assert_eq!(world.actual(), world.expected());
}

#[test]
fn a_full_table_names_itself_and_takes_the_service_when_there_is_room() {
    let mut world = World::new(1, 100);
    set(&mut world, "a", service(100, &[1], None));
    let plan = set(&mut world, "b", service(101, &[1], None));
    let full = Full { table: Table::Frontends, capacity: 1 };
    assert_eq!(plan.full, [(Key::new("ns", "b"), full)]);
    assert!(full.to_string().contains("--max-frontends"));
    assert!(world.planner.is_full(Table::Frontends) && !world.planner.is_full(Table::Slots));
    assert_eq!(set(&mut world, "b", service(101, &[1], None)).full, [], "told once");

    world.desired.remove(&Key::new("ns", "a"));
    let plan = world.plan(&[Key::new("ns", "a")]);
    world.carry_out(plan.changes, usize::MAX);
    let plan = world.plan(&[]);
    assert_eq!(plan.fit, [Key::new("ns", "b")]);
    world.carry_out(plan.changes, usize::MAX);
    assert_eq!(world.actual(), world.expected());
}

#[test]
fn what_was_told_is_not_told_again_when_the_tables_are_read_again() {
    let mut world = World::new(1, 100);
    set(&mut world, "a", service(100, &[1], None));
    assert_eq!(set(&mut world, "b", service(101, &[1], None)).full.len(), 1);
    assert_eq!(set(&mut world, "c", service(100, &[1], Some(1))).conflicts.len(), 1);
    let plan = world.adopt_again();
    assert_eq!((plan.full, plan.conflicts, plan.fit), Default::default());
    assert!(plan.changes.is_empty() && world.planner.is_waiting());

    // What waits and is deleted meanwhile is forgotten.
    world.desired.remove(&Key::new("ns", "b"));
    world.desired.remove(&Key::new("ns", "c"));
    world.adopt_again();
    assert!(!world.planner.is_waiting());
    world.drain();
}

#[test]
fn a_service_that_moves_in_a_full_table_gives_up_first() {
    let mut world = World::new(1, 100);
    set(&mut world, "a", service(100, &[1], None));
    assert_eq!(set(&mut world, "a", service(101, &[1], None)).full.len(), 1);
    let plan = world.plan(&[]);
    world.carry_out(plan.changes, usize::MAX);
    assert_eq!(world.actual(), world.expected());
}

#[test]
fn a_service_that_shrinks_finds_room_where_none_that_grows_does() {
    let mut world = World::new(10, 32);
    let hosts: Vec<u8> = (1..=28).collect();
    set(&mut world, "big", service(100, &hosts, None));
    set(&mut world, "small", service(101, &[1, 2], None));
    assert_eq!(set(&mut world, "small", service(101, &[1, 2, 3], None)).full.len(), 1);
    assert_eq!(set(&mut world, "small", service(101, &[1], None)).full.len(), 0);
    assert_eq!(world.actual(), world.expected());
}

/// A service with the Local policy for clients outside.
fn local_service(cluster: &[u8], local: &[u8]) -> Vec<ServicePort> {
    let mut ports = service(100, &[], None);
    ports[0].frontends[0].flags = FrontendFlags::OUTSIDE_LOCAL;
    let flag = |set: &[u8], host: u8, flag| if set.contains(&host) { flag } else { BackendFlags::NONE };
    let of = |host| flag(cluster, host, SETS[0]).with(flag(local, host, SETS[1]));
    ports[0].members = (0..10).map(|host| member(host, SERVING.with(of(host)))).collect();
    ports
}

fn ranges(world: &World) -> [SlotRange; 2] {
    world.tables.frontends.values().next().unwrap().ranges()
}

/// A load balancer's Service, whose clients outside choose by a hash.
fn hashed(endpoints: &[u8]) -> Vec<ServicePort> {
    let mut ports = service(100, endpoints, None);
    ports[0].maglev = Some(MAGLEV);
    let balancer = FrontendKey::new(endpoint(Family::V4, 101, 80), Protocol::TCP);
    let kind = FrontendKind::LOAD_BALANCER;
    ports[0].frontends.push(model::Frontend { key: balancer, kind, flags: FrontendFlags::NONE });
    ports
}

#[test]
fn who_chooses_by_a_hash_has_a_permutation_that_survives_a_restart() {
    let mut world = World::new(10, 1000);
    assert_eq!(set(&mut world, "web", hashed(&[1, 2, 3])).changes.slots.len(), MAGLEV as usize);
    let algorithms = |world: &World| -> BTreeSet<_> {
        world.tables.frontends.values().map(|it| (it.kind.name(), it.algorithm.0)).collect()
    };
    assert_eq!(algorithms(&world), [("ClusterIP", 0), ("LoadBalancer", 1)].into());
    assert_eq!(world.restart().changes, Changes::default());
    let changes = set(&mut world, "web", service(100, &[1, 2, 3], None)).changes;
    assert_eq!((changes.slots.len(), changes.backends.len()), (3, 0), "nobody outside");
    set(&mut world, "web", hashed(&[1, 2, 3]));

    // As a later version might have it, or an earlier one.
    let first = ranges(&world)[0].base;
    world.tables.slots.insert(first, world.tables.slots[&(first + 1)]);
    world.tables.slots.insert(first + 1, world.tables.slots[&(first + 2)]);
    let plan = world.restart();
    assert_eq!((plan.changes.slots.len(), plan.changes.backends.len()), (MAGLEV as usize, 0));
}

#[test]
fn two_sets_that_are_the_same_share_their_slots() {
    let mut world = World::new(10, 100);
    assert_eq!(set(&mut world, "web", local_service(&[1, 2], &[1, 2])).changes.slots.len(), 2);
    let [inside, outside] = ranges(&world);
    assert_eq!(inside, outside);
    assert_eq!(set(&mut world, "web", local_service(&[1, 2, 3], &[1, 2])).changes.slots.len(), 3);
    assert_eq!(ranges(&world)[1], outside, "the Local set is as it was");
    assert_eq!(set(&mut world, "web", local_service(&[1, 2], &[1, 2])).changes.slots.len(), 0);
    assert_eq!(ranges(&world), [outside; 2], "there are slots that hold it already");
    assert_eq!(set(&mut world, "web", local_service(&[1, 2], &[])).changes.slots.len(), 0);
    assert_eq!(ranges(&world), [outside, SlotRange::default()]);
    world.drain();
}

#[test]
fn a_set_that_did_not_change_keeps_its_slots() {
    let mut world = World::new(10, 100);
    set(&mut world, "web", local_service(&[1, 2, 3], &[1]));
    let [inside, outside] = ranges(&world);
    let changes = set(&mut world, "web", local_service(&[1, 2, 3], &[1, 2])).changes;
    assert_eq!((changes.slots.len(), changes.backends.len()), (2, 1));
    assert!(ranges(&world)[0] == inside && ranges(&world)[1] != outside);
}

#[test]
fn sources_that_are_left_over_are_removed() {
    let mut world = World::new(10, 100);
    let mut ports = service(100, &[1], None);
    ports[0].frontends[0].flags = FrontendFlags::SOURCE_RANGES;
    ports[0].sources = vec!["192.0.2.0/24".parse().unwrap(), "198.51.100.0/24".parse().unwrap()];
    set(&mut world, "web", ports.clone());
    let stale = SourceRange { service: ServiceId(99), addr: endpoint(Family::V4, 0, 0).addr, length: 8 };
    world.tables.sources.insert(stale);
    ports[0].sources.pop();
    world.desired.insert(Key::new("ns", "web"), ports);
    let changes = world.restart().changes;
    assert_eq!((changes.sources.len(), changes.removed_sources.len()), (0, 2));
    assert!(changes.removed_sources.contains(&stale));
    world.carry_out(changes, usize::MAX);
    assert_eq!(world.actual(), world.expected());
    world.drain();
}

#[test]
fn a_full_table_of_sources_keeps_a_service_as_it_was() {
    let mut world = World::new(2, 100);
    let mut ports = service(100, &[1], None);
    ports[0].frontends[0].flags = FrontendFlags::SOURCE_RANGES;
    let source = |host| IpNet::from(endpoint(Family::V4, host, 0).addr.to_ip());
    ports[0].sources = vec![source(1), source(2)];
    assert_eq!(set(&mut world, "web", ports.clone()).full, []);
    ports[0].sources = vec![source(3), source(4), source(5)];
    let plan = set(&mut world, "web", ports);
    assert_eq!(plan.full[0].1, Full { table: Table::Sources, capacity: 2 });
    assert!(plan.changes.is_empty());
}

#[test]
fn networks_are_written_when_they_change() {
    let mut world = World::new(10, 100);
    let mut networks = ServiceNetworks::default();
    world.planner.set_networks(networks);
    assert_eq!(world.plan(&[]).changes, Changes::default());
    networks.0[0] = Network::new(endpoint(Family::V4, 0, 0).addr, 16);
    world.planner.set_networks(networks);
    let changes = world.plan(&[]).changes;
    assert_eq!(changes.networks, Some(networks));
    world.carry_out(changes, usize::MAX);
    assert_eq!(world.plan(&[]).changes, Changes::default());
    world.restart();
    assert_eq!(world.plan(&[]).changes, Changes::default(), "the kernel has them");
    world.planner.set_networks(ServiceNetworks::default());
    assert_eq!(world.plan(&[]).changes.networks, Some(ServiceNetworks::default()));
}

#[test]
fn all_other_ports_of_an_address_are_no_conflict() {
    let mut world = World::new(10, 100);
    let rest = |created| {
        let mut ports = service(100, &[], Some(created));
        ports[0].protocol = Protocol(0);
        ports[0].frontends[0].key = FrontendKey::rest_of(endpoint(Family::V4, 100, 0).addr);
        ports
    };
    set(&mut world, "a", rest(1));
    assert_eq!(set(&mut world, "b", rest(2)).conflicts, []);
    world.desired.remove(&Key::new("ns", "a"));
    let plan = world.plan(&[Key::new("ns", "a")]);
    assert_eq!(plan.changes.removed_frontends, [], "the other service has them refused from now on");
    world.carry_out(plan.changes, usize::MAX);
    assert_eq!(world.actual(), world.expected());
}
