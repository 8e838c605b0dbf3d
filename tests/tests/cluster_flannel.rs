//! podnet on nodes that flannel wires: VXLAN between them, a bridge for the pods of each.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, Settings, SocketLb, Source, service_port};
use tests::control_plane::ControlPlane;
use tests::flannel::{self, Flannel};
use tests::kubernetes as api;
use tests::lab::Lab;
use tests::manifests::Family;
use tests::node::Node;
use tests::peer::{Conversation, PORT, Server, Target, Transport, ask, transfer};
use tests::pod::{Outside, Pod, PodKind};
use tests::process::Place;
use tests::proxies::Kubeconfigs;
use tests::require;
use tests::scene::{address_of, node_address};
use tests::wait::{PATIENCE, until};

/// Enough for many segments of every size, and little enough to be quick.
const BYTES: u64 = 32 << 20;
/// The ports on nodes of the Service with the policy `Cluster`, and of that with `Local`.
const CLUSTER: u16 = 30_080;
const LOCAL: u16 = 30_081;

/// Two nodes, a client on the first, a server on the second.
struct Overlay {
    agents: [Agent; 2],
    flannels: [Flannel; 2],
    nodes: [Node; 2],
    client: Pod,
    server: Pod,
    cluster_ips: Vec<IpAddr>,
    outside: Outside,
    _server: Server,
    _plane: ControlPlane,
    _lab: Lab,
}

impl Overlay {
    fn start(socket_lb: SocketLb) -> Result<Option<Self>> {
        let (Some(programs), Some(flanneld)) = (require::control_plane(), require::flannel()) else {
            return Ok(None);
        };
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let plane = ControlPlane::start(&lab, &programs)?;
        let admin = plane.admin()?;
        let nodes = [lab.bare_node("a")?, lab.bare_node("b")?];
        for node in &nodes {
            plane.run(&admin, async |client| api::register_node(client, node).await)?;
        }
        plane.run(&admin, async |client| flannel::grant(client).await)?;
        let user = plane.kubeconfig_of_user(flannel::USER, flannel::USER)?;
        let start = |node| Flannel::start(node, &flanneld, &user);
        let flannels = [start(&nodes[0])?, start(&nodes[1])?];

        let client = nodes[0].pod("client", PodKind::Bridge)?;
        let server = nodes[1].pod("server", PodKind::Bridge)?;
        let process = Server::start(server.place(), server.name())?;
        api::wait_for_controllers(&plane, &admin)?;
        plane.run(&admin, async |client| api::run_pod(client, &server, "web").await)?;
        let cluster_ips = plane.run(&admin, async |client| {
            api::create_node_port(client.clone(), "web", CLUSTER, "Cluster").await?;
            api::create_node_port(client.clone(), "web", LOCAL, "Local").await?;
            api::create_service(client, "web").await
        })?;

        let kubeconfigs = Kubeconfigs::create(&plane, &admin)?;
        let settings = Settings::from(Source::Kubeconfig(kubeconfigs.podnet), socket_lb);
        let agents = [Agent::start(&nodes[0], settings.clone())?, Agent::start(&nodes[1], settings)?];
        let outside = Outside::create(&lab, "outside", 100, None)?;
        let overlay = Self {
            agents,
            flannels,
            nodes,
            client,
            server,
            cluster_ips,
            outside,
            _server: process,
            _plane: plane,
            _lab: lab,
        };
        overlay.wait_until_ready()?;
        Ok(Some(overlay))
    }

    /// Waits until each node knows the way to the other's pods, and what the server is for.
    fn wait_until_ready(&self) -> Result<()> {
        for family in Family::ALL {
            let server = SocketAddr::new(address_of(&self.server, family), PORT);
            until("flannel to have the nodes know each other", PATIENCE, || {
                let answer = ask(self.client.place(), &Target::new(Transport::Tcp, server))?;
                ensure!(answer.is_ok(), "{answer:?}");
                Ok(())
            })
            .with_context(|| self.flannels.each_ref().map(Flannel::last_words).concat())?;
            for address in self.cluster_ips.iter().filter(|address| family.has(**address)) {
                for (agent, protocol) in self.agents.iter().flat_map(|it| [(it, "TCP"), (it, "UDP")]) {
                    agent.wait_for_sides(service_port(*address), protocol, &[server], &[server])?;
                }
            }
        }
        Ok(())
    }

