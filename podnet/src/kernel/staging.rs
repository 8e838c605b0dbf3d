//! Making or adopting the maps, so that a failure or a kill at any point leaves what was there.
//!
//! The loader works in a directory of its own. Maps that are right as they are get a second pin there, all
//! others it makes. Only when everything is loaded do the new ones take the places of the old.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use podnet_common::abi;

use super::error::Error;
use super::pins::{Pins, names, remove_directory, remove_file};
use super::tables::{Tables, shapes};
use crate::changes::Capacity;

/// Maps on their way.
pub(super) struct Staging {
    directory: PathBuf,
    maps: PathBuf,
    /// The maps that are to be made.
    made: Vec<&'static str>,
    /// What was there before.
    old: Option<Tables>,
}

impl Staging {
    /// Prepares for maps of `capacity`.
    ///
    /// # Errors
    /// [`Error::Shrink`] if what is in a map does not fit into its new size; others when the directory
    /// cannot be worked with.
    pub(super) fn prepare(pins: &Pins, capacity: &Capacity) -> Result<Self, Error> {
        let old = Tables::open(&pins.maps()).ok();
        if let Some(old) = &old {
            old.check_fit(capacity)?;
        }
        let mut staging = Self { directory: pins.next(), maps: pins.maps(), made: Vec::new(), old };
        staging.clear()?;
        fs::create_dir(&staging.directory).map_err(|source| Error::File {
            action: "creating",
            path: staging.directory.clone(),
            source,
        })?;
        for shape in shapes(capacity) {
            match MapData::from_pin(staging.maps.join(shape.name)) {
                Ok(map) if shape.is(&map)? => map.pin(staging.directory.join(shape.name))?,
                // One that is missing, or was made by a podnet that knew fewer reasons to count.
                _ => staging.made.push(shape.name),
            }
        }
        Ok(staging)
    }

    /// Where the loader finds and pins the maps.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the loader makes the map `name`.
    pub(super) fn makes(&self, name: &str) -> bool {
        self.made.contains(&name)
    }

    /// The tables that were there before, if others are in the place of some of them, while programs may still
    /// be attached that work on them.
    pub(super) fn into_replaced(mut self) -> Option<Tables> {
        let replaced = !self.made.is_empty();
        self.old.take().filter(|_| replaced)
    }

    /// Fills the new maps from the old ones.
    pub(super) fn copy_to(&self, tables: &Tables) -> Result<(), Error> {
        self.old.as_ref().map_or(Ok(()), |old| tables.copy_from(old))
    }

    /// Puts the new maps in the places of the old ones.
    pub(super) fn finish(&self) -> Result<(), Error> {
        // What tells that podnet is set up comes last.
        let last = |name: &&str| *name == abi::FRONTENDS;
        let mut made = self.made.clone();
        made.sort_by_key(last);
        for name in made {
            let (from, to) = (self.directory.join(name), self.maps.join(name));
            fs::rename(&from, &to).map_err(|source| Error::File {
                action: "renaming",
                path: from,
                source,
            })?;
        }
        self.clear()
    }

    fn clear(&self) -> Result<(), Error> {
        for name in names(&self.directory)? {
            remove_file(&self.directory.join(name))?;
        }
        remove_directory(&self.directory)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is by the next agent.
        let _ = self.clear();
    }
}
