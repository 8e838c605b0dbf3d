//! The command line: one file per command.

mod agent;
mod check;
mod cleanup;
mod kernel;
mod services;
mod status;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::Error;

/// Kubernetes Services, routed in the kernel.
#[derive(Debug, Parser)]
#[command(name = "podnet", version, after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(Box<agent::Agent>),
    Services(services::Services),
    Status(status::Status),
    Check(check::Check),
    Cleanup(cleanup::Cleanup),
}

/// Where podnet's maps and links are pinned.
#[derive(Clone, Debug, Args)]
struct Bpffs {
    /// podnet's own directory on a BPF file system
    #[arg(long, value_name = "DIR", env = "PODNET_BPFFS", default_value = "/sys/fs/bpf/podnet")]
    bpffs: PathBuf,
}

/// Parses the arguments and runs the command they name.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(agent) => agent.run(),
        Command::Services(services) => services.run(),
        Command::Status(status) => status.run(),
        Command::Check(check) => Ok(check.run()),
        Command::Cleanup(cleanup) => cleanup.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Prints a command's result. A reader that has had enough, like `head`, is no error.
fn print(text: &str) -> Result<(), Error> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::system("standard output")(error))
        }
        _ => Ok(()),
    }
}
