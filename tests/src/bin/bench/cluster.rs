//! From the API server to the kernel: podnet and the real kube-proxy, with the same objects.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use futures::{TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Service as ServiceObject};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podnet::changes::{Capacity, Snapshot};
use podnet::kernel::View;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tests::agent::{Agent, Settings, SocketLb, Source};
use tests::control_plane::ControlPlane;
use tests::kubernetes::register_node;
use tests::lab::Lab;
use tests::node::Node;
use tests::pod::{Pod, PodKind};
use tests::process::Process;
use tests::proxies::{Kubeconfigs, kube_proxy};
use tests::require;

use crate::fill::milliseconds;
use crate::machine::{self, Machine};
use crate::nft;
use crate::report::{self, Aim};
use crate::server::PORTS;
use crate::services::{self, NAMESPACE, Service};
use crate::stats::{median, quantile};
use crate::watch::{self, Watcher, now};

/// Measure podnet and the real kube-proxy, in its mode nftables, from the API server to the kernel.
#[derive(Args)]
pub(crate) struct Cluster {
    /// How often each is started from nothing, in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Little of everything: to see that it runs.
    #[arg(long)]
    quick: bool,
    /// How many services with how many endpoints each.
    #[arg(long = "size", value_name = "SERVICESxENDPOINTS", default_values = ["10000x10", "5000x50"])]
    sizes: Vec<Size>,
    /// How many changes of one endpoint are timed.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// For how many seconds a proxy is waited for: when it starts, and with all its changes.
    #[arg(long, default_value_t = 180)]
    limit: u64,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/cluster.json")]
    output: PathBuf,
}

/// How many objects there are.
#[derive(Clone, Copy, Debug, Serialize)]
struct Size {
    services: u32,
    endpoints: u32,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (services, endpoints) = text.split_once('x').context("not SERVICESxENDPOINTS")?;
        Ok(Self { services: services.parse()?, endpoints: endpoints.parse()? })
    }
}

/// Services whose pods answer. The others have endpoints that nobody is at.
const ANSWERING: u32 = 5;
/// How many requests a core has on their way to the API server while objects are written.
const IN_FLIGHT: usize = 4;
/// How long a proxy may take to stop.
const STOP: Duration = Duration::from_secs(30);
/// How long it is quiet before a change.
const PAUSE: Duration = Duration::from_millis(100);

/// What the two pods answer.
const ANSWERS: [u8; 2] = *b"ab";

#[derive(Serialize)]
struct Report {
    machine: Machine,
    load_after: String,
    limit_s: u64,
    cases: Vec<Case>,
    aims: Vec<Aim>,
}

/// What was measured with one size.
#[derive(Serialize)]
struct Case {
    size: Size,
    /// How long it took to write the objects, in milliseconds.
    written: f64,
    podnet: Figures,
    kube_proxy: Figures,
}

/// What was measured of a proxy. Times are in milliseconds.
#[derive(Default, Serialize)]
struct Figures {
    starts: Vec<Start>,
    /// From the write of a change until a client meets the other pod.
    changes: Vec<f64>,
    /// From the write of a change until the API server has answered.
    writes: Vec<f64>,
    /// The changes that nobody has met.
    lost: usize,
    /// After all changes.
    memory: Option<Memory>,
}

#[derive(Serialize)]
struct Start {
    /// From the start of the process until all Services answer whose pods do; nothing if that took too long.
    answering: Option<f64>,
    memory: Memory,
    /// How many Services with endpoints the kernel has then.
    services: usize,
}

/// Of a process, in KiB.
#[derive(Clone, Copy, Serialize)]
struct Memory {
    resident: u64,
    peak: u64,
}

impl Memory {
    fn of(process: &Process) -> Result<Self> {
        let status = PathBuf::from(format!("/proc/{}/status", process.pid()));
        Ok(Self { resident: machine::memory(&status, "VmRSS")?, peak: machine::memory(&status, "VmHWM")? })
    }
}

