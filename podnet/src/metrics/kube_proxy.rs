//! Metrics by kube-proxy's names, for the dashboards and alerts that ask for those.
//!
//! Names, labels and bounds of buckets are those of `pkg/proxy/metrics/metrics.go`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use podnet_common::wire::Family as IpFamily;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::Label;
use crate::health::FAMILIES;

type ByFamily<M> = Family<Label, M, fn() -> M>;
type Time = Gauge<f64, AtomicU64>;

/// kube-proxy's metrics.
#[derive(Debug)]
pub struct KubeProxy {
    sync: ByFamily<Histogram>,
    programming: ByFamily<Histogram>,
    last_sync: ByFamily<Time>,
    last_queued: ByFamily<Time>,
    /// Changes of endpoints that the kernel does not have yet.
    pub endpoint_changes_pending: Gauge,
    /// All changes of endpoints that were read.
    pub endpoint_changes: Counter,
    /// Services whose changes the kernel does not have yet.
    pub service_changes_pending: Gauge,
    /// All changes of Services that were read.
    pub service_changes: Counter,
    no_local_endpoints: Family<PolicyLabels, Gauge>,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
}

type CodeLabel = [(&'static str, u16); 1];
type PolicyLabels = [(&'static str, &'static str); 2];

/// The policies by which a Service keeps to the endpoints of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficPolicy {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

impl TrafficPolicy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Internal, Self::External];

    const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

impl KubeProxy {
    /// The metrics, known to `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let it = Self {
            sync: Family::new_with_constructor(sync_histogram),
            programming: Family::new_with_constructor(programming_histogram),
            last_sync: Family::new_with_constructor(Time::default),
            last_queued: Family::new_with_constructor(Time::default),
            endpoint_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        // A family that nothing has happened to yet is there as well, for the sake of rates.
        for (family, _) in FAMILIES {
            drop(it.sync.get_or_create(&label(family)));
            drop(it.programming.get_or_create(&label(family)));
        }
        let help = "How long rounds took that brought changes to the kernel";
        registry.register("sync_proxy_rules_duration_seconds", help, it.sync.clone());
        let help = "How long changes of endpoints took from their trigger until they were in the kernel";
        registry.register("network_programming_duration_seconds", help, it.programming.clone());
        let help = "When the kernel was last known to have all that had been read";
        registry.register("sync_proxy_rules_last_timestamp_seconds", help, it.last_sync.clone());
        let help = "When a change was last read";
        registry.register("sync_proxy_rules_last_queued_timestamp_seconds", help, it.last_queued.clone());
        let help = "Changes of endpoints that the kernel does not have yet";
        let pending = it.endpoint_changes_pending.clone();
        registry.register("sync_proxy_rules_endpoint_changes_pending", help, pending);
        let help = "Changes of endpoints that were read";
        registry.register("sync_proxy_rules_endpoint_changes", help, it.endpoint_changes.clone());
        let help = "Services whose changes the kernel does not have yet";
        let pending = it.service_changes_pending.clone();
        registry.register("sync_proxy_rules_service_changes_pending", help, pending);
        let help = "Changes of Services that were read";
        registry.register("sync_proxy_rules_service_changes", help, it.service_changes.clone());
        let help = "Ports of Services with the policy Local that have no endpoint here but some elsewhere";
        let policies = it.no_local_endpoints.clone();
        registry.register("sync_proxy_rules_no_local_endpoints_total", help, policies);
        registry.register("proxy_healthz", "Answers at /healthz, by their code", it.healthz.clone());
        registry.register("proxy_livez", "Answers at /livez, by their code", it.livez.clone());
        it
    }

    /// Notes that a change of the family was read.
    pub fn queued(&self, family: IpFamily, at: Timestamp) {
        self.last_queued.get_or_create(&label(family)).set(at.as_duration().as_secs_f64());
    }

    /// Notes that the kernel has all that was read of the family.
    pub fn synced(&self, family: IpFamily, at: Timestamp) {
        self.last_sync.get_or_create(&label(family)).set(at.as_duration().as_secs_f64());
    }

    /// Notes how long it took to get changes of the family into the kernel.
    pub fn took(&self, family: IpFamily, elapsed: Duration) {
        self.sync.get_or_create(&label(family)).observe(elapsed.as_secs_f64());
    }

    /// Notes how long it took from a change in the cluster until the kernel had its outcome, in seconds.
    pub fn programmed(&self, family: IpFamily, seconds: f64) {
        self.programming.get_or_create(&label(family)).observe(seconds);
    }

    /// Notes how many ports of Services keep to the endpoints of this node, where there are none.
    pub fn no_local_endpoints(&self, policy: TrafficPolicy, family: IpFamily, ports: usize) {
        let [family] = label(family);
        let gauge = self.no_local_endpoints.get_or_create(&[("traffic_policy", policy.name()), family]);
        gauge.set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    /// Counts an answer at `/healthz`.
    pub fn answered_healthz(&self, code: u16) {
        self.healthz.get_or_create(&[("code", code)]).inc();
    }

    /// Counts an answer at `/livez`.
    pub fn answered_livez(&self, code: u16) {
        self.livez.get_or_create(&[("code", code)]).inc();
    }
}

fn label(family: IpFamily) -> Label {
    let name = FAMILIES.into_iter().find(|(it, _)| *it == family).map_or("", |(_, name)| name);
    [("ip_family", name)]
}

fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn programming_histogram() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text;

    use super::*;

    #[test]
    fn metrics_have_kube_proxys_names_labels_and_buckets() {
        let mut registry = Registry::with_prefix("kubeproxy");
        let metrics = KubeProxy::register(&mut registry);
        let time = "2026-11-25T08:00:00.5Z".parse().unwrap();
        metrics.queued(IpFamily::V4, time);
        metrics.synced(IpFamily::V6, time);
        metrics.took(IpFamily::V4, Duration::from_millis(3));
        metrics.programmed(IpFamily::V6, 61.0);
        metrics.endpoint_changes.inc();
        metrics.service_changes_pending.set(2);
        metrics.no_local_endpoints(TrafficPolicy::Internal, IpFamily::V4, 3);
        metrics.answered_healthz(503);
        metrics.answered_livez(200);
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1795593600.5",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 1795593600.5",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0",
            "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv6\"} 61.0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_pending 2",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 3",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in:\n{text}");
        }
        let bounds = |name: &str| {
            let start = format!("kubeproxy_{name}_bucket");
            let of_v6 = text.lines().filter(|line| line.starts_with(&start) && line.contains("\"IPv6\""));
            let bounds = of_v6.filter_map(|line| line.split("le=\"").nth(1)?.split('"').next());
            bounds.map(|bound| bound.parse().unwrap()).collect::<Vec<f64>>()
        };
        let sync = bounds("sync_proxy_rules_duration_seconds");
        assert_eq!((sync[0], sync[14], sync.len()), (0.001, 16.384, 16));
        let programming = bounds("network_programming_duration_seconds");
        assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1);
        assert_eq!(programming[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(programming[60..63], [59.0, 60.0, 65.0]);
        assert_eq!(
            programming[72..],
            [115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0, f64::INFINITY]
        );
    }
}
