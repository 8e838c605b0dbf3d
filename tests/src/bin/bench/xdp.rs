//! What a packet costs at a network card, in nanoseconds.
//!
//! The kernel runs a driver many times over one frame; it makes that the next flow's and leaves it to the program under
//! test (`podnet-ebpf/src/bench.rs`). What the driver takes by itself is measured in turns with each, and subtracted.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use clap::Args;
use nix::net::if_::if_nametoindex;
use nix::time::{ClockId, clock_gettime};
use podnet_common::abi;
use podnet_common::conntrack::{Flow, State, Time, Tuple, Way};
use podnet_common::filter::Place;
use podnet_common::packet::TcpFlags;
use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, BackendRef, Frontend, FrontendKey, FrontendKind, ServiceId,
    SlotRange,
};
use podnet_common::verdict::{Layer, Reason};
use podnet_common::wire::{Addr, Be16, Endpoint, Protocol};
use serde::Serialize;
use tests::lab::Lab;
use tests::node::Node;
use zerocopy::{Immutable, IntoBytes};

use crate::machine::{self, Machine};
use crate::report::{self, Aim};
use crate::stats::Summary;

/// Measure what a packet costs at a network card, beside the least that such a program can cost.
#[derive(Args)]
pub(crate) struct XdpBench {
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Few rounds and small tables: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/xdp.json")]
    output: PathBuf,
}

/// How many packets are timed at once.
const PACKETS: u32 = 1_000_000;
/// How many flows an agent's table has by default.
const FLOWS: u32 = 1 << 20;
/// The port of services and of their backends.
const PORT: u16 = 80;
/// How long frames are, and which return codes programs give (include/uapi/linux/bpf.h).
const LENGTH: usize = 96;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Nothing,
    FloorParse,
    FloorLookup,
    FloorFlow,
    Podnet,
}

impl Subject {
    const ALL: [Self; 5] =
        [Self::Nothing, Self::FloorParse, Self::FloorLookup, Self::FloorFlow, Self::Podnet];

    const fn program(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::FloorParse => "floor_parse",
            Self::FloorLookup => "floor_lookup",
            Self::FloorFlow => "floor_flow",
            Self::Podnet => "from_net_xdp_generic",
        }
    }
}

/// Whom packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A load balancer's address, served by a pod of this node.
    Local,
    /// One that is served elsewhere.
    Remote,
    /// The node, at a port that is no Service's.
    Node,
    /// Somebody else.
    Nobody,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    subject: Subject,
    to: To,
    v6: bool,
    services: u32,
    /// How many flows; 0: each packet opens one.
    flows: u32,
    /// What the program returns.
    code: u32,
    reason: Option<Reason>,
}

const HOT: u32 = 1;
const MANY: u32 = 1 << 17;
const MOST: u32 = 1 << 20;

/// The same in few words.
const fn case(name: &'static str, subject: Subject, to: To, flows: u32, code: u32) -> Case {
    let reason = match (subject, to) {
        (Subject::Podnet, To::Local | To::Remote) if flows == 0 => Some(Reason::NewFlow),
        (Subject::Podnet, To::Local | To::Remote) => Some(Reason::Established),
        _ => None,
    };
    Case { name, subject, to, v6: false, services: 1, flows, code, reason }
}

impl Case {
    const fn v6(self) -> Self {
        Self { v6: true, ..self }
    }

    const fn services(self, services: u32) -> Self {
        Self { services, ..self }
    }
}

const CASES: [Case; 19] = [
    case("floor: parse", Subject::FloorParse, To::Local, HOT, XDP_TX),
    case("floor: parse, one look-up", Subject::FloorLookup, To::Nobody, HOT, XDP_PASS),
    case("floor: hot flow", Subject::FloorFlow, To::Local, HOT, XDP_TX),
    case("floor: 128 k flows", Subject::FloorFlow, To::Local, MANY, XDP_TX),
    case("not ours", Subject::Podnet, To::Nobody, HOT, XDP_PASS),
    case("not ours, to the node", Subject::Podnet, To::Node, HOT, XDP_PASS),
    case("not ours, IPv6", Subject::Podnet, To::Nobody, HOT, XDP_PASS).v6(),
    case("hot flow", Subject::Podnet, To::Local, HOT, XDP_PASS),
    case("hot flow, IPv6", Subject::Podnet, To::Local, HOT, XDP_PASS).v6(),
    case("hot flow, 10,000 services", Subject::Podnet, To::Local, HOT, XDP_PASS).services(10_000),
    case("128 k flows", Subject::Podnet, To::Local, MANY, XDP_PASS),
    case("128 k flows, IPv6", Subject::Podnet, To::Local, MANY, XDP_PASS).v6(),
    case("128 k flows, 10,000 services", Subject::Podnet, To::Local, MANY, XDP_PASS).services(10_000),
    case("1 M flows", Subject::Podnet, To::Local, MOST, XDP_PASS),
    case("hot flow, sent on", Subject::Podnet, To::Remote, HOT, XDP_REDIRECT),
    case("hot flow, sent on, IPv6", Subject::Podnet, To::Remote, HOT, XDP_REDIRECT).v6(),
    case("128 k flows, sent on", Subject::Podnet, To::Remote, MANY, XDP_REDIRECT),
    case("new flow", Subject::Podnet, To::Local, 0, XDP_PASS),
    // One backend would run out of source ports.
    case("new flow, sent on, 10,000 services", Subject::Podnet, To::Remote, 0, XDP_REDIRECT).services(10_000),
];

