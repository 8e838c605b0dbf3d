//! A flow's life: it keeps its backend while it may, and nothing of it is left when it ends.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::affinity::{Affinity, AffinityKey};
use podnet_common::conntrack::{Flow, REFRESH, REFRESH_BY_OTHER, State, Time, Timeout, Timeouts, Tuple};
use podnet_common::dns::Names;
use podnet_common::dns::name::{Freshness, NameEntry, NameKey, Zone};
use podnet_common::fragment::{FragmentKey, FragmentPorts};
use podnet_common::host::HostTables;

use podnet_common::service::{Backend, BackendFlags, BackendId, Frontend, FrontendKey, ServiceId};
use podnet_common::socket::Peer;
use podnet_common::tables::{InsertError, NextHop, NoWay, Overwrite, Services, Tables};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Addr, Endpoint, Family, Protocol};
use support::*;

/// Two backends of one Service, and random numbers that choose either.
struct Cast {
    family: Family,
    protocol: Protocol,
    client: Endpoint,
    service: Endpoint,
    backends: [Endpoint; 2],
    ids: Vec<BackendId>,
    tables: HostTables,
}

const FIRST: u32 = 0;
const SECOND: u32 = u32::MAX;

fn cast(family: Family, protocol: Protocol) -> Cast {
    let (client, service) = (pod(family, 1, 40000), service(family, 1, 80));
    let backends = [pod(family, 2, 8080), pod(family, 3, 8080)];
    let mut tables = HostTables::new(1);
    let ids = tables.serve(service, protocol, backends);
    Cast { family, protocol, client, service, backends, ids, tables }
}

fn casts() -> impl Iterator<Item = Cast> {
    KINDS.into_iter().map(|(family, protocol)| cast(family, protocol))
}

fn tcp_casts() -> impl Iterator<Item = Cast> {
    FAMILIES.into_iter().map(|family| cast(family, Protocol::TCP))
}

fn udp_casts() -> impl Iterator<Item = Cast> {
    FAMILIES.into_iter().map(|family| cast(family, Protocol::UDP))
}

impl Cast {
    /// The client sends with `flags`; where it arrives, and why.
    fn send(&mut self, flags: u8) -> (Reason, Endpoint) {
        self.send_from(self.client, self.service, flags)
    }

    fn send_from(&mut self, client: Endpoint, service: Endpoint, flags: u8) -> (Reason, Endpoint) {
        let mut frame = frame(client, service, self.protocol, flags, b"data");
        let verdict = from_pod(&mut frame, &mut self.tables);
        let seen = read(&frame).unwrap();
        assert_eq!(seen.from(), client, "{verdict:?}");
        (verdict.reason(), seen.to())
    }

    /// A backend answers with `flags`; whom the client thinks it is from, and why.
    fn answer(&mut self, backend: Endpoint, flags: u8) -> (Reason, Endpoint) {
        let mut frame = frame(backend, self.client, self.protocol, flags, b"data");
        let verdict = to_pod(&mut frame, &mut self.tables);
        let seen = read(&frame).unwrap();
        assert_eq!(seen.to(), self.client, "{verdict:?}");
        (verdict.reason(), seen.from())
    }

    fn draw(&mut self, random: u32) {
        self.tables.drawn.push_back(random);
    }

    /// Opens a connection to the first backend, and lets it answer.
    fn open(&mut self) {
        self.draw(FIRST);
        assert_eq!(self.send(SYN), (Reason::NewFlow, self.backends[0]));
        assert_eq!(self.answer(self.backends[0], SYN | ACK), (Reason::Reply, self.service));
        assert_eq!(self.send(ACK), (Reason::Established, self.backends[0]));
    }

    fn close(&mut self) {
        assert_eq!(self.send(FIN | ACK).0, Reason::Established);
        assert_eq!(self.answer(self.backends[0], FIN | ACK).0, Reason::Reply);
        assert_eq!(self.send(ACK).0, Reason::Established);
    }

    fn forward_key(&self) -> Tuple {
        Tuple::between(self.client, self.service, self.protocol)
    }

