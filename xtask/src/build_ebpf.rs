//! `cargo xtask build-ebpf`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::bpf_toolchain::{TARGET, Toolchain};
use crate::process::run;
use crate::workspace;

/// Compile the eBPF programs to target/bpf/podnet-ebpf.o, which building podnet embeds.
#[derive(clap::Args)]
pub(crate) struct BuildEbpf {
    /// Accepted for symmetry: the programs are always optimised, as the kernel's verifier does not
    /// accept what the compiler makes without optimising.
    #[arg(long)]
    release: bool,
}

impl BuildEbpf {
    pub(crate) fn run(self) -> Result<()> {
        let object = build_ebpf()?;
        eprintln!("built {}", object.display());
        Ok(())
    }
}

/// Builds the eBPF object and returns its path.
pub(crate) fn build_ebpf() -> Result<PathBuf> {
    build_as("podnet-ebpf.o", &[])
}

/// Builds the eBPF object with the programs that measure the others, and returns its path.
pub(crate) fn build_ebpf_bench() -> Result<PathBuf> {
    build_as("podnet-ebpf-bench.o", &["bench"])
}

fn build_as(name: &str, features: &[&str]) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let mut cargo = toolchain.compiler.cargo();
    cargo.arg("build");
    toolchain.configure(&mut cargo);
    run(cargo.args(["--features", &features.join(",")]))?;
    let target = workspace::root().join("target");
    let built = target.join("bpf-build").join(TARGET).join("bpf/podnet-ebpf");
    let object = target.join("bpf").join(name);
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Copies a file unless the copy is there already: podnet, which embeds it, is then not built anew.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // Readers see the old file or the new one, never a half.
    let partial = to.with_extension("partial");
    fs::write(&partial, new).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}
