//! Flows: what is remembered of a connection, and for how long.
//!
//! A flow is two entries of one table: `original tuple -> translated tuple`, and
//! `reply of the translated tuple -> reply of the original tuple`. Each entry holds the whole tuple its
//! packets get, so translating forward and then back is the identity by construction, whatever of source
//! and destination is rewritten.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::frame::Mac;
use crate::packet::TcpFlags;
use crate::service::BackendRef;
use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// Source, destination and protocol of a packet: the key of the flow table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tuple {
    source: Addr,
    destination: Addr,
    source_port: Be16,
    destination_port: Be16,
    protocol: Protocol,
    zero: [u8; 3],
}

impl Tuple {
    /// A tuple of its parts.
    #[inline(always)]
    pub const fn new(
        source: Addr,
        source_port: Be16,
        destination: Addr,
        destination_port: Be16,
        protocol: Protocol,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol, zero: [0; 3] }
    }

    /// A tuple of its two ends.
    #[inline(always)]
    pub const fn between(source: Endpoint, destination: Endpoint, protocol: Protocol) -> Self {
        Self::new(source.addr, source.port, destination.addr, destination.port, protocol)
    }

    /// Where the packet comes from.
    #[inline(always)]
    pub const fn source(&self) -> Endpoint {
        Endpoint { addr: self.source, port: self.source_port }
    }

    /// Where the packet goes.
    #[inline(always)]
    pub const fn destination(&self) -> Endpoint {
        Endpoint { addr: self.destination, port: self.destination_port }
    }

    /// Has the packet go to another port.
    #[inline(always)]
    pub(crate) const fn set_destination_port(&mut self, port: Be16) {
        self.destination_port = port;
    }

    /// The transport protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The tuple of a packet in answer to this one.
    #[inline(always)]
    #[must_use]
    pub const fn reply(&self) -> Self {
        Self::between(self.destination(), self.source(), self.protocol)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:?}:{:?} -> {:?}:{:?}",
            self.protocol, self.source, self.source_port, self.destination, self.destination_port
        )
    }
}

/// A moment of the kernel's monotonic clock, in units of 2^26 ns (67 ms): 32 bits last for nine years of
/// uptime, and a shift makes it of nanoseconds.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Time(pub u32);

impl Time {
    /// The moment `nanoseconds` after boot.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "nine years of uptime fit")]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self((nanoseconds >> 26) as u32)
    }

    /// How many units `seconds` are.
    #[expect(clippy::cast_possible_truncation, reason = "lifetimes are far below nine years")]
    pub const fn seconds(seconds: u32) -> u32 {
        ((seconds as u64 * 1_000_000_000) >> 26) as u32
    }

    /// How long ago `earlier` was, in units; 0 if another CPU has written a later moment.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment that was `units` ago.
    #[inline(always)]
    #[must_use]
    pub const fn before(self, units: u32) -> Self {
        Self(self.0.saturating_sub(units))
    }
}

/// Which of a flow's two directions an entry translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client, to a Service address.
    Forward,
    /// From the backend.
    Reply,
}

/// What a flow has been seen to do, and marks of its kind: one byte of bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct State(u8);

impl State {
    const REPLIED: u8 = 0x01;
    const CLIENT_FIN: u8 = 0x02;
    const BACKEND_FIN: u8 = 0x04;
    const CLIENT_RESET: u8 = 0x08;
    const BACKEND_RESET: u8 = 0x10;
    const RESET: u8 = Self::CLIENT_RESET | Self::BACKEND_RESET;
    /// Of UDP, where nobody has an end to tell: the client has sent again after an answer.
    const STREAM: u8 = Self::CLIENT_FIN;
    /// The entry is the reply's.
    const REPLY_ENTRY: u8 = 0x40;
    /// Client and backend are the same pod: packets go back out of the interface they came in by.
    const HAIRPIN: u8 = 0x80;
    /// The client's packets do not pass the node's stack.
    const AT_ONCE: u8 = 0x20;
    /// What both entries of a flow share.
    const PROGRESS: u8 = Self::REPLIED | Self::CLIENT_FIN | Self::BACKEND_FIN | Self::RESET;

    /// The state of a flow's forward entry before any packet of it has been seen.
    #[inline(always)]
    pub const fn new(hairpin: bool) -> Self {
        Self(if hairpin { Self::HAIRPIN } else { 0 })
    }

