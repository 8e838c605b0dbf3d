//! What pods are told of names: the rows of the DNS contract that hold for answers made in the kernel, by numbers in
//! brackets, as an independent reader of DNS messages sees them.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use podnet_common::conntrack::Time;
use podnet_common::dns::name::{NameEntry, NameKey, Zone};
use podnet_common::host::HostTables;
use podnet_common::packet::{ETHERNET, IPV4};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Be16, Family, Protocol};
use proptest::prelude::*;
use support::queries::*;
use support::*;

const ZONE: &str = "cluster.local";

/// A cluster with a Service of each kind.
fn cluster() -> HostTables {
    tables(
        ZONE,
        &[
            ("kubernetes", "default", entry(&["10.96.0.1"])),
            ("web", "shop", entry(&["10.96.0.20", "fd00:10:96::20"])),
            ("odd", "shop", entry(&["fd00:10:96::21"])),
            ("db", "shop", entry(&["10.244.1.1", "10.244.1.2", "10.244.2.3"])),
            (
                "many",
                "shop",
                entry(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"]),
            ),
            ("elsewhere", "shop", NameEntry::LEFT_ALONE),
            ("", "shop", entry(&[])),
        ],
    )
}

/// The answer to a query, read; that it goes back to who asked is checked.
fn answered(query: &Query, family: Family, tables: &mut HostTables, reason: Reason) -> Message {
    let sent = query.frame(family);
    let mut got = sent.clone();
    assert_eq!(from_pod(&mut got, tables), Verdict::Return(reason), "{query:?}");
    assert!(tables.flows.is_empty());
    read_answer(&sent, &got)
}

fn read_answer(sent: &[u8], got: &[u8]) -> Message {
    assert_eq!((&got[..6], &got[6..12]), (&sent[6..12], &sent[..6]), "to the pod's MAC address");
    let (sent, got) = (read(sent).unwrap(), read(got).unwrap());
    assert_eq!((got.from(), got.to()), (sent.to(), sent.from()), "from whom was asked");
    let (Transport::Udp(_, sent), Transport::Udp(_, got)) = (sent.transport, got.transport) else {
        panic!("UDP, both")
    };
    assert!(got.len() <= 512, "{} bytes fit any client", got.len());
    let (question, answer) = (Message::from_vec(&sent).unwrap(), Message::from_vec(&got).unwrap());
    let end = 12 + question.queries[0].name.len() + 4;
    assert_eq!(sent[12..end], got[12..end], "the question is as it was, the case of its letters too");
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    let flags = &answer.metadata;
    assert!(flags.authoritative && !flags.truncation && !flags.recursion_available && !flags.authentic_data);
    assert_eq!(flags.recursion_desired, question.metadata.recursion_desired);
    assert_eq!(flags.checking_disabled, question.metadata.checking_disabled);
    assert_eq!(answer.edns, question.edns, "as it was asked for");
    answer
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let of = |data: &RData| match data {
        RData::A(a) => IpAddr::from(a.0),
        RData::AAAA(aaaa) => IpAddr::from(aaaa.0),
        other => panic!("{other:?} is no address"),
    };
    for record in &message.answers {
        assert_eq!((&record.name, record.ttl), (&message.queries[0].name, TTL));
        assert_eq!((record.dns_class, record.record_type()), (DNSClass::IN, message.queries[0].query_type));
    }
    message.answers.iter().map(|record| of(&record.data)).collect()
}

fn assert_denied(message: &Message, code: ResponseCode, ttl: u32, zone: &str) {
    assert_eq!(message.metadata.response_code, code);
    assert!(message.answers.is_empty());
    let [soa] = &message.authorities[..] else { panic!("one SOA: {message:?}") };
    let name = |prefix: &str| Name::from_ascii(format!("{prefix}{zone}.")).unwrap();
    assert_eq!((&soa.name, soa.ttl), (&name(""), ttl.min(300)));
    let RData::SOA(soa) = &soa.data else { panic!("a SOA: {soa:?}") };
    assert_eq!((&soa.mname, &soa.rname), (&name("ns.dns."), &name("hostmaster.")));
    assert_eq!(
        (soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum),
        (SERIAL, 7200, 1800, 86_400, ttl)
    );
}

/// [2] [36]: the ClusterIPs of a Service, by their family.
#[test]
fn a_service_has_its_addresses() {
    for family in FAMILIES {
        let mut tables = cluster();
        for (name, kind, address) in [
            ("kubernetes.default.svc.cluster.local", A, "10.96.0.1"),
            ("web.shop.svc.cluster.local", A, "10.96.0.20"),
            ("web.shop.svc.cluster.local", AAAA, "fd00:10:96::20"),
            ("odd.shop.svc.cluster.local", AAAA, "fd00:10:96::21"),
        ] {
            let message = answered(&Query::new(name, kind), family, &mut tables, Reason::DnsAnswered);
            assert_eq!(message.metadata.response_code, ResponseCode::NoError);
            assert_eq!(addresses(&message), [address.parse::<IpAddr>().unwrap()]);
        }
    }
}

/// [3]: resolvers mix capitals in, to see them again in the answer.
#[test]
fn case_does_not_matter_and_is_kept() {
    let mut tables = cluster();
    let query = Query::new("KuberNETES.deFault.sVc.cluSTer.LOCAL", A);
    let message = answered(&query, Family::V4, &mut tables, Reason::DnsAnswered);
    assert_eq!(addresses(&message).len(), 1);
    let query = Query::new("WWW.Example.COM.default.SVC.Cluster.Local", A);
    let message = answered(&query, Family::V6, &mut tables, Reason::DnsNoName);
    assert_denied(&message, ResponseCode::NXDomain, TTL, ZONE);
}

/// [9] [38]: all addresses, and each of them first as often as the others.
#[test]
fn addresses_take_turns() {
    let mut tables = cluster();
    let mut first = BTreeSet::new();
    for turn in 0..3 {
        tables.drawn.push_back(u32::MAX / 3 * turn + 7);
        let query = Query::new("db.shop.svc.cluster.local", A).with_opt(&opt(1232, 0));
        let message = answered(&query, Family::V4, &mut tables, Reason::DnsAnswered);
        let addresses = addresses(&message);
        first.insert(addresses[0]);
        assert_eq!(addresses.into_iter().collect::<BTreeSet<_>>().len(), 3);
    }
    assert_eq!(first.len(), 3);
}

/// [21] [22]: a Service, or a namespace, has no records of other types; which it may have, somebody else knows.
#[test]
fn what_a_service_has_none_of_is_denied() {
    for family in FAMILIES {
        let mut tables = cluster();
        for (name, kind) in [
            ("kubernetes.default.svc.cluster.local", AAAA),
            ("odd.shop.svc.cluster.local", A),
            ("web.shop.svc.cluster.local", MX),
            ("web.shop.svc.cluster.local", TXT),
            ("web.shop.svc.cluster.local", CNAME),
            ("web.shop.svc.cluster.local", HTTPS),
            ("shop.svc.cluster.local", A),
            ("shop.svc.cluster.local", TXT),
        ] {
            for query in [Query::new(name, kind), Query::new(name, kind).with_opt(&opt(4096, 0x8000))] {
                let message = answered(&query, family, &mut tables, Reason::DnsNoData);
                assert_denied(&message, ResponseCode::NoError, TTL, ZONE);
            }
        }
    }
}

/// [23] [39]: what search paths make of names of the world, and Services that there are not.
#[test]
fn names_that_there_are_not_are_denied() {
    for family in FAMILIES {
        let mut tables = cluster();
        for name in [
            "absent.default.svc.cluster.local",
            "example.com.default.svc.cluster.local",
            "example.com.svc.cluster.local",
            "example.com.cluster.local",
            "com.cluster.local",
            "com.svc.cluster.local",
            "a.b.c.d.e.example.com.default.svc.cluster.local",
            "_http._tcp.absent.default.svc.cluster.local",
            "*.default.svc.cluster.local",
            "kubernetes.shop.svc.cluster.local",
            "kubernetes.default.svd.cluster.local",
        ] {
            for kind in [A, AAAA, SRV, TXT] {
                let message = answered(&Query::new(name, kind), family, &mut tables, Reason::DnsNoName);
                assert_denied(&message, ResponseCode::NXDomain, TTL, ZONE);
            }
        }
    }
}

/// [24]: nobody is to remember for more than five minutes that there is no such name.
#[test]
fn a_denial_is_not_remembered_for_long() {
    let mut tables = cluster();
    tables.names.zone = Zone::new("k8s.example.org", 3600);
    let query = Query::new("absent.default.svc.k8s.example.org", A);
    let message = answered(&query, Family::V4, &mut tables, Reason::DnsNoName);
    assert_denied(&message, ResponseCode::NXDomain, 3600, "k8s.example.org");
}

/// [27]: nothing is denied whose absence is not known, and what is known is still answered.
#[test]
fn names_are_not_denied_while_not_all_are_known() {
    let mut tables = cluster();
    let absent = Query::new("absent.default.svc.cluster.local", A);
    answered(&absent, Family::V4, &mut tables, Reason::DnsNoName);
    tables.wait(11);
    assert_left_alone(&absent.frame(Family::V4), &tables, Reason::DnsUnknown);
    assert_left_alone(
        &Query::new("example.com.cluster.local", A).frame(Family::V4),
        &tables,
        Reason::DnsUnknown,
    );
    tables.names.freshness.until = Time(0);
    assert_left_alone(&absent.frame(Family::V4), &tables, Reason::DnsUnknown);
    answered(&Query::new("web.shop.svc.cluster.local", A), Family::V4, &mut tables, Reason::DnsAnswered);
    let none = Query::new("kubernetes.default.svc.cluster.local", AAAA);
    answered(&none, Family::V4, &mut tables, Reason::DnsNoData);
}

/// [32]: bits of the query that mean nothing here are accepted.
#[test]
fn usual_flags_are_answered() {
    for flags in [0x0000, 0x0100, 0x0120, 0x0110, 0x0130] {
        let query = Query { flags, ..Query::new("web.shop.svc.cluster.local", A) };
        answered(&query, Family::V6, &mut cluster(), Reason::DnsAnswered);
    }
}

/// [33] [34]: an OPT record comes back, whatever it says of sizes: all answers fit.
#[test]
fn extensions_are_answered_in_kind() {
    for (size, flags) in [(0, 0), (512, 0), (1232, 0x8000), (65535, 0)] {
        for kind in [A, AAAA, MX] {
            let query = Query::new("web.shop.svc.cluster.local", kind).with_opt(&opt(size, flags));
            let reason = if kind == MX { Reason::DnsNoData } else { Reason::DnsAnswered };
            let message = answered(&query, Family::V4, &mut cluster(), reason);
            assert!(message.edns.is_some());
        }
    }
}

/// A UDP datagram over IPv4 may come without a checksum (RFC 768), and its answer then goes without one.
#[test]
fn a_query_without_a_checksum_is_answered_without_one() {
    let mut frame = Query::new("web.shop.svc.cluster.local", A).frame(Family::V4);
    frame[ETHERNET + IPV4 + 6..][..2].fill(0);
    assert_eq!(from_pod(&mut frame, &mut cluster()), Verdict::Return(Reason::DnsAnswered));
    assert_eq!(frame[ETHERNET + IPV4 + 6..][..2], [0, 0]);
}

/// Answers come from the backend of the cluster's DNS too that the socket layer has chosen.
#[test]
fn backends_of_the_clusters_dns_are_answered_for() {
    for family in FAMILIES {
        let mut tables = cluster();
        let backend = pod(family, 99, 53);
        tables.names.servers.insert(backend);
        let query = Query::new("web.shop.svc.cluster.local", A);
        let sent = frame(client(family), backend, Protocol::UDP, 0, &query.message());
        let mut got = sent.clone();
        assert_eq!(from_pod(&mut got, &mut tables), Verdict::Return(Reason::DnsAnswered));
        assert_eq!(addresses(&read_answer(&sent, &got)).len(), 1);
    }
}

/// Holds that a frame stays as it is if its query is not answered for `reason`.
fn assert_left_alone(sent: &[u8], tables: &HostTables, reason: Reason) {
    let (mut frame, mut tables) = (sent.to_vec(), tables.clone());
    let verdict = podnet_common::dns::answer(&mut frame, &mut tables);
    assert_eq!(verdict, Verdict::Unanswered(reason), "{frame:02x?}");
    assert_eq!(frame, sent);
}

/// [4] [7] [12] [14] [17] [19] [22] [25]: what is not known here of the names that there are.
#[test]
fn what_is_not_known_for_certain_is_left_alone() {
    let long = format!("{}.{}.svc.cluster.local", "a".repeat(40), "b".repeat(30));
    for (name, kind, reason) in [
        ("web.shop.svc.cluster.local", SRV, Reason::DnsUnknown),
        ("_http._tcp.web.shop.svc.cluster.local", SRV, Reason::DnsUnknown),
        ("http.tcp.web.shop.svc.cluster.local", A, Reason::DnsUnknown),
        ("db-0.db.shop.svc.cluster.local", A, Reason::DnsUnknown),
        ("10-244-1-1.web.shop.svc.cluster.local", A, Reason::DnsUnknown),
        ("elsewhere.shop.svc.cluster.local", A, Reason::DnsUnknown),
        ("elsewhere.shop.svc.cluster.local", AAAA, Reason::DnsUnknown),
        ("elsewhere.shop.svc.cluster.local", TXT, Reason::DnsUnknown),
        ("many.shop.svc.cluster.local", A, Reason::DnsUnknown),
        ("10-244-1-1.shop.pod.cluster.local", A, Reason::DnsUnknown),
        ("pod.cluster.local", A, Reason::DnsUnknown),
        ("shop.svc.cluster.local", SRV, Reason::DnsUnknown),
        ("svc.cluster.local", A, Reason::DnsUnknown),
        ("ns.dns.cluster.local", A, Reason::DnsUnknown),
        ("dns-version.cluster.local", TXT, Reason::DnsUnknown),
        (long.as_str(), A, Reason::DnsUnknown),
        ("cluster.local", A, Reason::DnsOtherZone),
        ("cluster.local", SOA, Reason::DnsType),
        ("local", A, Reason::DnsOtherZone),
        ("", A, Reason::DnsOtherZone),
        ("example.com", A, Reason::DnsOtherZone),
        ("web.shop.svc.cluster.locaL.", A, Reason::DnsAnswered),
        ("web.shop.svc.cluster.locax", A, Reason::DnsOtherZone),
        ("web.shop.svc.xcluster.local", A, Reason::DnsOtherZone),
        ("web.shop.svccluster.local", A, Reason::DnsOtherZone),
        ("web.shop.svc.clusterlocal", A, Reason::DnsOtherZone),
        ("1.0.96.10.in-addr.arpa", PTR, Reason::DnsType),
        ("web.shop.svc.cluster.local", ANY, Reason::DnsType),
        ("web.shop.svc.cluster.local", AXFR, Reason::DnsType),
    ] {
        for family in FAMILIES {
            let query = Query::new(name, kind);
            if reason == Reason::DnsAnswered {
                answered(&query, family, &mut cluster(), reason);
            } else {
                assert_left_alone(&query.frame(family), &cluster(), reason);
            }
        }
    }
}

/// [37], and the list of what bites: queries of unusual forms.
#[test]
fn unusual_queries_are_left_alone() {
    let usual = || Query::new("web.shop.svc.cluster.local", A);
    let mut with_pointer = usual();
    with_pointer.labels.truncate(2);
    let pointer = [&with_pointer.message()[..12 + 9], &[0xc0, 0x0c, 0, 1, 0, 1]].concat();
    let cookie = [&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8][..], &[7; 8]].concat();
    let mut queries = vec![
        ("an answer", Query { flags: 0x8180, ..usual() }.message()),
        ("a notification", Query { flags: 0x2000, ..usual() }.message()),
        ("a status query", Query { flags: 0x1000, ..usual() }.message()),
        ("cut off", Query { flags: 0x0300, ..usual() }.message()),
        ("authoritative", Query { flags: 0x0500, ..usual() }.message()),
        ("recursion available", Query { flags: 0x0180, ..usual() }.message()),
        ("the reserved bit", Query { flags: 0x0140, ..usual() }.message()),
        ("a response code", Query { flags: 0x0103, ..usual() }.message()),
        ("no question", Query { counts: [0, 0, 0, 0], ..usual() }.message()),
        ("two questions", Query { counts: [2, 0, 0, 0], ..usual() }.message()),
        ("an answer's record", Query { counts: [1, 1, 0, 0], ..usual() }.message()),
        ("an authority's record", Query { counts: [1, 0, 1, 0], ..usual() }.message()),
        ("two more records", Query { counts: [1, 0, 0, 2], ..usual().with_opt(&opt(512, 0)) }.message()),
        ("an OPT that is missing", Query { counts: [1, 0, 0, 1], ..usual() }.message()),
        ("an OPT that is not counted", Query { rest: opt(512, 0), ..usual() }.message()),
        ("another class", Query { class: 3, ..usual() }.message()),
        ("a pointer", pointer),
        ("a cookie", usual().with_opt(&cookie).message()),
        ("a flag of OPT's", usual().with_opt(&opt(512, 0x4000)).message()),
        ("a version of OPT's", usual().with_opt(&[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]).message()),
        ("an extended code", usual().with_opt(&[0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]).message()),
        ("another record", usual().with_opt(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]).message()),
        ("an OPT with a name", usual().with_opt(&[1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]).message()),
        ("bytes behind it", Query { rest: vec![0], ..usual() }.message()),
        ("a long name", Query::new(&format!("{}.svc.cluster.local", "abcdefg.".repeat(14)), A).message()),
        ("many labels", Query::new(&format!("{}svc.cluster.local", "a.".repeat(20)), A).message()),
        ("a label without an end", [&usual().message()[..12], &[63, b'a']].concat()),
        ("nothing", Vec::new()),
    ];
    for length in 1..usual().message().len() {
        queries.push(("its beginning", usual().message()[..length].to_vec()));
    }
    for (what, message) in queries {
        for family in FAMILIES {
            let sent = frame(client(family), server(family), Protocol::UDP, 0, &message);
            println!("{what}");
            assert_left_alone(&sent, &cluster(), Reason::DnsUnusual);
        }
    }
}

