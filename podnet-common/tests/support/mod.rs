//! Packets made and read by `etherparse`, an implementation independent of the core's, and a small cast of
//! pods and Services.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

pub(crate) mod arbitrary;
pub(crate) mod queries;
mod read;
pub(crate) mod summed;
pub(crate) mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader,
};
use podnet_common::dns::Names;
use podnet_common::host::route_all;
use podnet_common::packet::TcpFlags;
use podnet_common::route::Hook;
use podnet_common::tables::Tables;
use podnet_common::verdict::Verdict;
use podnet_common::wire::{Endpoint, Family, Protocol};
use proptest::prelude::ProptestConfig;

#[allow(unused_imports, reason = "each test file uses its own part")]
pub(crate) use read::{Seen, Transport, read};

/// So many cases of a property, or as many as `PROPTEST_CASES` says.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(count),
    }
}

pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const KINDS: [(Family, Protocol); 4] = [
    (Family::V4, Protocol::TCP),
    (Family::V4, Protocol::UDP),
    (Family::V6, Protocol::TCP),
    (Family::V6, Protocol::UDP),
];

pub(crate) const SYN: u8 = TcpFlags::SYN;
pub(crate) const ACK: u8 = TcpFlags::ACK;
pub(crate) const FIN: u8 = TcpFlags::FIN;
pub(crate) const RST: u8 = TcpFlags::RST;

/// The sequence number of all segments made here.
pub(crate) const SEQUENCE: u32 = 0xffff_fff0;

/// What a pod has sent.
pub(crate) fn from_pod<T: Tables + Names>(frame: &mut Vec<u8>, tables: &mut T) -> Verdict {
    route_all(Hook::FromPod, frame, tables)
}

/// What is about to reach a pod.
pub(crate) fn to_pod<T: Tables + Names>(frame: &mut Vec<u8>, tables: &mut T) -> Verdict {
    route_all(Hook::ToPod, frame, tables)
}

/// What another machine has sent.
pub(crate) fn from_net<T: Tables + Names>(frame: &mut Vec<u8>, tables: &mut T) -> Verdict {
    route_all(Hook::FromNet, frame, tables)
}

/// What is about to leave the node.
pub(crate) fn to_net<T: Tables + Names>(frame: &mut Vec<u8>, tables: &mut T) -> Verdict {
    route_all(Hook::ToNet, frame, tables)
}

pub(crate) fn endpoint(addr: impl Into<IpAddr>, port: u16) -> Endpoint {
    SocketAddr::new(addr.into(), port).into()
}

/// The pod number `n`.
pub(crate) fn pod(family: Family, n: u8, port: u16) -> Endpoint {
    match family {
        Family::V4 => endpoint(Ipv4Addr::new(10, 244, 1, n), port),
        Family::V6 => endpoint(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, n.into()), port),
    }
}

/// The Service number `n`.
pub(crate) fn service(family: Family, n: u8, port: u16) -> Endpoint {
    match family {
        Family::V4 => endpoint(Ipv4Addr::new(10, 96, 0, n), port),
        Family::V6 => endpoint(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()), port),
    }
}

/// IP headers of a packet between two addresses of one family.
pub(crate) fn ip(from: Endpoint, to: Endpoint, protocol: IpNumber) -> IpHeaders {
    match (from.addr.to_ip(), to.addr.to_ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header::new(0, 61, protocol, source.octets(), destination.octets()).unwrap();
            header.identification = 0x1234;
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        _ => ip_v6(from, to, protocol),
    }
}

/// IPv6 headers of a packet between two addresses, IPv4 ones as mapped ones.
pub(crate) fn ip_v6(from: Endpoint, to: Endpoint, protocol: IpNumber) -> IpHeaders {
    let octets = |end: Endpoint| match end.addr.to_ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let header = Ipv6Header {
        traffic_class: 3,
        flow_label: 0x12345.try_into().unwrap(),
        payload_length: 0,
        next_header: protocol,
        hop_limit: 61,
        source: octets(from),
        destination: octets(to),
    };
    IpHeaders::Ipv6(header, Ipv6Extensions::default())
}

/// A TCP header with `flags`.
pub(crate) fn tcp_header(from: u16, to: u16, flags: u8) -> TcpHeader {
    let mut header = TcpHeader::new(from, to, SEQUENCE, 0xfaf0);
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    header.acknowledgment_number = if header.ack { 0x1234_5678 } else { 0 };
    header
}

/// A frame with these IP headers; flags are for TCP only.
pub(crate) fn frame_of(
    headers: IpHeaders,
    ports: (u16, u16),
    protocol: Protocol,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(POD_MAC, NODE_MAC).ip(headers);
    if protocol == Protocol::TCP {
        builder.tcp_header(tcp_header(ports.0, ports.1, flags)).write(&mut frame, payload).unwrap();
    } else {
        builder.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
    }
    frame
}

/// A frame from one end to another; flags are for TCP only.
pub(crate) fn frame(from: Endpoint, to: Endpoint, protocol: Protocol, flags: u8, payload: &[u8]) -> Vec<u8> {
    let headers = ip(from, to, IpNumber(protocol.0));
    frame_of(headers, (from.port.get(), to.port.get()), protocol, flags, payload)
}

/// The first packet of a connection.
pub(crate) fn opening(from: Endpoint, to: Endpoint, protocol: Protocol) -> Vec<u8> {
    frame(from, to, protocol, SYN, if protocol == Protocol::TCP { b"" } else { b"hello" })
}

/// A packet in the middle of a connection.
pub(crate) fn data(from: Endpoint, to: Endpoint, protocol: Protocol) -> Vec<u8> {
    frame(from, to, protocol, ACK, b"some data, of odd length")
}

/// The same frame on its way back to who sent it.
pub(crate) fn returned(mut frame: Vec<u8>) -> Vec<u8> {
    let (destination, source) = frame[..12].split_at_mut(6);
    destination.swap_with_slice(source);
    frame
}
