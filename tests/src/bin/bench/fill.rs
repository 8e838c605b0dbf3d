//! The agent's part without its ends: objects through index and planner into the kernel. In a process of its
//! own, so that its memory is only its own.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::net::if_::if_nametoindex;
use podnet::changes::Capacity;
use podnet::cluster::Event;
use podnet::cluster::index::Index;
use podnet::cluster::model::service_ports;
use podnet::cluster::object::Object;
use podnet::config::Timeouts;
use podnet::kernel::{AttachMode, Dataplane, Settings, Side, SocketLb};
use podnet::plan::Planner;
use serde::{Deserialize, Serialize};
use tests::node::Node;

use crate::client::Part;
use crate::machine;
use crate::services::{self, Service};

/// What a table of services looks like.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Shape {
    /// How many services.
    #[arg(long)]
    services: u32,
    /// Endpoints that all services have; without any, each has its own.
    #[arg(long)]
    endpoint: Vec<SocketAddrV4>,
    /// How many endpoints each service has of its own.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// The services that are reached by UDP too.
    #[arg(long)]
    target: Vec<u32>,
    /// Whether clients stay with their endpoints.
    #[arg(long)]
    pub(crate) affinity: bool,
    /// Whether services have NodePorts, a load balancer's and an external address, and not a ClusterIP only.
    #[arg(long)]
    pub(crate) all_frontends: bool,
}

impl Shape {
    /// `services` services with the same endpoints.
    pub(crate) fn alike(services: u32, endpoint: &[SocketAddrV4], target: &[u32]) -> Self {
        let (endpoint, target) = (endpoint.to_vec(), target.to_vec());
        Self { endpoint, target, ..Self::apart(services, 0) }
    }

    /// `services` services with `endpoints` endpoints each, all of them different.
    pub(crate) fn apart(services: u32, endpoints: u32) -> Self {
        let (endpoint, target) = (Vec::new(), Vec::new());
        Self { services, endpoint, endpoints, target, affinity: false, all_frontends: false }
    }

    /// The services.
    pub(crate) fn list(&self) -> Vec<Service> {
        let mut services = if self.endpoint.is_empty() {
            services::apart(self.services, self.endpoints)
        } else {
            services::alike(self.services, &self.endpoint, &self.target)
        };
        for service in &mut services {
            (service.affinity, service.all_frontends) = (self.affinity, self.all_frontends);
        }
        services
    }

    fn arguments(&self) -> Vec<String> {
        let Self { services, endpoint, endpoints, target, affinity, all_frontends } = self;
        let mut arguments = vec![format!("--services={services}"), format!("--endpoints={endpoints}")];
        arguments.extend(endpoint.iter().map(|endpoint| format!("--endpoint={endpoint}")));
        arguments.extend(target.iter().map(|target| format!("--target={target}")));
        arguments.extend(affinity.then(|| "--affinity".to_owned()));
        arguments.extend(all_frontends.then(|| "--all-frontends".to_owned()));
        arguments
    }
}

/// Fills the tables of a node, attaches the programs, and changes endpoints.
#[derive(Args)]
pub(crate) struct Fill {
    #[command(flatten)]
    shape: Shape,
    /// The directory on bpffs.
    #[arg(long)]
    bpffs: PathBuf,
    /// The cgroup.
    #[arg(long)]
    cgroup: PathBuf,
    /// The node's address.
    #[arg(long)]
    node_address: IpAddr,
    /// Whose sockets are led to backends.
    #[arg(long)]
    socket_lb: SocketLb,
    /// Whether established flows go past the node's stack.
    #[arg(long)]
    short_cuts: bool,
    /// The interfaces to attach to.
    #[arg(long)]
    attach: Vec<String>,
    /// How often one endpoint of a service is replaced, after that.
    #[arg(long, default_value_t = 0)]
    changes: u32,
}

/// How it went. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Filled {
    /// Making maps, and loading programs.
    pub(crate) open: f64,
    /// Taking the objects into the index.
    pub(crate) index: f64,
    /// Planning.
    pub(crate) plan: f64,
    /// Writing the kernel's tables.
    pub(crate) apply: f64,
    /// From the index to the tables.
    pub(crate) total: f64,
    /// KiB of this process in RAM before there were objects.
    pub(crate) resident_before: u64,
    /// KiB after all of it.
    pub(crate) resident_after: u64,
    /// The kernel's memory by table, in bytes.
    pub(crate) tables: HashMap<String, u64>,
    /// Each change of one endpoint, from its event to the kernel.
    pub(crate) changes: Vec<f64>,
}

