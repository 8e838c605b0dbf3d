//! From a frame to its tuple, whatever stands between the two and wherever the frame ends.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv6Extensions, Ipv6FragmentHeader, Ipv6RawExtHeader,
    Ipv6RoutingExtensions,
};
use podnet_common::conntrack::Tuple;
use podnet_common::host::HostTables;
use podnet_common::packet::{self, ETHERNET, IPV4, IPV6, Packet, TcpFlags};
use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use podnet_common::{fragment, icmp};
use proptest::prelude::*;
use support::*;

fn parse(frame: &[u8]) -> Result<Packet, Reason> {
    packet::parse(&frame.to_vec())
}

fn ends(family: Family) -> (Endpoint, Endpoint) {
    (pod(family, 1, 40000), service(family, 1, 80))
}

fn length(family: Family) -> usize {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// An IPv6 frame with extension headers. The Service's port is then expected behind them all.
fn extended(extensions: Ipv6Extensions, protocol: Protocol) -> Vec<u8> {
    let (from, to) = ends(Family::V6);
    let IpHeaders::Ipv6(header, _) = ip(from, to, IpNumber(protocol.0)) else { unreachable!() };
    frame_of(IpHeaders::Ipv6(header, extensions), (40000, 80), protocol, SYN, b"payload")
}

fn extension(words: usize) -> Ipv6RawExtHeader {
    // One option of the kind PadN: 1, its length, zeroes.
    let mut payload = vec![0; 6 + words * 8];
    payload[0] = 1;
    payload[1] = u8::try_from(payload.len() - 2).unwrap();
    Ipv6RawExtHeader::new_raw(IpNumber(59), &payload).unwrap()
}

/// A routing header (type 4, segment routing) with so many segments left.
fn routing(segments_left: u8) -> Ipv6RoutingExtensions {
    let mut payload = [0; 6 + 16];
    payload[0] = 4;
    payload[1] = segments_left;
    Ipv6RoutingExtensions {
        routing: Ipv6RawExtHeader::new_raw(IpNumber(59), &payload).unwrap(),
        final_destination_options: None,
    }
}

#[test]
fn plain_packets() {
    for (family, protocol) in KINDS {
        let (from, to) = ends(family);
        let flags = if protocol == Protocol::TCP { TcpFlags(SYN | ACK) } else { TcpFlags::default() };
        let expected = Packet {
            tuple: Tuple::between(from, to, protocol),
            family,
            l4: ETHERNET + length(family),
            flags,
        };
        assert_eq!(parse(&frame(from, to, protocol, SYN | ACK, b"x")), Ok(expected));
    }
}

#[test]
fn ipv4_options_do_not_hide_the_port() {
    let (from, to) = ends(Family::V4);
    for (_, protocol) in &KINDS[..2] {
        for words in 0..=10 {
            let IpHeaders::Ipv4(mut header, none) = ip(from, to, IpNumber(protocol.0)) else {
                unreachable!()
            };
            header.options = vec![1; words * 4].as_slice().try_into().unwrap();
            let frame = frame_of(IpHeaders::Ipv4(header, none), (40000, 80), *protocol, SYN, b"");
            let packet = parse(&frame).unwrap();
            assert_eq!(packet.tuple, Tuple::between(from, to, *protocol));
            assert_eq!(packet.l4, ETHERNET + IPV4 + words * 4);
        }
    }
}

#[test]
fn ipv6_extension_headers_do_not_hide_the_port() {
    let (from, to) = ends(Family::V6);
    let none = Ipv6Extensions::default;
    let cases = [
        (Ipv6Extensions { hop_by_hop_options: Some(extension(0)), ..none() }, 8),
        (Ipv6Extensions { destination_options: Some(extension(4)), ..none() }, 40),
        (Ipv6Extensions { routing: Some(routing(0)), ..none() }, 24),
        (
            Ipv6Extensions {
                hop_by_hop_options: Some(extension(1)),
                destination_options: Some(extension(0)),
                routing: Some(Ipv6RoutingExtensions {
                    final_destination_options: Some(extension(2)),
                    ..routing(0)
                }),
                ..none()
            },
            16 + 8 + 24 + 24,
        ),
    ];
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (extensions, length) in &cases {
            let packet = parse(&extended(extensions.clone(), protocol)).unwrap();
            assert_eq!(packet.tuple, Tuple::between(from, to, protocol));
            assert_eq!(packet.l4, ETHERNET + IPV6 + length);
        }
    }
}

