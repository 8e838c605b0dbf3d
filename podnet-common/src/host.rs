//! The doors to packets and state in plain memory: the core as tests, fuzzers and tools run it.

extern crate std;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::affinity::{Affinity, AffinityKey};
use crate::conntrack::{Flow, State, Time, Timeout, Timeouts, Tuple};
use crate::dns::name::{Freshness, NameEntry, NameKey, Zone};
use crate::dns::{self, Names};
use crate::early;
use crate::filter::Place;
use crate::fragment::{FragmentKey, FragmentPorts};
use crate::frame::{Frame, L4Patch, Mac, patch_field};
use crate::limit::Limit;
use crate::network::{Network, ServiceNetworks, Source};
use crate::packet::ETHERNET;
use crate::route::{self, Hook};
use crate::service::{
    Backend, BackendFlags, BackendId, Frontend, FrontendKey, FrontendKind, ServiceId, SlotRange,
};
use crate::socket::{Known, Peer, PeerKey, Sockets};
use crate::tables::{InsertError, NextHop, NoWay, Overwrite, Services, Tables};
use crate::verdict::Verdict;
use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// The flags of a backend that takes connections.
const IN_USE: BackendFlags = BackendFlags::PRESENT.with(BackendFlags::SERVING).with(BackendFlags::IN_CLUSTER);

/// A frame in plain memory, its checksums whole.
impl Frame for Vec<u8> {
    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T> {
        T::read_from_prefix(self.get(offset..)?).ok().map(|(value, _)| value)
    }

    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()> {
        value.write_to_prefix(self.get_mut(offset..)?).ok()
    }

    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()> {
        let field: Be16 = self.load(patch.offset)?;
        self.store(patch.offset, patch_field(field, patch))
    }

    fn longest(&self, _headers: usize) -> u16 {
        u16::try_from(self.len().saturating_sub(ETHERNET)).unwrap_or(u16::MAX)
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        Vec::resize(self, len, 0);
        Some(())
    }
}

/// What the programs at a hook do with a packet, one after the other.
pub fn route_all<F: Frame, T: Tables + Names>(hook: Hook, frame: &mut F, tables: &mut T) -> Verdict {
    let mut verdict = route::route(hook, frame, tables);
    loop {
        verdict = match verdict {
            Verdict::Rest => route::rest(hook, frame, tables),
            Verdict::Sctp => route::sctp(hook, frame, tables),
            Verdict::Open => route::open(hook, frame, tables),
            Verdict::Renew => route::renew(hook, frame, tables),
            Verdict::Complain => route::complain(frame, tables),
            Verdict::Query => dns::answer(frame, tables),
            Verdict::Unanswered(_) => route::unanswered(frame, tables),
            verdict => return verdict,
        };
    }
}

/// A frame in plain memory, as it is met at a network card.
struct AtCard<'a>(&'a mut Vec<u8>);

impl Frame for AtCard<'_> {
    const REFUSES: bool = false;

    fn load<T: FromBytes + Immutable + Copy>(&self, offset: usize) -> Option<T> {
        self.0.load(offset)
    }

    fn store<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Option<()> {
        self.0.store(offset, value)
    }

    fn patch_l4(&mut self, patch: &L4Patch) -> Option<()> {
        self.0.patch_l4(patch)
    }

    fn longest(&self, headers: usize) -> u16 {
        self.0.longest(headers)
    }

    fn resize(&mut self, _len: usize) -> Option<()> {
        None
    }
}

/// What the programs at a network card do with a packet, one after the other.
pub fn early_all<T: Tables>(frame: &mut Vec<u8>, tables: &mut T) -> Verdict {
    let mut frame = AtCard(frame);
    match early::early(&mut frame, tables) {
        Verdict::Open => early::open(&mut frame, tables),
        verdict => verdict,
    }
}

/// How packets leave the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// By which interface.
    pub interface: u32,
    /// The node's own address there.
    pub source: Addr,
}

/// The tables that queries are answered from, in plain memory.
#[derive(Clone, Debug, Default)]
pub struct HostNames {
    /// The cluster's domain.
    pub zone: Option<Zone>,
    /// Where its DNS is.
    pub servers: HashSet<Endpoint>,
    /// Whom answers are given to.
    pub clients: HashSet<Addr>,
    /// The table of names.
    pub entries: HashMap<NameKey, NameEntry>,
    /// For how long they are all that there are.
    pub freshness: Freshness,
}

