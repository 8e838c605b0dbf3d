//! The source ports of masqueraded flows when there are too few: whom they are given to, and that nothing goes
//! astray.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use std::collections::{BTreeMap, HashMap};

use podnet_common::conntrack::{REFRESH, REFRESH_BY_OTHER, Time};
use podnet_common::host::{HostTables, WayOut};
use podnet_common::origin::MASQUERADE_PORTS;
use podnet_common::service::FrontendKind;

use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use proptest::prelude::*;
use support::arbitrary::families;
use support::*;

const UPLINK: u32 = 2;
/// How many ports are tried.
const TRIES: usize = 16;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends a datagram; if that opens a flow, these ports are drawn for it.
    Send { client: u8, ports: Vec<u16> },
    /// The backend answers the client that has this port.
    Answer { port: u16 },
    /// Time passes.
    Wait(u32),
}

/// Few ports are ever drawn, so that all are soon in use.
fn ports() -> impl Strategy<Value = u16> {
    MASQUERADE_PORTS.start() + 7..MASQUERADE_PORTS.start() + 13
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..40_u8, proptest::collection::vec(ports(), TRIES + 1))
            .prop_map(|(client, ports)| Event::Send { client, ports }),
        4 => ports().prop_map(|port| Event::Answer { port }),
        2 => prop::sample::select(vec![2, 5, 20, 40, 65]).prop_map(Event::Wait),
    ]
}

/// Who has a port, and what has been seen of the flow.
#[derive(Clone, Copy, Debug)]
struct Owner {
    client: u8,
    last: Time,
    /// How old the client's next datagram takes its flow for: answers leave it a second behind, for its frontend to be
    /// asked.
    asked: Time,
    replied: bool,
    stream: bool,
}

impl Owner {
    fn idle(&self, seconds: u32, now: Time) -> bool {
        now.since(self.last) >= Time::seconds(seconds)
    }

    fn alive(&self, now: Time) -> bool {
        now.since(self.last) <= self.lifetime()
    }

    fn alive_for_client(&self, now: Time) -> bool {
        now.since(self.asked) <= self.lifetime()
    }

    fn lifetime(&self) -> u32 {
        Time::seconds(if self.stream { 120 } else { 30 })
    }
}

struct World {
    family: Family,
    node: Endpoint,
    backend: Endpoint,
    tables: HostTables,
    owners: HashMap<u16, Owner>,
}

impl World {
    fn new(family: Family) -> Self {
        let (node, backend) = (service(family, 1, 30053), pod(family, 2, 53));
        let mut tables = HostTables::new(1);
        tables.serve(node, Protocol::UDP, [backend]);
        for frontend in tables.frontends.values_mut() {
            frontend.kind = FrontendKind::NODE_PORT;
        }
        tables.interface = UPLINK;
        tables.ways_out = vec![WayOut { interface: UPLINK, source: node.addr }];
        Self { family, node, backend, tables, owners: HashMap::new() }
    }

    fn client(&self, n: u8) -> Endpoint {
        pod(self.family, 100 + n, 40000)
    }

    fn port_of(&self, client: u8) -> Option<u16> {
        let now = self.tables.now;
        let mine = |(_, owner): &(&u16, &Owner)| owner.client == client && owner.alive_for_client(now);
        self.owners.iter().find(mine).map(|(port, _)| *port)
    }

    /// Which of the ports that are tried a new flow of `client` gets: the first that no living flow of another's has,
    /// or else that of the flow which has been idle for longest, if that is a minute.
    fn expected(&self, client: u8, tried: &[u16]) -> Option<u16> {
        let now = self.tables.now;
        let others = |owner: &Owner| owner.client != client && owner.alive(now);
        let alive = |port: &u16| self.owners.get(port).is_some_and(others);
        let oldest = || {
            let idle: BTreeMap<Time, u16> =
                tried.iter().rev().map(|port| (self.owners[port].last, *port)).collect();
            let (_, port) = idle.first_key_value()?;
            self.owners[port].idle(60, now).then_some(*port)
        };
        tried.iter().find(|port| !alive(port)).copied().or_else(oldest)
    }

    fn send(&mut self, client: u8, ports: &[u16]) -> Result<(), TestCaseError> {
        let now = self.tables.now;
        let numbers = u64::from(MASQUERADE_PORTS.end() - MASQUERADE_PORTS.start()) + 1;
        let draw = |port: &u16| {
            let index = u64::from(port - MASQUERADE_PORTS.start());
            u32::try_from((index << 32).div_ceil(numbers)).unwrap()
        };
        self.tables.drawn = std::iter::once(0).chain(ports.iter().map(draw)).collect();
        let mut frame = data(self.client(client), self.node, Protocol::UDP);
        let verdict = from_net(&mut frame, &mut self.tables);
        if let Some(port) = self.port_of(client) {
            prop_assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::Established));
            let owner = self.owners.get_mut(&port).unwrap();
            owner.stream |= owner.replied;
            (owner.last, owner.asked) = (now, now);
            prop_assert_eq!(read(&frame).unwrap().ports().0, port);
            return Ok(());
        }
        match self.expected(client, &ports[..TRIES]) {
            Some(port) => {
                prop_assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::NewFlow));
                prop_assert_eq!(read(&frame).unwrap().ports().0, port);
                self.owners
                    .insert(port, Owner { client, last: now, asked: now, replied: false, stream: false });
            }
            None => prop_assert_eq!(verdict, Verdict::Drop(Reason::SourcePorts)),
        }
        Ok(())
    }

    fn answer(&mut self, port: u16) -> Result<(), TestCaseError> {
        let now = self.tables.now;
        let node = Endpoint { port: podnet_common::wire::Be16::new(port), ..self.node };
        let mut frame = data(self.backend, node, Protocol::UDP);
        let verdict = from_net(&mut frame, &mut self.tables);
        match self.owners.get(&port).copied().filter(|owner| owner.alive(now)) {
            Some(owner) => {
                prop_assert_eq!(verdict, Verdict::Forward(UPLINK, Reason::Reply));
                let seen = read(&frame).unwrap();
                prop_assert_eq!((seen.from(), seen.to()), (self.node, self.client(owner.client)));
                let asked =
                    if now.since(owner.asked) < REFRESH_BY_OTHER { owner.asked } else { now.before(REFRESH) };
                self.owners.insert(port, Owner { replied: true, last: now, asked, ..owner });
            }
            None => prop_assert_eq!(verdict, Verdict::Pass(Reason::NotService)),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn a_port_has_one_flow_at_a_time(
        family in families(), events in proptest::collection::vec(events(), 1..120),
    ) {
        let mut world = World::new(family);
        for event in events {
            match event {
                Event::Send { client, ports } => world.send(client, &ports)?,
                Event::Answer { port } => world.answer(port)?,
                Event::Wait(seconds) => world.tables.wait(seconds),
            }
        }
    }
}
