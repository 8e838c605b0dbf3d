//! `cargo xtask lint`.

use anyhow::Result;

use crate::bpf_toolchain::Toolchain;
use crate::process::{cargo, command, run};
use crate::setup::CARGO_DENY;
use crate::timing::Timings;

/// Check formatting, clippy's findings, the licences of dependencies and the documentation.
#[derive(clap::Args)]
pub(crate) struct Lint {}

impl Lint {
    pub(crate) fn run(self) -> Result<()> {
        let mut timings = Timings::default();
        let result = lint(&mut timings);
        eprint!("\n{}", timings.table());
        result
    }
}

/// Runs every check, the quick ones first.
pub(crate) fn lint(timings: &mut Timings) -> Result<()> {
    timings.run("lint: fmt", || run(cargo().args(["fmt", "--all", "--check"])))?;
    timings.run("lint: deny", deny)?;
    timings.run("lint: clippy for bpf", clippy_bpf)?;
    // The host's crates are the workspace's default members.
    timings.run("lint: clippy", || run(cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"])))?;
    timings.run("lint: doc", || run(cargo().args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings")))
}

/// Licences, sources and bans only: advisories need a database from the network.
fn deny() -> Result<()> {
    // cargo-deny reads the manifests of all dependencies, even of those that only other systems need
    // and that no build has fetched.
    run(cargo().args(["fetch", "--quiet"]))?;
    run(command(CARGO_DENY.path()?).args(["--offline", "check", "licenses", "bans", "sources"]))
}

fn clippy_bpf() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let compiler = &toolchain.compiler;
    let mut cargo = if compiler.has_clippy() {
        compiler.cargo_clippy()
    } else {
        eprintln!("no clippy comes with {compiler}: the programs are compiled with warnings denied instead");
        let mut cargo = compiler.cargo();
        cargo.arg("rustc");
        cargo
    };
    toolchain.configure(&mut cargo);
    run(cargo.args(["--all-features", "--", "-D", "warnings"]))
}
