//! `cargo xtask bench`.

use anyhow::{Result, bail};

use crate::build::build_podnet;
use crate::build_ebpf::{build_ebpf, build_ebpf_bench};
use crate::control_plane::CONTROL_PLANE;
use crate::process::{cargo, command, is_root, run};
use crate::setup::setup;
use crate::workspace;

/// Measure what podnet costs beside its peers, on this machine; see docs/benchmarks.md.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// How often everything is measured, in turns.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Little of everything, to see that it runs: the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// What the benchmark itself understands, such as `-- --targets 1000` or `-- --help`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// A pod reaches another one on its node: directly, and through a Service.
    EastWest,
    /// From Services to the kernel.
    Programming,
    /// What meets packets at network cards, packet by packet.
    Xdp,
    /// From a real API server to the kernel, beside the real kube-proxy.
    Cluster,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!("the benchmarks make network namespaces and load eBPF programs: run them as root");
        }
        setup(self.what == What::Cluster)?;
        build_ebpf()?;
        let podnet = build_podnet(true, false)?;
        run(cargo().args(["build", "--release", "--package", "tests", "--bins"]))?;
        let name = match self.what {
            What::EastWest => "east-west",
            What::Programming => "programming",
            What::Cluster => "cluster",
            What::Xdp => "xdp",
        };
        let mut bench = command(workspace::target().join("release/bench"));
        bench.env("PODNET_BIN", podnet);
        if self.what == What::Xdp {
            bench.env("PODNET_BENCH_OBJECT", build_ebpf_bench()?);
        }
        if self.what == What::Cluster {
            bench.envs(CONTROL_PLANE.variable()?);
        }
        bench.arg(name).arg("--output").arg(workspace::target().join("bench").join(format!("{name}.json")));
        if let Some(rounds) = self.rounds {
            bench.args(["--rounds", &rounds.to_string()]);
        }
        if self.quick {
            bench.arg("--quick");
        }
        run(bench.args(self.arguments))
    }
}
