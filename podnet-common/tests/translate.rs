//! Translation: what arrives is what would have been sent to, or by, the other end directly.

mod support;

use etherparse::{IpHeaders, IpNumber, Ipv6Extensions, Ipv6RawExtHeader};
use podnet_common::host::HostTables;
use podnet_common::nat;
use podnet_common::packet::ETHERNET;

use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use proptest::prelude::*;
use support::summed::{Summed, sum};
use support::*;

fn tables(service: Endpoint, protocol: Protocol, backend: Endpoint) -> HostTables {
    let mut tables = HostTables::new(1);
    tables.serve(service, protocol, [backend]);
    tables
}

/// The UDP checksum of a frame without IP options or extensions.
fn udp_checksum(family: Family, frame: &[u8]) -> u16 {
    let at = ETHERNET + if family == Family::V4 { 20 } else { 40 } + 6;
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// IPv4's header checksum makes up for a hop that is counted; nothing in an IPv6 packet does.
#[test]
fn the_sum_of_a_frame_is_that_after_a_hop() {
    for (family, protocol) in KINDS {
        let sent = data(pod(family, 1, 40000), pod(family, 2, 8080), protocol);
        let mut frame = Summed::new(sent.clone());
        assert_eq!(nat::hop(&mut frame, family), Some(()));
        assert_ne!(frame.bytes, sent);
        assert!(read(&frame.bytes).is_ok());
        let noted = sum(&sent) + u64::from(frame.change.wide());
        assert_eq!(noted % 0xffff, sum(&frame.bytes) % 0xffff, "{family:?}");
    }
}

#[test]
fn what_is_not_to_a_service_passes_byte_for_byte() {
    for (family, protocol) in KINDS {
        let other = if protocol == Protocol::TCP { Protocol::UDP } else { Protocol::TCP };
        let mut tables = tables(service(family, 1, 80), protocol, pod(family, 2, 8080));
        for (to, protocol) in [
            (service(family, 1, 81), protocol),
            (service(family, 2, 80), protocol),
            (service(family, 1, 80), other),
            (pod(family, 2, 8080), protocol),
        ] {
            let sent = opening(pod(family, 1, 40000), to, protocol);
            for way in [from_pod, to_pod] {
                let mut frame = sent.clone();
                assert_eq!(way(&mut frame, &mut tables), Verdict::Pass(Reason::NotService));
                assert_eq!(frame, sent);
            }
        }
        assert!(tables.flows.is_empty());
    }
}

/// What a node sends into a pod is not translated forward: that is done where packets come from.
#[test]
fn to_a_pod_only_replies_are_translated() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let mut tables = tables(service, protocol, backend);
        let sent = opening(client, service, protocol);
        assert_eq!(from_pod(&mut sent.clone(), &mut tables), Verdict::Translated(Reason::NewFlow));
        let mut frame = sent.clone();
        assert_eq!(to_pod(&mut frame, &mut tables), Verdict::Pass(Reason::NotService));
        assert_eq!(frame, sent);
        let mut frame = opening(client, backend, protocol);
        assert_eq!(to_pod(&mut frame, &mut tables), Verdict::Pass(Reason::NotService));
    }
}

#[test]
fn options_and_extension_headers_stay() {
    let padding = Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let mut tables = tables(service, protocol, backend);
        let make = |to: Endpoint| {
            let headers = match ip(client, to, IpNumber(protocol.0)) {
                IpHeaders::Ipv4(mut header, none) => {
                    header.options = [7, 7, 4, 0, 0, 0, 0, 0].into();
                    IpHeaders::Ipv4(header, none)
                }
                IpHeaders::Ipv6(header, _) => {
                    let extensions =
                        Ipv6Extensions { destination_options: padding.clone().ok(), ..Default::default() };
                    IpHeaders::Ipv6(header, extensions)
                }
            };
            frame_of(headers, (40000, to.port.get()), protocol, SYN, b"payload")
        };
        let mut frame = make(service);
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
        assert_eq!(frame, make(backend));
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    let (client, service, backend) =
        (pod(Family::V4, 1, 5000), service(Family::V4, 1, 53), pod(Family::V4, 2, 53));
    let mut tables = tables(service, Protocol::UDP, backend);
    let without = |from, to| {
        let mut frame = frame(from, to, Protocol::UDP, 0, b"payload");
        frame[ETHERNET + 20 + 6..][..2].fill(0);
        frame
    };
    let mut frame = without(client, service);
    assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
    assert_eq!(frame, without(client, backend));
    let mut frame = without(backend, client);
    assert_eq!(to_pod(&mut frame, &mut tables), Verdict::Translated(Reason::Reply));
    assert_eq!(frame, without(service, client));
}

