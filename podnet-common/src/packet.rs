//! Parsing: from a frame to the tuple that names its flow.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::conntrack::Tuple;
use crate::frame::Frame;
use crate::ip::{self, Header, Want};
use crate::sctp::{self, Chunk};
use crate::verdict::Reason;
use crate::wire::{Be16, Be32, Family, Protocol};

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

/// A TCP, UDP or SCTP packet, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who talks to whom.
    pub tuple: Tuple,
    /// The IP version.
    pub family: Family,
    /// Offset of the L4 header in the frame.
    pub l4: usize,
    /// The TCP flags; of SCTP, those that mean what its first chunk does; none for UDP.
    pub flags: TcpFlags,
}

/// Reads the headers of `frame`.
///
/// # Errors
/// The [`Reason`] why the frame is not a whole TCP, UDP or SCTP packet over IP: such frames are not podnet's.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    parse_l4(frame, &ip::read(frame, Want::Whole)?)
}

/// Reads the L4 header of a packet that is whole, or of a first fragment.
#[inline(always)]
pub(crate) fn parse_l4<F: Frame>(frame: &F, ip: &Header) -> Result<Packet, Reason> {
    let (l4, protocol) = (ip.payload, ip.protocol);
    let flags = match protocol {
        Protocol::TCP => frame.load(l4 + 13).ok_or(Reason::Truncated)?,
        Protocol::UDP => TcpFlags::default(),
        // Where chunks do not follow in one piece there is data in them: what a device is to cut into packets.
        Protocol::SCTP => Chunk(frame.load(l4 + sctp::HEADER).unwrap_or(0)).flags(),
        _ => return Err(Reason::OtherProtocol),
    };
    let [source_port, destination_port]: [Be16; 2] = frame.load(l4).ok_or(Reason::Truncated)?;
    let checksum = l4 + checksum_field(protocol);
    let whole = match protocol {
        Protocol::SCTP => frame.load::<Be32>(checksum).is_some(),
        _ => frame.load::<Be16>(checksum).is_some(),
    };
    if !whole {
        return Err(Reason::Truncated);
    }
    let tuple = Tuple::new(ip.source, source_port, ip.destination, destination_port, protocol);
    Ok(Packet { tuple, family: ip.family, l4, flags })
}

/// Where the headers of `packet` end, TCP's own options included. Of others the L4 header counts for nothing: how
/// its length and that of a segment go together depends on the kind of segment.
#[inline(always)]
pub(crate) fn headers<F: Frame>(frame: &F, packet: &Packet) -> Option<usize> {
    let l4 = frame.place(packet.l4)?;
    if packet.tuple.protocol() != Protocol::TCP {
        return Some(l4);
    }
    let data_offset: u8 = frame.load(l4 + 12)?;
    Some(l4 + usize::from(data_offset >> 4) * 4)
}

/// Where the checksum stands in an L4 header.
#[inline(always)]
pub const fn checksum_field(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => 16,
        Protocol::SCTP => 8,
        _ => 6,
    }
}
