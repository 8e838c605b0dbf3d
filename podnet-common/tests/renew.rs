//! A UDP flow follows its frontend: it is asked once a second whether the backend may still serve it (semantics
//! section 4).
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::conntrack::Time;
use podnet_common::host::{HostTables, WayOut};
use podnet_common::service::{
    BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKey, FrontendKind, ServiceId, SlotRange,
};
use podnet_common::socket::{Known, Peer, PeerKey};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use support::*;

const UPLINK: u32 = 2;

/// A Service with a backend on this node and another elsewhere, and a flow to the latter.
struct Cast {
    family: Family,
    protocol: Protocol,
    client: Endpoint,
    service: Endpoint,
    local: Endpoint,
    remote: Endpoint,
    tables: HostTables,
}

fn cast(family: Family, protocol: Protocol) -> Cast {
    let (client, service) = (pod(family, 1, 40000), service(family, 1, 53));
    let (local, remote) = (pod(family, 2, 5353), pod(family, 3, 5353));
    let mut tables = HostTables::new(1);
    let ids = tables.serve(service, protocol, [local, remote]);
    tables.change(ids[0], |mut backend| {
        backend.flags = backend.flags.with(BackendFlags::LOCAL).with(BackendFlags::IN_LOCAL);
        backend
    });
    let mut cast = Cast { family, protocol, client, service, local, remote, tables };
    cast.tables.drawn.push_back(u32::MAX);
    assert_eq!(cast.send(), (Reason::NewFlow, remote));
    cast
}

fn casts() -> impl Iterator<Item = Cast> {
    FAMILIES.into_iter().map(|family| cast(family, Protocol::UDP))
}

impl Cast {
    fn send(&mut self) -> (Reason, Endpoint) {
        let flags = if self.tables.flows.is_empty() { SYN } else { ACK };
        let mut frame = frame(self.client, self.service, self.protocol, flags, b"data");
        let verdict = from_pod(&mut frame, &mut self.tables);
        (verdict.reason(), read(&frame).unwrap().to())
    }

    fn answer(&mut self) -> Reason {
        let mut frame = data(self.remote, self.client, self.protocol);
        to_pod(&mut frame, &mut self.tables).reason()
    }

    fn frontend(&mut self) -> &mut Frontend {
        self.tables.frontends.get_mut(&FrontendKey::new(self.service, self.protocol)).unwrap()
    }

    /// Makes the traffic policy Local: the Local set is the first of the slots.
    fn limit_to_the_node(&mut self) {
        let local = SlotRange { base: self.frontend().inside.base, count: 1 };
        *self.frontend() = self.frontend().with_slots(local, local);
        self.frontend().flags = FrontendFlags::INSIDE_LOCAL.with(FrontendFlags::OUTSIDE_LOCAL);
    }
}

#[test]
fn a_datagram_moves_when_the_policy_becomes_local() {
    for mut cast in casts() {
        cast.limit_to_the_node();
        assert_eq!(cast.send(), (Reason::Established, cast.remote), "for a second at the most");
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::Moved, cast.local));
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::Established, cast.local));
    }
}

/// Answers that never cease do not keep the client's datagrams from being asked about.
#[test]
fn a_datagram_moves_from_a_backend_that_sends_all_the_time() {
    for mut cast in casts() {
        cast.limit_to_the_node();
        let mut seconds = 0;
        loop {
            for _ in 0..10 {
                assert_eq!(cast.answer(), Reason::Reply);
            }
            match cast.send() {
                (Reason::Moved, to) => break assert_eq!(to, cast.local),
                (reason, to) => assert_eq!((reason, to), (Reason::Established, cast.remote)),
            }
            cast.tables.wait(1);
            seconds += 1;
        }
        assert!(seconds <= 2, "{seconds}");
    }
}

#[test]
fn a_datagram_of_a_frontend_that_is_gone_is_not_podnets() {
    for mut cast in casts() {
        cast.tables.frontends.clear();
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::NotService, cast.service));
        // The address has other ports: this one is refused.
        let rest = Frontend::new(FrontendKind::CLUSTER_IP_REST, ServiceId(9), SlotRange::default());
        cast.tables.frontends.insert(FrontendKey::rest_of(cast.service.addr), rest);
        let mut frame = data(cast.client, cast.service, cast.protocol);
        assert_eq!(from_pod(&mut frame, &mut cast.tables), Verdict::Return(Reason::NoPort));
    }
}

#[test]
fn a_datagram_moves_when_another_service_takes_the_address() {
    for mut cast in casts() {
        let other = pod(cast.family, 9, 53);
        cast.tables.serve(cast.service, cast.protocol, [other]);
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::Moved, other));
    }
}

/// One that terminates is in no set any more.
#[test]
fn a_datagram_stays_with_a_backend_that_only_finishes() {
    for mut cast in casts() {
        let service = cast.frontend().service;
        cast.tables.point(cast.service, cast.protocol, service, &[BackendId(1)]);
        for _ in 0..3 {
            cast.tables.wait(2);
            assert_eq!(cast.send(), (Reason::Established, cast.remote));
        }
    }
}

#[test]
fn a_connection_stays_whatever_becomes_of_its_frontend() {
    for family in FAMILIES {
        let mut cast = cast(family, Protocol::TCP);
        assert_eq!(cast.answer(), Reason::Reply);
        cast.limit_to_the_node();
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::Established, cast.remote));
        cast.tables.frontends.clear();
        cast.tables.wait(2);
        assert_eq!(cast.send(), (Reason::Established, cast.remote));
    }
}