    /// How many bytes the first node has sent into its tunnels.
    fn tunnelled(&self) -> Result<u64> {
        self.nodes[0].place().netns.run(|| {
            let table = fs::read_to_string("/proc/thread-self/net/dev").context("no table of interfaces")?;
            let sent = |line: &str| -> Option<u64> {
                let (name, numbers) = line.split_once(':')?;
                let is_tunnel = name.trim_start().starts_with("flannel");
                is_tunnel.then(|| numbers.split_whitespace().nth(8)?.parse().ok()).flatten()
            };
            Ok(table.lines().filter_map(sent).sum())
        })
    }

    /// Several requests by every transport, and many bytes both ways: answered by the server, which sees
    /// `seen` if that is told; the client sees whom it asked.
    fn is_served(&self, from: &Place, at: SocketAddr, seen: Option<IpAddr>) -> Result<()> {
        for transport in Transport::ALL {
            let case = format!("{transport:?} {at} from {}", from.netns.name());
            let mut conversation = Conversation::start(from, &Target::new(transport, at).kept())?;
            for _ in 0..3 {
                let reply = conversation.reply().with_context(|| case.clone())?;
                ensure!(reply.server == self.server.name() && reply.peer == at, "{case}: {reply:?}");
                ensure!(seen.is_none_or(|seen| reply.client.ip() == seen), "{case}: {reply:?}");
            }
        }
        transfer(from, at, BYTES).with_context(|| format!("{at} from {}", from.netns.name()))
    }
}

/// A pod, and the node itself, reach a Service whose only pod is on the other node: through the tunnel.
fn from_inside(socket_lb: SocketLb) -> Result<()> {
    let Some(overlay) = Overlay::start(socket_lb)? else { return Ok(()) };
    for address in &overlay.cluster_ips {
        let own = address_of(&overlay.client, Family::of(*address));
        let before = overlay.tunnelled()?;
        overlay.is_served(overlay.client.place(), service_port(*address), Some(own))?;
        ensure!(overlay.tunnelled()? - before > BYTES, "the tunnel was not used");
        overlay.is_served(overlay.nodes[0].place(), service_port(*address), None).context("the node")?;
    }
    Ok(())
}

#[test]
fn cluster_flannel_from_inside_tc() -> Result<()> {
    from_inside(SocketLb::Off)
}

#[test]
fn cluster_flannel_from_inside_socket() -> Result<()> {
    from_inside(SocketLb::All)
}

/// From outside: by the node without the pod, which sends on through the tunnel; and by that with the pod, whose
/// server sees the client.
#[test]
fn cluster_flannel_from_outside() -> Result<()> {
    let Some(overlay) = Overlay::start(SocketLb::Off)? else { return Ok(()) };
    let [a, b] = &overlay.nodes;
    let outside = overlay.outside.place();
    for family in Family::ALL {
        let before = overlay.tunnelled()?;
        let at = SocketAddr::new(node_address(a, family), CLUSTER);
        // The address of the tunnel's end: flannel gives it the first of the node's subnet.
        let tunnel: IpAddr = match family {
            Family::V4 => [10, 244, 1, 0].into(),
            Family::V6 => [0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0].into(),
        };
        overlay.is_served(outside, at, Some(tunnel))?;
        ensure!(overlay.tunnelled()? - before > BYTES, "the tunnel was not used");
        let client: IpAddr = match family {
            Family::V4 => overlay.outside.v4().into(),
            Family::V6 => overlay.outside.v6().into(),
        };
        for port in [CLUSTER, LOCAL] {
            overlay.is_served(outside, SocketAddr::new(node_address(b, family), port), Some(client))?;
        }
    }
    Ok(())
}
