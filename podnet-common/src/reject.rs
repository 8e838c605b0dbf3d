//! Answers that a sender gets in place of those of whom it has sent to.
//!
//! A connection is refused in the name of a Service that has no endpoints: a TCP client gets a RST (RFC 9293,
//! 3.5.2), which ends `connect()` with `ECONNREFUSED` in both families; a UDP client an ICMP port unreachable
//! (RFC 792) or its ICMPv6 twin (RFC 4443, 3.1). Other ICMP errors say why a packet cannot go on.

use zerocopy::{Immutable, IntoBytes};

use crate::checksum::Sum;
use crate::frame::Frame;
use crate::ip;
use crate::packet::{ETHERNET, IPV4, IPV6, Packet, TcpFlags, headers};
use crate::route::turn_around;
use crate::wire::{Addr, Be16, Be32, Endpoint, Family, Protocol};

/// Hop limit of the answers, Linux's default for its own.
const HOPS: u8 = 64;
/// Length of an ICMP header; and of what is quoted of the refused packet's L4 header, all that RFC 792
/// asks for.
const ICMP: usize = 8;
const QUOTE: usize = 8;
const TCP: usize = 20;

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_length: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    protocol: Protocol,
    checksum: Be16,
    source: Be32,
    destination: Be32,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Ipv6Header {
    version_class_flow: Be32,
    payload_length: Be16,
    next_header: Protocol,
    hop_limit: u8,
    source: Addr,
    destination: Addr,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct TcpHeader {
    source_port: Be16,
    destination_port: Be16,
    sequence: Be32,
    acknowledgement: Be32,
    data_offset: u8,
    flags: u8,
    window: Be16,
    checksum: Be16,
    urgent: Be16,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: Be16,
    /// What it is for depends on the kind.
    word: Be32,
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody is at the port.
    PortUnreachable,
    /// The way on takes packets of this length at the most (RFC 1191, 4; RFC 4443, 3.2).
    TooBig(u16),
    /// The packet has passed as many routers as it may.
    TimeExceeded,
}

impl Error {
    #[inline(always)]
    const fn header(self, family: Family) -> IcmpHeader {
        let (kind, code, word) = match (self, family) {
            (Self::PortUnreachable, Family::V4) => (3, 3, 0),
            (Self::PortUnreachable, Family::V6) => (1, 4, 0),
            (Self::TooBig(mtu), Family::V4) => (3, 4, mtu),
            (Self::TooBig(mtu), Family::V6) => (2, 0, mtu),
            (Self::TimeExceeded, Family::V4) => (11, 0, 0),
            (Self::TimeExceeded, Family::V6) => (3, 0, 0),
        };
        IcmpHeader { kind, code, checksum: Be16::new(0), word: Be32::new(word as u32) }
    }
}

/// Makes of `frame`, which `packet` was parsed from, the refusal that its sender gets. `None` if it gets none, or the
/// frame could not be changed; it is not fit to be sent then.
#[inline(always)]
pub fn reply<F: Frame>(frame: &mut F, packet: &Packet) -> Option<()> {
    if packet.tuple.protocol() == Protocol::TCP {
        begin(frame, packet)?;
        reset(frame, packet)
    } else {
        error(frame, packet, Error::PortUnreachable)
    }
}

/// Addresses the frame to whom it is from; `None` also if nobody is to be told: the packet was sent to many, or not by
/// one (RFC 1122, 3.2.2; RFC 4443, 2.4).
#[inline(always)]
fn begin<F: Frame>(frame: &mut F, packet: &Packet) -> Option<()> {
    const GROUP: u8 = 1;
    // The kernel's verifier cannot tell that one byte is there at the very start.
    let [first, _]: [u8; 2] = frame.load(0)?;
    if first & GROUP != 0 || !packet.tuple.source().addr.is_of_one() {
        return None;
    }
    turn_around(frame)
}

#[inline(always)]
fn reset<F: Frame>(frame: &mut F, packet: &Packet) -> Option<()> {
    let answer = packet.tuple.reply();
    let (source, destination) = (answer.source(), answer.destination());
    let [sent, acknowledged]: [Be32; 2] = frame.load(frame.place(packet.l4)? + 4)?;
    // In a connection the answer stands where the other side's next segment would. A SYN has nothing to
    // say about that: the answer acknowledges the one number that it takes, and its data.
    let (sequence, acknowledgement, flags) = if packet.flags.has(TcpFlags::ACK) {
        (acknowledged, Be32::default(), TcpFlags::RST)
    } else {
        let taken = data_length(frame, packet)?.wrapping_add(1);
        (Be32::default(), Be32::new(sent.get().wrapping_add(taken)), TcpFlags::RST | TcpFlags::ACK)
    };
    let mut header = TcpHeader {
        source_port: source.port,
        destination_port: destination.port,
        sequence,
        acknowledgement,
        data_offset: 5 << 4,
        flags,
        window: Be16::default(),
        checksum: Be16::default(),
        urgent: Be16::default(),
    };
    header.checksum = pseudo_header(source, destination, Protocol::TCP, Be16::new(20))
        .word(source.port)
        .word(destination.port)
        .double_word(header.sequence.raw())
        .double_word(header.acknowledgement.raw())
        .word(Be16::new(u16::from(header.data_offset) << 8 | u16::from(header.flags)))
        .finish();
    let l4 = write_ip(frame, packet.family, source.addr, destination.addr, Protocol::TCP, TCP)?;
    frame.store(l4, header)
}

/// How much data a TCP segment carries: nearly always none, but for TCP Fast Open (RFC 7413).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most what 16 bits say")]
fn data_length<F: Frame>(frame: &F, packet: &Packet) -> Option<u32> {
    let end = ip::end(frame, packet.family)?;
    Some(end.saturating_sub(headers(frame, packet)?) as u32)
}

/// Makes of `frame`, which `packet` was parsed from, the ICMP error that its sender gets from whom it has sent to.
/// `None` if it gets none, or the frame could not be changed; it is not fit to be sent then.
#[inline(always)]
pub fn error<F: Frame>(frame: &mut F, packet: &Packet, error: Error) -> Option<()> {
    begin(frame, packet)?;
    let header = error.header(packet.family);
    let answer = packet.tuple.reply();
    let (source, destination) = (answer.source(), answer.destination());
    let transport: [Be32; QUOTE / 4] = frame.load(frame.place(packet.l4)?)?;
    match packet.family {
        Family::V4 => {
            // Options are left out of the quote: what the sender looks for stands behind them.
            let mut quoted: [Be32; IPV4 / 4] = frame.load(ETHERNET)?;
            quoted[0] = Be32::new(0x4500_0000 | quoted[0].get() & 0x00ff_ffff);
            let sum = sum_of(&transport, sum_of(&quoted, Sum::ZERO));
            let length = ICMP + IPV4 + QUOTE;
            let l4 = write_ip(frame, Family::V4, source.addr, destination.addr, Protocol::ICMP, length)?;
            write_icmp(frame, l4, header, sum)?;
            frame.store(l4 + ICMP, quoted)?;
            frame.store(l4 + ICMP + IPV4, transport)
        }
        Family::V6 => {
            // Extension headers likewise: the quote says that UDP follows at once.
            let mut quoted: [Be32; IPV6 / 4] = frame.load(ETHERNET)?;
            quoted[1] = Be32::new(quoted[1].get() & 0xffff_00ff | u32::from(packet.tuple.protocol().0) << 8);
            let length = ICMP + IPV6 + QUOTE;
            let pseudo = pseudo_header(source, destination, Protocol::ICMPV6, be16(length));
            let sum = sum_of(&transport, sum_of(&quoted, pseudo));
            let l4 = write_ip(frame, Family::V6, source.addr, destination.addr, Protocol::ICMPV6, length)?;
            write_icmp(frame, l4, header, sum)?;
            frame.store(l4 + ICMP, quoted)?;
            frame.store(l4 + ICMP + IPV6, transport)
        }
    }
}

#[inline(always)]
fn write_icmp<F: Frame>(frame: &mut F, l4: usize, header: IcmpHeader, rest: Sum) -> Option<()> {
    let kind = Be16::new(u16::from(header.kind) << 8 | u16::from(header.code));
    let checksum = rest.word(kind).double_word(header.word.raw()).finish();
    frame.store(l4, IcmpHeader { checksum, ..header })
}

/// Makes the frame hold an IP header and `payload` bytes, and writes the former; returns where the latter
/// start.
#[inline(always)]
fn write_ip<F: Frame>(
    frame: &mut F,
    family: Family,
    source: Addr,
    destination: Addr,
    protocol: Protocol,
    payload: usize,
) -> Option<usize> {
    match family {
        Family::V4 => {
            frame.resize(ETHERNET + IPV4 + payload)?;
            let mut header = Ipv4Header {
                version_ihl: 0x45,
                tos: 0,
                total_length: be16(IPV4 + payload),
                id: Be16::default(),
                // Don't fragment: an answer without an id must not need one (RFC 6864, 4.1).
                fragment: Be16::new(0x4000),
                ttl: HOPS,
                protocol,
                checksum: Be16::default(),
                source: source.last_word(),
                destination: destination.last_word(),
            };
            header.checksum = Sum::ZERO
                .word(Be16::new(0x4500))
                .word(header.total_length)
                .word(header.fragment)
                .word(Be16::new(u16::from(HOPS) << 8 | u16::from(protocol.0)))
                .double_word(header.source.raw())
                .double_word(header.destination.raw())
                .finish();
            frame.store(ETHERNET, header)?;
            Some(ETHERNET + IPV4)
        }
        Family::V6 => {
            frame.resize(ETHERNET + IPV6 + payload)?;
            let header = Ipv6Header {
                version_class_flow: Be32::new(6 << 28),
                payload_length: be16(payload),
                next_header: protocol,
                hop_limit: HOPS,
                source,
                destination,
            };
            frame.store(ETHERNET, header)?;
            Some(ETHERNET + IPV6)
        }
    }
}

#[inline(always)]
fn pseudo_header(source: Endpoint, destination: Endpoint, protocol: Protocol, length: Be16) -> Sum {
    Sum::ZERO.addr(source.addr).addr(destination.addr).word(Be16::new(u16::from(protocol.0))).word(length)
}

#[inline(always)]
fn sum_of<const N: usize>(words: &[Be32; N], start: Sum) -> Sum {
    let mut sum = start;
    let mut i = 0;
    while i < N {
        sum = sum.double_word(words[i].raw());
        i += 1;
    }
    sum
}

/// The length of one of the answers, which are all short, as it stands in a header.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an answer is at most 96 bytes long")]
const fn be16(length: usize) -> Be16 {
    Be16::new(length as u16)
}
