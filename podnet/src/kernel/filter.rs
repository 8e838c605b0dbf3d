//! User space's side of [`podnet_common::filter`].

use std::collections::BTreeMap;
use std::iter;
use std::net::IpAddr;
use std::path::Path;

use podnet_common::abi;
use podnet_common::filter::{FILTER_WORDS, Place};
use podnet_common::wire::Endpoint;

use super::error::Error;
use super::tables::{Table, Tables};
use crate::changes::{Changes, Snapshot};

/// Where it stands that `endpoint` is a backend.
const fn of_backend(endpoint: Endpoint) -> [Place; 2] {
    [Place::of_backend(endpoint), Place::of_backends(endpoint.addr)]
}

/// The kernel's words, and what they hold.
pub(super) struct Filter {
    table: Table<u32, u64>,
    words: Vec<u64>,
}

impl Filter {
    /// Opens the filter pinned in `maps`.
    pub(super) fn open(maps: &Path) -> Result<Self, Error> {
        let table: Table<u32, u64> = Table::open(maps, abi::FILTER)?;
        let mut words = vec![0; FILTER_WORDS as usize];
        for (index, word) in table.entries()? {
            words[index as usize] = word;
        }
        Ok(Self { table, words })
    }

    /// Makes members of all that is new in `changes`.
    pub(super) fn admit(&mut self, changes: &Changes) -> Result<(), Error> {
        let frontends = changes.frontends.iter().map(|(key, _)| Place::of_frontend(key.endpoint().addr));
        let backends = changes.backends.iter().flat_map(|(_, backend)| of_backend(backend.endpoint()));
        // Sockets that were led to a backend go on sending to it when it no longer serves.
        let all = changes.backends.iter().chain(&changes.gone);
        let left = all.filter(|(_, backend)| !backend.serving());
        let left = left.map(|(_, backend)| Place::of_frontend(backend.endpoint().addr));
        self.set(frontends.chain(backends).chain(left))
    }

    /// Makes members of this node's addresses: answers to masqueraded clients and to the node itself go
    /// there.
    pub(super) fn admit_node(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        self.set(addresses.map(|ip| Place::of_frontend(ip.into())))
    }

    /// Makes members of all that the tables hold: for a filter that is newer than they are.
    pub(super) fn fill(&mut self, tables: &Tables) -> Result<(), Error> {
        let Snapshot { frontends, backends, .. } = tables.snapshot()?;
        self.admit(&Changes { frontends, backends, ..Changes::default() })?;
        self.set(tables.flows()?.iter().flat_map(|(tuple, _)| {
            iter::once(Place::of_frontend(tuple.destination().addr)).chain(of_backend(tuple.source()))
        }))
    }

    fn set(&mut self, places: impl Iterator<Item = Place>) -> Result<(), Error> {
        let mut changed = BTreeMap::new();
        for place in places {
            let word = self.words[place.index as usize];
            if word & place.mask != place.mask {
                *changed.entry(place.index).or_insert(word) |= place.mask;
            }
        }
        let entries: Vec<(u32, u64)> = changed.into_iter().collect();
        self.table.insert(&entries)?;
        for (index, word) in entries {
            self.words[index as usize] = word;
        }
        Ok(())
    }
}