#[test]
fn a_packet_that_is_still_to_visit_other_hops_is_not_for_its_destination_yet() {
    let extensions = Ipv6Extensions { routing: Some(routing(1)), ..Default::default() };
    assert_eq!(parse(&extended(extensions, Protocol::TCP)), Err(Reason::OtherProtocol));
}

#[test]
fn too_many_or_too_long_extension_headers_are_left_alone() {
    let (from, to) = ends(Family::V6);
    let plain = frame(from, to, Protocol::UDP, 0, b"payload");
    let with = |count: usize, words: u8| {
        let mut frame = plain[..ETHERNET + IPV6].to_vec();
        frame[ETHERNET + 6] = 60;
        for i in 0..count {
            let next = if i + 1 == count { Protocol::UDP.0 } else { 60 };
            frame.extend([next, words]);
            frame.resize(frame.len() + 6 + usize::from(words) * 8, 0);
        }
        frame.extend(&plain[ETHERNET + IPV6..]);
        frame
    };
    assert_eq!(parse(&with(4, 0)).unwrap().l4, ETHERNET + IPV6 + 4 * 8);
    assert_eq!(parse(&with(5, 0)), Err(Reason::OtherProtocol));
    assert_eq!(parse(&with(1, 56)).unwrap().l4, ETHERNET + IPV6 + 57 * 8);
    assert_eq!(parse(&with(1, 57)), Err(Reason::OtherProtocol));
    assert_eq!(parse(&with(4, 255)), Err(Reason::OtherProtocol));
}

#[test]
fn fragments_are_told_from_whole_packets() {
    let (from, to) = ends(Family::V4);
    for (more, offset, expected) in [
        (false, 0, None),
        (true, 0, Some(Reason::Fragment)),
        (true, 100, Some(Reason::Fragment)),
        (false, 100, Some(Reason::Fragment)),
        (false, 0x1fff, Some(Reason::Fragment)),
    ] {
        for dont in [false, true] {
            let IpHeaders::Ipv4(mut header, none) = ip(from, to, IpNumber::UDP) else { unreachable!() };
            header.more_fragments = more;
            header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            header.dont_fragment = dont;
            let frame = frame_of(IpHeaders::Ipv4(header, none), (40000, 80), Protocol::UDP, 0, b"payload");
            assert_eq!(parse(&frame).err(), expected);
        }
        let fragment =
            Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::try_new(offset).unwrap(), more, 7);
        let extensions = Ipv6Extensions { fragment: Some(fragment), ..Default::default() };
        assert_eq!(parse(&extended(extensions, Protocol::UDP)), Err(Reason::Fragment));
    }
}

#[test]
fn frames_end_anywhere() {
    for (family, protocol) in KINDS {
        let (from, to) = ends(family);
        let whole = frame(from, to, protocol, SYN, b"payload");
        // The last byte that is looked at is the checksum's.
        let needed = ETHERNET + length(family) + if protocol == Protocol::TCP { 18 } else { 8 };
        for len in 0..=whole.len() {
            let parsed = parse(&whole[..len]);
            if len < needed {
                assert_eq!(parsed, Err(Reason::Truncated), "{family:?} {protocol:?} of {len} bytes");
            } else {
                assert_eq!(parsed.unwrap().tuple, Tuple::between(from, to, protocol));
            }
        }
    }
    let extensions = Ipv6Extensions {
        hop_by_hop_options: Some(extension(0)),
        routing: Some(routing(0)),
        ..Default::default()
    };
    let whole = extended(extensions, Protocol::UDP);
    for len in 0..whole.len() - b"payload".len() {
        assert_eq!(parse(&whole[..len]), Err(Reason::Truncated), "{len} bytes");
    }
}

