//! A client stays with its endpoint: semantics §4, row `sessionAffinity: ClientIP`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, NODE_PORT, Service};
use tests::peer::{Target, Transport, ask};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::{Cluster, Plan, Scene, node_address};

const AFFINITY: &str = "sessionAffinity: ClientIP";

/// A scene whose Service has affinity, for `seconds` if that is not the default.
fn start(socket_lb: SocketLb, backends: u8, seconds: Option<u32>) -> Result<Option<(Scene, Service)>> {
    let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, backends).start()? else { return Ok(None) };
    scene.manifests.apply_node(&scene.node)?;
    // By another number it is another Service: nobody takes the one without affinity for it.
    let mut service = Service::new("sticky", 20).with(&scene.backends).node_port().spec(AFFINITY);
    if let Some(seconds) = seconds {
        service =
            service.spec(&format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"));
    }
    scene.apply(&service)?;
    Ok(Some((scene, service)))
}

fn cluster_ip(service: &Service, family: Family) -> Result<SocketAddr> {
    Ok(tests::agent::service_port(service.address(family)?))
}

/// Who answers a new connection.
fn server(from: &Place, at: SocketAddr, transport: Transport) -> Result<String> {
    let answer = ask(from, &Target::new(transport, at))?;
    Ok(answer.ok().with_context(|| format!("{transport:?} {at} from {}", from.netns.name()))?.server)
}

/// Each client has one endpoint for all its connections, and pods of one node do not share theirs; it has the
/// same one after the agent has been started anew.
fn each_client_has_its_endpoint(socket_lb: SocketLb) -> Result<()> {
    let Some((mut scene, service)) = start(socket_lb, 3, None)? else { return Ok(()) };
    // They all have the same one by chance once in ten million runs.
    let mut clients = vec![scene.client.clone()];
    for number in 0..7 {
        clients.push(scene.node.pod(&format!("client-{number}"), PodKind::Ptp)?);
    }
    let of_all = |clients: &[Pod]| -> Result<Vec<String>> {
        let mut servers = Vec::new();
        for client in clients {
            for family in Family::ALL {
                servers.push(server(client.place(), cluster_ip(&service, family)?, Transport::Tcp)?);
            }
        }
        Ok(servers)
    };
    let first = of_all(&clients)?;
    ensure!(first.iter().collect::<BTreeSet<_>>().len() > 1, "all clients share {first:?}");
    for _ in 0..4 {
        ensure!(of_all(&clients)? == first, "a client has moved");
    }
    scene.agent = scene.agent.restart()?;
    scene.agent.wait_for(&service)?;
    ensure!(of_all(&clients)? == first, "a client has moved with the agent");
    Ok(())
}

#[test]
fn each_client_has_its_endpoint_tc() -> Result<()> {
    each_client_has_its_endpoint(SocketLb::Off)
}

#[test]
fn each_client_has_its_endpoint_socket() -> Result<()> {
    each_client_has_its_endpoint(SocketLb::All)
}

/// TCP and UDP are ports of their own; by whichever address a port is reached, the endpoint is the same.
#[test]
fn affinity_is_shared_by_all_frontends_of_a_port() -> Result<()> {
    let Some((scene, service)) = start(SocketLb::Off, 4, None)? else { return Ok(()) };
    let client = scene.client.place();
    for family in Family::ALL {
        let node_port = SocketAddr::new(node_address(&scene.node, family), NODE_PORT);
        for transport in [Transport::Tcp, Transport::Udp] {
            let first = server(client, node_port, transport)?;
            for _ in 0..4 {
                for at in [cluster_ip(&service, family)?, node_port] {
                    let again = server(client, at, transport)?;
                    ensure!(again == first, "{transport:?} {at}: {again} after {first}");
                }
            }
        }
    }
    Ok(())
}

/// An endpoint that leaves is forgotten, and not remembered when it comes back.
fn affinity_to_an_endpoint_that_left(socket_lb: SocketLb) -> Result<()> {
    let Some((scene, service)) = start(socket_lb, 3, None)? else { return Ok(()) };
    let client = scene.client.place();
    for family in Family::ALL {
        let at = cluster_ip(&service, family)?;
        let first = server(client, at, Transport::Tcp)?;
        scene.apply(&service.clone().with(scene.backends.iter().filter(|pod| pod.name() != first)))?;
        let second = server(client, at, Transport::Tcp)?;
        ensure!(second != first, "{family:?}: still {first}");
        scene.apply(&service)?;
        for _ in 0..4 {
            let third = server(client, at, Transport::Tcp)?;
            ensure!(third == second, "{family:?}: {third} after {second}");
        }
    }
    Ok(())
}

#[test]
fn affinity_to_an_endpoint_that_left_tc() -> Result<()> {
    affinity_to_an_endpoint_that_left(SocketLb::Off)
}

#[test]
fn affinity_to_an_endpoint_that_left_socket() -> Result<()> {
    affinity_to_an_endpoint_that_left(SocketLb::All)
}

/// New connections keep it alive, and it ends when none has come for the timeout.
fn affinity_ends(socket_lb: SocketLb) -> Result<()> {
    let Some((scene, service)) = start(socket_lb, 3, Some(3))? else { return Ok(()) };
    let client = scene.client.place();
    let at = cluster_ip(&service, Family::V4)?;
    let first = server(client, at, Transport::Tcp)?;
    for _ in 0..5 {
        thread::sleep(Duration::from_secs(1));
        let again = server(client, at, Transport::Tcp)?;
        ensure!(again == first, "{again} after {first}, refreshed a second ago");
    }
    // The same one is drawn ten times once in sixty thousand runs.
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(3100));
        if server(client, at, Transport::Tcp)? != first {
            return Ok(());
        }
    }
    anyhow::bail!("{first} for ever")
}

#[test]
fn affinity_ends_tc() -> Result<()> {
    affinity_ends(SocketLb::Off)
}

#[test]
fn affinity_ends_socket() -> Result<()> {
    affinity_ends(SocketLb::All)
}

/// Clients outside are told apart by their addresses, and each stays with its endpoint whether it is on the node
/// that is asked or elsewhere.
#[test]
fn each_client_outside_has_its_endpoint() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    cluster.apply(
        &Service::new("sticky", 20).with([&cluster.here, &cluster.there]).node_port().spec(AFFINITY),
    )?;
    // They all have the same one by chance once in thirty thousand runs.
    let lasts = 101..117_u16;
    let addresses: Vec<String> = lasts
        .clone()
        .map(|last| {
            format!(
                "addr add 172.18.0.{last}/24 dev eth0\naddr add fd00:172:18::{last:x}/64 dev eth0 nodad\n"
            )
        })
        .collect();
    let outside = cluster.outside.place();
    outside.netns.batch(&addresses.concat())?;
    for family in Family::ALL {
        let clients = lasts.clone().map(|last| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::from_bits(0xac12_0000 | u32::from(last))),
            Family::V6 => [0xfd00, 0x172, 0x18, 0, 0, 0, 0, last].into(),
        });
        let of_all = || -> Result<Vec<String>> {
            let ask = |client| {
                let target = Target::new(Transport::Tcp, cluster.node_port(family));
                let answer = ask(outside, &target.from(SocketAddr::new(client, 0)))?;
                Ok(answer.ok().with_context(|| format!("no answer to {client}"))?.server)
            };
            clients.clone().map(ask).collect()
        };
        let first = of_all()?;
        ensure!(first.iter().collect::<BTreeSet<_>>().len() > 1, "all clients share {first:?}");
        for _ in 0..3 {
            ensure!(of_all()? == first, "a client has moved");
        }
    }
    Ok(())
}
