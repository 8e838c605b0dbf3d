//! Numbers and addresses as they stand in a packet: in network byte order, by type.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16-bit number in network byte order.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// The number `host`, given in host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they stand in memory: what checksums are summed over.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The inverse of [`raw`](Self::raw).
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

/// A 32-bit number in network byte order.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be32 {
    /// The number `host`, given in host byte order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The four bytes as they stand in memory.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The inverse of [`raw`](Self::raw).
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

impl fmt::Debug for Be32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

/// An address family that podnet routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// An IPv4 or IPv6 address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// One form for both families makes one key type and one code path of them, and it is the form in which
/// an `AF_INET6` socket names an IPv4 peer.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Addr {
    high: u64,
    low: u64,
}

/// Bytes 8 to 11 of an IPv4-mapped address, as they stand in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// The 64 bits whose first four bytes in memory are `first` and whose last four are `last`.
#[inline(always)]
const fn join(first: u32, last: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (last as u64) << 32 | first as u64
    } else {
        (first as u64) << 32 | last as u64
    }
}

/// The inverse of [`join`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "each half is taken as 32 bits")]
const fn split(word: u64) -> (u32, u32) {
    let (low, high) = (word as u32, (word >> 32) as u32);
    if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
}

impl Addr {
    /// The IPv4 address that stands in a packet as `address`.
    #[inline(always)]
    pub const fn v4(address: Be32) -> Self {
        Self { high: 0, low: join(MAPPED, address.raw()) }
    }

    /// The address of the four words as they stand in a packet (or in a `struct bpf_sock_addr`).
    #[inline(always)]
    pub const fn from_words(words: [Be32; 4]) -> Self {
        Self { high: join(words[0].raw(), words[1].raw()), low: join(words[2].raw(), words[3].raw()) }
    }

    /// The address as four words; the last one is the IPv4 address of a mapped one.
    #[inline(always)]
    pub const fn words(self) -> [Be32; 4] {
        let (a, b) = split(self.high);
        let (c, d) = split(self.low);
        [Be32::from_raw(a), Be32::from_raw(b), Be32::from_raw(c), Be32::from_raw(d)]
    }

    /// The first and the last eight bytes, as they stand in memory.
    #[inline(always)]
    pub const fn halves(self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// The last word: the IPv4 address, if it is one.
    #[inline(always)]
    pub const fn last_word(self) -> Be32 {
        Be32::from_raw(split(self.low).1)
    }

    /// The family the address belongs to.
    #[inline(always)]
    pub const fn family(self) -> Family {
        if self.high == 0 && split(self.low).0 == MAPPED { Family::V4 } else { Family::V6 }
    }

    /// Whether the address can be that of one machine, other than the one that is asked: not of a group, nor of the
    /// machine itself (RFC 1122, 3.2.1.3; RFC 4291, 2.4).
    #[inline(always)]
    pub const fn is_of_one(self) -> bool {
        match self.family() {
            Family::V4 => {
                let first = self.last_word().get() >> 24;
                first != 0 && first != 127 && first < 224
            }
            Family::V6 => {
                let first = Be32::from_raw(split(self.high).0).get() >> 24;
                first != 0xff && self.high | self.low != 0
            }
        }
    }

    /// The address for people and for the standard library.
    pub const fn to_ip(self) -> IpAddr {
        match self.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(self.last_word().get())),
            Family::V6 => {
                let [a, b, c, d] = self.words();
                let bits = (a.get() as u128) << 96
                    | (b.get() as u128) << 64
                    | (c.get() as u128) << 32
                    | d.get() as u128;
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            }
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(Be32::new(v4.to_bits())),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                let word = |i: usize| {
                    Be32::from_raw(u32::from_ne_bytes([
                        octets[i],
                        octets[i + 1],
                        octets[i + 2],
                        octets[i + 3],
                    ]))
                };
                Self::from_words([word(0), word(4), word(8), word(12)])
            }
        }
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_ip(), f)
    }
}

/// An address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Be16,
}

impl From<core::net::SocketAddr> for Endpoint {
    fn from(socket: core::net::SocketAddr) -> Self {
        Self { addr: socket.ip().into(), port: Be16::new(socket.port()) }
    }
}

impl From<Endpoint> for core::net::SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.addr.to_ip(), endpoint.port.get())
    }
}

/// A transport protocol by its IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::ICMP => f.write_str("ICMP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::SCTP => f.write_str("SCTP"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_in_memory_in_network_order() {
        let v4 = Addr::from("10.96.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(v4.as_bytes(), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
        assert_eq!(v4.family(), Family::V4);
        let ip: IpAddr = "fd00:10:96::a".parse().unwrap();
        let v6 = Addr::from(ip);
        assert_eq!(v6.as_bytes(), "fd00:10:96::a".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(v6.family(), Family::V6);
        assert_eq!(v6.to_ip(), ip);
        assert_eq!(Addr::from_words(v6.words()), v6);
    }
}