/// Fills the tables of `node`, in a process of its own.
///
/// # Errors
/// If that fails.
pub(crate) fn fill(
    node: &Node,
    shape: &Shape,
    socket_lb: &str,
    short_cuts: bool,
    attach: &[&str],
    changes: u32,
) -> Result<Filled> {
    let place = node.place();
    let mut arguments = vec!["fill".to_owned(), format!("--socket-lb={socket_lb}")];
    arguments.push(format!("--bpffs={}", node.bpffs().display()));
    arguments.push(format!("--cgroup={}", place.cgroup.display()));
    arguments.push(format!("--node-address={}", node.v4()));
    arguments.push(format!("--changes={changes}"));
    arguments.extend(short_cuts.then(|| "--short-cuts".to_owned()));
    arguments.extend(attach.iter().map(|name| format!("--attach={name}")));
    arguments.extend(shape.arguments());
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let line = Part::start(place, &arguments)?.hear()?;
    serde_json::from_str(&line).with_context(|| format!("not what an agent says: {line}"))
}

impl Fill {
    pub(crate) fn run(self) -> Result<()> {
        let mut services = self.shape.list();
        let resident_before = machine::resident()?;
        let settings = Settings {
            bpffs: self.bpffs.clone(),
            cgroup: Some(self.cgroup.clone()),
            socket_lb: self.socket_lb,
            short_cuts: self.short_cuts,
            timeouts: Timeouts::default(),
            attach: AttachMode::Auto,
            xdp: None,
            zone: None,
            capacity: capacity(&services)?,
        };
        let start = Instant::now();
        let mut agent = Agent::open(&settings)?;
        let open = start.elapsed();
        agent.dataplane.admit_node([self.node_address])?;
        agent.index.set_local_addresses([self.node_address].into());

        let events = services::events(&services);
        let start = Instant::now();
        for event in events {
            agent.index.handle(event);
        }
        let index = start.elapsed();
        let (plan, apply) = agent.carry_out()?;
        let total = start.elapsed();

        for name in &self.attach {
            let number = if_nametoindex(name.as_str()).with_context(|| format!("there is no {name}"))?;
            agent.dataplane.attach_interface(Side::Pod, number, name)?;
        }
        agent.dataplane.attach_sockets()?;
        let resident_after = machine::resident()?;
        let memory = agent.dataplane.memory()?;
        let changes = agent.change(&mut services, self.changes)?;
        let filled = Filled {
            open: milliseconds(open),
            index: milliseconds(index),
            plan: milliseconds(plan),
            apply: milliseconds(apply),
            total: milliseconds(total),
            resident_before,
            resident_after,
            tables: memory.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
            changes: changes.into_iter().map(milliseconds).collect(),
        };
        println!("{}", serde_json::to_string(&filled)?);
        Ok(())
    }
}

/// The default sizes, or what holds twice as much as there is.
fn capacity(services: &[Service]) -> Result<Capacity> {
    // Each ClusterIP has one more, for all of its other ports.
    let frontends: usize = services
        .iter()
        .map(|service| service.protocols().count() * if service.all_frontends { 4 } else { 1 } + 1)
        .sum();
    let slots: usize =
        services.iter().map(|service| service.protocols().count() * service.endpoints.len()).sum();
    let mut capacity = Capacity::default();
    capacity.frontends = capacity.frontends.max(u32::try_from(2 * frontends).context("many frontends")?);
    capacity.slots = capacity.slots.max(u32::try_from(2 * slots).context("many slots")?);
    Ok(capacity)
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

struct Agent {
    index: Index,
    planner: Planner,
    dataplane: Dataplane,
}

impl Agent {
    fn open(settings: &Settings) -> Result<Self> {
        let dataplane = Dataplane::open(settings)?;
        let planner = Planner::adopt(&settings.capacity, &dataplane.snapshot()?);
        Ok(Self { index: Index::default(), planner, dataplane })
    }

    /// Carries out what the index has been told of since the last time.
    fn carry_out(&mut self) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        let dirty = self.index.take_dirty();
        let plan = self.planner.plan(start, dirty, |key| service_ports(&self.index, key));
        ensure!(plan.full.is_empty() && plan.conflicts.is_empty(), "the plan does not fit: {:?}", plan.full);
        ensure!(!plan.changes.is_empty(), "there is nothing to change");
        let planned = start.elapsed();
        self.dataplane.apply(&plan.changes)?;
        Ok((planned, start.elapsed().saturating_sub(planned)))
    }

    /// Replaces an endpoint of one service after the other, and times each.
    fn change(&mut self, services: &mut [Service], count: u32) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let total = u32::try_from(services.len()).context("many services")?;
        for place in 0..count {
            // Far apart, and none twice.
            let service = &mut services[(place * (total / count.min(total)) % total) as usize];
            let number = 1 << 20 | place;
            service.endpoints[0] = services::pod(number);
            let slice: Object = service.slices().next().context("a service has a slice")?;
            let start = Instant::now();
            self.index.handle(Event::Apply(slice));
            self.carry_out()?;
            times.push(start.elapsed());
        }
        Ok(times)
    }
}
