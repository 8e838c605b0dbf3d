//! Fragments of translated packets: put together again, they are the packet that would have been sent to the
//! other end directly.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use std::collections::HashMap;

use etherparse::defrag::IpDefragPool;
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, Ipv6RawExtHeader, PacketBuilder, SlicedPacket,
};
use podnet_common::conntrack::{Time, Tuple};
use podnet_common::fragment::{self, Fragment, FragmentKey, FragmentPorts};
use podnet_common::host::HostTables;
use podnet_common::nat;
use podnet_common::packet::{self, ETHERNET, IPV4, IPV6};
use podnet_common::tables::Tables as _;
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Family, Protocol};
use proptest::prelude::*;
use support::*;

const NOW: Time = Time(1000);

fn header(family: Family) -> usize {
    if family == Family::V4 { IPV4 } else { IPV6 }
}

/// A packet, and how it is cut: `size` units of eight bytes in each fragment.
#[derive(Clone, Debug)]
struct Cut {
    family: Family,
    protocol: Protocol,
    id: u32,
    payload: usize,
    size: usize,
    dressed: bool,
}

impl Cut {
    fn headers(&self, tuple: &Tuple, part: usize, more: bool) -> IpHeaders {
        let mut headers = ip(tuple.source(), tuple.destination(), IpNumber(self.protocol.0));
        let offset = IpFragOffset::try_new(u16::try_from(part * self.size).unwrap()).unwrap();
        match &mut headers {
            IpHeaders::Ipv4(header, _) => {
                header.identification = u16::try_from(self.id & 0xffff).unwrap();
                header.more_fragments = more;
                header.fragment_offset = offset;
                if self.dressed {
                    header.options = [7, 7, 4, 0, 0, 0, 0, 0].into();
                }
            }
            IpHeaders::Ipv6(_, extensions) => {
                extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber(59), offset, more, self.id));
                if self.dressed {
                    extensions.hop_by_hop_options =
                        Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 4, 0, 0, 0, 0]).ok();
                }
            }
        }
        headers
    }

    /// What the packet carries, from its L4 header on.
    fn l4(&self, tuple: &Tuple) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|i| u8::try_from(i % 251).unwrap()).collect();
        frame(tuple.source(), tuple.destination(), self.protocol, ACK, &payload)
            .split_off(ETHERNET + header(self.family))
    }

    /// The frames of a packet of `tuple`, in order.
    fn frames(&self, tuple: &Tuple) -> Vec<Vec<u8>> {
        let l4 = self.l4(tuple);
        let parts: Vec<&[u8]> = l4.chunks(self.size * 8).collect();
        let frame = |(i, part): (usize, &&[u8])| {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(POD_MAC, NODE_MAC)
                .ip(self.headers(tuple, i, i + 1 < parts.len()))
                .write(&mut frame, IpNumber(self.protocol.0), part)
                .unwrap();
            frame
        };
        parts.iter().enumerate().map(frame).collect()
    }
}

fn cuts() -> impl Strategy<Value = Cut> {
    let kinds = prop::sample::select(KINDS.to_vec());
    // A first fragment holds the L4 header.
    (kinds, any::<u32>(), 60..2000_usize, 3..40_usize, any::<bool>()).prop_map(
        |((family, protocol), id, payload, size, dressed)| Cut {
            family,
            protocol,
            id,
            payload,
            size,
            dressed,
        },
    )
}

fn tuples(family: Family, protocol: Protocol) -> impl Strategy<Value = Tuple> {
    let end = (0..5_u8, any::<u16>(), any::<bool>())
        .prop_map(
            move |(n, port, is_pod)| if is_pod { pod(family, n, port) } else { service(family, n, port) },
        )
        .boxed();
    (end.clone(), end).prop_map(move |(from, to)| Tuple::between(from, to, protocol))
}

