//! Names that are not the cluster's: other servers are asked, and their answers kept.

mod cache;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::net::NetError;
use tokio::time::timeout;

use super::metrics::DnsMetrics;
use super::server::message::Reply;
use cache::{Cache, Cached};
use upstream::Upstreams;

/// How long clients wait for an answer that holds if there is one that did (RFC 8767).
const IMPATIENCE: Duration = Duration::from_millis(1800);

/// A question to other servers. All that their answer depends on is in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// The name, in lower case.
    pub(crate) name: Name,
    /// The type of the records.
    pub(crate) kind: RecordType,
    /// Whether those of DNSSEC are asked for too.
    pub(crate) dnssec: bool,
    /// Whether what is bogus is wanted as well.
    pub(crate) unchecked: bool,
}

/// Asks other servers. Copies share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The servers of domains, those of longer names first.
    domains: Vec<(Name, Upstreams)>,
    cache: Cache,
    metrics: DnsMetrics,
}

impl Forwarder {
    /// Asks the servers of the longest of `domains` that a name is in; that of all is the root.
    pub(crate) fn new(
        domains: impl IntoIterator<Item = (Name, Vec<SocketAddr>)>,
        metrics: DnsMetrics,
    ) -> Result<Self, NetError> {
        let mut all = Vec::new();
        for (name, addresses) in domains {
            if !addresses.is_empty() {
                all.push((name.to_lowercase(), Upstreams::new(&addresses)?));
            }
        }
        all.sort_by_key(|(name, _)| std::cmp::Reverse(name.iter().len()));
        Ok(Self(Arc::new(Shared { domains: all, cache: Cache::default(), metrics })))
    }

    /// The answer of other servers to a question: `REFUSED` if there are none to ask, `SERVFAIL` if none has one.
    pub(crate) async fn resolve(&self, question: Question) -> Reply {
        let Shared { cache, metrics, .. } = &*self.0;
        let stale = match cache.get(&question, Instant::now()) {
            Some(Cached::Fresh(reply)) => {
                metrics.cached("hit");
                return reply;
            }
            Some(Cached::Stale(reply)) => Some(reply),
            None => None,
        };
        if cache.has_failed(&question, Instant::now()) {
            metrics.cached(if stale.is_some() { "stale" } else { "hit" });
            return stale.unwrap_or_else(|| Reply::of(ResponseCode::ServFail));
        }
        // What has begun goes on, so that the next who asks finds it.
        let it = self.clone();
        let mut asked = tokio::spawn(async move { it.ask(question).await });
        let Some(stale) = stale else {
            metrics.cached("miss");
            return asked.await.ok().flatten().unwrap_or_else(|| Reply::of(ResponseCode::ServFail));
        };
        match timeout(IMPATIENCE, &mut asked).await {
            Ok(Ok(Some(reply))) => {
                metrics.cached("miss");
                reply
            }
            _ => {
                metrics.cached("stale");
                stale
            }
        }
    }

    async fn ask(&self, question: Question) -> Option<Reply> {
        let Shared { domains, cache, metrics } = &*self.0;
        let Some((_, servers)) = domains.iter().find(|(domain, _)| domain.zone_of(&question.name)) else {
            return Some(Reply::of(ResponseCode::Refused));
        };
        let start = Instant::now();
        let reply = servers.ask(&question).await;
        let now = Instant::now();
        metrics.forwarded(now - start, reply.is_some());
        match reply {
            Some(reply) => Some(cache.put(question, reply, now)),
            None => {
                cache.failed(question, now);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