    fn reply_key(&self) -> Tuple {
        Tuple::between(self.backends[0], self.client, self.protocol)
    }
}

#[test]
fn a_flow_keeps_its_backend_while_the_set_changes() {
    for mut cast in casts() {
        cast.open();
        let new = pod(cast.family, 9, 8080);
        let ids = cast.tables.serve(service(cast.family, 9, 9), cast.protocol, [new]);
        cast.tables.point(cast.service, cast.protocol, ServiceId(1), &ids);
        for _ in 0..5 {
            assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
            assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
            cast.tables.wait(20);
        }
        let another = pod(cast.family, 1, 40001);
        assert_eq!(cast.send_from(another, cast.service, SYN), (Reason::NewFlow, new));
    }
}

#[test]
fn a_repeated_syn_goes_where_the_first_one_went() {
    for mut cast in tcp_casts() {
        for random in [FIRST, SECOND, SECOND, SECOND] {
            cast.draw(random);
            assert_eq!(cast.send(SYN).1, cast.backends[0]);
            cast.tables.wait(7);
        }
        assert_eq!(cast.tables.flows.len(), 2);
    }
}

#[test]
fn a_syn_moves_from_a_backend_that_is_gone() {
    for mut cast in tcp_casts() {
        cast.draw(FIRST);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[0]));
        cast.tables.change(cast.ids[0], Backend::gone);
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::Moved, cast.backends[1]));
        assert_eq!(cast.answer(cast.backends[1], SYN | ACK), (Reason::Reply, cast.service));
        assert_eq!(cast.send(SYN), (Reason::Established, cast.backends[1]));
    }
}

/// A client that was killed said no goodbye; another one has got its address and its port.
#[test]
fn a_syn_moves_from_the_gone_backend_of_a_connection_that_nobody_closed() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.tables.wait(3600);
        cast.tables.change(cast.ids[0], Backend::gone);
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::Moved, cast.backends[1]));
    }
}

#[test]
fn a_datagram_moves_from_a_backend_that_is_gone() {
    for mut cast in udp_casts() {
        cast.open();
        cast.tables.change(cast.ids[0], Backend::gone);
        cast.draw(SECOND);
        assert_eq!(cast.send(0), (Reason::Moved, cast.backends[1]));
        assert_eq!(cast.send(0), (Reason::Established, cast.backends[1]));
        assert_eq!(cast.answer(cast.backends[1], 0), (Reason::Reply, cast.service));
        // What the old one still had to say is the Service's word too.
        assert_eq!(cast.answer(cast.backends[0], 0), (Reason::Reply, cast.service));
        assert_eq!(cast.send(0), (Reason::Established, cast.backends[1]));
    }
}

#[test]
fn a_datagram_moves_when_the_backends_place_was_given_to_another() {
    for mut cast in udp_casts() {
        cast.open();
        let other = Backend::new(pod(cast.family, 9, 1), ServiceId(9), 2, BackendFlags::SERVING);
        cast.tables.change(cast.ids[0], |_| other);
        cast.draw(SECOND);
        assert_eq!(cast.send(0), (Reason::Moved, cast.backends[1]));
    }
}

#[test]
fn a_datagram_is_refused_when_all_backends_are_gone() {
    for mut cast in udp_casts() {
        cast.open();
        cast.tables.change(cast.ids[0], Backend::gone);
        cast.tables.point(cast.service, cast.protocol, ServiceId(1), &[]);
        let mut frame = data(cast.client, cast.service, cast.protocol);
        assert_eq!(from_pod(&mut frame, &mut cast.tables), Verdict::Return(Reason::NoEndpoints));
    }
}

#[test]
fn a_datagram_of_a_deleted_service_is_not_podnets() {
    for mut cast in udp_casts() {
        cast.open();
        cast.tables.change(cast.ids[0], Backend::gone);
        cast.tables.frontends.clear();
        assert_eq!(cast.send(0), (Reason::NotService, cast.service));
    }
}

