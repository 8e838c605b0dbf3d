//! What podnet counts about itself.

pub mod kube_proxy;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tracing::debug;

use crate::changes::Changes;
use crate::cluster::object::Kind;
use crate::dns::metrics::DnsMetrics;
use crate::kernel::{Count, View};
use crate::plan::{Planner, Table};
use kube_proxy::KubeProxy;

type Label = [(&'static str, &'static str); 1];

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ready: AtomicBool,
    /// Events of objects, by kind.
    events: Family<Label, Counter>,
    /// Writes to the kernel's tables, by table.
    writes: Family<Label, Counter>,
    /// How long batches of changes took to carry out, in seconds.
    pub apply: Histogram,
    /// How long events took from being read until they were in the kernel, in seconds.
    pub latency: Histogram,
    /// Batches that could not be carried out.
    pub failures: Counter,
    used: Family<Label, Gauge>,
    capacity: Family<Label, Gauge>,
    full: Family<Label, Gauge>,
    /// Interfaces that face pods.
    pub interfaces: Gauge,
    /// What kube-proxy counts about itself.
    pub kube_proxy: KubeProxy,
    /// What is counted of names.
    pub dns: DnsMetrics,
}

/// The text formats of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// That of OpenMetrics.
    OpenMetrics,
    /// The older one of Prometheus.
    Prometheus,
}

impl Format {
    /// The best one that a client takes, by the header `Accept`.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The value of the header `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

impl Metrics {
    /// Metrics of an agent on `node`; the kernel's counters are read from under `bpffs`.
    pub fn new(node: String, bpffs: PathBuf) -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        let mut registry = Registry::default();
        let kube_proxy = KubeProxy::register(registry.sub_registry_with_prefix("kubeproxy"));
        let dns = DnsMetrics::register(registry.sub_registry_with_prefix("podnet_dns"));
        let mut metrics = Self {
            registry,
            ready: AtomicBool::new(false),
            events: Family::default(),
            writes: Family::default(),
            apply: histogram(),
            latency: histogram(),
            failures: Counter::default(),
            used: Family::default(),
            capacity: Family::default(),
            full: Family::default(),
            interfaces: Gauge::default(),
            kube_proxy,
            dns,
        };
        let agent = Info::new([("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", node)]);
        let it = metrics.registry.sub_registry_with_prefix("podnet");
        it.register("agent", "The agent that runs", agent);
        it.register("events", "Events of objects, by kind", metrics.events.clone());
        it.register("table_writes", "Writes to the kernel's tables", metrics.writes.clone());
        let help = "How long batches of changes took to carry out";
        it.register_with_unit("apply", help, Unit::Seconds, metrics.apply.clone());
        let help = "How long events took from being read until they were in the kernel";
        it.register_with_unit("programming_latency", help, Unit::Seconds, metrics.latency.clone());
        it.register("apply_failures", "Batches that could not be carried out", metrics.failures.clone());
        it.register("table_used_entries", "Entries in use, by table", metrics.used.clone());
        it.register("table_capacity_entries", "Entries there are, by table", metrics.capacity.clone());
        let help = "1 while something waits for room in the table";
        it.register("table_full", help, metrics.full.clone());
        it.register("pod_interfaces", "Interfaces that face pods", metrics.interfaces.clone());
        it.register_collector(Box::new(Verdicts { bpffs }));
        metrics
    }

    /// Counts an event.
    pub fn event(&self, kind: Kind) {
        self.events.get_or_create(&[("kind", kind.name())]).inc();
    }

    /// Counts the writes of a batch.
    pub fn wrote(&self, changes: &Changes) {
        let frontends = changes.frontends.len() + changes.removed_frontends.len();
        let backends = changes.backends.len() + changes.gone.len();
        let sources = changes.sources.len() + changes.removed_sources.len();
        let counts = [frontends, changes.slots.len(), backends, sources];
        for (table, count) in Table::ALL.into_iter().zip(counts) {
            self.writes.get_or_create(&[("table", table.name())]).inc_by(count as u64);
        }
    }

    /// Takes over how full the tables are.
    pub fn tables(&self, planner: &Planner) {
        for usage in planner.usage() {
            let label = [("table", usage.table.name())];
            self.used.get_or_create(&label).set(usage.used.into());
            self.capacity.get_or_create(&label).set(usage.capacity.into());
            self.full.get_or_create(&label).set(planner.is_full(usage.table).into());
        }
    }

    /// Whether what was there at the start is in the kernel.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Notes that what was there at the start is in the kernel.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// All metrics.
    pub fn encode(&self, format: Format) -> String {
        let mut encoded = String::new();
        // Writing to a string cannot fail.
        let _ = match format {
            Format::OpenMetrics => text::encode(&mut encoded, &self.registry),
            Format::Prometheus => prometheus_text::encode(&mut encoded, &self.registry),
        };
        encoded
    }
}

/// The kernel programs' counters.
#[derive(Debug)]
struct Verdicts {
    bpffs: PathBuf,
}

impl Collector for Verdicts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = match View::open(&self.bpffs).and_then(|view| view.counters()) {
            Ok(counters) => counters,
            Err(error) => {
                debug!(%error, "the kernel's counters cannot be read");
                return Ok(());
            }
        };
        let help = "Packets and socket calls, by what became of them";
        let mut family = encoder.encode_descriptor("verdicts", help, None, MetricType::Counter)?;
        for Count { layer, reason, count } in counters {
            let label = [("reason", reason.label()), ("layer", layer.label())];
            ConstCounter::new(count).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::{Capacity, Snapshot};

    #[test]
    fn metrics_have_podnets_names() {
        let metrics = Metrics::new("node-a".to_owned(), PathBuf::from("/no/such/directory"));
        metrics.event(Kind::Service);
        metrics.tables(&Planner::adopt(&Capacity::default(), &Snapshot::default()));
        metrics.latency.observe(0.003);
        let text = metrics.encode(Format::OpenMetrics);
        for line in [
            "podnet_agent_info{version=\"0.1.0\",node=\"node-a\"} 1",
            "podnet_events_total{kind=\"Service\"} 1",
            "podnet_table_full{table=\"SLOTS\"} 0",
            "podnet_table_capacity_entries{table=\"FRONTENDS\"} 65536",
            "podnet_programming_latency_seconds_count 1",
        ] {
            assert!(text.contains(line), "no {line} in:\n{text}");
        }
    }
}
