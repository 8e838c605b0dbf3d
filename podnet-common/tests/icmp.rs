//! ICMP errors about translated packets: what arrives is what would have been said about the packet that its
//! receiver knows.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, Ipv6RawExtHeader, PacketBuilder, SlicedPacket,
};
use podnet_common::conntrack::Tuple;
use podnet_common::icmp::{self, IcmpError};
use podnet_common::packet::{self, ETHERNET, IPV4, IPV6};
use podnet_common::verdict::Reason;
use podnet_common::wire::{Addr, Endpoint, Family, Protocol};
use proptest::prelude::*;
use support::arbitrary::families;
use support::*;

/// A packet that an error is about, and how it is reported.
#[derive(Clone, Debug)]
struct Report {
    family: Family,
    protocol: Protocol,
    kind: u8,
    /// What stands between the IP header and the L4 header of the quoted packet, and of the error.
    dressed: [bool; 2],
    /// The quoted packet is the first of several fragments.
    fragment: bool,
    /// The quoted UDP packet has no checksum.
    no_checksum: bool,
    payload: usize,
    /// How much of the quoted packet's L4 header and data is quoted. Not half of TCP's checksum, which would
    /// stay as it is.
    quoted: usize,
    /// What the frame has behind the packet.
    padding: usize,
}

const ERRORS: [(Family, &[u8]); 2] = [(Family::V4, &[3, 11, 12]), (Family::V6, &[1, 2, 3, 4])];

fn reports() -> impl Strategy<Value = Report> {
    let protocols = prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP]);
    (families(), protocols, any::<prop::sample::Index>()).prop_flat_map(|(family, protocol, kind)| {
        let kinds = ERRORS[usize::from(family == Family::V6)].1;
        (any::<[bool; 4]>(), 0..80_usize, prop_oneof![8..=16_usize, 18..100_usize], 0..20_usize).prop_map(
            move |([dressed, outer, fragment, no_checksum], payload, quoted, padding)| Report {
                family,
                protocol,
                kind: kinds[kind.index(kinds.len())],
                dressed: [dressed, outer],
                fragment,
                no_checksum,
                payload,
                quoted,
                padding,
            },
        )
    })
}

fn dress(headers: &mut IpHeaders) {
    match headers {
        IpHeaders::Ipv4(header, _) => header.options = [7, 7, 4, 0, 0, 0, 0, 0].into(),
        IpHeaders::Ipv6(_, extensions) => {
            extensions.destination_options =
                Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 4, 0, 0, 0, 0]).ok();
        }
    }
}

impl Report {
    fn plain(family: Family, protocol: Protocol) -> Self {
        Self {
            family,
            protocol,
            kind: if family == Family::V4 { 3 } else { 2 },
            dressed: [false; 2],
            fragment: false,
            no_checksum: false,
            payload: 20,
            quoted: 8,
            padding: 0,
        }
    }

    /// The length of the quoted packet's IP header.
    fn inner_header(&self) -> usize {
        let plain = if self.family == Family::V4 { IPV4 } else { IPV6 };
        let fragment = self.family == Family::V6 && self.fragment;
        plain + if self.dressed[0] { 8 } else { 0 } + if fragment { 8 } else { 0 }
    }

