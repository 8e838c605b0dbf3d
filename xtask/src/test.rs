//! `cargo xtask test`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use crate::bpf_toolchain::nightlies;
use crate::build::build_podnet;
use crate::build_ebpf::build_ebpf;
use crate::control_plane::{CONTROL_PLANE, FLANNEL};
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
    /// Through how many histories of Services podnet's decisions are followed in memory.
    #[arg(long, value_name = "NUMBER", default_value_t = 6000)]
    histories: u32,
    /// How long each fuzz target runs, instead of by a number of inputs.
    #[arg(long, value_name = "SECONDS")]
    fuzz_seconds: Option<u32>,
    /// How long each comparison with kube-proxy goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    parity_seconds: u32,
    /// The seed of all that is generated. It is the same for every run, so that what fails is what a change has broken;
    /// another one may find what nobody has looked at.
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Layer {
    /// fmt, clippy, deny, doc.
    Lint,
    /// Tests of the crates, without root and without the kernel.
    Unit,
    /// podnet's decisions against the executable semantics, in memory, by random Services; without root.
    Semantics,
    /// Tests of the programs in this kernel, with networks of namespaces; as root.
    Kernel,
    /// Tests against a real Kubernetes control plane; as root.
    Cluster,
    /// podnet against the real kube-proxy: random Services, the same packets to both; as root.
    ParityKubeProxy,
    /// A short run of each fuzz target.
    Fuzz,
}

impl Layer {
    const ALL: [Self; 7] = [
        Self::Lint,
        Self::Unit,
        Self::Semantics,
        Self::Kernel,
        Self::Cluster,
        Self::ParityKubeProxy,
        Self::Fuzz,
    ];

    /// Whether it runs against a real control plane.
    fn needs_control_plane(self) -> bool {
        matches!(self, Self::Cluster | Self::ParityKubeProxy)
    }
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
        let in_cluster = layers.iter().any(|layer| layer.needs_control_plane());
        let in_kernel = in_cluster || layers.contains(&Layer::Kernel);
        if in_kernel && !is_root() {
            bail!(
                "the layers kernel, cluster and parity-kube-proxy load programs into the kernel: run them as root"
            );
        }
        // These alone run anywhere that cargo does.
        if layers.iter().any(|layer| !matches!(layer, Layer::Unit | Layer::Semantics)) {
            timings.run("setup", || setup(in_cluster))?;
        }
        let mut environment = vec![("PROPTEST_RNG_SEED", self.seed.to_string().into())];
        if in_kernel {
            timings.run("build: ebpf", build_ebpf)?;
            let podnet = timings.run("build: podnet", || build_podnet(false, false))?;
            environment.push(("PODNET_BIN", podnet.into_os_string()));
            environment.push(("PODNET_TOOLS", workspace::tools()?.into_os_string()));
            // What a test lacks here is a fault, not a reason to skip it.
            environment.push(("PODNET_REQUIRE", "1".into()));
            environment.extend(CONTROL_PLANE.variable()?);
            environment.extend(FLANNEL.variable()?);
            environment.push(("PODNET_PARITY_SECONDS", self.parity_seconds.to_string().into()));
            environment.push(("PODNET_PARITY_SEED", self.seed.to_string().into()));
        }
        for layer in layers {
            match layer {
                Layer::Lint => lint(timings)?,
                Layer::Unit => timings.run("unit", || unit(&environment))?,
                Layer::Semantics => {
                    timings.run("semantics", || semantics(&environment, self.histories))?;
                }
                Layer::Kernel | Layer::Cluster | Layer::ParityKubeProxy => {
                    let name = layer.to_possible_value().context("every layer has a name")?;
                    timings.run(name.get_name(), || integration(&environment, layer))?;
                    if layer == Layer::Kernel {
                        at_network_cards(&environment, timings)?;
                    }
                }
                Layer::Fuzz => timings.run("fuzz", || fuzz(self.seed, self.fuzz_seconds))?,
            }
        }
        Ok(())
    }
}

