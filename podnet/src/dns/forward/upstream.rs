//! Servers that are asked in turn until one answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Question;
use crate::dns::server::message::Reply;

/// How long a server may take to answer. Clients wait for five seconds, which leaves time for another server.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server that does not answer is asked whether it is back.
const PROBE: Duration = Duration::from_secs(1);
/// What is taken by UDP, in bytes (RFC 9715).
const PAYLOAD: u16 = 1232;

/// Servers that answer the same questions.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<Arc<Upstream>>);

impl Upstreams {
    /// Those at these addresses, in the order in which they are asked.
    pub(super) fn new(addresses: &[SocketAddr]) -> Result<Self, NetError> {
        addresses
            .iter()
            .map(|address| Upstream::new(*address).map(Arc::new))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Asks one after the other, those last that did not answer before. `None` if none of them has an answer.
    pub(super) async fn ask(&self, question: &Question) -> Option<Reply> {
        let (failing, answering): (Vec<_>, Vec<_>) = self.0.iter().partition(|it| it.is_failing());
        for upstream in answering.into_iter().chain(failing) {
            match upstream.ask(question).await {
                Ok(reply) => return Some(reply),
                Err(NetError::Dns(error)) => {
                    debug!(server = %upstream.address, %error, "another server is asked");
                }
                Err(error) => upstream.fails(&error),
            }
        }
        None
    }
}

/// A server.
struct Upstream {
    address: SocketAddr,
    connections: NameServerPool<TokioRuntimeProvider>,
    failing: AtomicBool,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl Upstream {
    fn new(address: SocketAddr) -> Result<Self, NetError> {
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        options.attempts = 1;
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let at = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
        let server = NameServerConfig::new(address.ip(), true, connections);
        let connections = NameServerPool::from_config([server], context, TokioRuntimeProvider::default());
        Ok(Self { address, connections, failing: AtomicBool::new(false) })
    }

    fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Asks it; that there is no such name, or no such record, is an answer too.
    async fn ask(&self, question: &Question) -> Result<Reply, NetError> {
        let mut message = Message::query();
        message.add_query(Query::query(question.name.clone(), question.kind));
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = question.unchecked;
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.dnssec);
        message.set_edns(edns);
        let request = DnsRequest::new(message, DnsRequestOptions::default());
        match self.connections.send(request).next().await {
            Some(Ok(response)) => {
                let message = response.into_message();
                Ok(Reply {
                    answers: message.answers,
                    authorities: message.authorities,
                    additionals: message.additionals,
                    ..Reply::of(message.metadata.response_code)
                })
            }
            Some(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let soa = none.soa.map(|soa| soa.into_record_of_rdata());
                let authorities: Vec<Record> = match none.authorities {
                    Some(authorities) => authorities.to_vec(),
                    None => soa.into_iter().collect(),
                };
                Ok(Reply { authorities, ..Reply::of(none.response_code) })
            }
            Some(Err(error)) => Err(error),
            None => Err(NetError::NoConnections),
        }
    }

    /// Notes that it does not answer, and looks whether it is back until it is.
    fn fails(self: &Arc<Self>, error: &NetError) {
        if self.failing.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(server = %self.address, %error, "an upstream server does not answer: others are asked before it");
        let it = self.clone();
        tokio::spawn(async move {
            let probe =
                Question { name: Name::root(), kind: RecordType::NS, dnssec: false, unchecked: false };
            loop {
                sleep(PROBE).await;
                if matches!(it.ask(&probe).await, Ok(_) | Err(NetError::Dns(_))) {
                    break;
                }
            }
            it.failing.store(false, Ordering::Relaxed);
            info!(server = %it.address, "an upstream server answers again");
        });
    }
}
