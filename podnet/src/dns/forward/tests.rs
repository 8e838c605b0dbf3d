//! Forwarding to servers on loopback that answer, or do not.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::UdpSocket;

use super::*;

/// How a server on loopback answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// With this address.
    Address(u8),
    /// That there is no such name.
    NoName,
    /// That it cannot.
    ServFail,
    /// Not at all.
    Silent,
}

/// A server on loopback.
struct Server {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let it = Self { address, manner: Arc::new(Mutex::new(manner)), asked: Arc::default() };
        let (manner, asked) = (it.manner.clone(), it.asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                if !query.queries[0].name().is_root() {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                let manner = *manner.lock().unwrap();
                if let Some(answer) = answer(query, manner) {
                    socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        it
    }

    fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(query: Message, manner: Manner) -> Option<Message> {
    let name = query.queries[0].name().clone();
    let mut answer = query.into_response();
    match manner {
        Manner::Address(host) => {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, host)));
            answer.add_answer(Record::from_rdata(name, 300, data));
        }
        Manner::NoName => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 60);
            answer.add_authority(Record::from_rdata(Name::root(), 300, RData::SOA(soa)));
        }
        Manner::ServFail => answer.metadata.response_code = ResponseCode::ServFail,
        Manner::Silent => return None,
    }
    Some(answer)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str) -> Question {
    Question { name: name(text), kind: RecordType::A, dnssec: false, unchecked: false }
}

fn forwarder(servers: &[&Server]) -> (Forwarder, Registry) {
    let mut registry = Registry::default();
    let metrics = DnsMetrics::register(&mut registry);
    let addresses = servers.iter().map(|server| server.address).collect();
    (Forwarder::new([(Name::root(), addresses)], metrics).unwrap(), registry)
}

fn data(reply: &Reply) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn an_answer_is_asked_for_once_while_it_holds() {
    let server = Server::start(Manner::Address(1)).await;
    let (forwarder, registry) = forwarder(&[&server]);
    for _ in 0..3 {
        assert_eq!(data(&forwarder.resolve(question("www.example.com.")).await), ["192.0.2.1"]);
    }
    assert_eq!(server.asked(), 1);
    let mut encoded = String::new();
    text::encode(&mut encoded, &registry).unwrap();
    for line in ["cache_total{result=\"hit\"} 2", "cache_total{result=\"miss\"} 1", "forward_seconds_count 1"]
    {
        assert!(encoded.contains(line), "no {line} in:\n{encoded}");
    }
}

#[tokio::test]
async fn a_negative_answer_is_kept_too() {
    let server = Server::start(Manner::NoName).await;
    let (forwarder, _) = forwarder(&[&server]);
    for _ in 0..2 {
        let reply = forwarder.resolve(question("none.example.com.")).await;
        assert_eq!((reply.code, reply.authorities.len()), (ResponseCode::NXDomain, 1));
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn another_server_is_asked_where_one_fails() {
    let (broken, silent) = (Server::start(Manner::ServFail).await, Server::start(Manner::Silent).await);
    let good = Server::start(Manner::Address(3)).await;
    let (forwarder, _) = forwarder(&[&broken, &silent, &good]);
    assert_eq!(data(&forwarder.resolve(question("a.example.com.")).await), ["192.0.2.3"]);
    let before = silent.asked();
    assert!(before > 0);
    let start = Instant::now();
    assert_eq!(data(&forwarder.resolve(question("b.example.com.")).await), ["192.0.2.3"]);
    assert!(start.elapsed() < Duration::from_secs(1), "the silent one is left aside");
    assert_eq!(silent.asked(), before);
    // It is asked again once it answers.
    silent.set(Manner::Address(2));
    let back = async {
        for number in 0.. {
            let reply = forwarder.resolve(question(&format!("c{number}.example.com."))).await;
            if data(&reply) == ["192.0.2.2"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(10), back).await.expect("the server is asked again");
}

#[tokio::test]
async fn what_nobody_answers_fails_and_is_not_asked_again_at_once() {
    let server = Server::start(Manner::ServFail).await;
    let (forwarder, _) = forwarder(&[&server]);
    for _ in 0..3 {
        assert_eq!(forwarder.resolve(question("www.example.com.")).await.code, ResponseCode::ServFail);
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn an_answer_that_held_is_served_while_nobody_answers() {
    let server = Server::start(Manner::ServFail).await;
    let (forwarder, _) = forwarder(&[&server]);
    let record = Record::from_rdata(name("www.example.com."), 5, RData::A(A(Ipv4Addr::new(192, 0, 2, 7))));
    let reply = Reply { answers: vec![record], ..Reply::of(ResponseCode::NoError) };
    let a_while_ago = Instant::now() - Duration::from_secs(60);
    forwarder.0.cache.put(question("www.example.com."), reply, a_while_ago);
    for manner in [Manner::ServFail, Manner::Silent] {
        server.set(manner);
        let start = Instant::now();
        let reply = forwarder.resolve(question("www.example.com.")).await;
        assert_eq!((data(&reply), reply.answers[0].ttl), (vec!["192.0.2.7".to_owned()], 30));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    server.set(Manner::Address(8));
    let fresh = async {
        loop {
            let reply = forwarder.resolve(question("www.example.com.")).await;
            if data(&reply) == ["192.0.2.8"] {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(10), fresh).await.expect("the new answer");
}

#[tokio::test]
async fn the_servers_of_the_longest_domain_are_asked() {
    let [all, corp, sub] = [1, 2, 3].map(Manner::Address).map(Server::start);
    let (all, corp, sub) = (all.await, corp.await, sub.await);
    let domains = [
        (Name::root(), vec![all.address]),
        (name("corp.example."), vec![corp.address]),
        (name("sub.Corp.example."), vec![sub.address]),
    ];
    let forwarder = Forwarder::new(domains, DnsMetrics::register(&mut Registry::default())).unwrap();
    for (asked, expected) in [
        ("www.example.", "192.0.2.1"),
        ("notcorp.example.", "192.0.2.1"),
        ("corp.example.", "192.0.2.2"),
        ("www.corp.example.", "192.0.2.2"),
        ("a.sub.corp.example.", "192.0.2.3"),
    ] {
        assert_eq!(data(&forwarder.resolve(question(asked)).await), [expected], "{asked}");
    }
}
