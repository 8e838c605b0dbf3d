//! The agent ends, the kernel goes on: no request fails.

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use podnet_common::abi;
use tests::agent::{Agent, Settings, SocketLb, Source};
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

/// An agent that waits for its API server is killed before it has replaced a program, once and again: what
/// the programs at the hooks leave to others goes on.
#[test]
fn an_agent_killed_before_it_serves_leaves_what_was_there() -> Result<()> {
    let Some(mut scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 2).start()? else { return Ok(()) };
    let mut loads = start_loads(&scene)?;
    scene.agent.process().kill()?;
    let kubeconfig = scene.lab.folder("nobody")?.join("kubeconfig");
    fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: nobody\nclusters:\n- name: nobody\n  cluster:\n    \
         server: http://127.0.0.1:9\nusers:\n- name: nobody\n  user: {}\n\
         contexts:\n- name: nobody\n  context: {cluster: nobody, user: nobody}\n",
    )?;
    let settings = Settings::from(Source::Kubeconfig(kubeconfig), SocketLb::Off);
    for _ in 0..2 {
        let before = scene.agent.log().matches(LOST).count();
        let mut waiting = Agent::spawn(&scene.node, settings.clone())?;
        until("the agent to wait for its API server", PATIENCE, || {
            ensure!(waiting.log().matches(LOST).count() > before, "{}", waiting.last_words());
            Ok(())
        })?;
        waiting.process().kill()?;
        wait_for_answers(&mut loads, 20)?;
    }
    scene.agent = scene.agent.restart()?;
    wait_for_answers(&mut loads, 20)?;
    check(&scene, loads)
}

/// What an agent logs that does not reach its API server.
const LOST: &str = "objects cannot be read from the API server";

const KILLS: u32 = 6;

/// Killed again and again, each time a little later on its way to be ready and to take over.
fn killed_at_any_time(attach: &'static str) -> Result<()> {
    let plan = Plan::new(PodKind::Ptp, SocketLb::Off, 2).attach(attach);
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    let mut loads = start_loads(&scene)?;
    let mut settings = Settings::new(&scene.manifests, SocketLb::Off);
    settings.attach = attach;
    scene.agent.process().kill()?;
    let start = Instant::now();
    scene.agent = scene.agent.restart()?;
    scene.agent.process().kill()?;
    let whole = start.elapsed();
    for part in 0..KILLS {
        let delay = whole * part / KILLS;
        let mut agent = Agent::spawn(&scene.node, settings.clone())?;
        thread::sleep(delay);
        agent.process().kill()?;
        wait_for_answers(&mut loads, 2).with_context(|| format!("killed after {delay:?} of {whole:?}"))?;
    }
    scene.agent = scene.agent.restart()?;
    wait_for_answers(&mut loads, 20)?;
    let maps = scene.node.bpffs().join(format!("v{}/maps", abi::LAYOUT));
    let names = fs::read_dir(&maps)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    let of_programs = names.iter().filter(|name| name.to_string_lossy().starts_with(abi::PROGRAMS));
    ensure!(of_programs.count() == 1, "generations of programs are left: {names:?}");
    check(&scene, loads)
}

#[test]
fn killed_at_any_time_tcx() -> Result<()> {
    killed_at_any_time("tcx")
}

#[test]
fn killed_at_any_time_clsact() -> Result<()> {
    killed_at_any_time("clsact")
}
