//! Fragments of packets.
//!
//! Only the first fragment carries ports. It is treated as a whole packet, and its ports are remembered
//! under what it shares with the later ones, which then follow it. Their bytes do not matter to any
//! checksum but those that the first one carries and that are mended there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::Delta;
use crate::conntrack::{Time, Tuple};
use crate::frame::Frame;
use crate::ip::{self, Want, write_addresses};
use crate::packet::{self, ETHERNET, Packet};
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Be32, Family, Protocol};

/// How long a receiver waits for the rest of a packet (RFC 8200, 4.5; RFC 1122, 3.3.2); an identification
/// may name another packet after that.
const LIFETIME: u32 = Time::seconds(60);

/// What the fragments of one packet share: the key of the fragment table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    source: Addr,
    destination: Addr,
    id: Be32,
    protocol: Protocol,
    zero: [u8; 3],
}

impl FragmentKey {
    /// What stands for the protocol in IPv6, where fragments of one packet may differ in it (RFC 8200, 4.5).
    const IPV6: Protocol = Protocol(44);

    /// Where the packet comes from.
    #[inline(always)]
    pub const fn source(&self) -> Addr {
        self.source
    }

    /// Where the packet goes.
    #[inline(always)]
    pub const fn destination(&self) -> Addr {
        self.destination
    }

    /// The tuple of the packet that a later fragment is of, by what its first one left in the fragment
    /// table.
    ///
    /// # Errors
    /// [`Reason::FragmentAlone`] if that is nothing: the first fragment is still on its way, or was none of a
    /// flow. The fragment then passes as it is.
    #[inline(always)]
    pub fn tuple(&self, ports: Option<&FragmentPorts>, now: Time) -> Result<Tuple, Reason> {
        match ports {
            Some(ports) if ports.protocol != Protocol(0) && now.since(ports.seen) <= LIFETIME => {
                Ok(Tuple::new(self.source, ports.source, self.destination, ports.destination, ports.protocol))
            }
            _ => Err(Reason::FragmentAlone),
        }
    }
}

/// How often the later fragments of a packet that have come before the first one are sent through the node's
/// ingress again, at the most. Fragments that overtake others do so by little: those of one packet leave their sender at once.
const WAITS: u8 = 200;

/// What later fragments need to know of the first one, or that one of them waits for it: the value of the
/// fragment table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentPorts {
    source: Be16,
    destination: Be16,
    seen: Time,
    /// No protocol at all while a fragment waits.
    protocol: Protocol,
    /// How often it has.
    waits: u8,
    zero: [u8; 2],
}

impl FragmentPorts {
    /// No ports yet: a fragment that has come first waits, once more than `before` says.
    #[inline(always)]
    pub fn waiting(before: Option<&Self>, now: Time) -> Self {
        let waits =
            before.filter(|before| now.since(before.seen) <= LIFETIME).map_or(0, |before| before.waits);
        Self {
            source: Be16::new(0),
            destination: Be16::new(0),
            seen: now,
            protocol: Protocol(0),
            waits: waits.saturating_add(1),
            zero: [0; 2],
        }
    }

    /// Whether that has been in vain.
    #[inline(always)]
    pub const fn has_waited(&self) -> bool {
        self.waits > WAITS
    }

    /// Whether a fragment waits here for the first time.
    #[inline(always)]
    pub const fn begins_to_wait(&self) -> bool {
        self.waits == 1
    }

    /// The ports of a first fragment as it came, seen at `now`.
    #[inline(always)]
    pub const fn new(tuple: &Tuple, now: Time) -> Self {
        Self {
            source: tuple.source().port,
            destination: tuple.destination().port,
            seen: now,
            protocol: tuple.protocol(),
            waits: 0,
            zero: [0; 2],
        }
    }
}

/// A fragment, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// None at all: IPv6 packets may have a fragment header that says so (RFC 6946).
    Whole(Packet),
    /// The first one, to be treated as a whole packet.
    First(Packet, FragmentKey),
    /// A later one, which has no ports.
    Later(FragmentKey),
}

/// Reads a fragment. For frames that [`packet::parse`] has called one.
///
/// # Errors
/// The [`Reason`] why it is not of a TCP or UDP packet; the first fragment of one has to hold the header
/// (RFC 7112, 5). A later one over IPv6 may be of any.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Fragment, Reason> {
    let ip = ip::read(frame, Want::Any)?;
    let Some(part) = ip.fragment else { return packet::parse_l4(frame, &ip).map(Fragment::Whole) };
    if ip.protocol == Protocol::SCTP {
        // Its checksum changes with its ports by the length of the whole packet, which no fragment tells.
        return Err(Reason::SctpFragment);
    }
    let protocol = match ip.family {
        Family::V4 => ip.protocol,
        Family::V6 => FragmentKey::IPV6,
    };
    let key =
        FragmentKey { source: ip.source, destination: ip.destination, id: part.id, protocol, zero: [0; 3] };
    if part.first {
        return Ok(Fragment::First(packet::parse_l4(frame, &ip)?, key));
    }
    match protocol {
        Protocol::TCP | Protocol::UDP | FragmentKey::IPV6 => Ok(Fragment::Later(key)),
        _ => Err(Reason::OtherProtocol),
    }
}

/// Writes the addresses of `to`, the tuple that the packet gets, into the later fragment that `key` was
/// parsed from. `None` if the frame does not hold what was parsed.
#[inline(always)]
pub fn rewrite_addresses<F: Frame>(frame: &mut F, key: &FragmentKey, to: &Tuple) -> Option<()> {
    let (source, destination) = (to.source().addr, to.destination().addr);
    let change = Delta::NONE.addr(key.source, source).addr(key.destination, destination);
    let family = key.source.family();
    write_addresses(frame, ETHERNET, family, [source, destination], change)?;
    if family == Family::V6 {
        frame.note_change(change);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_ends_with_its_lifetime() {
        let tuple = Tuple::new(Addr::default(), Be16::new(1), Addr::default(), Be16::new(2), Protocol::UDP);
        let key = FragmentKey {
            source: Addr::default(),
            destination: Addr::default(),
            id: Be32::new(7),
            protocol: Protocol::UDP,
            zero: [0; 3],
        };
        let ports = FragmentPorts::new(&tuple, Time(1000));
        assert_eq!(key.tuple(Some(&ports), Time(1000 + LIFETIME)), Ok(tuple));
        assert_eq!(key.tuple(Some(&ports), Time(1001 + LIFETIME)), Err(Reason::FragmentAlone));
        assert_eq!(key.tuple(None, Time(1000)), Err(Reason::FragmentAlone));
    }

    #[test]
    fn keys_and_values_are_small() {
        assert_eq!((size_of::<FragmentKey>(), size_of::<FragmentPorts>()), (40, 12));
    }
}
