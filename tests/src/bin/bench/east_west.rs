//! A pod reaches another one on its node: directly, and through Services.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use podnet::kernel::View;
use podnet_common::verdict::Reason;
use serde::Serialize;
use tests::lab::Lab;
use tests::node::Node;
use tests::pod::PodKind;

use crate::client::{Part, Task, What};
use crate::fill::{Shape, fill};
use crate::hooks::Hooks;
use crate::machine::{self, Machine};
use crate::nft;
use crate::report::{self, Aim};
use crate::server::PORTS;
use crate::services;
use crate::stats::{Summary, median, ratios};

/// Measure the cost of a Service between two pods of a node, beside no Service and beside kube-proxy's rules.
#[derive(Args)]
pub(crate) struct EastWest {
    /// How often everything is measured, in turns.
    #[arg(long, default_value_t = 14)]
    rounds: usize,
    /// Small tables, few rounds: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// How many of the services are used, in turns.
    #[arg(long, default_value_t = 10)]
    targets: u32,
    /// Only variants whose name contains this, besides the direct ones.
    #[arg(long)]
    only: Option<String>,
    /// What is measured.
    #[arg(long, value_enum, default_values_t = What::ALL)]
    what: Vec<What>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/east-west.json")]
    output: PathBuf,
}

/// How packets get from pod to pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the pod's own address.
    Direct,
    /// The same, past programs that do nothing, where podnet's are.
    Hooks,
    /// To a Service, translated at the pod's interface.
    Tc,
    /// The same, and past the node's stack once the flow is established.
    TcShortCuts,
    /// To a Service, translated at the pod's interface, whose clients stay with their backends.
    TcAffinity,
    /// The same, while the Services have all kinds of addresses.
    TcAllFrontends,
    /// To a Service, whose backend the socket is led to.
    Socket,
    /// The same without programs at the pods' interfaces.
    SocketAlone,
    /// To a Service, by kube-proxy's rules.
    Nft,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hooks => "hooks of podnet, empty",
            Self::Tc => "podnet tc",
            Self::TcShortCuts => "podnet tc, short cuts",
            Self::TcAffinity => "podnet tc, affinity",
            Self::TcAllFrontends => "podnet tc, all frontends",
            Self::Socket => "podnet socket LB",
            Self::SocketAlone => "podnet socket LB alone",
            Self::Nft => "nft",
        }
    }

    /// Whether there is a Service on it.
    fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::Hooks)
    }

    /// Whose sockets podnet leads to backends, where it is podnet's.
    fn socket_lb(self) -> Option<&'static str> {
        match self {
            Self::Tc | Self::TcShortCuts | Self::TcAffinity | Self::TcAllFrontends => Some("off"),
            Self::Socket | Self::SocketAlone => Some("all"),
            Self::Direct | Self::Hooks | Self::Nft => None,
        }
    }

    /// The aim for a thing that is measured.
    fn aim(self, what: What, name: &str, ratio: f64) -> Option<Aim> {
        match (self, what) {
            (Self::Socket | Self::SocketAlone, What::New) => Some(Aim::at_most(name, 1.10, ratio)),
            (Self::Socket | Self::SocketAlone, What::Established) => Some(Aim::at_most(name, 1.02, ratio)),
            (Self::Socket | Self::SocketAlone, What::Crr) => Some(Aim::at_least(name, 0.97, ratio)),
            (Self::Tc | Self::TcShortCuts | Self::TcAllFrontends, What::New) => {
                Some(Aim::at_most(name, 1.15, ratio))
            }
            (Self::Tc | Self::TcShortCuts | Self::TcAllFrontends, What::Established) => {
                Some(Aim::at_most(name, 1.08, ratio))
            }
            _ => None,
        }
    }
}

/// One of those compared, with all it needs.
struct Variant {
    name: String,
    way: Way,
    services: u32,
    to: Vec<SocketAddrV4>,
    node: Node,
    client: Part,
    server: Part,
    _hooks: Option<Hooks>,
}

/// What was measured of a variant: for each thing, a value for each round.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    name: String,
    /// Nanoseconds for an operation.
    nanoseconds: BTreeMap<&'static str, Vec<f64>>,
    /// The same with what the median of a round passes over.
    means: BTreeMap<&'static str, Vec<f64>>,
    /// Time in relation to the direct way in the same round; for TCP connections, how many in the same time.
    ratios: BTreeMap<&'static str, Summary>,
    /// How often podnet's programs decided what, in all.
    verdicts: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    load_after: String,
    rounds: usize,
    targets: u32,
    transferred_bytes: u64,
    variants: Vec<Figures>,
    aims: Vec<Aim>,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Crr => "crr",
        }
    }

    /// How many measurements of how many operations make a round. Each is shorter than the time that the
    /// kernel leaves a process alone, so that other processes spoil a few of them and not their median.
    fn effort(self, quick: bool) -> (usize, usize) {
        match (self, quick) {
            (Self::New, false) => (400, 20),
            (Self::Established, false) => (1000, 100),
            (Self::Crr, false) => (500, 10),
            (Self::New, true) => (50, 20),
            (Self::Established, true) => (100, 100),
            (Self::Crr, true) => (50, 10),
        }
    }
}

