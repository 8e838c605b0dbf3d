//! What is not podnet's passes untouched: semantics §6.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::Family;
use tests::peer::{self, Target, Transport};
use tests::pod::{Outside, PodKind};
use tests::scene::{Plan, address_of};

#[test]
fn other_traffic_passes_untouched() -> Result<()> {
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, 1).start()? else { return Ok(()) };
        let outside = Outside::create(&scene.lab, "outside", 100, Some(&scene.node))?;
        for family in Family::ALL {
            let backend = address_of(&scene.backends[0], family);
            for transport in Transport::ALL {
                for from in [scene.client.place(), outside.place(), scene.node.place()] {
                    let answer = peer::ask(from, &Target::at(transport, backend))?;
                    ensure!(
                        answer
                            .as_ref()
                            .is_ok_and(|reply| reply.peer.ip() == backend
                                && reply.client.port() == reply.local.port()),
                        "{transport:?} {backend} from {}: {answer:?}",
                        from.netns.name()
                    );
                }
            }
            peer::transfer(outside.place(), (backend, peer::PORT).into(), 1 << 20)?;
        }
    }
    Ok(())
}
