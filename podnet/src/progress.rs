//! What was read and is not in the kernel yet, for health and metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use podnet_common::service::{BackendFlags, FrontendFlags, FrontendKind};
use podnet_common::wire::Family;

use crate::cluster::Event;
use crate::cluster::model::{Frontend, ServicePort};
use crate::cluster::object::{Key, Kind, Object};
use crate::health::{FAMILIES, Health, Moment};
use crate::metrics::Metrics;
use crate::metrics::kube_proxy::TrafficPolicy;

/// What an event is about.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service, which concerns both families.
    Service(Key),
    /// A slice that is there, new or changed.
    Slice {
        /// Its key.
        key: Key,
        /// The family of its endpoints.
        family: Family,
        /// When what it tells began to happen.
        trigger: Option<Timestamp>,
    },
    /// A slice that is gone.
    NoSlice(Key),
}

impl Change {
    /// What `event` is about; `None` if it changes neither a Service nor a slice.
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Apply(Object::Service(service)) => Some(Self::Service(service.key.clone())),
            Event::Apply(Object::EndpointSlice(slice)) => {
                Some(Self::Slice { key: slice.key.clone(), family: slice.family, trigger: slice.trigger })
            }
            Event::Delete(Kind::Service, key) => Some(Self::Service(key.clone())),
            Event::Delete(Kind::EndpointSlice, key) => Some(Self::NoSlice(key.clone())),
            _ => None,
        }
    }
}

/// What is on the way from the source to the kernel.
#[derive(Debug)]
pub struct Progress {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// What had begun before is told at the start, however old it is.
    started: Timestamp,
    families: BTreeSet<Family>,
    services: HashSet<Key>,
    /// When the changes of slices began that the kernel does not have yet.
    triggers: HashMap<Key, (Family, Vec<Timestamp>)>,
    no_local_endpoints: NoLocalEndpoints,
}

impl Progress {
    /// Nothing has been read yet.
    pub fn new(health: Arc<Health>, metrics: Arc<Metrics>, started: Timestamp) -> Self {
        Self {
            health,
            metrics,
            started,
            families: BTreeSet::new(),
            services: HashSet::new(),
            triggers: HashMap::new(),
            no_local_endpoints: NoLocalEndpoints::default(),
        }
    }

    /// Notes what was read at `at`, and whether it was news.
    pub fn read(&mut self, change: Change, news: bool, at: Moment) {
        let metrics = &self.metrics.kube_proxy;
        match &change {
            Change::Service(_) => metrics.service_changes.inc(),
            Change::Slice { .. } | Change::NoSlice(_) => metrics.endpoint_changes.inc(),
        };
        if !news {
            return;
        }
        match change {
            Change::Service(key) => {
                self.services.insert(key);
                metrics.service_changes_pending.set(i64::try_from(self.services.len()).unwrap_or(i64::MAX));
                self.queue_all(at);
            }
            Change::Slice { key, family, trigger } => {
                metrics.endpoint_changes_pending.inc();
                if let Some(trigger) = trigger.filter(|trigger| *trigger > self.started) {
                    self.triggers.entry(key).or_insert((family, Vec::new())).1.push(trigger);
                }
                self.queue(family, at);
            }
            Change::NoSlice(key) => {
                metrics.endpoint_changes_pending.inc();
                // What a slice told last is no trigger of its end.
                self.triggers.remove(&key);
                self.queue_all(at);
            }
        }
    }

    /// Notes that what was read could not be brought to the kernel.
    pub fn failed(&mut self, at: Moment) {
        self.queue_all(at);
    }

    /// Notes that the kernel has all that was read, and how long it took to bring it there.
    pub fn done(&mut self, elapsed: Duration, at: Moment) {
        let metrics = &self.metrics.kube_proxy;
        for (family, _) in FAMILIES {
            self.health.updated(family, at.time);
            metrics.synced(family, at.time);
        }
        for family in std::mem::take(&mut self.families) {
            metrics.took(family, elapsed);
        }
        for (_, (family, triggers)) in self.triggers.drain() {
            for trigger in triggers {
                // Another machine's clock told the trigger.
                metrics.programmed(family, at.time.duration_since(trigger).as_secs_f64().max(0.0));
            }
        }
        for policy in TrafficPolicy::ALL {
            for (family, _) in FAMILIES {
                metrics.no_local_endpoints(policy, family, self.no_local_endpoints.count(policy, family));
            }
        }
        self.services.clear();
        metrics.service_changes_pending.set(0);
        metrics.endpoint_changes_pending.set(0);
    }

