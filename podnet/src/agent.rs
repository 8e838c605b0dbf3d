//! The agent: from events to the kernel.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use crate::addresses::{Addresses, Pending};
use crate::admin;
use crate::cluster::files::Files;
use crate::cluster::health_check::HealthCheck;
use crate::cluster::index::Index;
use crate::cluster::model::{pod_networks, service_networks, service_networks_left_out, service_ports};
use crate::cluster::node::ProxySettings;
use crate::cluster::object::Key;
use crate::cluster::watch::{self, Scope};
use crate::cluster::{Event, Feed, feed};
use crate::config::{NodePorts, OomScoreAdj};
use crate::dns::{self, Assist, Names};
use crate::error::Error;
use crate::events::Events;
use crate::health::{Health, Moment};
use crate::interfaces::{Action, Cards, Facing, Interfaces, Link, News, Patterns, PodInterfaces};
use crate::kernel::{self, Dataplane, Side, XdpTarget};
use crate::metrics::Metrics;
use crate::output;
use crate::plan::{Plan, Planner, Table};
use crate::progress::{Change, Progress};
use crate::routes::{DefaultRoutes, next_of};
use crate::service_health::{Failure, ServiceHealth};

/// How long what failed or found no room waits until it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many events are taken together at most before they are carried out.
const BATCH: usize = 16_384;

/// How the agent is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Services come from.
    pub source: Source,
    /// The kernel's side.
    pub kernel: kernel::Settings,
    /// Which interfaces face pods.
    pub pod_interfaces: PodInterfaces,
    /// Which others face other machines.
    pub node_interfaces: Patterns,
    /// Which of those are network cards.
    pub xdp_interfaces: Option<Patterns>,
    /// How this node serves what the cluster wants.
    pub proxy: ProxySettings,
    /// Where NodePorts are served.
    pub node_ports: NodePorts,
    /// Where load balancers and probes ask for health, if anywhere.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The cluster's names, if there is to be anything about them.
    pub names: Option<dns::Settings>,
    /// How they are served, if they are.
    pub serve_names: Option<dns::Serve>,
    /// How readily the kernel ends the agent, if that is not to stay as it is.
    pub oom_score_adj: Option<OomScoreAdj>,
    /// Whether to end once what is there at the start is in the kernel.
    pub once: bool,
}

/// Where Services come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The API server, by a kubeconfig if one is named.
    Cluster(Option<PathBuf>),
    /// A directory of YAML.
    Manifests(PathBuf),
}

