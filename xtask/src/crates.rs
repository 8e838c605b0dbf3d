//! Tools built from crates.io into the tools folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, is_executable, run};
use crate::workspace;

/// A crate with a program of the same name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    /// The name of the crate and its program.
    pub(crate) name: &'static str,
    /// The exact version.
    pub(crate) version: &'static str,
}

impl Tool {
    /// Where its program is installed.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        Ok(workspace::tools()?.join("bin").join(self.name))
    }

    /// Whether this very version is installed, by cargo's own record.
    pub(crate) fn is_installed(&self) -> Result<bool> {
        let record = fs::read_to_string(workspace::tools()?.join(".crates.toml")).unwrap_or_default();
        Ok(is_recorded(&record, self.name, self.version) && is_executable(&self.path()?))
    }

    /// Installs it. `adjust` may add features and variables.
    pub(crate) fn install(&self, adjust: impl FnOnce(&mut Command)) -> Result<()> {
        let mut cargo = cargo();
        cargo.args(["install", self.name, "--version", self.version, "--locked", "--force", "--root"]);
        cargo.arg(workspace::tools()?);
        // These tools run for seconds, but building them well takes minutes.
        for (name, value) in [("CODEGEN_UNITS", "16"), ("DEBUG", "0"), ("LTO", "off"), ("OPT_LEVEL", "1")] {
            cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
        }
        adjust(&mut cargo);
        run(&mut cargo)
    }
}

/// Whether cargo's record of installed crates names `name` at `version`.
fn is_recorded(record: &str, name: &str, version: &str) -> bool {
    let start = format!("\"{name} {version} (");
    record.lines().any(|line| line.starts_with(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_record() {
        let record = "[v1]\n\"bpf-linker 0.13.0 (registry+https://example.org/index)\" = [\"bpf-linker\"]\n";
        assert!(is_recorded(record, "bpf-linker", "0.13.0"));
        assert!(!is_recorded(record, "bpf-linker", "0.13"));
        assert!(!is_recorded(record, "linker", "0.13.0"));
    }
}
