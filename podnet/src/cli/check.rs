//! `podnet check`: can this machine run podnet?

use std::process::ExitCode;

use clap::Args;

use super::kernel::Kernel;
use super::print;
use crate::changes::Capacity;
use crate::kernel::{AttachMode, Finding, Level, probe};
use crate::output;

/// Try whether this machine can run podnet; nothing is left behind
///
/// Each feature is tried, none concluded from a version. The exit code is 1 when one is missing that
/// podnet cannot do without.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    kernel: Kernel,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let findings = probe(&self.kernel.settings(AttachMode::Auto, Capacity::default()));
        let failed = findings.iter().any(|finding| finding.level == Level::Failure);
        match print(&render(&findings)) {
            Ok(()) if !failed => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

fn render(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failure => "FAILURE",
        };
        [
            level.to_owned(),
            finding.what.clone(),
            finding.detail.clone(),
            finding.hint.clone().unwrap_or_default(),
        ]
    });
    output::table(&["RESULT", "FEATURE", "FOUND", "WHAT TO DO"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_come_with_hints() {
        let finding = |what: &str, level, hint: Option<&str>| Finding {
            what: what.into(),
            level,
            detail: format!("about {what}"),
            hint: hint.map(str::to_owned),
        };
        insta::assert_snapshot!(render(&[
            finding("tcx", Level::Ok, None),
            finding("forwarding", Level::Warning, Some("sysctl -w net.ipv4.ip_forward=1")),
            finding("bpffs", Level::Failure, Some("mount -t bpf bpf /sys/fs/bpf")),
        ]));
    }
}