#[test]
fn headers_that_contradict_themselves() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let good = frame(from, to, Protocol::UDP, 0, b"payload");
        for version in 0..16 {
            let mut frame = good.clone();
            frame[ETHERNET] = version << 4 | good[ETHERNET] & 0x0f;
            assert_eq!(parse(&frame).is_ok(), version == good[ETHERNET] >> 4);
            assert!(matches!(parse(&frame), Ok(_) | Err(Reason::Malformed)));
        }
    }
    let (from, to) = ends(Family::V4);
    let good = frame(from, to, Protocol::UDP, 0, b"payload");
    for ihl in 0..5 {
        let mut frame = good.clone();
        frame[ETHERNET] = 0x40 | ihl;
        assert_eq!(parse(&frame), Err(Reason::Malformed), "a header of {ihl} words");
    }
}

/// An IPv4 address has no place in an IPv6 packet in the form that stands for it in a socket: if it had,
/// IPv6 packets would meet the Services and flows of IPv4.
#[test]
fn mapped_addresses_are_not_for_the_wire() {
    let (v4, v6) = (ends(Family::V4), ends(Family::V6));
    for (from, to) in [(v4.0, v4.1), (v6.0, v4.1), (v4.0, v6.1)] {
        let headers = ip_v6(from, to, IpNumber::UDP);
        let frame = frame_of(headers, (40000, 80), Protocol::UDP, 0, b"payload");
        assert_eq!(parse(&frame), Err(Reason::Malformed));
    }
}

#[test]
fn what_is_neither_ip_nor_of_a_known_protocol() {
    for ethertype in [0x0806_u16, 0x8847, 0x0026] {
        let (from, to) = ends(Family::V4);
        let mut frame = frame(from, to, Protocol::UDP, 0, b"payload");
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        assert_eq!(parse(&frame), Err(Reason::NotIp), "{ethertype:04x}");
    }
    for family in FAMILIES {
        let (from, to) = ends(family);
        let good = frame(from, to, Protocol::UDP, 0, b"payload");
        let at = ETHERNET + if family == Family::V4 { 9 } else { 6 };
        for protocol in 0..=255 {
            let mut frame = good.clone();
            frame[at] = protocol;
            // Hop-by-hop options, routing, fragment, destination options: looked into.
            let looked_into = family == Family::V6 && [0, 43, 44, 60].contains(&protocol);
            if ![6, 17, 132].contains(&protocol) && !looked_into {
                assert_eq!(parse(&frame), Err(Reason::OtherProtocol), "protocol {protocol}");
            }
        }
    }
}

/// The tag stands where the type of the payload would; the kernel has moved it beside the frame by then.
#[test]
fn a_tag_within_the_frame() {
    for (family, protocol) in KINDS {
        let (from, to) = ends(family);
        for tag in [[0x81, 0, 0, 42], [0x88, 0xa8, 0, 42]] {
            let mut frame = frame(from, to, protocol, SYN, b"payload");
            frame.splice(12..12, tag);
            assert_eq!(parse(&frame), Err(Reason::Tagged));
            assert_eq!(fragment::parse(&frame), Err(Reason::Tagged));
            assert_eq!(icmp::parse(&mut frame), Err(Reason::Tagged));
        }
    }
}

/// Any bytes, and bytes that look like IP for a while.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = || proptest::collection::vec(any::<u8>(), 0..200);
    let start = prop_oneof![
        Just(vec![0x08, 0x00, 0x45]),
        Just(vec![0x08, 0x00, 0x4f]),
        Just(vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 0]),
        Just(vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 43]),
        Just(vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 60]),
    ];
    prop_oneof![
        noise(),
        (start, noise()).prop_map(|(start, noise)| {
            let mut frame = vec![0; 12];
            frame.extend(start);
            frame.extend(noise);
            frame
        }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_not(bytes in bytes()) {
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.l4 + 8 <= bytes.len());
            prop_assert!([Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&packet.tuple.protocol()));
            prop_assert_eq!(packet.tuple.source().addr.family(), packet.family);
            prop_assert_eq!(packet.tuple.destination().addr.family(), packet.family);
        }
    }

    #[test]
    fn what_is_not_parsed_passes_as_it_is(bytes in bytes()) {
        let mut tables = HostTables::new(0);
        for way in [from_pod, to_pod] {
            let mut frame = bytes.clone();
            let verdict = way(&mut frame, &mut tables);
            prop_assert!(matches!(verdict, Verdict::Pass(_)), "{verdict:?}");
            prop_assert_eq!(&frame, &bytes);
        }
    }
}
