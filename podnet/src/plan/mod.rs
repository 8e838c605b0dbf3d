//! From what the cluster wants to what the kernel's tables must hold: pure, of the [`Ledger`]'s memory.

mod adopt;
mod frontends;
mod ledger;
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

use ledger::{Rank, rank};

use crate::changes::{Capacity, Changes, Snapshot};
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
}

impl Planner {
    /// A planner over tables of `capacity` that hold `snapshot`.
    pub fn adopt(capacity: &Capacity, snapshot: &Snapshot) -> Self {
        Self {
            ledger: Ledger::adopt(capacity, snapshot),
            waiting: BTreeMap::new(),
            networks: snapshot.networks,
            networks_carried_out: snapshot.networks,
        }
    }

    /// Takes over tables that hold `snapshot` and not what was planned. What has been told of before is not
    /// told again, and what may be on its way to be read rests as usual. [`reconcile`](Self::reconcile) is to
    /// follow.
    pub fn adopt_again(&mut self, capacity: &Capacity, snapshot: &Snapshot) {
        let before = std::mem::replace(&mut self.ledger, Ledger::adopt(capacity, snapshot));
        self.ledger.follow(before);
        self.networks_carried_out = snapshot.networks;
    }

    /// Has the next plan bring the kernel to know these networks of ClusterIPs.
    pub fn set_networks(&mut self, networks: ServiceNetworks) {
        self.networks = networks;
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
