//! Answers: writing them in the place of queries.

use crate::checksum::{Delta, Sum};
use crate::frame::{Frame, L4Patch};
use crate::packet::ETHERNET;
use crate::route::turn_around;
use crate::verdict::{Reason, Verdict};
use crate::wire::{Addr, Be16, Be32, Family};

use super::name::{ADDRESSES, Zone};
use super::query::{AUTHORITATIVE, CHECKING_DISABLED, OPT, Query, RECURSION_DESIRED, RESPONSE, UDP};

/// What is denied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Denial {
    /// That there is such a name.
    NoName,
    /// That it has what is asked for.
    NoData,
}

/// What all answers have in common.
struct Answer {
    /// The response code (RFC 1035, 4.1.1).
    code: u16,
    /// How many records of an answer there are, and how many of an authority.
    counts: [u16; 2],
    /// How many bytes those take: an even number.
    length: usize,
    reason: Reason,
}

/// An address in a record.
pub(super) trait Address: Copy {
    /// Its type, and how many bytes it takes.
    const TYPE: u16;
    const LENGTH: u16;

    fn sum(self) -> Sum;
    fn store<F: Frame>(self, frame: &mut F, at: usize) -> Option<()>;
}

impl Address for Be32 {
    const TYPE: u16 = 1;
    const LENGTH: u16 = 4;

    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.double_word(self.raw())
    }

    #[inline(always)]
    fn store<F: Frame>(self, frame: &mut F, at: usize) -> Option<()> {
        frame.store(at, self)
    }
}

impl Address for Addr {
    const TYPE: u16 = 28;
    const LENGTH: u16 = 16;

    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.addr(self)
    }

    #[inline(always)]
    fn store<F: Frame>(self, frame: &mut F, at: usize) -> Option<()> {
        frame.store(at, self)
    }
}

/// Makes of a query the answer with `count` of `addresses`, of which that of index `first` comes first. An error is
/// why not, and the frame is as it was.
#[inline(always)]
pub(super) fn addresses<F: Frame, A: Address>(
    frame: &mut F,
    query: &Query,
    zone: &Zone,
    addresses: &[A; ADDRESSES],
    count: u8,
    first: u8,
) -> Result<Verdict, Reason> {
    const HEAD: usize = 12;
    /// A pointer to the name in the question (RFC 1035, 4.1.4).
    const NAME: u32 = 0xc00c;
    const INTERNET: u32 = 1;
    let ttl = zone.ttl.get();
    let head = [
        Be32::new(NAME << 16 | u32::from(A::TYPE)),
        Be32::new(INTERNET << 16 | ttl >> 16),
        Be32::new(ttl << 16 | u32::from(A::LENGTH)),
    ];
    let size = HEAD + usize::from(A::LENGTH);
    let answer = Answer {
        code: 0,
        counts: [u16::from(count), 0],
        length: size * usize::from(count),
        reason: Reason::DnsAnswered,
    };
    write(frame, query, &answer, |frame| {
        let mut sum = Sum::ZERO;
        for (i, address) in addresses.iter().enumerate() {
            if i >= usize::from(count) {
                break;
            }
            // Those from `first` on come before the others.
            let behind = i + usize::from(count) - usize::from(first);
            let place = if i < usize::from(first) { behind } else { behind - usize::from(count) };
            let at = frame.place(query.end() + place * size)?;
            frame.store(at, head)?;
            address.store(frame, at + HEAD)?;
            sum = sum_of(&head, sum).and(address.sum());
        }
        Some(sum)
    })
}

/// Makes of a query its denial, with the zone's SOA (RFC 2308, 2). An error is why not, and the frame is as it was.
#[inline(always)]
pub(super) fn denial<F: Frame>(
    frame: &mut F,
    query: &Query,
    zone: &Zone,
    denial: Denial,
    serial: Be32,
) -> Result<Verdict, Reason> {
    const NAME_ERROR: u16 = 3;
    const SOA: u32 = 6;
    const INTERNET: u32 = 1;
    /// Resolvers need not remember for longer that there is no such name.
    const MAX_TTL: u32 = 300;
    const REFRESH: u32 = 7200;
    const RETRY: u32 = 1800;
    const EXPIRE: u32 = 86_400;
    const LENGTH: usize = 54;
    const DATA: u32 = 42;

    let (minimum, serial) = (zone.ttl.get(), serial.get());
    let ttl = if minimum < MAX_TTL { minimum } else { MAX_TTL };
    let apex = 0xc000 | query.zone(zone);
    let soa = [
        Be32::new(apex << 16 | SOA),
        Be32::new(INTERNET << 16 | ttl >> 16),
        Be32::new(ttl << 16 | DATA),
        // `ns.dns` and `hostmaster`, each in the zone.
        Be32::new(u32::from_be_bytes(*b"\x02ns\x03")),
        Be32::new(u32::from_be_bytes(*b"dns\0") | apex >> 8),
        Be32::new(apex << 24 | u32::from_be_bytes(*b"\0\x0aho")),
        Be32::new(u32::from_be_bytes(*b"stma")),
        Be32::new(u32::from_be_bytes(*b"ster")),
        Be32::new(apex << 16 | serial >> 16),
        Be32::new(serial << 16 | REFRESH >> 16),
        Be32::new(REFRESH << 16 | RETRY >> 16),
        Be32::new(RETRY << 16 | EXPIRE >> 16),
        Be32::new(EXPIRE << 16 | minimum >> 16),
    ];
    let [_, last] = halves(minimum);
    let (code, reason) = match denial {
        Denial::NoName => (NAME_ERROR, Reason::DnsNoName),
        Denial::NoData => (0, Reason::DnsNoData),
    };
    write(frame, query, &Answer { code, counts: [0, 1], length: LENGTH, reason }, |frame| {
        let at = frame.place(query.end())?;
        frame.store(at, soa)?;
        frame.store(at + size_of_val(&soa), last)?;
        Some(sum_of(&soa, Sum::ZERO).word(last))
    })
}