/// Clients outside have a policy of their own.
#[test]
fn a_masqueraded_datagram_moves_too() {
    for mut cast in casts() {
        cast.frontend().kind = FrontendKind::NODE_PORT;
        cast.tables.ways_out = vec![WayOut { interface: UPLINK, source: pod(cast.family, 200, 0).addr }];
        let client = pod(cast.family, 99, 7);
        let send = |cast: &mut Cast| {
            let mut frame = data(client, cast.service, Protocol::UDP);
            let verdict = from_net(&mut frame, &mut cast.tables);
            (verdict, read(&frame).unwrap().to())
        };
        cast.tables.drawn.push_back(u32::MAX);
        assert_eq!(send(&mut cast), (Verdict::Forward(UPLINK, Reason::NewFlow), cast.remote));
        cast.tables.wait(2);
        assert_eq!(send(&mut cast), (Verdict::Forward(UPLINK, Reason::Established), cast.remote));
        cast.limit_to_the_node();
        cast.tables.wait(2);
        assert_eq!(send(&mut cast), (Verdict::Translated(Reason::Moved), cast.local));
    }
}

/// Answers do not bring back what the frontend no longer allows: nobody else serves, so that no other flow begins.
#[test]
fn a_datagram_is_dropped_whatever_its_backend_sends() {
    for mut cast in casts() {
        *cast.frontend() = cast.frontend().with_slots(SlotRange::default(), SlotRange::default());
        cast.frontend().flags = FrontendFlags::INSIDE_LOCAL.with(FrontendFlags::OUTSIDE_LOCAL);
        cast.tables.wait(2);
        for tenth in 0..100 {
            cast.tables.now = Time(cast.tables.now.0 + Time::seconds(1) / 10);
            assert_eq!(cast.answer(), Reason::Reply);
            let mut frame = data(cast.client, cast.service, cast.protocol);
            let reason = from_pod(&mut frame, &mut cast.tables).reason();
            assert!(matches!(reason, Reason::NoEndpoints | Reason::TooManyRefusals), "{tenth}: {reason:?}");
        }
    }
}

/// Whoever's they are, and whether or not their backend sees them: the node's own, masqueraded ones, and those of a
/// pod that has become its own backend.
#[test]
fn flows_of_all_sockets_that_were_led_stay() {
    for family in FAMILIES {
        let node = pod(family, 99, 40000);
        let pod = pod(family, 1, 40000);
        let (live, other) = (self::pod(family, 3, 5353), self::pod(family, 4, 5353));
        let itself = Endpoint { port: live.port, ..pod };
        let plain = FrontendFlags::NONE;
        for (client, backends, flags, send) in [
            (node, [live, other], plain, to_net as fn(&mut Vec<u8>, &mut HostTables) -> Verdict),
            (pod, [live, other], FrontendFlags::MASQUERADE, from_pod),
            (pod, [itself, other], plain, from_pod),
        ] {
            let mut tables = HostTables::new(1);
            let (at, dead) = (service(family, 1, 53), self::pod(family, 7, 5353));
            let ids = tables.serve(at, Protocol::UDP, [dead, backends[0], backends[1]]);
            tables.change(ids[0], |backend| backend.gone());
            tables.point(at, Protocol::UDP, ServiceId(1), &ids[1..]);
            tables.frontends.get_mut(&FrontendKey::new(at, Protocol::UDP)).unwrap().flags = flags;
            tables.cookie = 5;
            let backend = podnet_common::service::BackendRef { id: ids[0], generation: 1 };
            tables.peers.insert(PeerKey::new(5, Known::Backend, dead, Protocol::UDP), Peer::new(at, backend));
            tables.ways_out = vec![WayOut { interface: UPLINK, source: self::pod(family, 200, 0).addr }];
            tables.drawn.push_back(0);
            for expected in [Reason::NewFlow, Reason::Established, Reason::Established, Reason::Established] {
                let mut frame = data(client, dead, Protocol::UDP);
                assert_eq!(send(&mut frame, &mut tables).reason(), expected, "{client:?} {backends:?}");
                assert_eq!(read(&frame).unwrap().to(), backends[0]);
                tables.wait(2);
                // What would be drawn if the flow were another one.
                tables.drawn.clear();
                tables.drawn.push_back(u32::MAX);
            }
        }
    }
}

/// Flows of sockets that were led away from a frontend belong to that.
#[test]
fn a_flow_of_a_socket_that_was_led_stays() {
    for mut cast in casts() {
        let dead = pod(cast.family, 7, 5353);
        let ids = cast.tables.serve(service(cast.family, 9, 9), cast.protocol, [dead]);
        cast.tables.change(ids[0], |backend| backend.gone());
        cast.tables.cookie = 5;
        let backend = podnet_common::service::BackendRef { id: ids[0], generation: 1 };
        let key = PeerKey::new(5, Known::Backend, dead, cast.protocol);
        cast.tables.peers.insert(key, Peer::new(cast.service, backend));
        cast.tables.ways_out = vec![WayOut { interface: UPLINK, source: pod(cast.family, 200, 0).addr }];
        let send = |cast: &mut Cast| {
            let mut frame = data(cast.client, dead, Protocol::UDP);
            let verdict = from_pod(&mut frame, &mut cast.tables);
            (verdict, read(&frame).unwrap().to())
        };
        cast.tables.drawn.push_back(u32::MAX);
        assert_eq!(send(&mut cast), (Verdict::Forward(UPLINK, Reason::NewFlow), cast.remote));
        cast.tables.wait(2);
        assert_eq!(send(&mut cast), (Verdict::Forward(UPLINK, Reason::Established), cast.remote));
        cast.limit_to_the_node();
        cast.tables.wait(2);
        assert_eq!(send(&mut cast), (Verdict::Forward(UPLINK, Reason::Moved), cast.local));
    }
}
