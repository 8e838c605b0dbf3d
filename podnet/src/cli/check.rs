//! `podnet check`: can this machine run podnet?

use std::io;
use std::process::ExitCode;

use clap::Args;

use super::kernel::Kernel;
use super::print;
use crate::changes::Capacity;
use crate::config::Timeouts;
use crate::interfaces::unreadable;
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
        let settings = self.kernel.settings(AttachMode::Auto, Capacity::default(), Timeouts::default());
        let mut findings = probe(&settings);
        findings.push(tunnels(unreadable()));
        let failed = findings.iter().any(|finding| finding.level == Level::Failure);
        match print(&render(&findings)) {
            Ok(()) if !failed => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// Whether there are interfaces whose frames podnet cannot read.
fn tunnels(unreadable: io::Result<Vec<String>>) -> Finding {
    let found = match unreadable {
        Ok(names) if names.is_empty() => return Finding::ok(TUNNELS, "all have Ethernet headers"),
        Ok(names) => format!("without Ethernet headers: {}", names.join(", ")),
        Err(error) => format!("cannot be listed: {error}"),
    };
    Finding::bad(
        TUNNELS,
        Level::Warning,
        found,
        "clients outside are served by interfaces with Ethernet headers, such as VXLAN's, and not by way of these",
    )
}

const TUNNELS: &str = "interfaces";

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
    fn interfaces_that_cannot_be_served_are_named() {
        assert_eq!(tunnels(Ok(Vec::new())).level, Level::Ok);
        let finding = tunnels(Ok(vec!["wg0".to_owned(), "tunl0".to_owned()]));
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.detail, "without Ethernet headers: wg0, tunl0");
    }

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