impl Cluster {
    pub(crate) fn run(mut self) -> Result<()> {
        ensure!(self.rounds > 0, "no rounds");
        if self.quick {
            self.rounds = self.rounds.min(2);
            self.changes = self.changes.min(20);
            for size in &mut self.sizes {
                size.services = size.services.min(200);
            }
        }
        let machine = Machine::here();
        let mut cases = Vec::new();
        for size in &self.sizes {
            cases.push(self.case(*size)?);
        }
        let aims = cases.iter().flat_map(|case| self.aims(case)).collect::<Vec<_>>();
        println!("{}", machine.line());
        println!("{}", self.table(&cases));
        println!("{}", report::aims(&aims));
        let report = Report { machine, load_after: machine::load(), limit_s: self.limit, cases, aims };
        report::write(&self.output, &report)
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }

    fn case(&self, size: Size) -> Result<Case> {
        let Size { services, endpoints } = size;
        eprintln!("{services} x {endpoints}: the control plane, load {}", machine::load());
        let mut ground = Ground::create(size)?;
        let written = milliseconds(ground.write_objects()?);
        eprintln!("{services} x {endpoints}: objects written in {written:.0} ms");
        let (mut podnet, mut kube_proxy) = (Figures::default(), Figures::default());
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}, load {}", self.rounds, machine::load());
            let changes = if round == self.rounds { self.changes } else { 0 };
            self.podnet(&mut ground, &mut podnet, changes).context("podnet")?;
            self.kube_proxy(&mut ground, &mut kube_proxy, changes).context("kube-proxy")?;
        }
        Ok(Case { size, written, podnet, kube_proxy })
    }

    /// Starts podnet from nothing, changes endpoints, and stops it.
    fn podnet(&self, ground: &mut Ground, figures: &mut Figures, changes: u32) -> Result<()> {
        let node = ground.podnet.clone();
        let mut watcher = Watcher::start(node.place())?;
        watcher.begin(ground.answers(), self.limit())?;
        let start = now()?;
        let mut agent = Agent::spawn(&node, ground.settings())?;
        let answering = watcher.seen()?.map(|seen| milliseconds(seen.saturating_sub(start)));
        if let Some(status) = agent.process().ended()? {
            return Err(anyhow!("it has ended, {status}")).with_context(|| agent.last_words());
        }
        let memory = Memory::of(agent.process())?;
        let snapshot = View::open(node.bpffs()).and_then(|view| view.snapshot());
        let services = snapshot.map_or(0, |snapshot| service_ports(&snapshot));
        figures.starts.push(Start { answering, memory, services });
        if answering.is_some() && changes > 0 {
            ground.change(&mut watcher, figures, changes, self.limit())?;
            figures.memory = Some(Memory::of(agent.process())?);
        }
        agent.terminate()?;
        let cleanup = agent.podnet(&["cleanup"])?;
        ensure!(cleanup.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
        Ok(())
    }

    /// The same with kube-proxy.
    fn kube_proxy(&self, ground: &mut Ground, figures: &mut Figures, changes: u32) -> Result<()> {
        if figures.starts.iter().any(|start| start.answering.is_none()) {
            // It would take that long again.
            return Ok(());
        }
        let place = ground.kube_proxy.place().clone();
        let mut watcher = Watcher::start(&place)?;
        watcher.begin(ground.answers(), self.limit())?;
        let start = now()?;
        let mut process = kube_proxy(&ground.kube_proxy, &ground.programs, &ground.kubeconfigs.kube_proxy)?;
        let answering = watcher.seen()?.map(|seen| milliseconds(seen.saturating_sub(start)));
        if let Some(status) = process.ended()? {
            return Err(anyhow!("it has ended, {status}")).with_context(|| process.last_words());
        }
        let memory = Memory::of(&process)?;
        figures.starts.push(Start { answering, memory, services: nft::service_ports(&place)? });
        if answering.is_some() && changes > 0 {
            ground.change(&mut watcher, figures, changes, self.limit())?;
            figures.memory = Some(Memory::of(&process)?);
        }
        process.terminate(STOP)?;
        nft::run(&place, "flush ruleset\n")?;
        Ok(())
    }

    fn table(&self, cases: &[Case]) -> comfy_table::Table {
        let mut rows = Vec::new();
        for Case { size: Size { services, endpoints }, podnet, kube_proxy, .. } in cases {
            for (who, figures) in [("podnet", podnet), ("kube-proxy", kube_proxy)] {
                let who = format!("{who}, {services} x {endpoints}");
                let mut row = |what: &str, figure| rows.push([who.clone(), what.to_owned(), figure]);
                row(
                    "from its start until the Services answer",
                    match figures.start() {
                        Some(start) => format!("{start:.0} ms"),
                        None => format!("not within {} s", self.limit),
                    },
                );
                if let Some(Start { memory, services: found, .. }) = figures.starts.last() {
                    row("Services in the kernel, then", format!("{found} of {}", services + ANSWERING));
                    row("memory in user space, then", memory.text());
                }
                if let Some(memory) = &figures.memory {
                    row("one endpoint replaced, from the write to the client", spread(&figures.changes));
                    row("the write alone, to the API server's answer", spread(&figures.writes));
                    row("memory in user space, after that", memory.text());
                }
                if figures.lost > 0 {
                    row("changes that did not get to the client", figures.lost.to_string());
                }
            }
        }
        report::table(&["who", "what", "median"], rows)
    }

    /// What podnet takes in relation to kube-proxy. A start that was not waited for took the limit at least.
    fn aims(&self, case: &Case) -> Vec<Aim> {
        let Case { size: Size { services, endpoints }, podnet, kube_proxy, .. } = case;
        let limit = milliseconds(self.limit());
        let start = |figures: &Figures| figures.start().unwrap_or(limit);
        let resident =
            |figures: &Figures| figures.starts.last().map_or(f64::NAN, |start| start.memory.resident as f64);
        let mut ratios = vec![
            ("start", start(podnet) / start(kube_proxy)),
            ("memory", resident(podnet) / resident(kube_proxy)),
        ];
        if !kube_proxy.changes.is_empty() {
            for (what, q) in [("change, p50", 0.5), ("change, p99", 0.99)] {
                ratios.push((what, quantile(&podnet.changes, q) / quantile(&kube_proxy.changes, q)));
            }
        }
        let name = |what| format!("{services} x {endpoints}: {what}, in relation to kube-proxy");
        ratios.into_iter().map(|(what, ratio)| Aim::at_most(name(what), 1.0, ratio)).collect()
    }
}