/// All tables of the kernel in plain memory, and the clock and the dice beside them.
#[derive(Clone, Debug)]
pub struct HostTables {
    /// The frontend table.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The slot table: an array, as in the kernel.
    pub slots: Vec<BackendId>,
    /// The backend table: an array too, whose place 0 is nobody's.
    pub backends: Vec<Backend>,
    /// The flow table.
    pub flows: HashMap<Tuple, Flow>,
    /// How many entries the flow table takes.
    pub flow_capacity: usize,
    /// The peer table.
    pub peers: HashMap<PeerKey, Peer>,
    /// How many entries the peer table takes.
    pub peer_capacity: usize,
    /// The affinity table.
    pub affinities: HashMap<AffinityKey, Affinity>,
    /// The fragment table.
    pub fragments: HashMap<FragmentKey, FragmentPorts>,
    /// The source ranges of service ports: those whose addresses share their first bits, as many as the
    /// number says in their own family.
    pub sources: Vec<(Source, u8)>,
    /// The networks that ClusterIPs are taken from.
    pub networks: ServiceNetworks,
    /// The interface at which packets are met.
    pub interface: u32,
    /// How packets leave the node: those of a family by the first with a source of that family.
    pub ways_out: Vec<WayOut>,
    /// How long packets that leave the node may be.
    pub mtu: u16,
    /// The addresses of the frames in which they leave it, destination and source, if podnet is to write them.
    pub next_hop: Option<[Mac; 2]>,
    /// How many refusals were sent, and how many fragments have begun to wait.
    pub limit: Limit,
    /// Whether packets may go past the node's stack.
    pub short_cuts: bool,
    /// What queries are answered from; those of pods are if there is a zone.
    pub names: HostNames,
    /// Lifetimes other than the usual ones.
    pub timeouts: Vec<(Timeout, u32)>,
    /// The cookie of the socket that sends the packet at hand.
    pub cookie: u64,
    /// The time.
    pub now: Time,
    /// The next random numbers; after them it is [`seed`](Self::seed)'s turn.
    pub drawn: VecDeque<u32>,
    /// What random numbers are made of.
    pub seed: u64,
    services: u32,
}

impl Default for HostTables {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            slots: Vec::new(),
            backends: std::vec![Backend::default()],
            flows: HashMap::new(),
            flow_capacity: usize::MAX,
            peers: HashMap::new(),
            peer_capacity: usize::MAX,
            affinities: HashMap::new(),
            fragments: HashMap::new(),
            sources: Vec::new(),
            networks: ServiceNetworks::default(),
            interface: 1,
            ways_out: Vec::new(),
            mtu: u16::MAX,
            next_hop: None,
            limit: Limit::default(),
            short_cuts: false,
            names: HostNames::default(),
            timeouts: Vec::new(),
            cookie: 0,
            now: Time::default(),
            drawn: VecDeque::new(),
            seed: 0,
            services: 0,
        }
    }
}

impl HostTables {
    /// Empty tables, an hour after boot, with random numbers made of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { now: Time(Time::seconds(3600)), seed, ..Self::default() }
    }

    /// Makes `frontend` lead to `endpoints`, each a new backend with one slot; what it led to before stays
    /// as it is. Returns the backends in the order of `endpoints`.
    pub fn serve(
        &mut self,
        frontend: Endpoint,
        protocol: Protocol,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Vec<BackendId> {
        self.services += 1;
        let service = ServiceId(self.services);
        let ids: Vec<BackendId> = endpoints
            .into_iter()
            .map(|endpoint| {
                let id = BackendId(index(self.backends.len()));
                self.backends.push(Backend::new(endpoint, service, 1, IN_USE));
                id
            })
            .collect();
        self.point(frontend, protocol, service, &ids);
        ids
    }

    /// Makes `frontend` lead to `backends` from now on, by slots of its own.
    pub fn point(
        &mut self,
        frontend: Endpoint,
        protocol: Protocol,
        service: ServiceId,
        backends: &[BackendId],
    ) {
        let base = index(self.slots.len());
        self.slots.extend(backends);
        self.frontends.insert(
            FrontendKey::new(frontend, protocol),
            Frontend::new(
                FrontendKind::CLUSTER_IP,
                service,
                SlotRange { base, count: index(backends.len()) },
            ),
        );
    }

    /// Changes a backend in its place; one that does not exist stays so.
    pub fn change(&mut self, id: BackendId, change: impl FnOnce(Backend) -> Backend) {
        if let Some(backend) = self.backends.get_mut(place(id.0)) {
            *backend = change(*backend);
        }
    }

    /// The words of the filter that are not zero, as user space has set them by the time that tables
    /// hold this. Flows tell of frontends and backends that are no more.
    pub fn filter(&self) -> HashMap<u32, u64> {
        let mut words = HashMap::new();
        for place in self.places() {
            *words.entry(place.index).or_default() |= place.mask;
        }
        words
    }

    fn route(&self, to: &Tuple) -> Option<WayOut> {
        let family = to.destination().addr.family();
        self.ways_out.iter().copied().find(|out| out.source.family() == family)
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let left = self.backends.iter().filter(|backend| !backend.serving());
        let left = left.map(|backend| Place::of_frontend(backend.endpoint().addr));
        let frontends = self.frontends.keys().map(|key| Place::of_frontend(key.endpoint().addr)).chain(left);
        let backends = self.backends.iter().map(Backend::endpoint);
        let backends = backends.chain(self.flows.keys().map(|tuple| tuple.source()));
        let backends = backends.flat_map(|at| [Place::of_backend(at), Place::of_backends(at.addr)]);
        let flows = self.flows.keys().map(|tuple| Place::of_frontend(tuple.destination().addr));
        let node = self.ways_out.iter().map(|out| Place::of_frontend(out.source));
        frontends.chain(backends).chain(flows).chain(node)
    }

    /// Lets `seconds` pass.
    pub fn wait(&mut self, seconds: u32) {
        self.now = Time(self.now.0.saturating_add(Time::seconds(seconds)));
    }
}

