//! podnet's decisions against the executable semantics, in memory: objects through index, model and planner
//! into tables, and packets and socket calls over these.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use std::{env, thread};

use etherparse::PacketBuilder;
use podnet::changes::{Capacity, Changes, Snapshot};
use podnet::cluster::index::Index;
use podnet::cluster::model::{service_networks, service_ports};
use podnet::cluster::node::ProxySettings;
use podnet::cluster::object::{Key, Kind};
use podnet::cluster::{Event as Told, manifests};
use podnet::plan::Planner;
use podnet_common::host::{HostTables, WayOut, route_all};
use podnet_common::limit::Limit;
use podnet_common::network::Source as Range;
use podnet_common::route::Hook;
use podnet_common::service::{Backend, BackendId};
use podnet_common::socket::{self, Caller};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::Endpoint;
use podnet_common::{packet, wire};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use serde_json::{Value, json};
use tests::differential::generate;
use tests::differential::objects::{
    BACKENDS, NODES, Objects, Protocol, State, Step, advance, node_of, objects,
};
use tests::differential::scope::Scope;
use tests::differential::semantics::{
    Event, Expected, Network, Outcome, Probe, Source, Vantage, Way, expect, probes,
};
use tests::kubernetes::{NAMESPACE, zone};

const NODE: [IpAddr; 2] = [v4([172, 18, 0, 1]), v6([0xfd00, 0x172, 0x18, 0, 0, 0, 0, 1])];
const POD: [IpAddr; 2] = [v4([10, 244, 1, 2]), v6([0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2])];
const OUTSIDE: [IpAddr; 2] = [v4([172, 18, 0, 200]), v6([0xfd00, 0x172, 0x18, 0, 0, 0, 0, 200])];

const fn v4(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::from_octets(octets))
}

const fn v6(segments: [u16; 8]) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::from_segments(segments))
}

fn backends() -> Vec<[IpAddr; 2]> {
    let address = |backend: u8| {
        let node = if node_of(backend.into()) == 0 { 1 } else { 2 };
        let last = 10 + backend;
        [v4([10, 244, node, last]), v6([0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, last.into()])]
    };
    (0..BACKENDS).map(address).collect()
}

/// A node in memory.
struct Node {
    index: Index,
    planner: Planner,
    tables: HostTables,
    objects: Objects,
    backends: Vec<[IpAddr; 2]>,
    now: Instant,
    port: u16,
    /// Whether each Service's second slice is kept from podnet.
    misled: bool,
}