    /// Passes on the ports of what has `key`, and notes which of them have no endpoint that they may use; none
    /// for what is gone.
    pub fn planned(&mut self, key: &Key, ports: Vec<ServicePort>) -> Vec<ServicePort> {
        self.no_local_endpoints.set(key, without_local_endpoints(&ports));
        ports
    }

    fn queue_all(&mut self, at: Moment) {
        for (family, _) in FAMILIES {
            self.queue(family, at);
        }
    }

    fn queue(&mut self, family: Family, at: Moment) {
        self.families.insert(family);
        self.health.queued(family, at.instant);
        self.metrics.kube_proxy.queued(family, at.time);
    }
}

/// The ports that keep to the endpoints of this node by a policy, where there are endpoints elsewhere only.
fn without_local_endpoints(ports: &[ServicePort]) -> Vec<(TrafficPolicy, Family)> {
    let inside = FrontendFlags::INSIDE_LOCAL.with(FrontendFlags::INSIDE_DROP);
    let outside = FrontendFlags::OUTSIDE_LOCAL.with(FrontendFlags::OUTSIDE_DROP);
    let mut found = Vec::new();
    for port in ports {
        if port.members.iter().any(|member| member.flags.has(BackendFlags::IN_LOCAL)) {
            continue;
        }
        let any = |flags, internal| {
            let of_policy = |it: &&Frontend| (it.kind == FrontendKind::CLUSTER_IP) == internal;
            port.frontends.iter().filter(of_policy).any(|frontend| frontend.flags.has(flags))
        };
        if any(inside, true) {
            found.push((TrafficPolicy::Internal, port.family));
        }
        if any(outside, false) {
            found.push((TrafficPolicy::External, port.family));
        }
    }
    found
}

/// The ports of Services that keep to the endpoints of this node, where there are none.
#[derive(Debug, Default)]
struct NoLocalEndpoints {
    of: HashMap<Key, Vec<(TrafficPolicy, Family)>>,
    counts: BTreeMap<(TrafficPolicy, Family), usize>,
}

impl NoLocalEndpoints {
    fn set(&mut self, service: &Key, ports: Vec<(TrafficPolicy, Family)>) {
        for port in self.of.remove(service).into_iter().flatten() {
            if let Some(count) = self.counts.get_mut(&port) {
                *count -= 1;
            }
        }
        for port in &ports {
            *self.counts.entry(*port).or_default() += 1;
        }
        if !ports.is_empty() {
            self.of.insert(service.clone(), ports);
        }
    }

