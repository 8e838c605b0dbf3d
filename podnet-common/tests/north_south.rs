//! Clients outside of the node, and the node itself.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::conntrack::{Time, Tuple, Way};
use podnet_common::host::{HostTables, WayOut, early_all, route_all};
use podnet_common::icmp;
use podnet_common::network::{Network, ServiceNetworks, Source};
use podnet_common::origin::MASQUERADE_PORTS;
use podnet_common::packet::{ETHERNET, IPV4, IPV6};
use podnet_common::route::Hook;
use podnet_common::service::{
    Backend, BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKey, FrontendKind, ServiceId,
    SlotRange,
};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use support::*;

const LOCAL: usize = 0;
const REMOTE: usize = 1;
const UPLINK: u32 = 2;

/// A node port with two backends, one on this node.
struct Cast {
    family: Family,
    protocol: Protocol,
    client: Endpoint,
    node: Endpoint,
    backends: [Endpoint; 2],
    tables: HostTables,
}

fn outside(family: Family, n: u8, port: u16) -> Endpoint {
    match family {
        Family::V4 => endpoint([192, 0, 2, n], port),
        Family::V6 => endpoint([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()], port),
    }
}

fn casts() -> impl Iterator<Item = Cast> {
    KINDS.into_iter().map(|(family, protocol)| {
        let node = outside(family, 1, 30080);
        let backends = [pod(family, 2, 8080), pod(family, 3, 8080)];
        let mut tables = HostTables::new(1);
        tables.serve(node, protocol, backends);
        for frontend in tables.frontends.values_mut() {
            frontend.kind = FrontendKind::NODE_PORT;
        }
        tables.change(BackendId(1), |mut backend| {
            backend.flags = backend.flags.with(BackendFlags::LOCAL);
            backend
        });
        tables.interface = UPLINK;
        tables.ways_out = vec![WayOut { interface: UPLINK, source: node.addr }];
        Cast { family, protocol, client: outside(family, 9, 40000), node, backends, tables }
    })
}

impl Cast {
    fn frontend(&mut self) -> &mut Frontend {
        self.tables.frontends.get_mut(&FrontendKey::new(self.node, self.protocol)).unwrap()
    }

    fn draw(&mut self, backend: usize) {
        self.tables.drawn.push_back(if backend == LOCAL { 0 } else { u32::MAX });
    }

    /// The client's first packet, drawn for `backend`.
    fn open(&mut self, backend: usize) -> (Verdict, Seen) {
        self.draw(backend);
        let mut frame = opening(self.client, self.node, self.protocol);
        let verdict = from_net(&mut frame, &mut self.tables);
        (verdict, read(&frame).unwrap())
    }
}

#[test]
fn a_local_backend_sees_the_clients_own_address() {
    for mut cast in casts() {
        let (verdict, seen) = cast.open(LOCAL);
        assert_eq!(verdict, Verdict::Translated(Reason::NewFlow));
        assert_eq!((seen.from(), seen.to()), (cast.client, cast.backends[LOCAL]));

        let answer = frame(cast.backends[LOCAL], cast.client, cast.protocol, SYN | ACK, b"");
        let mut early = answer.clone();
        assert_eq!(from_pod(&mut early, &mut cast.tables), Verdict::Pass(Reason::NotService));
        assert_eq!(early, answer, "the node's stack would drop it");
        let mut late = answer;
        assert_eq!(to_net(&mut late, &mut cast.tables), Verdict::Translated(Reason::Reply));
        let seen = read(&late).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.node, cast.client));
    }
}

/// Semantics section 5: ClusterIPs are masqueraded for who is none of the cluster's pods.
#[test]
fn a_cluster_ip_hides_who_comes_from_outside() {
    for mut cast in casts() {
        cast.frontend().kind = FrontendKind::CLUSTER_IP;
        let (verdict, seen) = cast.open(LOCAL);
        assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!((seen.from().addr, seen.to()), (cast.node.addr, cast.backends[LOCAL]));
    }
}

