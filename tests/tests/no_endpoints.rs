//! A Service without endpoints refuses: semantics §3, row "no endpoint anywhere".

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{self, Transport};
use tests::pod::PodKind;
use tests::process::Place;
use tests::scene::{Plan, Scene};

fn is_refused(scene: &Scene, from: &Place, transports: &[Transport]) -> Result<()> {
    for family in Family::ALL {
        for transport in transports {
            let answer = peer::ask(from, &scene.target(*transport, family)?)?;
            ensure!(
                answer
                    .as_ref()
                    .is_err_and(|failure| failure.kind == "ConnectionRefused" && failure.millis < 1000),
                "{transport:?} {family:?} from {}: {answer:?}",
                from.netns.name()
            );
        }
    }
    Ok(())
}

fn refuses(socket_lb: SocketLb, kind: PodKind) -> Result<()> {
    let Some(scene) = Plan::new(kind, socket_lb, 1).start()? else { return Ok(()) };
    scene.apply(&Service::new("web", 10))?;
    let (pod, host) = (scene.client.place(), scene.node.place());
    // An unconnected socket is not told of ICMP errors; at the socket layer sendto() itself fails.
    let (by_packet, by_call) = ([Transport::Tcp, Transport::ConnectedUdp], Transport::ALL);
    match socket_lb {
        SocketLb::Off => is_refused(&scene, pod, &by_packet)?,
        SocketLb::Host => {
            is_refused(&scene, pod, &by_packet)?;
            is_refused(&scene, host, &by_call)?;
        }
        SocketLb::All => {
            is_refused(&scene, pod, &by_call)?;
            is_refused(&scene, host, &by_call)?;
        }
    }
    // It serves as soon as there is somebody.
    scene.apply(&Service::new("web", 10).with(&scene.backends))?;
    for family in Family::ALL {
        let answer = peer::ask(pod, &scene.target(Transport::Tcp, family)?)?;
        ensure!(answer.is_ok(), "{family:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn no_endpoints_refused_tc_ptp() -> Result<()> {
    refuses(SocketLb::Off, PodKind::Ptp)
}

#[test]
fn no_endpoints_refused_tc_bridge() -> Result<()> {
    refuses(SocketLb::Off, PodKind::Bridge)
}

#[test]
fn no_endpoints_refused_socket() -> Result<()> {
    refuses(SocketLb::All, PodKind::Ptp)
}

#[test]
fn no_endpoints_refused_host() -> Result<()> {
    refuses(SocketLb::Host, PodKind::Ptp)
}

/// A Service that has been deleted answers nobody, and its address is nobody's.
#[test]
fn deleted_service_is_gone() -> Result<()> {
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, 1).start()? else { return Ok(()) };
        scene.manifests.delete(&scene.service)?;
        scene.agent.wait_for_removal(&scene.service)?;
        for family in Family::ALL {
            let answer = peer::ask(scene.client.place(), &scene.target(Transport::Tcp, family)?)?;
            ensure!(
                answer.as_ref().is_err_and(|failure| failure.kind != "ConnectionRefused"),
                "{socket_lb} {family:?}: {answer:?}"
            );
        }
    }
    Ok(())
}