/// IP options and extension headers, padding and contradictions between lengths, addresses of many.
#[test]
fn unusual_packets_are_left_alone() {
    let query = Query::new("web.shop.svc.cluster.local", A);
    for family in FAMILIES {
        let usual = query.frame(family);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = usual.clone();
            change(&mut frame);
            frame
        };
        let l4 = usual.len() - query.message().len() - 8;
        let port = frame(pod(family, 7, 0), server(family), Protocol::UDP, 0, &query.message());
        for frame in [
            with(&|frame| frame[0] |= 1),
            with(&|frame| frame[l4 + 5] -= 1),
            with(&|frame| frame[l4 + 5] += 1),
            port,
        ] {
            assert_left_alone(&frame, &cluster(), Reason::DnsUnusual);
        }
        // Padding of the frame's is none of the packet's.
        let mut padded = with(&|frame| frame.extend([0x55; 9]));
        assert_eq!(from_pod(&mut padded, &mut cluster()), Verdict::Return(Reason::DnsAnswered));
        assert_eq!(addresses(&read_answer(&usual, &padded)).len(), 1);
    }
    let mut options = query.frame(Family::V4);
    options[ETHERNET] = 0x46;
    options.splice(ETHERNET + IPV4..ETHERNET + IPV4, [1; 4]);
    options[ETHERNET + 3] += 4;
    assert_left_alone(&options, &cluster(), Reason::DnsUnusual);
}

