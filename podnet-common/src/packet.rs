//! Parsing: from a frame to the tuple that names its flow.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::conntrack::Tuple;
use crate::frame::Frame;
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Be32, Family, Protocol};

/// Length of an Ethernet header: where the IP header starts.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of an IPv6 header without extensions.
pub const IPV6: usize = 40;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: Be16 = Be16::new(0x0800);
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: Be16 = Be16::new(0x86dd);

/// How many IPv6 extension headers are looked behind. The kernel's verifier needs a bound; packets with
/// more than hop-by-hop, destination options, routing and one more are not seen in practice.
const MAX_EXTENSIONS: usize = 4;
/// How far from the start of the frame an L4 header may stand.
const MAX_L4: usize = 512;

/// The flags byte of a TCP header (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// Whether this segment asks for a new connection: SYN, and nothing that answers or ends one.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::FIN | Self::RST) == Self::SYN
    }
}

/// A TCP or UDP packet, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who talks to whom.
    pub tuple: Tuple,
    /// The IP version.
    pub family: Family,
    /// Offset of the TCP or UDP header in the frame.
    pub l4: usize,
    /// The TCP flags; none for UDP.
    pub flags: TcpFlags,
}

/// The start of an IPv4 header (RFC 791, 3.1).
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct Ipv4Start {
    version_ihl: u8,
    _tos: u8,
    _total_length: Be16,
    _id: Be16,
    fragment: Be16,
    _ttl: u8,
    protocol: Protocol,
    _checksum: Be16,
}

/// The start of an IPv6 header (RFC 8200, 3).
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct Ipv6Start {
    version: u8,
    _class_flow: [u8; 3],
    _payload_length: Be16,
    next_header: Protocol,
    _hop_limit: u8,
}

/// The start of an IPv6 extension header (RFC 8200, 4); the last two bytes mean something in a routing
/// header only.
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct Extension {
    next_header: Protocol,
    length: u8,
    _routing_type: u8,
    segments_left: u8,
}

/// Reads the headers of `frame`.
///
/// # Errors
/// The [`Reason`] why the frame is not a whole TCP or UDP packet over IP: such frames are not podnet's.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    match frame.load::<Be16>(12) {
        Some(ETHERTYPE_IPV4) => parse_v4(frame),
        Some(ETHERTYPE_IPV6) => parse_v6(frame),
        Some(_) => Err(Reason::NotIp),
        None => Err(Reason::Truncated),
    }
}

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
    let start: Ipv4Start = frame.load(ETHERNET).ok_or(Reason::Truncated)?;
    let source: Be32 = frame.load(ETHERNET + 12).ok_or(Reason::Truncated)?;
    let destination: Be32 = frame.load(ETHERNET + 16).ok_or(Reason::Truncated)?;
    let header = usize::from(start.version_ihl & 0x0f) * 4;
    if start.version_ihl >> 4 != 4 || header < IPV4 {
        return Err(Reason::Malformed);
    }
    if start.fragment.get() & MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Err(Reason::Fragment);
    }
    let l4 = ETHERNET + header;
    parse_l4(frame, Family::V4, l4, start.protocol, Addr::v4(source), Addr::v4(destination))
}

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    const HOP_BY_HOP: Protocol = Protocol(0);
    const ROUTING: Protocol = Protocol(43);
    const FRAGMENT: Protocol = Protocol(44);
    const DESTINATION_OPTIONS: Protocol = Protocol(60);

    let start: Ipv6Start = frame.load(ETHERNET).ok_or(Reason::Truncated)?;
    let source: Addr = frame.load(ETHERNET + 8).ok_or(Reason::Truncated)?;
    let destination: Addr = frame.load(ETHERNET + 24).ok_or(Reason::Truncated)?;
    // The form of an IPv4 address is not for the wire: such a packet would meet Services and flows of IPv4.
    if start.version >> 4 != 6 || source.family() == Family::V4 || destination.family() == Family::V4 {
        return Err(Reason::Malformed);
    }
    let mut l4 = ETHERNET + IPV6;
    let mut protocol = start.next_header;
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            FRAGMENT => return Err(Reason::Fragment),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let extension: Extension = frame.load(l4).ok_or(Reason::Truncated)?;
                if protocol == ROUTING && extension.segments_left != 0 {
                    // The destination address is that of the next hop on the route, not the packet's.
                    return Err(Reason::OtherProtocol);
                }
                protocol = extension.next_header;
                l4 += (usize::from(extension.length) + 1) * 8;
                if l4 > MAX_L4 {
                    return Err(Reason::OtherProtocol);
                }
            }
            _ => break,
        }
    }
    parse_l4(frame, Family::V6, l4, protocol, source, destination)
}

#[inline(always)]
fn parse_l4<F: Frame>(
    frame: &F,
    family: Family,
    l4: usize,
    protocol: Protocol,
    source: Addr,
    destination: Addr,
) -> Result<Packet, Reason> {
    let flags = match protocol {
        Protocol::TCP => frame.load(l4 + 13).ok_or(Reason::Truncated)?,
        Protocol::UDP => TcpFlags::default(),
        _ => return Err(Reason::OtherProtocol),
    };
    let [source_port, destination_port]: [Be16; 2] = frame.load(l4).ok_or(Reason::Truncated)?;
    frame.load::<Be16>(l4 + checksum_field(protocol)).ok_or(Reason::Truncated)?;
    let tuple = Tuple::new(source, source_port, destination, destination_port, protocol);
    Ok(Packet { tuple, family, l4, flags })
}

/// Where the checksum stands in a TCP or UDP header.
#[inline(always)]
pub const fn checksum_field(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => 16,
        _ => 6,
    }
}
