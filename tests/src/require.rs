//! What tests need of the machine, and what becomes of them where it is missing.
//!
//! Under `cargo xtask test`, which sets `PODNET_REQUIRE`, a test that lacks something fails. Under plain
//! `cargo test` it is skipped with a line that says which test and why.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, io, thread};

use nix::unistd::Uid;

/// Whether this process is root's; else the test is skipped, or fails.
pub fn root() -> Option<()> {
    if Uid::effective().is_root() { Some(()) } else { lacking("it needs root") }
}

/// The podnet binary: that of `PODNET_BIN`, else the one that `cargo build` makes.
pub fn podnet() -> Option<PathBuf> {
    let path = match variable("PODNET_BIN") {
        Some(path) => path,
        None => binaries().join("podnet"),
    };
    if path.is_file() {
        return Some(path);
    }
    lacking(&format!("{} is not there: build it with `cargo xtask build` or set PODNET_BIN", path.display()))
}

/// The folder with etcd, kube-apiserver, kube-controller-manager and kube-proxy.
pub fn control_plane() -> Option<PathBuf> {
    let Some(folder) = variable("PODNET_CONTROL_PLANE") else {
        return lacking("it needs a control plane: `cargo xtask test cluster` builds it");
    };
    for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy"] {
        if !folder.join(program).is_file() {
            return lacking(&format!("there is no {program} in {}", folder.display()));
        }
    }
    Some(folder)
}

/// The real flannel's daemon.
pub fn flannel() -> Option<PathBuf> {
    let program = variable("PODNET_FLANNEL").map(|folder| folder.join("flanneld"));
    match program.filter(|program| program.is_file()) {
        Some(program) => Some(program),
        None => lacking("it needs flannel: `cargo xtask test cluster` builds it"),
    }
}

/// The folder where cargo puts the binaries of this workspace.
pub(crate) fn binaries() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    // Test binaries are one level deeper.
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned()
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Says that the running test is skipped, past the test harness's capture of output.
pub fn lacking<T>(why: &str) -> Option<T> {
    let test = thread::current().name().unwrap_or("test").to_owned();
    assert!(variable("PODNET_REQUIRE").is_none(), "{test} cannot run: {why}");
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    None
}
