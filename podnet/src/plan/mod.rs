//! From what the cluster wants to what the kernel's tables must hold: pure, of the [`Ledger`]'s memory.

mod adopt;
mod frontends;
mod ledger;
pub mod maglev;
mod name;
mod places;
mod quarantine;
mod ranges;
mod slots;

#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub use ledger::{Conflict, Full, Ledger, Table, Usage};
pub use name::PortName;
use podnet_common::network::ServiceNetworks;
use podnet_common::service::ServiceId;

use ledger::{Rank, rank};

use crate::changes::{Capacity, Changes, Snapshot, SourceRange};
use crate::cluster::model::ServicePort;
use crate::cluster::object::Key;

/// What comes of some services' changes.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to change in the kernel.
    pub changes: Changes,
    /// Frontends that another service holds, as far as that is new.
    pub conflicts: Vec<Conflict>,
    /// Services that the tables have no room for, as far as that is new. They stay as they were.
    pub full: Vec<(Key, Full)>,
    /// Services that had no room and now have it.
    pub fit: Vec<Key>,
}

/// The services that are to be updated, each with its ports, in the order in which that disturbs nobody:
/// those without ports give up what others may wait for, and then the older come before the younger.
struct Queue<M> {
    model: M,
    services: BTreeMap<(bool, Rank), Vec<ServicePort>>,
}

impl<M: Fn(&Key) -> Vec<ServicePort>> Queue<M> {
    fn new(model: M) -> Self {
        Self { model, services: BTreeMap::new() }
    }

    fn extend(&mut self, services: impl IntoIterator<Item = Key>) {
        for service in services {
            let ports = (self.model)(&service);
            self.services.insert((!ports.is_empty(), rank(&service, &ports)), ports);
        }
    }

    fn pop(&mut self) -> Option<(Key, Vec<ServicePort>)> {
        let ((_, (_, service)), ports) = self.services.pop_first()?;
        Some((service, ports))
    }
}

/// Plans batches of changes, and keeps those services waiting that there is no room for.
#[derive(Debug)]
pub struct Planner {
    ledger: Ledger,
    waiting: BTreeMap<Key, Full>,
    /// The networks of ClusterIPs that are desired, and those that the kernel has.
    networks: ServiceNetworks,
    networks_carried_out: ServiceNetworks,
    /// The same of the cluster's pods.
    pods: BTreeSet<SourceRange>,
    pods_carried_out: BTreeSet<SourceRange>,
}

/// The networks of the cluster's pods that the tables hold.
fn pods_of(snapshot: &Snapshot) -> BTreeSet<SourceRange> {
    snapshot.sources.iter().filter(|range| range.service == ServiceId::PODS).copied().collect()
}

impl Planner {
    /// A planner over tables of `capacity` that hold `snapshot`.
    pub fn adopt(capacity: &Capacity, snapshot: &Snapshot) -> Self {
        Self {
            ledger: Ledger::adopt(capacity, snapshot),
            waiting: BTreeMap::new(),
            networks: snapshot.networks,
            networks_carried_out: snapshot.networks,
            pods: pods_of(snapshot),
            pods_carried_out: pods_of(snapshot),
        }
    }

    /// Takes over tables that hold `snapshot` and not what was planned. What has been told of before is not
    /// told again, and what may be on its way to be read rests as usual. [`reconcile`](Self::reconcile) is to
    /// follow.
    pub fn adopt_again(&mut self, capacity: &Capacity, snapshot: &Snapshot) {
        let before = std::mem::replace(&mut self.ledger, Ledger::adopt(capacity, snapshot));
        self.ledger.follow(before);
        self.networks_carried_out = snapshot.networks;
        self.pods_carried_out = pods_of(snapshot);
    }

    /// Has the next plan bring the kernel to know these networks of ClusterIPs.
    pub fn set_networks(&mut self, networks: ServiceNetworks) {
        self.networks = networks;
    }

    /// Has the next plan bring the kernel to know these networks of the cluster's pods.
    pub fn set_pod_networks(&mut self, networks: impl IntoIterator<Item = SourceRange>) {
        self.pods = networks.into_iter().collect();
    }

