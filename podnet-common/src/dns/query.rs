//! Queries: reading those that can be answered here, and what they ask for.

use crate::frame::Frame;
use crate::ip;
use crate::packet::{ETHERNET, IPV4, IPV6, Packet};
use crate::verdict::Reason;
use crate::wire::{Be16, Family, Protocol};

use super::name::{NameKey, Zone, fold};

/// Length of a UDP header (RFC 768).
pub(super) const UDP: usize = 8;
/// Length of a DNS header (RFC 1035, 4.1.1).
pub(super) const HEADER: usize = 12;
/// What follows a name in a question: type and class.
const TYPE_CLASS: usize = 4;
/// How long a name may be on the wire, and how many labels it may have.
const MAX_NAME: usize = 128;
const MAX_LABELS: usize = 16;
/// Length of an OPT record without options (RFC 6891, 6.1.2).
pub(super) const OPT: usize = 11;
/// The longest query that is looked at.
const LONGEST: usize = HEADER + MAX_NAME + TYPE_CLASS + OPT;

/// The flags of a DNS header: that it is an answer, of whom the name is, and of the query those that it keeps
/// (RFC 1035, 4.1.1; RFC 4035, 3.2.2).
pub(super) const RESPONSE: u16 = 0x8000;
pub(super) const AUTHORITATIVE: u16 = 0x0400;
pub(super) const RECURSION_DESIRED: u16 = 0x0100;
pub(super) const CHECKING_DISABLED: u16 = 0x0010;
/// The answer may be authenticated (RFC 6840, 5.7).
const AUTHENTIC_DATA: u16 = 0x0020;

const INTERNET: Be16 = Be16::new(1);

/// What is asked for of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// Ports (RFC 2782).
    Srv,
    /// What Services have none of: `CNAME`, `MX`, `TXT`, `SVCB`, `HTTPS`.
    Other,
}

impl Type {
    #[inline(always)]
    const fn from_wire(number: Be16) -> Option<Self> {
        Some(match number.get() {
            1 => Self::A,
            28 => Self::Aaaa,
            33 => Self::Srv,
            5 | 15 | 16 | 64 | 65 => Self::Other,
            _ => return None,
        })
    }
}

/// Where in the cluster's domain a name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It would be a Service's, or a namespace's.
    Key(NameKey),
    /// It would belong to a Service with this name: that of an endpoint, or a port.
    Below(NameKey),
    /// No names are there.
    Nowhere,
}

/// A query that can be answered.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// What it asks for.
    pub kind: Type,
    pub(super) family: Family,
    /// The flags of its header.
    pub(super) flags: Be16,
    /// Its OPT record.
    pub(super) opt: Option<[u8; OPT]>,
    /// How long its name is, in bytes with the root's.
    name: usize,
    labels: u32,
    /// Where in the name the last eight labels start: the last one in the lowest byte.
    starts: u64,
}

impl Query {
    /// Reads a query that `packet` was parsed from.
    ///
    /// # Errors
    /// Why it is not one that can be answered here.
    #[inline(always)]
    pub fn parse<F: Frame>(frame: &mut F, packet: &Packet) -> Result<Self, Reason> {
        const UNUSUAL: Reason = Reason::DnsUnusual;
        const GROUP: u8 = 1;
        const QUESTION: [Be16; 3] = [Be16::new(1), Be16::new(0), Be16::new(0)];
        const USUAL: u16 = RECURSION_DESIRED | AUTHENTIC_DATA | CHECKING_DISABLED;

        let (family, source) = (packet.family, packet.tuple.source());
        // The kernel's verifier cannot tell that a single byte is there, here and below.
        let [first, _]: [u8; 2] = frame.load(0).ok_or(UNUSUAL)?;
        let to_one = first & GROUP == 0 && source.addr.is_of_one() && source.port != Be16::default();
        // IP options and extension headers would have to be left out of the answer.
        if packet.tuple.protocol() != Protocol::UDP || packet.l4 != l4(family) || !to_one {
            return Err(UNUSUAL);
        }
        let message = l4(family) + UDP;
        let end = ip::end(frame, family).ok_or(UNUSUAL)?;
        if end > message + LONGEST {
            return Err(UNUSUAL);
        }
        frame.gather(end);
        let length: Be16 = frame.load(l4(family) + 4).ok_or(UNUSUAL)?;
        if l4(family) + usize::from(length.get()) != end {
            return Err(UNUSUAL);
        }
        let [flags, questions, answers, authorities, additional]: [Be16; 5] =
            frame.load(message + 2).ok_or(UNUSUAL)?;
        if flags.get() & !USUAL != 0 || [questions, answers, authorities] != QUESTION || additional.get() > 1
        {
            return Err(UNUSUAL);
        }
        let (mut at, mut labels, mut starts, mut ended) = (0, 0, 0, false);
        for _ in 0..=MAX_LABELS {
            let [length, _]: [u8; 2] = load(frame, message + HEADER + at).ok_or(UNUSUAL)?;
            if length == 0 {
                ended = true;
                break;
            }
            starts = starts << 8 | at as u64;
            labels += 1;
            at += 1 + usize::from(length);
            // A length of more than 63 is a pointer, or means something else (RFC 1035, 4.1.4; RFC 6891, 5).
            if length > 63 || at >= MAX_NAME {
                return Err(UNUSUAL);
            }
        }
        let name = at + 1;
        let [kind, class]: [Be16; 2] = load(frame, message + HEADER + name).ok_or(UNUSUAL)?;
        if !ended || class != INTERNET {
            return Err(UNUSUAL);
        }
        let question = message + HEADER + name + TYPE_CLASS;
        let opt = if additional.get() == 1 {
            let opt = load(frame, question).ok_or(UNUSUAL)?;
            if !is_plain(&opt) {
                return Err(UNUSUAL);
            }
            Some(opt)
        } else {
            None
        };
        if question + opt.map_or(0, |_| OPT) != end {
            return Err(UNUSUAL);
        }
        let kind = Type::from_wire(kind).ok_or(Reason::DnsType)?;
        Ok(Self { kind, family, flags, opt, name, labels, starts })
    }

