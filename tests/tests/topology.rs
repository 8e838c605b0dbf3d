//! Hints keep traffic in a zone: semantics §3, row Topology.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{PORT, Target, Transport, ask_often};
use tests::pod::{Pod, PodKind};
use tests::scene::{Cluster, address_of};

/// Waits until both kernels have what they should, and has a pod of each node ask: the pods of each node are served
/// by `expected` of that node.
fn are_served(
    cluster: &Cluster,
    service: &Service,
    clients: &[Pod; 2],
    expected: [&[&Pod]; 2],
) -> Result<()> {
    for family in Family::ALL {
        let at = service_port(service.address(family)?);
        for ((agent, client), expected) in cluster.agents.iter().zip(clients).zip(expected) {
            let endpoints: Vec<_> =
                expected.iter().map(|pod| SocketAddr::new(address_of(pod, family), PORT)).collect();
            for (protocol, transport) in [("TCP", Transport::Tcp), ("UDP", Transport::ConnectedUdp)] {
                agent.wait_for_sides(at, protocol, &endpoints, &endpoints)?;
                // Of two, one is never drawn by chance once in a thousand million runs.
                let summary = ask_often(client.place(), &Target::new(transport, at), 30)?;
                let answered: BTreeSet<_> = summary.servers.keys().map(String::as_str).collect();
                let expected: BTreeSet<_> = expected.iter().map(|pod| pod.name()).collect();
                ensure!(summary.failed == 0 && answered == expected, "{}: {summary:?}", client.name());
            }
        }
    }
    Ok(())
}

fn hints(socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, &[])? else { return Ok(()) };
    let (here, there) = (&cluster.here, &cluster.there);
    let clients = [cluster.client.clone(), cluster.nodes[1].pod("client", PodKind::Ptp)?];
    let service = Service::new("web", 10).with([here, there]);
    let apply = |service: &Service| cluster.manifests.apply(service);
    apply(&service)?;
    are_served(&cluster, &service, &clients, [&[here, there], &[here, there]])?;
    apply(&service.clone().hinted())?;
    are_served(&cluster, &service, &clients, [&[here], &[there]])?;
    // Nobody is for the second node's zone: hints do not leave it without an endpoint.
    apply(&service.clone().with([here]).hinted())?;
    are_served(&cluster, &service, &clients, [&[here], &[here]])?;
    apply(&service)?;
    are_served(&cluster, &service, &clients, [&[here, there], &[here, there]])
}

#[test]
fn hints_keep_traffic_in_a_zone_tc() -> Result<()> {
    hints(SocketLb::Off)
}

#[test]
fn hints_keep_traffic_in_a_zone_socket() -> Result<()> {
    hints(SocketLb::All)
}