impl EastWest {
    pub(crate) fn run(self) -> Result<()> {
        ensure!(self.rounds > 0, "no rounds");
        let machine = Machine::here();
        let bytes = if self.quick { 8 << 20 } else { 256 << 20 };
        let rounds = if self.quick { self.rounds.min(3) } else { self.rounds };
        let mut variants = self.variants()?;
        for variant in &mut variants {
            let start = Instant::now();
            variant.client.carry_out(&Task::Transfer { to: variant.to[0], bytes })?;
            eprintln!("{}: {} MiB there and back, {:.1?}", variant.name, bytes >> 20, start.elapsed());
        }
        let mut figures: Vec<_> = variants.iter().map(Variant::figures).collect();
        for round in 0..rounds {
            eprintln!("round {} of {rounds}, load {}", round + 1, machine::load());
            for what in self.what.iter().copied() {
                for turn in 0..variants.len() {
                    // Each is the first in some round.
                    let place = (turn + round) % variants.len();
                    let measured = variants[place].measure(what, self.quick)?;
                    let figures = &mut figures[place];
                    figures.nanoseconds.entry(what.name()).or_default().push(measured.median);
                    figures.means.entry(what.name()).or_default().push(measured.mean);
                }
            }
        }
        for (variant, figures) in variants.iter().zip(&mut figures) {
            figures.verdicts = variant.verdicts()?;
        }
        relate(&mut figures);
        let aims = aims(&variants, &figures, &self.what);
        println!("{}", machine.line());
        println!("{}", table(&figures));
        println!("{}", report::aims(&aims));
        let report = Report {
            machine,
            load_after: machine::load(),
            rounds,
            targets: self.targets,
            transferred_bytes: 2 * bytes,
            variants: figures,
            aims,
        };
        report::write(&self.output, &report)
    }

    fn variants(&self) -> Result<Vec<Variant>> {
        let sizes = if self.quick { [10, 1000].as_slice() } else { &[10, 10_000, 100_000] };
        // A node has not as many ports as there may be services.
        let (two, one) = (&sizes[..2], &sizes[1..2]);
        let mut wanted = vec![(Way::Direct, 0), (Way::Direct, 0), (Way::Hooks, 0)];
        for (way, sizes) in [
            (Way::Tc, sizes),
            (Way::TcShortCuts, two),
            (Way::TcAffinity, one),
            (Way::TcAllFrontends, two),
            (Way::Socket, sizes),
            (Way::SocketAlone, two),
            (Way::Nft, two),
        ] {
            wanted.extend(sizes.iter().map(|services| (way, *services)));
        }
        let mut variants = Vec::new();
        for (place, (way, services)) in wanted.into_iter().enumerate() {
            let name = match way {
                Way::Direct if place > 0 => "direct again (the noise)".to_owned(),
                Way::Direct | Way::Hooks => way.name().to_owned(),
                _ => format!("{}, {services}", way.name()),
            };
            let is_wanted = self.only.as_ref().is_none_or(|only| name.contains(only));
            if way == Way::Direct || is_wanted {
                // Labs of their own: no variant's frames reach another one.
                let node = Lab::without_podnet()?.node("node")?;
                let variant = Variant::set_up(name, way, services, self.targets, node);
                variants.push(variant.with_context(|| format!("setting up {way:?}, {services}"))?);
            }
        }
        Ok(variants)
    }
}

impl Variant {
    fn set_up(name: String, way: Way, services: u32, targets: u32, node: Node) -> Result<Self> {
        let start = Instant::now();
        let [client, server] = ["client", "server"].map(|name| node.pod(name, PodKind::Ptp));
        let (client, server) = (client?, server?);
        client
            .place()
            .netns
            .sysctl(&["net/ipv4/ip_local_port_range=1024 65535", "net/ipv4/tcp_tw_reuse=1"])?;
        let endpoints = PORTS.map(|port| SocketAddrV4::new(server.v4(), port));
        let targets = services::spread(targets, services);
        let mut shape = Shape::alike(services, &endpoints, &targets);
        shape.affinity = way == Way::TcAffinity;
        shape.all_frontends = way == Way::TcAllFrontends;
        // As the agent does even for sockets: packets of those that are not led to a backend are translated.
        let interfaces = [client.interface(), server.interface()];
        let attach = if way == Way::SocketAlone { &[] } else { interfaces.as_slice() };
        let hooks = (way == Way::Hooks).then(|| Hooks::attach(&node, &interfaces)).transpose()?;
        if let Some(socket_lb) = way.socket_lb() {
            fill(&node, &shape, socket_lb, way == Way::TcShortCuts, attach, 0)?;
        } else if way == Way::Nft {
            nft::run(node.place(), nft::BASE)?;
            for part in shape.list().chunks(NFT_AT_ONCE) {
                nft::run(node.place(), &nft::add(part, true))?;
            }
        }
        let to = if way.is_direct() {
            endpoints.to_vec()
        } else {
            shape.list().iter().filter(|service| service.udp).map(services::Service::address).collect()
        };
        let last = machine::cores() - 1;
        let (server_core, client_core) = (last.to_string(), last.saturating_sub(1).to_string());
        let mut server = Part::start(server.place(), &["serve", "--core", &server_core])?;
        server.hear()?;
        let client = Part::start(client.place(), &["measure", "--core", &client_core])?;
        eprintln!("{name}: set up in {:.1?}", start.elapsed());
        Ok(Self { name, way, services, to, node, client, server, _hooks: hooks })
    }

