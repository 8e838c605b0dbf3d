//! What is known of names: what user space writes and answers are made of.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::conntrack::Time;
use crate::wire::{Addr, Be32, Family};

/// How many bytes a key has room for. Longer names are not known here.
const KEY: usize = 64;
/// How many bytes a zone's name may have on the wire.
const ZONE: usize = 64;
/// How many labels it may have.
const ZONE_LABELS: usize = 5;
/// How many addresses of each family an entry has room for.
pub const ADDRESSES: usize = 6;

/// Four bytes of a name with their letters in lower case, by which names are compared (RFC 4343). Lengths of labels
/// are at most 63, less than any letter: the bytes may be any of a name.
#[inline(always)]
pub const fn fold(word: u32) -> u32 {
    const EACH: u32 = 0x0101_0101;
    let low = word & (0x7f * EACH);
    let above_z = low + (0x7f - b'Z' as u32) * EACH;
    let from_a = low + (0x80 - b'A' as u32) * EACH;
    // The top bit of each byte that is a capital letter.
    let capital = (from_a ^ above_z) & !word & (0x80 * EACH);
    word | capital >> 2
}

/// Writes `labels` to `bytes` as on the wire, folded; how many bytes they take. `None` if they are no labels, or do not
/// fit.
fn write_labels<'a>(labels: impl IntoIterator<Item = &'a str>, bytes: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    for label in labels {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        *bytes.get_mut(at)? = length;
        let place = bytes.get_mut(at + 1..at + 1 + label.len())?;
        place.copy_from_slice(label.as_bytes());
        place.make_ascii_lowercase();
        at += 1 + label.len();
    }
    Some(at)
}

/// The name of a Service, or of a namespace, below `svc.<zone>`: the key of the table of names. Its labels as on the
/// wire, folded, and zeroes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct NameKey([u32; KEY / 4]);

impl NameKey {
    /// How many bytes of labels it has room for.
    pub const ROOM: usize = KEY;

    /// The key of these labels: a Service's and its namespace's, or a namespace's. `None` if they are too long for one.
    pub fn new<'a>(labels: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut bytes = [0; KEY];
        write_labels(labels, &mut bytes)?;
        Some(Self(transmute!(bytes)))
    }

    /// The key made of these words of a name.
    #[inline(always)]
    pub(super) const fn from_words(words: [u32; KEY / 4]) -> Self {
        Self(words)
    }
}

/// What is known of the name of a Service, or of a namespace, which has no addresses: the value of the table of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NameEntry {
    /// Its IPv6 addresses, as many as `v6_count` says.
    pub(super) v6: [Addr; ADDRESSES],
    /// Its IPv4 addresses likewise.
    pub(super) v4: [Be32; ADDRESSES],
    pub(super) v4_count: u8,
    pub(super) v6_count: u8,
    zero: [u8; 6],
}

impl NameEntry {
    /// The count of addresses that are not all known here.
    pub(super) const UNKNOWN: u8 = u8::MAX;

    /// The entry of a name that there is, and of which no more is known here.
    pub const LEFT_ALONE: Self = Self {
        v6: [Addr::v4(Be32::new(0)); ADDRESSES],
        v4: [Be32::new(0); ADDRESSES],
        v4_count: Self::UNKNOWN,
        v6_count: Self::UNKNOWN,
        zero: [0; 6],
    };

    /// The entry of a name with these addresses. Those of a family are not known here if they are more than
    /// [`ADDRESSES`].
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut entry = Self { v4_count: 0, v6_count: 0, ..Self::LEFT_ALONE };
        for address in addresses.into_iter().map(Addr::from) {
            match address.family() {
                Family::V4 => push(&mut entry.v4, &mut entry.v4_count, address.last_word()),
                Family::V6 => push(&mut entry.v6, &mut entry.v6_count, address),
            }
        }
        entry
    }

    /// Whether no more is known of it than that there is such a name.
    #[inline(always)]
    pub const fn is_left_alone(&self) -> bool {
        self.v4_count == Self::UNKNOWN && self.v6_count == Self::UNKNOWN
    }
}

fn push<A>(addresses: &mut [A; ADDRESSES], count: &mut u8, address: A) {
    match addresses.get_mut(usize::from(*count)) {
        Some(place) => {
            *place = address;
            *count += 1;
        }
        None => *count = NameEntry::UNKNOWN,
    }
}

