//! All endpoints are replaced while clients are at it: semantics §8, connectivity through a rolling update.

use anyhow::{Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Load, Server, Target, Transport};
use tests::pod::PodKind;
use tests::scene::Cluster;
use tests::wait::{PATIENCE, until};

/// Waits until `load` has had `count` more answers.
fn answers(load: &mut Load, count: u64) -> Result<()> {
    let before = load.so_far()?.ok;
    until("answers", PATIENCE, || {
        let so_far = load.so_far()?;
        ensure!(so_far.ok >= before + count, "{so_far:?}");
        Ok(())
    })
}

/// As a Deployment does it: one more is ready, one drains, it goes. Nobody notices.
fn rolling_update(socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, socket_lb, &[])? else { return Ok(()) };
    let service = Service::new("web", 10).node_port();
    let mut serving = vec![cluster.here.clone(), cluster.there.clone()];
    cluster.apply(&service.clone().with(&serving))?;
    let (mut cases, mut loads) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let cluster_ip = service_port(service.address(family)?);
        // Datagrams to a NodePort at this rate would need more of the node's source ports than there are.
        for (from, at, transport) in [
            (cluster.client.place(), cluster_ip, Transport::Tcp),
            (cluster.client.place(), cluster_ip, Transport::Udp),
            (cluster.outside.place(), cluster.node_port(family), Transport::Tcp),
        ] {
            cases.push(format!("{transport:?} {at}"));
            loads.push(Load::start(from, &Target::new(transport, at))?);
        }
    }
    let mut servers = Vec::new();
    for number in 0..4 {
        let new = cluster.nodes[number % 2].pod(&format!("new-{number}"), PodKind::Ptp)?;
        servers.push(Server::start(new.place(), new.name())?);
        let old = serving.remove(0);
        let mut both = serving.clone();
        both.extend([old.clone(), new.clone()]);
        serving.push(new);
        cluster.apply(&service.clone().with(&both))?;
        loads.iter_mut().try_for_each(|load| answers(load, 5))?;
        cluster.apply(&service.clone().with(&serving).draining([&old]))?;
        // What was under way is answered by now.
        loads.iter_mut().try_for_each(|load| answers(load, 5))?;
        cluster.apply(&service.clone().with(&serving))?;
        loads.iter_mut().try_for_each(|load| answers(load, 5))?;
        old.unplug()?;
    }
    for (load, case) in loads.into_iter().zip(cases) {
        let summary = load.stop()?;
        ensure!(summary.failed == 0 && summary.ok > 0, "{case}: {summary:?}");
    }
    Ok(())
}

#[test]
fn rolling_update_tc() -> Result<()> {
    rolling_update(SocketLb::Off)
}

#[test]
fn rolling_update_socket() -> Result<()> {
    rolling_update(SocketLb::All)
}
