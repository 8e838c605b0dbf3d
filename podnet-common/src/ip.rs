//! IP headers: reading them, wherever in a frame they stand, and changing their addresses.

use zerocopy::{FromBytes, Immutable};

use crate::checksum::Delta;
use crate::frame::Frame;
use crate::packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6};
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Be32, Family, Protocol};

/// How many IPv6 extension headers are looked behind. The kernel's verifier needs a bound; packets with
/// more than hop-by-hop, destination options, routing and one more are not seen in practice.
const MAX_EXTENSIONS: usize = 4;
/// How far from the start of the frame an L4 header may stand.
const MAX_L4: usize = 512;

/// Ethertypes of VLAN tags (IEEE 802.1Q, and 802.1ad).
const VLAN: Be16 = Be16::new(0x8100);
const SERVICE_VLAN: Be16 = Be16::new(0x88a8);

/// What an IP header says, extension headers included.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) family: Family,
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    /// What stands at `payload`. Of a later fragment, what its fragment header says.
    pub(crate) protocol: Protocol,
    /// Where the header ends, in bytes from the start of the frame.
    pub(crate) payload: usize,
    /// Where the packet ends. A frame may go on: Ethernet pads short ones.
    pub(crate) end: usize,
    /// `None`: the packet is whole.
    pub(crate) fragment: Option<Part>,
}

/// Which part of a fragmented packet it is.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// The identification that the parts share.
    pub(crate) id: Be32,
    /// Whether it is the first one, which carries the L4 header.
    pub(crate) first: bool,
}

/// Which packets a reader can do something with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Those without a fragment header.
    Whole,
    /// All.
    Any,
}

/// The start of an IPv4 header (RFC 791, 3.1).
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct Ipv4Start {
    version_ihl: u8,
    _tos: u8,
    total_length: Be16,
    id: Be16,
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
    payload_length: Be16,
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

/// An IPv6 fragment header (RFC 8200, 4.5).
#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct FragmentHeader {
    next_header: Protocol,
    _reserved: u8,
    offset_more: Be16,
    id: Be32,
}

/// Reads the IP header of `frame`.
#[inline(always)]
pub(crate) fn read<F: Frame>(frame: &F, want: Want) -> Result<Header, Reason> {
    // Of an interface of its own, where it comes by without the tag: from here it would be sent on with it.
    if frame.is_tagged() {
        return Err(Reason::Tagged);
    }
    match frame.load::<Be16>(12) {
        Some(ETHERTYPE_IPV4) => read_v4(frame, ETHERNET, want),
        Some(ETHERTYPE_IPV6) => read_v6(frame, ETHERNET, want),
        // The kernel takes a frame's outermost tag out before tc sees it, on the way in and on the way out: what
        // is left is a second one, which no pod's interface has. To follow it, the place of the IP header would
        // have to be a variable for all packets, and each access to it be checked anew.
        Some(VLAN | SERVICE_VLAN) => Err(Reason::Tagged),
        Some(_) => Err(Reason::NotIp),
        None => Err(Reason::Truncated),
    }
}

/// Reads the IPv4 header at `at`.
#[inline(always)]
pub(crate) fn read_v4<F: Frame>(frame: &F, at: usize, want: Want) -> Result<Header, Reason> {
    const MORE_OR_OFFSET: u16 = 0x3fff;
    const OFFSET: u16 = 0x1fff;
    let start: Ipv4Start = frame.load(at).ok_or(Reason::Truncated)?;
    let source: Be32 = frame.load(at + 12).ok_or(Reason::Truncated)?;
    let destination: Be32 = frame.load(at + 16).ok_or(Reason::Truncated)?;
    let header = usize::from(start.version_ihl & 0x0f) * 4;
    if start.version_ihl >> 4 != 4 || header < IPV4 {
        return Err(Reason::Malformed);
    }
    let mut fragment = None;
    if start.fragment.get() & MORE_OR_OFFSET != 0 {
        if want == Want::Whole {
            return Err(Reason::Fragment);
        }
        let first = start.fragment.get() & OFFSET == 0;
        fragment = Some(Part { id: Be32::new(u32::from(start.id.get())), first });
    }
    Ok(Header {
        family: Family::V4,
        source: Addr::v4(source),
        destination: Addr::v4(destination),
        protocol: start.protocol,
        payload: at + header,
        end: at + usize::from(start.total_length.get()),
        fragment,
    })
}

