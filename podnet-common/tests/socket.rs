//! Services at the socket layer.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::host::HostTables;
use podnet_common::service::{
    Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey, FrontendKind, ServiceId, SlotRange,
};
use podnet_common::socket::{Caller, Verdict, connect, peer_name, receive, send};
use podnet_common::verdict::Reason;
use podnet_common::wire::{Addr, Be32, Endpoint, Family, Protocol};
use support::*;

/// A socket by its cookie, in the network namespace of that number's hundreds; 0 is the node's.
struct Socket(u64);

impl Caller for Socket {
    fn cookie(&self) -> u64 {
        self.0
    }
    fn netns(&self) -> u64 {
        self.0 / 100
    }
    fn on_node(&self) -> bool {
        self.netns() == 0
    }
}

const SOCKET: u64 = 7;
const FIRST: u32 = 0;
const SECOND: u32 = u32::MAX;

fn tables(family: Family, protocol: Protocol) -> (HostTables, Endpoint, [Endpoint; 2]) {
    let (service, backends) = (service(family, 1, 80), [pod(family, 2, 8080), pod(family, 3, 8080)]);
    let mut tables = HostTables::new(1);
    tables.serve(service, protocol, backends);
    (tables, service, backends)
}

#[test]
fn a_connection_is_led_to_a_backend_and_shows_the_service() {
    for (family, protocol) in KINDS {
        let (mut tables, service, backends) = tables(family, protocol);
        for (socket, random, backend) in [(1, FIRST, backends[0]), (2, SECOND, backends[1])] {
            tables.drawn.push_back(random);
            assert_eq!(
                connect(&mut tables, &Socket(socket), service, protocol),
                Verdict::Lead(backend, Reason::SocketConnect)
            );
            assert_eq!(
                peer_name(&tables, socket, backend, protocol),
                Verdict::Lead(service, Reason::SocketPeer)
            );
            assert_eq!(
                receive(&tables, socket, backend, protocol),
                Verdict::Lead(service, Reason::SocketReceive)
            );
        }
        // The backend of another socket, or of none, is shown as what it is.
        assert_eq!(peer_name(&tables, 1, backends[1], protocol), Verdict::Pass);
        assert_eq!(peer_name(&tables, 3, backends[0], protocol), Verdict::Pass);
    }
}

#[test]
fn what_is_not_to_a_service_goes_on() {
    for (family, protocol) in KINDS {
        let (mut tables, service, backends) = tables(family, protocol);
        let other = if protocol == Protocol::TCP { Protocol::UDP } else { Protocol::TCP };
        for (to, protocol) in [
            (backends[0], protocol),
            (support::service(family, 1, 81), protocol),
            (support::service(family, 2, 80), protocol),
            (service, other),
        ] {
            assert_eq!(connect(&mut tables, &Socket(SOCKET), to, protocol), Verdict::Pass);
            assert_eq!(send(&mut tables, &Socket(SOCKET), to, protocol), Verdict::Pass);
            assert_eq!(receive(&tables, SOCKET, to, protocol), Verdict::Pass);
            assert_eq!(peer_name(&tables, SOCKET, to, protocol), Verdict::Pass);
        }
        assert!(tables.peers.is_empty());
    }
}

#[test]
fn a_service_without_endpoints_refuses() {
    for (family, protocol) in KINDS {
        let at = service(family, 1, 80);
        let mut tables = HostTables::new(1);
        tables.serve(at, protocol, []);
        let refused = Verdict::Refuse(Reason::SocketRefused);
        assert_eq!(connect(&mut tables, &Socket(SOCKET), at, protocol), refused);
        assert_eq!(send(&mut tables, &Socket(SOCKET), at, protocol), refused);
        assert!(tables.peers.is_empty());
    }
}