/// What the tests are told by variables of their environment.
type Environment = [(&'static str, OsString)];

fn unit(environment: &Environment) -> Result<()> {
    let cargo = || cargo_with(environment);
    run(cargo().args(["test", "-p", "podnet-common", "-p", "podnet", "-p", "xtask"]))?;
    run(cargo().args(["test", "-p", "tests", "--lib"]))
}

/// With the code that decides and that makes the packets optimized, and all checks of `dev`: it goes through the
/// histories many times as fast. What the
/// other layers have built of others' is used as it is.
fn semantics(environment: &Environment, histories: u32) -> Result<()> {
    let mut cargo = cargo_with(environment);
    for package in ["podnet-common", "podnet", "tests", "etherparse", "arrayvec"] {
        cargo.args(["--config", &format!("profile.dev.package.{package}.opt-level=2")]);
    }
    cargo.args(["test", "-p", "tests", "--test", "semantics", "--", "--nocapture"]);
    run(cargo.env("PODNET_HISTORIES", histories.to_string()))
}

/// Cargo, for tests that are told `environment`.
fn cargo_with(environment: &Environment) -> Command {
    let mut cargo = cargo();
    cargo.envs(environment.iter().map(|(name, value)| (name, value)));
    cargo
}

/// The layer that a test file belongs to: of `cluster` and `cluster_*`, but not `clusterip`, that of the control
/// plane.
fn layer_of(test: &str) -> Layer {
    match test {
        "semantics" => Layer::Semantics,
        "parity_kube_proxy" => Layer::ParityKubeProxy,
        "cluster" => Layer::Cluster,
        _ if test.starts_with("cluster_") => Layer::Cluster,
        _ => Layer::Kernel,
    }
}

/// Cargo, for these test files of package `tests`, one test at a time: they share the kernel.
fn test_command<'a>(environment: &Environment, files: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = cargo_with(environment);
    cargo.args(["test", "-p", "tests"]);
    for file in files {
        cargo.args(["--test", file]);
    }
    cargo.args(["--no-fail-fast", "--", "--test-threads=1"]);
    cargo
}

/// Runs the test files of package `tests` that belong to `layer`.
fn integration(environment: &Environment, layer: Layer) -> Result<()> {
    let mut names = test_files(&workspace::root().join("tests/tests"))?;
    names.retain(|name| layer_of(name) == layer);
    if names.is_empty() {
        eprintln!("there are no such tests");
        return Ok(());
    }
    let mut cargo = test_command(environment, names.iter().map(String::as_str));
    if layer == Layer::ParityKubeProxy {
        // It says how much has been compared.
        cargo.arg("--nocapture");
    }
    run(&mut cargo)
}

/// Runs the tests with clients outside once more for each way in which packets are met at network cards.
fn at_network_cards(environment: &Environment, timings: &mut Timings) -> Result<()> {
    const FILES: [&str; 4] = ["nodeport", "policies", "icmp", "fragments"];
    /// How the names of the tests begin. What is at the pods' interfaces makes no difference at the card.
    const TESTS: [&str; 8] = [
        "a_local_backend_sees_the_client_outside_ptp",
        "a_remote_backend_is_reached_through_the_node_bridge",
        "host_port_ptp",
        "external_policy_local_tc_ptp",
        "no_endpoint_anywhere",
        "path_mtu",
        "an_endpoint_that_does_not_listen_refuses_ptp",
        "datagrams_in_fragments_ptp",
    ];
    for mode in ["generic", "native"] {
        timings.run(&format!("kernel: xdp {mode}"), || {
            run(test_command(environment, FILES).env("PODNET_XDP", mode).args(TESTS))
        })?;
    }
    Ok(())
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

/// Runs each fuzz target for `seconds` or a number of inputs, which it makes by `seed` of those in `fuzz/seeds` and of
/// what earlier runs found.
fn fuzz(seed: u32, seconds: Option<u32>) -> Result<()> {
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
        let end = match seconds {
            Some(seconds) => format!("-max_total_time={seconds}"),
            None => "-runs=400000".to_owned(),
        };
        run(fuzz.arg("--").arg(format!("-seed={seed}")).arg(end))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_the_names_of_tests() {
        assert_eq!(layer_of("cluster"), Layer::Cluster);
        assert_eq!(layer_of("cluster_rbac"), Layer::Cluster);
        assert_eq!(layer_of("clusterip"), Layer::Kernel);
        assert_eq!(layer_of("parity"), Layer::Kernel);
        assert_eq!(layer_of("semantics"), Layer::Semantics);
        assert_eq!(layer_of("parity_kube_proxy"), Layer::ParityKubeProxy);
    }
}
