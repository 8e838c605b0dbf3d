//! The programs in the kernel and the core on the host do the same: the same bytes, the same verdict for
//! the same reason, the same flows left behind, over the same tables.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

#[path = "../../podnet-common/tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use podnet_common::abi;
use podnet_common::conntrack::{Direction, Flow, Time, Tuple, Way};
use podnet_common::fragment::{self, Fragment};
use podnet_common::host::{HostTables, WayOut, early_all, route_all};
use podnet_common::origin::MASQUERADE_PORTS;
use podnet_common::packet::{ETHERNET, IPV4, IPV6};
use podnet_common::route::Hook;
use podnet_common::service::{Backend, BackendId, FrontendKey};
use podnet_common::verdict::{Layer, Reason, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use support::arbitrary::worlds;
use tests::require;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How many tables are tried, and at most how many frames over each.
const TABLES: u32 = 800;
const FRAMES: usize = 30;
/// The sizes of the maps: as large as any of the arbitrary tables.
const SLOTS: u32 = 16;
const BACKENDS: u32 = 8;
const FLOWS: u32 = 4096;
/// How long packets that leave by a route may be: less than the longest of the frames.
const MTU: u16 = 1280;
/// Frames shorter than this are passed without a look, and so without a reason.
const SHORTEST: usize = 35;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Destination and source of all frames that leave.
const NEXT_HOP: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x99], [2, 0, 0, 0, 0, 0x98]];

/// Where a packet is met.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// By a classifier.
    Tc(Hook),
    /// By the program at network cards.
    Xdp,
}

/// The programs, loaded, and the maps they work on. Keys and values are bytes: that their types have no
/// padding is asserted in `podnet_common::abi`.
struct Kernel {
    programs: Ebpf,
    frontends: BpfHashMap<MapData, [u8; 24], [u8; 28]>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, [u8; 32]>,
    flows: BpfHashMap<MapData, [u8; 40], [u8; 64]>,
    filter: Array<MapData, u64>,
    /// The words of the filter that are set.
    filtered: HashMap<u32, u64>,
    affinity: BpfHashMap<MapData, [u8; 24], [u8; 12]>,
    fragments: BpfHashMap<MapData, [u8; 40], [u8; 12]>,
    networks: Array<MapData, [u8; 256]>,
    xdp_interfaces: BpfHashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    /// The programs that others leave packets to stay as long as their map.
    _next: [ProgramArray<MapData>; 2],
}

fn bytes<const N: usize>(value: &(impl IntoBytes + Immutable)) -> [u8; N] {
    value.as_bytes().try_into().expect("the size asserted in podnet_common::abi")
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> T {
    let map = ebpf.take_map(name).unwrap_or_else(|| panic!("there is no map {name}"));
    T::try_from(map).unwrap_or_else(|_| panic!("{name} is of another type"))
}

/// The program at network cards.
const XDP: &str = "from_net_xdp";

/// The program at a hook.
const fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => "from_pod",
        Hook::ToPod => "to_pod",
        Hook::FromNet => "from_net",
        Hook::ToNet => "to_net",
    }
}

fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a ProgramFd {
    let program = ebpf.program_mut(name).expect("the program is in the object");
    let program: &mut SchedClassifier = program.try_into().expect("a classifier");
    program.load().expect("the kernel accepts the program");
    program.fd().expect("it is loaded")
}