/// Runs the agent until it is told to end (SIGTERM or SIGINT). The dataplane goes on working then.
///
/// # Errors
/// When it cannot start. Afterwards it keeps going, and logs what is wrong.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::system("SIGTERM"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::system("SIGINT"))?;
    let servers = Servers::open(&settings)?;
    if let Some(score) = settings.oom_score_adj
        && let Err(error) = score.apply()
    {
        warn!(%error, "the score by which the kernel ends processes stays as it is");
    }
    let source = OpenSource::open(&settings).await?;
    let mut interfaces = Interfaces::open().map_err(Error::system("a netlink socket"))?;
    let mut addresses = Addresses::open().map_err(Error::system("a netlink socket"))?;
    let listens = settings.kernel.xdp.is_some() && settings.xdp_interfaces.is_none();
    let mut routes =
        listens.then(DefaultRoutes::open).transpose().map_err(Error::system("a netlink socket"))?;
    let metrics = Arc::new(Metrics::new(settings.proxy.node.clone(), settings.kernel.bpffs.clone()));
    let health = Arc::new(Health::default());
    let events = Events::new(source.client(), &settings.proxy.node);
    let mut agent = Agent::open(&settings, health.clone(), metrics.clone(), events)?;
    agent.set_addresses(addresses.next().await);
    servers.start(health, metrics, agent.names.as_ref())?;
    let (feed, mut incoming) = feed();
    let source = tokio::spawn(source.run(feed));

    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refresh = interval(kernel::FRESH / 4);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            received = incoming.recv() => {
                let Some((read, event)) = received else { return Err(ended(source).await) };
                let mut batch = vec![read];
                let now = Moment::now();
                agent.handle(event, now);
                while batch.len() < BATCH && let Ok((read, event)) = incoming.try_recv() {
                    batch.push(read);
                    agent.handle(event, now);
                }
                if agent.is_ready() {
                    agent.sync_unless_astray(&batch);
                    agent.sync_names();
                } else if agent.index.synced() {
                    agent.start(&batch)?;
                    if routes.is_some() {
                        agent.lead_out(next_of(&mut routes).await);
                    }
                    agent.links(interfaces.next().await);
                    agent.ready();
                    if settings.once {
                        break;
                    }
                }
                agent.serve_health_checks().await;
            }
            _ = retry.tick(), if agent.is_ready() && agent.is_behind() => {
                agent.retry();
                agent.serve_health_checks().await;
            }
            _ = refresh.tick(), if agent.is_ready() => agent.sync_names(),
            news = interfaces.next(), if agent.is_ready() => agent.links(news),
            uplinks = next_of(&mut routes), if agent.is_ready() => agent.lead_out(uplinks),
            all = addresses.next() => {
                agent.set_addresses(all);
                if agent.is_ready() {
                    agent.sync_unless_astray(&[]);
                }
                agent.serve_health_checks().await;
            }
        }
    }
    source.abort();
    info!("podnet ends; what is in the kernel goes on working");
    Ok(())
}

/// Why a source gives no more events.
async fn ended(source: JoinHandle<()>) -> Error {
    let reason = match source.await {
        Ok(()) => "their source has ended".to_owned(),
        Err(error) => error.to_string(),
    };
    Error::Source { reason }
}

/// The agent's own servers, at addresses that are theirs already.
struct Servers {
    healthz: Option<TcpListener>,
    metrics: Option<TcpListener>,
    names: Option<dns::Server>,
}

impl Servers {
    fn open(settings: &Settings) -> Result<Self, Error> {
        let listen = |address: Option<SocketAddr>, flag| {
            address.map(|address| admin::listen(address, flag)).transpose()
        };
        Ok(Self {
            healthz: listen(settings.healthz, "--healthz-bind-address")?,
            metrics: listen(settings.metrics, "--metrics-bind-address")?,
            names: settings.serve_names.as_ref().map(dns::Server::open).transpose()?,
        })
    }

    fn start(self, health: Arc<Health>, metrics: Arc<Metrics>, names: Option<&Names>) -> Result<(), Error> {
        if let (Some(server), Some(names)) = (self.names, names) {
            server.start(names, &metrics.dns)?;
        }
        if let Some(listener) = self.metrics {
            tokio::spawn(admin::serve(listener, "/metrics", admin::metrics_router(metrics.clone())));
        }
        if let Some(listener) = self.healthz {
            tokio::spawn(admin::serve(listener, "/healthz", admin::health_router(health, metrics)));
        }
        Ok(())
    }
}

/// A source that is there to be read.
enum OpenSource {
    Cluster { client: kube::Client, node: String, scope: Scope },
    Manifests(Files),
}

impl OpenSource {
    async fn open(settings: &Settings) -> Result<Self, Error> {
        Ok(match &settings.source {
            Source::Cluster(kubeconfig) => Self::Cluster {
                client: watch::connect(kubeconfig.as_deref()).await?,
                node: settings.proxy.node.clone(),
                scope: if settings.names.is_some() { Scope::RoutesAndNames } else { Scope::Routes },
            },
            Source::Manifests(directory) => Self::Manifests(Files::open(directory)?),
        })
    }

    fn client(&self) -> Option<kube::Client> {
        match self {
            Self::Cluster { client, .. } => Some(client.clone()),
            Self::Manifests(_) => None,
        }
    }

