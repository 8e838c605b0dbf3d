//! Large transfers through a ClusterIP: every byte arrives, in both directions, with the offloads on that
//! make of many packets one (GSO, partial checksums).

use anyhow::Result;
use tests::agent::SocketLb;
use tests::manifests::Family;
use tests::peer;
use tests::pod::PodKind;
use tests::scene::Plan;

fn transfers(socket_lb: SocketLb, kind: PodKind, bytes: u64) -> Result<()> {
    let Some(scene) = Plan::new(kind, socket_lb, 1).start()? else { return Ok(()) };
    for family in Family::ALL {
        peer::transfer(scene.client.place(), scene.frontend(family)?, bytes)?;
        // And to itself, through the Service.
        peer::transfer(scene.backends[0].place(), scene.frontend(family)?, bytes / 4)?;
    }
    Ok(())
}

#[test]
fn large_transfers_tc_ptp() -> Result<()> {
    transfers(SocketLb::Off, PodKind::Ptp, 40 << 20)
}

#[test]
fn large_transfers_tc_bridge() -> Result<()> {
    transfers(SocketLb::Off, PodKind::Bridge, 40 << 20)
}

#[test]
fn large_transfers_socket_ptp() -> Result<()> {
    transfers(SocketLb::All, PodKind::Ptp, 8 << 20)
}