impl Kernel {
    fn load() -> Option<Self> {
        require::root()?;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/podnet-ebpf.o");
        let Ok(object) = fs::read(path) else {
            return require::lacking("there is no eBPF object: `cargo xtask build-ebpf` makes it");
        };
        let pins = Path::new("/sys/fs/bpf").join(format!("podnet-parity-{}", std::process::id()));
        fs::create_dir(&pins).expect("bpffs is mounted");
        let mut loader = EbpfLoader::new();
        loader.btf(None).default_map_pin_directory(&pins);
        let sizes = [
            (abi::FRONTENDS, 64),
            (abi::SLOTS, SLOTS),
            (abi::BACKENDS, BACKENDS),
            (abi::FLOWS, FLOWS),
            (abi::AFFINITY, FLOWS),
        ];
        for (name, size) in sizes {
            loader.map_max_entries(name, size);
        }
        let loaded = loader.load(&object);
        fs::remove_dir_all(&pins).expect("the pins are ours");
        let mut ebpf = loaded.expect("the object loads");
        let mut next: ProgramArray<MapData> = taken(&mut ebpf, abi::PROGRAMS);
        let mut xdp_next: ProgramArray<MapData> = taken(&mut ebpf, abi::XDP_PROGRAMS);
        for name in [XDP, "from_net_xdp_open"] {
            let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().expect("it is for XDP");
            program.load().expect("the kernel accepts the program");
            xdp_next.set(0, program.fd().unwrap(), 0).unwrap();
        }
        for hook in Hook::ALL {
            let name = program_of(hook);
            load(&mut ebpf, name);
            let rest = load(&mut ebpf, &format!("{name}_rest"));
            next.set(abi::Program::Rest(hook).index(), rest, 0).unwrap();
            let sctp = load(&mut ebpf, &format!("{name}_sctp"));
            next.set(abi::Program::Sctp(hook).index(), sctp, 0).unwrap();
            if hook != Hook::ToPod {
                let open = load(&mut ebpf, &format!("{name}_open"));
                next.set(abi::Program::Open(hook).index(), open, 0).unwrap();
                let renew = load(&mut ebpf, &format!("{name}_renew"));
                next.set(abi::Program::Renew(hook).index(), renew, 0).unwrap();
                let complain = load(&mut ebpf, &format!("{name}_complain"));
                next.set(abi::Program::Complain(hook).index(), complain, 0).unwrap();
            }
        }
        Some(Self {
            frontends: taken(&mut ebpf, abi::FRONTENDS),
            slots: taken(&mut ebpf, abi::SLOTS),
            backends: taken(&mut ebpf, abi::BACKENDS),
            flows: taken(&mut ebpf, abi::FLOWS),
            filter: taken(&mut ebpf, abi::FILTER),
            filtered: HashMap::new(),
            affinity: taken(&mut ebpf, abi::AFFINITY),
            fragments: taken(&mut ebpf, abi::FRAGMENTS),
            networks: taken(&mut ebpf, abi::NETWORKS),
            xdp_interfaces: taken(&mut ebpf, abi::XDP_INTERFACES),
            counters: taken(&mut ebpf, abi::COUNTERS),
            _next: [next, xdp_next],
            programs: ebpf,
        })
    }

    /// Makes the maps hold what `tables` hold.
    fn fill(&mut self, tables: &HostTables) {
        let old: Vec<_> = self.frontends.keys().map(Result::unwrap).collect();
        for key in old {
            self.frontends.remove(&key).unwrap();
        }
        for (key, frontend) in &tables.frontends {
            self.frontends.insert(bytes::<24>(key), bytes::<28>(frontend), 0).unwrap();
        }
        for (index, slot) in (0..).zip(&tables.slots) {
            self.slots.set(index, slot.0, 0).unwrap();
        }
        for (index, backend) in (0..).zip(&tables.backends) {
            self.backends.set(index, bytes::<32>(backend), 0).unwrap();
        }
        let old: Vec<_> = self.flows.keys().map(Result::unwrap).collect();
        for key in old {
            self.flows.remove(&key).unwrap();
        }
        // Members of tables before would have fragments wait that are not to a Service of these.
        for (index, _) in std::mem::take(&mut self.filtered) {
            self.filter.set(index, 0, 0).unwrap();
        }
        self.admit(tables);
        for key in self.affinity.keys().map(Result::unwrap).collect::<Vec<_>>() {
            self.affinity.remove(&key).unwrap();
        }
        for key in self.fragments.keys().map(Result::unwrap).collect::<Vec<_>>() {
            self.fragments.remove(&key).unwrap();
        }
        self.networks.set(0, bytes::<256>(&tables.networks), 0).unwrap();
        for (tuple, flow) in &tables.flows {
            self.flows.insert(bytes::<40>(tuple), bytes::<64>(flow), 0).unwrap();
        }
    }

    /// Makes members of the filter of all that `tables` hold, as user space does.
    fn admit(&mut self, tables: &HostTables) {
        for (index, word) in tables.filter() {
            if self.filtered.insert(index, word) != Some(word) {
                self.filter.set(index, word, 0).unwrap();
            }
        }
    }

