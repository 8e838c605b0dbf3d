//! ICMP errors about packets of flows: path MTU discovery, refused ports and traceroute through a Service.
//!
//! An error quotes the packet that it is about as its reporter saw it, so it travels with the flow's packets
//! in the other direction: the entry of [`IcmpError::flow`] says which tuple those get, and with it what the
//! quoted packet was called on the other side of the translation.

use crate::checksum::Delta;
use crate::conntrack::Tuple;
use crate::frame::{Frame, L4Patch, patch_field};
use crate::ip::{self, Header, Want, write_addresses};
use crate::packet::{ETHERNET, checksum_field};
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Family, Protocol};

/// Length of an ICMP header; what an error quotes stands behind it.
const ICMP: usize = 8;
/// How much of the quoted packet's L4 header has to be there: what RFC 792 asks for.
const QUOTED_L4: usize = 8;
/// How much is gathered of the quote: the longest IPv4 header, and a TCP header up to its checksum.
const QUOTE: usize = 60 + 18;

/// An ICMP error about a TCP, UDP or SCTP packet, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The IP version, of the error and of the packet it is about.
    pub family: Family,
    /// Who reports the error.
    pub source: Addr,
    /// Who gets the report.
    pub destination: Addr,
    /// The tuple of the packet that the error is about.
    pub quoted: Tuple,
    /// Offset of the ICMP header in the frame.
    pub icmp: usize,
    /// Offset of the quoted IP header.
    pub inner: usize,
    /// Offset of the quoted L4 header.
    pub l4: usize,
    /// Where the error ends in the frame, by its IP header.
    pub end: usize,
}

impl IcmpError {
    /// The tuple of the packets that travel in the error's direction.
    #[inline(always)]
    pub const fn flow(&self) -> Tuple {
        self.quoted.reply()
    }
}

/// Reads an ICMP error. For frames that [`packet::parse`](crate::packet::parse) has called another protocol's.
///
/// # Errors
/// The [`Reason`] why the frame is none, or none about a packet that may be of a flow.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F) -> Result<IcmpError, Reason> {
    let outer = ip::read(frame, Want::Whole)?;
    // The code beside it means nothing here, but the kernel's verifier does not follow the comparison that a
    // byte alone is guarded by.
    let [kind, _]: [u8; 2] = frame.load(outer.payload).ok_or(Reason::Truncated)?;
    if !is_error(outer.family, outer.protocol, kind) {
        return Err(Reason::OtherProtocol);
    }
    let at = outer.payload + ICMP;
    frame.gather(at + QUOTE);
    let quoted = match outer.family {
        Family::V4 => ip::read_v4(frame, at, Want::Any)?,
        Family::V6 => ip::read_v6(frame, at, Want::Any)?,
    };
    Ok(IcmpError {
        family: outer.family,
        source: outer.source,
        destination: outer.destination,
        quoted: tuple(frame, &quoted, outer.end)?,
        icmp: outer.payload,
        inner: at,
        l4: quoted.payload,
        end: outer.end,
    })
}

/// Whether a packet of `protocol` that starts with `kind` is an error. IPv4's source quench is none any more
/// (RFC 6633).
#[inline(always)]
const fn is_error(family: Family, protocol: Protocol, kind: u8) -> bool {
    match (family, protocol) {
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        (Family::V4, Protocol::ICMP) => matches!(kind, 3 | 11 | 12),
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443, 3).
        (Family::V6, Protocol::ICMPV6) => matches!(kind, 1..=4),
        _ => false,
    }
}

/// The tuple of the packet quoted in an error that ends at `end`.
#[inline(always)]
fn tuple<F: Frame>(frame: &F, quoted: &Header, end: usize) -> Result<Tuple, Reason> {
    if quoted.fragment.is_some_and(|part| !part.first) {
        return Err(Reason::Fragment);
    }
    if !matches!(quoted.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
        return Err(Reason::OtherProtocol);
    }
    if quoted.payload + QUOTED_L4 > end {
        return Err(Reason::Truncated);
    }
    let [source, destination, ..]: [Be16; QUOTED_L4 / 2] =
        frame.load(quoted.payload).ok_or(Reason::Truncated)?;
    Ok(Tuple::new(quoted.source, source, quoted.destination, destination, quoted.protocol))
}

/// Makes of the error that `error` was parsed from what it says on the other side of a translation: `to` is
/// the tuple that packets of its [`flow`](IcmpError::flow) get. `None` if the frame does not hold what was
/// parsed; it is not fit to be sent then.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, error: &IcmpError, to: &Tuple) -> Option<()> {
    let (old, new) = (&error.quoted, to.reply());
    // An end of the flow has another name on the other side; a router on the way keeps its own, since
    // traceroute is to show it.
    let source = if error.source == old.destination().addr { to.source().addr } else { error.source };
    let destination = to.destination().addr;
    let outer = Delta::NONE.addr(error.source, source).addr(error.destination, destination);
    write_addresses(frame, ETHERNET, error.family, [source, destination], outer)?;

    let (from, to) = (new.source(), new.destination());
    let addresses = Delta::NONE.addr(old.source().addr, from.addr).addr(old.destination().addr, to.addr);
    let ports = Delta::NONE.word(old.source().port, from.port).word(old.destination().port, to.port);
    let inner = frame.place(error.inner)?;
    write_addresses(frame, inner, error.family, [from.addr, to.addr], addresses)?;
    frame.store(frame.place(error.l4)?, [from.port, to.port])?;
    let mut quote = match error.family {
        // The quoted header's checksum makes up for its addresses.
        Family::V4 => ports,
        Family::V6 => addresses.and(ports),
    };
    if let Some((offset, field)) = quoted_checksum(frame, error) {
        let udp = old.protocol() == Protocol::UDP;
        let patch = L4Patch { offset, addresses, ports, udp, v6: error.family == Family::V6 };
        let patched = patch_field(field, &patch);
        frame.store(offset, patched)?;
        quote = quote.word(field, patched);
    }
    frame.patch_l4(&L4Patch {
        offset: frame.place(error.icmp)? + 2,
        // ICMPv6 has a pseudo header (RFC 4443, 2.3), ICMP has none.
        addresses: if error.family == Family::V6 { outer } else { Delta::NONE },
        ports: quote,
        udp: false,
        v6: error.family == Family::V6,
    })
}

/// The quoted packet's own checksum and where it stands, if it is mended by difference and is quoted. SCTP's
/// is not: it depends on the length of the packet, of which a part is quoted.
#[inline(always)]
fn quoted_checksum<F: Frame>(frame: &F, error: &IcmpError) -> Option<(usize, Be16)> {
    let protocol = error.quoted.protocol();
    let offset = frame.place(error.l4)? + checksum_field(protocol);
    if protocol == Protocol::SCTP || offset + 2 > error.end {
        return None;
    }
    Some((offset, frame.load(offset)?))
}
