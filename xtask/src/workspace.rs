//! Where things are: the workspace, its target folder and the tools folder.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo puts what it builds for the host.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The folder of tools that podnet's build and tests need and that take minutes to build:
/// `$PODNET_TOOLS`, else `podnet/tools` in the user's cache. It lies outside `target` and is shared
/// by clones, so that a fresh clone is quick.
pub(crate) fn tools() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PODNET_TOOLS")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("podnet/tools")))
        .or_else(|| Some(set("HOME")?.join(".cache/podnet/tools")))
        .context("no place for tools: set PODNET_TOOLS to a folder (neither XDG_CACHE_HOME nor HOME is set)")
}
