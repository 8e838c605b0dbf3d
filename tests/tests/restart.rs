//! The agent ends, the kernel goes on: no request fails.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Load, Server, Transport};
use tests::pod::PodKind;
use tests::scene::{Plan, Scene};

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

fn check(scene: &Scene, loads: Vec<Load>) -> Result<()> {
    for load in loads {
        let summary = load.stop()?;
        ensure!(summary.failed == 0 && summary.ok > 100, "{summary:?}\n{}", scene.agent.log());
        ensure!(summary.longest_millis < 900, "a packet was lost: {summary:?}\n{}", scene.agent.log());
    }
    Ok(())
}

/// Killed by SIGKILL under load, twice, and started anew each time; what changed meanwhile is caught up
/// with.
fn killed(plan: Plan) -> Result<()> {
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    let loads = start_loads(&scene)?;
    let target = scene.target(Transport::Tcp, Family::V4)?.kept();
    let mut conversation = Conversation::start(scene.client.place(), &target)?;
    let server = conversation.reply()?.server;
    let newcomer = scene.node.pod("newcomer", PodKind::Ptp)?;
    let _server = Server::start(newcomer.place(), newcomer.name())?;
    for round in 0..2 {
        thread::sleep(Duration::from_millis(200));
        scene.agent.process().kill()?;
        thread::sleep(Duration::from_millis(300));
        if round == 1 {
            scene.service = Service::new("web", 10).with(scene.backends.iter().chain([&newcomer]));
            scene.manifests.apply(&scene.service)?;
        }
        scene.agent = scene.agent.restart()?;
        scene.agent.wait_for(&scene.service)?;
        ensure!(conversation.reply()?.server == server, "an established connection moved");
    }
    thread::sleep(Duration::from_millis(200));
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
    let loads = start_loads(&scene)?;
    thread::sleep(Duration::from_millis(200));
    scene.agent.terminate()?;
    thread::sleep(Duration::from_millis(500));
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
