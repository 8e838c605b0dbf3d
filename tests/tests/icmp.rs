//! ICMP errors about flows of a Service: semantics §6.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport, ask, trace, transfer};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::protocol::Complaint;
use tests::scene::{Cluster, node_address};

/// Lets only packets of 1300 bytes through to a pod at its node, which the pod does not know.
fn narrow(pod: &Pod) -> Result<()> {
    let (v4, v6, interface) = (pod.v4(), pod.v6(), pod.interface());
    pod.node().place().netns.batch(&format!(
        "route replace {v4} dev {interface} mtu lock 1300\nroute replace {v6} dev {interface} mtu lock 1300"
    ))
}

/// A large transfer comes through although segments of the usual size do not.
#[test]
fn path_mtu_is_discovered_through_a_service() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    let bytes = 4 << 20;
    for server in [&cluster.here, &cluster.there] {
        narrow(server)?;
        let service = Service::new("web", 10).node_port().with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let cluster_ip = service_port(service.address(family)?);
            for (from, at) in [
                (cluster.client.place(), cluster_ip),
                (cluster.outside.place(), cluster.node_port(family)),
                (cluster.nodes[0].place(), cluster_ip),
            ] {
                transfer(from, at, bytes)
                    .with_context(|| format!("{at} at {} from {}", server.name(), from.netns.name()))?;
            }
        }
    }
    Ok(())
}

/// Has the two nodes reach each other's pods through a VXLAN, as flannel does: 50 bytes less fit into a packet.
fn tunnel(cluster: &Cluster) -> Result<()> {
    for (node, other) in [(0, 1), (1, 0)] {
        let (here, there) = (&cluster.nodes[node], &cluster.nodes[other]);
        let (local, remote) = (here.v4(), there.v4());
        let (node, other) = (node + 1, other + 1);
        here.place().netns.batch(&format!(
            "link add vxlan0 type vxlan id 1 dstport 4789 local {local} remote {remote} dev eth0\n\
             addr add 10.99.0.{node}/24 dev vxlan0\n\
             addr add fd00:99::{node}/64 dev vxlan0 nodad\n\
             link set vxlan0 up\n\
             route replace 10.244.{other}.0/24 via 10.99.0.{other}\n\
             route replace fd00:10:244:{other}::/64 via fd00:99::{other}"
        ))?;
    }
    Ok(())
}

/// A client outside learns how much fits through the tunnel to a backend on another node: nobody but podnet can tell
/// it.
#[test]
fn path_mtu_is_discovered_where_a_tunnel_leads_to_the_backend() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    tunnel(&cluster)?;
    let service = Service::new("web", 10).node_port().with([&cluster.there]);
    cluster.apply(&service)?;
    for family in Family::ALL {
        let at = cluster.node_port(family);
        transfer(cluster.outside.place(), at, 4 << 20).with_context(|| format!("TCP to {at}"))?;
        // As is the way with datagrams, one is lost that tells.
        let headers = if family == Family::V4 { 28 } else { 48 };
        let target = Target::new(Transport::ConnectedUdp, at).size(1500 - headers).kept();
        let from = cluster.outside.place();
        let mut conversation = Conversation::start(from, &target)?;
        let first = conversation.ask()?;
        let second = conversation.ask()?;
        ensure!(second.as_ref().is_ok_and(|it| it.server == "there"), "UDP to {at}: {first:?}, {second:?}");
    }
    Ok(())
}

/// Who complains, and whether of the time a packet has been on its way.
fn expired(family: Family, from: IpAddr) -> Complaint {
    let kind = if family == Family::V4 { 11 } else { 3 };
    Complaint { from: Some(from), kind, code: 0 }
}

/// Traceroute through a Service shows the routers on the way to the backend, the node of a node port too.
#[test]
fn hops_to_a_cluster_ip_are_told() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    let service = Service::new("web", 10).node_port().with([&cluster.there]);
    cluster.apply(&service)?;
    let patience = Duration::from_millis(1500);
    for family in Family::ALL {
        let at = service_port(service.address(family)?);
        let from = cluster.client.place();
        let first = trace(from, at, 1, patience)?.context("no complaint of the first node")?;
        // By which of its addresses the client's node speaks is its own affair.
        ensure!((first.kind, first.code) == (expired(family, at.ip()).kind, 0), "{family:?}: {first:?}");
        let second = trace(from, at, 2, patience)?;
        let other = node_address(&cluster.nodes[1], family);
        ensure!(second == Some(expired(family, other)), "{family:?}: {second:?}");
        let third = trace(from, at, 3, Duration::from_millis(300))?;
        ensure!(third.is_none(), "{family:?}: {third:?}");

        let outside = cluster.outside.place();
        let at = cluster.node_port(family);
        let node = trace(outside, at, 1, patience)?;
        ensure!(node == Some(expired(family, at.ip())), "the node of a node port, {family:?}: {node:?}");
        let beyond = trace(outside, cluster.node_port(family), 2, patience)?;
        ensure!(beyond == Some(expired(family, other)), "a node port, {family:?}: {beyond:?}");
    }
    Ok(())
}

fn is_refused(from: &Place, at: SocketAddr) -> Result<()> {
    let case = format!("{at} from {}", from.netns.name());
    let answer = ask(from, &Target::new(Transport::ConnectedUdp, at))?;
    let refused = answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused");
    ensure!(refused, "{case}: {answer:?}");
    let told = trace(from, at, 64, Duration::from_millis(1500))?;
    let unreachable = if at.is_ipv4() { (3, 3) } else { (1, 4) };
    let right = told.as_ref().is_some_and(|it| it.from == Some(at.ip()) && (it.kind, it.code) == unreachable);
    ensure!(right, "{case}: {told:?}");
    Ok(())
}

/// An endpoint that does not listen says so in the Service's name.
fn refusal_of_an_endpoint(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).node_port().with([server]).target_port(9);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let cluster_ip = service_port(service.address(family)?);
            is_refused(cluster.client.place(), cluster_ip)?;
            is_refused(cluster.outside.place(), cluster.node_port(family))?;
            is_refused(cluster.nodes[0].place(), cluster_ip)?;
        }
    }
    Ok(())
}

#[test]
fn an_endpoint_that_does_not_listen_refuses_ptp() -> Result<()> {
    refusal_of_an_endpoint(PodKind::Ptp)
}

#[test]
fn an_endpoint_that_does_not_listen_refuses_bridge() -> Result<()> {
    refusal_of_an_endpoint(PodKind::Bridge)
}