impl Node {
    fn new(misled: bool) -> Self {
        let mut node = Self {
            index: Index::new(ProxySettings { node: NODES[0].to_owned(), ..ProxySettings::default() }),
            planner: Planner::adopt(&Capacity::default(), &Snapshot::default()),
            tables: HostTables::new(1),
            objects: Objects::default(),
            backends: backends(),
            now: Instant::now(),
            port: 0,
            misled,
        };
        node.tables.ways_out = NODE.map(|address| WayOut { interface: 1, source: address.into() }).into();
        node.tell(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODES[0], "labels": {"topology.kubernetes.io/zone": zone(NODES[0])},
            },
            "status": {"addresses": NODE.map(|address| json!({"type": "InternalIP", "address": address}))},
        }));
        node.tell(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/108"]},
        }));
        node
    }

    /// Takes an object in; `false` if podnet has nothing to do with it.
    fn tell(&mut self, object: &Value) -> bool {
        let objects = manifests::parse(&object.to_string()).expect("an object");
        let any = !objects.is_empty();
        for object in objects {
            self.index.handle(Told::Apply(object));
        }
        any
    }

    fn put(&mut self, state: &State) {
        let mut target = objects(state, &self.backends);
        if self.misled {
            target.slices.retain(|name, _| !name.contains("-1-"));
        }
        for (name, status) in &target.statuses {
            let service = target.services.get_mut(name).expect("the Service of a status");
            service["status"] = json!({"loadBalancer": status});
        }
        let before = std::mem::replace(&mut self.objects, target.clone());
        self.follow(Kind::Service, &before.services, &target.services);
        self.follow(Kind::EndpointSlice, &before.slices, &target.slices);
        // What is no longer used may be used again.
        self.now += Duration::from_secs(5);
        let dirty = self.index.take_dirty();
        let plan = self.planner.plan(self.now, dirty, |key| service_ports(&self.index, key));
        assert!(plan.full.is_empty(), "{:?}", plan.full);
        self.carry_out(plan.changes);
    }

    fn follow(&mut self, kind: Kind, before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) {
        for (name, object) in now {
            if before.get(name) != Some(object) && !self.tell(object) {
                self.index.handle(Told::Delete(kind, Key::new(NAMESPACE, name)));
            }
        }
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            self.index.handle(Told::Delete(kind, Key::new(NAMESPACE, name)));
        }
    }

    fn carry_out(&mut self, changes: Changes) {
        let tables = &mut self.tables;
        for (id, backend) in changes.backends.into_iter().chain(changes.gone) {
            *place(&mut tables.backends, id.0, Backend::default()) = backend;
        }
        for (slot, id) in changes.slots {
            *place(&mut tables.slots, slot, BackendId(0)) = id;
        }
        tables.frontends.extend(changes.frontends);
        for key in changes.removed_frontends {
            tables.frontends.remove(&key);
        }
        for range in changes.removed_sources {
            let key = (Range::new(range.service, range.addr), range.length);
            tables.sources.retain(|source| *source != key);
        }
        tables.sources.extend(
            changes.sources.into_iter().map(|range| (Range::new(range.service, range.addr), range.length)),
        );
        tables.networks = service_networks(&self.index);
    }

    /// What many requests meet, each the first of its client.
    fn ask(&mut self, probe: &Probe, expected: &Expected, by_socket: bool) -> Outcome {
        let times = if expected.sticky { 6 } else { 30 * expected.outcome.len() };
        self.tables.affinities.clear();
        let mut outcome = Outcome::new();
        for _ in 0..times {
            self.tables.flows.clear();
            self.tables.peers.clear();
            outcome.insert(self.request(probe, by_socket));
        }
        outcome
    }

    fn request(&mut self, probe: &Probe, by_socket: bool) -> Event {
        let to = SocketAddr::new(probe.address, probe.port);
        let protocol = match probe.protocol {
            Protocol::Tcp => wire::Protocol::TCP,
            Protocol::Udp => wire::Protocol::UDP,
        };
        if by_socket {
            let caller = Process { on_node: probe.from == Vantage::Node };
            match socket::connect(&mut self.tables, &caller, to.into(), protocol) {
                socket::Verdict::Lead(endpoint, _) => {
                    return self.answer(probe, endpoint, self.address(probe));
                }
                socket::Verdict::Refuse(_) => return Event::Refusal,
                socket::Verdict::Pass => {}
            }
        }
        if probe.from == Vantage::Node && probe.way == Way::NodePort {
            // What a node sends to itself does not leave it.
            return Event::Refusal;
        }
        self.port = self.port.checked_add(1).unwrap_or(30_000).max(30_000);
        let from = SocketAddr::new(self.address(probe), self.port);
        let mut frame = opening(from, to, probe.protocol);
        let hook = match probe.from {
            Vantage::Pod | Vantage::Backend => Hook::FromPod,
            Vantage::Outside => Hook::FromNet,
            Vantage::Node => Hook::ToNet,
        };
        // All of a history's packets are sent at one moment; those of the kernel are not.
        self.tables.limit = Limit::default();
        match route_all(hook, &mut frame, &mut self.tables) {
            Verdict::Pass(_) if probe.way == Way::NodePort => Event::Refusal,
            Verdict::Pass(_) | Verdict::Drop(_) => Event::Silence,
            verdict if matches!(verdict.reason(), Reason::NoEndpoints | Reason::NoPort) => Event::Refusal,
            _ => match packet::parse(&frame) {
                Ok(packet) => {
                    let source = packet.tuple.source().addr.to_ip();
                    self.answer(probe, packet.tuple.destination(), source)
                }
                Err(reason) => Event::Failure(format!("{reason:?}")),
            },
        }
    }

    fn address(&self, probe: &Probe) -> IpAddr {
        let addresses = match probe.from {
            Vantage::Pod => &POD,
            Vantage::Backend => &self.backends[Vantage::BACKEND],
            Vantage::Node => &NODE,
            Vantage::Outside => &OUTSIDE,
        };
        of_family(addresses, SocketAddr::new(probe.address, probe.port))
    }

    fn answer(&self, probe: &Probe, to: Endpoint, client: IpAddr) -> Event {
        let address = to.addr.to_ip();
        let backend = self.backends.iter().position(|addresses| addresses.contains(&address));
        let Some(backend) = backend else { return Event::Failure(format!("sent to {address}")) };
        let source = if probe.from == Vantage::Backend && backend == Vantage::BACKEND {
            Source::Itself
        } else if NODE.contains(&client) {
            Source::Node
        } else if client == self.address(probe) {
            Source::Client
        } else {
            Source::Other(client)
        };
        Event::Answer { backend, port: to.port.get(), source }
    }
}

