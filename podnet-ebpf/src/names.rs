//! The door to the tables of names.

use podnet_common::dns::Names;
use podnet_common::dns::name::{Freshness, NameEntry, NameKey, Zone};
use podnet_common::service::FrontendKey;
use podnet_common::wire::{Addr, Endpoint, Protocol};

use crate::maps::{DNS_CLIENTS, DNS_FRESHNESS, DNS_NAMES, DNS_SERVERS, ZONE};
use crate::tables::KernelTables;

impl<C> Names for KernelTables<'_, C> {
    #[inline(always)]
    fn zone(&self) -> Zone {
        ZONE.load()
    }

    #[inline(always)]
    fn is_name_server(&self, endpoint: Endpoint) -> bool {
        DNS_SERVERS.get_ptr(FrontendKey::new(endpoint, Protocol::UDP)).is_some()
    }

    #[inline(always)]
    fn is_name_client(&self, addr: Addr) -> bool {
        DNS_CLIENTS.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn name(&self, key: &NameKey) -> Option<NameEntry> {
        // SAFETY: copied at once; the map is not preallocated, so that an entry stays what it was while it is read.
        unsafe { DNS_NAMES.get(key).copied() }
    }

    #[inline(always)]
    fn freshness(&self) -> Freshness {
        DNS_FRESHNESS.get(0).copied().unwrap_or_default()
    }
}