impl Services for HostTables {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<BackendId> {
        self.slots.get(place(index)).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(place(id.0)).copied()
    }

    fn now(&self) -> Time {
        self.now
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.get(key).copied()
    }

    fn remember_client(&mut self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.insert(*key, *affinity);
    }

    /// Splitmix64, where no number was set.
    fn random(&mut self) -> u32 {
        if let Some(drawn) = self.drawn.pop_front() {
            return drawn;
        }
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }
}

impl Timeouts for HostTables {
    fn timeout(&self, which: Timeout) -> u32 {
        let set = self.timeouts.iter().find(|(timeout, _)| *timeout == which);
        set.map_or(which.usual(), |(_, units)| *units)
    }
}

impl Tables for HostTables {
    fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        self.flows.get(tuple).copied()
    }

    fn filter_word(&self, index: u32) -> u64 {
        self.places().filter(|place| place.index == index).fold(0, |word, place| word | place.mask)
    }

    fn insert_flow(&mut self, tuple: &Tuple, flow: &Flow, overwrite: Overwrite) -> Result<(), InsertError> {
        let full = self.flows.len() >= self.flow_capacity;
        match self.flows.entry(*tuple) {
            Entry::Occupied(_) if overwrite == Overwrite::No => Err(InsertError::Exists),
            Entry::Vacant(_) if full => Err(InsertError::Full),
            entry => {
                entry.insert_entry(*flow);
                Ok(())
            }
        }
    }

    fn in_service_network(&self, addr: Addr) -> bool {
        self.networks.contain(addr)
    }

    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        self.sources.iter().any(|(range, length)| {
            range.service() == service && Network::new(range.addr(), *length).contains(source)
        })
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn way_out(&self, to: &Tuple, length: u16) -> Result<NextHop, NoWay> {
        match self.route(to) {
            Some(_) if length > self.mtu => Err(NoWay::Mtu(self.mtu)),
            Some(out) => Ok(NextHop { interface: out.interface, addresses: self.next_hop }),
            None => Err(NoWay::Unreachable),
        }
    }

    fn own_address(&self, to: &Tuple) -> Option<Addr> {
        self.route(to).map(|out| out.source)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.get(key).copied()
    }

    fn remember_fragment(&mut self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.insert(*key, *ports);
    }

    fn note_wait(&mut self, key: &FragmentKey, before: Option<&FragmentPorts>, waiting: &FragmentPorts) {
        if self.fragments.get(key) == before {
            self.fragments.insert(*key, *waiting);
        }
    }

    fn led(&self, destination: Endpoint, protocol: Protocol) -> Option<Peer> {
        self.peer(&PeerKey::new(self.cookie, Known::Backend, destination, protocol))
    }

    fn may_wait(&mut self) -> bool {
        self.limit.take_wait(self.now)
    }

    fn may_refuse(&mut self) -> bool {
        self.limit.take_refusal(self.now)
    }

    fn short_cuts(&self) -> bool {
        self.short_cuts
    }

    fn answers_names(&self) -> bool {
        self.names.zone.is_some()
    }

    fn note_backend(&mut self, tuple: &Tuple, interface: u32) {
        if let Some(flow) = self.flows.get_mut(tuple) {
            flow.backend_interface = interface;
        }
    }

    fn remove_flow(&mut self, tuple: &Tuple) {
        self.flows.remove(tuple);
    }

    fn touch_flow(&mut self, tuple: &Tuple, progress: State, now: Time) -> bool {
        self.flows.get_mut(tuple).is_some_and(|flow| {
            flow.state = flow.state.with_progress_of(progress);
            flow.seen = now;
            true
        })
    }
}

impl Names for HostTables {
    fn zone(&self) -> Zone {
        self.names.zone.unwrap_or(Zone::NONE)
    }

    fn is_name_server(&self, endpoint: Endpoint) -> bool {
        self.names.servers.contains(&endpoint)
    }

    fn is_name_client(&self, addr: Addr) -> bool {
        self.names.clients.contains(&addr)
    }

    fn name(&self, key: &NameKey) -> Option<NameEntry> {
        self.names.entries.get(key).copied()
    }

    fn freshness(&self) -> Freshness {
        self.names.freshness
    }
}

impl Sockets for HostTables {
    fn peer(&self, key: &PeerKey) -> Option<Peer> {
        self.peers.get(key).copied()
    }

    fn remember(&mut self, key: &PeerKey, peer: &Peer) {
        if self.peers.len() < self.peer_capacity || self.peers.contains_key(key) {
            self.peers.insert(*key, *peer);
        }
    }
}

/// A place of a table that is far shorter than 2^32, as the core writes it.
#[expect(clippy::cast_possible_truncation, reason = "tables are as short as the kernel's")]
const fn index(place: usize) -> u32 {
    place as u32
}

/// The inverse of [`index`].
const fn place(index: u32) -> usize {
    index as usize
}