    /// The quoted packet, from its IP header on.
    fn about(&self, tuple: &Tuple) -> Vec<u8> {
        let (from, to) = (tuple.source(), tuple.destination());
        let mut headers = ip(from, to, IpNumber(self.protocol.0));
        if self.dressed[0] {
            dress(&mut headers);
        }
        let payload = vec![0x5a; self.payload];
        let ports = (from.port.get(), to.port.get());
        let l4 = |headers: &IpHeaders| {
            let at = ETHERNET + self.inner_header();
            match self.protocol {
                Protocol::SCTP => sctp(headers.clone(), ports, &payload),
                _ => frame_of(headers.clone(), ports, self.protocol, ACK, &payload),
            }
            .split_off(at)
        };
        if self.fragment {
            match &mut headers {
                IpHeaders::Ipv4(header, _) => header.more_fragments = true,
                IpHeaders::Ipv6(_, extensions) => {
                    let header = Ipv6FragmentHeader::new(IpNumber(59), IpFragOffset::ZERO, true, 7);
                    extensions.fragment = Some(header);
                }
            }
        }
        let mut l4 = l4(&headers);
        if self.protocol == Protocol::UDP && self.no_checksum {
            l4[6..8].fill(0);
        }
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(POD_MAC, NODE_MAC)
            .ip(headers)
            .write(&mut packet, IpNumber(self.protocol.0), &l4)
            .unwrap();
        packet.split_off(ETHERNET)
    }

    /// The frame in which `from` tells `to` about a packet of `tuple`.
    fn frame(&self, from: Addr, to: Addr, tuple: &Tuple) -> Vec<u8> {
        let mut quote = self.about(tuple);
        quote.truncate(self.inner_header() + self.quoted);
        let end = |addr| Endpoint { addr, ..Endpoint::default() };
        let mut headers = ip(end(from), end(to), IpNumber(0));
        if self.dressed[1] {
            dress(&mut headers);
        }
        let builder = PacketBuilder::ethernet2(NODE_MAC, POD_MAC).ip(headers);
        let mut frame = Vec::new();
        match self.family {
            Family::V4 => {
                builder.icmpv4_raw(self.kind, 4, [0, 0, 5, 0]).write(&mut frame, &quote).unwrap();
            }
            Family::V6 => {
                builder.icmpv6_raw(self.kind, 0, [0, 0, 5, 0]).write(&mut frame, &quote).unwrap();
            }
        }
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }
}

/// An SCTP packet: ports, a verification tag, some checksum, and a chunk.
fn sctp(headers: IpHeaders, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    packet.extend([1, 2, 3, 4, 0xc4, 0xc5, 0xc6, 0xc7]);
    packet.extend(payload);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(POD_MAC, NODE_MAC)
        .ip(headers)
        .write(&mut frame, IpNumber(Protocol::SCTP.0), &packet)
        .unwrap();
    frame
}

/// The checksums of an error and of the IP header that it quotes, by `etherparse`.
fn is_sound(frame: &[u8]) -> Result<(), String> {
    let Transport::Icmp(_, _, quote) = read(frame)?.transport else { return Err("no ICMP".into()) };
    if quote[0] >> 4 == 4 {
        let (header, _) = etherparse::Ipv4Header::from_slice(&quote).map_err(|error| error.to_string())?;
        if header.header_checksum != header.calc_header_checksum() {
            return Err("the quoted IPv4 checksum is wrong".into());
        }
    }
    Ok(())
}

fn tuples(family: Family, protocol: Protocol) -> impl Strategy<Value = Tuple> {
    let end = (0..5_u8, any::<u16>(), any::<bool>())
        .prop_map(
            move |(n, port, is_pod)| if is_pod { pod(family, n, port) } else { service(family, n, port) },
        )
        .boxed();
    (end.clone(), end).prop_map(move |(from, to)| Tuple::between(from, to, protocol))
}

fn router(family: Family) -> Addr {
    pod(family, 99, 0).addr
}