    fn flows(&self) -> HashMap<Tuple, Flow> {
        self.flows
            .iter()
            .map(|entry| {
                let (tuple, flow) = entry.unwrap();
                (Tuple::read_from_bytes(&tuple).unwrap(), Flow::read_from_bytes(&flow).unwrap())
            })
            .collect()
    }

    fn count(&self, layer: Layer, reason: Reason) -> u64 {
        self.counters.get(&layer.counter(reason), 0).unwrap().iter().sum()
    }

    /// All counters, in the order of the table.
    fn counts(&self) -> Vec<u64> {
        let of = |layer: Layer| Reason::ALL.iter().map(move |reason| self.count(layer, *reason));
        Layer::ALL.into_iter().flat_map(of).collect()
    }

    /// Runs a program over a frame; its return code and the frame after it.
    fn run(&self, place: Place, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = match place {
            Place::Tc(hook) => {
                let program: &SchedClassifier =
                    self.programs.program(program_of(hook)).unwrap().try_into().unwrap();
                program.test_run(options)
            }
            Place::Xdp => {
                let program: &Xdp = self.programs.program(XDP).unwrap().try_into().unwrap();
                program.test_run(options)
            }
        };
        let result = result.unwrap_or_else(|error| panic!("{place:?} over {frame:02x?}: {error}"));
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        (result.return_value, out)
    }
}

/// Whether the kernel runs programs over `frame`: it wants a payload, and of IP a whole header.
fn runs(frame: &[u8]) -> bool {
    frame.len()
        >= match frame.get(12..ETHERNET) {
            Some([0x08, 0x00]) => ETHERNET + IPV4,
            Some([0x86, 0xdd]) => ETHERNET + IPV6,
            _ => ETHERNET + 1,
        }
}

/// The kernel's coarse monotonic clock, as the programs read it.
fn now() -> Time {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    Time::from_nanoseconds(seconds * 1_000_000_000 + nanoseconds)
}

const fn return_code(place: Place, verdict: Verdict) -> u32 {
    if matches!(place, Place::Xdp) {
        return match verdict {
            Verdict::Drop(_) => XDP_DROP,
            Verdict::Forward(..) => XDP_REDIRECT,
            _ => XDP_PASS,
        };
    }
    match verdict {
        Verdict::Pass(_)
        | Verdict::Translated(_)
        | Verdict::Rest
        | Verdict::Sctp
        | Verdict::Open
        | Verdict::Renew
        | Verdict::Complain
        | Verdict::Query
        | Verdict::Unanswered(_)
        | Verdict::Leave => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        Verdict::Return(_) | Verdict::Forward(..) | Verdict::ShortCut(..) | Verdict::Inject(..) => {
            TC_ACT_REDIRECT
        }
    }
}

/// Tables whose arrays are as long as the kernel's, full of zeroes where nothing was written, and whose
/// flows were last seen as long before this moment as they were before the tables' own.
fn as_in_the_kernel(mut tables: HostTables) -> HostTables {
    tables.flow_capacity = usize::MAX;
    tables.slots.resize(usize::try_from(SLOTS).unwrap(), BackendId::NOBODY);
    tables.backends.resize(usize::try_from(BACKENDS).unwrap(), Backend::default());
    let (then, now) = (tables.now, now());
    for flow in tables.flows.values_mut() {
        flow.seen = Time(now.0.saturating_sub(then.since(flow.seen)));
    }
    tables.now = now;
    tables.ways_out = ways_out();
    tables.mtu = MTU;
    tables
}

/// Has this thread in a network namespace of its own, with a route to everywhere.
fn set_up_routes() {
    unshare(CloneFlags::CLONE_NEWNET).expect("the test is root");
    let [next_hop, own] = NEXT_HOP.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    let commands = format!(
        "link set lo up\n\
                    link add out type veth peer name peer\n\
                    link set peer up\n\
                    link set out up mtu {MTU} address {own}\n\
                    addr add 192.0.2.1/24 dev out\n\
                    addr add 2001:db8::1/64 dev out nodad\n\
                    neigh add 192.0.2.2 lladdr {next_hop} dev out\n\
                    neigh add 2001:db8::2 lladdr {next_hop} dev out\n\
                    route add default via 192.0.2.2\n\
                    route add default via 2001:db8::2\n"
    );
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
    ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
    for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(sysctl), "1").expect("the namespace is ours");
    }
}

