//! The tables of names in the kernel.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use podnet_common::abi;
use podnet_common::conntrack::Time;
use podnet_common::dns::name::{Freshness, NameEntry, NameKey};
use podnet_common::service::FrontendKey;
use podnet_common::wire::{Addr, Be32};

use super::error::Error;
use super::tables::Table;
use crate::dns::table::{Changes, Snapshot};

/// For how long names are denied by what the agent has last said: it says so again before that, and once it does not,
/// names that it does not know of are left to the cluster's DNS.
pub const FRESH: Duration = Duration::from_secs(10);

/// The maps.
pub(super) struct Names {
    names: Table<NameKey, NameEntry>,
    servers: Table<FrontendKey, u32>,
    clients: Table<Addr, u32>,
    freshness: Table<u32, Freshness>,
}

impl Names {
    /// Opens the maps pinned in `maps`.
    pub(super) fn open(maps: &Path) -> Result<Self, Error> {
        Ok(Self {
            names: Table::open(maps, abi::DNS_NAMES)?,
            servers: Table::open(maps, abi::DNS_SERVERS)?,
            clients: Table::open(maps, abi::DNS_CLIENTS)?,
            freshness: Table::open(maps, abi::DNS_FRESHNESS)?,
        })
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(Snapshot {
            names: self.names.entries()?,
            servers: self.servers.entries()?.into_iter().map(|(key, _)| key).collect(),
            clients: self.clients.entries()?.into_iter().map(|(key, _)| key).collect(),
        })
    }

    /// Carries out `changes`. Before anything is denied it is known that all names are there, and before a table is
    /// known to lack some, nothing is denied any more.
    pub(super) fn apply(&self, changes: &Changes) -> Result<(), Error> {
        if changes.complete.is_none() {
            self.freshness.insert(&[(0, Freshness::default())])?;
        }
        self.clients.remove(&changes.removed_clients)?;
        self.servers.remove(&changes.removed_servers)?;
        self.names.remove(&changes.removed_names)?;
        self.names.insert(&changes.names)?;
        let all = |keys: &[FrontendKey]| keys.iter().map(|key| (*key, 1)).collect::<Vec<_>>();
        self.servers.insert(&all(&changes.servers))?;
        let clients: Vec<_> = changes.clients.iter().map(|addr| (*addr, 1)).collect();
        self.clients.insert(&clients)?;
        if let Some(serial) = changes.complete {
            self.freshness.insert(&[(0, Freshness { until: soon()?, serial: Be32::new(serial) })])?;
        }
        Ok(())
    }
}

/// When what is said now holds no more, by the clock that programs read.
fn soon() -> Result<Time, Error> {
    let failed = |source: io::Error| Error::Table {
        action: "reading the clock for",
        table: abi::DNS_FRESHNESS,
        source,
    };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|error| failed(error.into()))?;
    let now = Duration::from(now).saturating_add(FRESH);
    Ok(Time::from_nanoseconds(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)))
}
