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
pub mod entry;
pub mod index;
pub mod lookup;
mod reverse;
pub mod table;
pub mod zone;

pub use assist::Assist;
pub use clients::Clients;
pub use entry::{Entry, EntryKind};
pub use index::Index;
pub use lookup::{Answer, Status};
pub use table::Table;
pub use zone::{Settings, Zone};
