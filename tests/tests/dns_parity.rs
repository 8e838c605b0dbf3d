//! Queries are answered in the kernel as on the host: the same bytes, for the same reason, from the same tables.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

#[path = "../../podnet-common/tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, ProgramArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use podnet_common::abi::{self, Program};
use podnet_common::conntrack::Time;
use podnet_common::dns;
use podnet_common::dns::name::{Freshness, NameEntry, Zone};
use podnet_common::host::HostTables;
use podnet_common::network::ServiceNetworks;
use podnet_common::packet::{ETHERNET, IPV4, IPV6};
use podnet_common::service::FrontendKey;
use podnet_common::verdict::{Layer, Reason, Verdict};
use podnet_common::wire::{Be32, Family, Protocol};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::queries::{self, A, AAAA, ANY, MX, Query, SERIAL, SRV, TTL, client, entry, opt, server};
use support::{FAMILIES, cases, frame};
use tests::require;
use zerocopy::{Immutable, IntoBytes};

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_REDIRECT: u32 = 7;

/// The programs that a query meets, and the maps they work on.
struct Kernel {
    ebpf: Ebpf,
    names: BpfHashMap<MapData, [u8; 64], [u8; 128]>,
    freshness: Array<MapData, [u8; 8]>,
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

impl Kernel {
    fn load(zone: &str) -> Option<Self> {
        require::root()?;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/podnet-ebpf.o");
        let Ok(object) = fs::read(path) else {
            return require::lacking("there is no eBPF object: `cargo xtask build-ebpf` makes it");
        };
        let pins = Path::new("/sys/fs/bpf").join(format!("podnet-dns-parity-{}", std::process::id()));
        fs::create_dir(&pins).expect("bpffs is mounted");
        let zone = Zone::new(zone, TTL).unwrap();
        let loaded = EbpfLoader::new()
            .btf(None)
            .default_map_pin_directory(&pins)
            .map_max_entries(abi::DNS_NAMES, 64)
            .override_global(abi::ANSWERS_NAMES, &1_u64, true)
            .override_global(abi::ZONE, zone.as_bytes(), true)
            .load(&object);
        fs::remove_dir_all(&pins).expect("the pins are ours");
        let mut ebpf = loaded.expect("the object loads");
        let mut next: ProgramArray<MapData> = taken(&mut ebpf, abi::PROGRAMS);
        for (place, name) in [
            (None, "from_pod"),
            (Some(Program::Answer), "from_pod_answer"),
            (Some(Program::Unanswered), "from_pod_unanswered"),
        ] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().expect("the kernel accepts the program");
            if let Some(place) = place {
                next.set(place.index(), program.fd().unwrap(), 0).unwrap();
            }
        }
        // Zeroes are the network of all addresses.
        let mut networks: Array<MapData, [u8; 256]> = taken(&mut ebpf, abi::NETWORKS);
        networks.set(0, bytes::<256>(&ServiceNetworks::default()), 0).unwrap();
        let mut servers: BpfHashMap<MapData, [u8; 24], u32> = taken(&mut ebpf, abi::DNS_SERVERS);
        let mut clients: BpfHashMap<MapData, [u8; 16], u32> = taken(&mut ebpf, abi::DNS_CLIENTS);
        for family in FAMILIES {
            servers.insert(bytes::<24>(&FrontendKey::new(server(family), Protocol::UDP)), 1, 0).unwrap();
            clients.insert(bytes::<16>(&client(family).addr), 1, 0).unwrap();
        }
        Some(Self {
            names: taken(&mut ebpf, abi::DNS_NAMES),
            freshness: taken(&mut ebpf, abi::DNS_FRESHNESS),
            counters: taken(&mut ebpf, abi::COUNTERS),
            _next: next,
            ebpf,
        })
    }

    fn fill(&mut self, tables: &HostTables) {
        for key in self.names.keys().map(Result::unwrap).collect::<Vec<_>>() {
            self.names.remove(&key).unwrap();
        }
        for (key, entry) in &tables.names.entries {
            self.names.insert(bytes::<64>(key), bytes::<128>(entry), 0).unwrap();
        }
        self.freshness.set(0, bytes::<8>(&tables.names.freshness), 0).unwrap();
    }

    fn counts(&self, layer: Layer) -> BTreeMap<&'static str, u64> {
        let count = |reason: &Reason| self.counters.get(&layer.counter(*reason), 0).unwrap().iter().sum();
        Reason::ALL.iter().map(|reason| (reason.label(), count(reason))).collect()
    }

    /// Runs the program at the hook over a frame; its return code and the frame after it.
    fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let program: &SchedClassifier = self.ebpf.program("from_pod").unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap_or_else(|error| panic!("{frame:02x?}: {error}"));
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        (result.return_value, out)
    }
}

/// The kernel's coarse monotonic clock, as the programs read it.
fn now() -> Time {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let (seconds, nanoseconds) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    Time::from_nanoseconds(seconds * 1_000_000_000 + nanoseconds)
}

