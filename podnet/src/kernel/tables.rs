//! The pinned maps as tables: read whole, written in batches.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::MapData;
use nix::libc;
use podnet_common::abi::{self, FRAGMENT_ENTRIES, ServiceName};
use podnet_common::affinity::{Affinity, AffinityKey};
use podnet_common::conntrack::{Flow, Tuple};
use podnet_common::dns::name::{Freshness, NameEntry, NameKey};
use podnet_common::filter::FILTER_WORDS;
use podnet_common::fragment::{FragmentKey, FragmentPorts};
use podnet_common::limit::Limit;
use podnet_common::network::{ServiceNetworks, Source};
use podnet_common::service::{Backend, BackendId, Frontend, FrontendKey, ServiceId};
use podnet_common::socket::{Peer, PeerKey};
use podnet_common::verdict::{Layer, Reason};
use podnet_common::wire::{Addr, Family};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::Error;
use super::sys::{self, Cursor, Step};
use super::view::Count;
use crate::changes::{Capacity, Changes, Snapshot, SourceRange};

/// Flags of an update (include/uapi/linux/bpf.h): in any case, or only if there is no such entry.
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// How many entries one system call carries.
const BATCH: usize = 16_384;

/// A map with keys `K` and values `V`.
pub(super) struct Table<K, V> {
    map: MapData,
    name: &'static str,
    flag: &'static str,
    capacity: u32,
    types: PhantomData<(K, V)>,
}

/// What lies in a map as plain bytes.
pub(super) trait Plain: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Plain for T {}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens the map pinned as `name` in `maps`.
    pub(super) fn open(maps: &Path, name: &'static str) -> Result<Self, Error> {
        let map = MapData::from_pin(maps.join(name))?;
        let info = map.info()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            let source = io::Error::other(format!("its entries are of {sizes:?} bytes, another podnet's"));
            return Err(Error::Table { action: "opening", table: name, source });
        }
        Ok(Self { capacity: info.max_entries(), map, name, flag: flag_of(name), types: PhantomData })
    }

    /// Checks that a map of `wanted` entries has room for the `used` ones.
    fn check_fit(&self, wanted: u32, used: impl FnOnce(&[(K, V)]) -> usize) -> Result<(), Error> {
        if wanted < self.capacity {
            let used = u32::try_from(used(&self.entries()?)).unwrap_or(u32::MAX);
            if used > wanted {
                return Err(Error::Shrink { table: self.name, used, wanted, flag: self.flag });
            }
        }
        Ok(())
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    fn error(&self, action: &'static str, source: io::Error) -> Error {
        Error::Table { action, table: self.name, source }
    }

    /// Writes entries, new ones and in place of others.
    pub(super) fn insert(&self, entries: &[(K, V)]) -> Result<(), Error> {
        for chunk in entries.chunks(BATCH) {
            let keys: Vec<u8> = chunk.iter().flat_map(|(key, _)| key.as_bytes()).copied().collect();
            let values: Vec<u8> = chunk.iter().flat_map(|(_, value)| value.as_bytes()).copied().collect();
            let count = u32::try_from(chunk.len()).expect("a batch is small");
            sys::update_batch(self.fd(), &keys, &values, count, BPF_ANY).map_err(|(_, error)| match error
                .raw_os_error()
            {
                // A hash that is full, and a longest-prefix table that is.
                Some(libc::E2BIG | libc::ENOSPC) => {
                    Error::Full { table: self.name, capacity: self.capacity, flag: self.flag }
                }
                _ => self.error("writing", error),
            })?;
        }
        Ok(())
    }

    /// Writes the entries whose keys are not there yet, as far as there is room.
    fn add(&self, entries: &[(K, V)]) -> Result<(), Error> {
        for (key, value) in entries {
            match sys::update_batch(self.fd(), key.as_bytes(), value.as_bytes(), 1, BPF_NOEXIST) {
                Ok(()) => {}
                Err((_, error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err((_, error)) => return Err(self.error("writing", error)),
            }
        }
        Ok(())
    }

    /// Removes entries; those that are not there do not matter.
    pub(super) fn remove(&self, keys: &[K]) -> Result<(), Error> {
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(BATCH)];
            let bytes: Vec<u8> = chunk.iter().flat_map(IntoBytes::as_bytes).copied().collect();
            let count = u32::try_from(chunk.len()).expect("a batch is small");
            rest = match sys::delete_batch(self.fd(), &bytes, count) {
                Ok(()) => &rest[chunk.len()..],
                Err((done, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                    &rest[done as usize + 1..]
                }
                Err((_, error)) => return Err(self.error("removing from", error)),
            };
        }
        Ok(())
    }

    /// Reads all entries.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        let mut batch = BATCH.min(self.capacity as usize).max(64);
        let mut all = Vec::new();
        let mut cursor = Cursor::start();
        loop {
            let mut keys = vec![0; batch * size_of::<K>()];
            let mut values = vec![0; batch * size_of::<V>()];
            let count = u32::try_from(batch).expect("a batch is small");
            let step = match sys::lookup_batch(self.fd(), &mut cursor, &mut keys, &mut values, count) {
                Ok(step) => step,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    batch *= 2;
                    continue;
                }
                Err(error) => return Err(self.error("reading", error)),
            };
            let (found, end) = match step {
                Step::More(found) => (found as usize, false),
                Step::End(found) => (found as usize, true),
            };
            let keys = keys.chunks_exact(size_of::<K>());
            let values = values.chunks_exact(size_of::<V>());
            all.extend(keys.zip(values).take(found).map(|(key, value)| {
                let key = K::read_from_bytes(key).expect("a chunk is as long as a key");
                (key, V::read_from_bytes(value).expect("a chunk is as long as a value"))
            }));
            if end {
                return Ok(all);
            }
        }
    }

    /// Copies the entries of `old` that `fits` admits, if it is of another size.
    fn copy_from(&self, old: &Self, fits: impl Fn(&(K, V)) -> bool) -> Result<(), Error> {
        if old.capacity == self.capacity {
            return Ok(());
        }
        let mut entries = old.entries()?;
        entries.retain(fits);
        self.insert(&entries)
    }

    /// The kernel memory that the map takes, in bytes (`memlock` of proc(5)'s fdinfo).
    pub(super) fn memory(&self) -> Result<u64, Error> {
        let path = format!("/proc/self/fdinfo/{}", self.fd().as_raw_fd());
        let text = fs::read_to_string(&path).map_err(|error| self.error("measuring", error))?;
        let memory = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        memory.ok_or_else(|| self.error("measuring", io::Error::other("no `memlock` in its fdinfo")))
    }
}

