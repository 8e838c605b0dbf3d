//! Packets of established flows between pods of a node that go past its stack.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::host::HostTables;
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use support::*;

const CLIENT: u32 = 11;
const BACKEND: u32 = 22;

struct Cast {
    client: Endpoint,
    service: Endpoint,
    backend: Endpoint,
    protocol: Protocol,
    tables: HostTables,
}

fn casts(short_cuts: bool) -> impl Iterator<Item = Cast> {
    KINDS.into_iter().map(move |(family, protocol): (Family, Protocol)| {
        let (client, service) = (pod(family, 1, 40000), service(family, 1, 80));
        let backend = pod(family, 2, 8080);
        let mut tables = HostTables::new(1);
        tables.short_cuts = short_cuts;
        tables.serve(service, protocol, [backend]);
        Cast { client, service, backend, protocol, tables }
    })
}

impl Cast {
    fn send(&mut self, flags: u8) -> Verdict {
        self.tables.interface = CLIENT;
        let mut frame = frame(self.client, self.service, self.protocol, flags, b"data");
        let verdict = from_pod(&mut frame, &mut self.tables);
        let seen = read(&frame).unwrap();
        assert_eq!((seen.from(), seen.to()), (self.client, self.backend));
        verdict
    }

    /// The answer: what becomes of it at the backend, and at the client if it gets there through the stack.
    fn answer(&mut self, flags: u8) -> (Verdict, Option<Verdict>) {
        self.tables.interface = BACKEND;
        let mut frame = frame(self.backend, self.client, self.protocol, flags, b"data");
        let first = from_pod(&mut frame, &mut self.tables);
        self.tables.interface = CLIENT;
        let second = matches!(first, Verdict::Pass(_)).then(|| to_pod(&mut frame, &mut self.tables));
        let seen = read(&frame).unwrap();
        assert_eq!((seen.from(), seen.to()), (self.service, self.client));
        (first, second)
    }

    fn open(&mut self) {
        assert_eq!(self.send(SYN), Verdict::Translated(Reason::NewFlow));
        let (first, second) = self.answer(SYN | ACK);
        assert_eq!(first, Verdict::Pass(Reason::NotService), "the stack has not seen an answer yet");
        assert_eq!(second, Some(Verdict::Translated(Reason::Reply)));
    }
}

#[test]
fn a_flow_that_the_stack_has_seen_both_ways_takes_short_cuts() {
    for mut cast in casts(true) {
        cast.open();
        for _ in 0..3 {
            assert_eq!(cast.send(ACK), Verdict::ShortCut(BACKEND, Reason::Established));
            assert_eq!(cast.answer(ACK), (Verdict::ShortCut(CLIENT, Reason::Reply), None));
        }
    }
}

#[test]
fn the_stack_sees_how_a_connection_ends() {
    for mut cast in casts(true).filter(|cast| cast.protocol == Protocol::TCP) {
        cast.open();
        assert_eq!(cast.send(FIN | ACK), Verdict::Translated(Reason::Established));
        let (first, second) = cast.answer(FIN | ACK);
        assert_eq!(
            (first, second),
            (Verdict::Pass(Reason::NotService), Some(Verdict::Translated(Reason::Reply)))
        );
        assert_eq!(cast.send(ACK), Verdict::Translated(Reason::Established), "it is over");
    }
}

#[test]
fn without_short_cuts_all_goes_through_the_stack() {
    for mut cast in casts(false) {
        cast.open();
        for _ in 0..3 {
            assert_eq!(cast.send(ACK), Verdict::Translated(Reason::Established));
            assert_eq!(
                cast.answer(ACK),
                (Verdict::Pass(Reason::NotService), Some(Verdict::Translated(Reason::Reply)))
            );
        }
    }
}

/// A pod that has moved to another link is found there by its next answer.
#[test]
fn the_backends_interface_is_learnt_from_its_answers() {
    for mut cast in casts(true) {
        cast.open();
        cast.tables.interface = 33;
        let mut answer = frame(cast.backend, cast.client, cast.protocol, ACK, b"");
        assert_eq!(from_pod(&mut answer, &mut cast.tables), Verdict::ShortCut(CLIENT, Reason::Reply));
        assert_eq!(cast.send(ACK), Verdict::ShortCut(33, Reason::Established));
    }
}