impl Figures {
    /// The median of the starts.
    fn start(&self) -> Option<f64> {
        let starts: Option<Vec<f64>> = self.starts.iter().map(|start| start.answering).collect();
        starts.map(|starts| median(&starts))
    }
}

impl Memory {
    fn text(self) -> String {
        let mebibytes = |kibibytes: u64| kibibytes as f64 / 1024.0;
        format!("{:.1} MiB, at most {:.1}", mebibytes(self.resident), mebibytes(self.peak))
    }
}

fn spread(times: &[f64]) -> String {
    format!(
        "p50 {:.2}, p99 {:.2}, worst {:.2} ms ({} changes)",
        median(times),
        quantile(times, 0.99),
        quantile(times, 1.0),
        times.len()
    )
}

/// A control plane, and a node for each proxy.
struct Ground {
    size: Size,
    /// The node that podnet serves.
    podnet: Node,
    /// The node that kube-proxy serves.
    kube_proxy: Node,
    pods: [Pod; 2],
    /// The Services whose pods answer, and which of them does.
    answering: Vec<(Service, usize)>,
    programs: PathBuf,
    admin: PathBuf,
    kubeconfigs: Kubeconfigs,
    plane: ControlPlane,
    _lab: Lab,
}

impl Ground {
    fn create(size: Size) -> Result<Self> {
        let programs = require::control_plane().context("there is no control plane")?;
        let lab = Lab::without_podnet()?;
        let (podnet, kube_proxy, servers) =
            (lab.node("podnet")?, lab.node("kube-proxy")?, lab.node("servers")?);
        let pods = [servers.pod("a", PodKind::Ptp)?, servers.pod("b", PodKind::Ptp)?];
        for (pod, answer) in pods.iter().zip(ANSWERS) {
            watch::answer(pod, answer)?;
        }
        let plane = ControlPlane::without_controllers(&lab, &programs)?;
        let admin = plane.admin()?;
        let kubeconfigs = Kubeconfigs::create(&plane, &admin)?;
        plane.run(&admin, async |client| {
            register_node(client.clone(), &podnet).await?;
            register_node(client, &kube_proxy).await
        })?;
        // The first address is that of the API server's own Service.
        let answering = (size.services + 1..=size.services + ANSWERING)
            .map(|number| (Service::new(number, vec![SocketAddrV4::new(pods[0].v4(), PORTS[0])]), 0))
            .collect();
        Ok(Self { size, podnet, kube_proxy, pods, answering, programs, admin, kubeconfigs, plane, _lab: lab })
    }

