//! `cargo xtask demo`.

use anyhow::{Result, bail};

use crate::build::build_podnet;
use crate::build_ebpf::build_ebpf;
use crate::process::{cargo, command, is_root, run};
use crate::setup::setup;
use crate::workspace;

/// See podnet at work: a small cluster of namespaces, four Services from YAML, real traffic.
///
/// Builds what it needs, leaves nothing behind, and can be run again at once.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// What the demo itself understands, such as `--layer packet`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!("the demo makes network namespaces and loads eBPF programs: run it as root");
        }
        setup(false)?;
        build_ebpf()?;
        let podnet = build_podnet(false, false)?;
        run(cargo().args(["build", "--package", "tests", "--bins"]))?;
        let demo = workspace::target().join("debug/demo");
        run(command(demo).args(self.arguments).env("PODNET_BIN", podnet))
    }
}