    /// Plans for the services in `dirty` and those they affect, whose ports `model` knows.
    ///
    /// The changes are to be carried out before the next call.
    pub fn plan(
        &mut self,
        now: Instant,
        dirty: BTreeSet<Key>,
        model: impl Fn(&Key) -> Vec<ServicePort>,
    ) -> Plan {
        let mut plan = Plan::default();
        let mut queue = Queue::new(model);
        queue.extend(dirty);
        if self.ledger.advance(now) {
            queue.extend(self.waiting.keys().cloned());
        }
        for (_, rank) in queue.services.keys() {
            self.ledger.date(rank);
        }
        while let Some((service, ports)) = queue.pop() {
            let result = match self.ledger.update(&service, &ports) {
                // What it already holds can still be kept up to date, and what it no longer wants given up.
                Err(full) if full.table == Table::Frontends => {
                    let held = self.ledger.held(&service, ports);
                    match self.ledger.update(&service, &held) {
                        Ok(outcome) => {
                            queue.extend(outcome.affected);
                            Err(full)
                        }
                        Err(other) => Err(other),
                    }
                }
                result => result,
            };
            match result {
                Ok(outcome) => {
                    plan.conflicts.extend(outcome.conflicts);
                    queue.extend(outcome.affected);
                    if self.waiting.remove(&service).is_some() {
                        plan.fit.push(service);
                    }
                }
                Err(full) => {
                    if self.waiting.insert(service.clone(), full).is_none() {
                        plan.full.push((service, full));
                    }
                }
            }
        }
        plan.changes = self.ledger.take_changes();
        if std::mem::replace(&mut self.networks_carried_out, self.networks) != self.networks {
            plan.changes.networks = Some(self.networks);
        }
        let before = std::mem::replace(&mut self.pods_carried_out, self.pods.clone());
        plan.changes.sources.extend(self.pods.difference(&before));
        plan.changes.removed_sources.extend(before.difference(&self.pods));
        plan
    }

    /// Plans for all services: `desired` are those that exist, and what the tables hold beyond them goes.
    pub fn reconcile(
        &mut self,
        now: Instant,
        desired: impl IntoIterator<Item = Key>,
        model: impl Fn(&Key) -> Vec<ServicePort>,
    ) -> Plan {
        let known = self.ledger.services().chain(self.ledger.waiting()).chain(self.waiting.keys());
        let all = known.cloned().chain(desired).collect();
        self.plan(now, all, model)
    }

    /// Whether some services wait for room, so that it is worth planning again later.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether some services wait for room in `table`.
    pub fn is_full(&self, table: Table) -> bool {
        self.waiting.values().any(|full| full.table == table)
    }

    /// How full the tables are.
    pub fn usage(&self) -> [Usage; 4] {
        self.ledger.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_pods_are_written_when_they_change() {
        let range = |network: &str| SourceRange::of(ServiceId::PODS, &network.parse().unwrap());
        let (old, new, v6) = (range("10.244.0.0/16"), range("10.245.0.0/16"), range("fd00:244::/56"));
        let capacity = Capacity { frontends: 2, ..Capacity::default() };
        let mut planner = Planner::adopt(&capacity, &Snapshot::default());
        let plan = |planner: &mut Planner| planner.plan(Instant::now(), BTreeSet::new(), |_| Vec::new());
        let written = |plan: Plan| (plan.changes.sources, plan.changes.removed_sources);
        planner.set_pod_networks([old, v6]);
        assert_eq!(written(plan(&mut planner)), (vec![old, v6], vec![]));
        planner.set_pod_networks([old, v6]);
        assert!(plan(&mut planner).changes.is_empty());
        assert_eq!(planner.usage()[3].used, 0, "they take no room of the Services'");

        let snapshot = Snapshot { sources: vec![old, v6], ..Snapshot::default() };
        let mut planner = Planner::adopt(&capacity, &snapshot);
        assert!(plan(&mut planner).changes.is_empty(), "nobody's ranges are none that are left over");
        planner.set_pod_networks([new, v6]);
        assert_eq!(written(plan(&mut planner)), (vec![new], vec![old]));
        planner.adopt_again(&capacity, &snapshot);
        assert_eq!(written(plan(&mut planner)), (vec![new], vec![old]));
        planner.set_pod_networks([]);
        planner.adopt_again(&capacity, &snapshot);
        assert_eq!(written(plan(&mut planner)), (vec![], vec![old, v6]));
    }
}
