//! Traffic policies, and what serves when nobody is ready: semantics §3.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{PORT, Target, Transport, ask};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::{Cluster, address_of};

const EXTERNALLY: &str = "externalTrafficPolicy: Local";
const INTERNALLY: &str = "internalTrafficPolicy: Local";

fn is_served(from: &Place, at: SocketAddr, server: &Pod, client: Option<IpAddr>) -> Result<()> {
    for transport in Transport::ALL {
        let case = format!("{transport:?} {at} from {}", from.netns.name());
        let reply = ask(from, &Target::new(transport, at))?
            .map_err(|failure| anyhow::anyhow!("{case}: {failure:?}"))?;
        ensure!(reply.server == server.name() && reply.peer == at, "{case}: {reply:?}");
        ensure!(client.is_none_or(|client| reply.client.ip() == client), "{case}: {reply:?}");
    }
    Ok(())
}

/// Nobody answers, and nobody refuses.
fn is_dropped(from: &Place, at: SocketAddr) -> Result<()> {
    for transport in Transport::ALL {
        let answer = ask(from, &Target::new(transport, at).patience(Duration::from_millis(400)))?;
        let silent = answer.as_ref().is_err_and(|failure| failure.kind == "TimedOut");
        ensure!(silent, "{transport:?} {at} from {}: {answer:?}", from.netns.name());
    }
    Ok(())
}

/// Applies a Service and waits until the first node serves all of `frontends` by these pods.
fn apply(
    cluster: &Cluster,
    service: &Service,
    frontends: &[SocketAddr],
    inside: &[&Pod],
    outside: &[&Pod],
) -> Result<()> {
    cluster.manifests.apply(service)?;
    let at_port = |pods: &[&Pod], family| -> Vec<SocketAddr> {
        pods.iter().map(|pod| SocketAddr::new(address_of(pod, family), PORT)).collect()
    };
    for at in frontends {
        let family = Family::of(at.ip());
        for protocol in ["TCP", "UDP"] {
            cluster.agents[0].wait_for_sides(
                *at,
                protocol,
                &at_port(inside, family),
                &at_port(outside, family),
            )?;
        }
    }
    Ok(())
}

/// Clients outside get endpoints of the node that they ask only, by their own address; those inside get all.
fn external_policy_local(kind: PodKind, socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, socket_lb, &[])? else { return Ok(()) };
    let (here, there) = (&cluster.here, &cluster.there);
    let node_ports = Family::ALL.map(|family| cluster.node_port(family));
    let service = Service::new("web", 10).node_port().spec(EXTERNALLY);
    apply(&cluster, &service.clone().with([here, there]), &node_ports, &[here, there], &[here])?;
    for (at, family) in node_ports.into_iter().zip(Family::ALL) {
        for _ in 0..4 {
            is_served(cluster.outside.place(), at, here, Some(cluster.outside_address(family)))?;
        }
    }
    apply(&cluster, &service.with([there]), &node_ports, &[there], &[])?;
    for (at, family) in node_ports.into_iter().zip(Family::ALL) {
        is_dropped(cluster.outside.place(), at).context("nobody is local")?;
        is_served(cluster.client.place(), at, there, Some(address_of(&cluster.client, family)))?;
        if socket_lb != SocketLb::Off {
            is_served(cluster.nodes[0].place(), at, there, None)?;
        }
    }
    Ok(())
}

#[test]
fn external_policy_local_tc_ptp() -> Result<()> {
    external_policy_local(PodKind::Ptp, SocketLb::Host)
}

#[test]
fn external_policy_local_tc_bridge() -> Result<()> {
    external_policy_local(PodKind::Bridge, SocketLb::Off)
}

#[test]
fn external_policy_local_socket() -> Result<()> {
    external_policy_local(PodKind::Ptp, SocketLb::All)
}

