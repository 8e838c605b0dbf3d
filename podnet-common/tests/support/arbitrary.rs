//! Arbitrary frames, and tables that they may meet.

use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, Ipv6RawExtHeader};
use podnet_common::conntrack::{Flow, State, Time, Tuple, Way};
use podnet_common::host::HostTables;
use podnet_common::packet::ETHERNET;
use podnet_common::service::{
    Algorithm, Backend, BackendFlags, BackendId, BackendRef, Frontend, FrontendFlags, FrontendKey,
    FrontendKind, ServiceId, SlotRange,
};
use podnet_common::wire::{Endpoint, Family, Protocol};
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::{ACK, FAMILIES, FIN, RST, SYN, frame, frame_of, ip, pod, service};

/// Addresses and ports are few, so that things meet.
fn ends(family: Family) -> impl Strategy<Value = Endpoint> {
    (0..3_u8, any::<bool>(), prop::sample::select(vec![80_u16, 8080, 40000])).prop_map(
        move |(n, is_service, port)| if is_service { service(family, n, port) } else { pod(family, n, port) },
    )
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::TCP, Protocol::UDP])
}

pub(crate) fn families() -> impl Strategy<Value = Family> {
    prop::sample::select(FAMILIES.to_vec())
}

/// Frames as a pod or its peer may send them: plain, with IP options or an extension header, a fragment, of
/// no IP version, of a protocol that is not podnet's, or to a group of machines.
fn sound(family: Family) -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![Just(SYN), Just(ACK), 0..64_u8];
    let sizes = prop_oneof![8 => 0..40_usize, 1 => Just(1400)];
    (ends(family), ends(family), protocols(), flags, sizes, 0..10_u8).prop_map(
        move |(from, to, protocol, flags, size, dress)| {
            let mut headers = ip(from, to, IpNumber(protocol.0));
            match (&mut headers, dress) {
                (IpHeaders::Ipv4(header, _), 0) => header.options = [1; 8].into(),
                (IpHeaders::Ipv4(header, _), 1) => header.more_fragments = true,
                (IpHeaders::Ipv6(_, extensions), 0) => {
                    let padding = Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 4, 0, 0, 0, 0]);
                    extensions.destination_options = padding.ok();
                }
                (IpHeaders::Ipv6(_, extensions), 1) => {
                    let fragment = Ipv6FragmentHeader::new(IpNumber(59), IpFragOffset::ZERO, true, 7);
                    extensions.fragment = Some(fragment);
                }
                _ => {}
            }
            let ports = (from.port.get(), to.port.get());
            let mut frame = frame_of(headers, ports, protocol, flags, &vec![7; size]);
            match dress {
                2 => frame[ETHERNET] ^= 0xf0,
                3 => frame[ETHERNET + if family == Family::V4 { 9 } else { 6 }] = 47,
                4 => frame[0] |= 1,
                _ => {}
            }
            frame
        },
    )
}

/// Sound frames, damaged ones, and noise.
fn frames(family: Family) -> impl Strategy<Value = Vec<u8>> {
    let sound = sound(family).boxed();
    let damaged = (sound.clone(), any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>())
        .prop_map(|(mut frame, at, byte, end)| {
            let at = at.index(frame.len());
            frame[at] = byte;
            frame.truncate(end.index(frame.len() * 2));
            frame
        });
    prop_oneof![8 => sound, 2 => damaged, 1 => proptest::collection::vec(any::<u8>(), 0..120)]
}

/// Frames of which most meet a flow or a Service of `tables`.
fn frames_for(family: Family, tables: &HostTables) -> BoxedStrategy<Vec<u8>> {
    let flows = tables.flows.keys().map(|tuple| (tuple.source(), tuple.destination(), tuple.protocol()));
    let client = pod(family, 0, 40000);
    let opening = tables.frontends.keys().map(|key| (client, key.endpoint(), key.protocol()));
    let mut known: Vec<_> = flows.chain(opening).collect();
    if known.is_empty() {
        return frames(family).boxed();
    }
    // Hash maps have no order, and a case has to be found again.
    known.sort_by_key(|(from, to, protocol)| (*from, *to, protocol.0));
    let flags = prop::sample::select(vec![SYN, ACK, SYN | ACK, FIN | ACK, RST]);
    let sizes = prop_oneof![8 => 0..40_usize, 1 => Just(1400)];
    let to_many = prop_oneof![8 => Just(0), 1 => Just(1)];
    let aimed = (prop::sample::select(known), flags, sizes, to_many).prop_map(
        |((from, to, protocol), flags, size, to_many)| {
            let mut frame = frame(from, to, protocol, flags, &vec![7; size]);
            frame[0] |= to_many;
            frame
        },
    );
    prop_oneof![2 => aimed, 1 => frames(family)].boxed()
}