struct Process {
    on_node: bool,
}

impl Caller for Process {
    fn cookie(&self) -> u64 {
        1
    }

    fn netns(&self) -> u64 {
        1
    }

    fn on_node(&self) -> bool {
        self.on_node
    }
}

fn place<T: Clone>(table: &mut Vec<T>, index: u32, nothing: T) -> &mut T {
    let index = usize::try_from(index).expect("a table is in memory");
    if table.len() <= index {
        table.resize(index + 1, nothing);
    }
    &mut table[index]
}

fn of_family(addresses: &[IpAddr; 2], like: SocketAddr) -> IpAddr {
    addresses[usize::from(like.is_ipv6())]
}

/// The first packet from a client.
fn opening(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => unreachable!("both are of one family"),
    };
    let written = match protocol {
        Protocol::Tcp => ip.tcp(from.port(), to.port(), 1, 1000).syn().write(&mut frame, &[]),
        Protocol::Udp => ip.udp(from.port(), to.port()).write(&mut frame, b"who"),
    };
    written.expect("memory takes it");
    frame
}

/// The first thing in a history that is not as the semantics have it.
fn differs(scope: &Scope, history: &[Step], misled: bool) -> Option<String> {
    let (mut node, mut state, network) = (Node::new(misled), State::new(), Network { node: NODE });
    for step in history {
        let before = state.clone();
        advance(&mut state, step);
        node.put(&state);
        for probe in probes(scope, &network, &before, &state) {
            let expected = expect(&state, &probe);
            let by: &[bool] = match probe.from {
                Vantage::Pod | Vantage::Backend => &[false, true],
                Vantage::Node => &[true],
                Vantage::Outside => &[false],
            };
            for by_socket in by {
                let found = node.ask(&probe, &expected, *by_socket);
                if !expected.admits(&found) {
                    let layer = if *by_socket { "socket" } else { "packet" };
                    return Some(format!("{probe:?} by {layer}:\n{expected:?} expected,\n{found:?} found"));
                }
            }
        }
    }
    None
}

/// Goes through as many histories: others than those of another `part`, if all begin with one seed.
fn compare(cases: u32, part: u32, misled: bool) -> Result<(), TestError<Vec<Step>>> {
    let scope = if misled { Scope::plain() } else { Scope::compared() };
    let mut config = Config { cases, failure_persistence: None, ..Config::default() };
    if let RngSeed::Fixed(seed) = &mut config.rng_seed {
        *seed = seed.wrapping_mul(1000).wrapping_add(part.into());
    }
    let mut runner = TestRunner::new(config);
    runner.run(&generate::history(&scope), |history| match differs(&scope, &history, misled) {
        Some(difference) => Err(TestCaseError::fail(difference)),
        None => Ok(()),
    })
}

/// `PODNET_HISTORIES` says through how many; without it, few.
#[test]
fn semantics_hold_in_memory() {
    let histories: u32 = env::var("PODNET_HISTORIES").map_or(60, |text| text.parse().expect("a number"));
    let threads =
        thread::available_parallelism().map_or(1, |threads| u32::try_from(threads.get()).unwrap_or(1));
    thread::scope(|scope| {
        for part in 0..threads {
            scope.spawn(move || match compare(histories.div_ceil(threads), part, false) {
                Ok(()) => {}
                Err(TestError::Fail(difference, history)) => panic!("after {history:?}\n{difference}"),
                Err(error) => panic!("{error}"),
            });
        }
    });
    println!("{histories} histories, 0 differences");
}

/// The test can fail, and says why in few words.
#[test]
fn semantics_find_a_planted_difference() {
    let Err(TestError::Fail(_, history)) = compare(60, 0, true) else { panic!("a slice is not missed") };
    let services: Vec<_> = history.iter().flat_map(|step| step.values().flatten()).collect();
    assert!(services.len() == 1 && services[0].slices.len() == 2, "{history:?} is not small");
}
