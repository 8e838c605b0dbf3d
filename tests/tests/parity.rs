//! The programs in the kernel and the core on the host do the same: the same bytes, the same verdict for
//! the same reason, the same flows left behind, over the same tables.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

#[path = "../../podnet-common/tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use podnet_common::abi;
use podnet_common::conntrack::{Flow, Time, Tuple};
use podnet_common::host::HostTables;
use podnet_common::packet::{self, ETHERNET, IPV4, IPV6};
use podnet_common::route;
use podnet_common::service::{Backend, BackendId, FrontendKey};
use podnet_common::verdict::{Reason, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use support::arbitrary::worlds;
use tests::require;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How many tables are tried, and at most how many frames over each.
const TABLES: u32 = 400;
const FRAMES: usize = 30;
/// The sizes of the maps: as large as any of the arbitrary tables.
const SLOTS: u32 = 16;
const BACKENDS: u32 = 8;
const FLOWS: u32 = 4096;
/// Frames shorter than this are passed without a look, and so without a reason.
const SHORTEST: usize = 42;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// A program of the object, and what it is on the host.
#[derive(Clone, Copy, Debug)]
enum Way {
    FromPod,
    ToPod,
    FromNet,
    ToNet,
}

impl Way {
    const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromNet, Self::ToNet];

    const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNet => "from_net",
            Self::ToNet => "to_net",
        }
    }

    fn on_the_host(self, frame: &mut Vec<u8>, tables: &mut HostTables) -> Verdict {
        match self {
            Self::FromPod => route::from_pod(frame, tables),
            Self::ToPod => route::to_pod(frame, tables),
            Self::FromNet => route::from_net(frame, tables),
            Self::ToNet => route::to_net(frame, tables),
        }
    }
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
    counters: PerCpuArray<MapData, u64>,
}

fn bytes<const N: usize>(value: &(impl IntoBytes + Immutable)) -> [u8; N] {
    value.as_bytes().try_into().expect("the size asserted in podnet_common::abi")
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> T {
    let map = ebpf.take_map(name).unwrap_or_else(|| panic!("there is no map {name}"));
    T::try_from(map).unwrap_or_else(|_| panic!("{name} is of another type"))
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
        let sizes =
            [(abi::FRONTENDS, 64), (abi::SLOTS, SLOTS), (abi::BACKENDS, BACKENDS), (abi::FLOWS, FLOWS)];
        for (name, size) in sizes {
            loader.map_max_entries(name, size);
        }
        let loaded = loader.load(&object);
        fs::remove_dir_all(&pins).expect("the pins are ours");
        let mut ebpf = loaded.expect("the object loads");
        for way in Way::ALL {
            let program = ebpf.program_mut(way.program()).expect("the program is in the object");
            let program: &mut SchedClassifier = program.try_into().expect("a classifier");
            program.load().expect("the kernel accepts the program");
        }
        Some(Self {
            frontends: taken(&mut ebpf, abi::FRONTENDS),
            slots: taken(&mut ebpf, abi::SLOTS),
            backends: taken(&mut ebpf, abi::BACKENDS),
            flows: taken(&mut ebpf, abi::FLOWS),
            filter: taken(&mut ebpf, abi::FILTER),
            counters: taken(&mut ebpf, abi::COUNTERS),
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
        for (index, word) in tables.filter() {
            self.filter.set(index, word, 0).unwrap();
        }
        for (tuple, flow) in &tables.flows {
            self.flows.insert(bytes::<40>(tuple), bytes::<64>(flow), 0).unwrap();
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
    fn run(&self, way: Way, frame: &[u8]) -> (u32, Vec<u8>) {
        let program: &SchedClassifier = self.programs.program(way.program()).unwrap().try_into().unwrap();
        let mut out = vec![0; 4096];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{} over {frame:02x?}: {error}", way.program()));
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
        Verdict::Pass(_) | Verdict::Translated(_) => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        Verdict::Return(_) | Verdict::Forward(..) | Verdict::Inject(..) => TC_ACT_REDIRECT,
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
    tables
}

/// The random numbers that the kernel may have drawn for `frame`: each slot of the frontend, and the source
/// port that it was given, which `flows` tell.
fn draws(frame: &Vec<u8>, tables: &HostTables, flows: &HashMap<Tuple, Flow>) -> Vec<Vec<u32>> {
    let Ok(packet) = packet::parse(frame) else { return vec![vec![]] };
    let protocol = packet.tuple.protocol();
    let port = flows.get(&packet.tuple).map_or(0, |flow| flow.to(protocol).source().port.get());
    let count = tables
        .frontends
        .get(&FrontendKey::new(packet.tuple.destination(), protocol))
        .map_or(0, |frontend| frontend.inside.count);
    (0..count.max(1))
        .map(|slot| {
            // The smallest number that chooses the slot.
            let first = (u64::from(slot) << 32).div_ceil(count.max(1).into());
            let mut draws = vec![u32::try_from(first).unwrap()];
            draws.extend([u32::from(port); 4]);
            draws
        })
        .collect()
}

/// Runs `frame` through the kernel and the host, which must agree; returns why the verdict was given.
fn compare(kernel: &Kernel, way: Way, sent: &[u8], tables: &mut HostTables) -> Result<Reason, TestCaseError> {
    let sent = sent.to_vec();
    let counted: Vec<u64> = Reason::ALL.iter().map(|reason| kernel.count(*reason)).collect();
    let before = now();
    let (code, bytes) = kernel.run(way, &sent);
    let after = now();
    let flows = kernel.flows();

    let mut tried = Vec::new();
    for draws in draws(&sent, tables, &flows) {
        for now in [before, after] {
            let (mut frame, mut host) = (sent.clone(), tables.clone());
            host.now = now;
            host.drawn = draws.clone().into();
            let verdict = way.on_the_host(&mut frame, &mut host);
            if (return_code(verdict), &frame, &host.flows) != (code, &bytes, &flows) {
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
    Err(TestCaseError::fail(format!(
        "{way:?} of {sent:02x?}\nin the kernel: {code} {bytes:02x?}\n{flows:#?}\n\
         on the host, by one of {} possible draws: {verdict:?} {frame:02x?}\n{host:#?}",
        tried.len(),
    )))
}

#[test]
fn kernel_and_host_agree() {
    let Some(kernel) = Kernel::load() else { return };
    let kernel = RefCell::new(kernel);
    let seen = RefCell::new(HashMap::<Reason, u32>::new());
    let ways = proptest::collection::vec(
        prop_oneof![
            3 => Just(Way::FromPod),
            1 => Just(Way::ToPod),
            2 => Just(Way::FromNet),
            1 => Just(Way::ToNet),
        ],
        FRAMES,
    );
    let worlds = (worlds(1..FRAMES), ways);
    let config = Config { failure_persistence: None, max_shrink_iters: 2000, ..support::cases(TABLES) };
    let result = TestRunner::new(config).run(&worlds, |((tables, frames), ways)| {
        let mut kernel = kernel.borrow_mut();
        let mut tables = as_in_the_kernel(tables);
        kernel.fill(&tables);
        for (way, frame) in ways.into_iter().zip(frames).filter(|(_, frame)| runs(frame)) {
            let reason = compare(&kernel, way, &frame, &mut tables)?;
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
        Reason::Fragment,
        Reason::Truncated,
        Reason::Malformed,
        Reason::NotService,
        Reason::MidConnection,
        Reason::NewFlow,
        Reason::Established,
        Reason::Reply,
        Reason::Moved,
        Reason::NoEndpoints,
    ] {
        assert!(seen.contains_key(&reason), "no frame met {reason:?}");
    }
}
