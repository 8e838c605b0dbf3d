//! Reading frames by `etherparse`, lengths and checksums included.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};
use podnet_common::wire::Endpoint;

/// What `etherparse` reads in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) transport: Transport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp(TcpHeader, Vec<u8>),
    Udp((u16, u16), Vec<u8>),
    Icmp(u8, u8, Vec<u8>),
}

impl Seen {
    pub(crate) fn ports(&self) -> (u16, u16) {
        match &self.transport {
            Transport::Tcp(header, _) => (header.source_port, header.destination_port),
            Transport::Udp(ports, _) => *ports,
            Transport::Icmp(..) => panic!("ICMP has no ports"),
        }
    }

    pub(crate) fn from(&self) -> Endpoint {
        SocketAddr::new(self.source, self.ports().0).into()
    }

    pub(crate) fn to(&self) -> Endpoint {
        SocketAddr::new(self.destination, self.ports().1).into()
    }
}

/// Reads a frame; an error if a length or a checksum in it is wrong.
pub(crate) fn read(frame: &[u8]) -> Result<Seen, String> {
    let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let same = |what, found, expected| {
        if found == expected {
            Ok(())
        } else {
            Err(format!("{what} checksum is {found:04x}, not {expected:04x}"))
        }
    };
    let (source, destination) = match sliced.net.as_ref().ok_or("no IP")? {
        NetSlice::Ipv4(ipv4) => {
            let header = ipv4.header().to_header();
            same("IPv4", header.header_checksum, header.calc_header_checksum())?;
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        NetSlice::Ipv6(ipv6) => {
            let header = ipv6.header().to_header();
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        NetSlice::Arp(_) => return Err("ARP".into()),
    };
    let transport = match (sliced.transport.as_ref().ok_or("no transport")?, source, destination) {
        (TransportSlice::Tcp(tcp), source, destination) => {
            let expected = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    tcp.calc_checksum_ipv4(source.octets(), destination.octets())
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    tcp.calc_checksum_ipv6(source.octets(), destination.octets())
                }
                _ => unreachable!(),
            };
            same("TCP", tcp.checksum(), expected.map_err(|error| error.to_string())?)?;
            Transport::Tcp(tcp.to_header(), tcp.payload().to_vec())
        }
        (TransportSlice::Udp(udp), source, destination) => {
            let header = udp.to_header();
            let expected = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), udp.payload())
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), udp.payload())
                }
                _ => unreachable!(),
            };
            if header.checksum != 0 {
                same("UDP", header.checksum, expected.map_err(|error| error.to_string())?)?;
            }
            Transport::Udp((header.source_port, header.destination_port), udp.payload().to_vec())
        }
        (TransportSlice::Icmpv4(icmp), ..) => {
            let expected = icmp.icmp_type().calc_checksum(icmp.payload());
            same("ICMP", icmp.checksum(), expected)?;
            Transport::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec())
        }
        (TransportSlice::Icmpv6(icmp), IpAddr::V6(source), IpAddr::V6(destination)) => {
            if !icmp.is_checksum_valid(source.octets(), destination.octets()) {
                return Err("ICMPv6 checksum is wrong".into());
            }
            Transport::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec())
        }
        _ => return Err("neither TCP, UDP nor ICMP".into()),
    };
    Ok(Seen { source, destination, transport })
}
