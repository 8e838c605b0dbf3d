//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::Result;

use crate::build_ebpf::build_ebpf;
use crate::process::{cargo, command, output, run};
use crate::workspace;

/// Build the podnet binary with the eBPF programs in it.
#[derive(clap::Args)]
pub(crate) struct Build {
    /// Optimise.
    #[arg(long)]
    release: bool,
    /// Link statically, so that the binary runs on any Linux of this architecture.
    #[arg(long = "static")]
    link_static: bool,
}

impl Build {
    pub(crate) fn run(self) -> Result<()> {
        build_ebpf()?;
        let binary = build_podnet(self.release, self.link_static)?;
        eprintln!("built {}", binary.display());
        Ok(())
    }
}

/// Builds the podnet binary with whatever eBPF object is there, and returns its path.
pub(crate) fn build_podnet(release: bool, link_static: bool) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--package", "podnet", "--bin", "podnet"]);
    let mut folder = workspace::target();
    if link_static {
        // With a target named, the flags do not reach build scripts and procedural macros, which
        // cannot be linked statically.
        let host = output(command("rustc").args(["--print", "host-tuple"]))?;
        let host = host.trim();
        let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", host.to_uppercase().replace('-', "_"));
        cargo.args(["--target", host]).env(variable, "-Ctarget-feature=+crt-static");
        folder.push(host);
    }
    if release {
        cargo.arg("--release");
    }
    run(&mut cargo)?;
    folder.push(if release { "release" } else { "debug" });
    Ok(folder.join("podnet"))
}
