//! Any frame over any tables: what is passed or dropped stays as it is, everything else is as sound as it
//! was and goes where a table says.
//!
//! The input: a byte of switches, the number of records, records of eight bytes that fill the tables, and
//! the frame.
#![no_main]

#[path = "../../podnet-common/tests/support/read.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod read;
#[path = "../../podnet-common/tests/support/verdicts.rs"]
mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use podnet_common::conntrack::{Flow, State, Time, Tuple, Way};
use podnet_common::host::{HostTables, WayOut, early_all, route_all};
use podnet_common::packet::parse;
use podnet_common::route::Hook;
use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, BackendRef, Frontend, FrontendFlags, FrontendKey, FrontendKind,
    ServiceId, SlotRange,
};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Protocol};
use verdicts::{REFUSALS, may_drop};
use zerocopy::FromBytes;

/// One of 16 ends: few, so that frames meet tables.
fn end(v6: bool, byte: u8) -> Endpoint {
    let (n, is_service) = (byte & 1, byte & 2 != 0);
    let ip: IpAddr = match (v6, is_service) {
        (false, false) => Ipv4Addr::new(10, 244, 1, n).into(),
        (false, true) => Ipv4Addr::new(10, 96, 0, n).into(),
        (true, false) => Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, n.into()).into(),
        (true, true) => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()).into(),
    };
    SocketAddr::new(ip, [80, 8080, 53, 40000][usize::from(byte >> 2 & 3)]).into()
}

fn protocol(byte: u8) -> Protocol {
    if byte & 0x80 == 0 { Protocol::TCP } else { Protocol::UDP }
}

fn fill(tables: &mut HostTables, v6: bool, [kind, a, b, c, d, e, f, g]: [u8; 8]) {
    match kind & 3 {
        0 => {
            let slots = |byte: u8| SlotRange { base: (byte & 7).into(), count: (byte >> 3 & 7).into() };
            let mut frontend = Frontend::new(FrontendKind(d % 6), ServiceId(1), slots(b));
            frontend = frontend.with_slots(slots(b), slots(c));
            frontend.flags = FrontendFlags::read_from_bytes(&[e]).expect("any byte is flags");
            frontend.affinity = u32::from(f & 1) * 60;
            frontend.algorithm = Algorithm(f >> 1 & 1);
            tables.frontends.insert(FrontendKey::new(end(v6, a), protocol(a)), frontend);
        }
        1 => tables.slots.extend([a, b, c, d, e, f, g].map(|id| BackendId((id & 7).into()))),
        2 => {
            let flags = BackendFlags::read_from_bytes(&[c]).expect("any byte is flags");
            tables.backends.push(Backend::new(end(v6, a), ServiceId(1), (b & 3).into(), flags));
        }
        _ => {
            let key = Tuple::between(end(v6, a), end(v6, b), protocol(a));
            let to = Tuple::between(end(v6, c), end(v6, d), protocol(a));
            let backend = BackendRef { id: BackendId((e & 7).into()), generation: (e >> 3 & 3).into() };
            let state = State::read_from_bytes(&[f]).expect("any byte is a state");
            let seen = Time(tables.now.0 - Time::seconds(8) * u32::from(g));
            let way = Way::read_from_bytes(&[e >> 5 & 3]).expect("any byte is a way");
            tables.flows.insert(key, Flow::new(&to, backend, state, seen).on(way, 1, [2, 0, 0, 0, 0, 9]));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [switches, count, rest @ ..] = bytes else { return };
    let (v6, hook, tight) = (switches & 1 != 0, Hook::ALL[usize::from(switches >> 1 & 3)], switches & 8 != 0);
    let Some((records, sent)) = rest.split_at_checked(usize::from(count % 32) * 8) else { return };

    let mut tables = HostTables::new(u64::from(switches >> 4));
    for record in records.chunks_exact(8) {
        fill(&mut tables, v6, record.try_into().expect("eight bytes"));
    }
    if tight {
        tables.flow_capacity = tables.flows.len() + usize::from(switches >> 7);
    }
    if switches & 0x10 != 0 {
        tables.ways_out = vec![WayOut { interface: 3, source: end(v6, 3).addr }];
        tables.mtu = 70;
    }
    let flows = tables.flows.clone();
    let parsed = parse(&sent.to_vec());
    // User space keeps the families apart, and the tables here are of one.
    if sent.get(12..14) == Some(if v6 { &[0x08, 0x00] } else { &[0x86, 0xdd] }) {
        return;
    }

    let (mut at_card, mut early_tables) = (sent.to_vec(), tables.clone());
    let early = early_all(&mut at_card, &mut early_tables);
    let mut frame = sent.to_vec();
    let verdict = route_all(hook, &mut frame, &mut tables);
    if early == Verdict::Leave {
        assert_eq!(at_card, sent);
    } else if hook == Hook::FromNet {
        assert_eq!((early, &at_card, &early_tables.flows), (verdict, &frame, &tables.flows));
    }
    match verdict {
        Verdict::Rest
        | Verdict::Sctp
        | Verdict::Open
        | Verdict::Renew
        | Verdict::Complain
        | Verdict::Query
        | Verdict::Unanswered(_)
        | Verdict::Leave => panic!("nobody has decided"),
        Verdict::Pass(reason) => {
            assert_eq!(frame, sent);
            assert_eq!(tables.flows, flows, "{reason:?}");
        }
        Verdict::Drop(reason) => {
            assert_eq!(frame, sent);
            assert!(reason == Reason::Truncated || may_drop(reason, sent), "{reason:?}");
        }
        Verdict::Translated(_)
        | Verdict::Return(_)
        | Verdict::Forward(..)
        | Verdict::ShortCut(..)
        | Verdict::Inject(..) => {
            if read::read(sent).is_ok() {
                read::read(&frame).expect("lengths and checksums are right");
            }
            if let Ok(before) = parsed
                && !REFUSALS.contains(&verdict.reason())
            {
                assert_eq!(frame.len(), sent.len());
                let after = parse(&frame).expect("parsed again");
                assert_eq!((before.l4, before.flags), (after.l4, after.flags));
                assert_eq!(tables.flows[&before.tuple].to(before.tuple.protocol()), after.tuple);
            }
        }
    }
    assert!(tables.flows.len() <= (flows.len() + 2).min(tables.flow_capacity.max(flows.len())));
});
