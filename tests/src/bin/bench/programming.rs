//! From Services to the kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;
use tests::lab::Lab;
use tests::manifests::Manifests;
use tests::process::Process;
use tests::{require, wait};

use crate::fill::{Filled, Shape, fill, milliseconds};
use crate::machine::{self, Machine};
use crate::nft;
use crate::report::{self, Aim};
use crate::services::{self, Service};
use crate::stats::{median, quantile};

/// Measure how long Services take to the kernel, all at once and one endpoint at a time.
#[derive(Args)]
pub(crate) struct Programming {
    /// How often all services are programmed, each time from nothing.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// A tenth of everything: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// How many services podnet is given, each with ten endpoints.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// How many services `nft` is given; 10,000 take it minutes.
    #[arg(long, default_value_t = 1000)]
    peer_services: u32,
    /// How many changes of one endpoint are timed.
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/programming.json")]
    output: PathBuf,
}

const ENDPOINTS: u32 = 10;
/// How often a ruleset that is loaded gets one service more, and one endpoint replaced.
const PEER_CHANGES: u32 = 15;

/// Times are in milliseconds.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    load_after: String,
    services: u32,
    endpoints: u32,
    podnet: Vec<Filled>,
    agent: Whole,
    nft: Vec<Peer>,
    aims: Vec<Aim>,
}

/// `podnet agent` with a directory of YAML.
#[derive(Serialize)]
struct Whole {
    /// From its start until it is ready.
    ready: f64,
    /// KiB in RAM then.
    resident: u64,
    /// KiB at most until then.
    peak: u64,
}

/// What `nft` takes.
#[derive(Serialize)]
struct Peer {
    services: u32,
    load: f64,
    add: Vec<f64>,
    replace: Vec<f64>,
}

impl Programming {
    pub(crate) fn run(mut self) -> Result<()> {
        if self.quick {
            self.rounds = self.rounds.min(2);
            self.services = self.services.min(1000);
            self.peer_services = self.peer_services.min(100);
            self.changes = self.changes.min(50);
        }
        let machine = Machine::here();
        let mut filled = Vec::new();
        for round in 0..self.rounds {
            eprintln!("podnet, round {} of {}, load {}", round + 1, self.rounds, machine::load());
            let lab = Lab::without_podnet()?;
            let shape = Shape::apart(self.services, ENDPOINTS);
            filled.push(fill(&lab.node("node")?, &shape, "all", false, &[], self.changes)?);
        }
        eprintln!("podnet agent, load {}", machine::load());
        let agent = agent(self.services)?;
        let mut peers = Vec::new();
        for services in [self.peer_services / 10, self.peer_services] {
            eprintln!("nft with {services} services, load {}", machine::load());
            peers.push(peer(services)?);
        }
        let aims = self.aims(&filled);
        println!("{}", machine.line());
        println!("{}", self.table(&filled, &agent, &peers));
        println!("{}", tables(&filled));
        println!("{}", report::aims(&aims));
        let report = Report {
            machine,
            load_after: machine::load(),
            services: self.services,
            endpoints: ENDPOINTS,
            podnet: filled,
            agent,
            nft: peers,
            aims,
        };
        report::write(&self.output, &report)
    }

    fn table(&self, filled: &[Filled], agent: &Whole, peers: &[Peer]) -> comfy_table::Table {
        let of = |figure: fn(&Filled) -> f64| median(&filled.iter().map(figure).collect::<Vec<_>>());
        let changes = changes(filled);
        let podnet = format!("podnet, {} x {ENDPOINTS}", self.services);
        let all = format!(
            "{:.0} ms (index {:.0}, plan {:.0}, tables {:.0})",
            of(|filled| filled.total),
            of(|filled| filled.index),
            of(|filled| filled.plan),
            of(|filled| filled.apply)
        );
        let one = format!(
            "p50 {:.3}, p99 {:.3}, worst {:.3} ms",
            median(&changes),
            quantile(&changes, 0.99),
            quantile(&changes, 1.0)
        );
        let memory = format!(
            "{:.1} MiB, {:.1} of them for the services",
            of(|filled| filled.resident_after as f64) / 1024.0,
            of(|filled| filled.resident_after as f64 - filled.resident_before as f64) / 1024.0
        );
        let whole_memory =
            format!("{:.1} MiB, at most {:.1}", agent.resident as f64 / 1024.0, agent.peak as f64 / 1024.0);
        let whole = "podnet agent, from YAML".to_owned();
        let mut rows = vec![
            [podnet.clone(), "making maps, loading programs".to_owned(), format!("{:.0} ms", of(|f| f.open))],
            [podnet.clone(), "all services, from objects to the kernel".to_owned(), all],
            [podnet.clone(), "one endpoint replaced".to_owned(), one],
            [podnet, "memory in user space".to_owned(), memory],
            [whole.clone(), "from its start until it is ready".to_owned(), format!("{:.0} ms", agent.ready)],
            [whole, "memory in user space".to_owned(), whole_memory],
        ];
        for peer in peers {
            let nft = format!("nft, {} x {ENDPOINTS}", peer.services);
            let times = [
                ("all services, one transaction", peer.load),
                ("one service more", median(&peer.add)),
                ("one endpoint replaced", median(&peer.replace)),
            ];
            rows.extend(times.map(|(what, time)| [nft.clone(), what.to_owned(), format!("{time:.1} ms")]));
        }
        report::table(&["who", "what", "median"], rows)
    }

