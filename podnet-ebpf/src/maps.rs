//! The maps, by the names and types of `podnet_common::abi`.
//!
//! Sizes here are placeholders of one entry: the loader sets them from the agent's flags.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray};
use podnet_common::abi::{
    COUNTER_ENTRIES, DNS_CLIENT_ENTRIES, DNS_SERVER_ENTRIES, FRAGMENT_ENTRIES, Program, ServiceName,
    XDP_INTERFACE_ENTRIES,
};
use podnet_common::affinity::{Affinity, AffinityKey};
use podnet_common::conntrack::{Flow, Timeout, Tuple};
use podnet_common::dns::name::{Freshness, NameEntry, NameKey, Zone};
use podnet_common::filter::FILTER_WORDS;
use podnet_common::fragment::{FragmentKey, FragmentPorts};
use podnet_common::limit::Limit;
use podnet_common::network::{ServiceNetworks, Source};
use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey, ServiceId};
use podnet_common::socket::{Peer, PeerKey};
use podnet_common::wire::Addr;

/// Without preallocation: a cluster uses a fraction of the size, and removed entries are not handed to
/// another key while a packet may still read them.
#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static SLOTS: Array<BackendId> = Array::pinned(1, 0);

#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::pinned(1, 0);

/// An LRU, so that the table looks after itself while no agent runs.
#[map]
pub(crate) static FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static PEERS: LruHashMap<PeerKey, Peer> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(1, 0);

#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(FRAGMENT_ENTRIES, 0);

#[map]
pub(crate) static FILTER: Array<u64> = Array::pinned(FILTER_WORDS, 0);

#[map]
pub(crate) static SOURCES: LpmTrie<Source, u32> = LpmTrie::pinned(1, 0);

#[map]
pub(crate) static NETWORKS: Array<ServiceNetworks> = Array::pinned(1, 0);

#[map]
pub(crate) static DNS_SERVERS: HashMap<FrontendKey, u32> =
    HashMap::pinned(DNS_SERVER_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static DNS_CLIENTS: HashMap<Addr, u32> = HashMap::pinned(DNS_CLIENT_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static DNS_NAMES: HashMap<NameKey, NameEntry> = HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static DNS_FRESHNESS: Array<Freshness> = Array::pinned(1, 0);

/// The programs that those at the hooks leave packets to.
#[map]
pub(crate) static PROGRAMS: ProgramArray = ProgramArray::pinned(Program::COUNT, 0);

/// The program that the one at network cards leaves packets to.
#[map]
pub(crate) static XDP_PROGRAMS: ProgramArray = ProgramArray::pinned(1, 0);

/// For `podnet services`; no program reads it.
#[map]
pub(crate) static NAMES: HashMap<ServiceId, ServiceName> = HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_ENTRIES, 0);

/// Whether packets of established flows between pods of this node go past its stack; 0: no.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static SHORT_CUTS: Global<u64> = Global::new(0);

/// Whether queries of pods are answered; 0: no.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static ANSWERS_NAMES: Global<u64> = Global::new(0);

/// The cluster's domain.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static ZONE: Global<Zone> = Global::new(Zone::NONE);

/// How long an open TCP connection is kept without a packet.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static TCP_ESTABLISHED_TIMEOUT: Global<u32> = Global::new(Timeout::TcpEstablished.usual());

/// How long one is that one side has closed.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static TCP_CLOSE_WAIT_TIMEOUT: Global<u32> = Global::new(Timeout::TcpCloseWait.usual());

/// How long a UDP flow is whose client has not sent again after an answer.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static UDP_TIMEOUT: Global<u32> = Global::new(Timeout::Udp.usual());

/// How long one is whose client has.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static UDP_STREAM_TIMEOUT: Global<u32> = Global::new(Timeout::UdpStream.usual());

#[map]
pub(crate) static LIMIT: PerCpuArray<Limit> = PerCpuArray::pinned(1, 0);

/// To which interfaces the programs at other network cards send frames.
#[map]
pub(crate) static XDP_INTERFACES: HashMap<u32, u32> =
    HashMap::pinned(XDP_INTERFACE_ENTRIES, BPF_F_NO_PREALLOC);

/// The cookie of the node's own network namespace.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static NODE_NETNS: Global<u64> = Global::new(0);

/// The cookie of the network namespace whose sockets are led to backends; 0: of all.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the loader finds the variable by its name")]
pub(crate) static SOCKET_NETNS: Global<u64> = Global::new(0);
