//! `podnet cleanup`: removes all that podnet has left in the kernel.

use std::process::ExitCode;

use clap::Args;

use super::{Bpffs, print};
use crate::error::Error;
use crate::kernel;

/// Remove every trace of podnet from the kernel, and nothing else
///
/// Stop the agent first. Connections to Services that are translated break; those that were led to a
/// backend at the socket go on.
#[derive(Debug, Args)]
pub(super) struct Cleanup {
    #[command(flatten)]
    bpffs: Bpffs,
}

impl Cleanup {
    pub(super) fn run(self) -> Result<ExitCode, Error> {
        let mut removed = kernel::cleanup(&self.bpffs.bpffs)?;
        if kernel::release_ports()? {
            removed.push("reservation of the source ports of masqueraded connections".to_owned());
        }
        if removed.is_empty() {
            print("there is nothing of podnet to remove")?;
        } else {
            let lines: Vec<String> = removed.iter().map(|what| format!("removed {what}")).collect();
            print(&lines.join("\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
