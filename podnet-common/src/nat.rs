//! Changing a packet's tuple.

use crate::checksum::Delta;
use crate::conntrack::Tuple;
use crate::frame::{Frame, L4Patch};
use crate::ip::write_addresses;
use crate::packet::{ETHERNET, Packet, checksum_field};
use crate::wire::{Be16, Family, Protocol};

/// Counts a hop: lowers the time to live (RFC 791, 3.2) or hop limit (RFC 8200, 3). `None` if that ends it;
/// nothing has changed then.
#[inline(always)]
pub fn hop<F: Frame>(frame: &mut F, family: Family) -> Option<()> {
    match family {
        Family::V4 => {
            // The protocol shares a word of the header's checksum with it.
            let before: Be16 = frame.load(ETHERNET + 8)?;
            if before.get() < 0x0200 {
                return None;
            }
            let after = Be16::new(before.get() - 0x0100);
            let field: Be16 = frame.load(ETHERNET + 10)?;
            frame.store(ETHERNET + 8, after)?;
            frame.store(ETHERNET + 10, Delta::NONE.word(before, after).apply(field))
        }
        Family::V6 => {
            // The second byte; the first one says what follows.
            let before: Be16 = frame.load(ETHERNET + 6)?;
            if before.get() & 0xff < 2 {
                return None;
            }
            let after = Be16::new(before.get() - 1);
            frame.store(ETHERNET + 6, after)?;
            frame.note_change(Delta::NONE.word(before, after));
            Some(())
        }
    }
}

/// Whether a hop ends the packet's time to live.
#[inline(always)]
pub fn expires<F: Frame>(frame: &F, family: Family) -> Option<bool> {
    let at = match family {
        Family::V4 => ETHERNET + 8,
        Family::V6 => ETHERNET + 7,
    };
    frame.load::<u8>(at).map(|hops| hops < 2)
}

/// Writes the addresses and ports of `to` into the frame that `packet` was parsed from, and mends its
/// checksums by difference. `None` if the frame does not hold what was parsed.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, packet: &Packet, to: &Tuple) -> Option<()> {
    let from = &packet.tuple;
    let (source, destination) = (to.source(), to.destination());
    let addresses =
        Delta::NONE.addr(from.source().addr, source.addr).addr(from.destination().addr, destination.addr);
    write_addresses(frame, ETHERNET, packet.family, [source.addr, destination.addr], addresses)?;
    let l4 = frame.place(packet.l4)?;
    frame.store(l4, [source.port, destination.port])?;
    let ports =
        Delta::NONE.word(from.source().port, source.port).word(from.destination().port, destination.port);
    frame.patch_l4(&L4Patch {
        offset: l4 + checksum_field(from.protocol()),
        addresses,
        ports,
        udp: from.protocol() == Protocol::UDP,
        v6: packet.family == Family::V6,
    })
}