/// Reads the IPv6 header at `at`, and the extension headers behind it.
#[inline(always)]
pub(crate) fn read_v6<F: Frame>(frame: &F, at: usize, want: Want) -> Result<Header, Reason> {
    const HOP_BY_HOP: Protocol = Protocol(0);
    const ROUTING: Protocol = Protocol(43);
    const FRAGMENT: Protocol = Protocol(44);
    const DESTINATION_OPTIONS: Protocol = Protocol(60);
    /// "More fragments", and the offset; two reserved bits stand between them.
    const MORE_OR_OFFSET: u16 = 0xfff9;
    const OFFSET: u16 = 0xfff8;

    let start: Ipv6Start = frame.load(at).ok_or(Reason::Truncated)?;
    let source: Addr = frame.load(at + 8).ok_or(Reason::Truncated)?;
    let destination: Addr = frame.load(at + 24).ok_or(Reason::Truncated)?;
    // The form of an IPv4 address is not for the wire: such a packet would meet Services and flows of IPv4.
    if start.version >> 4 != 6 || source.family() == Family::V4 || destination.family() == Family::V4 {
        return Err(Reason::Malformed);
    }
    let mut payload = at + IPV6;
    let mut protocol = start.next_header;
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            FRAGMENT => {
                if want == Want::Whole {
                    return Err(Reason::Fragment);
                }
                let header: FragmentHeader = frame.load(payload).ok_or(Reason::Truncated)?;
                protocol = header.next_header;
                payload += size_of::<FragmentHeader>();
                // A fragment that is all of its packet is treated as the packet (RFC 6946).
                if header.offset_more.get() & MORE_OR_OFFSET != 0 {
                    let first = header.offset_more.get() & OFFSET == 0;
                    fragment = Some(Part { id: header.id, first });
                    if !first {
                        break;
                    }
                }
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let extension: Extension = frame.load(payload).ok_or(Reason::Truncated)?;
                if protocol == ROUTING && extension.segments_left != 0 {
                    // The destination address is that of the next hop on the route, not the packet's.
                    return Err(Reason::OtherProtocol);
                }
                protocol = extension.next_header;
                payload += (usize::from(extension.length) + 1) * 8;
                if payload > MAX_L4 {
                    return Err(Reason::OtherProtocol);
                }
            }
            _ => break,
        }
    }
    let end = at + IPV6 + usize::from(start.payload_length.get());
    Ok(Header { family: Family::V6, source, destination, protocol, payload, end, fragment })
}

/// Where the packet of `family` in a frame ends, by its IP header: a frame may be padded.
#[inline(always)]
pub(crate) fn end<F: Frame>(frame: &F, family: Family) -> Option<usize> {
    let (field, header) = match family {
        Family::V4 => (ETHERNET + 2, 0),
        Family::V6 => (ETHERNET + 4, IPV6),
    };
    let length: Be16 = frame.load(field)?;
    Some(ETHERNET + header + usize::from(length.get()))
}

/// Writes the addresses of the IP header at `at`, and mends the checksum of an IPv4 header by `change`, the
/// difference that the new addresses make.
#[inline(always)]
pub(crate) fn write_addresses<F: Frame>(
    frame: &mut F,
    at: usize,
    family: Family,
    [source, destination]: [Addr; 2],
    change: Delta,
) -> Option<()> {
    match family {
        Family::V4 => {
            let field: Be16 = frame.load(at + 10)?;
            frame.store(at + 10, change.apply(field))?;
            frame.store(at + 12, [source.last_word(), destination.last_word()])
        }
        Family::V6 => frame.store(at + 8, [source, destination]),
    }
}
