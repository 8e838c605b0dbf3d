//! A ClusterIP is reached: semantics §2, row ClusterIP.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, Settings, SocketLb, service_port};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, Service};
use tests::peer::{self, PORT, Server, Target, Transport};
use tests::pod::PodKind;
use tests::process::Place;
use tests::scene::{Plan, Scene, address_of};

/// At which layer a connection is led to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Tc,
    Socket,
}

/// TCP and UDP, connected and not, of both families: answered by the backend, which sees the client's own
/// address, while the client sees the Service's.
fn clusterip_answers(scene: &Scene, from: &Place, own_address: bool, layer: Layer) -> Result<()> {
    for family in Family::ALL {
        let frontend = scene.frontend(family)?;
        let backend = SocketAddr::new(address_of(&scene.backends[0], family), PORT);
        for transport in Transport::ALL {
            let case = format!("{transport:?} {family:?} by {layer:?} from {}", from.netns.name());
            let mut conversation = peer::Conversation::start(from, &scene.target(transport, family)?.kept())?;
            for _ in 0..3 {
                let reply = conversation.reply().with_context(|| case.clone())?;
                ensure!(reply.server == "backend-0", "{case}: {reply:?}");
                ensure!(reply.peer == frontend, "{case}: the client does not see the Service: {reply:?}");
                if own_address {
                    let client = address_of(&scene.client, family);
                    ensure!(reply.client.ip() == client, "{case}: another source: {reply:?}");
                    ensure!(reply.client.port() == reply.local.port(), "{case}: another port: {reply:?}");
                }
                if transport == Transport::Tcp {
                    let expected = if layer == Layer::Tc { frontend } else { backend };
                    ensure!(reply.wire == Some(expected), "{case}: not this layer: {reply:?}");
                }
            }
        }
    }
    Ok(())
}

fn matrix(socket_lb: SocketLb, kind: PodKind) -> Result<()> {
    let Some(scene) = Plan::new(kind, socket_lb, 1).start()? else { return Ok(()) };
    let (pods, host) = match socket_lb {
        SocketLb::Off => (Layer::Tc, None),
        SocketLb::Host => (Layer::Tc, Some(Layer::Socket)),
        SocketLb::All => (Layer::Socket, Some(Layer::Socket)),
    };
    clusterip_answers(&scene, scene.client.place(), true, pods)?;
    if let Some(layer) = host {
        clusterip_answers(&scene, scene.node.place(), false, layer)?;
    }
    Ok(())
}

#[test]
fn clusterip_tc_ptp() -> Result<()> {
    matrix(SocketLb::Off, PodKind::Ptp)
}

#[test]
fn clusterip_tc_bridge() -> Result<()> {
    matrix(SocketLb::Off, PodKind::Bridge)
}

#[test]
fn clusterip_socket_ptp() -> Result<()> {
    matrix(SocketLb::All, PodKind::Ptp)
}

#[test]
fn clusterip_socket_bridge() -> Result<()> {
    matrix(SocketLb::All, PodKind::Bridge)
}

#[test]
fn clusterip_host_ptp() -> Result<()> {
    matrix(SocketLb::Host, PodKind::Ptp)
}

#[test]
fn clusterip_host_bridge() -> Result<()> {
    matrix(SocketLb::Host, PodKind::Bridge)
}

/// With an agent on each of two nodes: from either node to a backend on the other.
fn two_nodes(socket_lb: SocketLb) -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let clients = [a.pod("client", PodKind::Ptp)?, b.pod("client", PodKind::Bridge)?];
    let backend = b.pod("backend", PodKind::Ptp)?;
    let _server = Server::start(backend.place(), "backend")?;
    let service = Service::new("web", 10).with([&backend]);
    let manifests = Manifests::new(lab.folder("manifests")?);
    manifests.apply(&service)?;
    let agents = [
        Agent::start(&a, Settings::new(&manifests, socket_lb))?,
        Agent::start(&b, Settings::new(&manifests, socket_lb))?,
    ];
    for agent in &agents {
        agent.wait_for(&service)?;
    }
    for client in &clients {
        for family in Family::ALL {
            let frontend = service_port(service.address(family)?);
            for transport in Transport::ALL {
                let answer = peer::ask(client.place(), &Target::new(transport, frontend))?;
                ensure!(
                    answer.as_ref().is_ok_and(|reply| reply.server == "backend"
                        && reply.peer == frontend
                        && reply.client.ip() == address_of(client, family)),
                    "{transport:?} {frontend} from node {}: {answer:?}",
                    client.node().name()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn clusterip_across_two_nodes_tc() -> Result<()> {
    two_nodes(SocketLb::Off)
}

#[test]
fn clusterip_across_two_nodes_socket() -> Result<()> {
    two_nodes(SocketLb::All)
}
