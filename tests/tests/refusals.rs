//! What is at no port of a Service: semantics §2, last row; and the node's own processes without the socket
//! layer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport, ask};
use tests::pod::PodKind;
use tests::process::Place;
use tests::scene::{Cluster, Plan, Scene};

fn is_refused(from: &Place, at: SocketAddr, transports: &[Transport]) -> Result<()> {
    for transport in transports {
        let answer = ask(from, &Target::new(*transport, at))?;
        let refused = answer
            .as_ref()
            .is_err_and(|failure| failure.kind == "ConnectionRefused" && failure.millis < 1000);
        ensure!(refused, "{transport:?} {at} from {}: {answer:?}", from.netns.name());
    }
    Ok(())
}

/// By packet; an unconnected socket is not told of ICMP errors.
const BY_PACKET: [Transport; 2] = [Transport::Tcp, Transport::ConnectedUdp];

fn other_port(kind: PodKind, socket_lb: SocketLb) -> Result<()> {
    let Some(scene) = Plan::new(kind, socket_lb, 1).start()? else { return Ok(()) };
    for family in Family::ALL {
        let mut at = scene.frontend(family)?;
        at.set_port(81);
        let pod = if socket_lb == SocketLb::All { &Transport::ALL[..] } else { &BY_PACKET };
        is_refused(scene.client.place(), at, pod)?;
        let node = if socket_lb == SocketLb::Off { &BY_PACKET } else { &Transport::ALL[..] };
        is_refused(scene.node.place(), at, node)?;
    }
    Ok(())
}

#[test]
fn another_port_of_a_cluster_ip_is_refused_tc_ptp() -> Result<()> {
    other_port(PodKind::Ptp, SocketLb::Off)
}

#[test]
fn another_port_of_a_cluster_ip_is_refused_tc_bridge() -> Result<()> {
    other_port(PodKind::Bridge, SocketLb::Off)
}

#[test]
fn another_port_of_a_cluster_ip_is_refused_socket() -> Result<()> {
    other_port(PodKind::Ptp, SocketLb::All)
}

/// The gateway would say that it knows no way: instead nothing leaves the node.
#[test]
fn an_unassigned_address_of_a_service_cidr_is_dropped() -> Result<()> {
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, 1).start()? else { return Ok(()) };
        let nobody = Service::new("nobody", 99);
        let kind = |scene: &Scene, from: &Place, at| -> Result<String> {
            // A gateway that speaks up while connect() is still at it is heard at the second SYN, a second later.
            let target = Target::new(Transport::Tcp, at).patience(Duration::from_secs(2));
            let answer = ask(from, &target)?;
            let failure =
                answer.err().ok_or_else(|| anyhow::anyhow!("{at} answers {}", scene.node.name()))?;
            Ok(failure.kind)
        };
        for family in Family::ALL {
            let at = service_port(nobody.address(family)?);
            let unreachable = kind(&scene, scene.client.place(), at)?;
            ensure!(unreachable.ends_with("Unreachable"), "{family:?}: {unreachable}");
        }
        scene.manifests.write(
            "service-cidr.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
             spec: {cidrs: [10.96.0.0/16, \"fd00:10:96::/108\"]}\n",
        )?;
        // The file is read in one go with what comes after it.
        let witness = Service::new("witness", 98);
        scene.apply(&witness)?;
        for family in Family::ALL {
            let at = service_port(nobody.address(family)?);
            for from in [scene.client.place(), scene.node.place()] {
                let silence = kind(&scene, from, at)?;
                ensure!(silence == "TimedOut", "{at} from {}: {silence}", from.netns.name());
            }
        }
    }
    Ok(())
}

/// Without the socket layer the node's own packets are met where they leave it.
fn node_without_sockets(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    let node = cluster.nodes[0].place();
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let at = service_port(service.address(family)?);
            for transport in Transport::ALL {
                let mut conversation = Conversation::start(node, &Target::new(transport, at).kept())?;
                for _ in 0..3 {
                    let answer = conversation.ask()?;
                    let served =
                        answer.as_ref().is_ok_and(|reply| reply.server == server.name() && reply.peer == at);
                    ensure!(served, "{transport:?} {at} to {}: {answer:?}", server.name());
                }
            }
            tests::peer::transfer(node, at, 16 << 20)?;
        }
    }
    let service = Service::new("web", 10);
    cluster.apply(&service)?;
    for family in Family::ALL {
        is_refused(node, service_port(service.address(family)?), &BY_PACKET)?;
    }
    Ok(())
}

#[test]
fn the_node_without_the_socket_layer_ptp() -> Result<()> {
    node_without_sockets(PodKind::Ptp)
}

#[test]
fn the_node_without_the_socket_layer_bridge() -> Result<()> {
    node_without_sockets(PodKind::Bridge)
}
