//! Any query of a pod's: it goes on as it was, or what comes back is an answer to it that another reader reads.
//!
//! The input: a byte of switches, and a DNS message, or a whole frame.
#![no_main]

#[path = "../../podnet-common/tests/support/read.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod read;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use libfuzzer_sys::fuzz_target;
use podnet_common::conntrack::Time;
use podnet_common::dns;
use podnet_common::dns::name::{NameEntry, NameKey, Zone};
use podnet_common::host::HostTables;
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::Be32;
use read::{Transport, read};

const TTL: u32 = 5;

fn tables(fresh: bool) -> HostTables {
    let mut tables = HostTables::new(1);
    tables.names.zone = Zone::new("cluster.local", TTL);
    for ip in [IpAddr::from(Ipv4Addr::new(10, 96, 0, 10)), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 10).into()] {
        tables.names.servers.insert(SocketAddr::new(ip, 53).into());
    }
    for ip in [IpAddr::from(Ipv4Addr::new(10, 244, 0, 7)), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).into()] {
        tables.names.clients.insert(ip.into());
    }
    let v4 = |last| IpAddr::from([10, 96, 0, last]);
    let v6 = |last| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, last));
    for (labels, entry) in [
        (&["a", "b"][..], NameEntry::new([v4(1), v6(1)])),
        (&["many", "b"], NameEntry::new((0..6).map(v4).chain((0..6).map(v6)))),
        (&["more", "b"], NameEntry::new((0..7).map(v4))),
        (&["alone", "b"], NameEntry::LEFT_ALONE),
        (&["b"], NameEntry::new([])),
    ] {
        tables.names.entries.insert(NameKey::new(labels.iter().copied()).expect("they are short"), entry);
    }
    tables.names.freshness.until = Time(if fresh { u32::MAX } else { 0 });
    tables.names.freshness.serial = Be32::new(7);
    tables
}

fuzz_target!(|bytes: &[u8]| {
    let [switches, rest @ ..] = bytes else { return };
    let (v6, fresh, whole) = (switches & 1 != 0, switches & 2 != 0, switches & 4 != 0);
    let mut sent = Vec::new();
    if whole {
        sent.extend(rest);
    } else {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = |last: u8| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).octets();
        let ends = ([10, 244, 0, 7], [10, 96, 0, 10]);
        let builder = if v6 { builder.ipv6(ip(7), ip(10), 64) } else { builder.ipv4(ends.0, ends.1, 64) };
        if rest.len() > 1400 || builder.udp(40000, 53).write(&mut sent, rest).is_err() {
            return;
        }
    }
    let mut got = sent.clone();
    match dns::answer(&mut got, &mut tables(fresh)) {
        Verdict::Unanswered(_) => assert_eq!(got, sent),
        Verdict::Return(reason) => {
            let Ok(question) = read(&sent) else { return };
            let answer = read(&got).expect("it is as sound as the query");
            assert_eq!((answer.from(), answer.to()), (question.to(), question.from()));
            let (Transport::Udp(_, question), Transport::Udp(_, answer)) = (question.transport, answer.transport)
            else {
                panic!("neither is anything but UDP")
            };
            assert!(answer.len() <= 512);
            let question = Message::from_vec(&question).expect("what is answered can be read");
            let answer = Message::from_vec(&answer).expect("what is an answer too");
            assert_eq!(answer.metadata.message_type, MessageType::Response);
            assert_eq!((answer.metadata.id, &answer.edns), (question.metadata.id, &question.edns));
            let [asked] = &question.queries[..] else { panic!("one question") };
            assert!(asked.name.eq_case(&answer.queries[0].name) && asked.query_class == DNSClass::IN);
            assert_eq!(asked.query_type, answer.queries[0].query_type);
            let records = (answer.answers.len(), answer.authorities.len());
            match reason {
                Reason::DnsAnswered => {
                    assert!((1..=6).contains(&records.0) && records.1 == 0);
                    assert!(answer.answers.iter().all(|record| {
                        record.name.eq_case(&asked.name)
                            && record.record_type() == asked.query_type
                            && record.ttl == TTL
                    }));
                }
                Reason::DnsNoName | Reason::DnsNoData => {
                    assert!(fresh || reason == Reason::DnsNoData);
                    let denied = answer.metadata.response_code == ResponseCode::NXDomain;
                    assert_eq!(denied, reason == Reason::DnsNoName);
                    assert_eq!(records, (0, 1));
                    let soa = &answer.authorities[0];
                    assert_eq!(soa.record_type(), RecordType::SOA);
                    assert!(soa.name.zone_of(&asked.name));
                    assert_eq!(soa.name.to_lowercase().to_ascii(), "cluster.local.");
                }
                other => panic!("{other:?} is no reason to answer"),
            }
        }
        other => panic!("{other:?}"),
    }
});
