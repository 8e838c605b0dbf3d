//! Connections spread over the backends: semantics §4, uniform random choice per connection.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::Family;
use tests::peer::{self, Transport};
use tests::pod::PodKind;
use tests::scene::Plan;

const BACKENDS: u8 = 3;
const REQUESTS: usize = 300;
/// A fair choice gives a backend 100 of 300; less than 40 has a chance of about 1 in 10^14.
const FEWEST: u64 = 40;

fn spread(socket_lb: SocketLb) -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, BACKENDS).start()? else { return Ok(()) };
    for (transport, family) in [
        (Transport::Tcp, Family::V4),
        (Transport::Tcp, Family::V6),
        (Transport::Udp, Family::V4),
        (Transport::ConnectedUdp, Family::V6),
    ] {
        let summary = peer::ask_often(scene.client.place(), &scene.target(transport, family)?, REQUESTS)?;
        ensure!(summary.failed == 0, "{transport:?} {family:?}: {summary:?}");
        ensure!(
            summary.servers.len() == usize::from(BACKENDS)
                && summary.servers.values().all(|count| *count > FEWEST),
            "{transport:?} {family:?}: {summary:?}"
        );
    }
    Ok(())
}

#[test]
fn spread_over_backends_tc() -> Result<()> {
    spread(SocketLb::Off)
}

#[test]
fn spread_over_backends_socket() -> Result<()> {
    spread(SocketLb::All)
}
