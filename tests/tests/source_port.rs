//! One client port, two Services, one backend: both connections work at the same time, the second from
//! another source port.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport};
use tests::pod::PodKind;
use tests::scene::{Plan, address_of};

#[test]
fn same_source_port_to_two_services_of_one_backend_tc() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 1).start()? else { return Ok(()) };
    let other = Service::new("other", 11).with(&scene.backends);
    scene.apply(&other)?;
    for family in Family::ALL {
        let from = SocketAddr::new(address_of(&scene.client, family), 30_303);
        let targets = [scene.frontend(family)?, service_port(other.address(family)?)]
            .map(|frontend| Target::new(Transport::Tcp, frontend).from(from).kept());
        let [mut first, mut second] = [
            Conversation::start(scene.client.place(), &targets[0])?,
            Conversation::start(scene.client.place(), &targets[1])?,
        ];
        let (a, b) = (first.reply()?, second.reply()?);
        ensure!(a.local == b.local && a.local == from, "{family:?}: {a:?} {b:?}");
        ensure!(a.client != b.client, "{family:?}: the backend cannot tell them apart: {a:?} {b:?}");
        ensure!(a.client == from, "{family:?}: the first keeps its port: {a:?}");
        // Both go on, one after the other.
        for _ in 0..3 {
            let (again_a, again_b) = (first.reply()?, second.reply()?);
            ensure!(again_a.client == a.client, "{family:?}: {again_a:?} after {a:?}");
            ensure!(again_b.client == b.client, "{family:?}: {again_b:?} after {b:?}");
        }
    }
    Ok(())
}