    async fn run(self, feed: Feed) {
        match self {
            Self::Cluster { client, node, scope } => watch::run(client, feed, &node, scope).await,
            Self::Manifests(files) => files.run(feed).await,
        }
    }
}

struct Agent {
    index: Index,
    names: Option<Names>,
    /// Whom the server of names asks for others.
    upstreams: Vec<SocketAddr>,
    planner: Planner,
    assist: Option<Assist>,
    dataplane: Dataplane,
    facing: Facing,
    cards: Cards,
    pending: Pending,
    metrics: Arc<Metrics>,
    progress: Progress,
    health: Arc<Health>,
    service_health: ServiceHealth,
    /// What the kernel has got since health checks were last brought up to date.
    unchecked: BTreeSet<Key>,
    events: Events,
    node_ports: NodePorts,
    capacity: crate::changes::Capacity,
    short_cuts: bool,
    /// How many networks of ServiceCIDRs the kernel does not take.
    networks_left_out: usize,
    /// Why changes were lost on the way to the kernel, if they were: its tables have to be read again.
    astray: Option<String>,
}

impl Agent {
    fn open(
        settings: &Settings,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        events: Events,
    ) -> Result<Self, Error> {
        let mut dataplane = Dataplane::open(&settings.kernel)?;
        match dataplane.can_masquerade() {
            Ok(true) => {}
            Ok(false) => warn!(
                "this kernel cannot masquerade (Linux 6.7 can): clients outside reach no backends on other nodes"
            ),
            Err(error) => warn!(%error, "it cannot be tried whether this kernel can masquerade"),
        }
        let memory = dataplane.memory()?;
        let total: u64 = memory.iter().map(|(_, bytes)| bytes).sum();
        let each: Vec<String> =
            memory.iter().map(|(name, bytes)| format!("{name} {}", output::bytes(*bytes))).collect();
        info!("the tables take {} of kernel memory: {}", output::bytes(total), each.join(", "));
        let capacity = settings.kernel.capacity;
        let planner = Planner::adopt(&capacity, &dataplane.snapshot()?);
        let facing = Facing::new(
            settings.pod_interfaces.clone(),
            settings.node_interfaces.clone(),
            dataplane.attached_interfaces()?,
        );
        let names = settings.names.as_ref().map(|names| Names::new(names, serial(Timestamp::now())));
        let assisted = names.clone().filter(|_| settings.kernel.zone.is_some());
        Ok(Self {
            index: Index::new(settings.proxy.clone()),
            assist: assisted.map(|names| Assist::new(names, &settings.proxy.node, capacity.names)),
            names,
            upstreams: settings.serve_names.as_ref().map(|it| it.upstreams.clone()).unwrap_or_default(),
            planner,
            dataplane,
            facing,
            cards: Cards::new(settings.xdp_interfaces.clone()),
            pending: Pending::default(),
            progress: Progress::new(health.clone(), metrics.clone(), Timestamp::now()),
            metrics,
            service_health: ServiceHealth::new(health.clone()),
            unchecked: BTreeSet::new(),
            health,
            events,
            node_ports: settings.node_ports.clone(),
            capacity,
            short_cuts: settings.kernel.short_cuts,
            networks_left_out: 0,
            astray: None,
        })
    }

    /// Takes note of this node's addresses.
    fn set_addresses(&mut self, all: BTreeSet<IpAddr>) {
        self.pending.set(all.clone());
        self.admit_addresses();
        self.index.set_local_addresses(all);
    }

    /// Has the kernel take this node's addresses for that; if it does not, it is asked again later.
    fn admit_addresses(&mut self) {
        let dataplane = &mut self.dataplane;
        match self.pending.try_with(|addresses| dataplane.admit_node(addresses.iter().copied())) {
            Some(Err(error)) => warn!(
                %error,
                "answers to this node's addresses are not recognised; podnet tries again"
            ),
            Some(Ok(())) => info!("answers to this node's addresses are recognised again"),
            None => {}
        }
    }

