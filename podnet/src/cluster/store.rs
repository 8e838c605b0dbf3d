//! The objects of one kind, as a source lists them and tells of their changes.

use std::collections::{HashMap, HashSet};

use super::object::Key;

/// The objects of one kind.
#[derive(Debug)]
pub(crate) struct Store<T> {
    /// Those that are known.
    pub(crate) objects: HashMap<Key, T>,
    /// While they are being listed: those that have not been named yet.
    unnamed: Option<HashSet<Key>>,
    /// Whether all of them have been listed at least once.
    pub(crate) listed: bool,
    /// Whether that is so, or not to be hoped for.
    pub(crate) settled: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), unnamed: None, listed: false, settled: false }
    }
}

impl<T: PartialEq> Store<T> {
    /// Begins a list of all of them.
    pub(crate) fn begin(&mut self) {
        self.unnamed = Some(self.objects.keys().cloned().collect());
    }

    /// Ends a list; the keys of objects that were not in it.
    pub(crate) fn finish(&mut self) -> HashSet<Key> {
        self.listed = true;
        self.settled = true;
        self.unnamed.take().unwrap_or_default()
    }

    /// Whether all of them have been listed, and are not being listed anew.
    pub(crate) fn is_current(&self) -> bool {
        self.listed && self.unnamed.is_none()
    }

    /// Takes an object in; `None` if it is known just so, else what was known before.
    pub(crate) fn insert(&mut self, key: &Key, object: T) -> Option<Option<T>> {
        if let Some(unnamed) = &mut self.unnamed {
            unnamed.remove(key);
        }
        if self.objects.get(key) == Some(&object) {
            return None;
        }
        Some(self.objects.insert(key.clone(), object))
    }
}