/// The cluster's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Zone {
    /// Its name as on the wire, folded, and zeroes.
    pub(super) name: [u32; ZONE / 4],
    /// How many bytes the name takes, with the root's.
    pub(super) length: u32,
    /// How many labels it has.
    pub(super) labels: u32,
    /// How long resolvers may remember what they are told of its names, in seconds.
    pub(super) ttl: Be32,
}

impl Zone {
    /// No zone: nothing belongs to it.
    pub const NONE: Self = Self { name: [0; ZONE / 4], length: 0, labels: 0, ttl: Be32::new(0) };

    /// The zone of this name, with a final dot or without, whose names may be remembered for `ttl` seconds. `None` if
    /// it has no name, or one of more than 64 bytes or five labels.
    pub fn new(name: &str, ttl: u32) -> Option<Self> {
        let labels = || name.strip_suffix('.').unwrap_or(name).split('.');
        let mut bytes = [0; ZONE];
        // The last byte is that of the root.
        let length = write_labels(labels(), bytes.get_mut(..ZONE - 1)?)? + 1;
        let count = labels().count();
        (count <= ZONE_LABELS).then_some(Self {
            name: transmute!(bytes),
            length: u32::try_from(length).ok()?,
            labels: u32::try_from(count).ok()?,
            ttl: Be32::new(ttl),
        })
    }
}

/// For how long the table of names is known to hold all that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Freshness {
    /// Until then. An agent that follows the cluster's Services puts it off again and again; once it does not, names
    /// that are not known here are left to the DNS that they are asked of.
    pub until: Time,
    /// When they last changed, in seconds since 1970: the serial of the SOA.
    pub serial: Be32,
}

impl Freshness {
    #[inline(always)]
    pub(super) const fn holds(self, now: Time) -> bool {
        now.0 < self.until.0
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn letters_are_folded_and_nothing_else(bytes: [u8; 4]) {
            let folded = fold(u32::from_le_bytes(bytes)).to_le_bytes();
            prop_assert_eq!(folded, bytes.map(|byte| byte.to_ascii_lowercase()));
        }
    }

    #[test]
    fn a_key_is_labels_as_on_the_wire() {
        let key = NameKey::new(["Kubernetes", "default"]).unwrap();
        assert_eq!(&key.as_bytes()[..19], b"\x0akubernetes\x07default");
        assert!(key.as_bytes()[19..].iter().all(|byte| *byte == 0));
        let long = "a".repeat(62 - 7);
        assert!(NameKey::new([long.as_str(), "default"]).is_some());
        assert_eq!(NameKey::new([format!("{long}a").as_str(), "default"]), None);
        assert_eq!(NameKey::new(["", "default"]), None);
    }

    #[test]
    fn a_zone_is_labels_and_the_root() {
        let zone = Zone::new("Cluster.local.", 5).unwrap();
        assert_eq!(&zone.as_bytes()[..15], b"\x07cluster\x05local\0");
        assert_eq!((zone.length, zone.labels, zone.ttl.get()), (15, 2, 5));
        assert_eq!(Zone::new("cluster.local", 5), Some(zone));
        for none in ["", ".", "a..b", "a.b.c.d.e.f"] {
            assert_eq!(Zone::new(none, 5), None, "{none:?}");
        }
        let longest = format!("{}.{}", "a".repeat(40), "b".repeat(21));
        assert_eq!(Zone::new(&longest, 5).unwrap().length, 64);
        assert_eq!(Zone::new(&format!("{longest}b"), 5), None);
    }

    #[test]
    fn an_entry_has_as_many_addresses_as_there_is_room_for() {
        let v4 = |n| IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let entry = NameEntry::new((1..=6).map(v4).chain([v6]));
        assert_eq!((entry.v4_count, entry.v6_count, entry.is_left_alone()), (6, 1, false));
        assert_eq!(entry.v4[5], Be32::new(0x0a00_0006));
        let entry = NameEntry::new((1..=9).map(v4));
        assert_eq!((entry.v4_count, entry.v6_count), (NameEntry::UNKNOWN, 0));
        assert!(!entry.is_left_alone() && NameEntry::LEFT_ALONE.is_left_alone());
    }
}
