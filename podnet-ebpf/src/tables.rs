//! The door to the maps.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use podnet_common::affinity::{Affinity, AffinityKey};
use podnet_common::conntrack::{Flow, State, Time, Timeout, Timeouts, Tuple};
use podnet_common::fragment::{FragmentKey, FragmentPorts};
use podnet_common::network::Source;
use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey, ServiceId};
use podnet_common::socket::{Known, Peer, PeerKey, Sockets};
use podnet_common::tables::{InsertError, NextHop, NoWay, Overwrite, Services, Tables};
use podnet_common::wire::{Addr, Endpoint, Protocol};

use crate::door::Door;
use crate::fib;
use crate::maps::{
    AFFINITY, ANSWERS_NAMES, BACKENDS, FILTER, FLOWS, FRAGMENTS, FRONTENDS, LIMIT, NETWORKS, PEERS,
    SHORT_CUTS, SLOTS, SOURCES, TCP_CLOSE_WAIT_TIMEOUT, TCP_ESTABLISHED_TIMEOUT, UDP_STREAM_TIMEOUT,
    UDP_TIMEOUT,
};

const EEXIST: i32 = 17;

/// The maps, and the context that a program runs in: some answers are about it.
pub(crate) struct KernelTables<'a, C>(pub(crate) &'a C);

impl<C> Services for KernelTables<'_, C> {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: copied at once; the map is not preallocated, see its definition.
        unsafe { FRONTENDS.get(key).copied() }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<BackendId> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        BACKENDS.get(id.0).copied()
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> Time {
        // SAFETY: a helper without arguments. The coarse clock costs half of the fine one.
        Time::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied at once.
        unsafe { AFFINITY.get(key).copied() }
    }

    #[inline(always)]
    fn remember_client(&mut self, key: &AffinityKey, affinity: &Affinity) {
        // An LRU that finds no room costs the client its affinity, nothing else.
        let _ = AFFINITY.insert(key, affinity, u64::from(BPF_ANY));
    }
}

impl<C: Door> Timeouts for KernelTables<'_, C> {
    #[inline(always)]
    fn timeout(&self, which: Timeout) -> u32 {
        match which {
            Timeout::TcpEstablished => TCP_ESTABLISHED_TIMEOUT.load(),
            Timeout::TcpCloseWait => TCP_CLOSE_WAIT_TIMEOUT.load(),
            Timeout::Udp => UDP_TIMEOUT.load(),
            Timeout::UdpStream => UDP_STREAM_TIMEOUT.load(),
        }
    }
}

impl<C: Door> Tables for KernelTables<'_, C> {
    #[inline(always)]
    fn in_service_network(&self, addr: Addr) -> bool {
        NETWORKS.get(0).is_some_and(|networks| networks.contain(addr))
    }

    #[inline(always)]
    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        SOURCES.get(Key::new(Source::BITS, Source::new(service, source))).is_some()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.0.interface()
    }

    #[inline(always)]
    fn way_out(&self, to: &Tuple, length: u16) -> Result<NextHop, NoWay> {
        fib::way_out(self.0, to, length)
    }

    #[inline(always)]
    fn own_address(&self, to: &Tuple) -> Option<Addr> {
        fib::own_address(self.0, to)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: copied at once.
        unsafe { FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn remember_fragment(&mut self, key: &FragmentKey, ports: &FragmentPorts) {
        // An LRU that finds no room costs the packet its other fragments.
        let _ = FRAGMENTS.insert(key, ports, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn note_wait(&mut self, key: &FragmentKey, before: Option<&FragmentPorts>, waiting: &FragmentPorts) {
        let Some(before) = before else {
            // As in `remember_fragment`.
            let _ = FRAGMENTS.insert(key, waiting, u64::from(BPF_NOEXIST));
            return;
        };
        let Some(entry) = FRAGMENTS.get_ptr_mut(key) else { return };
        // SAFETY: what another CPU writes for the first fragment is an element of its own in this one's place.
        unsafe {
            if *entry == *before {
                *entry = *waiting;
            }
        }
    }

    #[inline(always)]
    fn led(&self, destination: Endpoint, protocol: Protocol) -> Option<Peer> {
        let key = PeerKey::new(self.0.cookie(), Known::Backend, destination, protocol);
        // SAFETY: copied at once.
        unsafe { PEERS.get(key).copied() }
    }

    #[inline(always)]
    fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        // SAFETY: copied at once. An LRU may hand the element to another flow meanwhile; a packet is
        // then translated as that flow's and refused by its receiver, a race the table's size makes rare.
        unsafe { FLOWS.get(tuple).copied() }
    }

    #[inline(always)]
    fn filter_word(&self, index: u32) -> u64 {
        FILTER.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn insert_flow(&mut self, tuple: &Tuple, flow: &Flow, overwrite: Overwrite) -> Result<(), InsertError> {
        let flags = match overwrite {
            Overwrite::No => BPF_NOEXIST,
            Overwrite::Yes => BPF_ANY,
        };
        FLOWS
            .insert(tuple, flow, u64::from(flags))
            .map_err(|error| if error == -EEXIST { InsertError::Exists } else { InsertError::Full })
    }

    #[inline(always)]
    fn touch_flow(&mut self, tuple: &Tuple, progress: State, now: Time) -> bool {
        let Some(flow) = FLOWS.get_ptr_mut(tuple) else { return false };
        // SAFETY: two aligned stores, of four bytes and of one; another CPU that writes the same entry
        // writes the same second.
        unsafe {
            (*flow).seen = now;
            (*flow).state = (*flow).state.with_progress_of(progress);
        }
        true
    }

    #[inline(always)]
    fn may_wait(&mut self) -> bool {
        let now = self.now();
        // SAFETY: as below.
        LIMIT.get_ptr_mut(0).is_none_or(|limit| unsafe { (*limit).take_wait(now) })
    }

    #[inline(always)]
    fn may_refuse(&mut self) -> bool {
        let now = self.now();
        // SAFETY: the element is this CPU's own, and a program that interrupts another one may miscount.
        LIMIT.get_ptr_mut(0).is_none_or(|limit| unsafe { (*limit).take_refusal(now) })
    }

    #[inline(always)]
    fn short_cuts(&self) -> bool {
        SHORT_CUTS.load() != 0
    }

    #[inline(always)]
    fn answers_names(&self) -> bool {
        ANSWERS_NAMES.load() != 0
    }

    #[inline(always)]
    fn note_backend(&mut self, tuple: &Tuple, interface: u32) {
        if let Some(flow) = FLOWS.get_ptr_mut(tuple) {
            // SAFETY: an aligned store of four bytes.
            unsafe { (*flow).backend_interface = interface };
        }
    }

    #[inline(always)]
    fn remove_flow(&mut self, tuple: &Tuple) {
        // It may be gone already.
        let _ = FLOWS.remove(tuple);
    }
}

impl Sockets for KernelTables<'_, SockAddrContext> {
    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<Peer> {
        // SAFETY: copied at once.
        unsafe { PEERS.get(key).copied() }
    }

    #[inline(always)]
    fn remember(&mut self, key: &PeerKey, peer: &Peer) {
        // An LRU that finds no room costs the program the Service's name for its peer, nothing else.
        let _ = PEERS.insert(key, peer, u64::from(BPF_ANY));
    }
}