    fn measure(&mut self, what: What, quick: bool) -> Result<crate::client::Measured> {
        self.server.tell("")?;
        self.server.hear()?;
        let (chunks, size) = what.effort(quick);
        let to = match what {
            What::Established => vec![self.to[0]],
            What::New | What::Crr => self.to.clone(),
        };
        let task = Task::Measure { what, to, chunks, size };
        self.client.carry_out(&task).with_context(|| self.name.clone())
    }

    fn figures(&self) -> Figures {
        Figures {
            name: self.name.clone(),
            nanoseconds: BTreeMap::new(),
            means: BTreeMap::new(),
            ratios: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    /// What podnet's programs have decided, and that they are the ones that did the work.
    fn verdicts(&self) -> Result<BTreeMap<&'static str, u64>> {
        let Some(socket_lb) = self.way.socket_lb() else { return Ok(BTreeMap::new()) };
        let counters: BTreeMap<_, _> = View::open(self.node.bpffs())?
            .counters()?
            .into_iter()
            .filter(|counter| counter.count > 0)
            .map(|counter| (counter.reason.label(), counter.count))
            .collect();
        let (tc, socket) = (Reason::NewFlow.label(), Reason::SocketConnect.label());
        let (does, does_not) = if socket_lb == "off" { (tc, socket) } else { (socket, tc) };
        ensure!(
            counters.contains_key(does) && !counters.contains_key(does_not),
            "{} was not what was measured: {counters:?}",
            self.name
        );
        Ok(counters)
    }
}

/// A ruleset of many services is loaded in transactions of this many: one of all takes minutes.
const NFT_AT_ONCE: usize = 500;

/// Relates all figures to those of the first variant.
fn relate(figures: &mut [Figures]) {
    let Some(direct) = figures.first().map(|direct| direct.nanoseconds.clone()) else { return };
    for figures in figures {
        for (what, direct) in &direct {
            let these = &figures.nanoseconds[what];
            // Of connections, more are better: their number in a time is the inverse of the time.
            let ratios =
                if *what == What::Crr.name() { ratios(direct, these) } else { ratios(these, direct) };
            figures.ratios.insert(what, Summary::of(&ratios));
        }
    }
}

fn table(figures: &[Figures]) -> comfy_table::Table {
    let row = |figures: &Figures| {
        let mut row = vec![figures.name.clone()];
        for what in What::ALL {
            let (Some(ratio), Some(times)) =
                (figures.ratios.get(what.name()), figures.nanoseconds.get(what.name()))
            else {
                row.extend([String::new(), String::new()]);
                continue;
            };
            let Summary { median: ratio, low, high } = ratio;
            row.push(format!("{ratio:.3} ({low:.3} - {high:.3})"));
            let time = median(times);
            row.push(match what {
                What::New | What::Established => format!("{:.2} us", time / 1e3),
                What::Crr => format!("{:.0}/s", 1e9 / time),
            });
        }
        row
    };
    report::table(&["path, services", "new", "", "established", "", "CRR", ""], figures.iter().map(row))
}

fn aims(variants: &[Variant], figures: &[Figures], measured: &[What]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for (place, variant) in variants.iter().enumerate() {
        if variant.way.socket_lb().is_none() {
            continue;
        }
        // The cost is to be the same whatever the number of services.
        let smallest = variants.iter().position(|other| other.way == variant.way).unwrap_or(place);
        for what in measured {
            let name = format!("{}: {}", variant.name, what.name());
            let ratio = figures[place].ratios[what.name()].median;
            aims.extend(variant.way.aim(*what, &name, ratio));
            if smallest != place {
                let times = |place: usize| &figures[place].nanoseconds[what.name()];
                let grown = median(&ratios(times(place), times(smallest)));
                let name = format!("{name}, time in relation to {} services", variants[smallest].services);
                aims.push(Aim::at_most(name, 1.05, grown));
            }
        }
    }
    aims
}