/// A backend that is ready no more, or terminating, goes on with the connections it has.
#[test]
fn a_connection_stays_with_a_backend_that_no_longer_serves() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.tables.change(cast.ids[0], |mut backend| {
            backend.flags = BackendFlags::PRESENT;
            backend
        });
        cast.tables.point(cast.service, cast.protocol, ServiceId(1), &[]);
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
        cast.tables.frontends.clear();
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
    }
}

/// Its client would wait for answers until it gives up. The reset stands where the next segment of the
/// backend would, or the client would not believe it (RFC 9293, 3.5.3).
#[test]
fn a_connection_to_a_backend_that_is_gone_is_reset() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.tables.change(cast.ids[0], Backend::gone);
        let sent = data(cast.client, cast.service, Protocol::TCP);
        let mut answer = sent.clone();
        assert_eq!(from_pod(&mut answer, &mut cast.tables), Verdict::Return(Reason::BackendGone));
        let seen = read(&answer).unwrap();
        assert_eq!((seen.from(), seen.to()), (cast.service, cast.client));
        let Transport::Tcp(header, payload) = seen.transport else { panic!("{seen:?}") };
        assert!(header.rst && !header.ack && payload.is_empty());
        assert_eq!(header.sequence_number, 0x1234_5678, "what the client has acknowledged");
    }
}

#[test]
fn a_port_used_again_after_the_end_is_a_new_connection() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.close();
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[1]));
        assert_eq!(cast.answer(cast.backends[1], SYN | ACK), (Reason::Reply, cast.service));
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[1]));
    }
}

#[test]
fn a_port_used_again_after_a_reset_is_a_new_connection() {
    for mut cast in tcp_casts() {
        cast.draw(FIRST);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], RST | ACK), (Reason::Reply, cast.service));
        for random in [SECOND, FIRST] {
            cast.draw(random);
            assert_eq!(cast.send(SYN).0, Reason::NewFlow);
            let backend = if random == FIRST { cast.backends[0] } else { cast.backends[1] };
            assert_eq!(cast.answer(backend, RST | ACK), (Reason::Reply, cast.service));
        }
    }
}

/// The same backend may be chosen again, with the same tuple: the old entries give way.
#[test]
fn a_port_used_again_may_meet_the_same_backend() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.close();
        cast.open();
        assert_eq!(cast.tables.flows.len(), 2);
        assert!(!cast.tables.flows[&cast.forward_key()].state.closed());
        assert!(!cast.tables.flows[&cast.reply_key()].state.closed());
    }
}

/// A SYN on a connection that is not over goes to its backend, whose business it is (RFC 9293, 3.10.7.4).
#[test]
fn a_syn_does_not_end_a_connection() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.send(FIN | ACK).1, cast.backends[0]);
        assert_eq!(cast.send(SYN), (Reason::Established, cast.backends[0]), "half closed");
    }
}

#[test]
fn lifetimes_are_settings() {
    let set = [Timeout::TcpEstablished, Timeout::TcpCloseWait, Timeout::Udp, Timeout::UdpStream]
        .into_iter()
        .zip([100, 50, 10, 200].map(Time::seconds));
    let set: Vec<_> = set.collect();
    let lives = |cast: &mut Cast, seconds: u32, flags| {
        cast.tables.timeouts = set.clone();
        cast.tables.wait(seconds - 1);
        assert_eq!(cast.send(flags).0, Reason::Established);
        cast.tables.wait(seconds + 1);
        assert_ne!(cast.send(flags).0, Reason::Established, "{seconds} s");
    };
    for mut cast in tcp_casts() {
        cast.open();
        lives(&mut cast, 100, ACK);
        let mut cast = self::cast(cast.family, cast.protocol);
        cast.open();
        cast.send(FIN | ACK);
        lives(&mut cast, 50, ACK);
    }
    for mut cast in udp_casts() {
        cast.send(0);
        lives(&mut cast, 10, 0);
        let mut cast = self::cast(cast.family, cast.protocol);
        cast.open();
        lives(&mut cast, 200, 0);
    }
}