/// A key of the longest-prefix table, as `struct bpf_lpm_trie_key` lays it out: without padding, which the
/// alignment of [`Source`] would bring.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
pub(super) struct SourceKey {
    bits: u32,
    source: Source,
}

impl From<SourceRange> for SourceKey {
    fn from(range: SourceRange) -> Self {
        let source = Source::new(range.service, range.addr);
        Self { bits: source.bits_of(range.length), source }
    }
}

impl From<SourceKey> for SourceRange {
    fn from(SourceKey { bits, source }: SourceKey) -> Self {
        let addr = source.addr();
        let whole = match addr.family() {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        // What is not a bit of an address comes before those.
        let length = u8::try_from((whole + bits).saturating_sub(Source::BITS)).unwrap_or(u8::MAX);
        Self { service: source.service(), addr, length }
    }
}

/// The flag that sets a map's size.
fn flag_of(name: &str) -> &'static str {
    match name {
        abi::SLOTS => "--max-slots",
        abi::BACKENDS => "--max-backends",
        abi::FLOWS => "--max-flows",
        abi::PEERS => "--max-sockets",
        abi::AFFINITY => "--max-clients",
        abi::DNS_NAMES => "--max-names",
        _ => "--max-frontends",
    }
}

/// What a map is to be like.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) entries: u32,
    key: usize,
    value: usize,
}

impl Shape {
    const fn of<K, V>(name: &'static str, entries: u32) -> Self {
        Self { name, entries, key: size_of::<K>(), value: size_of::<V>() }
    }

    /// Whether `map` is like this.
    pub(super) fn is(&self, map: &MapData) -> Result<bool, Error> {
        let info = map.info()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        Ok(sizes == (self.key, self.value) && info.max_entries() == self.entries)
    }
}

