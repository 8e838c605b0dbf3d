//! Queries as clients send them, and the tables of a small cluster to answer them from.

use std::net::IpAddr;

use podnet_common::conntrack::Time;
use podnet_common::dns::name::{Freshness, NameEntry, NameKey, Zone};
use podnet_common::host::HostTables;
use podnet_common::wire::{Be32, Endpoint, Family, Protocol};

use super::{frame, pod, service};

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const MX: u16 = 15;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
pub(crate) const HTTPS: u16 = 65;
pub(crate) const AXFR: u16 = 252;
pub(crate) const ANY: u16 = 255;

/// How long names may be remembered here, and the serial of their zone.
pub(crate) const TTL: u32 = 30;
pub(crate) const SERIAL: u32 = 1_700_000_000;

/// An OPT record without options (RFC 6891).
pub(crate) fn opt(size: u16, flags: u16) -> Vec<u8> {
    let [size, flags] = [size, flags].map(u16::to_be_bytes);
    [&[0, 0, 41][..], &size, &[0, 0], &flags, &[0, 0]].concat()
}

/// A query, to be changed at will.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) flags: u16,
    pub(crate) counts: [u16; 4],
    pub(crate) labels: Vec<Vec<u8>>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// What follows the question.
    pub(crate) rest: Vec<u8>,
}

impl Query {
    pub(crate) const ID: u16 = 0xbeef;

    /// The query for `kind` of `name` that a resolver sends.
    pub(crate) fn new(name: &str, kind: u16) -> Self {
        let labels = name.split('.').filter(|label| !label.is_empty());
        Self {
            flags: 0x0100,
            counts: [1, 0, 0, 0],
            labels: labels.map(|label| label.as_bytes().to_vec()).collect(),
            kind,
            class: 1,
            rest: Vec::new(),
        }
    }

    /// The same with an OPT record.
    pub(crate) fn with_opt(mut self, opt: &[u8]) -> Self {
        self.counts[3] = 1;
        self.rest = opt.to_vec();
        self
    }

    pub(crate) fn name_on_the_wire(&self) -> Vec<u8> {
        let mut name = Vec::new();
        for label in &self.labels {
            name.push(u8::try_from(label.len()).unwrap());
            name.extend(label);
        }
        name.push(0);
        name
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        let numbers = [Self::ID, self.flags].into_iter().chain(self.counts);
        let mut message: Vec<u8> = numbers.flat_map(u16::to_be_bytes).collect();
        message.extend(self.name_on_the_wire());
        message.extend([self.kind, self.class].into_iter().flat_map(u16::to_be_bytes));
        message.extend(&self.rest);
        message
    }

    /// The frame in which a pod sends it to the cluster's DNS.
    pub(crate) fn frame(&self, family: Family) -> Vec<u8> {
        frame(client(family), server(family), Protocol::UDP, 0, &self.message())
    }
}

/// The pod that asks.
pub(crate) fn client(family: Family) -> Endpoint {
    pod(family, 7, 43210)
}

/// The cluster's DNS.
pub(crate) fn server(family: Family) -> Endpoint {
    service(family, 10, 53)
}

/// Tables with the cluster's DNS, its client and these names, which are all that there are: of Services, or without
/// that of namespaces.
pub(crate) fn tables(zone: &str, names: &[(&str, &str, NameEntry)]) -> HostTables {
    let mut tables = HostTables::new(1);
    tables.names.zone = Some(Zone::new(zone, TTL).unwrap());
    for family in super::FAMILIES {
        tables.names.servers.insert(server(family));
        tables.names.clients.insert(client(family).addr);
    }
    for (service, namespace, entry) in names {
        let labels = [service, namespace].into_iter().copied().filter(|label| !label.is_empty());
        tables.names.entries.insert(NameKey::new(labels).unwrap(), *entry);
    }
    let until = Time(tables.now.0 + Time::seconds(10));
    tables.names.freshness = Freshness { until, serial: Be32::new(SERIAL) };
    tables
}

/// The entry of a name with these addresses.
pub(crate) fn entry(addresses: &[&str]) -> NameEntry {
    NameEntry::new(addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()))
}
