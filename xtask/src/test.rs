//! `cargo xtask test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf_toolchain::nightlies;
use crate::build::build_podnet;
use crate::build_ebpf::build_ebpf;
use crate::control_plane;
use crate::lint::lint;
use crate::process::{cargo, command, is_root, output, run};
use crate::setup::{CARGO_FUZZ, setup};
use crate::timing::Timings;
use crate::workspace;

/// Run the tests, all of them or some layers; what CI runs.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// The layers to run.
    #[arg(value_enum, default_values_t = Layer::ALL)]
    layers: Vec<Layer>,
    /// How long each fuzz target runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    fuzz_seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Layer {
    /// fmt, clippy, deny, doc.
    Lint,
    /// Tests of the crates, without root and without the kernel.
    Unit,
    /// Tests of the programs in this kernel, with networks of namespaces; as root.
    Kernel,
    /// Tests against a real Kubernetes control plane; as root.
    Cluster,
    /// A short run of each fuzz target.
    Fuzz,
}

impl Layer {
    const ALL: [Self; 5] = [Self::Lint, Self::Unit, Self::Kernel, Self::Cluster, Self::Fuzz];
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        let mut timings = Timings::default();
        let result = self.layers(&mut timings);
        eprint!("\n{}", timings.table());
        if result.is_ok() {
            eprintln!("everything passed");
        }
        result
    }

    fn layers(&self, timings: &mut Timings) -> Result<()> {
        let layers: BTreeSet<_> = self.layers.iter().copied().collect();
        let in_kernel = layers.contains(&Layer::Kernel) || layers.contains(&Layer::Cluster);
        if in_kernel && !is_root() {
            bail!("the layers kernel and cluster load programs into the kernel: run them as root");
        }
        // The unit tests alone run anywhere that cargo does.
        if layers.iter().any(|layer| *layer != Layer::Unit) {
            timings.run("setup", || setup(layers.contains(&Layer::Cluster)))?;
        }
        let mut environment = Vec::new();
        if in_kernel {
            timings.run("build: ebpf", build_ebpf)?;
            let podnet = timings.run("build: podnet", || build_podnet(false, false))?;
            environment.push(("PODNET_BIN", podnet.into_os_string()));
            environment.push(("PODNET_TOOLS", workspace::tools()?.into_os_string()));
            // What a test lacks here is a fault, not a reason to skip it.
            environment.push(("PODNET_REQUIRE", "1".into()));
            environment.extend(control_plane::variable()?);
        }
        for layer in layers {
            match layer {
                Layer::Lint => lint(timings)?,
                Layer::Unit => timings.run("unit", unit)?,
                Layer::Kernel => timings.run("kernel", || {
                    integration(cargo().envs(environment.clone()), |name| !belongs_to_cluster(name))
                })?,
                Layer::Cluster => timings
                    .run("cluster", || integration(cargo().envs(environment.clone()), belongs_to_cluster))?,
                Layer::Fuzz => timings.run("fuzz", || fuzz(self.fuzz_seconds))?,
            }
        }
        Ok(())
    }
}

fn unit() -> Result<()> {
    run(cargo().args(["test", "-p", "podnet-common", "-p", "podnet", "-p", "xtask"]))?;
    run(cargo().args(["test", "-p", "tests", "--lib"]))
}

/// Whether a test file needs the control plane: `cluster` and `cluster_*`, but not `clusterip`.
fn belongs_to_cluster(test: &str) -> bool {
    test == "cluster" || test.starts_with("cluster_")
}

/// Runs those test files of package `tests` whose names are `wanted`, one test at a time: they share
/// the kernel.
fn integration(cargo: &mut Command, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut names = test_files(&workspace::root().join("tests/tests"))?;
    names.retain(|name| wanted(name));
    if names.is_empty() {
        eprintln!("there are no such tests");
        return Ok(());
    }
    cargo.args(["test", "-p", "tests"]);
    for name in &names {
        cargo.args(["--test", name]);
    }
    run(cargo.args(["--no-fail-fast", "--", "--test-threads=1"]))
}

/// The names of cargo's integration tests in `folder`, sorted.
fn test_files(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let is_test =
            path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists();
        if let (true, Some(name)) = (is_test, path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs each fuzz target for `seconds`, starting from `fuzz/seeds` and from what earlier runs found.
fn fuzz(seconds: u32) -> Result<()> {
    let root = workspace::root();
    if !root.join("fuzz/Cargo.toml").exists() {
        eprintln!("skipped: there are no fuzz targets");
        return Ok(());
    }
    let Some(nightly) = nightlies().into_iter().next() else {
        eprintln!("skipped: fuzzing needs a nightly toolchain of rustup");
        return Ok(());
    };
    let tool = CARGO_FUZZ.path()?;
    let cargo_fuzz = |verb| {
        let mut fuzz = command(&tool);
        fuzz.env("RUSTUP_TOOLCHAIN", &nightly).args(["fuzz", verb]);
        fuzz
    };
    let targets = output(&mut cargo_fuzz("list"))?;
    for target in targets.lines() {
        let corpus = root.join("target/fuzz-corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
        let mut fuzz = cargo_fuzz("run");
        fuzz.arg("--target-dir").arg(root.join("target/fuzz")).arg(target).arg(corpus);
        let seeds = root.join("fuzz/seeds").join(target);
        if seeds.exists() {
            fuzz.arg(seeds);
        }
        run(fuzz.arg("--").arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_tests_are_told_by_name() {
        assert!(belongs_to_cluster("cluster"));
        assert!(belongs_to_cluster("cluster_rbac"));
        assert!(!belongs_to_cluster("clusterip"));
        assert!(!belongs_to_cluster("policies"));
    }
}