#[test]
fn datagrams_of_a_socket_stay_with_a_backend_while_it_serves() {
    for family in FAMILIES {
        let (mut tables, service, backends) = tables(family, Protocol::UDP);
        let ids = [tables.slots[0], tables.slots[1]];
        let go = |tables: &mut HostTables, random, backend| {
            tables.drawn = [random].into();
            let expected = Verdict::Lead(backend, Reason::SocketSend);
            assert_eq!(send(tables, &Socket(SOCKET), service, Protocol::UDP), expected);
            let expected = Verdict::Lead(service, Reason::SocketReceive);
            assert_eq!(receive(tables, SOCKET, backend, Protocol::UDP), expected);
        };
        go(&mut tables, FIRST, backends[0]);
        go(&mut tables, SECOND, backends[0]);
        tables.point(service, Protocol::UDP, ServiceId(1), &ids[1..]);
        go(&mut tables, SECOND, backends[0]);
        tables.change(ids[0], Backend::gone);
        go(&mut tables, SECOND, backends[1]);
        go(&mut tables, FIRST, backends[1]);
        // The place of the second goes to somebody else.
        tables.change(ids[1], |_| Backend::new(pod(family, 9, 9), ServiceId(9), 2, BackendFlags::SERVING));
        tables.point(service, Protocol::UDP, ServiceId(1), &ids[..1]);
        tables.change(ids[0], |backend| {
            Backend::new(backend.endpoint(), ServiceId(1), 2, BackendFlags::SERVING)
        });
        go(&mut tables, FIRST, backends[0]);
        // None are left.
        tables.change(ids[0], Backend::gone);
        tables.point(service, Protocol::UDP, ServiceId(1), &[]);
        let refused = Verdict::Refuse(Reason::SocketRefused);
        assert_eq!(send(&mut tables, &Socket(SOCKET), service, Protocol::UDP), refused);
    }
}

#[test]
fn each_socket_chooses_for_itself() {
    for family in FAMILIES {
        let (mut tables, service, backends) = tables(family, Protocol::UDP);
        for (socket, random, backend) in [(1, FIRST, 0), (2, SECOND, 1), (3, FIRST, 0)] {
            tables.drawn = [random].into();
            let expected = Verdict::Lead(backends[backend], Reason::SocketSend);
            assert_eq!(send(&mut tables, &Socket(socket), service, Protocol::UDP), expected);
        }
    }
}

/// A socket's datagrams to two Services are two things, and so are the answers.
#[test]
fn two_services_of_one_socket() {
    for family in FAMILIES {
        let (mut tables, service, backends) = tables(family, Protocol::UDP);
        let (second, backend) = (support::service(family, 2, 80), pod(family, 4, 8080));
        tables.serve(second, Protocol::UDP, [backend]);
        tables.drawn = [FIRST].into();
        for _ in 0..2 {
            let expected = Verdict::Lead(backends[0], Reason::SocketSend);
            assert_eq!(send(&mut tables, &Socket(SOCKET), service, Protocol::UDP), expected);
            let expected = Verdict::Lead(backend, Reason::SocketSend);
            assert_eq!(send(&mut tables, &Socket(SOCKET), second, Protocol::UDP), expected);
        }
        let shown = |from| receive(&tables, SOCKET, from, Protocol::UDP);
        assert_eq!(shown(backends[0]), Verdict::Lead(service, Reason::SocketReceive));
        assert_eq!(shown(backend), Verdict::Lead(second, Reason::SocketReceive));
    }
}

/// An `AF_INET6` socket names an IPv4 Service by its mapped address: it is the same Service.
#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let (mut tables, _, backends) = tables(Family::V4, Protocol::TCP);
    let words = [0, 0, 0xffff, 0x0a60_0001].map(Be32::new);
    let mapped = Endpoint { addr: Addr::from_words(words), port: podnet_common::wire::Be16::new(80) };
    tables.drawn = [SECOND].into();
    let verdict = connect(&mut tables, &Socket(SOCKET), mapped, Protocol::TCP);
    assert_eq!(verdict, Verdict::Lead(backends[1], Reason::SocketConnect));
    let expected = Verdict::Lead(mapped, Reason::SocketPeer);
    assert_eq!(peer_name(&tables, SOCKET, backends[1], Protocol::TCP), expected);
    // What the socket is led to can be written into its address as it stands.
    let Verdict::Lead(led, _) = verdict else { unreachable!() };
    assert_eq!(led.addr.words(), [0, 0, 0xffff, 0x0af4_0103].map(Be32::new));
    // The unspecified and other addresses that only look alike are IPv6.
    for words in [[0, 0, 0, 0x0a60_0001], [0, 1, 0xffff, 0x0a60_0001], [0x0064_ff9b, 0, 0, 0x0a60_0001]] {
        let other = Endpoint { addr: Addr::from_words(words.map(Be32::new)), port: mapped.port };
        assert_eq!(connect(&mut tables, &Socket(SOCKET), other, Protocol::TCP), Verdict::Pass);
    }
}

