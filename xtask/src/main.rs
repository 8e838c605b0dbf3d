//! `cargo xtask COMMAND`: everything that is done to this repository beyond plain cargo.
//!
//! A command is one file with a `clap::Args` struct that has a `run` method, a `mod` line and a line
//! in `commands!`.

mod apt;
mod bench;
mod bpf_toolchain;
mod build;
mod build_ebpf;
mod control_plane;
mod crates;
mod demo;
mod go_module;
mod image;
mod lint;
mod process;
mod setup;
mod test;
mod timing;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// podnet's build commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

macro_rules! commands {
    ($($name:ident($args:path)),* $(,)?) => {
        #[derive(clap::Subcommand)]
        enum Command {
            $($name($args),)*
        }

        impl Command {
            fn run(self) -> Result<()> {
                match self {
                    $(Self::$name(args) => args.run(),)*
                }
            }
        }
    };
}

commands! {
    Setup(setup::Setup),
    BuildEbpf(build_ebpf::BuildEbpf),
    Build(build::Build),
    Demo(demo::Demo),
    Bench(bench::Bench),
    Image(image::Image),
    Lint(lint::Lint),
    Test(test::Test),
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