    fn count(&self, policy: TrafficPolicy, family: Family) -> usize {
        self.counts.get(&(policy, family)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use k8s_openapi::jiff::SignedDuration;

    use super::*;
    use crate::cluster::index::Index;
    use crate::cluster::manifests;
    use crate::cluster::model::service_ports;
    use crate::cluster::node::ProxySettings;
    use crate::health::TIMEOUT;
    use crate::metrics::Format;

    struct Scene {
        progress: Progress,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        start: Moment,
    }

    fn scene() -> Scene {
        let metrics = Arc::new(Metrics::new("a".to_owned(), PathBuf::from("/no/such/directory")));
        let (health, start) = (Arc::new(Health::default()), Moment::now());
        let progress = Progress::new(health.clone(), metrics.clone(), start.time);
        Scene { progress, health, metrics, start }
    }

    impl Scene {
        fn after(&self, seconds: u64) -> Moment {
            let interval = Duration::from_secs(seconds);
            Moment { time: self.start.time + interval, instant: self.start.instant + interval }
        }

        fn slice(&self, name: &str, family: Family, trigger: i64) -> Change {
            let trigger = self.start.time + SignedDuration::from_secs(trigger);
            Change::Slice { key: Key::new("ns", name), family, trigger: Some(trigger) }
        }

        fn has(&self, line: &str) -> bool {
            let text = self.metrics.encode(Format::Prometheus);
            text.lines().any(|it| it == line)
        }
    }

    #[test]
    fn latency_is_measured_from_the_trigger() {
        let mut scene = scene();
        let changes = [
            scene.slice("a", Family::V4, 2),
            scene.slice("a", Family::V4, 3),
            scene.slice("b", Family::V6, 9),
        ];
        for change in changes {
            scene.progress.read(change, true, scene.after(10));
        }
        // It began before the agent did.
        scene.progress.read(scene.slice("old", Family::V6, -5), true, scene.after(10));
        // It is as it was.
        scene.progress.read(scene.slice("c", Family::V6, 8), false, scene.after(10));
        // It came and went.
        scene.progress.read(scene.slice("d", Family::V6, 7), true, scene.after(10));
        scene.progress.read(Change::NoSlice(Key::new("ns", "d")), true, scene.after(10));
        assert!(scene.has("kubeproxy_sync_proxy_rules_endpoint_changes_total 7"));
        assert!(scene.has("kubeproxy_sync_proxy_rules_endpoint_changes_pending 6"));
        scene.progress.done(Duration::from_millis(5), scene.after(11));
        assert!(scene.has("kubeproxy_sync_proxy_rules_endpoint_changes_pending 0"));
        assert!(scene.has("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2"));
        assert!(scene.has("kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 17.0"));
        assert!(scene.has("kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv6\"} 2.0"));
        scene.progress.done(Duration::from_millis(5), scene.after(20));
        assert!(scene.has("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2"));
        assert!(scene.has("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1"));
    }

    #[test]
    fn services_wait_once_each() {
        let mut scene = scene();
        for name in ["a", "b", "a"] {
            scene.progress.read(Change::Service(Key::new("ns", name)), true, scene.after(0));
        }
        assert!(scene.has("kubeproxy_sync_proxy_rules_service_changes_total 3"));
        assert!(scene.has("kubeproxy_sync_proxy_rules_service_changes_pending 2"));
        scene.progress.done(Duration::ZERO, scene.after(1));
        assert!(scene.has("kubeproxy_sync_proxy_rules_service_changes_pending 0"));
    }

    #[test]
    fn what_fails_for_long_is_ill_health() {
        let mut scene = scene();
        let late = TIMEOUT.as_secs();
        scene.progress.done(Duration::ZERO, scene.after(0));
        let healthy = |scene: &Scene, now: Instant| scene.health.is_healthy(now);
        for second in [1, 2, late] {
            scene.progress.failed(scene.after(second));
            assert!(healthy(&scene, scene.after(second).instant));
        }
        assert!(!healthy(&scene, scene.after(late + 1).instant));
        scene.progress.done(Duration::ZERO, scene.after(late + 2));
        assert!(healthy(&scene, scene.after(late + 2).instant));
    }

    #[test]
    fn ports_without_local_endpoints_are_counted() {
        let mut scene = scene();
        let mut index = Index::new(ProxySettings { node: "here".to_owned(), ..ProxySettings::default() });
        let mut say = |node: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: LoadBalancer, \
                 internalTrafficPolicy: Local, externalTrafficPolicy: Local, clusterIP: 10.96.0.1, externalIPs: \
                 [192.0.2.9], ports: [{{name: a, port: 80}}, {{name: b, port: 81}}]}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
                 {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: a, port: 80}}]\n\
                 endpoints: [{{addresses: [10.0.0.1], nodeName: {node}}}]\n"
            );
            for object in manifests::parse(&text).unwrap() {
                index.handle(Event::Apply(object));
            }
            let key = Key::new("default", "web");
            scene.progress.planned(&key, service_ports(&index, &key));
            scene.progress.done(Duration::ZERO, scene.start);
            ["internal", "external"].map(|policy| {
                let labels = format!("{{traffic_policy=\"{policy}\",ip_family=\"IPv4\"}}");
                let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
                (0..4).find(|count| scene.has(&format!("{name}{labels} {count}"))).unwrap()
            })
        };
        // The port b has no endpoint anywhere, and is refused for that.
        assert_eq!(say("elsewhere"), [1, 1]);
        assert_eq!(say("here"), [0, 0]);
        assert_eq!(say("elsewhere"), [1, 1]);
        scene.progress.planned(&Key::new("default", "web"), Vec::new());
        scene.progress.done(Duration::ZERO, scene.start);
        let labels = "{traffic_policy=\"external\",ip_family=\"IPv4\"}";
        assert!(scene.has(&format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{labels} 0")));
    }
}