    /// Where the L4 header stands in the frame.
    #[inline(always)]
    pub(super) const fn l4(&self) -> usize {
        l4(self.family)
    }

    /// Where in the frame the question ends.
    #[inline(always)]
    pub(super) const fn end(&self) -> usize {
        self.at(self.name + TYPE_CLASS)
    }

    /// Where in the message the zone's name stands, which the name ends with.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a name is at most 128 bytes long")]
    pub(super) const fn zone(&self, zone: &Zone) -> u32 {
        (HEADER + self.name) as u32 - zone.length
    }

    /// Where in the frame the byte `at` of the name stands.
    #[inline(always)]
    const fn at(&self, at: usize) -> usize {
        self.l4() + UDP + HEADER + at
    }

    /// Where in the name a label starts, of the last eight: 0 for the last one.
    #[inline(always)]
    const fn start(&self, label: u32) -> usize {
        (self.starts >> (8 * (label & 7)) & 0xff) as usize
    }

    /// Four bytes of the name, folded, in little-endian order; zeroes in place of all but the first `left`.
    #[inline(always)]
    fn word<F: Frame>(&self, frame: &F, at: usize, left: usize) -> Option<u32> {
        let word = fold(u32::from_le(load(frame, self.at(at))?));
        Some(if left < 4 { word & ((1 << (8 * left)) - 1) } else { word })
    }

    /// Where the name stands in `zone`.
    ///
    /// # Errors
    /// Why that is not known.
    #[inline(always)]
    pub fn place<F: Frame>(&self, frame: &F, zone: &Zone) -> Result<Place, Reason> {
        const SVC: u32 = u32::from_le_bytes(*b"\x03svc");
        const POD: u32 = u32::from_le_bytes(*b"\x03pod");
        const DNS: u32 = u32::from_le_bytes(*b"\x03dns");
        /// Of `dns-version`.
        const DNS_VERSION: u32 = u32::from_le_bytes(*b"\x0bdns");

        let length = zone.length as usize;
        if zone.labels == 0 || self.labels <= zone.labels {
            return Err(Reason::DnsOtherZone);
        }
        let apex = self.start(zone.labels - 1);
        if apex + length != self.name {
            return Err(Reason::DnsOtherZone);
        }
        for (i, name) in zone.name.iter().enumerate() {
            if 4 * i >= length {
                break;
            }
            // The type and the class are behind it: there are four bytes.
            if self.word(frame, apex + 4 * i, length - 4 * i).ok_or(Reason::DnsUnusual)? != *name {
                return Err(Reason::DnsOtherZone);
            }
        }
        let top = self.start(zone.labels);
        match self.word(frame, top, 4).ok_or(Reason::DnsUnusual)? {
            SVC => {}
            POD | DNS | DNS_VERSION => return Err(Reason::DnsUnknown),
            _ => return Ok(Place::Nowhere),
        }
        let below = self.labels - zone.labels;
        let first = match below {
            // `svc` itself.
            ..2 => return Err(Reason::DnsUnknown),
            2 => self.start(zone.labels + 1),
            3.. => self.start(zone.labels + 2),
        };
        let length = top - first;
        if length > NameKey::ROOM {
            return Err(Reason::DnsUnknown);
        }
        let mut words = [0; NameKey::ROOM / 4];
        for (i, word) in words.iter_mut().enumerate() {
            if 4 * i >= length {
                break;
            }
            *word = self.word(frame, first + 4 * i, length - 4 * i).ok_or(Reason::DnsUnusual)?;
        }
        let key = NameKey::from_words(words);
        Ok(if below > 3 { Place::Below(key) } else { Place::Key(key) })
    }
}

/// Where an L4 header stands behind an IP header without options or extensions.
#[inline(always)]
const fn l4(family: Family) -> usize {
    ETHERNET
        + match family {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        }
}

#[inline(always)]
fn load<F: Frame, T: zerocopy::FromBytes + zerocopy::Immutable + Copy>(frame: &F, at: usize) -> Option<T> {
    frame.load(frame.place(at)?)
}

/// Whether a record is an OPT of version 0 without options, and says nothing but how long an answer may be, and that
/// signatures are welcome (RFC 6891, 6.1; RFC 3225).
#[inline(always)]
const fn is_plain(opt: &[u8; OPT]) -> bool {
    const SIGNATURES: u8 = 0x80;
    matches!(*opt, [0, 0, 41, _, _, 0, 0, flags, 0, 0, 0] if flags & !SIGNATURES == 0)
}