/// The first of the addresses of each kind.
fn first(to: To, v6: bool, node: &Node) -> IpAddr {
    match (to, v6) {
        (To::Local, false) => Ipv4Addr::new(198, 18, 0, 0).into(),
        (To::Local, true) => Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, 0).into(),
        (To::Remote, false) => Ipv4Addr::new(198, 19, 0, 0).into(),
        (To::Remote, true) => Ipv6Addr::new(0xfd00, 0x198, 0x19, 0, 0, 0, 0, 0).into(),
        (To::Node, false) => node.v4().into(),
        (To::Node, true) => node.v6().into(),
        (To::Nobody, false) => Ipv4Addr::new(203, 0, 113, 77).into(),
        (To::Nobody, true) => Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 0x77).into(),
    }
}

/// The first of the clients' addresses, whose last 16 bits count.
fn clients(v6: bool) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(100, 64, 0, 0).into(),
        true => Ipv6Addr::new(0xfd00, 0x100, 0x64, 0, 0, 0, 0, 0).into(),
    }
}

/// The first of the backends' addresses.
fn backends(to: To, v6: bool) -> IpAddr {
    let net = if to == To::Local { 1 } else { 2 };
    match v6 {
        false => Ipv4Addr::new(10, 128 + net, 0, 0).into(),
        true => Ipv6Addr::new(0xfd00, 0x10, 0x128, net.into(), 0, 0, 0, 0).into(),
    }
}

fn offset(base: IpAddr, number: u32) -> IpAddr {
    match base {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + number).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(number)).into(),
    }
}

fn endpoint(base: IpAddr, number: u32, port: u16) -> Endpoint {
    Endpoint { addr: Addr::from(offset(base, number)), port: Be16::new(port) }
}

/// What the driver makes of frames, as it reads it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Course {
    frame: [u8; LENGTH],
    next: u64,
    mask: u64,
    services: u64,
    random: u32,
    v6: u32,
}

fn bytes<const N: usize>(value: &(impl IntoBytes + Immutable)) -> Result<[u8; N]> {
    value.as_bytes().try_into().with_context(|| format!("not {N} bytes"))
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("there is no map {name}"))?;
    T::try_from(map).ok().with_context(|| format!("{name} is of another type"))
}

/// The kernel's coarse monotonic clock, as the programs read it.
fn now() -> Result<Time> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    Ok(Time::from_nanoseconds(seconds * 1_000_000_000 + nanoseconds))
}

/// The programs, over tables of their own.
struct Bed {
    ebpf: Ebpf,
    node: Node,
    course: Array<MapData, [u8; 128]>,
    subject: ProgramArray<MapData>,
    counters: PerCpuArray<MapData, u64>,
    frontends: BpfHashMap<MapData, [u8; 24], [u8; 28]>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, [u8; 32]>,
    flows: BpfHashMap<MapData, [u8; 40], [u8; 64]>,
    filter: Array<MapData, u64>,
    filtered: HashMap<u32, u64>,
    /// The next backend, and the number of the next flow.
    backend: u32,
    next: u64,
    _open: ProgramArray<MapData>,
}

