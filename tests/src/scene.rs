//! What most tests begin with: a node, a client pod, and a Service with some pods behind it.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::agent::{Agent, Settings, SocketLb, service_port};
use crate::cards::{Cards, Idle};
use crate::lab::Lab;
use crate::manifests::{Family, Manifests, NODE_PORT, Service};
use crate::node::Node;
use crate::peer::{Server, Target, Transport};
use crate::pod::{Outside, Pod, PodKind};

/// What a scene is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    kind: PodKind,
    socket_lb: SocketLb,
    backends: u8,
    attach: &'static str,
}

impl Plan {
    /// A client and `backends` servers, all of one kind.
    pub fn new(kind: PodKind, socket_lb: SocketLb, backends: u8) -> Self {
        Self { kind, socket_lb, backends, attach: "auto" }
    }

    /// The same with programs attached in another way than the kernel's best.
    #[must_use]
    pub fn attach(self, attach: &'static str) -> Self {
        Self { attach, ..self }
    }

    /// Makes the scene; `None` if the test is to be skipped.
    ///
    /// # Errors
    /// If something does not come up.
    pub fn start(self) -> Result<Option<Scene>> {
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let node = lab.node("a")?;
        let client = node.pod("client", self.kind)?;
        let (mut backends, mut servers) = (Vec::new(), Vec::new());
        for number in 0..self.backends {
            let pod = node.pod(&format!("backend-{number}"), self.kind)?;
            servers.push(Server::start(pod.place(), pod.name())?);
            backends.push(pod);
        }
        let manifests = Manifests::new(lab.folder("manifests")?);
        let service = Service::new("web", 10).with(&backends);
        manifests.apply(&service)?;
        let mut settings = Settings::new(&manifests, self.socket_lb);
        settings.attach = self.attach;
        let agent = Agent::start(&node, settings)?;
        agent.wait_for(&service)?;
        Ok(Some(Scene { agent, servers, lab, node, client, backends, manifests, service }))
    }
}

/// A scene. The Service is called `web`, the pods behind it `backend-0` and so on.
pub struct Scene {
    /// podnet's agent.
    pub agent: Agent,
    /// The servers in the pods behind the Service.
    pub servers: Vec<Server>,
    /// The lab.
    pub lab: Lab,
    /// The only node.
    pub node: Node,
    /// A pod that is no backend.
    pub client: Pod,
    /// The pods behind the Service.
    pub backends: Vec<Pod>,
    /// What the agent reads.
    pub manifests: Manifests,
    /// The Service.
    pub service: Service,
}

impl Scene {
    /// Requests to the Service.
    ///
    /// # Errors
    /// None: the Service has both families.
    pub fn target(&self, transport: Transport, family: Family) -> Result<Target> {
        Ok(Target::new(transport, self.frontend(family)?))
    }

    /// The Service's address and port.
    ///
    /// # Errors
    /// None: the Service has both families.
    pub fn frontend(&self, family: Family) -> Result<SocketAddr> {
        Ok(service_port(self.service.address(family)?))
    }

    /// Puts another Service in the place of one of the same name, and waits until the kernel serves it.
    ///
    /// # Errors
    /// If it does not.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.manifests.apply(service)?;
        self.agent.wait_for(service)
    }
}

/// The address of `pod` in this family.
pub fn address_of(pod: &Pod, family: Family) -> IpAddr {
    match family {
        Family::V4 => pod.v4().into(),
        Family::V6 => pod.v6().into(),
    }
}

/// Two nodes with an agent each, and somebody who is on neither.
pub struct Cluster {
    /// The agents, of the first node and the second.
    pub agents: [Agent; 2],
    /// The servers in [`here`](Self::here) and [`there`](Self::there).
    pub servers: Vec<Server>,
    /// The nodes: the first is the gateway of who is outside.
    pub nodes: [Node; 2],
    /// Somebody outside of the cluster.
    pub outside: Outside,
    /// A pod on the first node that serves nobody.
    pub client: Pod,
    /// A pod on the first node that serves, and is called so.
    pub here: Pod,
    /// A pod on the second node that serves, and is called so.
    pub there: Pod,
    /// What the agents read.
    pub manifests: Manifests,
    /// The lab.
    pub lab: Lab,
    _idle: Option<Idle>,
}

impl Cluster {
    /// Makes the cluster, all pods of one kind; the agents get `flags` too, and meet what comes from outside where
    /// [`Cards::of_environment`] has it. `None` if the test is to be skipped.
    ///
    /// # Errors
    /// If something does not come up.
    pub fn start(kind: PodKind, socket_lb: SocketLb, flags: &[&str]) -> Result<Option<Self>> {
        Self::start_with(kind, socket_lb, flags, Cards::of_environment()?)
    }

    /// The same, but for where what comes from outside is met.
    ///
    /// # Errors
    /// Likewise.
    pub fn start_with(
        kind: PodKind,
        socket_lb: SocketLb,
        flags: &[&str],
        cards: Cards,
    ) -> Result<Option<Self>> {
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let nodes = [lab.node("a")?, lab.node("b")?];
        let outside = Outside::create(&lab, "outside", 100, Some(&nodes[0]))?;
        let client = nodes[0].pod("client", kind)?;
        let (here, there) = (nodes[0].pod("here", kind)?, nodes[1].pod("there", kind)?);
        let servers =
            vec![Server::start(here.place(), here.name())?, Server::start(there.place(), there.name())?];
        let manifests = Manifests::new(lab.folder("manifests")?);
        for node in &nodes {
            manifests.apply_node(node)?;
        }
        let mut settings = Settings::new(&manifests, socket_lb);
        settings.further = flags.iter().map(|&flag| flag.to_owned()).chain(cards.flags()).collect();
        let _idle = cards.prepare(&lab, &[outside.place(), nodes[0].place(), nodes[1].place()])?;
        let agents = [Agent::start(&nodes[0], settings.clone())?, Agent::start(&nodes[1], settings)?];
        Ok(Some(Self { agents, servers, nodes, outside, client, here, there, manifests, lab, _idle }))
    }

    /// Puts a Service in the place of one of the same name, and waits until both kernels serve it: all
    /// clients by all endpoints.
    ///
    /// # Errors
    /// If they do not.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.manifests.apply(service)?;
        self.agents.iter().try_for_each(|agent| agent.wait_for(service))
    }

    /// The first node's address and port of Services on nodes.
    pub fn node_port(&self, family: Family) -> SocketAddr {
        SocketAddr::new(node_address(&self.nodes[0], family), NODE_PORT)
    }

    /// The address of who is outside.
    pub fn outside_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.outside.v4().into(),
            Family::V6 => self.outside.v6().into(),
        }
    }
}

/// The address of `node` in this family.
pub fn node_address(node: &Node, family: Family) -> IpAddr {
    match family {
        Family::V4 => node.v4().into(),
        Family::V6 => node.v6().into(),
    }
}
