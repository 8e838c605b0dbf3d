//! The pin directory: where it is, what is in it, and how to be rid of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use podnet_common::abi;

use super::attach;
use super::error::Error;
use super::sys;

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The directory in which maps are made.
const NEXT: &str = "next";

/// The directories of this layout version under podnet's own directory on bpffs.
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins under `bpffs`.
    pub(super) fn at(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{}", abi::LAYOUT)) }
    }

    /// Makes the directories, if they are not there.
    pub(super) fn create(&self) -> Result<(), Error> {
        on_bpffs(&self.root)?;
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory).map_err(|source| Error::File {
                action: "creating",
                path: directory,
                source,
            })?;
        }
        Ok(())
    }

    /// Whether there is anything.
    ///
    /// # Errors
    /// When one may not look.
    pub(super) fn exist(&self) -> Result<bool, Error> {
        let path = self.maps().join(abi::FRONTENDS);
        path.try_exists().map_err(|source| Error::File { action: "looking at", path, source })
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where maps are made.
    pub(super) fn next(&self) -> PathBuf {
        self.root.join(NEXT)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Removes what podnets of other layout versions have left. Their programs would run behind this one's
    /// over tables that nobody keeps up.
    pub(super) fn remove_other_layouts(&self) -> Result<(), Error> {
        let bpffs = self.root.parent().unwrap_or(&self.root);
        for version in layouts(bpffs)? {
            if bpffs.join(&version) != self.root {
                remove_layout(bpffs, &version, Some(self))?;
            }
        }
        Ok(())
    }

    /// Undoes and removes the pins of links of other layout versions that are `meant`.
    pub(super) fn forget_in_other_layouts(&self, meant: impl Fn(&attach::Pin) -> bool) -> Result<(), Error> {
        let bpffs = self.root.parent().unwrap_or(&self.root);
        for version in layouts(bpffs)? {
            let links = bpffs.join(version).join("links");
            if links == self.links() {
                continue;
            }
            for name in names(&links)? {
                if name.parse().is_ok_and(|pin| meant(&pin)) {
                    attach::undo(&links.join(&name))?;
                    remove_file(&links.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// The names of all pinned links, sorted.
    pub(super) fn link_names(&self) -> Result<Vec<String>, Error> {
        names(&self.links())
    }
}

/// Checks that `path`, or its nearest ancestor that exists, is on a bpffs.
pub(super) fn on_bpffs(path: &Path) -> Result<(), Error> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match sys::file_system(existing) {
        Ok(BPF_FS_MAGIC) => Ok(()),
        Ok(_) => Err(Error::NotBpffs { path: path.parent().unwrap_or(path).to_owned() }),
        Err(source) => Err(Error::File { action: "looking at", path: existing.to_owned(), source }),
    }
}

pub(super) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let fail = |source| Error::File { action: "reading", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| Error::File { action: "removing", path: path.to_owned(), source })
}

/// Removes all that podnet has left in the kernel under `bpffs`, of any layout version: links first, so
/// that no packet meets a half-removed dataplane. Returns what was removed.
///
/// # Errors
/// The first thing that could not be removed; what was removed before stays so.
pub fn cleanup(bpffs: &Path) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for version in layouts(bpffs)? {
        removed.extend(remove_layout(bpffs, &version, None)?);
    }
    remove_directory(bpffs)?;
    Ok(removed)
}

/// The names of the directories that podnets have made: `v` and a number.
fn layouts(bpffs: &Path) -> Result<Vec<String>, Error> {
    let mut all = names(bpffs)?;
    all.retain(|name| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok()));
    Ok(all)
}

/// Removes what one layout version has left; `heir` has taken over where it has programs.
fn remove_layout(bpffs: &Path, version: &str, heir: Option<&Pins>) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for kind in ["links", NEXT, "maps"] {
        let directory = bpffs.join(version).join(kind);
        for name in names(&directory)? {
            let path = directory.join(&name);
            match heir.filter(|heir| kind == "links" && attach::inherits(heir, &name)) {
                Some(heir) if !heir.links().join(&name).exists() => {
                    let to = heir.links().join(&name);
                    fs::rename(&path, to).map_err(|source| Error::File {
                        action: "renaming",
                        path,
                        source,
                    })?;
                    continue;
                }
                Some(_) => {}
                None => attach::undo(&path)?,
            }
            remove_file(&path)?;
            removed.push(format!("{} {name}", if kind == "links" { "link" } else { "map" }));
        }
        remove_directory(&directory)?;
    }
    remove_directory(&bpffs.join(version))?;
    Ok(removed)
}

/// Removes an empty directory, if there is one.
pub(super) fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { action: "removing", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
