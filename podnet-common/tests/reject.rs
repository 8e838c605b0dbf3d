//! What a client is told of a Service without endpoints.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, Ipv6Extensions, Ipv6RawExtHeader};
use podnet_common::host::HostTables;
use podnet_common::packet::ETHERNET;

use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::{Endpoint, Family, Protocol};
use support::*;

fn ends(family: Family) -> (Endpoint, Endpoint) {
    (pod(family, 1, 40000), service(family, 1, 80))
}

/// The answer to `frame` by a Service without endpoints.
fn refused(frame: &[u8], family: Family, protocol: Protocol) -> Vec<u8> {
    let mut tables = HostTables::new(1);
    tables.serve(ends(family).1, protocol, []);
    let mut answer = frame.to_vec();
    assert_eq!(from_pod(&mut answer, &mut tables), Verdict::Return(Reason::NoEndpoints));
    assert!(tables.flows.is_empty());
    assert_eq!(answer[..6], frame[6..12], "to the pod's MAC address");
    assert_eq!(answer[6..12], frame[..6]);
    answer
}

/// A frame with IP options, or extension headers.
fn with_options(family: Family, protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(family);
    let headers = match ip(from, to, IpNumber(protocol.0)) {
        IpHeaders::Ipv4(mut header, none) => {
            header.options = [1; 12].into();
            IpHeaders::Ipv4(header, none)
        }
        IpHeaders::Ipv6(header, _) => {
            let padding = Ipv6RawExtHeader::new_raw(IpNumber(59), &[1, 4, 0, 0, 0, 0]).unwrap();
            IpHeaders::Ipv6(
                header,
                Ipv6Extensions { hop_by_hop_options: Some(padding), ..Default::default() },
            )
        }
    };
    frame_of(headers, (from.port.get(), to.port.get()), protocol, SYN, payload)
}

/// RFC 9293, 3.5.2: the answer to a segment without ACK has the sequence number 0 and acknowledges all of
/// the segment, so that the client takes it for an answer to its own SYN.
#[test]
fn a_tcp_client_gets_a_reset() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        for payload in [&b""[..], b"fast open"] {
            for sent in
                [frame(from, to, Protocol::TCP, SYN, payload), with_options(family, Protocol::TCP, payload)]
            {
                let answer = read(&refused(&sent, family, Protocol::TCP)).unwrap();
                assert_eq!((answer.from(), answer.to()), (to, from));
                let Transport::Tcp(header, data) = answer.transport else { panic!("{answer:?}") };
                assert!(header.rst && header.ack && !header.syn && !header.fin && !header.psh);
                assert_eq!(header.sequence_number, 0);
                let length = u32::try_from(payload.len()).unwrap();
                assert_eq!(header.acknowledgment_number, SEQUENCE.wrapping_add(1 + length));
                assert_eq!(header.header_len(), 20);
                assert!(data.is_empty());
            }
        }
    }
}

/// Options of the segment are not data.
#[test]
fn a_syn_with_tcp_options_takes_one_number() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let mut header = tcp_header(from.port.get(), to.port.get(), SYN);
        header.set_options_raw(&[2, 4, 5, 180, 1, 1, 4, 2]).unwrap();
        let mut sent = Vec::new();
        etherparse::PacketBuilder::ethernet2(POD_MAC, NODE_MAC)
            .ip(ip(from, to, IpNumber::TCP))
            .tcp_header(header)
            .write(&mut sent, b"")
            .unwrap();
        sent.extend([0; 9]); // of the wire, not of the packet
        let answer = read(&refused(&sent, family, Protocol::TCP)).unwrap();
        let Transport::Tcp(header, _) = answer.transport else { panic!("{answer:?}") };
        assert_eq!(header.acknowledgment_number, SEQUENCE.wrapping_add(1));
    }
}

#[test]
fn a_udp_client_gets_port_unreachable() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let long = [b'x'; 1000];
        for payload in [&b""[..], b"hello", &long] {
            let sent = frame(from, to, Protocol::UDP, 0, payload);
            let answer = refused(&sent, family, Protocol::UDP);
            let seen = read(&answer).unwrap();
            assert_eq!((seen.source, seen.destination), (to.addr.to_ip(), from.addr.to_ip()));
            let Transport::Icmp(kind, code, quote) = seen.transport else { panic!("{seen:?}") };
            assert_eq!((kind, code), if family == Family::V4 { (3, 3) } else { (1, 4) });
            // RFC 792: the IP header and 8 bytes of what is behind.
            assert_eq!(quote, &sent[ETHERNET..][..quote.len()]);
            assert_eq!(quote.len(), if family == Family::V4 { 28 } else { 48 });
        }
    }
}

