//! The server on loopback, asked by raw messages: the rows of what the cluster's DNS must answer that are about these.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::cluster::object::{Kind, Object};
use crate::cluster::{Event, manifests};
use crate::dns::forward::Forwarder;
use crate::dns::metrics::DnsMetrics;
use crate::dns::{Index, Settings};

/// A Service with an address, a headless one with a hundred endpoints, and an alias.
fn objects() -> Vec<Object> {
    let mut text = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: many, namespace: shop}
spec: {clusterIP: None}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: many-1, namespace: shop, labels: {kubernetes.io/service-name: many}}
addressType: IPv4
endpoints:
"
    .to_owned();
    for host in 1..=100 {
        text += &format!("- {{addresses: [10.244.0.{host}]}}\n");
    }
    manifests::parse(&text).unwrap()
}

/// A server that listens on loopback, and asks nobody else.
fn start() -> SocketAddr {
    let mut index = Index::new(&Settings::default(), 0);
    Kind::ALL.into_iter().for_each(|kind| index.handle(&Event::Listing(kind), 0));
    objects().into_iter().for_each(|object| index.handle(&Event::Apply(object), 0));
    Kind::ALL.into_iter().for_each(|kind| index.handle(&Event::Listed(kind), 0));
    let metrics = DnsMetrics::register(&mut Registry::default());
    let forwarder = Forwarder::new([], metrics.clone()).unwrap();
    let sockets = loop {
        // TCP may be in use at the port that UDP gets.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if let Ok(sockets) = Sockets::open(&[port]) {
            break sockets;
        }
    };
    let address = sockets.0[0].0.local_addr().unwrap();
    sockets.serve(&Arc::new(Responder::new(Arc::new(RwLock::new(index)), forwarder, metrics)));
    address
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// The bytes that come back by UDP, if any do.
async fn udp(server: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = timeout(Duration::from_millis(500), socket.recv(&mut answer)).await.ok()?.unwrap();
    answer.truncate(length);
    Some(answer)
}

async fn ask(server: SocketAddr, message: &Message) -> Message {
    Message::from_vec(&udp(server, &message.to_vec().unwrap()).await.expect("an answer")).unwrap()
}

async fn code(server: SocketAddr, message: &Message) -> ResponseCode {
    ask(server, message).await.metadata.response_code
}

const WEB: &str = "web.shop.svc.cluster.local.";
const MANY: &str = "many.shop.svc.cluster.local.";