    /// The same state, for the other entry of the flow.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        Self(self.0 ^ Self::REPLY_ENTRY)
    }

    /// The direction that the entry translates.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        if self.0 & Self::REPLY_ENTRY == 0 { Direction::Forward } else { Direction::Reply }
    }

    /// Whether client and backend are the same pod.
    #[inline(always)]
    pub const fn hairpin(self) -> bool {
        self.0 & Self::HAIRPIN != 0
    }

    /// Whether an answer has reached the client: the flow's packets have then passed the node's stack both
    /// ways.
    #[inline(always)]
    pub const fn replied(self) -> bool {
        self.0 & Self::REPLIED != 0
    }

    /// The same state of a flow whose packets are sent to the backend at once.
    #[inline(always)]
    #[must_use]
    pub const fn sent_at_once(self) -> Self {
        Self(self.0 | Self::AT_ONCE)
    }

    /// Whether the client's packets are sent to the backend at once, past the node's stack: on a bridge their
    /// frames are addressed to another pod.
    #[inline(always)]
    pub const fn at_once(self) -> bool {
        self.0 & Self::AT_ONCE != 0
    }

    /// Whether the connection is over: closed by both sides, or reset.
    #[inline(always)]
    pub const fn closed(self) -> bool {
        const BOTH: u8 = State::CLIENT_FIN | State::BACKEND_FIN;
        self.0 & Self::RESET != 0 || self.0 & BOTH == BOTH
    }

    /// The state after a packet with `flags` has passed through this entry.
    #[inline(always)]
    #[must_use]
    pub fn after(self, flags: TcpFlags) -> Self {
        // Without branches, of which the kernel's verifier would follow each through all that comes after: what
        // the backend does has the bit above that of the same from the client.
        let backend = (self.0 / Self::REPLY_ENTRY) & 1;
        let bit = |flag: u8| ((flags.0 / flag) & 1) << backend;
        let reset = Self::CLIENT_RESET << backend;
        // Who has reset a connection has nothing more to say in it: the reset was not theirs, or it was not
        // accepted.
        let holds = (bit(TcpFlags::RST) | bit(TcpFlags::SYN)) * Self::CLIENT_RESET;
        // All that other protocols send has a flag.
        let stream = if flags.0 == 0 { self.0 & Self::REPLIED & !backend } else { 0 };
        Self(
            self.0 & (!reset | holds)
                | (bit(TcpFlags::RST) * Self::CLIENT_RESET)
                | (bit(TcpFlags::FIN) * Self::CLIENT_FIN)
                | (stream * Self::STREAM)
                | (backend * Self::REPLIED),
        )
    }

    /// This entry's state with what `other`, the other entry of the flow, has seen: of all that only a reset is
    /// ever taken back.
    #[inline(always)]
    #[must_use]
    pub const fn with_progress_of(self, other: Self) -> Self {
        Self(self.0 & !Self::RESET | other.0 & Self::PROGRESS)
    }

    /// How long the flow is kept without a packet, in units of [`Time`].
    ///
    /// One that was never answered or is over goes sooner than the kernel's 120 s: its tuple is free for another
    /// then. SCTP is kept as long as the kernel does (`nf_conntrack_sctp_timeout_established` 210 s).
    #[inline(always)]
    pub fn lifetime(self, protocol: Protocol, timeouts: &impl Timeouts) -> u32 {
        let replied = self.replied();
        match protocol {
            Protocol::TCP if self.closed() => Time::seconds(10),
            Protocol::TCP if self.0 & (Self::CLIENT_FIN | Self::BACKEND_FIN) != 0 => {
                timeouts.timeout(Timeout::TcpCloseWait)
            }
            Protocol::TCP if replied => timeouts.timeout(Timeout::TcpEstablished),
            Protocol::TCP => Time::seconds(60),
            Protocol::SCTP if self.closed() => Time::seconds(10),
            Protocol::SCTP if replied => Time::seconds(210),
            Protocol::SCTP => Time::seconds(30),
            _ if self.0 & Self::STREAM != 0 => timeouts.timeout(Timeout::UdpStream),
            _ => timeouts.timeout(Timeout::Udp),
        }
    }
}

