//! What is counted of names.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of the server. Copies count together.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    queries: Family<Labels<3>, Counter>,
    cache: Family<Labels<1>, Counter>,
    forward: Histogram,
    failures: Counter,
}

impl DnsMetrics {
    /// The metrics, known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let it = Self {
            queries: Family::default(),
            cache: Family::default(),
            forward: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            failures: Counter::default(),
        };
        let help = "Questions for names, by whose names they are, by the answer's code and by transport";
        registry.register("queries", help, it.queries.clone());
        let help =
            "Questions for names outside, by whether an answer was there: a hit, a stale one, or a miss";
        registry.register("cache", help, it.cache.clone());
        let help = "How long other servers took to answer";
        registry.register_with_unit("forward", help, Unit::Seconds, it.forward.clone());
        registry.register("forward_failures", "Questions that no other server answered", it.failures.clone());
        it
    }

    /// Counts a question and its answer.
    pub(super) fn answered(&self, zone: &'static str, code: ResponseCode, transport: &'static str) {
        let labels = [("zone", zone), ("rcode", name(code)), ("transport", transport)];
        self.queries.get_or_create(&labels).inc();
    }

    /// Counts a question for a name outside.
    pub(super) fn cached(&self, result: &'static str) {
        self.cache.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a question that other servers were asked.
    pub(super) fn forwarded(&self, took: Duration, answered: bool) {
        self.forward.observe(took.as_secs_f64());
        if !answered {
            self.failures.inc();
        }
    }
}

/// The name of a code, as in the registry of DNS parameters.
const fn name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