/// Translates a fragment of a packet whose flow gets the tuple `to`, as a caller would.
fn translate(
    frame: &mut Vec<u8>,
    table: &mut HashMap<FragmentKey, FragmentPorts>,
    from: &Tuple,
    to: &Tuple,
) -> Result<(), Reason> {
    match fragment::parse(frame)? {
        Fragment::Whole(packet) => {
            assert_eq!(packet.tuple, *from);
            nat::rewrite(frame, &packet, to).unwrap();
        }
        Fragment::First(packet, key) => {
            assert_eq!(packet.tuple, *from);
            table.insert(key, FragmentPorts::new(&packet.tuple, NOW));
            nat::rewrite(frame, &packet, to).unwrap();
        }
        Fragment::Later(key) => {
            assert_eq!((key.source(), key.destination()), (from.source().addr, from.destination().addr));
            assert_eq!(key.tuple(table.get(&key), NOW)?, *from);
            fragment::rewrite_addresses(frame, &key, to).unwrap();
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(800))]

    #[test]
    fn fragments_are_put_together_to_the_translated_packet(
        (cut, from, to) in cuts().prop_flat_map(|cut| {
            let tuples = || tuples(cut.family, cut.protocol);
            (Just(cut.clone()), tuples(), tuples())
        }),
        order in any::<u64>(),
    ) {
        let sent = cut.frames(&from);
        let mut table = HashMap::new();
        let mut arrived = Vec::new();
        for frame in &sent {
            let parsed = packet::parse(frame);
            let whole = sent.len() == 1 && cut.family == Family::V4;
            prop_assert_eq!(parsed.err(), if whole { None } else { Some(Reason::Fragment) });
            let mut frame = frame.clone();
            prop_assert_eq!(translate(&mut frame, &mut table, &from, &to), Ok(()));
            arrived.push(frame);
        }
        prop_assert_eq!(table.len(), usize::from(sent.len() > 1));
        if sent.len() > 1 {
            // In whatever order they arrive behind the first.
            let at = usize::try_from(order % arrived.len() as u64).unwrap();
            arrived.rotate_left(at);
            let mut pool = IpDefragPool::<(), ()>::new();
            let mut packet = None;
            for frame in &arrived {
                let sliced = SlicedPacket::from_ethernet(frame).unwrap();
                if cut.family == Family::V4 {
                    let etherparse::NetSlice::Ipv4(ipv4) = sliced.net.as_ref().unwrap() else { unreachable!() };
                    let header = ipv4.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                packet = packet.or(pool.process_sliced_packet(&sliced, (), ()).unwrap());
            }
            prop_assert_eq!(packet.unwrap().payload, cut.l4(&to));
            arrived.rotate_right(at);
        }
        prop_assert_eq!(&arrived, &cut.frames(&to));

        table.clear();
        for (frame, sent) in arrived.iter_mut().zip(&sent) {
            prop_assert_eq!(translate(frame, &mut table, &to, &from), Ok(()));
            prop_assert_eq!(&*frame, sent);
        }
    }

    #[test]
    fn any_fragment_is_parsed_or_not(
        cut in cuts(), noise in proptest::collection::vec(any::<u8>(), 0..60), at: prop::sample::Index,
        end: prop::sample::Index,
    ) {
        let (from, to) = (pod(cut.family, 1, 1), service(cut.family, 1, 2));
        for mut frame in cut.frames(&Tuple::between(from, to, cut.protocol)) {
            let at = ETHERNET + at.index(60);
            let damaged = noise.len().min(frame.len().saturating_sub(at));
            if damaged > 0 {
                frame[at..at + damaged].copy_from_slice(&noise[..damaged]);
            }
            frame.truncate(end.index(2 * frame.len()));
            match fragment::parse(&frame) {
                Ok(Fragment::Whole(packet) | Fragment::First(packet, _)) => {
                    prop_assert!(packet.l4 + 8 <= frame.len());
                }
                Ok(Fragment::Later(key)) => {
                    let to = Tuple::between(from, to, cut.protocol);
                    prop_assert_eq!(fragment::rewrite_addresses(&mut frame, &key, &to), Some(()));
                }
                Err(_) => {}
            }
        }
    }
}

fn cut(family: Family, protocol: Protocol) -> Cut {
    Cut { family, protocol, id: 0x1_0007, payload: 100, size: 3, dressed: false }
}

/// A later fragment that comes before the first one is not led anywhere.
#[test]
fn a_fragment_whose_first_one_was_not_seen_is_as_it_was() {
    for (family, protocol) in KINDS {
        let tuple = Tuple::between(pod(family, 1, 40000), service(family, 1, 80), protocol);
        let sent = cut(family, protocol).frames(&tuple).remove(1);
        let mut frame = sent.clone();
        assert_eq!(
            translate(&mut frame, &mut HashMap::new(), &tuple, &tuple.reply()),
            Err(Reason::FragmentAlone)
        );
        assert_eq!(frame, sent);
    }
}

/// What tells the fragments of two packets apart.
#[test]
fn fragments_of_other_packets_have_other_keys() {
    for (family, protocol) in KINDS {
        let other_protocol = if protocol == Protocol::TCP { Protocol::UDP } else { Protocol::TCP };
        let (from, to) = (pod(family, 1, 40000), service(family, 1, 80));
        let key = |cut: &Cut, tuple: &Tuple, part: usize| match fragment::parse(&cut.frames(tuple)[part]) {
            Ok(Fragment::First(_, key)) if part == 0 => key,
            Ok(Fragment::Later(key)) if part > 0 => key,
            other => panic!("{other:?}"),
        };
        let this = cut(family, protocol);
        let tuple = Tuple::between(from, to, protocol);
        let first = key(&this, &tuple, 0);
        for part in 1..4 {
            assert_eq!(key(&this, &tuple, part), first);
        }
        assert_ne!(key(&Cut { id: 0x1_0008, ..this.clone() }, &tuple, 1), first);
        // The upper half of an identification is IPv6's alone.
        let long = key(&Cut { id: 7, ..this.clone() }, &tuple, 1);
        assert_eq!(long == first, family == Family::V4);
        assert_ne!(key(&this, &tuple.reply(), 1), first);
        assert_ne!(key(&this, &Tuple::between(from, service(family, 2, 80), protocol), 1), first);
        // An IPv6 fragment's protocol is the first one's to say.
        let other = key(&cut(family, other_protocol), &Tuple::between(from, to, other_protocol), 1);
        assert_eq!(other == first, family == Family::V6);
    }
}

#[test]
fn a_first_fragment_holds_the_header() {
    for (family, protocol) in KINDS {
        let tuple = Tuple::between(pod(family, 1, 40000), service(family, 1, 80), protocol);
        let small = Cut { size: 1, ..cut(family, protocol) };
        let parsed = fragment::parse(&small.frames(&tuple)[0]);
        assert_eq!(parsed.is_ok(), protocol == Protocol::UDP);
        assert!(matches!(parsed, Ok(Fragment::First(..)) | Err(Reason::Truncated)));
    }
}

#[test]
fn fragments_of_other_protocols_are_left_alone() {
    let tuple = Tuple::between(pod(Family::V4, 1, 40000), service(Family::V4, 1, 80), Protocol::UDP);
    for mut frame in cut(Family::V4, Protocol::UDP).frames(&tuple) {
        frame[ETHERNET + 9] = Protocol::ICMP.0;
        assert_eq!(fragment::parse(&frame), Err(Reason::OtherProtocol));
    }
    let tuple = Tuple::between(pod(Family::V6, 1, 40000), service(Family::V6, 1, 80), Protocol::UDP);
    let mut frame = cut(Family::V6, Protocol::UDP).frames(&tuple).remove(0);
    frame[ETHERNET + IPV6] = Protocol::ICMPV6.0;
    assert_eq!(fragment::parse(&frame), Err(Reason::OtherProtocol));
}

/// Extension headers behind the fragment header are in the first fragment only.
#[test]
fn extension_headers_on_both_sides_of_the_fragment_header() {
    let (from, to) = (pod(Family::V6, 1, 40000), service(Family::V6, 1, 80));
    let tuple = Tuple::between(from, to, Protocol::UDP);
    let plain = Cut { dressed: true, ..cut(Family::V6, Protocol::UDP) };
    let mut frames = plain.frames(&tuple);
    for frame in &mut frames {
        // The fragment header's next header: destination options.
        frame[ETHERNET + IPV6 + 8] = 60;
    }
    let options = [Protocol::UDP.0, 0, 1, 4, 0, 0, 0, 0];
    frames[0].splice(ETHERNET + IPV6 + 16..ETHERNET + IPV6 + 16, options);
    let Ok(Fragment::First(packet, key)) = fragment::parse(&frames[0]) else { panic!() };
    assert_eq!((packet.tuple, packet.l4), (tuple, ETHERNET + IPV6 + 24));
    assert_eq!(fragment::parse(&frames[1]), Ok(Fragment::Later(key)));
}

/// Semantics section 6: fragments of a translated flow reach the backend, first fragment first or not.
#[test]
fn a_fragment_that_has_come_first_waits_for_the_first_one() {
    for (family, protocol) in KINDS.into_iter().filter(|(_, protocol)| *protocol == Protocol::UDP) {
        let (client, at, backend) = (pod(family, 1, 4000), service(family, 1, 53), pod(family, 2, 5353));
        let mut tables = HostTables::new(1);
        tables.serve(at, protocol, [backend]);
        let frames = cut(family, protocol).frames(&Tuple::between(client, at, protocol));
        let (first, later) = (&frames[0], &frames[1]);
        for _ in 0..50 {
            let mut frame = later.clone();
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Inject(1, Reason::FragmentWaits));
            assert_eq!(&frame, later);
        }
        assert_eq!(from_pod(&mut first.clone(), &mut tables), Verdict::Translated(Reason::NewFlow));
        let mut frame = later.clone();
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::FollowingFragment));
    }
}

