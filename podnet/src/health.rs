//! Whether podnet keeps up with the cluster, as kube-proxy tells it at `/healthz` and `/livez`.
//!
//! The rule is that of kube-proxy (`pkg/proxy/healthcheck/proxy_health.go`): podnet is healthy unless a change
//! has been waiting for too long to get into the kernel. `/healthz` tells load balancers besides whether the
//! node is about to leave (KEP-3836); `/livez` does not.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use podnet_common::wire::Family;
use serde::{Serialize, Serializer};

/// How long a change may wait: two of kube-proxy's sync periods.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The families, and their names in Kubernetes.
pub const FAMILIES: [(Family, &str); 2] = [(Family::V4, "IPv4"), (Family::V6, "IPv6")];

/// A moment on both clocks: the one that is told, and the one that intervals are measured by.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time of day.
    pub time: Timestamp,
    /// The time that is never set.
    pub instant: Instant,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { time: Timestamp::now(), instant: Instant::now() }
    }
}

/// The progress of one family.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// When the kernel was last known to have all that had been read.
    updated: Option<Timestamp>,
    /// Since when a change has been waiting.
    waiting: Option<Instant>,
}

/// podnet's health. The clock is the caller's.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    progress: [Progress; 2],
    eligible: bool,
}

impl Default for Health {
    /// Healthy, on a node of which nothing bad is known.
    fn default() -> Self {
        Self { state: Mutex::new(State { progress: Default::default(), eligible: true }) }
    }
}

impl Health {
    /// Notes that a change of the family was read at `at`, and has to get into the kernel.
    pub fn queued(&self, family: Family, at: Instant) {
        self.state().of(family).waiting.get_or_insert(at);
    }

    /// Notes that the kernel has all that was read.
    pub fn updated(&self, family: Family, at: Timestamp) {
        *self.state().of(family) = Progress { updated: Some(at), waiting: None };
    }

    /// Notes whether load balancers may send new connections to this node.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().eligible = eligible;
    }

    /// Whether no change has been waiting for too long.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.state().progress.iter().all(|progress| progress.is_healthy(now))
    }

    /// What `/healthz` tells, and whether it is good news.
    pub fn healthz(&self, now: Moment) -> (bool, Report) {
        let state = self.state();
        let report = Report { node_eligible: Some(state.eligible), ..state.report(now) };
        report.answer(state.eligible)
    }

    /// What `/livez` tells, and whether it is good news.
    pub fn livez(&self, now: Moment) -> (bool, Report) {
        self.state().report(now).answer(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(&mut self, family: Family) -> &mut Progress {
        match family {
            Family::V4 => &mut self.progress[0],
            Family::V6 => &mut self.progress[1],
        }
    }

    fn report(&self, now: Moment) -> Report {
        let mut status = BTreeMap::new();
        for ((_, name), progress) in FAMILIES.into_iter().zip(self.progress) {
            // What has never been in the kernel is starting, which is nothing to worry about.
            if let Some(updated) = progress.updated {
                let healthy = progress.is_healthy(now.instant);
                status.insert(name, FamilyReport { last_updated: GoTime(Some(updated)), healthy });
            }
        }
        Report {
            last_updated: GoTime(self.progress.iter().filter_map(|progress| progress.updated).max()),
            current_time: GoTime(Some(now.time)),
            node_eligible: None,
            healthy: status.values().all(|family| family.healthy),
            status,
        }
    }
}

impl Progress {
    fn is_healthy(&self, now: Instant) -> bool {
        let late = self.waiting.is_some_and(|since| now.saturating_duration_since(since) >= TIMEOUT);
        self.updated.is_none() || !late
    }
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    last_updated: GoTime,
    current_time: GoTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: GoTime,
    healthy: bool,
}

impl Report {
    /// Whether it is good news, and the report as it is told.
    fn answer(self, eligible: bool) -> (bool, Self) {
        let healthy = self.healthy && eligible;
        // There are clients that take an old time for a proxy that hangs.
        let last_updated = if healthy { self.current_time } else { self.last_updated };
        (healthy, Self { last_updated, ..self })
    }
}

/// A time as Go writes it: never is the first of January of the year 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GoTime(Option<Timestamp>);

impl Serialize for GoTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => serializer.collect_str(&time),
            None => serializer.serialize_str("0001-01-01T00:00:00Z"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `seconds` after some start.
    fn after(start: Instant, seconds: u64) -> Moment {
        let time: Timestamp = "2026-11-25T08:00:00.5Z".parse().unwrap();
        let interval = Duration::from_secs(seconds);
        Moment { time: time + interval, instant: start + interval }
    }

    fn text(answer: (bool, Report)) -> (bool, String) {
        (answer.0, serde_json::to_string(&answer.1).unwrap())
    }

    fn updated(health: &Health, at: Moment) {
        for (family, _) in FAMILIES {
            health.updated(family, at.time);
        }
    }

    #[test]
    fn starting_is_healthy_and_has_no_status() {
        let (health, start) = (Health::default(), Instant::now());
        health.queued(Family::V4, start);
        assert_eq!(
            text(health.healthz(after(start, 1000))),
            (
                true,
                "{\"lastUpdated\":\"2026-11-25T08:16:40.5Z\",\"currentTime\":\"2026-11-25T08:16:40.5Z\",\
                 \"nodeEligible\":true,\"healthy\":true}"
                    .to_owned()
            )
        );
        health.set_node_eligible(false);
        let (healthy, body) = text(health.healthz(after(start, 0)));
        assert!(!healthy && body.starts_with("{\"lastUpdated\":\"0001-01-01T00:00:00Z\","), "{body}");
    }

    #[test]
    fn a_change_that_waits_too_long_is_ill_health_of_its_family() {
        let (health, start) = (Health::default(), Instant::now());
        updated(&health, after(start, 0));
        health.queued(Family::V6, start + Duration::from_secs(10));
        // The oldest counts.
        health.queued(Family::V6, start + Duration::from_secs(60));
        assert!(health.livez(after(start, 69)).0 && health.is_healthy(after(start, 69).instant));
        assert_eq!(
            text(health.livez(after(start, 70))),
            (
                false,
                "{\"lastUpdated\":\"2026-11-25T08:00:00.5Z\",\"currentTime\":\"2026-11-25T08:01:10.5Z\",\
                 \"healthy\":false,\"status\":{\"IPv4\":{\"lastUpdated\":\"2026-11-25T08:00:00.5Z\",\
                 \"healthy\":true},\"IPv6\":{\"lastUpdated\":\"2026-11-25T08:00:00.5Z\",\"healthy\":false}}}"
                    .to_owned()
            )
        );
        assert!(!health.healthz(after(start, 70)).0 && !health.is_healthy(after(start, 70).instant));
        updated(&health, after(start, 71));
        assert!(health.healthz(after(start, 1000)).0, "nothing waits");
    }

    #[test]
    fn a_node_that_leaves_is_alive_and_gets_no_traffic() {
        let (health, start) = (Health::default(), Instant::now());
        updated(&health, after(start, 0));
        health.set_node_eligible(false);
        let (healthy, body) = text(health.healthz(after(start, 5)));
        assert!(!healthy && body.contains("\"nodeEligible\":false,\"healthy\":true"), "{body}");
        assert!(body.contains("{\"lastUpdated\":\"2026-11-25T08:00:00.5Z\",\"currentTime\""), "{body}");
        let (alive, body) = text(health.livez(after(start, 5)));
        assert!(alive && !body.contains("nodeEligible"), "{body}");
        health.set_node_eligible(true);
        assert!(health.healthz(after(start, 5)).0);
    }
}
