//! What holds of any frame over any tables, and of any conversation over any Services.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use std::collections::HashMap;

use podnet_common::conntrack::{Time, Tuple};
use podnet_common::host::{HostTables, WayOut, early_all, route_all};
use podnet_common::packet;

use podnet_common::route::Hook;
use podnet_common::service::{Backend, BackendFlags, BackendId, FrontendKey, ServiceId};
use podnet_common::tables::Services;
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use proptest::prelude::*;
use support::arbitrary::{families, worlds};
use support::verdicts::{REFUSALS, may_drop};
use support::*;

proptest! {
    #![proptest_config(cases(1500))]

    /// Passed and dropped frames are as they were; others are as sound as they were, and go where a table
    /// says.
    #[test]
    fn any_frame_over_any_tables((mut tables, frames) in worlds(1..4), hook in 0..4_usize, route: bool) {
        if route {
            let out = |family| WayOut { interface: 3, source: service(family, 200, 0).addr };
            tables.ways_out = FAMILIES.map(out).to_vec();
            tables.mtu = 70;
        }
        for sent in frames {
            let mut frame = sent.clone();
            let flows = tables.flows.clone();
            let verdict = route_all(Hook::ALL[hook], &mut frame, &mut tables);
            match verdict {
                Verdict::Pass(reason) => {
                    prop_assert_eq!(&frame, &sent);
                    prop_assert_eq!(&tables.flows, &flows, "{:?}", reason);
                }
                Verdict::Drop(reason) => {
                    prop_assert_eq!(&frame, &sent);
                    prop_assert!(may_drop(reason, &sent), "{:?}", reason);
                }
                Verdict::Rest | Verdict::Sctp | Verdict::Open | Verdict::Renew | Verdict::Complain | Verdict::Query | Verdict::Unanswered(_) | Verdict::Leave => prop_assert!(false, "nobody has decided"),
                Verdict::Translated(_) | Verdict::Return(_) | Verdict::Forward(..) | Verdict::ShortCut(..) | Verdict::Inject(..) => {
                    if read(&sent).is_ok() {
                        prop_assert!(read(&frame).is_ok(), "{verdict:?}: {:?}", read(&frame));
                    }
                    if REFUSALS.contains(&verdict.reason()) {
                        continue;
                    }
                    prop_assert_eq!(frame.len(), sent.len());
                    // Fragments and ICMP errors have tests of their own.
                    if let Ok(before) = packet::parse(&sent) {
                        let after = packet::parse(&frame).unwrap();
                        prop_assert_eq!((before.l4, before.flags), (after.l4, after.flags));
                        let flow = tables.flows[&before.tuple];
                        prop_assert_eq!(flow.to(before.tuple.protocol()), after.tuple);
                    }
                }
            }
            prop_assert!(tables.flows.len() <= flows.len() + 2);
            prop_assert!(tables.flows.len() <= tables.flow_capacity.max(flows.len()));
        }
    }
}

