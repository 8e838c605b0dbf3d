//! Where NodePorts are: semantics §2, row NodePort.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, NODE_PORT, Service};
use tests::peer::{PORT, Target, Transport, ask};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::{Cluster, address_of};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// The first node's addresses towards its pods.
const INNER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1))];

fn service() -> Service {
    Service::new("web", 10).node_port()
}

fn is_served(from: &Place, ip: IpAddr, server: &Pod) -> Result<()> {
    let at = SocketAddr::new(ip, NODE_PORT);
    for transport in Transport::ALL {
        let case = format!("{transport:?} {at} from {}", from.netns.name());
        let reply = ask(from, &Target::new(transport, at))?;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{case}: {failure:?}"))?;
        ensure!(reply.server == server.name() && reply.peer == at, "{case}: {reply:?}");
    }
    Ok(())
}

fn is_refused(from: &Place, ip: IpAddr) -> Result<()> {
    let at = SocketAddr::new(ip, NODE_PORT);
    // A socket that is not connected is not told.
    for transport in [Transport::Tcp, Transport::ConnectedUdp] {
        let answer = ask(from, &Target::new(transport, at))?;
        let refused = answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused");
        ensure!(refused, "{transport:?} {at} from {}: {answer:?}", from.netns.name());
    }
    Ok(())
}

/// The node's own processes at its loopback addresses; a pod's are another thing.
fn localhost(flags: &[&str], served: bool) -> Result<()> {
    for socket_lb in [SocketLb::Host, SocketLb::All] {
        let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, flags)? else { return Ok(()) };
        for server in [&cluster.here, &cluster.there] {
            cluster.apply(&service().with([server]))?;
            for ip in LOOPBACK {
                let case = || format!("{flags:?}, socket-lb {socket_lb}");
                match served {
                    true => is_served(cluster.nodes[0].place(), ip, server).with_context(case)?,
                    false => is_refused(cluster.nodes[0].place(), ip).with_context(case)?,
                }
                is_refused(cluster.client.place(), ip).with_context(case)?;
            }
        }
    }
    Ok(())
}

#[test]
fn localhost_is_served_where_it_is_asked_for() -> Result<()> {
    localhost(&["--localhost-node-ports"], true)?;
    localhost(&["--nodeport-addresses", "primary,localhost"], true)
}

#[test]
fn localhost_is_not_served_otherwise() -> Result<()> {
    localhost(&[], false)?;
    localhost(&["--iptables-localhost-nodeports=false", "--nodeport-addresses", "all"], false)
}

#[test]
fn networks_say_which_addresses_of_the_node() -> Result<()> {
    let own = ["172.18.0.0/24", "fd00:172:18::/64"];
    let inner = INNER.map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }));
    for (list, more) in [(own.join(","), false), ([own.join(","), inner.join(",")].join(","), true)] {
        let flags = ["--node-port-addresses", &list];
        let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &flags)? else { return Ok(()) };
        cluster.apply(&service().with([&cluster.there]))?;
        for family in Family::ALL {
            let other = INNER[usize::from(family == Family::V6)];
            for from in [cluster.outside.place(), cluster.client.place()] {
                is_served(from, cluster.node_port(family).ip(), &cluster.there)?;
                match more {
                    true => is_served(from, other, &cluster.there)?,
                    false => is_refused(from, other)?,
                }
            }
        }
    }
    Ok(())
}

#[test]
fn bind_address_is_the_primary_address_of_its_family() -> Result<()> {
    let inner = INNER[0].to_string();
    let flags = ["--bind-address", &inner];
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &flags)? else { return Ok(()) };
    cluster.manifests.apply(&service().with([&cluster.here]))?;
    let at = SocketAddr::new(INNER[0], NODE_PORT);
    let backend = [SocketAddr::new(address_of(&cluster.here, Family::V4), PORT)];
    for protocol in ["TCP", "UDP"] {
        cluster.agents[0].wait_for_sides(at, protocol, &backend, &backend)?;
    }
    is_served(cluster.outside.place(), INNER[0], &cluster.here)?;
    is_refused(cluster.outside.place(), cluster.node_port(Family::V4).ip())?;
    is_served(cluster.outside.place(), cluster.node_port(Family::V6).ip(), &cluster.here)
}
