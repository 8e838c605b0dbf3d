//! The way of a socket call: Services at the socket layer.
//!
//! A `connect()` or a datagram to a Service address is led to a backend before there is a packet, so that
//! no packet of the flow needs translation. What the program sees stays the Service's address:
//! `getpeername()` and the source of received datagrams are translated back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::affinity::sockets_of;
use crate::conntrack::Tuple;
use crate::select::{Nobody, Side, select};
use crate::service::{BackendRef, FrontendFlags, FrontendKey};
use crate::tables::Services;
use crate::verdict::Reason;
use crate::wire::{Addr, Be16, Endpoint, Protocol};

/// Which address of a socket's peer is the known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Known {
    /// The Service's: the entry names the backend that it was led to.
    Service = 1,
    /// The backend's: the entry names the Service that the program asked for.
    Backend = 2,
}

/// What is remembered of a socket's peer: the key of the peer table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PeerKey {
    cookie: u64,
    addr: Addr,
    port: Be16,
    protocol: Protocol,
    known: u8,
    zero: [u8; 4],
}

impl PeerKey {
    /// The peer of the socket with `cookie`, of which `known` is `endpoint`.
    #[inline(always)]
    pub const fn new(cookie: u64, known: Known, endpoint: Endpoint, protocol: Protocol) -> Self {
        Self { cookie, addr: endpoint.addr, port: endpoint.port, protocol, known: known as u8, zero: [0; 4] }
    }
}

/// The other address of a socket's peer: the value of the peer table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Peer {
    addr: Addr,
    port: Be16,
    zero: [u8; 2],
    /// The backend that the socket was led to.
    pub backend: BackendRef,
    zero_tail: [u8; 4],
}

impl Peer {
    /// A peer whose other address is `endpoint`.
    #[inline(always)]
    pub const fn new(endpoint: Endpoint, backend: BackendRef) -> Self {
        Self { addr: endpoint.addr, port: endpoint.port, zero: [0; 2], backend, zero_tail: [0; 4] }
    }

    /// Address and port.
    #[inline(always)]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint { addr: self.addr, port: self.port }
    }
}

/// The tables of the socket layer.
pub trait Sockets: Services {
    /// What is remembered under `key`.
    fn peer(&self, key: &PeerKey) -> Option<Peer>;
    /// Remembers `peer` under `key`, in place of what was there. A table that takes no more costs the
    /// program the Service's address as its peer's, not the connection.
    fn remember(&mut self, key: &PeerKey, peer: &Peer);
}

/// Whose socket it is.
pub trait Caller {
    /// The socket's cookie: a number that no other socket has had since the machine started.
    fn cookie(&self) -> u64;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    /// Whether that is the node's own.
    fn on_node(&self) -> bool;
}

/// What becomes of a socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call goes on as it is.
    Pass,
    /// The call goes on with this address.
    Lead(Endpoint, Reason),
    /// The call fails with `ECONNREFUSED`.
    Refuse(Reason),
}

/// Decides where `connect()` to `destination` leads.
#[inline(always)]
pub fn connect<S: Sockets, C: Caller>(
    sockets: &mut S,
    caller: &C,
    destination: Endpoint,
    protocol: Protocol,
) -> Verdict {
    lead(sockets, caller, destination, protocol, Reason::SocketConnect)
}

/// Decides where a datagram to `destination` goes. A socket's datagrams to one Service go to one backend
/// as long as it serves.
#[inline(always)]
pub fn send<S: Sockets, C: Caller>(
    sockets: &mut S,
    caller: &C,
    destination: Endpoint,
    protocol: Protocol,
) -> Verdict {
    let cookie = caller.cookie();
    let key = PeerKey::new(cookie, Known::Service, destination, protocol);
    if let Some(peer) = sockets.peer(&key)
        && sockets.serves(peer.backend)
    {
        return Verdict::Lead(peer.endpoint(), Reason::SocketSend);
    }
    let verdict = lead(sockets, caller, destination, protocol, Reason::SocketSend);
    if let Verdict::Lead(endpoint, _) = verdict
        && let Some(back) = sockets.peer(&PeerKey::new(cookie, Known::Backend, endpoint, protocol))
    {
        sockets.remember(&key, &Peer::new(endpoint, back.backend));
    }
    verdict
}

/// Whom a program is told that a datagram from `source` is from.
#[inline(always)]
pub fn receive<S: Sockets>(sockets: &S, cookie: u64, source: Endpoint, protocol: Protocol) -> Verdict {
    back(sockets, cookie, source, protocol, Reason::SocketReceive)
}

/// Whom a program is told that it is connected to.
#[inline(always)]
pub fn peer_name<S: Sockets>(sockets: &S, cookie: u64, peer: Endpoint, protocol: Protocol) -> Verdict {
    back(sockets, cookie, peer, protocol, Reason::SocketPeer)
}

#[inline(always)]
fn lead<S: Sockets, C: Caller>(
    sockets: &mut S,
    caller: &C,
    destination: Endpoint,
    protocol: Protocol,
    reason: Reason,
) -> Verdict {
    let Some(frontend) = sockets.frontend(&FrontendKey::new(destination, protocol)) else {
        return match sockets.frontend(&FrontendKey::rest_of(destination.addr)) {
            Some(_) => Verdict::Refuse(Reason::SocketRefused),
            None => Verdict::Pass,
        };
    };
    // A packet tells its source, a socket may have none yet; and a loopback address is another one in
    // every network namespace.
    if frontend.flags.has(FrontendFlags::SOURCE_RANGES)
        || frontend.flags.has(FrontendFlags::LOOPBACK) && !caller.on_node()
    {
        return Verdict::Pass;
    }
    let client = if frontend.affinity == 0 { Addr::default() } else { sockets_of(caller.netns()) };
    let client = Endpoint { addr: client, port: Be16::new(0) };
    let choice =
        match select(sockets, &frontend, Side::Inside, &Tuple::between(client, destination, protocol)) {
            Ok(choice) => choice,
            Err(Nobody::NoEndpoints | Nobody::NoPort) => return Verdict::Refuse(Reason::SocketRefused),
            // Its packets are dropped.
            Err(Nobody::NoneLocal) => return Verdict::Pass,
        };
    let key = PeerKey::new(caller.cookie(), Known::Backend, choice.endpoint, protocol);
    sockets.remember(&key, &Peer::new(destination, choice.backend));
    Verdict::Lead(choice.endpoint, reason)
}

#[inline(always)]
fn back<S: Sockets>(
    sockets: &S,
    cookie: u64,
    endpoint: Endpoint,
    protocol: Protocol,
    reason: Reason,
) -> Verdict {
    match sockets.peer(&PeerKey::new(cookie, Known::Backend, endpoint, protocol)) {
        Some(peer) => Verdict::Lead(peer.endpoint(), reason),
        None => Verdict::Pass,
    }
}
