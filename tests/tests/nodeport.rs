//! Services are reached from outside of the cluster: semantics §2, rows NodePort, LoadBalancer, externalIPs
//! and hostPort, and §5, row external traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, NODE_PORT};
use tests::north_south::{frontends, is_served, service};
use tests::peer::{PORT, Target, Transport, ask, transfer};
use tests::pod::PodKind;
use tests::scene::{Cluster, address_of, node_address};
use tests::wait::{PATIENCE, until};

/// Enough for many segments of every size, and little enough to be quick.
const BYTES: u64 = 32 << 20;

fn from_outside_to_a_backend_here(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    cluster.apply(&service().with([&cluster.here]))?;
    for family in Family::ALL {
        for at in frontends(&cluster, family) {
            is_served(cluster.outside.place(), at, &cluster.here, Some(cluster.outside_address(family)))?;
        }
        transfer(cluster.outside.place(), cluster.node_port(family), BYTES)?;
    }
    Ok(())
}

#[test]
fn a_local_backend_sees_the_client_outside_ptp() -> Result<()> {
    from_outside_to_a_backend_here(PodKind::Ptp)
}

#[test]
fn a_local_backend_sees_the_client_outside_bridge() -> Result<()> {
    from_outside_to_a_backend_here(PodKind::Bridge)
}

fn from_outside_to_a_backend_there(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    cluster.apply(&service().with([&cluster.there]))?;
    for family in Family::ALL {
        let node = node_address(&cluster.nodes[0], family);
        for at in frontends(&cluster, family) {
            is_served(cluster.outside.place(), at, &cluster.there, Some(node))?;
        }
        transfer(cluster.outside.place(), cluster.node_port(family), BYTES)?;
    }
    Ok(())
}

#[test]
fn a_remote_backend_is_reached_through_the_node_ptp() -> Result<()> {
    from_outside_to_a_backend_there(PodKind::Ptp)
}

#[test]
fn a_remote_backend_is_reached_through_the_node_bridge() -> Result<()> {
    from_outside_to_a_backend_there(PodKind::Bridge)
}

/// Pods keep their address wherever the backend is, and reach the other node's port too.
fn from_a_pod(kind: PodKind, socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, socket_lb, &[])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        cluster.apply(&service().with([server]))?;
        for family in Family::ALL {
            let own = address_of(&cluster.client, family);
            for at in frontends(&cluster, family) {
                is_served(cluster.client.place(), at, server, Some(own)).context("the own node")?;
            }
            let other = SocketAddr::new(node_address(&cluster.nodes[1], family), NODE_PORT);
            is_served(cluster.client.place(), other, server, None).context("the other node")?;
        }
    }
    Ok(())
}

#[test]
fn a_pod_reaches_node_ports_tc_ptp() -> Result<()> {
    from_a_pod(PodKind::Ptp, SocketLb::Off)
}

#[test]
fn a_pod_reaches_node_ports_tc_bridge() -> Result<()> {
    from_a_pod(PodKind::Bridge, SocketLb::Off)
}

#[test]
fn a_pod_reaches_node_ports_socket() -> Result<()> {
    from_a_pod(PodKind::Ptp, SocketLb::All)
}

