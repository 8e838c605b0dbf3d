//! One API server, and worlds that serve what it has: one by kube-proxy, others by podnet.
//!
//! A world is a cluster of two nodes in a lab of its own. All of them look alike, down to the addresses, and
//! have no link to each other; node `a` of each has one to the API server.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::compare::{Case, Tally, Verdict};
use super::objects::{
    BACKENDS, NODES, Objects, Protocol, State, Step, TARGET_PORTS, advance, node_of, objects,
};
use super::scope::Scope;
use super::semantics::{Event, Expected, Network, Outcome, Probe, Source, Vantage, expect, probes};
use crate::agent::{Agent, Settings, SocketLb, Source as From};
use crate::control_plane::ControlPlane;
use crate::kubernetes::{self as api, NAMESPACE};
use crate::lab::Lab;
use crate::manifests::{Family, Manifests};
use crate::node::Node;
use crate::peer::{Prober, Server};
use crate::pod::{Outside, Pod, PodKind};
use crate::process::Process;
use crate::protocol::{Findings, Question};
use crate::proxies::{Kubeconfigs, kube_proxy};
use crate::wait::{PATIENCE, until};

/// The Service that says how far a proxy has got.
const SENTINEL: &str = "sentinel";
const SENTINEL_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 2, 1);
const SENTINEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 2, 1);
/// How often a case that looks like a difference is looked at again: a machine may be busy, and dice may fall
/// in odd ways.
const SECOND_LOOKS: u32 = 2;

/// Who serves a world.
#[derive(Clone, Debug)]
pub enum Proxy {
    /// kube-proxy in its mode nftables.
    KubeProxy,
    /// podnet with this socket layer.
    Podnet(SocketLb),
    /// podnet with something kept from it: each Service's second slice.
    Misled,
}

/// The API server and the worlds.
pub struct Cluster {
    worlds: Vec<World>,
    plane: ControlPlane,
    admin: PathBuf,
    applied: Objects,
    round: u16,
    _lab: Lab,
}

impl Cluster {
    /// Starts everything. The first world has kube-proxy, the others have what `podnet` says.
    ///
    /// # Errors
    /// If something does not get ready.
    pub fn start(programs: &Path, podnet: &[Proxy]) -> Result<Self> {
        let lab = Lab::without_podnet()?;
        let plane = ControlPlane::without_controllers(&lab, programs)?;
        let admin = plane.admin()?;
        let kubeconfigs = Kubeconfigs::create(&plane, &admin)?;
        let mut worlds = Vec::new();
        for (number, proxy) in (1..).zip([Proxy::KubeProxy].iter().chain(podnet)) {
            let ground = Ground::create(&plane, number)?;
            if worlds.is_empty() {
                for node in &ground.nodes {
                    plane.run(&admin, async |client| api::register_node(client, node).await)?;
                }
            }
            worlds.push(World::start(ground, proxy, programs, &kubeconfigs)?);
        }
        let mut cluster = Self { worlds, plane, admin, applied: Objects::default(), round: 0, _lab: lab };
        cluster.put(&State::new())?;
        Ok(cluster)
    }

    /// Goes through a history; the cases of its first step in which something is different.
    ///
    /// # Errors
    /// If the lab itself fails.
    pub fn run(&mut self, scope: &Scope, history: &[Step], tally: &mut Tally) -> Result<Vec<Case>> {
        tally.histories += 1;
        let mut state = State::new();
        self.put(&state)?;
        for step in history {
            let before = state.clone();
            advance(&mut state, step);
            self.put(&state)?;
            let probes = probes(scope, &self.worlds[0].network(), &before, &state);
            let different = self.look(&state, probes, tally)?;
            tally.steps += 1;
            if !different.is_empty() {
                return Ok(different);
            }
        }
        Ok(Vec::new())
    }