#[test]
fn flows_end_with_their_lifetimes() {
    // Unanswered, answered, half closed, closed.
    for mut cast in tcp_casts() {
        cast.draw(FIRST);
        cast.send(SYN);
        cast.tables.wait(61);
        assert_eq!(cast.answer(cast.backends[0], SYN | ACK), (Reason::NotService, cast.backends[0]));
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[1]));

        let mut cast = self::cast(cast.family, cast.protocol);
        cast.open();
        cast.tables.wait(86_399);
        assert_eq!(cast.send(ACK).0, Reason::Established);
        cast.tables.wait(86_401);
        assert_eq!(cast.send(ACK), (Reason::MidConnection, cast.service));

        let mut cast = self::cast(cast.family, cast.protocol);
        cast.open();
        cast.send(FIN | ACK);
        cast.tables.wait(3599);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
        cast.tables.wait(3601);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::NotService);

        let mut cast = self::cast(cast.family, cast.protocol);
        cast.open();
        cast.close();
        cast.tables.wait(9);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
        cast.tables.wait(11);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::NotService);
    }
    for mut cast in udp_casts() {
        cast.draw(FIRST);
        cast.send(0);
        cast.tables.wait(29);
        assert_eq!(cast.send(0), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], 0).0, Reason::Reply);
        cast.tables.wait(29);
        assert_eq!(cast.send(0), (Reason::Established, cast.backends[0]));
        cast.tables.wait(119);
        assert_eq!(cast.send(0), (Reason::Established, cast.backends[0]));
        cast.tables.wait(121);
        assert_eq!(cast.answer(cast.backends[0], 0), (Reason::NotService, cast.backends[0]));
        cast.draw(SECOND);
        assert_eq!(cast.send(0), (Reason::NewFlow, cast.backends[1]), "expired, not moved");
    }
}

/// A question and its answer are all that most clients have: its tuple is free for another as soon as with
/// Linux's own `nf_conntrack_udp_timeout`.
#[test]
fn an_answered_datagram_is_remembered_for_half_a_minute() {
    for mut cast in udp_casts() {
        cast.draw(FIRST);
        cast.send(0);
        assert_eq!(cast.answer(cast.backends[0], 0).0, Reason::Reply);
        cast.tables.wait(31);
        assert_eq!(cast.answer(cast.backends[0], 0), (Reason::NotService, cast.backends[0]));
    }
}

/// A reset that its receiver does not accept, since it is out of its window, ends nothing (RFC 9293, 3.10.7.4).
#[test]
fn a_connection_that_goes_on_after_a_reset_is_kept() {
    for mut cast in tcp_casts() {
        cast.open();
        assert_eq!(cast.send(RST), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
        assert!(cast.tables.flows[&cast.forward_key()].state.closed(), "what was on its way changes nothing");
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
        cast.tables.wait(600);
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));

        assert_eq!(cast.answer(cast.backends[0], RST | ACK).0, Reason::Reply);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
        cast.tables.wait(600);
        assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);

        assert_eq!(cast.send(RST).0, Reason::Established);
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[1]), "but another one may begin");
    }
}

/// Packets of one direction keep the entry of the other alive.
#[test]
fn a_flow_lives_by_packets_of_either_direction() {
    for mut cast in casts() {
        cast.open();
        for _ in 0..20 {
            cast.tables.wait(100);
            assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
        }
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
        for _ in 0..20 {
            cast.tables.wait(100);
            assert_eq!(cast.send(ACK).0, Reason::Established);
        }
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
    }
}

#[test]
fn an_established_flow_writes_once_a_second() {
    let seen = |cast: &Cast, key: Tuple| cast.tables.flows[&key].seen;
    for mut cast in casts() {
        cast.open();
        let opened = cast.tables.now;
        cast.tables.now = Time(opened.0 + REFRESH - 1);
        cast.send(ACK);
        assert!(cast.tables.flows.values().all(|flow| flow.seen == opened));
        cast.tables.now = Time(opened.0 + REFRESH);
        cast.send(ACK);
        assert_eq!(seen(&cast, cast.forward_key()), cast.tables.now);
        assert_eq!(seen(&cast, cast.reply_key()), opened, "the backend's own packets are to be faster");
        cast.tables.now = Time(opened.0 + REFRESH_BY_OTHER);
        cast.send(ACK);
        assert!(cast.tables.flows.values().all(|flow| flow.seen == cast.tables.now));
    }
}