    fn is_ready(&self) -> bool {
        self.metrics.is_ready()
    }

    /// Whether there is something to be tried again.
    fn is_behind(&self) -> bool {
        self.astray.is_some()
            || self.pending.is_behind()
            || self.planner.is_waiting()
            || self.facing.is_behind()
            || self.service_health.is_behind()
    }

    fn handle(&mut self, event: Event, now: Moment) {
        match &event {
            Event::Apply(object) => self.metrics.event(object.kind()),
            Event::Delete(kind, _) => self.metrics.event(*kind),
            Event::Listing(_) | Event::Listed(_) | Event::Refused(_) | Event::Away(_) => {}
        }
        if let Some(change) = Change::of(&event) {
            self.progress.read(change, !self.index.knows(&event), now);
        }
        if let Some(names) = &self.names {
            names.handle(&event, serial(now.time));
            match &mut self.assist {
                Some(assist) => assist.handle(&event),
                None => names.forget_changes(),
            }
        }
        self.index.handle(event);
    }

    /// Brings the kernel's tables of names to what is known, and has it know that it still is.
    fn sync_names(&mut self) {
        let Some(names) = &mut self.assist else { return };
        let dataplane = &self.dataplane;
        let mut sync = || {
            if names.is_astray() {
                names.adopt(self.capacity.names, dataplane.names()?);
            }
            let changes = names.plan();
            dataplane.apply_names(&changes)
        };
        match sync() {
            Ok(()) => {
                names.done();
                if let Some(waiting) = names.newly_full() {
                    error!(
                        waiting,
                        names = names.names(),
                        "there is no room for more names: those without, and all that there are not, are left to the \
                         cluster's DNS; --max-names makes more room"
                    );
                }
            }
            Err(error) => error!(%error, "names are not up to date in the kernel; podnet tries again"),
        }
    }

    /// Brings the tables, whatever an earlier agent has left in them, to what the source says, and then
    /// lets sockets use them.
    fn start(&mut self, batch: &[Instant]) -> Result<(), Error> {
        let start = Instant::now();
        self.unchecked = self.index.take_dirty();
        self.set_networks();
        let plan = self.reconcile();
        self.carry_out(plan, batch)?;
        self.sync_names();
        self.progress.done(start.elapsed(), Moment::now());
        self.dataplane.attach_sockets()?;
        Ok(())
    }

    fn ready(&mut self) {
        if self.short_cuts
            && let Err(error) = self.dataplane.tolerate_short_cuts()
        {
            warn!(%error, "the kernel may take the end of connections that took short cuts for INVALID");
        }
        if let Err(error) = kernel::reserve_ports() {
            warn!(%error, "a socket of this node may get a source port of masqueraded connections");
        }
        if let Err(error) = self.dataplane.take_over() {
            warn!(%error, "the take-over from an earlier agent is not complete");
        }
        let is_clusters = |upstream: &&SocketAddr| {
            self.names.as_ref().is_some_and(|names| names.is_name_server(upstream.ip()))
        };
        if let Some(upstream) = self.upstreams.iter().find(is_clusters) {
            warn!(
                %upstream,
                "names outside are asked of the cluster's own DNS, which must not ask podnet in turn: name other \
                 servers with --dns-upstream"
            );
        }
        if self.assist.is_some() && self.names.as_ref().is_some_and(Names::knows_no_name_server) {
            warn!(
                "the Service of the cluster's DNS is not there, so that nothing that is asked of it can be answered in \
                 the kernel: name it with --dns-service"
            );
        }
        self.metrics.set_ready();
        let services = self.index.services().count();
        let (pods, uplinks) = (self.facing.count(Side::Pod), self.facing.count(Side::Net));
        info!(services, pods, uplinks, "podnet is ready");
    }