proptest! {
    #![proptest_config(cases(1500))]

    /// What is decided at a network card is decided as behind it; what is left there is as it was.
    #[test]
    fn a_frame_is_treated_at_the_card_as_behind_it((mut tables, frames) in worlds(1..4), route: bool) {
        if route {
            let out = |family| WayOut { interface: 3, source: service(family, 200, 0).addr };
            tables.ways_out = FAMILIES.map(out).to_vec();
            tables.mtu = 70;
        }
        for sent in frames {
            let (mut at_card, mut early_tables) = (sent.clone(), tables.clone());
            let early = early_all(&mut at_card, &mut early_tables);
            let mut behind = sent.clone();
            let verdict = route_all(Hook::FromNet, &mut behind, &mut tables);
            if early == Verdict::Leave {
                prop_assert_eq!(&at_card, &sent);
            } else {
                prop_assert_eq!(early, verdict);
                prop_assert_eq!(&at_card, &behind);
                prop_assert_eq!(&early_tables.flows, &tables.flows);
            }
        }
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A pod sends to a Service.
    Send { pod: u8, port: u16, service: usize, flags: u8 },
    /// The backend of a flow answers, on the client's node or on another one.
    Answer { flow: prop::sample::Index, flags: u8 },
    /// Time passes.
    Wait(u32),
    /// A pod becomes a backend of a Service.
    Add { service: usize, pod: u8 },
    /// A backend leaves.
    Remove { service: usize, backend: prop::sample::Index },
    /// A Service goes, and its backends with it, or comes back without any.
    Toggle { service: usize },
}

fn events() -> impl Strategy<Value = Event> {
    let flags = prop::sample::select(vec![SYN, SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST]);
    let answers = prop::sample::select(vec![SYN | ACK, ACK, ACK, FIN | ACK, RST | ACK]);
    prop_oneof![
        8 => (1..4_u8, 40000..40002_u16, 0..4_usize, flags)
            .prop_map(|(pod, port, service, flags)| Event::Send { pod, port, service, flags }),
        8 => (any::<prop::sample::Index>(), answers)
            .prop_map(|(flow, flags)| Event::Answer { flow, flags }),
        3 => prop::sample::select(vec![1, 5, 8, 25, 50, 100, 3000, 80_000]).prop_map(Event::Wait),
        2 => (0..4_usize, 1..6_u8).prop_map(|(service, pod)| Event::Add { service, pod }),
        1 => (0..4_usize, any::<prop::sample::Index>())
            .prop_map(|(service, backend)| Event::Remove { service, backend }),
        1 => (0..4_usize).prop_map(|service| Event::Toggle { service }),
    ]
}

/// What a connection is to those who take part in it.
#[derive(Clone, Debug)]
struct Talk {
    client: Endpoint,
    service: Endpoint,
    protocol: Protocol,
    id: BackendId,
    backend: Endpoint,
    /// The client as the backend sees it.
    masked: Endpoint,
    replied: bool,
    ends: [bool; 2],
    /// By the client, and by the backend.
    resets: [bool; 2],
    /// Of UDP: the client has sent again after an answer.
    stream: bool,
    last: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alive,
    /// Within a second or two of its end: anything may be.
    Doubtful,
    Dead,
}

impl Talk {
    fn closed(&self) -> bool {
        self.protocol == Protocol::TCP && (self.resets != [false; 2] || self.ends == [true; 2])
    }

    fn life(&self, now: Time) -> Life {
        let seconds = match (self.protocol, self.replied) {
            (Protocol::TCP, _) if self.closed() => 10,
            (Protocol::TCP, _) if self.ends != [false; 2] => 3600,
            (Protocol::TCP, true) => 86_400,
            (Protocol::TCP, false) => 60,
            _ if self.stream => 120,
            _ => 30,
        };
        match now.since(self.last) {
            age if age <= Time::seconds(seconds - 2) => Life::Alive,
            age if age <= Time::seconds(seconds + 2) => Life::Doubtful,
            _ => Life::Dead,
        }
    }

    fn note(&mut self, side: usize, flags: u8, now: Time) {
        self.last = now;
        if self.protocol == Protocol::TCP {
            self.ends[side] |= flags & FIN != 0;
            if flags & RST != 0 {
                self.resets[side] = true;
            } else if flags & SYN == 0 {
                self.resets[side] = false;
            }
        } else {
            self.stream |= side == 0 && self.replied;
        }
        self.replied |= side == 1;
    }
}

struct Model {
    family: Family,
    tables: HostTables,
    services: Vec<(Endpoint, Protocol, ServiceId, Vec<BackendId>)>,
    /// By the tuple that the client uses.
    talks: HashMap<Tuple, Talk>,
    /// By the tuple that the backend answers to: the one whose flow it is.
    owners: HashMap<Tuple, Tuple>,
}

impl Model {
    fn new(family: Family, seed: u64) -> Self {
        let mut tables = HostTables::new(seed);
        let services = (0..4_u8)
            .map(|n| {
                let protocol = if n < 3 { Protocol::TCP } else { Protocol::UDP };
                let at = service(family, n, 80);
                let ids = tables.serve(at, protocol, [pod(family, n + 1, 8080), pod(family, n + 2, 8080)]);
                (at, protocol, tables.frontends[&FrontendKey::new(at, protocol)].service, ids)
            })
            .collect();
        Self { family, tables, services, talks: HashMap::new(), owners: HashMap::new() }
    }

    fn point(&mut self, service: usize) {
        let (at, protocol, id, backends) = &self.services[service];
        self.tables.point(*at, *protocol, *id, backends);
    }

    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Send { pod: n, port, service, flags } => {
                let (at, protocol, ..) = self.services[service];
                self.send(pod(self.family, n, port), at, protocol, service, flags)?;
            }
            Event::Answer { flow, flags } => {
                if !self.talks.is_empty() {
                    let mut keys: Vec<Tuple> = self.talks.keys().copied().collect();
                    keys.sort_by_key(|key| format!("{key:?}"));
                    self.answer(keys[flow.index(keys.len())], flags)?;
                }
            }
            Event::Wait(seconds) => self.tables.wait(seconds),
            Event::Add { service, pod: n } => {
                let at = pod(self.family, n, 8080);
                let (.., id, backends) = &mut self.services[service];
                if backends.iter().all(|b| self.tables.backend(*b).unwrap().endpoint() != at) {
                    backends.push(BackendId(u32::try_from(self.tables.backends.len()).unwrap()));
                    let flags = BackendFlags::PRESENT.with(BackendFlags::SERVING);
                    self.tables.backends.push(Backend::new(at, *id, 1, flags));
                    self.point(service);
                }
            }
            Event::Remove { service, backend } => {
                let backends = &mut self.services[service].3;
                if !backends.is_empty() {
                    let gone = backends.remove(backend.index(backends.len()));
                    self.point(service);
                    self.tables.change(gone, Backend::gone);
                }
            }
            Event::Toggle { service } => {
                let (at, protocol, ..) = self.services[service];
                let gone = std::mem::take(&mut self.services[service].3);
                match self.tables.frontends.remove(&FrontendKey::new(at, protocol)) {
                    Some(_) => gone.iter().for_each(|id| self.tables.change(*id, Backend::gone)),
                    None => self.point(service),
                }
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        client: Endpoint,
        at: Endpoint,
        protocol: Protocol,
        service: usize,
        flags: u8,
    ) -> Result<(), TestCaseError> {
        let key = Tuple::between(client, at, protocol);
        let now = self.tables.now;
        let sent = frame(client, at, protocol, flags, b"data");
        let mut frame = sent.clone();
        let verdict = from_pod(&mut frame, &mut self.tables);
        let seen = read(&frame).map_err(TestCaseError::fail)?;
        let known = self.talks.get(&key).filter(|talk| talk.life(now) != Life::Dead);
        let certain = known.filter(|talk| talk.life(now) == Life::Alive);
        let exists = self.tables.frontends.contains_key(&FrontendKey::new(at, protocol));

        // What must be.
        if let Some(talk) = certain {
            let serving = self.tables.backend(talk.id).unwrap().serving();
            let over = protocol == Protocol::TCP && talk.closed() && flags & SYN != 0;
            if !over && protocol == Protocol::TCP && flags != SYN && !serving {
                prop_assert_eq!(verdict.reason(), Reason::BackendGone);
            } else if !over && serving {
                prop_assert_eq!(verdict.reason(), Reason::Established);
            } else if exists && !self.services[service].3.is_empty() {
                let expected = if over { Reason::NewFlow } else { Reason::Moved };
                prop_assert_eq!(verdict.reason(), expected);
            }
        }

        // What may be.
        let hairpin = seen_pair(&seen).is_some_and(|(_, to)| to.addr == client.addr);
        match verdict.reason() {
            Reason::NewFlow | Reason::Moved => {
                prop_assert!(protocol == Protocol::UDP || flags == SYN);
                let (masked, backend) = seen_pair(&seen).unwrap();
                let id = *self.services[service]
                    .3
                    .iter()
                    .find(|id| self.tables.backend(**id).unwrap().endpoint() == backend)
                    .ok_or_else(|| TestCaseError::fail("a backend that the Service does not have"))?;
                prop_assert_eq!(masked.addr, if hairpin { at.addr } else { client.addr });
                let reply = Tuple::between(backend, masked, protocol);
                if let Some(owner) = self.owners.insert(reply, key)
                    && owner != key
                    && let Some(other) = self.talks.get(&owner)
                    && (other.masked, other.backend) == (masked, backend)
                {
                    prop_assert!(other.closed() || other.life(now) != Life::Alive, "two flows of one tuple");
                }
                let mut talk = Talk {
                    client,
                    service: at,
                    protocol,
                    id,
                    backend,
                    masked,
                    replied: false,
                    ends: [false; 2],
                    resets: [false; 2],
                    stream: false,
                    last: now,
                };
                talk.note(0, flags, now);
                self.talks.insert(key, talk);
            }
            Reason::Established => {
                prop_assert!(known.is_some(), "a flow that nobody opened");
                let talk = self.talks.get_mut(&key).unwrap();
                prop_assert_eq!(seen_pair(&seen), Some((talk.masked, talk.backend)));
                talk.note(0, flags, now);
            }
            Reason::NoEndpoints => {
                prop_assert!(exists && self.services[service].3.is_empty());
                prop_assert_eq!((seen.source, seen.destination), (at.addr.to_ip(), client.addr.to_ip()));
            }
            Reason::BackendGone => {
                let talk = known.ok_or_else(|| TestCaseError::fail("a flow that nobody opened"))?;
                prop_assert!(!self.tables.backend(talk.id).unwrap().serving());
                if flags == RST {
                    prop_assert_eq!(verdict, Verdict::Drop(Reason::BackendGone), "a reset has no answer");
                    return Ok(());
                }
                prop_assert_eq!(seen_pair(&seen), Some((at, client)));
            }
            Reason::NotService => prop_assert!(!exists),
            Reason::MidConnection => prop_assert!(protocol == Protocol::TCP && flags != SYN),
            reason => return Err(TestCaseError::fail(format!("{reason:?}"))),
        }
        match verdict {
            Verdict::Return(_) => {
                prop_assert!(hairpin || matches!(verdict.reason(), Reason::NoEndpoints | Reason::BackendGone))
            }
            Verdict::Translated(_) => prop_assert!(!hairpin),
            Verdict::Pass(_) => prop_assert_eq!(frame, sent),
            Verdict::Drop(_)
            | Verdict::Forward(..)
            | Verdict::ShortCut(..)
            | Verdict::Inject(..)
            | Verdict::Rest
            | Verdict::Sctp
            | Verdict::Open
            | Verdict::Renew
            | Verdict::Complain
            | Verdict::Query
            | Verdict::Unanswered(_)
            | Verdict::Leave => {
                return Err(TestCaseError::fail(format!("{verdict:?}")));
            }
        }
        Ok(())
    }

    fn answer(&mut self, key: Tuple, flags: u8) -> Result<(), TestCaseError> {
        let talk = self.talks.get_mut(&key).unwrap();
        let now = self.tables.now;
        let reply = Tuple::between(talk.backend, talk.masked, talk.protocol);
        if self.owners.get(&reply) != Some(&key) {
            return Ok(());
        }
        let hairpin = talk.backend.addr == talk.client.addr;
        let way = if hairpin { from_pod } else { to_pod };
        let mut frame = frame(talk.backend, talk.masked, talk.protocol, flags, b"data");
        let verdict = way(&mut frame, &mut self.tables);
        let seen = read(&frame).map_err(TestCaseError::fail)?;
        let translated = (talk.service, talk.client);
        match talk.life(now) {
            Life::Alive => prop_assert_eq!(verdict.reason(), Reason::Reply),
            Life::Dead => prop_assert_eq!(verdict, Verdict::Pass(Reason::NotService)),
            Life::Doubtful => {}
        }
        if verdict.reason() == Reason::Reply {
            prop_assert_eq!(matches!(verdict, Verdict::Return(_)), hairpin);
            prop_assert_eq!(seen_pair(&seen), Some(translated));
            talk.note(1, flags, now);
        }
        Ok(())
    }
}

fn seen_pair(seen: &Seen) -> Option<(Endpoint, Endpoint)> {
    match seen.transport {
        Transport::Icmp(..) => None,
        _ => Some((seen.from(), seen.to())),
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn any_conversation(
        family in families(),
        seed: u64,
        events in proptest::collection::vec(events(), 1..150),
    ) {
        let mut model = Model::new(family, seed);
        for event in events {
            model.happen(event)?;
        }
    }
}
