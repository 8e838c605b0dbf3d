//! Whether two outcomes are a difference.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::objects::Protocol;
use super::semantics::{Event, Expected, Outcome, Probe, Source, Vantage, Way};

/// A probe, what must become of it, and what does.
#[derive(Clone, Debug)]
pub struct Case {
    /// The probe.
    pub probe: Probe,
    /// What the contract says.
    pub expected: Expected,
    /// What kube-proxy does.
    pub kube_proxy: Outcome,
    /// What each podnet does.
    pub podnet: Vec<Outcome>,
}

/// A way in which podnet is meant to differ from kube-proxy.
pub struct Intended {
    /// What podnet does.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
    /// Whether this is it, when kube-proxy's outcome is the first and the contract's the second.
    applies: fn(&Probe, &Outcome, &Outcome) -> bool,
}

/// All ways in which podnet is meant to differ from kube-proxy.
pub const INTENDED: &[Intended] = &[
    Intended {
        what: "IPv6 TCP to a Service without endpoints is refused",
        why: "kube-proxy 1.37 means to refuse it too, and its client waits until it gives up",
        applies: |probe, kube_proxy, podnet| {
            probe.protocol == Protocol::Tcp
                && probe.address.is_ipv6()
                && *kube_proxy == Outcome::from([Event::Silence])
                && *podnet == Outcome::from([Event::Refusal])
        },
    },
    Intended {
        what: "a datagram of the node itself is refused, or lost, as other clients' are",
        why: "kube-proxy's verdict on what its own node sends fails the call: EPERM, which says nothing",
        applies: |probe, kube_proxy, podnet| {
            let no_answer = |outcome: &Outcome| {
                outcome.iter().all(|event| *event == Event::Refusal || *event == Event::Silence)
            };
            probe.from == Vantage::Node
                && probe.protocol == Protocol::Udp
                && kube_proxy.contains(&Event::Failure("PermissionDenied".to_owned()))
                && kube_proxy.iter().all(|event| !matches!(event, Event::Answer { .. }))
                && no_answer(podnet)
        },
    },
    Intended {
        what: "a client keeps its address where the reply comes back through this node anyway",
        why: "backends see who asks; kube-proxy masquerades all external traffic of the policy Cluster",
        applies: |probe, kube_proxy, podnet| {
            let masqueraded = |event: &Event| match event {
                Event::Answer { backend, port, source: Source::Client | Source::Node | Source::Itself } => {
                    Event::Answer { backend: *backend, port: *port, source: Source::Node }
                }
                other => other.clone(),
            };
            probe.way != Way::ClusterIp
                && kube_proxy.iter().map(masqueraded).eq(podnet.iter().map(masqueraded))
        },
    },
];

/// What a case comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both do the same.
    Same,
    /// They differ as [`INTENDED`] says, by its index.
    Intended(usize),
    /// They differ, or do the same and the contract says otherwise.
    Different,
}

impl Case {
    /// What the case comes to.
    pub fn verdict(&self) -> Verdict {
        if !self.podnet.iter().all(|found| self.expected.admits(found)) {
            return Verdict::Different;
        }
        if self.expected.admits(&self.kube_proxy) {
            return Verdict::Same;
        }
        let applies = |intended: &Intended| {
            let Expected { outcome, sticky } = &self.expected;
            if !sticky {
                return (intended.applies)(&self.probe, &self.kube_proxy, outcome);
            }
            // One of what the contract admits.
            self.kube_proxy.len() == 1
                && outcome.iter().any(|event| {
                    (intended.applies)(&self.probe, &self.kube_proxy, &Outcome::from([event.clone()]))
                })
        };
        INTENDED.iter().position(applies).map_or(Verdict::Different, Verdict::Intended)
    }
}

/// What many cases came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many histories.
    pub histories: u64,
    /// How many steps.
    pub steps: u64,
    /// How many cases.
    pub cases: u64,
    /// How many of them end how, as far as they are what was expected.
    pub ends: BTreeMap<(Way, &'static str), u64>,
    /// How many requests were sent.
    pub requests: u64,
    /// How many cases differ as intended, by the index in [`INTENDED`].
    pub intended: BTreeMap<usize, u64>,
    /// How many cases differ.
    pub differences: u64,
}

impl Tally {
    /// Counts a case.
    pub fn count(&mut self, case: &Case) {
        self.cases += 1;
        match case.verdict() {
            Verdict::Same => {}
            Verdict::Intended(index) => *self.intended.entry(index).or_default() += 1,
            Verdict::Different => {
                self.differences += 1;
                return;
            }
        }
        let Expected { outcome, sticky } = &case.expected;
        let end = match outcome.first() {
            Some(Event::Answer { .. }) if *sticky => "answered by the same backend",
            Some(Event::Answer { .. }) if outcome.len() > 1 => "answered by several backends",
            Some(Event::Answer { .. }) => "answered by one backend",
            Some(Event::Refusal) => "refused",
            _ => "lost",
        };
        *self.ends.entry((case.probe.way, end)).or_default() += 1;
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { histories, steps, cases, ends, requests, intended, differences } = self;
        writeln!(
            f,
            "{histories} histories of {steps} steps, {cases} cases of {requests} requests, {differences} differences"
        )?;
        for ((way, end), count) in ends {
            writeln!(f, "{count} to a {way:?} {end}")?;
        }
        for (index, count) in intended {
            writeln!(f, "{count} times, as intended: {} ({})", INTENDED[*index].what, INTENDED[*index].why)?;
        }
        Ok(())
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probe, expected, kube_proxy, podnet } = self;
        writeln!(
            f,
            "{:?} -> s{} {:?} {} {} {}",
            probe.from,
            probe.slot,
            probe.way,
            probe.address,
            probe.port,
            probe.protocol.name()
        )?;
        let rule = if expected.sticky { "one of " } else { "" };
        writeln!(f, "  expected:   {rule}{}", show(&expected.outcome))?;
        writeln!(f, "  kube-proxy: {}", show(kube_proxy))?;
        for found in podnet {
            writeln!(f, "  podnet:     {}", show(found))?;
        }
        Ok(())
    }
}

fn show(outcome: &Outcome) -> String {
    let events: Vec<_> = outcome
        .iter()
        .map(|event| match event {
            Event::Answer { backend, port, source } => format!("{backend}:{port} from {source:?}"),
            other => format!("{other:?}"),
        })
        .collect();
    events.join(", ")
}