/// Nothing of the Service is anywhere: then even those outside are refused, not left to wait.
#[test]
fn no_endpoint_anywhere_is_refused_whatever_the_policy() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Host, &[])? else { return Ok(()) };
    let service = Service::new("web", 10).node_port().spec(EXTERNALLY).spec(INTERNALLY);
    for family in Family::ALL {
        let cluster_ip = service_port(service.address(family)?);
        let frontends = [cluster.node_port(family), cluster_ip];
        apply(&cluster, &service, &frontends, &[], &[])?;
        for (from, at) in [
            (cluster.outside.place(), frontends[0]),
            (cluster.client.place(), frontends[0]),
            (cluster.client.place(), cluster_ip),
            (cluster.nodes[0].place(), cluster_ip),
        ] {
            for transport in [Transport::Tcp, Transport::ConnectedUdp] {
                let answer = ask(from, &Target::new(transport, at))?;
                let refused = answer.as_ref().is_err_and(|it| it.kind == "ConnectionRefused");
                ensure!(refused, "{transport:?} {at} from {}: {answer:?}", from.netns.name());
            }
        }
    }
    Ok(())
}

/// Clients inside get endpoints of their node only, and nothing if there is none.
fn internal_policy_local(socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, &[])? else { return Ok(()) };
    let (here, there) = (&cluster.here, &cluster.there);
    let service = Service::new("web", 10).node_port().spec(INTERNALLY);
    let cluster_ips =
        [service_port(service.address(Family::V4)?), service_port(service.address(Family::V6)?)];
    let node_ports = Family::ALL.map(|family| cluster.node_port(family));
    apply(&cluster, &service.clone().with([here, there]), &cluster_ips, &[here], &[here])?;
    for at in cluster_ips {
        for _ in 0..4 {
            is_served(cluster.client.place(), at, here, None)?;
        }
    }
    apply(&cluster, &service.with([there]), &cluster_ips, &[], &[])?;
    for at in cluster_ips {
        is_dropped(cluster.client.place(), at).context("nobody is local")?;
        is_dropped(cluster.nodes[0].place(), at).context("nobody is local")?;
    }
    // The policy is about ClusterIPs.
    for at in node_ports {
        is_served(cluster.client.place(), at, there, None)?;
        is_served(cluster.outside.place(), at, there, None)?;
    }
    Ok(())
}

#[test]
fn internal_policy_local_tc() -> Result<()> {
    internal_policy_local(SocketLb::Off)
}

#[test]
fn internal_policy_local_socket() -> Result<()> {
    internal_policy_local(SocketLb::All)
}

/// When nobody is ready, those that are about to end serve: of all nodes for one set, of this one for the
/// other, each by itself.
#[test]
fn terminating_endpoints_serve_when_nobody_is_ready() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Host, &[])? else { return Ok(()) };
    let (here, there) = (&cluster.here, &cluster.there);
    let node_ports = Family::ALL.map(|family| cluster.node_port(family));
    let service = Service::new("web", 10).node_port().spec(EXTERNALLY);
    let cases: [(Service, &[&Pod], &[&Pod]); 4] = [
        (service.clone().draining([here, there]), &[here, there], &[here]),
        // Somebody is ready elsewhere: the local set falls back nevertheless, the other one does not.
        (service.clone().with([there]).draining([here]), &[there], &[here]),
        (service.clone().with([here]).draining([there]), &[here], &[here]),
        (service.clone().draining([there]), &[there], &[]),
    ];
    for (service, inside, outside) in cases {
        apply(&cluster, &service, &node_ports, inside, outside)?;
        for at in node_ports {
            for _ in 0..3 {
                match outside {
                    [] => is_dropped(cluster.outside.place(), at)?,
                    [server, ..] => is_served(cluster.outside.place(), at, server, None)?,
                }
                if let [server] = inside {
                    is_served(cluster.client.place(), at, server, None)?;
                    is_served(cluster.nodes[0].place(), at, server, None)?;
                }
            }
        }
    }
    Ok(())
}