/// The routes that [`set_up_routes`] has made.
fn ways_out() -> Vec<WayOut> {
    let interface = if_nametoindex("out").expect("it was made");
    let sources = ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()];
    sources.map(|source| WayOut { interface, source: source.into() }).to_vec()
}

/// The random numbers that the kernel may have drawn for `frame`: each slot of the frontend, unless the client
/// is remembered, and the source port that it was given, which `flows` tell.
fn draws(place: Place, frame: &Vec<u8>, tables: &HostTables, flows: &HashMap<Tuple, Flow>) -> Vec<Vec<u32>> {
    let packet = match fragment::parse(frame) {
        Ok(Fragment::Whole(packet) | Fragment::First(packet, _)) => packet,
        _ => return vec![vec![]],
    };
    let protocol = packet.tuple.protocol();
    let port = flows.get(&packet.tuple).map_or(0, |flow| {
        let port = flow.to(protocol).source().port.get();
        let first = *MASQUERADE_PORTS.start();
        if matches!(flow.way, Way::MASQUERADE | Way::NODE) && port >= first {
            // The smallest number that chooses the port.
            let ports = u64::from(u16::MAX - first) + 1;
            u32::try_from((u64::from(port - first) << 32).div_ceil(ports)).unwrap()
        } else {
            port.into()
        }
    });
    let destination = packet.tuple.destination();
    let keys = [FrontendKey::new(destination, protocol), FrontendKey::rest_of(destination.addr)];
    let frontend = keys.iter().find_map(|key| tables.frontends.get(key));
    let count = frontend.map_or(0, |frontend| match place {
        Place::Tc(Hook::FromNet) | Place::Xdp => frontend.outside.count,
        _ => frontend.inside.count,
    });
    // The smallest number that chooses the slot.
    let slots = (0..count.max(1))
        .map(|slot| vec![u32::try_from((u64::from(slot) << 32).div_ceil(count.max(1).into())).unwrap()]);
    std::iter::once(Vec::new())
        .chain(slots)
        .map(|mut draws| {
            draws.extend([port; 17]);
            draws
        })
        .collect()
}

/// Runs `frame` through the kernel and the host, which must agree; returns why the verdict was given.
fn compare(
    kernel: &Kernel,
    place: Place,
    sent: &[u8],
    tables: &mut HostTables,
) -> Result<Option<Reason>, TestCaseError> {
    let sent = sent.to_vec();
    let counted = kernel.counts();
    let before = now();
    let (code, bytes) = kernel.run(place, &sent);
    let after = now();
    let flows = kernel.flows();

    let mut tried = Vec::new();
    for draws in draws(place, &sent, tables, &flows) {
        for now in [before, after] {
            let (mut frame, mut host) = (sent.clone(), tables.clone());
            host.now = now;
            host.drawn = draws.clone().into();
            let verdict = match place {
                Place::Tc(hook) => route_all(hook, &mut frame, &mut host),
                Place::Xdp => {
                    host.next_hop = Some(NEXT_HOP);
                    early_all(&mut frame, &mut host)
                }
            };
            host.next_hop = None;
            // The core alone has a fragment wait that ends before its payload.
            let unseen = matches!(place, Place::Tc(_)) && sent.len() < SHORTEST;
            let expected = if unseen { TC_ACT_UNSPEC } else { return_code(place, verdict) };
            if (expected, &frame, &host.flows) != (code, &bytes, &flows) {
                tried.push((verdict, frame, host.flows));
                continue;
            }
            host.drawn.clear();
            *tables = host;
            let mut expected = counted;
            // What is left to the stack is counted there.
            let decided = !unseen && verdict != Verdict::Leave;
            if decided {
                let layer = if matches!(place, Place::Xdp) { Layer::Xdp } else { Layer::Stack };
                expected[layer.counter(verdict.reason()) as usize] += 1;
            }
            prop_assert_eq!(kernel.counts(), expected, "{:?} is counted", verdict);
            return Ok(decided.then(|| verdict.reason()));
        }
    }
    let (verdict, frame, host) = &tried[0];
    let counts = kernel.counts().into_iter().zip(counted);
    let reasons: Vec<&Reason> = Reason::ALL
        .iter()
        .cycle()
        .zip(counts)
        .filter(|(_, (after, before))| after != before)
        .map(|(reason, _)| reason)
        .collect();
    Err(TestCaseError::fail(format!(
        "{place:?} of {sent:02x?}\nin the kernel: {code} {reasons:?} {bytes:02x?}\n{flows:#?}\n\
         on the host, by one of {} possible draws: {verdict:?} {frame:02x?}\n{host:#?}",
        tried.len(),
    )))
}

