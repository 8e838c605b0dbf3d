//! Names of the cluster, answered where pods send their queries.
//!
//! A query (RFC 1035) for a name of the cluster's domain, sent to the cluster's DNS, becomes its answer and goes back
//! out of the interface that it came in by, if all that is certain: the addresses of a Service (Kubernetes DNS-Based
//! Service Discovery, 2.3.1 and 2.4.1), that a Service has none of a family, or that there is no such Service, with
//! the SOA that resolvers remember it by (RFC 2308). Any other query goes on untouched to the DNS that it was sent to,
//! which answers all: what is known here is a part of what that knows.
//!
//! The answer is the question with records behind it, and its checksum is mended by difference: so it is right whether
//! the query's was whole, left to a device to complete, or absent.

pub mod name;
pub mod query;
mod reply;

use crate::frame::Frame;
use crate::packet;
use crate::tables::Services;
use crate::verdict::{Reason, Verdict};
use crate::wire::{Addr, Be16, Endpoint};

use name::{Freshness, NameEntry, NameKey, Zone};
use query::{Place, Query, Type};
use reply::Denial;

/// The port of DNS (RFC 1035, 4.2.1).
pub const PORT: Be16 = Be16::new(53);

/// What answers are made of.
pub trait Names {
    /// The cluster's domain, and how long its names may be remembered.
    fn zone(&self) -> Zone;
    /// Whether the cluster's DNS is at `endpoint`, by UDP.
    fn is_name_server(&self, endpoint: Endpoint) -> bool;
    /// Whether the pod with this address gets answers.
    fn is_name_client(&self, addr: Addr) -> bool;
    /// What is known of a name.
    fn name(&self, key: &NameKey) -> Option<NameEntry>;
    /// For how long the table of names is known to hold all that there are.
    fn freshness(&self) -> Freshness;
}

/// Answers a query, or says why not.
#[inline(always)]
pub fn answer<F: Frame, T: Services + Names>(frame: &mut F, tables: &mut T) -> Verdict {
    match try_answer(frame, tables) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Unanswered(reason),
    }
}

/// An error is why the query is not answered, and the frame is as it was.
#[inline(always)]
fn try_answer<F: Frame, T: Services + Names>(frame: &mut F, tables: &mut T) -> Result<Verdict, Reason> {
    let packet = packet::parse(frame)?;
    if !tables.is_name_server(packet.tuple.destination()) {
        return Err(Reason::DnsOtherServer);
    }
    if !tables.is_name_client(packet.tuple.source().addr) {
        return Err(Reason::DnsClient);
    }
    let query = Query::parse(frame, &packet)?;
    let zone = tables.zone();
    let (key, whole) = match query.place(frame, &zone)? {
        Place::Key(key) => (key, true),
        Place::Below(key) => (key, false),
        Place::Nowhere => return deny(frame, tables, &query, &zone, Denial::NoName),
    };
    let Some(entry) = tables.name(&key) else {
        return deny(frame, tables, &query, &zone, Denial::NoName);
    };
    // What is below a Service is not known here, nor are its ports.
    if !whole || query.kind == Type::Srv {
        return Err(Reason::DnsUnknown);
    }
    let count = match query.kind {
        Type::A => entry.v4_count,
        Type::Aaaa => entry.v6_count,
        _ if entry.is_left_alone() => NameEntry::UNKNOWN,
        _ => 0,
    };
    if count == 0 {
        return deny(frame, tables, &query, &zone, Denial::NoData);
    }
    if usize::from(count) > name::ADDRESSES {
        return Err(Reason::DnsUnknown);
    }
    let first = first_of(count, tables);
    match query.kind {
        Type::A => reply::addresses(frame, &query, &zone, &entry.v4, count, first),
        _ => reply::addresses(frame, &query, &zone, &entry.v6, count, first),
    }
}

/// Which of `count` addresses comes first: each as often as the others.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "less than `count`")]
fn first_of<T: Services>(count: u8, tables: &mut T) -> u8 {
    if count < 2 { 0 } else { ((u64::from(tables.random()) * u64::from(count)) >> 32) as u8 }
}

/// Denies that there is what was asked for. That a Service has no address of a family is known with its others; that
/// there is no Service of a name, only while all that there are are known.
#[inline(always)]
fn deny<F: Frame, T: Services + Names>(
    frame: &mut F,
    tables: &T,
    query: &Query,
    zone: &Zone,
    denial: Denial,
) -> Result<Verdict, Reason> {
    let freshness = tables.freshness();
    if denial == Denial::NoName && !freshness.holds(tables.now()) {
        return Err(Reason::DnsUnknown);
    }
    reply::denial(frame, query, zone, denial, freshness.serial)
}
