//! The cluster's names: an index of them beside that of its Services, and what it answers to questions.
//!
//! It answers as [the specification] says (schema version 1.1.0), and where that is silent as CoreDNS' plugin
//! `kubernetes` does. The index is pure: events and the time come in, names that changed and answers come out.
//!
//! | name, under the zone | what it has |
//! |---|---|
//! | `<service>.<namespace>.svc` | A and AAAA: its cluster IPs, or if it is headless its ready endpoints; SRV: its ports; or a CNAME |
//! | `<endpoint>.<service>.<namespace>.svc` | A and AAAA of ready endpoints: by hostname, Pod's name, or address with dashes |
//! | `_<port>._<protocol>.<service>.<namespace>.svc` | SRV; A and AAAA as the Service itself |
//! | `<address with dashes>.<namespace>.pod` | that address, if it is a Pod's that is known |
//! | `dns-version` | TXT: the version of the schema |
//! | reverse names of cluster IPs and ready endpoints | PTR |
//!
//! Which Pods are known: those on this node, which are watched anyway, and on other nodes those that a Service
//! selects, by their endpoints. To know the others too, each node would have to watch all Pods of the cluster, for
//! a form of names that CoreDNS does not check by default either.
//!
//! [the specification]: https://github.com/kubernetes/dns/blob/master/docs/specification.md

pub mod assist;
pub mod clients;
mod config;
pub mod entry;
mod forward;
pub mod index;
pub mod lookup;
pub mod metrics;
mod reverse;
mod server;
pub mod table;
pub mod zone;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

pub use assist::Assist;
pub use clients::Clients;
pub use config::{DnsError, Flags, Mode, Serve};
pub use entry::{Entry, EntryKind};
pub use index::Index;
pub use lookup::{Answer, Status};
pub use table::Table;
pub use zone::{Settings, Zone};

use crate::cluster::Event;
use crate::error::Error;
use forward::Forwarder;
use metrics::DnsMetrics;
use server::{Responder, Sockets};

/// The names of the cluster as the agent keeps them, for itself and for those whom it answers.
#[derive(Clone, Debug)]
pub struct Names(Arc<RwLock<Index>>);

impl Names {
    /// No names so far, at a time in seconds of the Unix epoch.
    pub fn new(settings: &Settings, now: u32) -> Self {
        Self(Arc::new(RwLock::new(Index::new(settings, now))))
    }

    /// Takes an event in.
    pub fn handle(&self, event: &Event, now: u32) {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        index.handle(event, now);
    }

    /// Forgets which names have changed: who asks the server gets what is there at that moment.
    pub fn forget_changes(&self) {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        index.take_dirty();
    }

    /// Whether it is not known where the cluster's own DNS is.
    pub fn knows_no_name_server(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).servers().is_empty()
    }

    /// Whether the cluster's own DNS has this address.
    pub fn is_name_server(&self, address: IpAddr) -> bool {
        let index = self.0.read().unwrap_or_else(PoisonError::into_inner);
        index.name_server().is_some_and(|service| service.cluster_ips.contains(&address))
    }
}

/// A server of names, at addresses that are its already.
#[derive(Debug)]
pub struct Server {
    sockets: Sockets,
    settings: Serve,
}

impl Server {
    /// Takes the addresses that it is to listen at.
    ///
    /// # Errors
    /// [`Error::DnsListen`] if one of them cannot be had.
    pub fn open(settings: &Serve) -> Result<Self, Error> {
        Ok(Self { sockets: Sockets::open(&settings.listen)?, settings: settings.clone() })
    }

    /// Answers from `names`, and for names outside by asking others.
    ///
    /// # Errors
    /// [`DnsError`] if there is no way to ask others.
    pub fn start(self, names: &Names, metrics: &DnsMetrics) -> Result<(), Error> {
        let forwarder = Forwarder::new(self.settings.domains(), metrics.clone())
            .map_err(|error| DnsError::Forward { reason: error.to_string() })?;
        let responder = Responder::new(names.0.clone(), forwarder, metrics.clone());
        self.sockets.serve(&Arc::new(responder));
        Ok(())
    }
}