impl Bed {
    /// Loads them, with room for so many flows.
    fn load(node: &Node, name: &str, flows: u32) -> Result<Self> {
        let path = std::env::var_os("PODNET_BENCH_OBJECT").context("use `cargo xtask bench xdp`")?;
        let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let pins = node.lab().bpffs(name)?;
        fs::create_dir_all(&pins).with_context(|| format!("cannot create {}", pins.display()))?;
        let mut loader = EbpfLoader::new();
        loader.btf(None).default_map_pin_directory(&pins);
        for (name, size) in [
            (abi::FRONTENDS, 1 << 16),
            (abi::SLOTS, 1 << 16),
            (abi::BACKENDS, 1 << 16),
            (abi::FLOWS, 2 * flows),
        ] {
            loader.map_max_entries(name, size);
        }
        let mut ebpf = loader.load(&object)?;
        let mut open: ProgramArray<MapData> = taken(&mut ebpf, abi::XDP_PROGRAMS)?;
        for name in Subject::ALL.map(Subject::program).into_iter().chain(["driver"]) {
            program(&mut ebpf, name)?.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let left_to = program(&mut ebpf, "from_net_xdp_generic_open")?;
        left_to.load()?;
        open.set(0, left_to.fd()?, 0)?;
        let mut targets: BpfHashMap<MapData, u32, u32> = taken(&mut ebpf, abi::XDP_INTERFACES)?;
        targets.insert(node.place().netns.run(|| Ok(if_nametoindex("eth0")?))?, 1, 0)?;
        Ok(Self {
            node: node.clone(),
            course: taken(&mut ebpf, "COURSE")?,
            subject: taken(&mut ebpf, "SUBJECT")?,
            counters: taken(&mut ebpf, abi::COUNTERS)?,
            frontends: taken(&mut ebpf, abi::FRONTENDS)?,
            slots: taken(&mut ebpf, abi::SLOTS)?,
            backends: taken(&mut ebpf, abi::BACKENDS)?,
            flows: taken(&mut ebpf, abi::FLOWS)?,
            filter: taken(&mut ebpf, abi::FILTER)?,
            filtered: HashMap::new(),
            backend: 1,
            next: 0,
            _open: open,
            ebpf,
        })
    }

    fn admit(&mut self, place: Place) -> Result<()> {
        let word = self.filtered.entry(place.index).or_default();
        *word |= place.mask;
        Ok(self.filter.set(place.index, *word, 0)?)
    }

    /// Has services with a backend each.
    fn serve(&mut self, to: To, v6: bool, services: u32) -> Result<()> {
        let flags = [BackendFlags::PRESENT, BackendFlags::SERVING, BackendFlags::IN_CLUSTER];
        let local = if to == To::Local { BackendFlags::LOCAL } else { BackendFlags::NONE };
        let flags = flags.into_iter().fold(local, BackendFlags::with);
        for number in 0..services {
            let id = self.backend;
            self.backend += 1;
            let backend = endpoint(backends(to, v6), number, PORT);
            let at = endpoint(first(to, v6, &self.node), number, PORT);
            self.admit(Place::of_frontend(at.addr))?;
            self.admit(Place::of_backend(backend))?;
            self.backends.set(id, bytes::<32>(&Backend::new(backend, ServiceId(id), 1, flags))?, 0)?;
            self.slots.set(id, id, 0)?;
            let slots = SlotRange { base: id, count: 1 };
            let mut frontend = Frontend::new(FrontendKind::LOAD_BALANCER, ServiceId(id), slots);
            frontend.algorithm = Algorithm::MAGLEV;
            let key = bytes::<24>(&FrontendKey::new(at, Protocol::TCP))?;
            self.frontends.insert(key, bytes::<28>(&frontend)?, 0)?;
        }
        Ok(())
    }

    /// Remembers a case's flows, as open connections, the first backend being that of `base`.
    fn remember(&mut self, case: &Case, base: u32) -> Result<()> {
        let mut now = now()?;
        if case.to == To::Remote {
            // Once a second it is the stack's turn to send a packet on, which there is none here to do.
            now.0 += Time::seconds(3600);
        }
        // An answer has been seen.
        let state = State::new(false).opposite().after(TcpFlags(TcpFlags::ACK)).opposite();
        for number in 0..case.flows {
            let service = number % case.services;
            let port = 1024 + u16::try_from(number >> 16)?;
            let client = endpoint(clients(case.v6), number & 0xffff, port);
            let at = endpoint(first(case.to, case.v6, &self.node), service, PORT);
            let backend = endpoint(backends(case.to, case.v6), service, PORT);
            let (way, seen) = match case.to {
                To::Remote => (Way::MASQUERADE, endpoint(clients(case.v6), number & 0xffff, 61_000 + port)),
                _ => (Way::OUTSIDE, client),
            };
            let tuple = Tuple::between(client, at, Protocol::TCP);
            let to = Tuple::between(seen, backend, Protocol::TCP);
            let chosen = BackendRef { id: BackendId(base + service), generation: 1 };
            let flow = Flow::new(&to, chosen, state, now).on(way, 1, [0; 6]);
            let answers = flow.other(&tuple, state, now);
            self.flows.insert(bytes::<40>(&tuple)?, bytes::<64>(&flow)?, 0)?;
            self.flows.insert(bytes::<40>(&to.reply())?, bytes::<64>(&answers)?, 0)?;
        }
        Ok(())
    }

    /// How often the programs at network cards gave a reason.
    fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.counters.get(&Layer::Xdp.counter(reason), 0)?.iter().sum())
    }

    /// Nanoseconds a packet, the driver's included.
    fn time(&mut self, case: &Case, subject: Subject, packets: u32) -> Result<f64> {
        self.subject.set(0, program(&mut self.ebpf, subject.program())?.fd()?, 0)?;
        let frame = frame(case, &self.node)?;
        let course = Course {
            frame,
            next: self.next,
            mask: u64::from(case.flows.checked_sub(1).unwrap_or(u32::MAX >> 10)),
            services: case.services.into(),
            random: u32::from(case.flows > HOT),
            v6: case.v6.into(),
        };
        self.course.set(0, bytes(&course)?, 0)?;
        if subject == Subject::Podnet && case.flows == 0 {
            self.next += u64::from(packets);
        }
        let before = case.reason.map(|reason| self.count(reason)).transpose()?;
        let driver: &Xdp = self.ebpf.program("driver").context("there is no driver")?.try_into()?;
        let (elapsed, code) = self.node.place().netns.run(|| {
            let options =
                TestRunOptions { data_in: Some(&frame), repeat: packets, ..TestRunOptions::default() };
            let start = Instant::now();
            let result = driver.test_run(options)?;
            Ok((start.elapsed(), result.return_value))
        })?;
        if subject == case.subject {
            ensure!(code == case.code, "{}: the program returns {code}", case.name);
            if let (Some(reason), Some(before)) = (case.reason, before) {
                let met = self.count(reason)? - before;
                let all = u64::from(packets);
                ensure!(met * 1000 >= all * 999, "{}: {met} of {all} are {}", case.name, reason.label());
            }
        }
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(packets))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("there is no program {name}"))?.try_into()?)
}