/// The table drops entries when it is full: each half of a flow brings back the other.
#[test]
fn a_lost_half_of_a_flow_is_written_anew() {
    for mut cast in casts() {
        cast.open();
        for lost in [cast.reply_key(), cast.forward_key()] {
            let mut expected = cast.tables.flows.remove(&lost).unwrap();
            cast.tables.now = Time(cast.tables.now.0 + REFRESH);
            if lost == cast.reply_key() {
                assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::NotService);
                assert_eq!(cast.send(ACK).0, Reason::Established);
            } else {
                assert_eq!(cast.answer(cast.backends[0], ACK).0, Reason::Reply);
            }
            // An answer is not what keeps a datagram's frontend from being asked.
            let ask = lost == cast.forward_key() && cast.protocol == Protocol::UDP;
            expected.seen = if ask { cast.tables.now.before(REFRESH) } else { cast.tables.now };
            assert_eq!(cast.tables.flows[&lost], expected);
        }
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
    }
}

/// One client port, two Services, one backend: the backend must see two connections.
#[test]
fn a_tuple_taken_at_the_backend_gets_another_port() {
    for mut cast in casts() {
        let (client, backend) = (cast.client, cast.backends[0]);
        let second = service(cast.family, 2, 443);
        cast.tables.serve(second, cast.protocol, [backend]);
        cast.open();
        let port = 0x9234;
        cast.tables.drawn.extend([0, u32::from(port)]);
        let mut frame = opening(client, second, cast.protocol);
        assert_eq!(from_pod(&mut frame, &mut cast.tables), Verdict::Translated(Reason::NewFlow));
        let masked = endpoint(client.addr.to_ip(), port);
        assert_eq!(frame, opening(masked, backend, cast.protocol));

        let mut answer = data(backend, masked, cast.protocol);
        assert_eq!(to_pod(&mut answer, &mut cast.tables), Verdict::Translated(Reason::Reply));
        assert_eq!(answer, data(second, client, cast.protocol));
        assert_eq!(cast.answer(backend, ACK), (Reason::Reply, cast.service));
        let mut frame = data(client, second, cast.protocol);
        assert_eq!(from_pod(&mut frame, &mut cast.tables), Verdict::Translated(Reason::Established));
        assert_eq!(frame, data(masked, backend, cast.protocol));
    }
}

#[test]
fn when_no_free_port_is_found_the_packet_is_dropped() {
    for mut cast in casts() {
        let (client, backend) = (cast.client, cast.backends[0]);
        for n in 1..=5 {
            let service = service(cast.family, 10 + n, 443);
            cast.tables.serve(service, cast.protocol, [backend]);
            // The choice of a backend, then of ports: the one that the first Service's flow does not have.
            cast.tables.drawn = std::iter::once(0).chain([1; 16]).collect();
            let sent = opening(client, service, cast.protocol);
            let mut frame = sent.clone();
            let verdict = from_pod(&mut frame, &mut cast.tables);
            if n < 3 {
                assert_eq!(verdict, Verdict::Translated(Reason::NewFlow));
            } else {
                assert_eq!(verdict, Verdict::Drop(Reason::Collision));
                assert_eq!(frame, sent);
                assert_eq!(cast.tables.flows.len(), 4, "nothing is left of it");
            }
        }
    }
}

/// Entries of flows that are over do not stand in the way.
#[test]
fn a_dead_flows_tuple_is_free() {
    for mut cast in casts() {
        let second = service(cast.family, 2, 443);
        cast.tables.serve(second, cast.protocol, [cast.backends[0]]);
        cast.open();
        if cast.protocol == Protocol::TCP {
            cast.close();
        } else {
            cast.tables.wait(121);
        }
        assert_eq!(cast.send_from(cast.client, second, SYN), (Reason::NewFlow, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, second));
    }
}