/// A lifetime that is a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Of an open TCP connection.
    TcpEstablished,
    /// Of a TCP connection that one side has closed.
    TcpCloseWait,
    /// Of a UDP flow whose client has not sent again after an answer.
    Udp,
    /// Of one whose client has.
    UdpStream,
}

impl Timeout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TcpEstablished, Self::TcpCloseWait, Self::Udp, Self::UdpStream];

    /// How many units of [`Time`] it is if nobody has set it: as long as kube-proxy has the kernel keep TCP
    /// connections (`nf_conntrack_tcp_timeout_established`, `..._close_wait`), and as the kernel keeps UDP flows
    /// (`nf_conntrack_udp_timeout`, `..._stream`).
    pub const fn usual(self) -> u32 {
        Time::seconds(match self {
            Self::TcpEstablished => 86_400,
            Self::TcpCloseWait => 3600,
            Self::Udp => 30,
            Self::UdpStream => 120,
        })
    }
}

/// The door to lifetimes that are settings.
pub trait Timeouts {
    /// How many units of [`Time`] it is.
    fn timeout(&self, which: Timeout) -> u32;
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            (Self::REPLIED, "replied"),
            (Self::CLIENT_FIN, "client-fin"),
            (Self::BACKEND_FIN, "backend-fin"),
            (Self::CLIENT_RESET, "client-reset"),
            (Self::BACKEND_RESET, "backend-reset"),
            (Self::REPLY_ENTRY, "reply-entry"),
            (Self::HAIRPIN, "hairpin"),
            (Self::AT_ONCE, "at-once"),
        ];
        f.debug_set()
            .entries(named.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| name))
            .finish()
    }
}

/// Where a flow's client is, which says how its packets go on once they are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Way(u8);

impl Way {
    /// A pod of this node: all goes on through the node's stack, answers are translated at the client's
    /// interface.
    pub const POD: Self = Self(0);
    /// Outside of this node, and known to the backend by its own address: answers are translated as they
    /// leave the node.
    pub const OUTSIDE: Self = Self(1);
    /// The node itself: its packets are translated as they leave it and sent to the backend; answers come
    /// back in by the interface that the client's packets went out by.
    pub const NODE: Self = Self(2);
    /// The backend knows the client by this node's address: both directions are translated where they enter
    /// the node and sent on at once.
    pub const MASQUERADE: Self = Self(3);
}

/// One direction of a flow: the value of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    source: Addr,
    destination: Addr,
    source_port: Be16,
    destination_port: Be16,
    /// The backend that was chosen.
    pub backend: BackendRef,
    /// When a packet was last seen, give or take [`REFRESH`].
    pub seen: Time,
    /// The interface by which the client's packets come in, or go out if it is the node; 0: not known.
    pub client_interface: u32,
    /// The interface of this node behind which the backend is; 0: not known.
    pub backend_interface: u32,
    /// What the flow has been seen to do.
    pub state: State,
    /// Where the client is.
    pub way: Way,
    /// The MAC address of the client's interface, where the client is the node.
    pub client_mac: Mac,
}

/// How old [`Flow::seen`] may get before a packet writes it anew, in units of [`Time`]: about a second.
/// Established flows so cost one write a second, not one a packet.
pub const REFRESH: u32 = Time::seconds(1);

/// How old it may get before a packet of the other direction writes it anew. One of its own is to be faster while there
/// are both: that of a client asks then whether the flow still is its frontend's.
pub const REFRESH_BY_OTHER: u32 = Time::seconds(2);

impl Flow {
    /// An entry whose packets get the tuple `to`.
    #[inline(always)]
    pub const fn new(to: &Tuple, backend: BackendRef, state: State, now: Time) -> Self {
        Self {
            client_interface: 0,
            backend_interface: 0,
            way: Way::POD,
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            backend,
            seen: now,
            state,
            client_mac: [0; 6],
        }
    }

    /// The same entry of a flow whose client is on `way`, behind `interface`.
    #[inline(always)]
    #[must_use]
    pub const fn on(self, way: Way, interface: u32, mac: Mac) -> Self {
        Self { way, client_interface: interface, client_mac: mac, ..self }
    }