/// Likewise, where it is addresses that tell pods.
#[test]
fn a_cluster_ip_shows_whose_address_is_in_the_pods_networks() {
    for mut cast in casts() {
        cast.frontend().kind = FrontendKind::CLUSTER_IP;
        cast.frontend().flags = FrontendFlags::POD_NETWORKS;
        let (there, here) = (cast.client, pod(cast.family, 9, 40000));
        let within = |source: Endpoint| vec![(Source::new(ServiceId::PODS, source.addr), 24)];
        for backend in [LOCAL, REMOTE] {
            cast.tables.sources = within(there);
            cast.tables.flows.clear();
            let (verdict, seen) = cast.open(backend);
            assert_eq!(verdict, Verdict::Translated(Reason::NewFlow), "a pod of another node");
            assert_eq!((seen.from(), seen.to()), (there, cast.backends[backend]));
            let mut answer = frame(cast.backends[backend], there, cast.protocol, SYN | ACK, b"");
            assert_eq!(to_net(&mut answer, &mut cast.tables), Verdict::Translated(Reason::Reply));
            assert_eq!(read(&answer).unwrap().from(), cast.node);

            for (sources, verdict, source) in [
                (within(there), Verdict::Forward(UPLINK, Reason::NewFlow), cast.node.addr),
                (within(here), Verdict::Translated(Reason::NewFlow), here.addr),
            ] {
                cast.tables.sources = sources;
                cast.tables.flows.clear();
                cast.draw(backend);
                let mut request = opening(here, cast.node, cast.protocol);
                assert_eq!(from_pod(&mut request, &mut cast.tables), verdict);
                let seen = read(&request).unwrap();
                assert_eq!((seen.from().addr, seen.to()), (source, cast.backends[backend]));
            }
        }
    }
}

#[test]
fn a_remote_backend_sees_this_node_and_answers_through_it() {
    for mut cast in casts() {
        let (verdict, seen) = cast.open(REMOTE);
        assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!(seen.to(), cast.backends[REMOTE]);
        let source = seen.from();
        assert_eq!(source.addr, cast.node.addr);
        assert!(MASQUERADE_PORTS.contains(&source.port.get()), "{source:?}");

        let mut answer = frame(cast.backends[REMOTE], source, cast.protocol, SYN | ACK, b"");
        assert_eq!(from_net(&mut answer, &mut cast.tables), Verdict::Forward(UPLINK, Reason::Reply));
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.node, cast.client));

        let mut more = data(cast.client, cast.node, cast.protocol);
        assert_eq!(from_net(&mut more, &mut cast.tables), Verdict::Forward(UPLINK, Reason::Established));
        let seen = read(&more).unwrap();
        assert_eq!((seen.from(), seen.to()), (source, cast.backends[REMOTE]));
    }
}

/// What becomes of a frame at a network card, as which it must have been left if that is nothing.
fn at_the_card(frame: &mut Vec<u8>, tables: &mut HostTables) -> Verdict {
    let sent = frame.clone();
    let verdict = early_all(frame, tables);
    assert!(verdict != Verdict::Leave || *frame == sent);
    verdict
}

