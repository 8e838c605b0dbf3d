//! The same behaviour on kernels without tcx: programs attached by clsact.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{self, Transport};
use tests::pod::PodKind;
use tests::scene::Plan;

fn clsact(kind: PodKind) -> Result<()> {
    let Some(scene) = Plan::new(kind, SocketLb::Off, 1).attach("clsact").start()? else { return Ok(()) };
    for family in Family::ALL {
        for transport in Transport::ALL {
            for from in [&scene.client, &scene.backends[0]] {
                let answer = peer::ask(from.place(), &scene.target(transport, family)?)?;
                ensure!(
                    answer.as_ref().is_ok_and(|reply| reply.server == "backend-0"),
                    "{transport:?} {family:?} from {}: {answer:?}",
                    from.name()
                );
            }
        }
        peer::transfer(scene.client.place(), scene.frontend(family)?, 8 << 20)?;
    }
    scene.apply(&Service::new("web", 10))?;
    for family in Family::ALL {
        for transport in [Transport::Tcp, Transport::ConnectedUdp] {
            let answer = peer::ask(scene.client.place(), &scene.target(transport, family)?)?;
            ensure!(
                answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused"),
                "{transport:?} {family:?}: {answer:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn clusterip_hairpin_and_refusal_clsact_ptp() -> Result<()> {
    clsact(PodKind::Ptp)
}

#[test]
fn clusterip_hairpin_and_refusal_clsact_bridge() -> Result<()> {
    clsact(PodKind::Bridge)
}