/// Nor do those of answers, which wait before they are where they are translated.
#[test]
fn a_fragment_of_an_answer_waits_for_the_first_one() {
    for (family, protocol) in KINDS.into_iter().filter(|(_, protocol)| *protocol == Protocol::UDP) {
        let (client, at, backend) = (pod(family, 1, 4000), service(family, 1, 53), pod(family, 2, 5353));
        let mut tables = HostTables::new(1);
        tables.serve(at, protocol, [backend]);
        let mut request = data(client, at, protocol);
        assert_eq!(from_pod(&mut request, &mut tables), Verdict::Translated(Reason::NewFlow));
        let frames = cut(family, protocol).frames(&Tuple::between(backend, client, protocol));
        let (first, later) = (&frames[0], &frames[1]);
        for _ in 0..50 {
            let mut frame = later.clone();
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Inject(1, Reason::FragmentWaits));
            assert_eq!(&frame, later);
        }
        for (frame, reason) in [(first, Reason::Reply), (later, Reason::FollowingFragment)] {
            let mut frame = frame.clone();
            assert!(matches!(from_pod(&mut frame, &mut tables), Verdict::Pass(_)));
            assert_eq!(to_pod(&mut frame, &mut tables), Verdict::Translated(reason));
        }
    }
}

/// Another CPU sees the first fragment while this one notes that a later one waits.
#[test]
fn a_fragment_that_waits_does_not_hide_the_first_one() {
    for (family, protocol) in KINDS.into_iter().filter(|(_, protocol)| *protocol == Protocol::UDP) {
        let (client, at) = (pod(family, 1, 4000), service(family, 1, 53));
        let frames = cut(family, protocol).frames(&Tuple::between(client, at, protocol));
        let Ok(Fragment::Later(key)) = fragment::parse(&frames[1]) else { panic!("it is a later one") };
        for waits in [0, 1, 5] {
            let mut tables = HostTables::new(1);
            tables.serve(at, protocol, [pod(family, 2, 5353)]);
            for _ in 0..waits {
                let mut frame = frames[1].clone();
                assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Inject(1, Reason::FragmentWaits));
            }
            let known = tables.fragment(&key);
            let waiting = FragmentPorts::waiting(known.as_ref(), tables.now);
            assert_eq!(from_pod(&mut frames[0].clone(), &mut tables), Verdict::Translated(Reason::NewFlow));
            tables.note_wait(&key, known.as_ref(), &waiting);
            let mut frame = frames[1].clone();
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::FollowingFragment));
        }
    }
}

#[test]
fn a_fragment_does_not_wait_for_ever() {
    let (family, protocol) = (Family::V4, Protocol::UDP);
    let (client, at) = (pod(family, 1, 4000), service(family, 1, 53));
    let mut tables = HostTables::new(1);
    tables.serve(at, protocol, [pod(family, 2, 5353)]);
    let frames = cut(family, protocol).frames(&Tuple::between(client, at, protocol));
    let mut waits = 0;
    while from_pod(&mut frames[1].clone(), &mut tables).reason() == Reason::FragmentWaits {
        waits += 1;
    }
    assert_eq!(waits, 200);
    assert_eq!(from_pod(&mut frames[1].clone(), &mut tables), Verdict::Pass(Reason::FragmentAlone));
    // Nor does one that is not to a Service.
    let frames = cut(family, protocol).frames(&Tuple::between(client, pod(family, 3, 53), protocol));
    assert_eq!(from_pod(&mut frames[1].clone(), &mut tables), Verdict::Pass(Reason::FragmentAlone));
}
