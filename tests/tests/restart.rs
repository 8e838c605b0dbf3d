//! The agent ends, the kernel goes on: no request fails.

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Load, Server, Transport};
use tests::pod::PodKind;
use tests::scene::{Plan, Scene};
use tests::wait::{PATIENCE, until};

fn start_loads(scene: &Scene) -> Result<Vec<Load>> {
    let cases = [
        (Transport::Tcp, Family::V4),
        (Transport::Tcp, Family::V6),
        (Transport::Udp, Family::V4),
        (Transport::ConnectedUdp, Family::V6),
    ];
    cases
        .into_iter()
        .map(|(transport, family)| Load::start(scene.client.place(), &scene.target(transport, family)?))
        .collect()
}

/// Waits until every client has been answered `count` times more.
fn wait_for_answers(loads: &mut [Load], count: u64) -> Result<()> {
    for load in loads {
        let start = load.so_far()?.ok;
        until("requests to be answered", PATIENCE, || {
            let summary = load.so_far()?;
            ensure!(summary.ok >= start + count, "{summary:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Ends the requests; none of them has failed. Datagrams are not repeated, so none was lost either.
fn check(scene: &Scene, loads: Vec<Load>) -> Result<()> {
    for load in loads {
        let summary = load.stop()?;
        ensure!(summary.failed == 0, "{summary:?}\n{}", scene.agent.log());
    }
    Ok(())
}

/// Killed by SIGKILL under load, twice, and started anew each time; what changed meanwhile is caught up
/// with.
fn killed(plan: Plan) -> Result<()> {
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    let mut loads = start_loads(&scene)?;
    let target = scene.target(Transport::Tcp, Family::V4)?.kept();
    let mut conversation = Conversation::start(scene.client.place(), &target)?;
    let server = conversation.reply()?.server;
    let newcomer = scene.node.pod("newcomer", PodKind::Ptp)?;
    let _server = Server::start(newcomer.place(), newcomer.name())?;
    for round in 0..2 {
        wait_for_answers(&mut loads, 20)?;
        scene.agent.process().kill()?;
        wait_for_answers(&mut loads, 40)?;
        if round == 1 {
            scene.service = Service::new("web", 10).with(scene.backends.iter().chain([&newcomer]));
            scene.manifests.apply(&scene.service)?;
        }
        scene.agent = scene.agent.restart()?;
        scene.agent.wait_for(&scene.service)?;
        ensure!(conversation.reply()?.server == server, "an established connection moved");
    }
    wait_for_answers(&mut loads, 40)?;
    check(&scene, loads)
}

#[test]
fn restart_after_sigkill_under_load_tc() -> Result<()> {
    killed(Plan::new(PodKind::Ptp, SocketLb::Off, 2))
}

#[test]
fn restart_after_sigkill_under_load_socket() -> Result<()> {
    killed(Plan::new(PodKind::Ptp, SocketLb::All, 2))
}

#[test]
fn restart_after_sigkill_under_load_clsact() -> Result<()> {
    killed(Plan::new(PodKind::Ptp, SocketLb::Off, 2).attach("clsact"))
}

fn terminated(socket_lb: SocketLb) -> Result<()> {
    let Some(mut scene) = Plan::new(PodKind::Bridge, socket_lb, 2).start()? else { return Ok(()) };
    let mut loads = start_loads(&scene)?;
    wait_for_answers(&mut loads, 20)?;
    scene.agent.terminate()?;
    wait_for_answers(&mut loads, 100)?;
    check(&scene, loads)
}

#[test]
fn sigterm_leaves_the_dataplane_working_tc() -> Result<()> {
    terminated(SocketLb::Off)
}

#[test]
fn sigterm_leaves_the_dataplane_working_socket() -> Result<()> {
    terminated(SocketLb::All)
}