#[tokio::test]
async fn row_32_flags_are_those_of_an_authority() {
    let server = start();
    for (wants, unchecked) in [(true, false), (false, true)] {
        let mut message = query(WEB, RecordType::A);
        message.metadata.recursion_desired = wants;
        message.metadata.checking_disabled = unchecked;
        message.metadata.authentic_data = true;
        let flags = ask(server, &message).await.metadata;
        assert_eq!((flags.id, flags.message_type), (message.metadata.id, MessageType::Response));
        assert!(flags.authoritative && !flags.truncation && !flags.recursion_available);
        assert_eq!((flags.recursion_desired, flags.checking_disabled), (wants, unchecked));
        assert!(!flags.authentic_data);
        assert_eq!(flags.response_code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn row_3_the_question_comes_back_as_it_was_written() {
    let message = query("WeB.shop.SVC.cluster.local.", RecordType::A);
    let answer = ask(start(), &message).await;
    assert!(answer.queries[0].name().eq_case(message.queries[0].name()));
    assert!(answer.answers[0].name.eq_case(message.queries[0].name()));
}

#[tokio::test]
async fn row_33_no_answer_is_longer_than_its_client_takes() {
    let server = start();
    let question = || query(MANY, RecordType::A);
    let asked = [
        (question(), 512, 29, true),
        (with_edns(question(), 100), 512, 28, true),
        (with_edns(question(), 512), 512, 28, true),
        (with_edns(question(), 1232), 1232, 73, true),
        (with_edns(question(), 4096), 4096, 100, false),
    ];
    for (message, limit, count, truncated) in asked {
        let bytes = udp(server, &message.to_vec().unwrap()).await.unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= limit, "{} bytes of {limit}", bytes.len());
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (count, truncated), "of {limit}");
        assert!(limit - bytes.len() < 16 || !truncated, "another record would have fitted");
        assert_eq!(bytes.len(), answer.to_vec().unwrap().len(), "nothing is left of those that did not");
        assert_eq!(answer.edns.is_some(), message.edns.is_some(), "there is room for OPT");
    }
}

#[tokio::test]
async fn row_34_options_are_answered_with_options() {
    let server = start();
    assert_eq!(ask(server, &query(WEB, RecordType::A)).await.edns, None);
    let mut message = with_edns(query(WEB, RecordType::A), 1232);
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    let answer = ask(server, &message).await;
    assert_eq!(answer.answers.len(), 1);
    let edns = answer.edns.unwrap();
    assert_eq!((edns.version(), edns.flags().dnssec_ok, edns.max_payload()), (0, true, 1232));
    message.edns.as_mut().unwrap().set_version(1);
    let answer = ask(server, &message).await;
    // The library calls it BADSIG, which has the same number.
    let code = u16::from(answer.metadata.response_code);
    assert_eq!((code, answer.answers.len()), (ResponseCode::BADVERS.into(), 0));
    assert_eq!(answer.edns.unwrap().version(), 0);
}

/// Frames messages as TCP takes them.
fn framed(messages: &[&Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let message = message.to_vec().unwrap();
        bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
    }
    bytes
}

async fn next(stream: &mut TcpStream) -> Message {
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

#[tokio::test]
async fn row_35_a_connection_takes_many_questions_and_answers_whole() {
    let mut stream = TcpStream::connect(start()).await.unwrap();
    let (many, web) = (query(MANY, RecordType::A), query(WEB, RecordType::A));
    let bytes = framed(&[&many, &web, &web]);
    // Questions arrive in pieces, and together.
    let (first, rest) = bytes.split_at(7);
    stream.write_all(first).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(rest).await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        let answer = next(&mut stream).await;
        assert!(!answer.metadata.truncation);
        counts.push((answer.queries[0].name().to_string(), answer.answers.len()));
    }
    counts.sort();
    let one = (WEB.to_owned(), 1);
    assert_eq!(counts, [(MANY.to_owned(), 100), one.clone(), one]);
    for transfer in [RecordType::AXFR, RecordType::IXFR] {
        stream.write_all(&framed(&[&query("cluster.local.", transfer)])).await.unwrap();
        assert_eq!(next(&mut stream).await.metadata.response_code, ResponseCode::Refused);
    }
}

#[tokio::test]
async fn row_36_names_may_be_compressed() {
    let bytes = udp(start(), &query(WEB, RecordType::A).to_vec().unwrap()).await.unwrap();
    assert!(bytes.len() <= 90, "{} bytes", bytes.len());
}

#[tokio::test]
async fn row_37_what_is_malformed_or_odd_is_answered_as_such_or_not_at_all() {
    let server = start();
    let good = query(WEB, RecordType::A).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let answered = [
        (with(&|it| it[5] = 0), ResponseCode::FormErr),
        (with(&|it| it[5] = 2), ResponseCode::FormErr),
        (with(&|it| it[12..14].copy_from_slice(&[0xc0, 0x0c])), ResponseCode::FormErr),
        (with(&|it| it.truncate(20)), ResponseCode::FormErr),
        (with(&|it| it.truncate(12)), ResponseCode::FormErr),
        (with(&|it| it[7] = 9), ResponseCode::FormErr),
        (with(&|it| it[2] = 2 << 3), ResponseCode::NotImp),
        (with(&|it| it[2] = 5 << 3), ResponseCode::NotImp),
        (with(&|it| it[2] = 15 << 3), ResponseCode::NotImp),
        (with(&|it| it.extend([1, 2, 3])), ResponseCode::NoError),
        (with(&|it| it[2] = 4 << 3), ResponseCode::NoError),
    ];
    for (bytes, expected) in answered {
        let answer = Message::from_vec(&udp(server, &bytes).await.expect("an answer")).unwrap().metadata;
        assert_eq!(answer.response_code, expected, "{bytes:02x?}");
        assert_eq!(
            (answer.id.to_be_bytes(), u8::from(answer.op_code)),
            ([bytes[0], bytes[1]], bytes[2] >> 3 & 0xf)
        );
    }
    for silent in [with(&|it| it.truncate(11)), with(&|it| it[2] |= 0x80), Vec::new()] {
        assert_eq!(udp(server, &silent).await, None, "{silent:02x?}");
    }
    let mut chaos = query(WEB, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(server, &chaos).await, ResponseCode::Refused);
    let mut notify = query(WEB, RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(ask(server, &notify).await.answers.len(), 1);
}

#[tokio::test]
async fn row_38_addresses_come_in_any_order() {
    let server = start();
    let mut firsts = std::collections::HashSet::new();
    for _ in 0..20 {
        let answer = ask(server, &with_edns(query(MANY, RecordType::A), 4096)).await;
        firsts.insert(answer.answers[0].data.to_string());
    }
    assert!(firsts.len() > 1, "the first of a hundred was the same each time");
}

#[tokio::test]
async fn row_17_an_alias_stands_alone_if_its_end_cannot_be_had() {
    let answer = ask(start(), &query("outside.shop.svc.cluster.local.", RecordType::A)).await;
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME]);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn negative_answers_have_a_soa_record() {
    for (name, kind, expected) in [
        ("none.shop.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        (WEB, RecordType::AAAA, ResponseCode::NoError),
    ] {
        let answer = ask(start(), &query(name, kind)).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (expected, 0));
        assert!(answer.metadata.authoritative);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
}

#[tokio::test]
async fn names_outside_are_refused_where_there_is_nobody_to_ask() {
    assert_eq!(code(start(), &query("www.example.com.", RecordType::A)).await, ResponseCode::Refused);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_flag() {
    let taken = Sockets::open(&[start()]).unwrap_err().to_string();
    assert!(taken.contains("127.0.0.1:") && taken.contains("--dns-listen"), "{taken}");
}