proptest! {
    #![proptest_config(cases(2000))]

    /// A translated error is, byte for byte, the one about the translated packet; and back again.
    #[test]
    fn an_error_is_translated_as_its_packet_was(
        (report, quoted, new) in reports().prop_flat_map(|report| {
            let tuples = || tuples(report.family, report.protocol);
            (Just(report.clone()), tuples(), tuples())
        }),
        by_router: bool,
    ) {
        let named = |tuple: &Tuple| {
            let end = tuple.destination().addr;
            if by_router { router(report.family) } else { end }
        };
        let sent = report.frame(named(&quoted), quoted.source().addr, &quoted);
        prop_assert_eq!(packet::parse(&sent), Err(Reason::OtherProtocol));
        let mut frame = sent.clone();
        let error = icmp::parse(&mut frame).unwrap();
        prop_assert_eq!(&frame, &sent);
        prop_assert_eq!(error.quoted, quoted);
        prop_assert_eq!(error.flow(), quoted.reply());
        prop_assert_eq!((error.source, error.destination), (named(&quoted), quoted.source().addr));

        icmp::rewrite(&mut frame, &error, &new.reply()).unwrap();
        prop_assert!(report.padding > 0 || is_sound(&frame).is_ok(), "{:?}", is_sound(&frame));
        prop_assert_eq!(&frame, &report.frame(named(&new), new.source().addr, &new));

        let error = icmp::parse(&mut frame).unwrap();
        icmp::rewrite(&mut frame, &error, &quoted.reply()).unwrap();
        prop_assert_eq!(frame, sent);
    }

    #[test]
    fn any_quote_is_parsed_or_not(
        report in reports(), noise in proptest::collection::vec(any::<u8>(), 0..120), end: prop::sample::Index,
    ) {
        let (from, to) = (pod(report.family, 1, 1), service(report.family, 1, 2));
        let mut frame = report.frame(to.addr, from.addr, &Tuple::between(from, to, report.protocol));
        let at = end.index(frame.len());
        let damaged = noise.len().min(frame.len() - at);
        frame[at..at + damaged].copy_from_slice(&noise[..damaged]);
        let sent = frame.clone();
        if let Ok(error) = icmp::parse(&mut frame) {
            prop_assert_eq!(&frame, &sent);
            prop_assert!(error.l4 + 8 <= frame.len().min(error.end));
            let to = error.flow();
            prop_assert_eq!(icmp::rewrite(&mut frame, &error, &to), Some(()));
        }
    }
}

/// A pod's path to a backend is narrower than its own interface: the router's report is about the packet to
/// the backend, and the pod has sent one to the Service.
#[test]
fn a_router_on_the_way_keeps_its_name() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let report = Report::plain(family, protocol);
        let sent = Tuple::between(client, backend, protocol);
        let mut frame = report.frame(router(family), client.addr, &sent);
        let error = icmp::parse(&mut frame).unwrap();
        assert_eq!(error.flow(), Tuple::between(backend, client, protocol));
        icmp::rewrite(&mut frame, &error, &Tuple::between(service, client, protocol)).unwrap();
        let known = Tuple::between(client, service, protocol);
        assert_eq!(frame, report.frame(router(family), client.addr, &known));
        is_sound(&frame).unwrap();
    }
}

/// A backend that refuses a datagram does so as the Service.
#[test]
fn an_end_of_the_flow_reports_under_the_name_that_the_other_end_knows() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let report = Report::plain(family, protocol);
        let mut frame = report.frame(backend.addr, client.addr, &Tuple::between(client, backend, protocol));
        let error = icmp::parse(&mut frame).unwrap();
        icmp::rewrite(&mut frame, &error, &Tuple::between(service, client, protocol)).unwrap();
        let seen = read(&frame).unwrap();
        assert_eq!(seen.source, service.addr.to_ip());
        assert_eq!(seen.destination, client.addr.to_ip());
    }
}

#[test]
fn where_things_stand() {
    for (family, protocol) in KINDS {
        let (from, to) = (pod(family, 1, 40000), service(family, 1, 80));
        let tuple = Tuple::between(from, to, protocol);
        let mut frame = Report::plain(family, protocol).frame(router(family), from.addr, &tuple);
        let header = if family == Family::V4 { IPV4 } else { IPV6 };
        let expected = IcmpError {
            family,
            source: router(family),
            destination: from.addr,
            quoted: tuple,
            icmp: ETHERNET + header,
            inner: ETHERNET + header + 8,
            l4: ETHERNET + 2 * header + 8,
            end: ETHERNET + 2 * header + 16,
        };
        assert_eq!(icmp::parse(&mut frame), Ok(expected));
    }
}