/// The node's own processes: at the socket layer where there is one, as what leaves the node otherwise.
#[test]
fn the_node_reaches_what_is_outside_of_it() -> Result<()> {
    for socket_lb in [SocketLb::Host, SocketLb::Off] {
        let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, &[])? else { return Ok(()) };
        for server in [&cluster.here, &cluster.there] {
            cluster.apply(&service().with([server]))?;
            for family in Family::ALL {
                // The own addresses are reached without leaving the node.
                let skip = usize::from(socket_lb == SocketLb::Off);
                for at in frontends(&cluster, family).into_iter().skip(skip) {
                    is_served(cluster.nodes[0].place(), at, server, None)
                        .with_context(|| format!("socket-lb {socket_lb}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Who is in `loadBalancerSourceRanges` gets through to the load balancer's addresses, who is not does not,
/// pods and the node no more than others; other addresses are not concerned.
#[test]
fn load_balancer_source_ranges() -> Result<()> {
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, &[])? else { return Ok(()) };
        let (outside, pod, node) =
            (cluster.outside.place(), cluster.client.place(), cluster.nodes[0].place());
        let range = |of: fn(&Cluster, Family) -> IpAddr| {
            let both = Family::ALL.map(|family| {
                format!("{}/{}", of(&cluster, family), if family == Family::V4 { 32 } else { 128 })
            });
            format!("loadBalancerSourceRanges: {both:?}")
        };
        let cases = [
            (range(|cluster, family| cluster.outside_address(family)), [true, false, false]),
            (range(|cluster, family| address_of(&cluster.client, family)), [false, true, false]),
            (range(|cluster, family| node_address(&cluster.nodes[0], family)), [false, false, true]),
        ];
        for (ranges, admitted) in &cases {
            cluster.apply(&service().with([&cluster.here]).spec(ranges))?;
            for family in Family::ALL {
                let [node_port, balancer, external] = frontends(&cluster, family);
                for (from, admitted) in [outside, pod, node].into_iter().zip(admitted) {
                    let case = format!("{ranges}, socket-lb {socket_lb}, {}", from.netns.name());
                    let target = Target::new(Transport::Tcp, balancer).patience(Duration::from_millis(300));
                    // The ranges come to the kernel beside the frontends that are waited for.
                    until(&case, PATIENCE, || {
                        let answer = ask(from, &target)?;
                        ensure!(answer.is_ok() == *admitted, "{answer:?}");
                        ensure!(answer.as_ref().err().is_none_or(|it| it.kind == "TimedOut"), "{answer:?}");
                        Ok(())
                    })?;
                }
                for at in [node_port, external] {
                    let answer = ask(pod, &Target::new(Transport::Tcp, at))?;
                    ensure!(answer.is_ok(), "{ranges} is about {at} too: {answer:?}");
                }
            }
        }
    }
    Ok(())
}

/// A pod's port on its node, by clients of all sorts.
fn host_port(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Host, &[])? else { return Ok(()) };
    let pod = &cluster.here;
    let port = 8081;
    cluster.manifests.write(
        "pod.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: default, name: {}}}\n\
             spec:\n  nodeName: {}\n  containers:\n  - name: server\n    ports:\n    \
             - {{containerPort: {PORT}, hostPort: {port}, protocol: TCP}}\n    \
             - {{containerPort: {PORT}, hostPort: {port}, protocol: UDP}}\n\
             status:\n  phase: Running\n  podIPs: [{{ip: \"{}\"}}, {{ip: \"{}\"}}]\n",
            pod.name(),
            pod.node().name(),
            pod.v4(),
            pod.v6()
        ),
    )?;
    for family in Family::ALL {
        let at = SocketAddr::new(node_address(&cluster.nodes[0], family), port);
        let backend = [SocketAddr::new(address_of(pod, family), PORT)];
        for protocol in ["TCP", "UDP"] {
            cluster.agents[0].wait_for_sides(at, protocol, &backend, &backend)?;
        }
        is_served(cluster.outside.place(), at, pod, Some(cluster.outside_address(family)))?;
        is_served(cluster.client.place(), at, pod, Some(address_of(&cluster.client, family)))?;
        is_served(pod.place(), at, pod, None).context("the pod itself")?;
        is_served(cluster.nodes[0].place(), at, pod, None)?;
        is_served(cluster.nodes[1].place(), at, pod, Some(node_address(&cluster.nodes[1], family)))?;
    }
    let loopback = SocketAddr::from(([127, 0, 0, 1], port));
    is_served(cluster.nodes[0].place(), loopback, pod, None)
}

#[test]
fn host_port_ptp() -> Result<()> {
    host_port(PodKind::Ptp)
}

#[test]
fn host_port_bridge() -> Result<()> {
    host_port(PodKind::Bridge)
}