/// Only the cluster's DNS is answered for, and only to pods that are to be.
#[test]
fn others_are_left_alone() {
    let query = Query::new("web.shop.svc.cluster.local", A);
    for family in FAMILIES {
        let mut tables = cluster();
        tables.names.servers.clear();
        assert_left_alone(&query.frame(family), &tables, Reason::DnsOtherServer);
        let mut tables = cluster();
        tables.names.clients.clear();
        assert_left_alone(&query.frame(family), &tables, Reason::DnsClient);
        let mut tables = cluster();
        tables.names.zone = None;
        let mut frame = query.frame(family);
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Pass(Reason::NotService));
        assert_eq!(frame, query.frame(family));
    }
}

/// A query that is not answered goes to a backend of the cluster's DNS, as ever.
#[test]
fn unanswered_queries_are_routed() {
    for family in FAMILIES {
        let mut tables = cluster();
        let backend = pod(family, 99, 5353);
        tables.serve(server(family), Protocol::UDP, [backend]);
        let query = Query::new("example.com", A);
        for reason in [Reason::NewFlow, Reason::Established] {
            let mut frame = query.frame(family);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(reason));
            assert_eq!(read(&frame).unwrap().to(), backend);
        }
        // One of the same socket's that is answered disturbs nothing.
        let mut frame = Query::new("web.shop.svc.cluster.local", A).frame(family);
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::DnsAnswered));
        // TCP is not looked at.
        let mut tcp = opening(client(family), server(family), Protocol::TCP);
        assert_eq!(from_pod(&mut tcp, &mut tables), Verdict::Pass(Reason::NotService));
        assert_ne!(client(family).port, Be16::new(53));
    }
}