#[test]
fn other_icmp_is_left_alone() {
    for (family, kinds) in ERRORS {
        let (from, to) = (pod(family, 1, 40000), service(family, 1, 80));
        let report = Report::plain(family, Protocol::UDP);
        let tuple = Tuple::between(from, to, Protocol::UDP);
        let sent = report.frame(to.addr, from.addr, &tuple);
        let at = icmp::parse(&mut sent.clone()).unwrap().icmp;
        for kind in 0..=255 {
            let mut frame = sent.clone();
            frame[at] = kind;
            assert_eq!(icmp::parse(&mut frame).is_ok(), kinds.contains(&kind), "{family:?} {kind}");
        }
        // ICMP of the other family.
        let mut frame = sent.clone();
        let protocol = ETHERNET + if family == Family::V4 { 9 } else { 6 };
        frame[protocol] ^= Protocol::ICMP.0 ^ Protocol::ICMPV6.0;
        assert_eq!(icmp::parse(&mut frame), Err(Reason::OtherProtocol));
        // About an error, or about a protocol without ports.
        for inner in [1, 2, 47, 58, 89] {
            let mut frame = sent.clone();
            frame[protocol + at + 8 - ETHERNET] = inner;
            assert_eq!(icmp::parse(&mut frame), Err(Reason::OtherProtocol));
        }
        let mut whole = opening(from, to, Protocol::UDP);
        assert_eq!(icmp::parse(&mut whole), Err(Reason::OtherProtocol));
    }
}

#[test]
fn a_later_fragment_has_no_ports_to_find_a_flow_by() {
    let (from, to) = (pod(Family::V4, 1, 40000), service(Family::V4, 1, 80));
    let report = Report::plain(Family::V4, Protocol::UDP);
    let mut frame = report.frame(to.addr, from.addr, &Tuple::between(from, to, Protocol::UDP));
    let inner = icmp::parse(&mut frame).unwrap().inner;
    frame[inner + 7] = 100;
    assert_eq!(icmp::parse(&mut frame), Err(Reason::Fragment));
}

#[test]
fn a_quote_without_ports_says_nothing() {
    for (family, protocol) in KINDS {
        let (from, to) = (pod(family, 1, 40000), service(family, 1, 80));
        let tuple = Tuple::between(from, to, protocol);
        let report = Report { quoted: 8, ..Report::plain(family, protocol) };
        let whole = report.frame(to.addr, from.addr, &tuple);
        for len in 0..whole.len() {
            assert_eq!(icmp::parse(&mut whole[..len].to_vec()), Err(Reason::Truncated), "{len} bytes");
        }
        // The frame goes on, the packet does not.
        for quoted in 0..8 {
            let mut frame = Report { quoted, padding: 30, ..report }.frame(to.addr, from.addr, &tuple);
            assert_eq!(icmp::parse(&mut frame), Err(Reason::Truncated), "{quoted} bytes");
        }
    }
}

/// The quoted packet is as sound as the one that was sent, where it is quoted whole.
#[test]
fn the_quoted_checksum_is_mended() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 2, 8080));
        let report = Report { quoted: 100, ..Report::plain(family, protocol) };
        let mut frame = report.frame(backend.addr, client.addr, &Tuple::between(client, backend, protocol));
        let error = icmp::parse(&mut frame).unwrap();
        icmp::rewrite(&mut frame, &error, &Tuple::between(service, client, protocol)).unwrap();
        let mut quoted = frame[..ETHERNET].to_vec();
        quoted.extend(&frame[error.inner..]);
        assert!(SlicedPacket::from_ethernet(&quoted).is_ok());
        let seen = read(&quoted).unwrap();
        assert_eq!((seen.from(), seen.to()), (client, service));
    }
}