    /// Writes all objects to the API server.
    fn write_objects(&self) -> Result<Duration> {
        let Size { services, endpoints } = self.size;
        let silent = services::apart(services + 1, endpoints).into_iter().skip(1);
        let mut objects: Vec<(ServiceObject, EndpointSlice)> = Vec::new();
        for service in silent.chain(self.answering.iter().map(|(service, _)| service.clone())) {
            let [service, slice]: [Value; 2] = serde_saphyr::from_multiple(&service.yaml())?
                .try_into()
                .map_err(|_| anyhow!("a Service has one slice"))?;
            objects.push((object(service)?, object(slice)?));
        }
        let start = Instant::now();
        self.plane.run(&self.admin, async |client| {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let namespace = object(json!({"metadata": {"name": NAMESPACE}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
            let (services, slices) = apis(client);
            let create = PostParams::default();
            stream::iter(objects.iter().map(anyhow::Ok))
                .try_for_each_concurrent(machine::cores() * IN_FLIGHT, async |(service, slice)| {
                    services.create(&create, service).await.context("cannot create a Service")?;
                    slices.create(&create, slice).await.context("cannot create an EndpointSlice")?;
                    Ok(())
                })
                .await
        })?;
        Ok(start.elapsed())
    }

    /// How podnet is run: with the tables' usual sizes, or twice what is needed.
    fn settings(&self) -> Settings {
        let Size { services, endpoints } = self.size;
        let usual = Capacity::default();
        let further = [
            // Each address has one more, for all of its other ports.
            ("--max-frontends", usual.frontends.max(4 * services)),
            ("--max-slots", usual.slots.max(2 * services * endpoints)),
            ("--max-flows", usual.flows),
            ("--max-sockets", usual.sockets),
        ];
        let mut settings = Settings::from(Source::Kubeconfig(self.kubeconfigs.podnet.clone()), SocketLb::All);
        settings.further =
            further.into_iter().flat_map(|(flag, size)| [flag.to_owned(), size.to_string()]).collect();
        settings
    }

    /// Who answers now.
    fn answers(&self) -> Vec<(SocketAddrV4, u8)> {
        self.answering.iter().map(|(service, pod)| (service.address(), ANSWERS[*pod])).collect()
    }

    /// Gives one Service after the other the other pod for its endpoint, and times how long it is until a client
    /// meets it.
    fn change(
        &mut self,
        watcher: &mut Watcher,
        figures: &mut Figures,
        changes: u32,
        limit: Duration,
    ) -> Result<()> {
        let Self { plane, admin, answering, pods, .. } = self;
        plane.run(admin, async |client| {
            let (_, slices) = apis(client);
            let deadline = Instant::now() + limit;
            let count = answering.len();
            for turn in (0..count).cycle().take(changes as usize) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let (service, pod) = &mut answering[turn];
                *pod = (*pod + 1) % pods.len();
                let patch = json!({"endpoints": [{
                    "addresses": [pods[*pod].v4()],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                }]});
                watcher.begin(vec![(service.address(), ANSWERS[*pod])], left)?;
                tokio::time::sleep(PAUSE).await;
                let start = now()?;
                let name = service.slice_name(PORTS[0]);
                slices.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                figures.writes.push(milliseconds(now()?.saturating_sub(start)));
                match watcher.seen()? {
                    Some(seen) => figures.changes.push(milliseconds(seen.saturating_sub(start))),
                    None => figures.lost += 1,
                }
            }
            Ok(())
        })
    }
}

/// How many service ports with endpoints podnet has written: all but the API server's own.
fn service_ports(snapshot: &Snapshot) -> usize {
    snapshot.frontends.iter().filter(|(_, frontend)| frontend.inside.count > 0).count()
}

fn apis(client: Client) -> (Api<ServiceObject>, Api<EndpointSlice>) {
    (Api::namespaced(client.clone(), NAMESPACE), Api::namespaced(client, NAMESPACE))
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("not such an object")
}