    /// Brings the API server to `state`, and waits until all proxies have followed.
    fn put(&mut self, state: &State) -> Result<()> {
        self.round += 1;
        let addresses: Vec<_> = self.worlds[0].ground.backends.iter().map(Pod::addresses).collect();
        let target = objects(state, &addresses);
        let sentinel = sentinel(self.round, &addresses);
        for world in &self.worlds {
            world.mislead(&target, &sentinel)?;
        }
        let applied = &self.applied;
        let written = self.plane.run(&self.admin, async |client| {
            api::reconcile(client.clone(), applied, &target).await?;
            // What a proxy is told last it knows last.
            api::reconcile(client, &Objects::default(), &sentinel).await
        });
        written.context("the API server does not take the objects")?;
        self.applied = target;
        for world in &mut self.worlds {
            world.wait_for_sentinel(self.round)?;
        }
        Ok(())
    }

    /// Sends the probes in all worlds; the cases in which something is different.
    fn look(&mut self, state: &State, probes: Vec<Probe>, tally: &mut Tally) -> Result<Vec<Case>> {
        let mut open: Vec<_> = probes.into_iter().map(|probe| (expect(state, &probe), probe)).collect();
        for look in 0..=SECOND_LOOKS {
            let mut outcomes = Vec::new();
            for world in &mut self.worlds {
                world.ask(&open, look)?;
            }
            for world in &mut self.worlds {
                outcomes.push(world.outcomes(&open, &mut tally.requests)?.into_iter());
            }
            let mut different = Vec::new();
            for (expected, probe) in open {
                let mut found = outcomes.iter_mut().filter_map(Iterator::next);
                let kube_proxy = found.next().context("no outcome")?;
                let case = Case { probe, expected, kube_proxy, podnet: found.collect() };
                let differs = case.verdict() == Verdict::Different;
                if !differs || look == SECOND_LOOKS {
                    tally.count(&case);
                }
                if differs {
                    different.push(case);
                }
            }
            if different.is_empty() || look == SECOND_LOOKS {
                return Ok(different);
            }
            open = different.into_iter().map(|case| (case.expected, case.probe)).collect();
        }
        bail!("there is a last look")
    }

    /// The ends of the proxies' logs.
    pub fn last_words(&self) -> String {
        self.worlds.iter().map(World::last_words).collect::<Vec<_>>().join("\n")
    }
}

/// A Service and slices that are others in each round.
fn sentinel(round: u16, addresses: &[[IpAddr; 2]]) -> Objects {
    let (port, backend) = sentinel_of(round);
    let mut sentinel = Objects::default();
    sentinel.services.insert(
        SENTINEL.to_owned(),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SENTINEL, "namespace": NAMESPACE},
            "spec": {
                "clusterIP": SENTINEL_V4,
                "clusterIPs": [SENTINEL_V4.to_string(), SENTINEL_V6.to_string()],
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": port, "protocol": "TCP", "targetPort": TARGET_PORTS[0]}],
            },
        }),
    );
    for (family, address) in [Family::V4, Family::V6].into_iter().zip(addresses[backend]) {
        let name = format!("{SENTINEL}-{}", family.name().to_lowercase());
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SENTINEL},
            },
            "addressType": family.name(),
            "ports": [{"name": "", "protocol": "TCP", "port": TARGET_PORTS[0]}],
            "endpoints": [{"addresses": [address], "nodeName": NODES[node_of(backend)]}],
        });
        sentinel.slices.insert(name, object);
    }
    sentinel
}

/// The sentinel's port and backend in a round.
fn sentinel_of(round: u16) -> (u16, usize) {
    (1000 + round % 1000, usize::from(round % u16::from(BACKENDS)))
}

/// Nodes, pods and clients, without a proxy.
struct Ground {
    lab: Lab,
    nodes: [Node; 2],
    backends: Vec<Pod>,
    client: Pod,
    outside: Outside,
    control: Ipv4Addr,
    _servers: Vec<Server>,
    _router: Outside,
}