    fn aims(&self, filled: &[Filled]) -> Vec<Aim> {
        let total = median(&filled.iter().map(|filled| filled.total).collect::<Vec<_>>());
        let name = format!("{} services x {ENDPOINTS} endpoints to the kernel, ms", self.services);
        vec![Aim::at_most(name, 1000.0, total)]
    }
}

fn changes(filled: &[Filled]) -> Vec<f64> {
    filled.iter().flat_map(|filled| &filled.changes).copied().collect()
}

/// The kernel memory of the maps.
fn tables(filled: &[Filled]) -> comfy_table::Table {
    let mut tables: Vec<_> = filled.last().into_iter().flat_map(|filled| &filled.tables).collect();
    tables.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let all: u64 = tables.iter().map(|(_, bytes)| **bytes).sum();
    let rows = tables.iter().map(|(name, bytes)| ((*name).clone(), **bytes)).chain([("all".to_owned(), all)]);
    report::table(
        &["map", "kernel memory"],
        rows.map(|(name, bytes)| [name, format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))]),
    )
}

/// Runs the agent over so many services.
fn agent(count: u32) -> Result<Whole> {
    let podnet = require::podnet().context("there is no podnet binary")?;
    let lab = Lab::without_podnet()?;
    let node = lab.node("node")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    for (number, services) in services::apart(count, ENDPOINTS).chunks(100).enumerate() {
        let yaml: String = services.iter().map(Service::yaml).collect();
        manifests.write(&format!("{number}.yaml"), &yaml)?;
    }
    let mut command = node.place().command(podnet)?;
    command.arg("agent").arg("--manifests").arg(manifests.folder());
    command.arg("--bpffs").arg(node.bpffs()).arg("--cgroup").arg(&node.place().cgroup);
    command.args(["--node-name", "node", "--metrics-bind-address", "off", "--healthz-bind-address", "off"]);
    let log = lab.folder("logs")?.join("agent.log");
    let start = Instant::now();
    let mut process = Process::start("podnet agent", command, &log)?;
    wait::until("the agent to get ready", Duration::from_secs(120), || {
        let ended = process.ended()?;
        ensure!(ended.is_some() || process.log().contains("ready"), "it is not");
        Ok(ended)
    })
    .and_then(|ended| ended.map_or(Ok(()), |status| Err(anyhow!("it ended, {status}"))))
    .with_context(|| process.last_words())?;
    let ready = milliseconds(start.elapsed());
    let status = PathBuf::from(format!("/proc/{}/status", process.pid()));
    let memory = |name| machine::memory(Path::new(&status), name);
    let whole = Whole { ready, resident: memory("VmRSS")?, peak: memory("VmHWM")? };
    process.terminate(Duration::from_secs(10))?;
    Ok(whole)
}

fn peer(count: u32) -> Result<Peer> {
    let lab = Lab::without_podnet()?;
    let node = lab.node("node")?;
    let mut services = services::apart(count + PEER_CHANGES, ENDPOINTS);
    let more = services.split_off(count as usize);
    nft::run(node.place(), nft::BASE)?;
    let load = milliseconds(nft::run(node.place(), &nft::add(&services, false))?);
    let (mut add, mut replace) = (Vec::new(), Vec::new());
    for (service, place) in more.iter().zip(1 << 20..) {
        add.push(milliseconds(nft::run(node.place(), &nft::add([service], false))?));
        let mut endpoints = service.endpoints.clone();
        endpoints[0] = services::pod(place);
        let changed = Service { endpoints, ..service.clone() };
        replace.push(milliseconds(nft::run(node.place(), &nft::replace(&changed))?));
    }
    Ok(Peer { services: count, load, add, replace })
}