/// Tables, and so many frames over them.
pub(crate) fn worlds(frames: std::ops::Range<usize>) -> impl Strategy<Value = (HostTables, Vec<Vec<u8>>)> {
    families().prop_flat_map(tables_of).prop_flat_map(move |(family, tables)| {
        let frames = proptest::collection::vec(frames_for(family, &tables), frames.clone());
        (Just(tables), frames)
    })
}

fn tables_of(family: Family) -> impl Strategy<Value = (Family, HostTables)> {
    tables(family).prop_map(move |tables| (family, tables))
}

/// Tables as nobody would write them, but for the families, which user space keeps apart.
fn tables(family: Family) -> impl Strategy<Value = HostTables> {
    let tuple =
        (ends(family), ends(family), protocols()).prop_map(|(a, b, c)| Tuple::between(a, b, c)).boxed();
    let backend =
        (0..5_u32, 1..4_u32).prop_map(|(id, generation)| BackendRef { id: BackendId(id), generation });
    let way = prop_oneof![3 => Just(0_u8), 1 => 0..4_u8];
    let flow = (tuple.clone(), tuple, backend, any::<u8>(), way, 0..5_u32).prop_map(
        |(key, to, backend, state, way, age)| {
            let state = State::read_from_bytes(&[state]).unwrap();
            let now = Time(Time::seconds(3600) - Time::seconds(30) * age);
            let way = Way::read_from_bytes(&[way]).unwrap();
            (key, Flow::new(&to, backend, state, now).on(way, 1, [2, 0, 0, 0, 0, 9]))
        },
    );
    let range = || (0..6_u32, 0..6_u32).prop_map(|(base, count)| SlotRange { base, count });
    let flags = prop_oneof![1 => Just(0), 1 => any::<u8>()];
    let kind = prop_oneof![3 => Just(0), 1 => 0..6_u8];
    let affinity = prop_oneof![3 => Just(0), 1 => Just(60_u32)];
    let frontend = (ends(family), protocols(), range(), range(), flags, kind, affinity, 0..2_u8);
    let backend = (ends(family), 1..4_u32, prop_oneof![1 => Just(0x1f), 1 => any::<u8>()]);
    (
        proptest::collection::vec(frontend, 0..8),
        proptest::collection::vec(0..6_u32, 0..8),
        proptest::collection::vec(backend, 0..5),
        proptest::collection::vec(flow, 0..20),
        prop_oneof![3 => Just(usize::MAX), 1 => 0..25_usize],
        any::<u64>(),
    )
        .prop_map(|(frontends, slots, backends, flows, flow_capacity, seed)| {
            let mut tables = HostTables::new(seed);
            for (at, protocol, inside, outside, flags, kind, affinity, algorithm) in frontends {
                let mut frontend =
                    Frontend::new(FrontendKind(kind), ServiceId(1), inside).with_slots(inside, outside);
                frontend.flags = FrontendFlags::read_from_bytes(&[flags]).unwrap();
                frontend.affinity = affinity;
                frontend.algorithm = Algorithm(algorithm);
                let rest = frontend.kind == FrontendKind::CLUSTER_IP_REST;
                let key = FrontendKey::new(at, protocol);
                tables.frontends.insert(if rest { FrontendKey::rest_of(at.addr) } else { key }, frontend);
            }
            tables.slots = slots.into_iter().map(BackendId).collect();
            for (at, generation, flags) in backends {
                let flags = BackendFlags::read_from_bytes(&[flags]).unwrap();
                tables.backends.push(Backend::new(at, ServiceId(1), generation, flags));
            }
            tables.flows = flows.into_iter().collect();
            tables.flow_capacity = flow_capacity;
            tables
        })
}
