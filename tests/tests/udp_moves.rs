//! A UDP flow whose endpoint has left moves to another one: semantics §4.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport};
use tests::pod::PodKind;
use tests::scene::{Cluster, Plan};
use tests::wait::{PATIENCE, until};

/// The endpoint's server goes on running: a flow that does not move is seen to be answered by it.
fn moves(socket_lb: SocketLb, transports: &[Transport]) -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, 2).start()? else { return Ok(()) };
    for family in Family::ALL {
        for transport in transports {
            let target = scene.target(*transport, family)?.kept();
            let mut conversation = Conversation::start(scene.client.place(), &target)?;
            let first = conversation.reply()?.server;
            ensure!(conversation.reply()?.server == first, "{transport:?} {family:?}: moved for no reason");
            let other = scene.backends.iter().filter(|pod| pod.name() != first);
            scene.apply(&Service::new("web", 10).with(other))?;
            let second = conversation.reply()?;
            ensure!(second.server != first, "{transport:?} {family:?}: still answered by {second:?}");
            ensure!(second.peer == scene.frontend(family)?, "{transport:?} {family:?}: {second:?}");
            scene.apply(&Service::new("web", 10).with(&scene.backends))?;
            let third = conversation.reply()?.server;
            ensure!(third == second.server, "{transport:?} {family:?}: moved for no reason");
        }
    }
    Ok(())
}

#[test]
fn udp_flow_moves_when_its_endpoint_leaves_tc() -> Result<()> {
    moves(SocketLb::Off, &[Transport::Udp, Transport::ConnectedUdp])
}

#[test]
fn udp_flow_moves_when_its_endpoint_leaves_socket() -> Result<()> {
    moves(SocketLb::All, &[Transport::Udp])
}

/// The traffic policy says who may serve, of flows that there are too.
#[test]
fn udp_flow_moves_when_the_policy_becomes_local_tc() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    for family in Family::ALL {
        let service = Service::new("web", 10).node_port();
        cluster.apply(&service.clone().with([&cluster.there]))?;
        let target = Target::new(Transport::ConnectedUdp, cluster.node_port(family)).kept();
        let mut conversation = Conversation::start(cluster.outside.place(), &target)?;
        ensure!(conversation.reply()?.server == "there", "{family:?}");
        let both = service.with([&cluster.here, &cluster.there]);
        cluster.apply(&both)?;
        // Long enough for the flow's frontend to be asked again.
        thread::sleep(Duration::from_secs(2));
        ensure!(conversation.reply()?.server == "there", "{family:?}: moved for no reason");
        cluster.manifests.apply(&both.spec("externalTrafficPolicy: Local"))?;
        until("the flow to move", PATIENCE, || {
            let server = conversation.reply()?.server;
            ensure!(server == "here", "{family:?}: still answered by {server}");
            Ok(())
        })?;
    }
    Ok(())
}

/// From no endpoints at all back to one: the client's next datagram after that is answered.
#[test]
fn udp_flow_comes_back_after_an_outage_tc() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Bridge, SocketLb::Off, 1).start()? else { return Ok(()) };
    for family in Family::ALL {
        let target = scene.target(Transport::ConnectedUdp, family)?.kept();
        let mut conversation = Conversation::start(scene.client.place(), &target)?;
        conversation.reply()?;
        scene.apply(&Service::new("web", 10))?;
        let refused = conversation.ask()?;
        ensure!(refused.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused"), "{refused:?}");
        scene.apply(&Service::new("web", 10).with(&scene.backends))?;
        conversation.reply()?;
    }
    Ok(())
}