/// Makes of a query an answer whose records `write_records` writes behind the question; it returns what they sum up to
/// if they begin at an even place. An error is why not, and the frame is as it was.
#[inline(always)]
fn write<F: Frame>(
    frame: &mut F,
    query: &Query,
    answer: &Answer,
    write_records: impl FnOnce(&mut F) -> Option<Sum>,
) -> Result<Verdict, Reason> {
    let opt = query.opt.map_or(0, |_| OPT);
    let end = query.end() + answer.length + opt;
    frame.resize(end).ok_or(Reason::DnsUnusual)?;
    let written = write_all(frame, query, answer, end, write_records);
    // What cannot be written is no longer a query either.
    Ok(written.map_or(Verdict::Drop(Reason::Truncated), |()| Verdict::Return(answer.reason)))
}

#[inline(always)]
fn write_all<F: Frame>(
    frame: &mut F,
    query: &Query,
    answer: &Answer,
    end: usize,
    write_records: impl FnOnce(&mut F) -> Option<Sum>,
) -> Option<()> {
    let (l4, message) = (query.l4(), query.l4() + UDP);
    let sum = write_records(frame)?;
    // A question of odd length has the records' bytes change places in the words of the sum. The OPT record begins
    // an even number of bytes behind where it was: it changes nothing.
    let sum = if query.end() % 2 == 1 { sum.swapped() } else { sum };
    if let Some(opt) = query.opt {
        let at = frame.place(query.end() + answer.length)?;
        frame.store(at, opt)?;
    }
    let kept = query.flags.get() & (RECURSION_DESIRED | CHECKING_DISABLED);
    let flags = Be16::new(RESPONSE | AUTHORITATIVE | kept | answer.code);
    let [answers, authorities] = answer.counts.map(Be16::new);
    frame.store(message + 2, [flags, Be16::new(1), answers, authorities])?;
    let [source, destination]: [Be16; 2] = frame.load(l4)?;
    let old: Be16 = frame.load(l4 + 4)?;
    let new = be16(end - l4);
    frame.store(l4, [destination, source, new])?;
    write_ip(frame, query.family, end)?;
    turn_around(frame)?;
    let length = Delta::NONE.word(old, new);
    frame.patch_l4(&L4Patch {
        offset: l4 + 6,
        addresses: length,
        ports: length
            .word(query.flags, flags)
            .word(Be16::default(), answers)
            .word(Be16::default(), authorities)
            .sum(sum),
        udp: true,
        v6: query.family == Family::V6,
    })
}

/// Has the IP header say that the packet goes back and ends at `end`.
#[inline(always)]
fn write_ip<F: Frame>(frame: &mut F, family: Family, end: usize) -> Option<()> {
    match family {
        Family::V4 => {
            let [old, checksum]: [Be16; 2] = [frame.load(ETHERNET + 2)?, frame.load(ETHERNET + 10)?];
            let new = be16(end - ETHERNET);
            frame.store(ETHERNET + 2, new)?;
            frame.store(ETHERNET + 10, Delta::NONE.word(old, new).apply(checksum))?;
            let [source, destination]: [Be32; 2] = frame.load(ETHERNET + 12)?;
            frame.store(ETHERNET + 12, [destination, source])
        }
        Family::V6 => {
            frame.store(ETHERNET + 4, be16(end - ETHERNET - crate::packet::IPV6))?;
            let [source, destination]: [Addr; 2] = frame.load(ETHERNET + 8)?;
            frame.store(ETHERNET + 8, [destination, source])
        }
    }
}

#[inline(always)]
fn sum_of<const N: usize>(words: &[Be32; N], start: Sum) -> Sum {
    words.iter().fold(start, |sum, word| sum.double_word(word.raw()))
}

/// The first and the last 16 bits of a number.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "each half is taken as 16 bits")]
const fn halves(number: u32) -> [Be16; 2] {
    [Be16::new((number >> 16) as u16), Be16::new(number as u16)]
}

/// The length of an answer as it stands in a header.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an answer is at most 400 bytes long")]
const fn be16(length: usize) -> Be16 {
    Be16::new(length as u16)
}
