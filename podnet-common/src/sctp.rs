//! SCTP (RFC 9260): its chunks in the terms of TCP's flags, and its checksum by difference.

use crate::checksum::Delta;
use crate::conntrack::Tuple;
use crate::crc32c;
use crate::frame::Frame;
use crate::ip::{self, write_addresses};
use crate::packet::{ETHERNET, Packet, TcpFlags, checksum_field};
use crate::wire::{Be16, Family, Protocol};

/// Length of the common header, behind which the chunks stand (RFC 9260, 3).
pub(crate) const HEADER: usize = 12;

/// The type of a chunk (RFC 9260, 3.2). Those that open or end an association stand first in their packet
/// (RFC 9260, 6.10 and 8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk(pub u8);

impl Chunk {
    /// INIT: asks for an association.
    pub const INIT: Self = Self(1);
    /// INIT ACK: answers it.
    pub const INIT_ACK: Self = Self(2);
    /// ABORT: ends it at once.
    pub const ABORT: Self = Self(6);
    /// SHUTDOWN: its sender has no more data.
    pub const SHUTDOWN: Self = Self(7);
    /// SHUTDOWN ACK: neither has the other side.
    pub const SHUTDOWN_ACK: Self = Self(8);
    /// SHUTDOWN COMPLETE: the association is over.
    pub const SHUTDOWN_COMPLETE: Self = Self(14);

    /// The TCP flags of a segment that does to a connection what a packet starting with this chunk does to
    /// an association.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "five bits")]
    pub const fn flags(self) -> TcpFlags {
        // Out of a number instead of by branches: the kernel's verifier would follow each through all that
        // comes after.
        const ACK_AT: u64 = 0x08;
        const MEANINGS: u64 = {
            let (mut meanings, mut chunk) = (0, 0);
            while chunk < 16 {
                let TcpFlags(flags) = Chunk(chunk).meaning();
                let ack = if flags & TcpFlags::ACK != 0 { ACK_AT } else { 0 };
                meanings |= ((flags & !TcpFlags::ACK) as u64 | ack) << (4 * chunk);
                chunk += 1;
            }
            meanings
        };
        let known = if self.0 < 16 { self.0 } else { 0 };
        let meaning = MEANINGS >> (4 * known);
        TcpFlags((meaning & 0x07 | (meaning & ACK_AT) << 1) as u8)
    }

    const fn meaning(self) -> TcpFlags {
        TcpFlags(match self {
            Self::INIT => TcpFlags::SYN,
            Self::INIT_ACK => TcpFlags::SYN | TcpFlags::ACK,
            Self::SHUTDOWN | Self::SHUTDOWN_ACK => TcpFlags::FIN | TcpFlags::ACK,
            Self::ABORT | Self::SHUTDOWN_COMPLETE => TcpFlags::RST,
            _ => TcpFlags::ACK,
        })
    }
}

/// What [`nat::rewrite`](crate::nat::rewrite) is to TCP and UDP: writes the addresses and ports of `to` into
/// the frame that `packet` was parsed from, and mends its checksums. `None` if the frame does not hold what was
/// parsed; it is as it was then.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, packet: &Packet, to: &Tuple) -> Option<()> {
    let from = &packet.tuple;
    let (source, destination) = (to.source(), to.destination());
    let l4 = frame.place(packet.l4)?;
    let at = l4 + checksum_field(Protocol::SCTP);
    let old: u32 = frame.load(at)?;
    let mut new = old;
    let difference = pair(from.source().port, from.destination().port) ^ pair(source.port, destination.port);
    // Zero says that there is no checksum: a device is to fill it in, or the ends do without one (RFC 9653).
    if old != 0 && difference != 0 {
        // It stands in the packet in little-endian order (RFC 9260, appendix A), and is itself counted as
        // zeroes.
        new ^= crc32c::change(difference, length(frame, packet)?).to_le();
    }

    let addresses =
        Delta::NONE.addr(from.source().addr, source.addr).addr(from.destination().addr, destination.addr);
    write_addresses(frame, ETHERNET, packet.family, [source.addr, destination.addr], addresses)?;
    frame.store(l4, [source.port, destination.port])?;
    frame.store(at, new)?;
    // The IPv4 header's checksum makes up for its addresses; a CRC makes up for nothing in a sum.
    let changed = match packet.family {
        Family::V4 => Delta::NONE,
        Family::V6 => addresses,
    };
    frame.note_change(
        changed
            .word(from.source().port, source.port)
            .word(from.destination().port, destination.port)
            .double_word(old, new),
    );
    Some(())
}

/// Two ports, as the four bytes at the start of an SCTP header are read in little-endian order.
#[inline(always)]
const fn pair(source: Be16, destination: Be16) -> u32 {
    (source.get().swap_bytes() as u32) | (destination.get().swap_bytes() as u32) << 16
}

/// The length of the SCTP packet.
#[inline(always)]
fn length<F: Frame>(frame: &F, packet: &Packet) -> Option<u16> {
    let length = ip::end(frame, packet.family)?.checked_sub(packet.l4)?;
    if length < HEADER {
        return None;
    }
    u16::try_from(length).ok()
}
