//! Control groups: what podnet's socket programs are attached to.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

use crate::wait;

/// Where cgroup v2 is mounted: at `/sys/fs/cgroup` on most machines, beside v1 on some.
///
/// # Errors
/// If it is not mounted.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        if let (_, Some(point), Some("cgroup2")) = (words.next(), words.next(), words.next()) {
            return Ok(PathBuf::from(point));
        }
    }
    bail!("cgroup v2 is not mounted")
}

/// Moves this process into the cgroup.
///
/// # Errors
/// If the kernel refuses.
pub fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("cannot write {}", file.display()))
}

/// Ends all processes of the cgroup and removes it with those below it. One that is not there is fine.
///
/// # Errors
/// If processes are left after some seconds.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let kill = cgroup.join("cgroup.kill");
    if kill.exists() {
        fs::write(&kill, "1").with_context(|| format!("cannot write {}", kill.display()))?;
    }
    wait::until("the processes of a cgroup to end", Duration::from_secs(10), || {
        remove_tree(cgroup).with_context(|| format!("cannot remove {}", cgroup.display()))
    })
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