/// 0 stands for "no checksum": one that comes to 0 is sent as ffff (RFC 768), and is read so too.
#[test]
fn a_checksum_of_zero_is_sent_as_ffff() {
    for family in FAMILIES {
        let (client, service, backend) = (pod(family, 1, 5000), service(family, 1, 53), pod(family, 2, 5353));
        let make = |from, to, word: u16| frame(from, to, Protocol::UDP, 0, &word.to_be_bytes());
        let word = |from, to| {
            (0..=u16::MAX).find(|word| udp_checksum(family, &make(from, to, *word)) == 0xffff).unwrap()
        };
        for (word, what) in [(word(client, backend), "after"), (word(client, service), "before")] {
            let mut tables = tables(service, Protocol::UDP, backend);
            let mut frame = make(client, service, word);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
            assert_eq!(frame, make(client, backend, word), "ffff {what}");
        }
    }
}

/// TCP and IPv4 have no such rule: their 0 is a checksum like any other.
#[test]
fn a_tcp_checksum_of_zero_stays_zero() {
    for family in FAMILIES {
        let (client, service, backend) = (pod(family, 1, 5000), service(family, 1, 53), pod(family, 2, 5353));
        let make = |to, word: u16| frame(client, to, Protocol::TCP, SYN, &word.to_be_bytes());
        let at = ETHERNET + if family == Family::V4 { 20 } else { 40 } + 16;
        let word = |to| (0..=u16::MAX).find(|word| make(to, *word)[at..at + 2] == [0, 0]).unwrap();
        for word in [word(backend), word(service)] {
            let mut tables = tables(service, Protocol::TCP, backend);
            let mut frame = make(service, word);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
            assert_eq!(frame, make(backend, word));
        }
    }
}

/// A wrong checksum must stay wrong: the receiver is to see that the packet was damaged on its way here.
#[test]
fn damage_is_not_mended() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let mut tables = tables(service, protocol, backend);
        let mut frame = opening(client, service, protocol);
        let last = frame.len() - 1;
        frame[last] ^= 0x10;
        assert!(read(&frame).is_err());
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
        assert!(read(&frame).is_err());
    }
}

/// Frames are padded to 60 bytes on real wires.
#[test]
fn bytes_behind_the_packet_stay() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let mut tables = tables(service, protocol, backend);
        let padded = |mut frame: Vec<u8>| {
            frame.extend([0xaa; 13]);
            frame
        };
        let mut frame = padded(opening(client, service, protocol));
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
        assert_eq!(frame, padded(opening(client, backend, protocol)));
    }
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    (any::<u32>(), any::<u64>(), 1..=u16::MAX).prop_map(move |(high, low, port)| match family {
        Family::V4 => endpoint(std::net::Ipv4Addr::from_bits(high), port),
        Family::V6 => endpoint(
            std::net::Ipv6Addr::from_bits(0xfd << 120 | u128::from(high) << 64 | u128::from(low)),
            port,
        ),
    })
}

fn ends() -> impl Strategy<Value = (Protocol, Endpoint, Endpoint, Endpoint)> {
    prop::sample::select(&KINDS[..]).prop_flat_map(|(family, protocol)| {
        (Just(protocol), any_endpoint(family), any_endpoint(family), any_endpoint(family)).prop_filter(
            "ends apart",
            |(_, client, service, backend)| {
                client.addr != backend.addr && client.addr != service.addr && backend.addr != service.addr
            },
        )
    })
}

proptest! {
    #![proptest_config(cases(1000))]

    /// The backend gets what the client would have sent it, the client what the Service would have
    /// answered, to the byte, checksums included.
    #[test]
    fn forward_and_back_is_the_identity(
        (protocol, client, service, backend) in ends(),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut tables = tables(service, protocol, backend);
        let mut sent = frame(client, service, protocol, SYN, &payload);
        prop_assert_eq!(from_pod(&mut sent, &mut tables), Verdict::Translated(Reason::NewFlow));
        prop_assert_eq!(&sent, &frame(client, backend, protocol, SYN, &payload));
        prop_assert!(read(&sent).is_ok(), "{:?}", read(&sent));

        // A node with strict source checks drops what a pod sends in a Service's name: the answer is
        // translated where it reaches the client, not where it leaves the backend.
        let mut answer = frame(backend, client, protocol, SYN | ACK, &payload);
        prop_assert_eq!(from_pod(&mut answer, &mut tables), Verdict::Pass(Reason::NotService));
        prop_assert_eq!(&answer, &frame(backend, client, protocol, SYN | ACK, &payload));
        prop_assert_eq!(to_pod(&mut answer, &mut tables), Verdict::Translated(Reason::Reply));
        prop_assert_eq!(&answer, &frame(service, client, protocol, SYN | ACK, &payload));
        prop_assert!(read(&answer).is_ok(), "{:?}", read(&answer));

        let mut more = frame(client, service, protocol, ACK, &payload);
        prop_assert_eq!(from_pod(&mut more, &mut tables), Verdict::Translated(Reason::Established));
        prop_assert_eq!(&more, &frame(client, backend, protocol, ACK, &payload));
    }
}
