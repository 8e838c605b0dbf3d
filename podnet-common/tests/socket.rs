//! Services at the socket layer.

mod support;

use podnet_common::host::HostTables;
use podnet_common::service::{Backend, BackendFlags, ServiceId};
use podnet_common::socket::{Verdict, connect, peer_name, receive, send};
use podnet_common::verdict::Reason;
use podnet_common::wire::{Addr, Be32, Endpoint, Family, Protocol};
use support::*;

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
                connect(&mut tables, socket, service, protocol),
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
            assert_eq!(connect(&mut tables, SOCKET, to, protocol), Verdict::Pass);
            assert_eq!(send(&mut tables, SOCKET, to, protocol), Verdict::Pass);
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
        assert_eq!(connect(&mut tables, SOCKET, at, protocol), refused);
        assert_eq!(send(&mut tables, SOCKET, at, protocol), refused);
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
            assert_eq!(send(tables, SOCKET, service, Protocol::UDP), expected);
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
        assert_eq!(send(&mut tables, SOCKET, service, Protocol::UDP), refused);
    }
}

#[test]
fn each_socket_chooses_for_itself() {
    for family in FAMILIES {
        let (mut tables, service, backends) = tables(family, Protocol::UDP);
        for (socket, random, backend) in [(1, FIRST, 0), (2, SECOND, 1), (3, FIRST, 0)] {
            tables.drawn = [random].into();
            let expected = Verdict::Lead(backends[backend], Reason::SocketSend);
            assert_eq!(send(&mut tables, socket, service, Protocol::UDP), expected);
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
            assert_eq!(send(&mut tables, SOCKET, service, Protocol::UDP), expected);
            let expected = Verdict::Lead(backend, Reason::SocketSend);
            assert_eq!(send(&mut tables, SOCKET, second, Protocol::UDP), expected);
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
    let verdict = connect(&mut tables, SOCKET, mapped, Protocol::TCP);
    assert_eq!(verdict, Verdict::Lead(backends[1], Reason::SocketConnect));
    let expected = Verdict::Lead(mapped, Reason::SocketPeer);
    assert_eq!(peer_name(&tables, SOCKET, backends[1], Protocol::TCP), expected);
    // What the socket is led to can be written into its address as it stands.
    let Verdict::Lead(led, _) = verdict else { unreachable!() };
    assert_eq!(led.addr.words(), [0, 0, 0xffff, 0x0af4_0103].map(Be32::new));
    // The unspecified and other addresses that only look alike are IPv6.
    for words in [[0, 0, 0, 0x0a60_0001], [0, 1, 0xffff, 0x0a60_0001], [0x0064_ff9b, 0, 0, 0x0a60_0001]] {
        let other = Endpoint { addr: Addr::from_words(words.map(Be32::new)), port: mapped.port };
        assert_eq!(connect(&mut tables, SOCKET, other, Protocol::TCP), Verdict::Pass);
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
            assert_eq!(connect(&mut tables, SOCKET, service, protocol), expected);
            let expected = Verdict::Lead(backend, Reason::SocketSend);
            assert_eq!(send(&mut tables, SOCKET, service, protocol), expected);
            assert_eq!(peer_name(&tables, SOCKET, backend, protocol), Verdict::Pass);
        }
    }
}
