//! Datagrams in fragments: semantics §6.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::Cluster;

/// Three fragments each way over Ethernet.
const SIZE: usize = 4000;

fn come_back(from: &Place, at: SocketAddr, server: &Pod) -> Result<()> {
    for transport in [Transport::Udp, Transport::ConnectedUdp] {
        let target = Target::new(transport, at).size(SIZE).kept();
        let mut conversation = Conversation::start(from, &target)?;
        for number in 1..=3 {
            let answer = conversation.ask()?;
            let right = answer.as_ref().is_ok_and(|reply| reply.server == server.name() && reply.peer == at);
            let place = from.netns.name();
            ensure!(right, "{transport:?} {number} to {at} at {} from {place}: {answer:?}", server.name());
        }
    }
    Ok(())
}

fn datagrams_in_fragments(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).node_port().with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let cluster_ip = service_port(service.address(family)?);
            come_back(cluster.client.place(), cluster_ip, server)?;
            come_back(cluster.nodes[0].place(), cluster_ip, server)?;
            for from in [cluster.client.place(), cluster.outside.place()] {
                come_back(from, cluster.node_port(family), server)?;
            }
            if server.name() == cluster.here.name() {
                come_back(server.place(), cluster_ip, server)?;
            }
        }
    }
    Ok(())
}

#[test]
fn datagrams_in_fragments_ptp() -> Result<()> {
    datagrams_in_fragments(PodKind::Ptp)
}

#[test]
fn datagrams_in_fragments_bridge() -> Result<()> {
    datagrams_in_fragments(PodKind::Bridge)
}