/// The shapes of all maps but that of programs, which is each agent's own, by the sizes that people set.
pub(super) fn shapes(capacity: &Capacity) -> [Shape; 18] {
    [
        Shape::of::<FrontendKey, Frontend>(abi::FRONTENDS, capacity.frontends),
        Shape::of::<u32, BackendId>(abi::SLOTS, capacity.slots),
        Shape::of::<BackendId, Backend>(abi::BACKENDS, capacity.backends),
        Shape::of::<Tuple, Flow>(abi::FLOWS, capacity.flows.saturating_mul(2)),
        Shape::of::<PeerKey, Peer>(abi::PEERS, capacity.sockets),
        Shape::of::<AffinityKey, Affinity>(abi::AFFINITY, capacity.clients),
        Shape::of::<FragmentKey, FragmentPorts>(abi::FRAGMENTS, FRAGMENT_ENTRIES),
        // A service port that takes over another one's frontends gets its name while that one's stands.
        Shape::of::<ServiceId, ServiceName>(abi::NAMES, capacity.frontends.saturating_mul(2)),
        Shape::of::<u32, u64>(abi::FILTER, FILTER_WORDS),
        Shape::of::<SourceKey, u32>(abi::SOURCES, sources(capacity)),
        Shape::of::<u32, ServiceNetworks>(abi::NETWORKS, 1),
        Shape::of::<u32, u32>(abi::XDP_INTERFACES, abi::XDP_INTERFACE_ENTRIES),
        Shape::of::<u32, Limit>(abi::LIMIT, 1),
        Shape::of::<NameKey, NameEntry>(abi::DNS_NAMES, capacity.names),
        Shape::of::<FrontendKey, u32>(abi::DNS_SERVERS, abi::DNS_SERVER_ENTRIES),
        Shape::of::<Addr, u32>(abi::DNS_CLIENTS, abi::DNS_CLIENT_ENTRIES),
        Shape::of::<u32, Freshness>(abi::DNS_FRESHNESS, 1),
        Shape::of::<u32, u64>(abi::COUNTERS, abi::COUNTER_ENTRIES),
    ]
}

/// How many source ranges there may be: the networks of the cluster's pods, one of each family, are there
/// beside those of service ports, and new ones before the old ones go.
const fn sources(capacity: &Capacity) -> u32 {
    capacity.frontends.saturating_add(4)
}

/// All maps.
pub(super) struct Tables {
    frontends: Table<FrontendKey, Frontend>,
    slots: Table<u32, BackendId>,
    backends: Table<BackendId, Backend>,
    flows: Table<Tuple, Flow>,
    peers: Table<PeerKey, Peer>,
    affinity: Table<AffinityKey, Affinity>,
    fragments: Table<FragmentKey, FragmentPorts>,
    names: Table<ServiceId, ServiceName>,
    sources: Table<SourceKey, u32>,
    networks: Table<u32, ServiceNetworks>,
    name_entries: Table<NameKey, NameEntry>,
    counters: MapData,
}

impl Tables {
    /// Opens the maps pinned in `maps`.
    pub(super) fn open(maps: &Path) -> Result<Self, Error> {
        Ok(Self {
            frontends: Table::open(maps, abi::FRONTENDS)?,
            slots: Table::open(maps, abi::SLOTS)?,
            backends: Table::open(maps, abi::BACKENDS)?,
            flows: Table::open(maps, abi::FLOWS)?,
            peers: Table::open(maps, abi::PEERS)?,
            affinity: Table::open(maps, abi::AFFINITY)?,
            fragments: Table::open(maps, abi::FRAGMENTS)?,
            names: Table::open(maps, abi::NAMES)?,
            sources: Table::open(maps, abi::SOURCES)?,
            networks: Table::open(maps, abi::NETWORKS)?,
            name_entries: Table::open(maps, abi::DNS_NAMES)?,
            counters: MapData::from_pin(maps.join(abi::COUNTERS))?,
        })
    }

