//! A pod reaches itself through its own Service: semantics §5, row hairpin.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::Family;
use tests::peer::{Conversation, Transport};
use tests::pod::PodKind;
use tests::scene::Plan;

fn hairpin(socket_lb: SocketLb, kind: PodKind, hairpin_mode: bool) -> Result<()> {
    let Some(scene) = Plan::new(kind, socket_lb, 1).start()? else { return Ok(()) };
    if kind == PodKind::Bridge {
        scene.backends[0].hairpin_mode(hairpin_mode)?;
    }
    for family in Family::ALL {
        let frontend = scene.frontend(family)?;
        for transport in Transport::ALL {
            let target = scene.target(transport, family)?.kept();
            let mut conversation = Conversation::start(scene.backends[0].place(), &target)?;
            for _ in 0..3 {
                let answer = conversation.ask()?;
                ensure!(
                    answer.as_ref().is_ok_and(|reply| reply.server == "backend-0" && reply.peer == frontend),
                    "{transport:?} {family:?}: {answer:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn hairpin_tc_ptp() -> Result<()> {
    hairpin(SocketLb::Off, PodKind::Ptp, false)
}

/// The bridge's port does not send back what came from it (`hairpin_mode off`, the default).
#[test]
fn hairpin_tc_bridge() -> Result<()> {
    hairpin(SocketLb::Off, PodKind::Bridge, false)
}

/// The bridge's port does (`hairpin_mode on`, as some network plugins set it), and need not.
#[test]
fn hairpin_tc_bridge_in_hairpin_mode() -> Result<()> {
    hairpin(SocketLb::Off, PodKind::Bridge, true)
}

#[test]
fn hairpin_socket_ptp() -> Result<()> {
    hairpin(SocketLb::All, PodKind::Ptp, false)
}

#[test]
fn hairpin_socket_bridge() -> Result<()> {
    hairpin(SocketLb::All, PodKind::Bridge, false)
}

#[test]
fn hairpin_socket_bridge_in_hairpin_mode() -> Result<()> {
    hairpin(SocketLb::All, PodKind::Bridge, true)
}
