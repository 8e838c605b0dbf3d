//! What the kernel programs and the agent agree on: names and sizes of maps, and their layout's version.
//!
//! All keys and values derive `zerocopy::IntoBytes`, which the compiler grants only to types without
//! padding: a padding byte in a key would make look-ups miss silently.

use core::mem::size_of;

use crate::affinity::{Affinity, AffinityKey};
use crate::conntrack::{Flow, Timeout, Tuple};
use crate::dns::name::{Freshness, NameEntry, NameKey, Zone};
use crate::route::Hook;
use crate::service::{Backend, BackendId, Frontend, FrontendKey};
use crate::socket::{Peer, PeerKey};
use crate::verdict::{Layer, Reason};

/// Version of the layout of all maps. It names the directory they are pinned in, so that an agent only
/// ever adopts maps that it can read. To be raised with any change of a type below.
pub const LAYOUT: u32 = 5;

/// `FrontendKey -> Frontend`, a hash.
pub const FRONTENDS: &str = "FRONTENDS";
/// `index -> BackendId`, an array.
pub const SLOTS: &str = "SLOTS";
/// `BackendId -> Backend`, an array.
pub const BACKENDS: &str = "BACKENDS";
/// `Tuple -> Flow`, an LRU hash: two entries a flow.
pub const FLOWS: &str = "FLOWS";
/// `PeerKey -> Peer`, an LRU hash.
pub const PEERS: &str = "PEERS";
/// `FragmentKey -> FragmentPorts`, an LRU hash.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// How many datagrams in fragments are followed at a time.
pub const FRAGMENT_ENTRIES: u32 = 8192;
/// `AffinityKey -> Affinity`, an LRU hash.
pub const AFFINITY: &str = "AFFINITY";
/// `ServiceId -> ServiceName`, a hash that only user space reads and writes.
pub const NAMES: &str = "NAMES";
/// `index -> u64`, an array: the words of [`filter`](crate::filter).
pub const FILTER: &str = "FILTER";
/// `Source -> 1`, a longest-prefix table: the source ranges of service ports that have some, and the networks of
/// the cluster's pods.
pub const SOURCES: &str = "SOURCES";
/// `0 -> ServiceNetworks`, an array of one element.
pub const NETWORKS: &str = "NETWORKS";
/// `FrontendKey -> 1`, a hash: where the cluster's DNS is.
pub const DNS_SERVERS: &str = "DNS_SERVERS";
/// `Addr -> 1`, a hash: the pods of this node whose queries are answered.
pub const DNS_CLIENTS: &str = "DNS_CLIENTS";
/// `NameKey -> NameEntry`, a hash.
pub const DNS_NAMES: &str = "DNS_NAMES";
/// `0 -> Freshness`, an array of one element.
pub const DNS_FRESHNESS: &str = "DNS_FRESHNESS";
/// How many addresses the cluster's DNS may be at, and how many a node's pods may have.
pub const DNS_SERVER_ENTRIES: u32 = 1024;
/// As above.
pub const DNS_CLIENT_ENTRIES: u32 = 4096;
/// [`Program::index`]` -> program`, a program array.
pub const PROGRAMS: &str = "PROGRAMS";
/// `0 -> `[`early::open`](crate::early::open), a program array.
pub const XDP_PROGRAMS: &str = "XDP_PROGRAMS";
/// `0 -> Limit`, a per-CPU array of one element.
pub const LIMIT: &str = "LIMIT";
/// `interface index -> 1`, a hash: the interfaces whose drivers take frames that XDP programs of others send.
pub const XDP_INTERFACES: &str = "XDP_INTERFACES";
/// How many of them there may be.
pub const XDP_INTERFACE_ENTRIES: u32 = 256;
/// [`Layer::counter`]` -> u64`, a per-CPU array of counters.
pub const COUNTERS: &str = "COUNTERS";
/// How many counters there are.
pub const COUNTER_ENTRIES: u32 = Layer::COUNT * Reason::COUNT;

/// A program that another one at a hook leaves packets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// [`route::rest`](crate::route::rest).
    Rest(Hook),
    /// [`route::sctp`](crate::route::sctp).
    Sctp(Hook),
    /// [`route::open`](crate::route::open).
    Open(Hook),
    /// [`route::complain`](crate::route::complain).
    Complain(Hook),
    /// [`route::renew`](crate::route::renew).
    Renew(Hook),
    /// [`dns::answer`](crate::dns::answer), of what pods send.
    Answer,
    /// [`route::unanswered`](crate::route::unanswered) likewise.
    Unanswered,
}

impl Program {
    /// How many of most kinds there are: one for each hook.
    const HOOKS: u32 = 4;
    /// How many places the program array has for them.
    pub const COUNT: u32 = 5 * Self::HOOKS + 2;

    /// Its place in the program array.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Rest(hook) => hook as u32,
            Self::Sctp(hook) => hook as u32 + Self::HOOKS,
            Self::Open(hook) => hook as u32 + 2 * Self::HOOKS,
            Self::Complain(hook) => hook as u32 + 3 * Self::HOOKS,
            Self::Renew(hook) => hook as u32 + 4 * Self::HOOKS,
            Self::Answer => 5 * Self::HOOKS,
            Self::Unanswered => 5 * Self::HOOKS + 1,
        }
    }
}

/// `.rodata` of the packet programs: whether packets of established flows between pods of this node go past
/// its stack, 0 for no.
pub const SHORT_CUTS: &str = "SHORT_CUTS";
/// `.rodata` of the packet programs: whether queries of pods are answered, 0 for no.
pub const ANSWERS_NAMES: &str = "ANSWERS_NAMES";
/// `.rodata` of the packet programs: the cluster's domain, a [`Zone`].
pub const ZONE: &str = "ZONE";
/// `.rodata` of the packet programs: a lifetime of flows, in units of [`Time`](crate::conntrack::Time).
pub const fn timeout(which: Timeout) -> &'static str {
    match which {
        Timeout::TcpEstablished => "TCP_ESTABLISHED_TIMEOUT",
        Timeout::TcpCloseWait => "TCP_CLOSE_WAIT_TIMEOUT",
        Timeout::Udp => "UDP_TIMEOUT",
        Timeout::UdpStream => "UDP_STREAM_TIMEOUT",
    }
}
/// `.rodata` of the socket programs: the cookie of the node's own network namespace.
pub const NODE_NETNS: &str = "NODE_NETNS";
/// `.rodata` of the socket programs: the network namespace cookie they are limited to, 0 for all.
pub const SOCKET_NETNS: &str = "SOCKET_NETNS";

/// Room for `namespace/name:port` (63 + 1 + 63 + 1 + 63 characters by Kubernetes' rules for the three
/// labels), padded with zeroes.
pub type ServiceName = [u8; 192];

const _: () = assert!(size_of::<Tuple>() == 40);
const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(size_of::<FrontendKey>() == 24);
const _: () = assert!(size_of::<Frontend>() == 28);
const _: () = assert!(size_of::<Backend>() == 32);
const _: () = assert!(size_of::<BackendId>() == 4);
const _: () = assert!(size_of::<AffinityKey>() == 24);
const _: () = assert!(size_of::<Affinity>() == 12);
const _: () = assert!(size_of::<PeerKey>() == 32);
const _: () = assert!(size_of::<Peer>() == 32);
const _: () = assert!(size_of::<NameKey>() == 64);
const _: () = assert!(size_of::<NameEntry>() == 128);
const _: () = assert!(size_of::<Freshness>() == 8);
const _: () = assert!(size_of::<Zone>() == 76);