    pub(super) const fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.capacity(),
            slots: self.slots.capacity(),
            backends: self.backends.capacity(),
            flows: self.flows.capacity() / 2,
            sockets: self.peers.capacity(),
            clients: self.affinity.capacity(),
            names: self.name_entries.capacity(),
        }
    }

    /// Checks that what is in the maps fits into maps of `capacity`.
    ///
    /// # Errors
    /// [`Error::Shrink`] if it does not. A flow or a peer that is lost is found anew, so their maps always
    /// fit.
    pub(super) fn check_fit(&self, capacity: &Capacity) -> Result<(), Error> {
        self.frontends.check_fit(capacity.frontends, <[_]>::len)?;
        self.sources.check_fit(sources(capacity), <[_]>::len)?;
        self.backends.check_fit(capacity.backends, |all| {
            let given = all.iter().filter(|(_, backend)| backend.generation != 0);
            given.map(|(id, _)| id.0 as usize + 1).max().unwrap_or(0)
        })?;
        if capacity.slots < self.slots.capacity() {
            let frontends = self.frontends.entries()?;
            let ends =
                frontends.iter().flat_map(|(_, frontend)| frontend.ranges().map(|range| range.indices().end));
            let end = ends.max().unwrap_or(0) as usize;
            self.slots.check_fit(capacity.slots, |_| end)?;
        }
        Ok(())
    }

    /// Copies what `old` holds into the maps that have another size there.
    pub(super) fn copy_from(&self, old: &Self) -> Result<(), Error> {
        self.frontends.copy_from(&old.frontends, |_| true)?;
        self.slots.copy_from(&old.slots, |(index, _)| *index < self.slots.capacity())?;
        self.backends.copy_from(&old.backends, |(id, _)| id.0 < self.backends.capacity())?;
        self.flows.copy_from(&old.flows, |_| true)?;
        self.peers.copy_from(&old.peers, |_| true)?;
        self.affinity.copy_from(&old.affinity, |_| true)?;
        self.names.copy_from(&old.names, |_| true)?;
        self.sources.copy_from(&old.sources, |_| true)
    }

    /// Copies the flows and peers of `old` that the maps do not have.
    pub(super) fn catch_up_with(&self, old: &Self) -> Result<(), Error> {
        self.flows.add(&old.flows.entries()?)?;
        self.peers.add(&old.peers.entries()?)?;
        self.affinity.add(&old.affinity.entries()?)
    }

    /// The flows.
    pub(super) fn flows(&self) -> Result<Vec<(Tuple, Flow)>, Error> {
        self.flows.entries()
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, Error> {
        let frontends = self.frontends.entries()?;
        let mut used = vec![false; self.slots.capacity() as usize];
        for (_, frontend) in &frontends {
            for range in frontend.ranges() {
                let indices = range.indices().start as usize..range.indices().end as usize;
                used.get_mut(indices).into_iter().flatten().for_each(|slot| *slot = true);
            }
        }
        let mut slots = self.slots.entries()?;
        slots.retain(|(index, _)| used[*index as usize]);
        slots.sort_unstable();
        let mut backends = self.backends.entries()?;
        backends.retain(|(_, backend)| backend.generation != 0);
        let names = self.names.entries()?;
        let sources = self.sources.entries()?.into_iter().map(|(key, _)| key.into()).collect();
        let networks = self.networks.entries()?.first().map(|(_, networks)| *networks).unwrap_or_default();
        Ok(Snapshot { frontends, slots, backends, names, sources, networks })
    }

    pub(super) fn apply(&self, changes: &Changes) -> Result<(), Error> {
        self.backends.insert(&changes.backends)?;
        self.slots.insert(&changes.slots)?;
        self.names.insert(&changes.names)?;
        let sources = changes.sources.iter().map(|range| ((*range).into(), 1));
        self.sources.insert(&sources.collect::<Vec<_>>())?;
        self.frontends.insert(&changes.frontends)?;
        if let Some(networks) = changes.networks {
            self.set_networks(networks)?;
        }
        self.frontends.remove(&changes.removed_frontends)?;
        let sources = changes.removed_sources.iter().map(|range| (*range).into());
        self.sources.remove(&sources.collect::<Vec<_>>())?;
        self.backends.insert(&changes.gone)?;
        self.names.remove(&changes.removed_names)
    }

    pub(super) fn set_networks(&self, networks: ServiceNetworks) -> Result<(), Error> {
        self.networks.insert(&[(0, networks)])
    }

    /// Each map's kernel memory in bytes, the largest first.
    pub(super) fn memory(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let mut all = vec![
            (abi::FRONTENDS, self.frontends.memory()?),
            (abi::SLOTS, self.slots.memory()?),
            (abi::BACKENDS, self.backends.memory()?),
            (abi::FLOWS, self.flows.memory()?),
            (abi::PEERS, self.peers.memory()?),
            (abi::AFFINITY, self.affinity.memory()?),
            (abi::FRAGMENTS, self.fragments.memory()?),
            (abi::NAMES, self.names.memory()?),
            (abi::SOURCES, self.sources.memory()?),
            (abi::DNS_NAMES, self.name_entries.memory()?),
        ];
        all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(all)
    }

    /// How often each reason was given where, over all CPUs.
    pub(super) fn counters(&self) -> Result<Vec<Count>, Error> {
        let map = aya::maps::Map::from_map_data(MapData::from_fd(
            self.counters.fd().as_fd().try_clone_to_owned().map_err(|source| Error::Table {
                action: "reading",
                table: abi::COUNTERS,
                source,
            })?,
        )?)?;
        let counters: aya::maps::PerCpuArray<MapData, u64> = map.try_into()?;
        let places = Layer::ALL.iter().flat_map(|layer| Reason::ALL.iter().map(|reason| (*layer, *reason)));
        places
            .map(|(layer, reason)| {
                let count = counters.get(&layer.counter(reason), 0)?.iter().sum();
                Ok(Count { layer, reason, count })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_range_of_sources_survives_its_key() {
        for (addr, length) in [("192.0.2.0", 24), ("10.0.0.1", 32), ("2001:db8::", 32), ("fd00::1", 128)] {
            let addr = addr.parse::<IpAddr>().unwrap().into();
            let range = SourceRange { service: ServiceId(7), addr, length };
            assert_eq!(SourceRange::from(SourceKey::from(range)), range);
        }
        assert_eq!(size_of::<SourceKey>(), 28, "as the kernel lays it out");
    }
}
