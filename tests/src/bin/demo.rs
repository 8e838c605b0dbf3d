//! `cargo xtask demo`: podnet at work in a small cluster of namespaces.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use nix::unistd::Uid;
use tests::agent::{Agent, Settings, SocketLb, service_port};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, SERVICE_PORT, Service};
use tests::peer::{self, Load, Server, Target, Transport};
use tests::pod::{Pod, PodKind};
use tests::protocol::Summary;

/// See podnet at work: a small cluster of network namespaces, Services from YAML, real traffic.
#[derive(Parser)]
struct Demo {
    /// Where connections are led to pods: when a socket connects, or packet by packet at the pod's interface.
    #[arg(long, value_enum, default_value = "socket")]
    layer: Layer,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layer {
    /// At `connect()`: packets go to the pod at once.
    Socket,
    /// At the client pod's interface: every packet is translated.
    Packet,
}

/// A Service of the demo, and how it is asked.
struct Shown {
    service: Service,
    family: Family,
    transport: Transport,
    pods: Vec<Pod>,
    _servers: Vec<Server>,
}

impl Shown {
    fn target(&self) -> Result<Target> {
        Ok(Target::new(self.transport, service_port(self.service.address(self.family)?)))
    }

    fn address(&self) -> Result<String> {
        let protocol = if self.transport == Transport::Tcp { "TCP" } else { "UDP" };
        Ok(format!("{} {protocol}", service_port(self.service.address(self.family)?)))
    }
}

const REQUESTS: usize = 300;

fn main() -> Result<()> {
    let demo = Demo::parse();
    ensure!(
        Uid::effective().is_root(),
        "the demo makes network namespaces and loads eBPF programs: run it as root"
    );
    let start = Instant::now();
    let (socket_lb, layer) = match demo.layer {
        Layer::Socket => (SocketLb::All, "when they connect (the socket layer)"),
        Layer::Packet => (SocketLb::Off, "packet by packet, at the pods' interfaces (tc)"),
    };

    title("A cluster of network namespaces");
    let lab = Lab::start()?.context("there is no podnet binary; `cargo xtask demo` builds it")?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let client = a.pod("client", PodKind::Ptp)?;
    let pods = |name: &str, count: u8| -> Result<(Vec<Pod>, Vec<Server>)> {
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for number in 0..count {
            // Every other one on the other node, and of the other kind.
            let (node, kind) = if number % 2 == 0 { (&a, PodKind::Ptp) } else { (&b, PodKind::Bridge) };
            let pod = node.pod(&format!("{name}-{number}"), kind)?;
            servers.push(Server::start(pod.place(), pod.name())?);
            pods.push(pod);
        }
        Ok((pods, servers))
    };
    let shown = |name, number, family, transport, count| -> Result<Shown> {
        let (pods, servers) = pods(name, count)?;
        let protocol = if transport == Transport::Tcp { "TCP" } else { "UDP" };
        let service = Service::new(name, number).only(family).only_protocol(protocol).with(&pods);
        Ok(Shown { service, family, transport, pods, _servers: servers })
    };
    let all = [
        shown("tea", 10, Family::V4, Transport::Tcp, 3)?,
        shown("coffee", 20, Family::V6, Transport::Tcp, 2)?,
        shown("news", 30, Family::V4, Transport::Udp, 2)?,
        shown("nobody", 40, Family::V4, Transport::Tcp, 0)?,
    ];
    let mut picture = String::new();
    for node in [&a, &b] {
        let here = all.iter().flat_map(|shown| &shown.pods).filter(|pod| pod.node().name() == node.name());
        let names: Vec<_> = here.map(|pod| format!("{} ({})", pod.name(), pod.v4())).collect();
        let _ = writeln!(picture, "  {} {}: {}", node.name(), node.v4(), names.join(", "));
    }
    println!(
        "{picture}  and a client pod on {} ({}). Nothing of it is linked to this machine's network.",
        a.name(),
        client.v4()
    );

    title("podnet agent: four Services from YAML files, into the kernel");
    let manifests = Manifests::new(lab.folder("manifests")?);
    for shown in &all {
        manifests.apply(&shown.service)?;
    }
    let settings = Settings::new(&manifests, socket_lb);
    let begin = Instant::now();
    let (mut agent, other) = (Agent::start(&a, settings.clone())?, Agent::start(&b, settings)?);
    for shown in &all {
        agent.wait_for(&shown.service)?;
    }
    println!("  An agent per node, up after {}. Connections are led to pods\n  {layer}.\n", millis(begin));
    let output = agent.podnet(&["services"])?;
    println!("$ podnet services\n{}", String::from_utf8_lossy(&output.stdout).trim_end());

    title(&format!("{REQUESTS} requests to each Service: who answers?"));
    let mut table = table(&["SERVICE", "ADDRESS", "ANSWERED", "BY"]);
    for shown in &all {
        let summary = peer::ask_often(client.place(), &shown.target()?, REQUESTS)?;
        let answered = format!("{} of {}", summary.ok, summary.ok + summary.failed);
        table.add_row([shown.service.name(), &shown.address()?, &answered, &who(&summary)]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((2, 1));
    }
    println!("{}\n", table.trim_fmt());
    println!("  `nobody` has no endpoints: its clients are refused at once, as by a closed port.");

    let tea = &all[0];
    title("An endpoint leaves while requests run");
    let mut load = Load::start(client.place(), &tea.target()?)?;
    let before = pause(&mut load, 600)?;
    let fewer = tea.service.clone().with(&tea.pods[1..]);
    let begin = Instant::now();
    manifests.apply(&fewer)?;
    agent.wait_for(&fewer)?;
    let took = millis(begin);
    let between = pause(&mut load, 100)?;
    let after = pause(&mut load, 600)?;
    println!(
        "  before:  {}\n  tea-0 taken out of the Service; podnet's tables show it after {took}",
        who(&before)
    );
    println!("  after:   {}", who(&difference(&after, &between)));
    let summary = load.stop()?;
    println!("  {} requests, {} failed.", summary.ok + summary.failed, summary.failed);
    ensure!(summary.failed == 0, "requests failed: {:?}", summary.failures);

    title("The agent is killed while requests run");
    let mut load = Load::start(client.place(), &tea.target()?)?;
    pause(&mut load, 300)?;
    let alive = load.so_far()?;
    agent.process().kill()?;
    println!("  kill -9: nobody but the kernel serves now.");
    let dead = pause(&mut load, 1000)?;
    manifests.apply(&tea.service)?;
    let begin = Instant::now();
    agent = agent.restart()?;
    agent.wait_for(&tea.service)?;
    let took = millis(begin);
    println!("  {} requests answered without an agent.", dead.ok - alive.ok);
    println!("  A new agent has taken over after {took}; it found tea-0 back in the YAML.");
    let between = load.so_far()?;
    let after = pause(&mut load, 600)?;
    println!("  now:     {}", who(&difference(&after, &between)));
    let summary = load.stop()?;
    println!(
        "  {} requests, {} failed; the slowest took {} ms.",
        summary.ok + summary.failed,
        summary.failed,
        summary.longest_millis
    );
    ensure!(summary.failed == 0, "requests failed: {:?}", summary.failures);

    title("podnet cleanup");
    for mut agent in [agent, other] {
        agent.terminate()?;
        let output = agent.podnet(&["cleanup"])?;
        ensure!(output.status.success(), "podnet cleanup: {}", String::from_utf8_lossy(&output.stderr));
    }
    let answer = peer::ask(client.place(), &tea.target()?.patience(Duration::from_secs(1)))?;
    ensure!(answer.is_err(), "tea still answers after the cleanup");
    println!(
        "  Programs and tables are gone from the kernel, and port {SERVICE_PORT} of tea is nobody's again."
    );
    drop((all, client, a, b, lab));
    println!(
        "  The namespaces are gone too. That took {:.1} s; run it again as you like.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}\n");
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

fn millis(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}

/// Waits, and returns what the clients have seen until then.
fn pause(load: &mut Load, millis: u64) -> Result<Summary> {
    thread::sleep(Duration::from_millis(millis));
    load.so_far()
}

fn difference(later: &Summary, earlier: &Summary) -> Summary {
    let mut difference = later.clone();
    for (server, count) in &mut difference.servers {
        *count -= earlier.servers.get(server).copied().unwrap_or_default();
    }
    difference.servers.retain(|_, count| *count > 0);
    difference.failures.clear();
    difference
}

/// Who answered how often, and what else there was.
fn who(summary: &Summary) -> String {
    let answers = summary.servers.iter().map(|(server, count)| format!("{server} {count}"));
    let failures = summary.failures.iter().map(|(kind, count)| format!("{} {count}", words(kind)));
    answers.chain(failures).collect::<Vec<_>>().join(", ")
}

/// `ConnectionRefused` as words.
fn words(kind: &str) -> String {
    let mut words = String::new();
    for letter in kind.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}