/// A case's frame, of its first flow: its checksums are not looked at by anybody.
fn frame(case: &Case, node: &Node) -> Result<[u8; LENGTH]> {
    let (from, to) = (clients(case.v6), first(case.to, case.v6, node));
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u8::try_from(LENGTH - 14)?;
            frame.extend([0x08, 0, 0x45, 0, 0, length, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(from.octets().into_iter().chain(to.octets()));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u8::try_from(LENGTH - 54)?;
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 6, 64]);
            frame.extend(from.octets().into_iter().chain(to.octets()));
        }
        _ => {}
    }
    let flag = if case.flows == 0 { TcpFlags::SYN } else { TcpFlags::ACK };
    frame.extend([4, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flag, 1, 0, 0, 0, 0, 0]);
    frame.resize(LENGTH, 0);
    frame.try_into().ok().context("the frame is too long")
}

/// What was measured of a case.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    name: &'static str,
    /// How many instructions the program has, once the kernel has translated it.
    instructions: u32,
    /// Nanoseconds a packet, in each round, without the driver's.
    nanoseconds: Vec<f64>,
    summary: Summary,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    load_after: String,
    rounds: usize,
    packets: u32,
    figures: Vec<Figures>,
    aims: Vec<Aim>,
}

impl XdpBench {
    pub(crate) fn run(self) -> Result<()> {
        let machine = Machine::here();
        println!("{}", machine.line());
        let Some(lab) = Lab::start()? else { return Ok(()) };
        let node = lab.node("a")?;
        neighbours(&node)?;
        let chosen = |case: &&Case| self.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
        let shrink =
            |case: &Case| Case { flows: case.flows.min(if self.quick { 1 << 10 } else { MOST }), ..*case };
        let cases: Vec<Case> = CASES.iter().filter(chosen).map(shrink).collect();
        let (rounds, packets) = if self.quick { (1, PACKETS / 20) } else { (self.rounds, PACKETS) };
        let mut beds = [Bed::load(&node, "known", 2 * FLOWS)?, Bed::load(&node, "new", FLOWS)?];
        prepare(&mut beds, &cases)?;
        // The kernel, and the processor, begin slowly.
        for case in &cases {
            let bed = &mut beds[usize::from(case.flows == 0)];
            bed.time(case, case.subject, packets)?;
        }
        let mut measured = vec![Vec::new(); cases.len()];
        for round in 0..rounds {
            eprintln!("round {} of {rounds}", round + 1);
            for (case, values) in cases.iter().zip(&mut measured) {
                let bed = &mut beds[usize::from(case.flows == 0)];
                let driver = bed.time(case, Subject::Nothing, packets)?;
                values.push(bed.time(case, case.subject, packets)? - driver);
            }
        }
        let mut figures = Vec::new();
        for (case, nanoseconds) in cases.iter().zip(measured) {
            let program = program(&mut beds[0].ebpf, case.subject.program())?;
            let instructions = program.info()?.size_translated().unwrap_or_default() / 8;
            let summary = Summary::of(&nanoseconds);
            figures.push(Figures { name: case.name, instructions, nanoseconds, summary });
        }
        let aims = aims(&figures);
        println!("{}", table(&figures));
        println!("{}", report::aims(&aims));
        let load_after = machine::load();
        report::write(&self.output, &Report { machine, load_after, rounds, packets, figures, aims })
    }
}

