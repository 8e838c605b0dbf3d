//! Changing a packet's tuple.

use crate::checksum::Delta;
use crate::conntrack::Tuple;
use crate::frame::{Frame, L4Patch};
use crate::packet::{ETHERNET, Packet, checksum_field};
use crate::wire::{Be16, Family, Protocol};

/// Writes the addresses and ports of `to` into the frame that `packet` was parsed from, and mends its
/// checksums by difference. `None` if the frame does not hold what was parsed.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &mut F, packet: &Packet, to: &Tuple) -> Option<()> {
    let from = &packet.tuple;
    let (source, destination) = (to.source(), to.destination());
    let addresses =
        Delta::NONE.addr(from.source().addr, source.addr).addr(from.destination().addr, destination.addr);
    match packet.family {
        Family::V4 => {
            let field: Be16 = frame.load(ETHERNET + 10)?;
            frame.store(ETHERNET + 10, addresses.apply(field))?;
            frame.store(ETHERNET + 12, [source.addr.last_word(), destination.addr.last_word()])?;
        }
        Family::V6 => frame.store(ETHERNET + 8, [source.addr, destination.addr])?,
    }
    frame.store(packet.l4, [source.port, destination.port])?;
    let ports =
        Delta::NONE.word(from.source().port, source.port).word(from.destination().port, destination.port);
    frame.patch_l4(&L4Patch {
        offset: packet.l4 + checksum_field(from.protocol()),
        addresses,
        ports,
        udp: from.protocol() == Protocol::UDP,
        v6: packet.family == Family::V6,
    })
}
