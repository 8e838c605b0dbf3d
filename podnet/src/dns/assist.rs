//! Answers in the kernel to what is known for certain: from events to changes of its tables of names.

use std::sync::PoisonError;

use super::table::{Changes, Snapshot};
use super::{Clients, Names, Table};
use crate::cluster::Event;

/// What is known of names, and what of it the kernel holds.
#[derive(Debug)]
pub struct Assist {
    names: Names,
    clients: Clients,
    table: Table,
    /// Whether all is to be planned anew: at first, and after changes were lost on their way.
    astray: bool,
    /// Whether names have waited for room when that was last asked.
    full: bool,
}

impl Assist {
    /// For the pods of `node`, by tables that have room for `capacity` of `names`.
    pub fn new(names: Names, node: &str, capacity: u32) -> Self {
        Self {
            names,
            clients: Clients::new(node),
            table: Table::adopt(capacity, Snapshot::default()),
            astray: true,
            full: false,
        }
    }

    /// Takes an event in that the names have taken in.
    pub fn handle(&mut self, event: &Event) {
        self.clients.handle(event);
    }

    /// Whether the kernel's tables are to be read before [`plan`](Self::plan).
    pub const fn is_astray(&self) -> bool {
        self.astray
    }

    /// Takes the kernel's tables to be as `snapshot` says.
    pub fn adopt(&mut self, capacity: u32, snapshot: Snapshot) {
        self.table = Table::adopt(capacity, snapshot);
    }

    /// What is to be changed in the kernel's tables. Until it is, they are not known.
    pub fn plan(&mut self) -> Changes {
        let mut index = self.names.0.write().unwrap_or_else(PoisonError::into_inner);
        let dirty = index.take_dirty();
        if std::mem::replace(&mut self.astray, true) {
            self.table.reconcile(&index, self.clients.addresses())
        } else {
            self.table.plan(&index, dirty, self.clients.addresses())
        }
    }

    /// What was planned is in the kernel.
    pub const fn done(&mut self) {
        self.astray = false;
    }

    /// How many names have no room, when that has become more than none.
    pub fn newly_full(&mut self) -> Option<usize> {
        let waiting = self.table.waiting();
        let before = std::mem::replace(&mut self.full, waiting > 0);
        (waiting > 0 && !before).then_some(waiting)
    }

    /// How many names there are in the kernel's table.
    pub fn names(&self) -> usize {
        self.table.held()
    }
}