impl Ground {
    fn create(plane: &ControlPlane, number: u8) -> Result<Self> {
        let lab = Lab::without_podnet()?;
        let nodes = [lab.node(NODES[0])?, lab.node(NODES[1])?];
        let client = nodes[0].pod("client", PodKind::Ptp)?;
        let (mut backends, mut servers) = (Vec::new(), Vec::new());
        for backend in 0..usize::from(BACKENDS) {
            let pod = nodes[node_of(backend)].pod(&format!("backend-{backend}"), PodKind::Ptp)?;
            for port in TARGET_PORTS {
                servers.push(Server::at_port(pod.place(), &format!("{backend}:{port}"), port)?);
            }
            backends.push(pod);
        }
        // What no proxy takes goes to a router that knows nobody.
        let router = Outside::create(&lab, "router", 254, None)?;
        router.place().netns.sysctl(&["net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0"])?;
        let a = &nodes[0].place().netns;
        a.batch(&format!(
            "route replace default via {}\nroute replace default via {}",
            router.v4(),
            router.v6()
        ))?;
        let outside = Outside::create(&lab, "outside", 200, Some(&nodes[0]))?;
        a.sysctl(&[
            // All are neighbours, and the node would tell the client so.
            "net/ipv4/conf/all/send_redirects=0",
            "net/ipv4/conf/eth0/send_redirects=0",
            // Of many refusals at once each is to arrive.
            "net/ipv4/icmp_ratemask=0",
            "net/ipv4/icmp_ratelimit=0",
            "net/ipv6/icmp/ratelimit=0",
            "net/ipv6/icmp/ratemask=255",
        ])?;
        outside.place().netns.sysctl(&[
            "net/ipv4/conf/all/accept_redirects=0",
            "net/ipv4/conf/eth0/accept_redirects=0",
            "net/ipv6/conf/all/accept_redirects=0",
            "net/ipv6/conf/eth0/accept_redirects=0",
        ])?;
        let control = plane.link(&nodes[0], number)?;
        Ok(Self { lab, nodes, backends, client, outside, control, _servers: servers, _router: router })
    }
}

/// The process that serves a world.
enum Running {
    KubeProxy(Process),
    Podnet(Agent),
}

struct World {
    ground: Ground,
    probers: Vec<(Vantage, Prober)>,
    running: Running,
    /// What a misled podnet reads.
    misled: Option<Manifests>,
}

impl World {
    fn start(ground: Ground, proxy: &Proxy, programs: &Path, kubeconfigs: &Kubeconfigs) -> Result<Self> {
        let mut misled = None;
        let node = &ground.nodes[0];
        let running = match proxy {
            Proxy::KubeProxy => Running::KubeProxy(kube_proxy(node, programs, &kubeconfigs.kube_proxy)?),
            Proxy::Podnet(socket_lb) => {
                let source = From::Kubeconfig(kubeconfigs.podnet.clone());
                Running::Podnet(Agent::start(node, Settings::from(source, *socket_lb))?)
            }
            Proxy::Misled => {
                let manifests = Manifests::new(ground.lab.folder("manifests")?);
                let settings = Settings::new(&manifests, SocketLb::Host);
                misled = Some(manifests);
                Running::Podnet(Agent::start(node, settings)?)
            }
        };
        let places = [
            (Vantage::Pod, ground.client.place()),
            (Vantage::Backend, ground.backends[Vantage::BACKEND].place()),
            (Vantage::Node, node.place()),
            (Vantage::Outside, ground.outside.place()),
        ];
        let mut probers = Vec::new();
        for (vantage, place) in places {
            probers.push((vantage, Prober::start(place)?));
        }
        Ok(Self { ground, probers, running, misled })
    }

    fn network(&self) -> Network {
        let node = &self.ground.nodes[0];
        Network { node: [node.v4().into(), node.v6().into()] }
    }

    /// Writes what a misled podnet is to believe.
    fn mislead(&self, target: &Objects, sentinel: &Objects) -> Result<()> {
        let Some(manifests) = &self.misled else { return Ok(()) };
        let mut documents: Vec<Value> =
            target.services.values().chain(sentinel.services.values()).cloned().collect();
        let kept = target.slices.iter().filter(|(name, _)| !name.contains("-1-")).map(|(_, slice)| slice);
        documents.extend(kept.chain(sentinel.slices.values()).cloned());
        let documents: Vec<_> = documents.iter().map(Value::to_string).collect();
        manifests.write("objects.yaml", &documents.join("\n---\n"))
    }

