//! The frontend table: what the kernel has, and what it is about to have.

use std::collections::{BTreeMap, HashMap};

use podnet_common::service::{Frontend, FrontendKey};

use crate::changes::Changes;

#[derive(Debug, Default)]
pub(super) struct Frontends {
    size: u32,
    /// What the kernel has.
    carried_out: HashMap<FrontendKey, Frontend>,
    /// What has been decided since; `None` removes.
    decided: BTreeMap<FrontendKey, Option<Frontend>>,
    /// How many of the decided are new in the kernel.
    new: u32,
}

impl Frontends {
    /// A table of `size` entries that holds `entries`.
    pub(super) fn adopt(size: u32, entries: &[(FrontendKey, Frontend)]) -> Self {
        Self { size, carried_out: entries.iter().copied().collect(), ..Self::default() }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many entries the kernel needs while the decided is carried out, before anything is removed.
    pub(super) fn used(&self) -> u32 {
        u32::try_from(self.carried_out.len()).unwrap_or(u32::MAX).saturating_add(self.new)
    }

    /// The frontend at `key`, once the decided is carried out.
    pub(super) fn get(&self, key: &FrontendKey) -> Option<&Frontend> {
        match self.decided.get(key) {
            Some(decided) => decided.as_ref(),
            None => self.carried_out.get(key),
        }
    }

    /// Whether writing `key` takes an entry more than is taken.
    pub(super) fn needs_room(&self, key: &FrontendKey) -> bool {
        !self.carried_out.contains_key(key) && self.get(key).is_none()
    }

    pub(super) fn set(&mut self, key: FrontendKey, frontend: Frontend) {
        if self.get(&key) != Some(&frontend) {
            self.new += u32::from(self.needs_room(&key));
            self.decided.insert(key, Some(frontend));
        }
    }

    pub(super) fn unset(&mut self, key: &FrontendKey) {
        if self.carried_out.contains_key(key) {
            self.decided.insert(*key, None);
        } else if self.decided.remove(key).is_some() {
            self.new -= 1;
        }
    }

    /// Moves the decided into `changes`; whether that makes room.
    pub(super) fn drain(&mut self, changes: &mut Changes) -> bool {
        self.new = 0;
        for (key, frontend) in std::mem::take(&mut self.decided) {
            match frontend {
                Some(frontend) => {
                    if self.carried_out.insert(key, frontend) != Some(frontend) {
                        changes.frontends.push((key, frontend));
                    }
                }
                None => {
                    self.carried_out.remove(&key);
                    changes.removed_frontends.push(key);
                }
            }
        }
        !changes.removed_frontends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::service::{FrontendKind, ServiceId, SlotRange};
    use podnet_common::wire::{Be16, Endpoint, Protocol};

    use super::*;

    fn key(port: u16) -> FrontendKey {
        FrontendKey::new(Endpoint { port: Be16::new(port), ..Endpoint::default() }, Protocol::TCP)
    }

    fn frontend(id: u32) -> Frontend {
        Frontend::new(FrontendKind::CLUSTER_IP, ServiceId(id), SlotRange::default())
    }

    #[test]
    fn contradictory_decisions_collapse() {
        let mut table = Frontends::adopt(10, &[(key(1), frontend(1)), (key(2), frontend(2))]);
        table.unset(&key(1));
        table.set(key(1), frontend(1));
        table.unset(&key(2));
        table.set(key(2), frontend(9));
        table.set(key(3), frontend(3));
        table.unset(&key(3));
        let mut changes = Changes::default();
        assert!(!table.drain(&mut changes));
        assert_eq!(changes, Changes { frontends: vec![(key(2), frontend(9))], ..Changes::default() });
    }

    #[test]
    fn a_removal_makes_no_room_before_it_is_carried_out() {
        let mut table = Frontends::adopt(1, &[(key(1), frontend(1))]);
        table.unset(&key(1));
        assert_eq!(table.used(), 1);
        assert!(!table.needs_room(&key(1)) && table.needs_room(&key(2)));
        assert!(table.drain(&mut Changes::default()));
        assert_eq!(table.used(), 0);
    }
}