/// Has the kernel and the host answer a query, which must agree; why it was answered, or not.
fn compare(kernel: &Kernel, sent: &[u8], tables: &HostTables) -> Result<Reason, TestCaseError> {
    let (before, stack) = (kernel.counts(Layer::Dns), kernel.counts(Layer::Stack));
    let (code, bytes) = kernel.run(sent);
    let mut expected = Vec::new();
    // A number for each of six addresses that the kernel may have drawn to come first, and for each of fewer.
    for first in 0..6_u64 {
        let (mut frame, mut host) = (sent.to_vec(), tables.clone());
        host.drawn = [u32::try_from((first << 32).div_ceil(6)).unwrap()].into();
        expected.push((dns::answer(&mut frame, &mut host), frame));
    }
    let verdict = expected[0].0;
    let frames: Vec<_> = expected.into_iter().map(|(_, frame)| frame).collect();
    prop_assert!(frames.contains(&bytes), "{verdict:?}\n{sent:02x?}\n{bytes:02x?}\n{frames:02x?}");
    let (expected_code, passed) = match verdict {
        Verdict::Return(_) => (TC_ACT_REDIRECT, 0),
        Verdict::Unanswered(_) => (TC_ACT_UNSPEC, 1),
        other => return Err(TestCaseError::fail(format!("{other:?}"))),
    };
    prop_assert_eq!(code, expected_code, "{:?}", verdict);
    let changed = |mut counts: BTreeMap<_, u64>, reason: Reason, by| {
        *counts.entry(reason.label()).or_default() += by;
        counts
    };
    prop_assert_eq!(kernel.counts(Layer::Dns), changed(before, verdict.reason(), 1));
    prop_assert_eq!(kernel.counts(Layer::Stack), changed(stack, Reason::NotService, passed));
    Ok(verdict.reason())
}

fn some_query() -> impl Strategy<Value = Query> {
    let name = prop::sample::select(vec![
        "one.default",
        "three.default",
        "six.shop",
        "seven.shop",
        "six6.shop",
        "none.shop",
        "left-alone.shop",
        "absent.shop",
        "below.one.default",
        "shop",
        "com",
        "example.com.default",
        "an-external-name-as-long-as.some-provider-has-them.example.com.default",
    ]);
    let domain = prop::sample::select(vec![
        ".svc.cluster.local",
        ".svc.cluster.local",
        ".SVC.clusTER.local",
        ".cluster.local",
        ".svc.cluster.locax",
        "",
    ]);
    let kind = prop::sample::select(vec![A, A, A, AAAA, AAAA, SRV, MX, ANY]);
    (name, domain, kind, prop::option::of((any::<u16>(), any::<bool>()))).prop_map(
        |(name, domain, kind, size)| {
            let query = Query::new(&format!("{name}{domain}"), kind);
            match size {
                Some((size, signatures)) => query.with_opt(&opt(size, u16::from(signatures) << 15)),
                None => query,
            }
        },
    )
}

#[test]
fn kernel_and_host_answer_alike() {
    let Some(kernel) = Kernel::load("cluster.local") else { return };
    let six = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
    let six6 = ["fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6"];
    let mut tables = queries::tables(
        "cluster.local",
        &[
            ("one", "default", entry(&["10.96.0.1", "fd00:10:96::1"])),
            ("three", "default", entry(&["10.244.0.1", "10.244.0.2", "10.244.0.3", "fd00::1", "fd00::2"])),
            ("six", "shop", entry(&six)),
            ("seven", "shop", entry(&[&six[..], &["10.0.0.7"]].concat())),
            ("six6", "shop", entry(&six6)),
            ("none", "shop", entry(&[])),
            ("left-alone", "shop", NameEntry::LEFT_ALONE),
            ("", "shop", entry(&[])),
        ],
    );
    let kernel = RefCell::new(kernel);
    let seen = RefCell::new(BTreeMap::<&str, u32>::new());
    let change = prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
    let strategy = (some_query(), change, any::<bool>(), prop::bool::weighted(0.9));
    let config = Config { failure_persistence: None, ..cases(4000) };
    let result = TestRunner::new(config).run(&strategy, |(query, change, v6, fresh)| {
        let (mut tables, now) = (tables.clone(), now());
        let until = if fresh { Time(now.0 + Time::seconds(60)) } else { Time(1) };
        tables.now = now;
        tables.names.freshness = Freshness { until, serial: Be32::new(SERIAL) };
        let mut kernel = kernel.borrow_mut();
        kernel.fill(&tables);
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut message = query.message();
        if let Some((place, byte)) = change {
            let at = place.index(message.len());
            message[at] = byte;
        }
        let sent = frame(client(family), server(family), Protocol::UDP, 0, &message);
        *seen.borrow_mut().entry(compare(&kernel, &sent, &tables)?.label()).or_default() += 1;
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    for reason in [
        Reason::DnsAnswered,
        Reason::DnsNoName,
        Reason::DnsNoData,
        Reason::DnsUnusual,
        Reason::DnsType,
        Reason::DnsOtherZone,
        Reason::DnsUnknown,
    ] {
        assert!(seen.contains_key(reason.label()), "no query met {reason:?}");
    }

    // Queries that end anywhere, of everybody, to everybody.
    let kernel = kernel.into_inner();
    tables.now = now();
    let query = Query::new("one.default.svc.cluster.local", A).with_opt(&opt(1232, 0));
    for family in FAMILIES {
        let header = if family == Family::V4 { IPV4 } else { IPV6 };
        let whole = query.frame(family);
        for length in ETHERNET + header + 8..whole.len() {
            compare(&kernel, &whole[..length], &tables).unwrap();
        }
        let (from, to) = (client(family), server(family));
        let other = support::pod(family, 200, 53);
        let mut nobody = tables.clone();
        nobody.names.clients.clear();
        let sent = frame(other, to, Protocol::UDP, 0, &query.message());
        assert_eq!(compare(&kernel, &sent, &nobody).unwrap(), Reason::DnsClient);
        let sent = frame(from, other, Protocol::UDP, 0, &query.message());
        assert_eq!(compare(&kernel, &sent, &tables).unwrap(), Reason::DnsOtherServer);
    }
}
