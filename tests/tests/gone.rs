//! A flow whose endpoint is gone: semantics §4. TCP is reset, UDP moves.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport};
use tests::pod::PodKind;
use tests::process::Place;
use tests::scene::{Cluster, Plan};

/// A connection that has been used, and its request after `change` has been made.
fn after(
    from: &Place,
    at: SocketAddr,
    transport: Transport,
    change: impl FnOnce() -> Result<()>,
) -> Result<tests::protocol::Answer> {
    let mut conversation = Conversation::start(from, &Target::new(transport, at).kept())?;
    conversation.reply()?;
    change()?;
    conversation.ask()
}

fn is_reset(answer: &tests::protocol::Answer) -> bool {
    answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionReset" && failure.millis < 1000)
}

/// The endpoint's server goes on running: only podnet can tell that it is gone.
fn tcp_is_reset(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    let service = Service::new("web", 10).node_port();
    for (server, other) in [(&cluster.here, &cluster.there), (&cluster.there, &cluster.here)] {
        for family in Family::ALL {
            let cluster_ip = service_port(service.address(family)?);
            for (from, at) in [
                (cluster.client.place(), cluster_ip),
                (cluster.nodes[0].place(), cluster_ip),
                (cluster.outside.place(), cluster.node_port(family)),
            ] {
                for left in [vec![other], vec![]] {
                    cluster.apply(&service.clone().with([server]))?;
                    let answer = after(from, at, Transport::Tcp, || {
                        cluster.apply(&service.clone().with(left.iter().copied()))
                    })?;
                    let case = format!("{at} from {}, was {}", from.netns.name(), server.name());
                    ensure!(is_reset(&answer), "{case}, left {}: {answer:?}", left.len());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tcp_to_an_endpoint_that_is_gone_is_reset_ptp() -> Result<()> {
    tcp_is_reset(PodKind::Ptp)
}

#[test]
fn tcp_to_an_endpoint_that_is_gone_is_reset_bridge() -> Result<()> {
    tcp_is_reset(PodKind::Bridge)
}

#[test]
fn tcp_of_a_deleted_service_is_reset() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 1).start()? else { return Ok(()) };
    for family in Family::ALL {
        scene.apply(&scene.service)?;
        let answer = after(scene.client.place(), scene.frontend(family)?, Transport::Tcp, || {
            scene.manifests.delete(&scene.service)?;
            scene.agent.wait_for_removal(&scene.service)
        })?;
        ensure!(is_reset(&answer), "{family:?}: {answer:?}");
    }
    Ok(())
}

/// An endpoint that drains keeps the connections that it has.
#[test]
fn tcp_to_an_endpoint_that_drains_goes_on() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 2).start()? else { return Ok(()) };
    let [first, second] = &scene.backends[..] else { anyhow::bail!("two backends") };
    for family in Family::ALL {
        scene.apply(&Service::new("web", 10).with([first]))?;
        let answer = after(scene.client.place(), scene.frontend(family)?, Transport::Tcp, || {
            scene.apply(&Service::new("web", 10).with([second]).draining([first]))
        })?;
        ensure!(answer.as_ref().is_ok_and(|reply| reply.server == first.name()), "{family:?}: {answer:?}");
    }
    Ok(())
}

/// A connected socket's datagrams go where `connect()` led; when nobody is there any more, the next one goes
/// to somebody else, and the socket hears the answer.
fn connected_udp_moves(kind: PodKind, socket_lb: SocketLb, of_node: bool) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, socket_lb, &[])? else { return Ok(()) };
    let from = if of_node { cluster.nodes[0].place() } else { cluster.client.place() };
    for (server, other) in [(&cluster.here, &cluster.there), (&cluster.there, &cluster.here)] {
        for family in Family::ALL {
            let service = Service::new("web", 10);
            let at = service_port(service.address(family)?);
            let target = Target::new(Transport::ConnectedUdp, at).kept();
            cluster.apply(&service.clone().with([server]))?;
            let mut conversation = Conversation::start(from, &target)?;
            let case = || format!("{family:?} from {} to {}", server.name(), other.name());
            ensure!(conversation.reply()?.server == server.name(), "{}", case());
            cluster.apply(&service.clone().with([other]))?;
            for _ in 0..3 {
                let reply = conversation.reply().with_context(case)?;
                ensure!(reply.server == other.name(), "{}: {reply:?}", case());
                ensure!(reply.peer == at, "{}: another peer: {reply:?}", case());
            }
            cluster.apply(&service.clone())?;
            let answer = conversation.ask()?;
            let refused = answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused");
            ensure!(refused, "{}, then nobody: {answer:?}", case());
            cluster.apply(&service.with([server]))?;
            let reply = conversation.reply().with_context(case)?;
            ensure!(reply.server == server.name(), "{}, and back: {reply:?}", case());
        }
    }
    Ok(())
}

#[test]
fn connected_udp_moves_when_its_endpoint_is_gone_tc() -> Result<()> {
    connected_udp_moves(PodKind::Ptp, SocketLb::Off, false)
}

#[test]
fn connected_udp_moves_when_its_endpoint_is_gone_socket_ptp() -> Result<()> {
    connected_udp_moves(PodKind::Ptp, SocketLb::All, false)
}

#[test]
fn connected_udp_moves_when_its_endpoint_is_gone_socket_bridge() -> Result<()> {
    connected_udp_moves(PodKind::Bridge, SocketLb::All, false)
}

#[test]
fn connected_udp_of_the_node_moves_when_its_endpoint_is_gone_tc() -> Result<()> {
    connected_udp_moves(PodKind::Ptp, SocketLb::Off, true)
}

/// The node's own sockets move as what leaves the node does: also when the pod's link is gone with the pod.
#[test]
fn connected_udp_of_the_node_moves_when_its_endpoint_is_gone_socket() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Host, &[])? else { return Ok(()) };
    for family in Family::ALL {
        let service = Service::new("web", 10);
        let at = service_port(service.address(family)?);
        let target = Target::new(Transport::ConnectedUdp, at).kept();
        for (server, other) in [(&cluster.there, &cluster.here), (&cluster.here, &cluster.there)] {
            cluster.apply(&service.clone().with([server]))?;
            let mut conversation = Conversation::start(cluster.nodes[0].place(), &target)?;
            let case = || format!("{family:?} from {} to {}", server.name(), other.name());
            ensure!(conversation.reply()?.server == server.name(), "{}", case());
            cluster.apply(&service.clone().with([other]))?;
            server.unplug()?;
            for _ in 0..3 {
                let reply = conversation.reply().with_context(case)?;
                ensure!(reply.server == other.name() && reply.peer == at, "{}: {reply:?}", case());
            }
            server.plug_in()?;
        }
    }
    Ok(())
}
