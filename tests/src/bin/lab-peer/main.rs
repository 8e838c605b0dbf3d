//! The lab's helper: servers and clients in pods, a way into namespaces, and the janitor.

mod client;
mod prober;
mod server;

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tests::{cgroup, lab, netns};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Becomes another program in a namespace and a cgroup.
    Enter {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Removes a lab when the input ends.
    Janitor { id: String },
    /// Serves TCP and UDP until the input ends.
    Serve {
        #[arg(long)]
        name: String,
        #[arg(long)]
        port: u16,
    },
    /// Sends one request for each line of input.
    Converse(Client),
    /// Asks the questions in each line of input, all at the same time, and prints what became of them.
    Probe,
    /// Sends requests all the time; prints a summary for each line of input and when it ends.
    Load {
        #[command(flatten)]
        client: Client,
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Milliseconds between a worker's requests.
        #[arg(long, default_value_t = 2)]
        pause: u64,
    },
    /// Sends a datagram; prints the ICMP error that comes of it, or `null`.
    Trace {
        to: SocketAddr,
        /// How many routers it may pass.
        #[arg(long)]
        hops: u8,
        /// Milliseconds to wait for an error.
        #[arg(long)]
        patience: u64,
    },
    /// Sends a stream of bytes and receives one; prints `null` or the failure.
    Transfer {
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
}

/// Whom a client talks to, and how.
#[derive(Args, Clone)]
struct Client {
    transport: Transport,
    to: SocketAddr,
    /// The address to send from.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Keep the connection or the socket for all requests.
    #[arg(long)]
    keep: bool,
    /// How many bytes a datagram has.
    #[arg(long, default_value_t = 4)]
    size: usize,
    /// Milliseconds to wait for an answer.
    #[arg(long, default_value_t = 3000)]
    patience: u64,
}

impl Client {
    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    /// An unconnected UDP socket.
    Udp,
    ConnectedUdp,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Enter { netns, cgroup, command } => {
            cgroup::enter(&cgroup)?;
            netns::enter(&netns)?;
            let (program, arguments) = command.split_first().context("no program")?;
            Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
        }
        Task::Janitor { id } => {
            wait_for_end_of_input();
            lab::remove(&id)
        }
        Task::Serve { name, port } => {
            server::start(&name, port)?;
            wait_for_end_of_input();
            Ok(())
        }
        Task::Converse(client) => client::converse(&client),
        Task::Probe => prober::probe(),
        Task::Load { client, workers, pause } => client::load(&client, workers, Duration::from_millis(pause)),
        Task::Trace { to, hops, patience } => client::trace(to, hops, Duration::from_millis(patience)),
        Task::Transfer { to, bytes } => client::transfer(to, bytes),
    }
}

/// Waits until whoever started this process closes its input or is no more.
fn wait_for_end_of_input() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}