/// ... and what still comes of such a flow is no news of the one that has taken its tuple.
#[test]
fn a_dead_flow_does_not_touch_the_one_after_it() {
    for mut cast in tcp_casts() {
        let second = service(cast.family, 2, 443);
        cast.tables.serve(second, cast.protocol, [cast.backends[0]]);
        cast.open();
        cast.close();
        assert_eq!(cast.send_from(cast.client, second, SYN), (Reason::NewFlow, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], SYN | ACK), (Reason::Reply, second));
        cast.tables.wait(2);
        // A client that has lost the last ACK of its first connection repeats its FIN.
        assert_eq!(cast.send(FIN | ACK).0, Reason::Established);
        assert!(!cast.tables.flows[&cast.reply_key()].state.closed());
        cast.tables.wait(600);
        assert_eq!(cast.send_from(cast.client, second, ACK), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, second));
    }
}

/// The same from the other side: the backend of a connection that is over resets it once more, while the
/// client uses its port for a connection to another backend.
#[test]
fn a_backend_of_a_dead_flow_does_not_touch_the_one_after_it() {
    for mut cast in tcp_casts() {
        cast.open();
        cast.close();
        cast.draw(SECOND);
        assert_eq!(cast.send(SYN), (Reason::NewFlow, cast.backends[1]));
        assert_eq!(cast.answer(cast.backends[1], SYN | ACK), (Reason::Reply, cast.service));
        assert_eq!(cast.answer(cast.backends[0], RST), (Reason::Reply, cast.service));
        assert!(!cast.tables.flows[&cast.forward_key()].state.closed());
        cast.tables.wait(600);
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[1]));
    }
}

/// A flow that lost its reply entry to another one gets it back when that one is over.
#[test]
fn a_living_flow_takes_its_tuple_back_from_a_dead_one() {
    for mut cast in casts() {
        let second = service(cast.family, 2, 443);
        cast.tables.serve(second, cast.protocol, [cast.backends[0]]);
        cast.open();
        cast.tables.flows.remove(&cast.reply_key());
        assert_eq!(cast.send_from(cast.client, second, SYN), (Reason::NewFlow, cast.backends[0]));
        cast.tables.now = Time(cast.tables.now.0 + REFRESH);
        assert_eq!(cast.send(ACK).0, Reason::Established);
        assert_eq!(cast.tables.flows[&cast.reply_key()].to(cast.protocol).source(), second, "while it lives");
        cast.tables.wait(61);
        assert_eq!(cast.send(ACK).0, Reason::Established);
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
    }
}

#[test]
fn a_full_table_drops_new_flows_and_keeps_the_others() {
    for mut cast in casts() {
        cast.open();
        let another = pod(cast.family, 1, 40001);
        for room in [0, 1] {
            cast.tables.flow_capacity = cast.tables.flows.len() + room;
            let sent = opening(another, cast.service, cast.protocol);
            let mut frame = sent.clone();
            cast.draw(FIRST);
            assert_eq!(from_pod(&mut frame, &mut cast.tables), Verdict::Drop(Reason::FlowTableFull));
            assert_eq!(frame, sent);
            assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
            assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
        }
        cast.tables.flow_capacity += 1;
        cast.draw(FIRST);
        assert_eq!(cast.send_from(another, cast.service, SYN).0, Reason::NewFlow);
    }
}

/// A lost half that finds no room is no reason to lose packets.
#[test]
fn a_full_table_does_not_stop_a_flow_that_lost_half_of_itself() {
    for mut cast in casts() {
        cast.open();
        cast.tables.flows.remove(&cast.reply_key());
        cast.tables.flow_capacity = 1;
        cast.tables.wait(5);
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
        cast.tables.flow_capacity = 2;
        cast.tables.wait(5);
        assert_eq!(cast.send(ACK), (Reason::Established, cast.backends[0]));
        assert_eq!(cast.answer(cast.backends[0], ACK), (Reason::Reply, cast.service));
    }
}

/// Tables in which another CPU opens the same flow between this one's look and its write.
struct Raced {
    tables: HostTables,
    other: Option<HostTables>,
}

