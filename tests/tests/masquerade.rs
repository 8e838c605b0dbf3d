//! `--masquerade-all`: semantics §5.

use anyhow::{Context as _, Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport, transfer};
use tests::pod::PodKind;
use tests::scene::Cluster;

/// Backends know pods by an address of the node's, and answers find their way.
fn masquerade_all(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &["--masquerade-all"])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let at = service_port(service.address(family)?);
            let own = tests::scene::address_of(&cluster.client, family);
            for transport in Transport::ALL {
                let case = || format!("{transport:?} {at} at {}", server.name());
                let target = Target::new(transport, at).kept();
                let mut conversation = Conversation::start(cluster.client.place(), &target)?;
                for _ in 0..3 {
                    let reply = conversation.reply().with_context(case)?;
                    ensure!(reply.server == server.name() && reply.peer == at, "{}: {reply:?}", case());
                    ensure!(reply.client.ip() != own, "{}: the pod's own address: {reply:?}", case());
                }
            }
            transfer(cluster.client.place(), at, 16 << 20)?;
        }
    }
    Ok(())
}

#[test]
fn masquerade_all_ptp() -> Result<()> {
    masquerade_all(PodKind::Ptp)
}

#[test]
fn masquerade_all_bridge() -> Result<()> {
    masquerade_all(PodKind::Bridge)
}