/// What a plain reading of the contract says of a query.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Addresses(BTreeSet<IpAddr>),
    NoName,
    NoData,
    LeftAlone,
}

/// Services by `name.namespace`, with their addresses; `None`: left alone.
type Services = std::collections::BTreeMap<String, Option<Vec<IpAddr>>>;

fn expected(labels: &[String], kind: u16, zone: &str, services: &Services) -> Expected {
    let name = labels.join(".").to_ascii_lowercase();
    let wire: usize = labels.iter().map(|label| label.len() + 1).sum::<usize>() + 1;
    let ordinary = [A, AAAA, SRV, MX, TXT, CNAME, HTTPS].contains(&kind);
    let Some(below) = name.strip_suffix(zone).and_then(|below| below.strip_suffix('.')) else {
        return Expected::LeftAlone;
    };
    if !ordinary || wire > 128 || labels.len() > 16 {
        return Expected::LeftAlone;
    }
    let below: Vec<&str> = below.split('.').collect();
    match below[..] {
        [.., "pod" | "dns" | "dns-version"] | ["svc"] => Expected::LeftAlone,
        [namespace, "svc"] => {
            let there = services.keys().any(|key| key.split_once('.').unwrap().1 == namespace);
            match (there, kind) {
                (false, _) => Expected::NoName,
                (true, SRV) => Expected::LeftAlone,
                (true, _) => Expected::NoData,
            }
        }
        [.., service, namespace, "svc"] => {
            if service.len() + namespace.len() + 2 > 64 {
                return Expected::LeftAlone;
            }
            match services.get(&format!("{service}.{namespace}")) {
                None => Expected::NoName,
                Some(None) => Expected::LeftAlone,
                Some(_) if below.len() > 3 || kind == SRV => Expected::LeftAlone,
                Some(Some(addresses)) => {
                    let of = |v4| addresses.iter().copied().filter(move |address| address.is_ipv4() == v4);
                    let asked: BTreeSet<IpAddr> = match kind {
                        A => of(true).collect(),
                        AAAA => of(false).collect(),
                        _ => BTreeSet::new(),
                    };
                    match asked.len() {
                        0 => Expected::NoData,
                        1..=6 => Expected::Addresses(asked),
                        _ => Expected::LeftAlone,
                    }
                }
            }
        }
        _ => Expected::NoName,
    }
}

