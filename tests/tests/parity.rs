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
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use podnet_common::abi;
use podnet_common::conntrack::{Flow, Time, Tuple, Way};
use podnet_common::fragment::{self, Fragment};
use podnet_common::host::{HostTables, WayOut, route_all};
use podnet_common::origin::MASQUERADE_PORTS;
use podnet_common::packet::{ETHERNET, IPV4, IPV6};
use podnet_common::route::Hook;
use podnet_common::service::{Backend, BackendId, FrontendKey};
use podnet_common::verdict::{Reason, Verdict};
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
    counters: PerCpuArray<MapData, u64>,
    /// The programs that others leave packets to stay as long as their map.
    _next: ProgramArray<MapData>,
}

fn bytes<const N: usize>(value: &(impl IntoBytes + Immutable)) -> [u8; N] {
    value.as_bytes().try_into().expect("the size asserted in podnet_common::abi")
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> T {
    let map = ebpf.take_map(name).unwrap_or_else(|| panic!("there is no map {name}"));
    T::try_from(map).unwrap_or_else(|_| panic!("{name} is of another type"))
}

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
            counters: taken(&mut ebpf, abi::COUNTERS),
            _next: next,
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

    fn count(&self, reason: Reason) -> u64 {
        self.counters.get(&(reason as u32), 0).unwrap().iter().sum()
    }

    /// Runs a program over a frame; its return code and the frame after it.
    fn run(&self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &SchedClassifier = self.programs.program(program_of(hook)).unwrap().try_into().unwrap();
        let mut out = vec![0; 4096];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{} over {frame:02x?}: {error}", program_of(hook)));
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

const fn return_code(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass(_)
        | Verdict::Translated(_)
        | Verdict::Rest
        | Verdict::Sctp
        | Verdict::Open
        | Verdict::Renew
        | Verdict::Complain => TC_ACT_UNSPEC,
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
    let commands = format!(
        "link set lo up\n\
                    link add out type veth peer name peer\n\
                    link set peer up\n\
                    link set out up mtu {MTU}\n\
                    addr add 192.0.2.1/24 dev out\n\
                    addr add 2001:db8::1/64 dev out nodad\n\
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
fn draws(hook: Hook, frame: &Vec<u8>, tables: &HostTables, flows: &HashMap<Tuple, Flow>) -> Vec<Vec<u32>> {
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
    let count = frontend.map_or(0, |frontend| match hook {
        Hook::FromNet => frontend.outside.count,
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
    hook: Hook,
    sent: &[u8],
    tables: &mut HostTables,
) -> Result<Reason, TestCaseError> {
    let sent = sent.to_vec();
    let counted: Vec<u64> = Reason::ALL.iter().map(|reason| kernel.count(*reason)).collect();
    let before = now();
    let (code, bytes) = kernel.run(hook, &sent);
    let after = now();
    let flows = kernel.flows();

    let mut tried = Vec::new();
    for draws in draws(hook, &sent, tables, &flows) {
        for now in [before, after] {
            let (mut frame, mut host) = (sent.clone(), tables.clone());
            host.now = now;
            host.drawn = draws.clone().into();
            let verdict = route_all(hook, &mut frame, &mut host);
            // The core alone has a fragment wait that ends before its payload.
            let expected = if sent.len() < SHORTEST { TC_ACT_UNSPEC } else { return_code(verdict) };
            if (expected, &frame, &host.flows) != (code, &bytes, &flows) {
                tried.push((verdict, frame, host.flows));
                continue;
            }
            host.drawn.clear();
            *tables = host;
            let mut expected = counted;
            if sent.len() >= SHORTEST {
                expected[verdict.reason() as usize] += 1;
            }
            let counts: Vec<u64> = Reason::ALL.iter().map(|reason| kernel.count(*reason)).collect();
            prop_assert_eq!(counts, expected, "{:?} is counted", verdict);
            return Ok(verdict.reason());
        }
    }
    let (verdict, frame, host) = &tried[0];
    let reasons: Vec<&Reason> = Reason::ALL
        .iter()
        .zip(counted)
        .filter(|(reason, before)| kernel.count(**reason) != *before)
        .map(|(reason, _)| reason)
        .collect();
    Err(TestCaseError::fail(format!(
        "{hook:?} of {sent:02x?}\nin the kernel: {code} {reasons:?} {bytes:02x?}\n{flows:#?}\n\
         on the host, by one of {} possible draws: {verdict:?} {frame:02x?}\n{host:#?}",
        tried.len(),
    )))
}

#[test]
fn kernel_and_host_agree() {
    let Some(kernel) = Kernel::load() else { return };
    set_up_routes();
    let kernel = RefCell::new(kernel);
    let seen = RefCell::new(HashMap::<Reason, u32>::new());
    let ways = proptest::collection::vec(
        prop_oneof![
            3 => Just(Hook::FromPod),
            1 => Just(Hook::ToPod),
            2 => Just(Hook::FromNet),
            1 => Just(Hook::ToNet),
        ],
        FRAMES,
    );
    let worlds = (worlds(1..FRAMES), ways);
    let config = Config { failure_persistence: None, max_shrink_iters: 2000, ..support::cases(TABLES) };
    let result = TestRunner::new(config).run(&worlds, |((tables, frames), ways)| {
        let mut kernel = kernel.borrow_mut();
        let mut tables = as_in_the_kernel(tables);
        kernel.fill(&tables);
        for (hook, frame) in ways.into_iter().zip(frames).filter(|(_, frame)| runs(frame)) {
            kernel.admit(&tables);
            let reason = compare(&kernel, hook, &frame, &mut tables)?;
            *seen.borrow_mut().entry(reason).or_default() += 1;
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, ((tables, frames), ways))) => {
            panic!("{reason}\nafter the frames {frames:02x?}\nin {ways:?}\nover {tables:#?}")
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }

    // A comparison is worth what it has met.
    let seen = seen.into_inner();
    println!("{} frames: {seen:?}", seen.values().sum::<u32>());
    for reason in [
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
    ] {
        assert!(seen.contains_key(&reason), "no frame met {reason:?}");
    }
}
