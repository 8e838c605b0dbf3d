//! Endpoints come and go under load: semantics §4. No request is lost, as long as somebody serves.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Load, Server, Transport};
use tests::pod::{Pod, PodKind};
use tests::scene::{Plan, Scene};
use tests::wait::{PATIENCE, until};

/// Changes the Service's endpoints to `pods` and checks that from then on these, and only these, answer.
fn change(scene: &Scene, loads: &mut [Load], pods: &[&Pod]) -> Result<()> {
    let service = Service::new("web", 10).with(pods.iter().copied());
    let staying = |pod: &&Pod| pods.iter().any(|staying| staying.name() == pod.name());
    // Endpoints terminate before they go, and finish what they have begun.
    scene.apply(&service.clone().draining(scene.backends.iter().filter(|pod| !staying(pod))))?;
    thread::sleep(Duration::from_millis(100));
    scene.apply(&service)?;
    for load in loads {
        let before = load.so_far()?;
        let answered = until("every endpoint to answer", PATIENCE, || {
            let now = load.so_far()?;
            let new: Vec<_> = now
                .servers
                .iter()
                .filter(|(name, count)| before.servers.get(*name).is_none_or(|old| *count > old))
                .map(|(name, _)| name.clone())
                .collect();
            ensure!(new.len() >= pods.len(), "{new:?} answered; {now:?}");
            Ok(new)
        })?;
        let mut expected: Vec<_> = pods.iter().map(|pod| pod.name().to_owned()).collect();
        expected.sort();
        ensure!(answered == expected, "{answered:?} answered in place of {expected:?}");
    }
    Ok(())
}

fn endpoints_change(socket_lb: SocketLb, kind: PodKind) -> Result<()> {
    let Some(mut scene) = Plan::new(kind, socket_lb, 3).start()? else { return Ok(()) };
    let mut loads = Vec::new();
    for (transport, family) in [
        (Transport::Tcp, Family::V4),
        (Transport::Tcp, Family::V6),
        (Transport::Udp, Family::V4),
        (Transport::ConnectedUdp, Family::V6),
    ] {
        loads.push(Load::start(scene.client.place(), &scene.target(transport, family)?)?);
    }
    let pods = scene.backends.clone();
    let [first, second, third] = &pods[..] else { unreachable!("the plan has three") };
    // Removed, added again, exchanged, and all but one removed.
    change(&scene, &mut loads, &[first, second])?;
    change(&scene, &mut loads, &[first, second, third])?;
    change(&scene, &mut loads, &[second, third])?;
    change(&scene, &mut loads, &[third])?;
    // One that has left may end: nobody is sent there.
    scene.servers.remove(0);
    thread::sleep(Duration::from_millis(300));
    let newcomer = scene.node.pod("newcomer", kind)?;
    let _server = Server::start(newcomer.place(), newcomer.name())?;
    change(&scene, &mut loads, &[third, &newcomer])?;
    for load in loads {
        let summary = load.stop()?;
        ensure!(summary.failed == 0, "{summary:?}\n{}", scene.agent.log());
    }
    Ok(())
}

#[test]
fn endpoints_change_under_load_tc_ptp() -> Result<()> {
    endpoints_change(SocketLb::Off, PodKind::Ptp)
}

#[test]
fn endpoints_change_under_load_tc_bridge() -> Result<()> {
    endpoints_change(SocketLb::Off, PodKind::Bridge)
}

#[test]
fn endpoints_change_under_load_socket() -> Result<()> {
    endpoints_change(SocketLb::All, PodKind::Ptp)
}