#[test]
fn a_network_card_serves_clients_outside() {
    const HOP: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x99], [2, 0, 0, 0, 0, 0x98]];
    for mut cast in casts() {
        cast.tables.next_hop = Some(HOP);
        cast.draw(LOCAL);
        let mut first = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(at_the_card(&mut first, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
        assert_eq!(read(&first).unwrap().to(), cast.backends[LOCAL]);
        let mut more = data(cast.client, cast.node, cast.protocol);
        let macs = more[..12].to_vec();
        assert_eq!(at_the_card(&mut more, &mut cast.tables), Verdict::Translated(Reason::Established));
        let seen = read(&more).unwrap();
        assert_eq!((seen.from(), seen.to(), &more[..12]), (cast.client, cast.backends[LOCAL], &macs[..]));

        cast.tables.flows.clear();
        cast.draw(REMOTE);
        let mut first = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(at_the_card(&mut first, &mut cast.tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        let source = read(&first).unwrap().from();
        let mut more = data(cast.client, cast.node, cast.protocol);
        assert_eq!(at_the_card(&mut more, &mut cast.tables), Verdict::Forward(UPLINK, Reason::Established));
        let seen = read(&more).unwrap();
        assert_eq!(
            (seen.from(), seen.to(), &more[..12]),
            (source, cast.backends[REMOTE], HOP.as_flattened())
        );
        let mut answer = frame(cast.backends[REMOTE], source, cast.protocol, SYN | ACK, b"");
        assert_eq!(at_the_card(&mut answer, &mut cast.tables), Verdict::Forward(UPLINK, Reason::Reply));
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to(), &answer[..12]), (cast.node, cast.client, HOP.as_flattened()));
    }
}

/// An external address of the node with the port of a backend in its network, for instance.
#[test]
fn a_backend_that_is_a_frontend_is_not_translated_twice() {
    for mut cast in casts() {
        let backend = cast.backends[LOCAL];
        cast.tables.serve(backend, cast.protocol, [pod(cast.family, 7, 9090)]);
        cast.draw(LOCAL);
        let mut first = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(at_the_card(&mut first, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
        let translated = first.clone();
        assert_eq!(from_net(&mut first, &mut cast.tables), Verdict::Pass(Reason::NotService));
        assert_eq!(first, translated);

        let mut direct = opening(outside(cast.family, 8, 40000), backend, cast.protocol);
        assert_eq!(from_net(&mut direct, &mut cast.tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!(read(&direct).unwrap().to(), pod(cast.family, 7, 9090));
    }
}

/// Whatever the card's program cannot finish.
#[test]
fn a_network_card_leaves_the_rest_to_the_stack() {
    for mut cast in casts() {
        let (_, seen) = cast.open(REMOTE);
        let mut more = data(cast.client, cast.node, cast.protocol);
        let mut refused = opening(cast.client, cast.node, cast.protocol);
        let mut tables = cast.tables.clone();
        tables.flows.clear();
        tables.frontends.values_mut().for_each(|frontend| frontend.outside = SlotRange::default());
        assert_eq!(at_the_card(&mut refused, &mut tables), Verdict::Leave, "there are no endpoints");
        for (case, change) in [
            ("too large for the way", (|tables| tables.mtu = 40) as fn(&mut HostTables)),
            ("no known way", |tables| tables.ways_out.clear()),
        ] {
            let mut tables = cast.tables.clone();
            change(&mut tables);
            assert_eq!(at_the_card(&mut more, &mut tables), Verdict::Leave, "{case}");
        }
        let mut answer = data(cast.backends[REMOTE], seen.from(), cast.protocol);
        let mut tables = cast.tables.clone();
        tables.wait(1);
        for packet in [&mut more, &mut answer] {
            assert_eq!(at_the_card(packet, &mut tables), Verdict::Leave, "the next hop may have gone");
            let mut behind = packet.clone();
            assert!(matches!(from_net(&mut behind, &mut tables), Verdict::Forward(UPLINK, _)));
            let mut next = packet.clone();
            assert!(matches!(at_the_card(&mut next, &mut tables), Verdict::Forward(UPLINK, _)));
        }
        let mut to_node = answer;
        for flow in cast.tables.flows.values_mut() {
            flow.way = Way::NODE;
        }
        assert_eq!(at_the_card(&mut to_node, &mut cast.tables), Verdict::Leave, "for the node itself");
        if cast.protocol == Protocol::UDP {
            cast.tables.flows.clear();
            cast.open(LOCAL);
            cast.tables.wait(2);
            assert_eq!(
                at_the_card(&mut more, &mut cast.tables),
                Verdict::Leave,
                "its frontend is to be asked"
            );
        }
    }
}

/// What an ICMP error in `frame` says: type, code and the word behind them; and which packet it is about.
fn complaint(frame: &[u8]) -> ((u8, u8, u32), Seen) {
    let seen = read(frame).unwrap();
    let Transport::Icmp(kind, code, _) = seen.transport else { panic!("not ICMP: {seen:?}") };
    let icmp = ETHERNET + if seen.source.is_ipv4() { IPV4 } else { IPV6 };
    let word = u32::from_be_bytes(frame[icmp + 4..icmp + 8].try_into().unwrap());
    ((kind, code, word), seen)
}

/// The packet that an ICMP error quotes.
fn quoted(frame: &[u8]) -> Tuple {
    let mut frame = frame.to_vec();
    icmp::parse(&mut frame).unwrap().quoted
}

/// Path MTU discovery (RFC 1191, RFC 8201): who has sent too much is told, whichever end of a masqueraded flow
/// that is.
#[test]
fn what_is_too_large_for_the_way_on_is_answered() {
    for mut cast in casts() {
        let (verdict, seen) = cast.open(REMOTE);
        assert!(matches!(verdict, Verdict::Forward(..)));
        let (node, client, backend) = (seen.from(), cast.client, cast.backends[REMOTE]);
        cast.tables.mtu = 1400;
        let told = if cast.family == Family::V4 { (3, 4, 1400) } else { (2, 0, 1400) };
        for (from, to) in [(client, cast.node), (backend, node)] {
            let headers = if cast.family == Family::V4 { IPV4 } else { IPV6 }
                + if cast.protocol == Protocol::TCP { 20 } else { 8 };
            let fits = frame(from, to, cast.protocol, ACK, &vec![7; 1400 - headers]);
            assert!(matches!(from_net(&mut fits.clone(), &mut cast.tables), Verdict::Forward(..)));
            let sent = frame(from, to, cast.protocol, ACK, &vec![7; 1401 - headers]);
            let mut answer = sent.clone();
            assert_eq!(from_net(&mut answer, &mut cast.tables), Verdict::Return(Reason::TooBig));
            let (error, seen) = complaint(&answer);
            assert_eq!(error, told);
            assert_eq!((seen.source, seen.destination), (to.addr.to_ip(), from.addr.to_ip()));
            assert_eq!(quoted(&answer), Tuple::between(from, to, cast.protocol));
            assert_eq!((&answer[..6], &answer[6..12]), (&sent[6..12], &sent[..6]));
        }
    }
}

/// The first datagram of a flow may be too large already; its client sends it again in parts.
#[test]
fn the_first_packet_of_a_flow_may_be_too_large() {
    for mut cast in casts() {
        cast.tables.mtu = 1300;
        cast.draw(REMOTE);
        let large = frame(cast.client, cast.node, cast.protocol, SYN, &[7; 1400]);
        assert_eq!(from_net(&mut large.clone(), &mut cast.tables), Verdict::Return(Reason::TooBig));
        let small = frame(cast.client, cast.node, cast.protocol, SYN, &[7; 1000]);
        let verdict = from_net(&mut small.clone(), &mut cast.tables);
        assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::Established));
        // A backend on this node needs no way out.
        cast.client.port = podnet_common::wire::Be16::new(7);
        cast.draw(LOCAL);
        let mut local = frame(cast.client, cast.node, cast.protocol, SYN, &[7; 1400]);
        assert_eq!(from_net(&mut local, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
    }
}

/// The node's own sockets hear of it where their packets left.
#[test]
fn the_node_itself_is_told_what_is_too_large() {
    for mut cast in casts() {
        let client = Endpoint { port: podnet_common::wire::Be16::new(33333), ..cast.node };
        cast.tables.mtu = 1300;
        cast.draw(REMOTE);
        let mut sent = frame(client, cast.node, cast.protocol, SYN, &[7; 1400]);
        assert_eq!(to_net(&mut sent, &mut cast.tables), Verdict::Inject(UPLINK, Reason::TooBig));
        assert_eq!(complaint(&sent).0.2, 1300);
    }
}

#[test]
fn complaints_are_limited() {
    for mut cast in casts() {
        cast.open(REMOTE);
        cast.tables.mtu = 1300;
        let large = frame(cast.client, cast.node, cast.protocol, ACK, &[7; 1400]);
        let answered = (0..1000)
            .filter(|_| {
                let verdict = from_net(&mut large.clone(), &mut cast.tables);
                assert!(matches!(verdict.reason(), Reason::TooBig | Reason::TooManyRefusals));
                verdict.reason() == Reason::TooBig
            })
            .count();
        assert_eq!(answered, 670);
    }
}

/// A router counts its hop, and says so to who has used them up (RFC 1812, 5.3.1).
#[test]
fn a_masqueraded_packet_loses_a_hop() {
    for mut cast in casts() {
        let hops = |frame: &[u8]| if cast.family == Family::V4 { frame[22] } else { frame[21] };
        let mut sent = opening(cast.client, cast.node, cast.protocol);
        let before = hops(&sent);
        cast.tables.drawn.push_back(u32::MAX);
        assert!(matches!(from_net(&mut sent, &mut cast.tables), Verdict::Forward(..)));
        assert_eq!(hops(&sent), before - 1);

        let mut last = data(cast.client, cast.node, cast.protocol);
        let at = if cast.family == Family::V4 { 22 } else { 21 };
        last[at] = 1;
        if cast.family == Family::V4 {
            // The checksum of the header, which is one byte more in the same word.
            last[24] += 60;
        }
        assert_eq!(from_net(&mut last, &mut cast.tables), Verdict::Return(Reason::Expired));
        let (error, seen) = complaint(&last);
        assert_eq!(error, if cast.family == Family::V4 { (11, 0, 0) } else { (3, 0, 0) });
        let (node, client) = (cast.node.addr.to_ip(), cast.client.addr.to_ip());
        assert_eq!((seen.source, seen.destination), (node, client));
        assert_eq!(quoted(&last), Tuple::between(cast.client, cast.node, cast.protocol));
    }
}

#[test]
fn masqueraded_clients_do_not_share_a_source_port() {
    for mut cast in casts() {
        for n in 0..200 {
            cast.client.port = podnet_common::wire::Be16::new(1000 + n);
            let (verdict, _) = cast.open(REMOTE);
            assert!(matches!(verdict, Verdict::Forward(..)), "{verdict:?}");
        }
        let replies = cast.tables.flows.keys().filter(|tuple| tuple.source() == cast.backends[REMOTE]);
        assert_eq!(replies.count(), 200);
    }
}

/// Semantics of exhaustion: the port of the flow that was idle for longest goes to the new one, if that was
/// long enough; nothing of the old flow is delivered by it any more.
#[test]
fn a_source_port_in_use_is_taken_from_an_idle_flow_only() {
    for mut cast in casts() {
        let same_port = |cast: &mut Cast| cast.tables.drawn.extend([0; 17]);
        let first = cast.client;
        cast.draw(REMOTE);
        same_port(&mut cast);
        let mut sent = opening(first, cast.node, cast.protocol);
        assert!(matches!(from_net(&mut sent, &mut cast.tables), Verdict::Forward(..)));
        let source = read(&sent).unwrap().from();
        // A packet after an answer makes the flow live longer than it must have been idle for.
        let mut answer = frame(cast.backends[REMOTE], source, cast.protocol, SYN | ACK, b"");
        assert!(matches!(from_net(&mut answer, &mut cast.tables), Verdict::Forward(..)));
        let mut more = data(first, cast.node, cast.protocol);
        assert!(matches!(from_net(&mut more, &mut cast.tables), Verdict::Forward(..)));

        cast.client = outside(cast.family, 10, 50000);
        cast.tables.drawn.clear();
        cast.draw(REMOTE);
        same_port(&mut cast);
        let mut refused = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(from_net(&mut refused, &mut cast.tables), Verdict::Drop(Reason::SourcePorts));

        cast.tables.wait(61);
        cast.tables.drawn.clear();
        cast.draw(REMOTE);
        same_port(&mut cast);
        let mut taken = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(from_net(&mut taken, &mut cast.tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!(read(&taken).unwrap().from(), source);
        let mut answer = frame(cast.backends[REMOTE], source, cast.protocol, SYN | ACK, b"");
        assert!(matches!(from_net(&mut answer, &mut cast.tables), Verdict::Forward(..)));
        assert_eq!(read(&answer).unwrap().to(), cast.client);
        let key = Tuple::between(first, cast.node, cast.protocol);
        assert!(!cast.tables.flows.contains_key(&key), "the flow before has ended");
    }
}

#[test]
fn masquerade_without_a_route_is_dropped() {
    for mut cast in casts() {
        cast.tables.ways_out.clear();
        assert_eq!(cast.open(REMOTE).0, Verdict::Drop(Reason::NoRoute));
        assert_eq!(cast.open(LOCAL).0, Verdict::Translated(Reason::NewFlow));
    }
}

#[test]
fn masquerade_all_hides_pods_from_local_backends_too() {
    for mut cast in casts() {
        cast.frontend().flags = FrontendFlags::MASQUERADE;
        let client = pod(cast.family, 7, 1234);
        cast.draw(LOCAL);
        let mut sent = opening(client, cast.node, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        let source = read(&sent).unwrap().from();
        assert_eq!(source.addr, cast.node.addr);
        let mut answer = frame(cast.backends[LOCAL], source, cast.protocol, SYN | ACK, b"");
        assert_eq!(from_pod(&mut answer, &mut cast.tables), Verdict::Forward(UPLINK, Reason::Reply));
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.node, client));
        let mut delivered = answer.clone();
        assert_eq!(to_pod(&mut delivered, &mut cast.tables), Verdict::Pass(Reason::NotService));
        assert_eq!(delivered, answer, "once is enough");
    }
}

/// What the node's own sockets send is met as it leaves; answers come in as if by the same interface, to
/// its MAC address.
#[test]
fn the_node_itself_is_a_client() {
    for mut cast in casts() {
        let client = Endpoint { port: podnet_common::wire::Be16::new(33333), ..cast.node };
        cast.draw(LOCAL);
        let mut sent = opening(client, cast.node, cast.protocol);
        let mac: [u8; 6] = sent[6..12].try_into().unwrap();
        assert_eq!(to_net(&mut sent, &mut cast.tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        let seen = read(&sent).unwrap();
        let source = seen.from();
        assert_eq!((source.addr, seen.to()), (client.addr, cast.backends[LOCAL]));
        assert!(
            MASQUERADE_PORTS.contains(&source.port.get()),
            "another socket may have the same port towards the backend itself"
        );
        let mut answer = frame(cast.backends[LOCAL], source, cast.protocol, SYN | ACK, b"");
        cast.tables.interface = 77;
        assert_eq!(from_pod(&mut answer, &mut cast.tables), Verdict::Inject(UPLINK, Reason::Reply));
        assert_eq!(answer[..6], mac);
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.node, client));
    }
}

/// Who checks sources strictly takes from a tunnel only addresses that are behind it: a node's packets to a backend
/// elsewhere have the one that the routing table gives for the way there.
#[test]
fn a_remote_backend_sees_the_node_by_its_address_on_the_way() {
    const TUNNEL: u32 = 44;
    for mut cast in casts() {
        let client = Endpoint { port: podnet_common::wire::Be16::new(33333), ..cast.node };
        let address = outside(cast.family, 5, 0).addr;
        cast.tables.ways_out = vec![WayOut { interface: TUNNEL, source: address }];
        cast.draw(REMOTE);
        let mut sent = opening(client, cast.node, cast.protocol);
        let mac: [u8; 6] = sent[6..12].try_into().unwrap();
        assert_eq!(to_net(&mut sent, &mut cast.tables), Verdict::Forward(TUNNEL, Reason::NewFlow));
        let seen = read(&sent).unwrap();
        assert_eq!((seen.from().addr, seen.to()), (address, cast.backends[REMOTE]));
        let mut answer = frame(cast.backends[REMOTE], seen.from(), cast.protocol, SYN | ACK, b"");
        cast.tables.interface = TUNNEL;
        assert_eq!(from_net(&mut answer, &mut cast.tables), Verdict::Inject(UPLINK, Reason::Reply));
        assert_eq!(answer[..6], mac);
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.node, client));
    }
}

#[test]
fn no_endpoints_refuses_the_node_where_it_hears_it() {
    for mut cast in casts() {
        let client = Endpoint { port: podnet_common::wire::Be16::new(33333), ..cast.node };
        *cast.frontend() = cast.frontend().with_slots(SlotRange::default(), SlotRange::default());
        let mut sent = opening(client, cast.node, cast.protocol);
        assert_eq!(to_net(&mut sent, &mut cast.tables), Verdict::Inject(UPLINK, Reason::NoEndpoints));
        let mut sent = opening(cast.client, cast.node, cast.protocol);
        assert_eq!(from_net(&mut sent, &mut cast.tables), Verdict::Return(Reason::NoEndpoints));
    }
}

#[test]
fn policy_local_drops_outside_and_serves_inside() {
    for mut cast in casts() {
        let flags = FrontendFlags::OUTSIDE_LOCAL.with(FrontendFlags::OUTSIDE_DROP);
        cast.frontend().flags = flags;
        *cast.frontend() = cast.frontend().with_slots(SlotRange { base: 0, count: 2 }, SlotRange::default());
        assert_eq!(cast.open(LOCAL).0, Verdict::Drop(Reason::NoneLocal));
        let mut sent = opening(pod(cast.family, 7, 1234), cast.node, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
    }
}

#[test]
fn source_ranges_hold_for_every_source() {
    for mut cast in casts() {
        let service = cast.frontend().service;
        cast.frontend().flags = FrontendFlags::SOURCE_RANGES;
        let length = if cast.family == Family::V4 { 24 } else { 64 };
        cast.tables.sources = vec![(Source::new(service, cast.client.addr), length)];
        assert_eq!(cast.open(LOCAL).0, Verdict::Translated(Reason::NewFlow));
        let mut sent = opening(pod(cast.family, 7, 1234), cast.node, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Drop(Reason::SourceRange));
        cast.tables.sources[0].0 = Source::new(ServiceId(99), cast.client.addr);
        cast.client.port = podnet_common::wire::Be16::new(7);
        assert_eq!(cast.open(LOCAL).0, Verdict::Drop(Reason::SourceRange), "they are another service's");
    }
}

#[test]
fn any_other_port_of_a_cluster_ip_is_refused() {
    for mut cast in casts() {
        let at = service(cast.family, 1, 0).addr;
        let rest = Frontend::new(FrontendKind::CLUSTER_IP_REST, ServiceId(1), SlotRange::default());
        cast.tables.frontends.insert(FrontendKey::rest_of(at), rest);
        let client = pod(cast.family, 7, 1234);
        let to = service(cast.family, 1, 81);
        let mut sent = opening(client, to, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Return(Reason::NoPort));
        let seen = read(&sent).unwrap();
        assert_eq!((seen.source, seen.destination), (to.addr.to_ip(), client.addr.to_ip()));
        let mut middle = frame(client, to, Protocol::TCP, ACK, b"");
        assert_eq!(from_pod(&mut middle, &mut cast.tables), Verdict::Pass(Reason::MidConnection));
    }
}

/// The filter remembers what the tables no longer have.
#[test]
fn the_address_of_a_deleted_service_is_dropped_too() {
    for mut cast in casts() {
        let to = service(cast.family, 1, 80);
        let mut networks = ServiceNetworks::default();
        networks.0[0] = Network::new(to.addr, if cast.family == Family::V4 { 16 } else { 108 });
        cast.tables.networks = networks;
        // A flow to another port keeps the address in the filter.
        let client = pod(cast.family, 7, 1234);
        cast.tables.serve(to, cast.protocol, [pod(cast.family, 2, 8080)]);
        let mut sent = opening(client, to, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
        cast.tables.frontends.remove(&FrontendKey::new(to, cast.protocol));
        let other = service(cast.family, 1, 81);
        let mut sent = opening(client, other, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Drop(Reason::Unassigned));
    }
}

#[test]
fn a_backend_with_the_nodes_own_address_is_not_masqueraded() {
    for mut cast in casts() {
        cast.frontend().flags = FrontendFlags::MASQUERADE;
        // The routing table has no way out to the node itself.
        cast.tables.ways_out.clear();
        assert_eq!(cast.open(LOCAL).0, Verdict::Translated(Reason::NewFlow));
    }
}

#[test]
fn an_unassigned_address_of_the_services_network_is_dropped() {
    for mut cast in casts() {
        let to = service(cast.family, 99, 80);
        let length = if cast.family == Family::V4 { 16 } else { 108 };
        let client = pod(cast.family, 7, 1234);
        let mut sent = opening(client, to, cast.protocol);
        assert_eq!(from_pod(&mut sent, &mut cast.tables), Verdict::Pass(Reason::NotService));
        let mut networks = ServiceNetworks::default();
        networks.0[7] = Network::new(to.addr, length);
        cast.tables.networks = networks;
        for hook in [Hook::FromPod, Hook::FromNet, Hook::ToNet] {
            let mut sent = opening(client, to, cast.protocol);
            assert_eq!(route_all(hook, &mut sent, &mut cast.tables), Verdict::Drop(Reason::Unassigned));
        }
        let mut other = opening(client, pod(cast.family, 8, 80), cast.protocol);
        assert_eq!(from_pod(&mut other, &mut cast.tables), Verdict::Pass(Reason::NotService));
    }
}

/// Semantics section 4: connected UDP sockets move too. The socket goes on thinking of the backend that it
/// was led to as its peer.
#[test]
fn datagrams_of_a_socket_that_was_led_to_a_backend_now_gone_move() {
    for family in FAMILIES {
        let (client, at) = (pod(family, 1, 40000), service(family, 1, 53));
        let [gone, live] = [pod(family, 2, 5353), pod(family, 3, 5353)];
        let mut tables = HostTables::new(1);
        let ids = tables.serve(at, Protocol::UDP, [gone, live]);
        tables.cookie = 5;
        tables.ways_out = vec![WayOut { interface: UPLINK, source: client.addr }];
        tables.drawn.push_back(0);
        let socket = Socket(5);
        podnet_common::socket::connect(&mut tables, &socket, at, Protocol::UDP);

        let sent = data(client, gone, Protocol::UDP);
        let mut before = sent.clone();
        assert_eq!(from_pod(&mut before, &mut tables), Verdict::Pass(Reason::NotService));
        tables.change(ids[0], Backend::gone);
        tables.point(at, Protocol::UDP, ServiceId(1), &ids[1..]);

        let mut after = sent.clone();
        // On a bridge the frame is addressed to the one that is gone, and so are the next.
        assert_eq!(from_pod(&mut after, &mut tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!(read(&after).unwrap().to(), live);
        let mut next = sent.clone();
        assert_eq!(from_pod(&mut next, &mut tables), Verdict::Forward(UPLINK, Reason::Established));
        assert_eq!(read(&next).unwrap().to(), live);
        let mut answer = data(live, client, Protocol::UDP);
        assert_eq!(to_pod(&mut answer, &mut tables), Verdict::Translated(Reason::Reply));
        assert_eq!(read(&answer).unwrap().from(), gone, "the only peer that the socket hears");

        // Likewise those of the node's own sockets, where they leave it.
        tables.ways_out = vec![WayOut { interface: UPLINK, source: outside(family, 1, 0).addr }];
        let mut by_node = data(outside(family, 1, 40000), gone, Protocol::UDP);
        assert_eq!(to_net(&mut by_node, &mut tables), Verdict::Forward(UPLINK, Reason::NewFlow));
        assert_eq!(read(&by_node).unwrap().to(), live);

        // Another socket means the address itself.
        tables.cookie = 6;
        let mut other = data(pod(family, 1, 40001), gone, Protocol::UDP);
        assert_eq!(from_pod(&mut other, &mut tables), Verdict::Pass(Reason::NotService));
        tables.cookie = 5;
        tables.point(at, Protocol::UDP, ServiceId(1), &[]);
        tables.change(ids[1], Backend::gone);
        let mut refused = sent;
        assert_eq!(from_pod(&mut refused, &mut tables), Verdict::Return(Reason::NoEndpoints));
    }
}

/// A socket of a pod.
struct Socket(u64);

impl podnet_common::socket::Caller for Socket {
    fn cookie(&self) -> u64 {
        self.0
    }
    fn netns(&self) -> u64 {
        9
    }
    fn on_node(&self) -> bool {
        false
    }
}

#[test]
fn a_lost_half_of_a_masqueraded_flow_is_written_anew() {
    for mut cast in casts() {
        let (_, seen) = cast.open(REMOTE);
        let replies = Tuple::between(cast.backends[REMOTE], seen.from(), cast.protocol);
        let entry = cast.tables.flows.remove(&replies).unwrap();
        cast.tables.now = Time(cast.tables.now.0 + Time::seconds(2));
        let mut more = data(cast.client, cast.node, cast.protocol);
        assert!(matches!(from_net(&mut more, &mut cast.tables), Verdict::Forward(..)));
        let again = cast.tables.flows[&replies];
        assert_eq!((again.way, again.to(cast.protocol)), (entry.way, entry.to(cast.protocol)));
    }
}