impl Services for Raced {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.tables.frontend(key)
    }
    fn slot(&self, index: u32) -> Option<BackendId> {
        self.tables.slot(index)
    }
    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.tables.backend(id)
    }
    fn random(&mut self) -> u32 {
        self.tables.random()
    }
    fn now(&self) -> Time {
        self.tables.now()
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.tables.affinity(key)
    }
    fn remember_client(&mut self, key: &AffinityKey, affinity: &Affinity) {
        self.tables.remember_client(key, affinity);
    }
}

impl Timeouts for Raced {
    fn timeout(&self, which: Timeout) -> u32 {
        self.tables.timeout(which)
    }
}

impl Names for Raced {
    fn zone(&self) -> Zone {
        self.tables.zone()
    }
    fn is_name_server(&self, endpoint: Endpoint) -> bool {
        self.tables.is_name_server(endpoint)
    }
    fn is_name_client(&self, addr: Addr) -> bool {
        self.tables.is_name_client(addr)
    }
    fn name(&self, key: &NameKey) -> Option<NameEntry> {
        self.tables.name(key)
    }
    fn freshness(&self) -> Freshness {
        self.tables.freshness()
    }
}

impl Tables for Raced {
    fn in_service_network(&self, addr: Addr) -> bool {
        self.tables.in_service_network(addr)
    }
    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        self.tables.admits(service, source)
    }
    fn interface(&self) -> u32 {
        self.tables.interface()
    }
    fn way_out(&self, to: &Tuple, length: u16) -> Result<NextHop, NoWay> {
        self.tables.way_out(to, length)
    }

    fn own_address(&self, to: &Tuple) -> Option<Addr> {
        self.tables.own_address(to)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.tables.fragment(key)
    }
    fn remember_fragment(&mut self, key: &FragmentKey, ports: &FragmentPorts) {
        self.tables.remember_fragment(key, ports);
    }
    fn note_wait(&mut self, key: &FragmentKey, before: Option<&FragmentPorts>, waiting: &FragmentPorts) {
        self.tables.note_wait(key, before, waiting);
    }
    fn led(&self, destination: Endpoint, protocol: Protocol) -> Option<Peer> {
        self.tables.led(destination, protocol)
    }
    fn may_wait(&mut self) -> bool {
        self.tables.may_wait()
    }
    fn may_refuse(&mut self) -> bool {
        self.tables.may_refuse()
    }
    fn short_cuts(&self) -> bool {
        self.tables.short_cuts()
    }
    fn answers_names(&self) -> bool {
        self.tables.answers_names()
    }
    fn note_backend(&mut self, tuple: &Tuple, interface: u32) {
        self.tables.note_backend(tuple, interface);
    }
    fn remove_flow(&mut self, tuple: &Tuple) {
        self.tables.remove_flow(tuple);
    }
    fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        self.tables.flow(tuple)
    }
    fn filter_word(&self, index: u32) -> u64 {
        self.tables.filter_word(index)
    }
    fn insert_flow(&mut self, tuple: &Tuple, flow: &Flow, overwrite: Overwrite) -> Result<(), InsertError> {
        if let Some(other) = self.other.take() {
            self.tables.flows = other.flows;
        }
        self.tables.insert_flow(tuple, flow, overwrite)
    }
    fn touch_flow(&mut self, tuple: &Tuple, progress: State, now: Time) -> bool {
        self.tables.touch_flow(tuple, progress, now)
    }
}

#[test]
fn of_two_cpus_that_open_a_flow_the_first_ones_choice_holds() {
    for here in [FIRST, SECOND] {
        for mut cast in casts() {
            let mut other = cast.tables.clone();
            other.drawn.push_back(FIRST);
            let sent = opening(cast.client, cast.service, cast.protocol);
            assert_eq!(from_pod(&mut sent.clone(), &mut other), Verdict::Translated(Reason::NewFlow));
            cast.draw(here);
            let mut raced = Raced { tables: cast.tables, other: Some(other) };
            let mut frame = sent.clone();
            assert!(matches!(from_pod(&mut frame, &mut raced), Verdict::Translated(_)));
            assert_eq!(frame, opening(cast.client, cast.backends[0], cast.protocol));
        }
    }
}
