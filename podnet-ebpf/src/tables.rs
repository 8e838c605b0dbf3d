//! The door to the maps.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use podnet_common::conntrack::{Flow, State, Time, Tuple};
use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey};
use podnet_common::socket::{Peer, PeerKey, Sockets};
use podnet_common::tables::{InsertError, Overwrite, Services, Tables};

use crate::maps::{BACKENDS, FILTER, FLOWS, FRONTENDS, PEERS, SLOTS};

const EEXIST: i32 = 17;

/// The maps.
pub(crate) struct KernelTables;

impl Services for KernelTables {
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
}

impl Tables for KernelTables {
    #[inline(always)]
    fn now(&self) -> Time {
        // SAFETY: a helper without arguments. The coarse clock costs half of the fine one.
        Time::from_nanoseconds(unsafe { bpf_ktime_get_coarse_ns() })
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
}

impl Sockets for KernelTables {
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