/// Has the kernel and the host look at the same frames at `places`, over tables that `adapt` has changed: which must
/// meet each of `reasons`, for a comparison is worth what it has met.
fn agree(tables: u32, places: impl Strategy<Value = Place>, adapt: fn(&mut HostTables), reasons: &[Reason]) {
    let Some(mut kernel) = Kernel::load() else { return };
    set_up_routes();
    kernel.xdp_interfaces.insert(ways_out()[0].interface, 1, 0).unwrap();
    let kernel = RefCell::new(kernel);
    let seen = RefCell::new(HashMap::<Option<Reason>, u32>::new());
    let worlds = (worlds(1..FRAMES), proptest::collection::vec(places, FRAMES));
    let config = Config { failure_persistence: None, max_shrink_iters: 2000, ..support::cases(tables) };
    let result = TestRunner::new(config).run(&worlds, |((tables, frames), places)| {
        let mut kernel = kernel.borrow_mut();
        let mut tables = as_in_the_kernel(tables);
        adapt(&mut tables);
        kernel.fill(&tables);
        for (place, frame) in places.into_iter().zip(frames).filter(|(_, frame)| runs(frame)) {
            kernel.admit(&tables);
            let reason = compare(&kernel, place, &frame, &mut tables)?;
            *seen.borrow_mut().entry(reason).or_default() += 1;
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, ((tables, frames), places))) => {
            panic!("{reason}\nafter the frames {frames:02x?}\nin {places:?}\nover {tables:#?}")
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    let seen = seen.into_inner();
    println!("{} frames: {seen:?}", seen.values().sum::<u32>());
    for reason in reasons {
        assert!(seen.contains_key(&Some(*reason)), "no frame met {reason:?}");
    }
}

#[test]
fn kernel_and_host_agree() {
    let places = prop_oneof![
        3 => Just(Place::Tc(Hook::FromPod)),
        1 => Just(Place::Tc(Hook::ToPod)),
        2 => Just(Place::Tc(Hook::FromNet)),
        1 => Just(Place::Tc(Hook::ToNet)),
    ];
    let reasons = [
        Reason::NotIp,
        Reason::OtherProtocol,
        Reason::Truncated,
        Reason::Malformed,
        Reason::NotService,
        Reason::MidConnection,
        Reason::NewFlow,
        Reason::Established,
        Reason::Reply,
        Reason::Moved,
        Reason::NoEndpoints,
        Reason::NoPort,
        Reason::NoneLocal,
        Reason::BackendGone,
        Reason::SourceRange,
    ];
    agree(TABLES, places, |_| {}, &reasons);
}

#[test]
fn network_card_and_host_agree() {
    // Of flows between pods nothing is met there, and most of those whose backend is gone are to move.
    let from_outside = |tables: &mut HostTables| {
        let HostTables { flows, backends, .. } = tables;
        for flow in flows.values_mut() {
            flow.backend.generation = backends[flow.backend.id.0 as usize].generation;
            // Else most would be for the stack, which is to ask for their next hop.
            flow.seen = now();
            flow.way = match flow.state.direction() {
                Direction::Forward if flow.backend.id.0 % 2 == 0 => Way::OUTSIDE,
                _ => Way::MASQUERADE,
            };
        }
    };
    let reasons = [
        Reason::Established,
        Reason::Reply,
        Reason::NewFlow,
        Reason::Moved,
        Reason::NoneLocal,
        Reason::SourceRange,
    ];
    agree(TABLES / 2, Just(Place::Xdp), from_outside, &reasons);
}
