//! Every node chooses the same backend for a client's address and port: the annotation `podnet.io/algorithm`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::node::Node;
use tests::peer::{Target, Transport, ask};
use tests::pod::PodKind;
use tests::scene::{Cluster, node_address};

const BALANCER: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
/// Two nodes that choose by chance choose alike in all of them once in 2^24.
const PORTS: std::ops::Range<u16> = 40_000..40_024;

fn balancer(family: Family) -> Result<IpAddr> {
    Ok(BALANCER[usize::from(family == Family::V6)].parse()?)
}

/// Has who is outside reach the load balancer's address by `node`, as a router does that has lost another node.
fn route_by(cluster: &Cluster, node: &Node, family: Family) -> Result<()> {
    let (to, by) = (balancer(family)?.to_string(), node_address(node, family).to_string());
    let status =
        cluster.outside.place().command("ip")?.args(["route", "replace", &to, "via", &by]).status()?;
    ensure!(status.success(), "no route to {to} by {by}");
    Ok(())
}

/// Who answers each of a client's ports.
fn servers(cluster: &Cluster, family: Family) -> Result<Vec<String>> {
    let (client, at) = (cluster.outside_address(family), service_port(balancer(family)?));
    let one = |port| -> Result<String> {
        let target = Target::new(Transport::ConnectedUdp, at).from(SocketAddr::new(client, port));
        Ok(ask(cluster.outside.place(), &target)?.ok().with_context(|| format!("from {port}"))?.server)
    };
    PORTS.map(one).collect()
}

#[test]
fn every_node_chooses_the_same_backend() -> Result<()> {
    let flags = ["--maglev-slots", "251"];
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &flags)? else { return Ok(()) };
    let balancers: Vec<IpAddr> = Family::ALL.into_iter().map(balancer).collect::<Result<_>>()?;
    let service =
        Service::new("web", 10).node_port().balancers(balancers).with([&cluster.here, &cluster.there]);
    cluster.apply(&service.clone().annotation("podnet.io/algorithm: maglev"))?;
    for family in Family::ALL {
        let mut by_node = Vec::new();
        for node in &cluster.nodes {
            route_by(&cluster, node, family)?;
            by_node.push(servers(&cluster, family)?);
        }
        ensure!(by_node[0] == by_node[1], "{family:?}: {by_node:?}");
        ensure!(BTreeSet::from_iter(&by_node[0]).len() == 2, "{family:?}: one backend has all: {by_node:?}");
    }
    let shown = cluster.agents[0].podnet(&["services", "-o", "json"])?;
    let frontends: Vec<Value> = serde_json::from_slice(&shown.stdout)?;
    for frontend in &frontends {
        let outside = matches!(frontend["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        ensure!((frontend["algorithm"] == "maglev") == outside, "{frontend}");
        let backends = frontend["outside"]["backends"].as_array().map_or(0, Vec::len);
        ensure!(backends == 2 || frontend["port"] == 0, "{frontend}");
    }
    // Clients keep their backends as long as their flows live: those of other ports choose anew.
    cluster.apply(&service.annotation("podnet.io/algorithm: least-conn"))?;
    let log = cluster.agents[0].log();
    ensure!(log.contains("\"least-conn\" is neither random nor maglev"), "{log}");
    Ok(())
}