    /// The same entry in `state`.
    #[inline(always)]
    #[must_use]
    pub const fn seen_in(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// The other entry of this one's flow, where this one translates `from`.
    #[inline(always)]
    #[must_use]
    pub const fn other(&self, from: &Tuple, state: State, now: Time) -> Self {
        let other = from.reply();
        Self {
            source: other.source,
            destination: other.destination,
            source_port: other.source_port,
            destination_port: other.destination_port,
            seen: now,
            state: state.opposite(),
            ..*self
        }
    }

    /// The tuple that the entry's packets get.
    #[inline(always)]
    pub const fn to(&self, protocol: Protocol) -> Tuple {
        Tuple::new(self.source, self.source_port, self.destination, self.destination_port, protocol)
    }

    /// Whether the entry still holds at `now`.
    #[inline(always)]
    pub fn alive(&self, protocol: Protocol, now: Time, timeouts: &impl Timeouts) -> bool {
        now.since(self.seen) <= self.state.lifetime(protocol, timeouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags(TcpFlags::SYN);
    const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);
    const FIN: TcpFlags = TcpFlags(TcpFlags::FIN | TcpFlags::ACK);
    const RST: TcpFlags = TcpFlags(TcpFlags::RST);

    struct Usual;

    impl Timeouts for Usual {
        fn timeout(&self, which: Timeout) -> u32 {
            which.usual()
        }
    }

    #[test]
    fn a_tcp_connection_lives_by_what_was_seen_of_it() {
        let syn = State::new(false).after(SYN);
        assert_eq!(syn.lifetime(Protocol::TCP, &Usual), Time::seconds(60));
        let replied = syn.with_progress_of(syn.opposite().after(ACK));
        assert_eq!(replied.direction(), Direction::Forward);
        assert_eq!(replied.lifetime(Protocol::TCP, &Usual), Time::seconds(86_400));
        let half = replied.after(FIN);
        assert_eq!(half.lifetime(Protocol::TCP, &Usual), Time::seconds(3600));
        assert!(!half.closed());
        let closed = half.with_progress_of(half.opposite().after(FIN));
        assert!(closed.closed());
        assert!(replied.after(RST).closed());
        assert_eq!(closed.lifetime(Protocol::TCP, &Usual), Time::seconds(10));
    }

    #[test]
    fn a_reset_holds_until_who_sent_it_goes_on() {
        let open = State::new(false).after(SYN);
        let open = open.with_progress_of(open.opposite().after(ACK));
        let reset = open.after(RST);
        assert_eq!(reset.lifetime(Protocol::TCP, &Usual), Time::seconds(10));
        let reply = reset.opposite();
        assert!(reply.after(ACK).closed(), "what the other side has sent before it heard of it");
        assert!(reset.after(SYN).closed(), "another connection");
        assert!(reset.after(RST).closed());
        let on = reset.after(ACK);
        assert!(!on.closed());
        assert_eq!(on.lifetime(Protocol::TCP, &Usual), Time::seconds(86_400));
        assert!(!reply.with_progress_of(on).closed(), "both entries know");
        assert!(reply.after(RST).opposite().after(ACK).closed(), "the other side's holds");
    }

    #[test]
    fn a_udp_flow_lives_longer_once_its_client_has_sent_again() {
        let datagram = TcpFlags::default();
        let sent = State::new(false).after(datagram).after(datagram);
        assert_eq!(sent.lifetime(Protocol::UDP, &Usual), Time::seconds(30));
        let answered = sent.with_progress_of(sent.opposite().after(datagram));
        assert_eq!(answered.lifetime(Protocol::UDP, &Usual), Time::seconds(30));
        let stream = answered.after(datagram);
        assert_eq!(stream.lifetime(Protocol::UDP, &Usual), Time::seconds(120));
        assert!(!stream.closed() && !stream.opposite().after(datagram).closed());
    }

    #[test]
    fn an_entry_ends_with_its_lifetime() {
        let tuple = Tuple::new(Addr::default(), Be16::new(1), Addr::default(), Be16::new(2), Protocol::UDP);
        let flow = Flow::new(&tuple, BackendRef::default(), State::new(false), Time(1000));
        assert!(flow.alive(Protocol::UDP, Time(1000 + Time::seconds(30)), &Usual));
        assert!(!flow.alive(Protocol::UDP, Time(1001 + Time::seconds(30)), &Usual));
        assert!(flow.alive(Protocol::UDP, Time(999), &Usual), "another CPU's clock may be a little behind");
        assert_eq!(flow.to(Protocol::UDP), tuple);
    }
}