/// The sender looks for its socket by the addresses and ports of the quote; what it leaves out must not
/// be said to be there.
#[test]
fn a_quote_without_the_options_of_the_packet_can_be_read() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let sent = with_options(family, Protocol::UDP, b"");
        let seen = read(&refused(&sent, family, Protocol::UDP)).unwrap();
        let Transport::Icmp(_, _, quote) = seen.transport else { panic!("{seen:?}") };
        let quoted = match etherparse::LaxSlicedPacket::from_ip(&quote).unwrap() {
            packet if packet.stop_err.is_some() => panic!("{:?}", packet.stop_err),
            packet => packet,
        };
        let (source, destination): (IpAddr, IpAddr) = match quoted.net.unwrap() {
            etherparse::LaxNetSlice::Ipv4(ipv4) => {
                (ipv4.header().source_addr().into(), ipv4.header().destination_addr().into())
            }
            etherparse::LaxNetSlice::Ipv6(ipv6) => {
                (ipv6.header().source_addr().into(), ipv6.header().destination_addr().into())
            }
            other => panic!("{other:?}"),
        };
        let Some(etherparse::TransportSlice::Udp(udp)) = quoted.transport else { panic!("no UDP") };
        assert_eq!(endpoint(source, udp.source_port()), from);
        assert_eq!(endpoint(destination, udp.destination_port()), to);
    }
}

/// It may belong to a connection that somebody else translates.
#[test]
fn the_middle_of_a_connection_is_not_refused() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let mut tables = HostTables::new(1);
        tables.serve(to, Protocol::TCP, []);
        tables.serve(service(family, 2, 80), Protocol::TCP, [pod(family, 2, 80)]);
        for to in [to, service(family, 2, 80)] {
            for flags in [ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, FIN, 0] {
                let sent = frame(from, to, Protocol::TCP, flags, b"");
                let mut frame = sent.clone();
                assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Pass(Reason::MidConnection));
                assert_eq!(frame, sent);
            }
        }
    }
}

/// A reset is never answered (RFC 9293, 3.5.2), and opens nothing.
#[test]
fn a_syn_that_also_ends_the_connection_opens_none() {
    for family in FAMILIES {
        let (from, to) = ends(family);
        let mut tables = HostTables::new(1);
        tables.serve(to, Protocol::TCP, []);
        tables.serve(service(family, 2, 80), Protocol::TCP, [pod(family, 2, 80)]);
        for to in [to, service(family, 2, 80)] {
            for flags in [SYN | RST, SYN | FIN, SYN | RST | FIN] {
                let sent = frame(from, to, Protocol::TCP, flags, b"");
                let mut frame = sent.clone();
                assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Pass(Reason::MidConnection));
                assert_eq!(frame, sent);
            }
        }
    }
}

/// RFC 1122, 3.2.2; RFC 4443, 2.4: an answer would go to many, or to nobody.
#[test]
fn packets_to_many_or_from_nobody_are_not_answered() {
    for family in FAMILIES {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let (from, to) = ends(family);
            let dropped = |mut sent: Vec<u8>| {
                let mut tables = HostTables::new(1);
                tables.serve(to, protocol, []);
                assert_eq!(from_pod(&mut sent, &mut tables), Verdict::Drop(Reason::NoEndpoints));
            };
            let mut to_all = frame(from, to, protocol, SYN, b"hello");
            to_all[..6].fill(0xff);
            dropped(to_all);
            let nobodys: &[&str] = match family {
                Family::V4 => {
                    &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"]
                }
                Family::V6 => &["::", "ff02::1", "ff0e::7"],
            };
            for address in nobodys {
                let addr = address.parse::<IpAddr>().unwrap().into();
                dropped(frame(Endpoint { addr, ..from }, to, protocol, SYN, b"hello"));
            }
        }
    }
}