    /// Carries out what has changed, unless all is to be read and carried out anew: that costs more than
    /// events may, and is left to [`retry`](Self::retry).
    fn sync_unless_astray(&mut self, batch: &[Instant]) {
        if self.astray.is_none() {
            self.sync(batch);
        }
    }

    /// Tells load balancers of the node and of the Services that the kernel has.
    async fn serve_health_checks(&mut self) {
        self.health.set_node_eligible(self.index.node_is_eligible());
        if !self.is_ready() || self.astray.is_some() {
            return;
        }
        let known = self.index.addresses();
        let local = known.local.iter().chain(&known.primary).copied().collect();
        let addresses = self.node_ports.listen_at(&local, &known.primary);
        let changed = std::mem::take(&mut self.unchecked).into_iter().map(|key| {
            let check = HealthCheck::of(&self.index, &key);
            (key, check)
        });
        for Failure { check, error } in self.service_health.sync(addresses, changed).await {
            let HealthCheck { service, port, .. } = check;
            error!(%service, port, %error, "a health check cannot be served; podnet tries again");
            let node = &self.index.settings().node;
            let note =
                format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}");
            self.events.warn(&service, "FailedToStartServiceHealthcheck", "Listen", note);
        }
    }

    /// Tries again what has failed or found no room.
    fn retry(&mut self) {
        self.admit_addresses();
        self.sync(&[]);
        let again = self.facing.again();
        self.act(again);
    }

    /// Carries out what has changed; what fails is tried again later.
    fn sync(&mut self, batch: &[Instant]) {
        let start = Instant::now();
        let done = self.next_plan().and_then(|plan| self.carry_out(plan, batch));
        match done {
            Ok(()) => {
                self.progress.done(start.elapsed(), Moment::now());
                if self.astray.take().is_some() {
                    info!("changes are carried out again");
                }
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.progress.failed(Moment::now());
                let reason = error.to_string();
                if self.astray.as_ref() != Some(&reason) {
                    error!(%error, "changes could not be carried out; podnet tries again");
                }
                self.astray = Some(reason);
            }
        }
    }

    fn next_plan(&mut self) -> Result<Plan, kernel::Error> {
        self.set_networks();
        if self.astray.is_some() {
            self.planner.adopt_again(&self.capacity, &self.dataplane.snapshot()?);
            self.unchecked.append(&mut self.index.take_dirty());
            return Ok(self.reconcile());
        }
        let dirty = self.index.take_dirty();
        self.unchecked.extend(dirty.iter().cloned());
        let (index, progress) = (&self.index, RefCell::new(&mut self.progress));
        let model = |key: &Key| progress.borrow_mut().planned(key, service_ports(index, key));
        Ok(self.planner.plan(Instant::now(), dirty, model))
    }

    fn set_networks(&mut self) {
        self.planner.set_networks(service_networks(&self.index));
        self.planner.set_pod_networks(pod_networks(&self.index));
        let left_out = service_networks_left_out(&self.index);
        if std::mem::replace(&mut self.networks_left_out, left_out) < left_out {
            warn!(
                left_out,
                "there are more networks of ServiceCIDRs than podnet takes: what is sent to addresses \
                             of the last ones that no Service has is routed on"
            );
        }
    }

    fn reconcile(&mut self) -> Plan {
        let (index, progress) = (&self.index, RefCell::new(&mut self.progress));
        let desired: Vec<Key> = index.keys().cloned().collect();
        let model = |key: &Key| progress.borrow_mut().planned(key, service_ports(index, key));
        self.planner.reconcile(Instant::now(), desired, model)
    }

    fn carry_out(&mut self, plan: Plan, batch: &[Instant]) -> Result<(), kernel::Error> {
        tell(&plan);
        self.metrics.tables(&self.planner);
        if plan.changes.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.dataplane.apply(&plan.changes)?;
        self.metrics.apply.observe(start.elapsed().as_secs_f64());
        for read in batch {
            self.metrics.latency.observe(read.elapsed().as_secs_f64());
        }
        self.metrics.wrote(&plan.changes);
        debug!(
            frontends = plan.changes.frontends.len(),
            removed = plan.changes.removed_frontends.len(),
            backends = plan.changes.backends.len(),
            gone = plan.changes.gone.len(),
            elapsed = ?start.elapsed(),
            "changes are in the kernel"
        );
        Ok(())
    }

    fn links(&mut self, news: News) {
        let actions = self.facing.handle(news);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Attach(side, link) => {
                    match self.dataplane.attach_interface(side, link.index, &link.name) {
                        Ok(()) => {
                            self.facing.attached(side, &link);
                            debug!(interface = link.name, "attached");
                            self.attach_xdp(side, &link);
                        }
                        Err(error) => {
                            let interface = link.name.clone();
                            if self.facing.failed(side, link) {
                                warn!(
                                    %error,
                                    interface,
                                    "an interface is not served; podnet tries again"
                                );
                            }
                        }
                    }
                }
                Action::Lament(link) => warn!(
                    interface = link.name,
                    "an interface without Ethernet headers is not served: what clients outside send and get by it \
                     is not translated, nor what backends elsewhere answer them; leave it out by --node-interfaces \
                     if that is as it should be"
                ),
                Action::Detach(index) => {
                    self.cards.forget(index);
                    if let Err(error) = self.dataplane.detach_interface(index) {
                        warn!(%error, index, "an interface could not be detached from");
                    }
                }
            }
        }
        let count = self.facing.count(Side::Pod) + self.facing.count(Side::Net);
        self.metrics.interfaces.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Takes note of which interfaces a default route leaves by: those are network cards, unless others are named.
    fn lead_out(&mut self, uplinks: BTreeSet<u32>) {
        for link in self.cards.lead_out(uplinks) {
            self.attach_xdp(Side::Net, &link);
        }
    }

    /// Has packets met at a network card, if they are to be: else, or if that is not to be had, they are met behind it
    /// all the same.
    fn attach_xdp(&mut self, side: Side, link: &Link) {
        let interface = link.name.as_str();
        if !self.cards.meet(side, link) {
            if let Err(error) = self.dataplane.detach_xdp(link.index) {
                warn!(%error, interface, "a network card could not be detached from");
            }
            return;
        }
        let target = XdpTarget { index: link.index, name: interface, veth: link.veth, there: link.xdp };
        match self.dataplane.attach_xdp(&target) {
            Ok(Some(driven)) => {
                info!(interface, mode = driven.label(), "packets are met at the network card")
            }
            Ok(None) => {}
            Err(error) => warn!(
                %error,
                interface,
                "packets are not met at this network card, but behind it; --xdp-interfaces leaves it out"
            ),
        }
    }
}

/// A time as serial numbers of zones count it.
fn serial(time: Timestamp) -> u32 {
    u32::try_from(time.as_second()).unwrap_or_default()
}

/// Logs what there is to know of a plan, each matter once.
fn tell(plan: &Plan) {
    for conflict in &plan.conflicts {
        warn!(
            frontend = %conflict.frontend,
            protocol = ?conflict.protocol,
            winner = %conflict.winner,
            loser = %conflict.loser,
            "two Services claim one frontend: the older one has it"
        );
    }
    for table in Table::ALL {
        let mut full = plan.full.iter().filter(|(_, full)| full.table == table);
        if let Some((first, reason)) = full.next() {
            let services = full.count() + 1;
            error!(services, first = %first, "{reason}");
        }
    }
    if !plan.fit.is_empty() {
        info!(services = plan.fit.len(), "Services that had found no room have it now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_source_is_an_error_that_tells_how() {
        let (feed, mut incoming) = feed();
        let source = tokio::spawn(async move {
            let _feed = feed;
            panic!("no such index");
        });
        assert!(incoming.recv().await.is_none());
        let error = ended(source).await.to_string();
        assert!(error.contains("no such index") && error.contains("report"), "{error}");
    }
}
