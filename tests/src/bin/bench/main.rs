//! `cargo xtask bench`: what podnet costs, beside its peers, on this machine.

mod client;
mod cluster;
mod east_west;
mod fill;
mod hooks;
mod machine;
mod nft;
mod programming;
mod report;
mod server;
mod services;
mod stats;
mod watch;
mod xdp;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use nix::unistd::Uid;

/// Measure podnet beside its peers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A pod reaches another one on its node: directly, and through a Service.
    EastWest(east_west::EastWest),
    /// From Services to the kernel.
    Programming(programming::Programming),
    /// A packet at a network card.
    Xdp(xdp::XdpBench),
    /// From the API server to the kernel, beside kube-proxy.
    Cluster(cluster::Cluster),
    /// The part of a server pod.
    #[command(hide = true)]
    Serve(server::Serve),
    /// The part of a client pod.
    #[command(hide = true)]
    Measure(client::Measure),
    /// The part of an agent.
    #[command(hide = true)]
    Fill(fill::Fill),
    /// The part of a client that waits for changes.
    #[command(hide = true)]
    Watch,
}

fn main() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the benchmarks make network namespaces and load eBPF programs: run them as root"
    );
    match Cli::parse().command {
        Command::EastWest(command) => command.run(),
        Command::Programming(command) => command.run(),
        Command::Xdp(command) => command.run(),
        Command::Cluster(command) => command.run(),
        Command::Serve(part) => part.run(),
        Command::Measure(part) => part.run(),
        Command::Fill(part) => part.run(),
        Command::Watch => watch::run(),
    }
}