/// Labels as people give them, and now and then as they do not.
fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "web", "svc", "pod", "com", "default", "dns", "cluster", "local"])
            .prop_map(str::to_owned),
        2 => "[a-z0-9-]{1,12}",
        1 => "[a-z0-9-]{1,63}",
        1 => "[!-\\-/-@\\[-~]{1,9}",
    ]
}

fn some_services() -> impl Strategy<Value = Services> {
    let address =
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    // The form of IPv4 addresses in IPv6 is no address of its own.
    let address = address.prop_map(|address| address.to_canonical());
    let addresses =
        prop::collection::btree_set(address, 0..9).prop_map(|all| Some(all.into_iter().collect()));
    let entry = prop_oneof![6 => addresses, 1 => Just(None)];
    let name = (label(), label()).prop_map(|(service, namespace)| format!("{service}.{namespace}"));
    prop::collection::btree_map(name, entry, 0..12)
}

proptest! {
    #![proptest_config(cases(3000))]

    /// Any name of any table is answered as the plain model says, or goes on as it was.
    #[test]
    fn answers_are_those_of_the_model(
        services in some_services(),
        zone in prop::sample::select(vec!["cluster.local", "k8s", "prod.eu-1.example.org", "a.b.c.d.e"]),
        labels in prop::collection::vec(label(), 0..6),
        asked in any::<prop::sample::Index>(),
        (known, svc, in_zone) in (any::<bool>(), prop::bool::weighted(0.7), prop::bool::weighted(0.9)),
        kind in prop::sample::select(vec![A, A, A, AAAA, AAAA, SRV, MX, TXT, CNAME, HTTPS, SOA, ANY]),
        size in prop::option::of(any::<u16>()),
        capitals: u64,
        v6: bool,
        seed: u64,
    ) {
        let mut labels = labels;
        if known && !services.is_empty() {
            let name = services.keys().nth(asked.index(services.len())).unwrap();
            labels.truncate(asked.index(3).saturating_sub(1));
            labels.extend(name.split('.').map(str::to_owned));
        }
        if svc {
            labels.push("svc".to_owned());
        }
        if in_zone {
            labels.extend(zone.split('.').map(str::to_owned));
        }
        let mut turn = 0;
        for label in &mut labels {
            *label = label.chars().map(|char| {
                turn += 1;
                if capitals >> (turn % 64) & 1 == 1 { char.to_ascii_uppercase() } else { char }
            }).collect();
        }
        let mut tables = tables(zone, &[]);
        tables.seed = seed;
        for (name, addresses) in &services {
            let (service, namespace) = name.split_once('.').unwrap();
            let entry = addresses.as_ref().map_or(NameEntry::LEFT_ALONE, |all| NameEntry::new(all.iter().copied()));
            if let Some(key) = NameKey::new([service, namespace]) {
                tables.names.entries.insert(key, entry);
            }
            tables.names.entries.insert(NameKey::new([namespace]).unwrap(), NameEntry::new([]));
        }
        let mut query = Query::new("", kind);
        query.labels = labels.iter().map(|label| label.as_bytes().to_vec()).collect();
        if let Some(size) = size {
            query = query.with_opt(&opt(size, 0));
        }
        let family = if v6 { Family::V6 } else { Family::V4 };
        let sent = query.frame(family);
        let mut got = sent.clone();
        let verdict = podnet_common::dns::answer(&mut got, &mut tables);
        match expected(&labels, kind, zone, &services) {
            Expected::LeftAlone => {
                prop_assert!(matches!(verdict, Verdict::Unanswered(_)), "{verdict:?}");
                prop_assert_eq!(got, sent);
            }
            Expected::Addresses(all) => {
                prop_assert_eq!(verdict, Verdict::Return(Reason::DnsAnswered));
                let answer = read_answer(&sent, &got);
                let addresses = addresses(&answer);
                prop_assert_eq!(addresses.len(), all.len());
                prop_assert_eq!(addresses.into_iter().collect::<BTreeSet<_>>(), all);
            }
            Expected::NoName => {
                prop_assert_eq!(verdict, Verdict::Return(Reason::DnsNoName));
                assert_denied(&read_answer(&sent, &got), ResponseCode::NXDomain, TTL, zone);
            }
            Expected::NoData => {
                prop_assert_eq!(verdict, Verdict::Return(Reason::DnsNoData));
                assert_denied(&read_answer(&sent, &got), ResponseCode::NoError, TTL, zone);
            }
        }
    }

    /// Any bytes are answered or go on as they were, and what is answered is an answer.
    #[test]
    fn any_bytes_are_answered_or_left_alone(
        base in prop::sample::select(vec!["web.shop.svc.cluster.local", "example.com.cluster.local"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        v6: bool,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut message = Query::new(base, A).with_opt(&opt(1232, 0)).message();
        for (place, byte) in changes {
            let at = place.index(message.len());
            message[at] = byte;
        }
        let sent = frame(client(family), server(family), Protocol::UDP, 0, &message);
        let mut got = sent.clone();
        match podnet_common::dns::answer(&mut got, &mut cluster()) {
            Verdict::Unanswered(_) => prop_assert_eq!(got, sent),
            Verdict::Return(_) => {
                let answer = read_answer(&sent, &got);
                prop_assert_eq!(answer.queries[0].query_class, DNSClass::IN);
                prop_assert_ne!(answer.queries[0].query_type, RecordType::ANY);
            }
            verdict => prop_assert!(false, "{verdict:?}"),
        }
    }
}