/// A full table costs the name of the peer, never the connection.
#[test]
fn a_full_table_of_peers_costs_names_only() {
    for (family, protocol) in KINDS {
        let (mut tables, service, backends) = tables(family, protocol);
        tables.peer_capacity = 0;
        for (random, backend) in [(FIRST, backends[0]), (SECOND, backends[1])] {
            tables.drawn = [random, random].into();
            let expected = Verdict::Lead(backend, Reason::SocketConnect);
            assert_eq!(connect(&mut tables, &Socket(SOCKET), service, protocol), expected);
            let expected = Verdict::Lead(backend, Reason::SocketSend);
            assert_eq!(send(&mut tables, &Socket(SOCKET), service, protocol), expected);
            assert_eq!(peer_name(&tables, SOCKET, backend, protocol), Verdict::Pass);
        }
    }
}

fn frontend(tables: &mut HostTables) -> &mut Frontend {
    tables.frontends.values_mut().next().unwrap()
}

#[test]
fn affinity_is_the_pods_own_and_not_the_nodes() {
    let (mut tables, service, backends) = tables(Family::V4, Protocol::TCP);
    frontend(&mut tables).affinity = 60;
    tables.drawn.extend([FIRST, SECOND]);
    for (socket, backend) in [(101, 0), (201, 1), (102, 0), (103, 0), (202, 1)] {
        let expected = Verdict::Lead(backends[backend], Reason::SocketConnect);
        assert_eq!(connect(&mut tables, &Socket(socket), service, Protocol::TCP), expected, "{socket}");
    }
}

#[test]
fn a_localhost_node_port_is_the_nodes_own() {
    let (mut tables, service, backends) = tables(Family::V4, Protocol::TCP);
    frontend(&mut tables).flags = FrontendFlags::LOOPBACK;
    tables.drawn.push_back(FIRST);
    let expected = Verdict::Lead(backends[0], Reason::SocketConnect);
    assert_eq!(connect(&mut tables, &Socket(1), service, Protocol::TCP), expected);
    assert_eq!(connect(&mut tables, &Socket(101), service, Protocol::TCP), Verdict::Pass);
}

#[test]
fn source_ranges_are_left_to_the_packets() {
    let (mut tables, service, _) = tables(Family::V4, Protocol::TCP);
    frontend(&mut tables).flags = FrontendFlags::SOURCE_RANGES;
    assert_eq!(connect(&mut tables, &Socket(1), service, Protocol::TCP), Verdict::Pass);
}

#[test]
fn any_other_port_of_a_cluster_ip_is_refused() {
    let (mut tables, service, _) = tables(Family::V4, Protocol::TCP);
    let rest = Frontend::new(FrontendKind::CLUSTER_IP_REST, ServiceId(1), SlotRange::default());
    tables.frontends.insert(FrontendKey::rest_of(service.addr), rest);
    let other = support::service(Family::V4, 1, 81);
    let refused = Verdict::Refuse(Reason::SocketRefused);
    assert_eq!(connect(&mut tables, &Socket(1), other, Protocol::TCP), refused);
    assert_eq!(send(&mut tables, &Socket(1), other, Protocol::UDP), refused);
}

#[test]
fn none_local_is_left_to_the_packets_which_are_dropped() {
    let (mut tables, service, _) = tables(Family::V4, Protocol::TCP);
    let local = frontend(&mut tables);
    local.flags = FrontendFlags::INSIDE_LOCAL.with(FrontendFlags::INSIDE_DROP);
    *local = local.with_slots(SlotRange::default(), SlotRange::default());
    assert_eq!(connect(&mut tables, &Socket(1), service, Protocol::TCP), Verdict::Pass);
}