    fn wait_for_sentinel(&mut self, round: u16) -> Result<()> {
        let (port, backend) = sentinel_of(round);
        let question = |address: IpAddr| Question {
            tcp: true,
            to: SocketAddr::new(address, port),
            times: 1,
            give_up: 1,
            patience: 200,
        };
        let questions = [question(SENTINEL_V4.into()), question(SENTINEL_V6.into())];
        let expected = format!("{backend}:{}", TARGET_PORTS[0]);
        let (_, prober) = &mut self.probers[0];
        let waited = until("the proxy to have seen the last object", PATIENCE, || {
            prober.ask(&questions)?;
            let findings = prober.findings()?;
            let answered = |found: &Findings| found.servers.iter().any(|(server, _)| *server == expected);
            ensure!(findings.iter().all(answered), "{findings:?} in place of {expected}");
            Ok(())
        });
        waited.with_context(|| self.last_words())
    }

    /// Sends the probes, the more patiently the more often they have been sent.
    fn ask(&mut self, open: &[(Expected, Probe)], look: u32) -> Result<()> {
        for (vantage, prober) in &mut self.probers {
            let of_vantage = open.iter().filter(|(_, probe)| probe.from == *vantage);
            let questions: Vec<_> =
                of_vantage.map(|(expected, probe)| question(expected, probe, look)).collect();
            prober.ask(&questions)?;
        }
        Ok(())
    }

    /// What the probes have met, in their order.
    fn outcomes(&mut self, open: &[(Expected, Probe)], requests: &mut u64) -> Result<Vec<Outcome>> {
        let mut findings = Vec::new();
        for (vantage, prober) in &mut self.probers {
            findings.push((*vantage, prober.findings()?.into_iter()));
        }
        let mut outcomes = Vec::new();
        for (_, probe) in open {
            let of_vantage = findings.iter_mut().find(|(vantage, _)| *vantage == probe.from);
            let found =
                of_vantage.and_then(|(_, findings)| findings.next()).context("a finding is missing")?;
            *requests += u64::from(found.sent);
            outcomes.push(self.outcome(probe.from, &found)?);
        }
        Ok(outcomes)
    }

    fn outcome(&self, from: Vantage, found: &Findings) -> Result<Outcome> {
        let mut outcome = Outcome::new();
        for failure in &found.failures {
            outcome.insert(match failure.as_str() {
                "ConnectionRefused" => Event::Refusal,
                "TimedOut" => Event::Silence,
                other => Event::Failure(other.to_owned()),
            });
        }
        for (server, client) in &found.servers {
            let (backend, port) = server.split_once(':').context("a server's name")?;
            let (backend, port) = (backend.parse()?, port.parse()?);
            outcome.insert(Event::Answer { backend, port, source: self.source(from, backend, *client) });
        }
        Ok(outcome)
    }

    fn source(&self, from: Vantage, backend: usize, client: IpAddr) -> Source {
        let Ground { nodes, backends, client: pod, outside, control, .. } = &self.ground;
        let own: [IpAddr; 2] = match from {
            Vantage::Pod => pod.addresses(),
            Vantage::Backend if backend == Vantage::BACKEND => return Source::Itself,
            Vantage::Backend => backends[Vantage::BACKEND].addresses(),
            Vantage::Outside => [outside.v4().into(), outside.v6().into()],
            Vantage::Node => [nodes[0].v4().into(), nodes[0].v6().into()],
        };
        let mut of_node: BTreeSet<_> = nodes[0].addresses().into();
        of_node.insert(IpAddr::from(*control));
        if of_node.contains(&client) {
            Source::Node
        } else if own.contains(&client) {
            Source::Client
        } else {
            Source::Other(client)
        }
    }

    fn last_words(&self) -> String {
        match &self.running {
            Running::KubeProxy(process) => process.last_words(),
            Running::Podnet(agent) => agent.last_words(),
        }
    }
}

fn question(expected: &Expected, probe: &Probe, look: u32) -> Question {
    let servers = if expected.sticky { 1 } else { u16::try_from(expected.outcome.len()).unwrap_or(u16::MAX) };
    let (times, give_up, patience) = match look {
        0 => (10, 1, Duration::from_millis(300)),
        _ => (16, 2, Duration::from_millis(800)),
    };
    Question {
        tcp: probe.protocol == Protocol::Tcp,
        to: SocketAddr::new(probe.address, probe.port),
        times: if servers < 2 { 5 } else { servers * times },
        give_up,
        patience: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
    }
}
