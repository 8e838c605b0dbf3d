//! The door to state.

use crate::affinity::{Affinity, AffinityKey};
use crate::conntrack::{Flow, State, Time, Timeouts, Tuple};
use crate::filter::Place;
use crate::fragment::{FragmentKey, FragmentPorts};
use crate::frame::Mac;
use crate::service::{Backend, BackendFlags, BackendId, BackendRef, Frontend, FrontendKey, ServiceId};
use crate::socket::Peer;
use crate::verdict::Reason;
use crate::wire::{Addr, Endpoint, Protocol};

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is an entry for this tuple.
    Exists,
    /// The table did not take it.
    Full,
}

/// Whether an entry may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// An existing entry stays, and is an error.
    No,
    /// The new entry takes its place.
    Yes,
}

/// Where a packet goes that leaves this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// By which interface.
    pub interface: u32,
    /// The addresses that its frame gets, destination and source, where nobody after podnet sees to that.
    pub addresses: Option<[Mac; 2]>,
}

/// Why a packet cannot leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// No route leads to where it is to go.
    Unreachable,
    /// It is longer than what the route takes at the most.
    Mtu(u16),
}

impl NoWay {
    /// Why the packet is not sent on.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Unreachable => Reason::NoRoute,
            Self::Mtu(_) => Reason::TooBig,
        }
    }
}

/// What decisions need to know: read by everybody, written by user space.
pub trait Services {
    /// The frontend at this address.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// The backend that a slot names.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// A backend, by value: its place may be given to another at any time.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// A random number.
    fn random(&mut self) -> u32;
    /// The time, of a clock that does not jump.
    fn now(&self) -> Time;
    /// What is remembered of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers `affinity`, in place of what was there. A table that takes no more costs the client its
    /// affinity, not the connection.
    fn remember_client(&mut self, key: &AffinityKey, affinity: &Affinity);

    /// Whether the backend that a flow remembers is still the same and may serve it.
    #[inline(always)]
    fn serves(&self, remembered: BackendRef) -> bool {
        self.has(remembered, BackendFlags::SERVING)
    }

    /// Whether the backend that a flow remembers is still the same and has `flags`.
    #[inline(always)]
    fn has(&self, remembered: BackendRef, flags: BackendFlags) -> bool {
        self.backend(remembered.id)
            .is_some_and(|backend| backend.flags.has(flags) && backend.generation == remembered.generation)
    }
}

/// The tables of the packet path.
pub trait Tables: Services + Timeouts {
    /// The entry for packets of `tuple`.
    fn flow(&self, tuple: &Tuple) -> Option<Flow>;
    /// A word of the [`filter`](crate::filter).
    fn filter_word(&self, index: u32) -> u64;

    /// Whether the filter has a member at `place`; if not, there is none.
    #[inline(always)]
    fn may_hold(&self, place: Place) -> bool {
        self.filter_word(place.index) & place.mask == place.mask
    }

    /// Whether `addr` is in a network that ClusterIPs are taken from.
    fn in_service_network(&self, addr: Addr) -> bool;
    /// Whether `source` is in a source range of `service`.
    fn admits(&self, service: ServiceId, source: Addr) -> bool;
    /// The interface at which the packet at hand is met.
    fn interface(&self) -> u32;
    /// Where the packet at hand goes next if it is to go to `to`'s destination and is `length` bytes long without its
    /// Ethernet header.
    ///
    /// # Errors
    /// [`NoWay`] if it cannot.
    fn way_out(&self, to: &Tuple, length: u16) -> Result<NextHop, NoWay>;
    /// This node's own address on that way; `None` also where the kernel does not tell (before Linux 6.7).
    fn own_address(&self, to: &Tuple) -> Option<Addr>;
    /// What is remembered of the first fragment of a packet.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remembers it. A table that takes no more costs the packet its other fragments.
    fn remember_fragment(&mut self, key: &FragmentKey, ports: &FragmentPorts);
    /// Remembers that a fragment waits for the first one, in place of what was known `before`. What somebody else
    /// has written meanwhile stays: that may be of the first one.
    fn note_wait(&mut self, key: &FragmentKey, before: Option<&FragmentPorts>, waiting: &FragmentPorts);
    /// The Service that the socket which sends the packet at hand was led away from, if it was led to
    /// `destination`.
    fn led(&self, destination: Endpoint, protocol: Protocol) -> Option<Peer>;

    /// Writes an entry.
    ///
    /// # Errors
    /// [`InsertError`]; nothing was written then.
    fn insert_flow(&mut self, tuple: &Tuple, flow: &Flow, overwrite: Overwrite) -> Result<(), InsertError>;
    /// Notes in the entry for `tuple` that a packet was seen at `now` and what `progress` it made;
    /// `false` if there is no such entry.
    fn touch_flow(&mut self, tuple: &Tuple, progress: State, now: Time) -> bool;
    /// Counts a fragment that begins to wait for another; whether it may.
    fn may_wait(&mut self) -> bool;
    /// Counts a refusal; whether it may be sent.
    fn may_refuse(&mut self) -> bool;
    /// Whether packets of established flows between pods of this node may go past its stack.
    fn short_cuts(&self) -> bool;
    /// Whether queries of pods are answered here ([`dns`](crate::dns)).
    fn answers_names(&self) -> bool;
    /// Notes in the entry for `tuple`, if there is one, behind which interface of this node the backend is.
    fn note_backend(&mut self, tuple: &Tuple, interface: u32);
    /// Removes the entry for `tuple`, if there is one.
    fn remove_flow(&mut self, tuple: &Tuple);
}