/// Has the node know the next hop of those elsewhere, which nobody here answers for.
fn neighbours(node: &Node) -> Result<()> {
    node.place().netns.batch(
        "route add 10.130.0.0/16 via 172.18.0.200\nneigh replace 172.18.0.200 lladdr 02:00:00:00:00:c8 dev eth0\n\
         route add fd00:10:128:2::/64 via fd00:172:18::c8\nneigh replace fd00:172:18::c8 lladdr 02:00:00:00:00:c8 dev eth0\n",
    )
}

/// Fills the tables.
fn prepare(beds: &mut [Bed; 2], cases: &[Case]) -> Result<()> {
    for bed in beds.iter_mut() {
        for v6 in [false, true] {
            let node = first(To::Node, v6, &bed.node);
            bed.admit(Place::of_frontend(Addr::from(node)))?;
        }
    }
    let [known, new] = beds;
    for to in [To::Local, To::Remote] {
        new.serve(to, false, if to == To::Remote { 10_000 } else { 1 })?;
        for v6 in [false, true] {
            let base = known.backend;
            let mine =
                cases.iter().filter(|case| case.subject == Subject::Podnet && case.to == to && case.v6 == v6);
            let services = mine.clone().map(|case| case.services).max().unwrap_or(0);
            known.serve(to, v6, services)?;
            for services in [1, services] {
                let most =
                    mine.clone().filter(|case| case.services == services).max_by_key(|case| case.flows);
                most.map(|case| known.remember(case, base)).transpose()?;
            }
        }
    }
    for case in cases.iter().filter(|case| case.subject == Subject::FloorFlow) {
        // The floor's flows are written by its own first packets, which are no part of the case.
        let all = Case { subject: Subject::Nothing, ..*case };
        for _ in 0..20 {
            known.time(&all, Subject::FloorFlow, case.flows)?;
        }
    }
    if cases.iter().any(|case| case.flows == 0) {
        // Until the table is full, and each new flow costs an old one.
        let case = cases.iter().find(|case| case.flows == 0).context("there is one")?;
        new.time(case, Subject::Podnet, FLOWS + FLOWS / 8)?;
    }
    Ok(())
}

/// The median of a case.
fn of(figures: &[Figures], name: &str) -> Option<f64> {
    figures.iter().find(|figures| figures.name == name).map(|figures| figures.summary.median)
}

/// The floor by which figures of another machine are scaled.
const FLOOR: &str = "floor: parse, one look-up";

/// Katran's figures, measured elsewhere beside a floor of 46 ns, give what Katran would take here.
fn aims(figures: &[Figures]) -> Vec<Aim> {
    const FLOOR_THERE: f64 = 46.0;
    /// The case, Katran's figure there, and the aim.
    const KATRAN: [(&str, f64, f64); 5] = [
        ("hot flow", 137.0, 0.9),
        ("hot flow, IPv6", 133.0, 0.9),
        ("not ours", 62.0, 0.8),
        ("128 k flows", 334.0, 1.0),
        ("new flow", 1320.0, 0.9),
    ];
    let aim = |(name, katran, bound): (&str, f64, f64)| {
        let here = katran * of(figures, FLOOR)? / FLOOR_THERE;
        Some(Aim::at_most(format!("{name}, to Katran's {here:.0} ns"), bound, of(figures, name)? / here))
    };
    KATRAN.into_iter().filter_map(aim).collect()
}

fn table(figures: &[Figures]) -> comfy_table::Table {
    report::table(
        &["packet", "ns", "quartiles", "to one look-up", "instructions"],
        figures.iter().map(|it| {
            let floor = of(figures, FLOOR).unwrap_or(f64::NAN);
            let Summary { median, low, high } = it.summary;
            [
                it.name.to_owned(),
                format!("{median:.1}"),
                format!("{low:.1} to {high:.1}"),
                format!("{:.2}", median / floor),
                it.instructions.to_string(),
            ]
        }),
    )
}
