//! A UDP flow whose endpoint has left moves to another one: semantics §4.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Transport};
use tests::pod::PodKind;
use tests::scene::Plan;

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
