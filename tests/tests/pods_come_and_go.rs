//! Pods that come while the agent runs are served, also where one of the same interface was before; and so
//! are pods that came while no agent ran.

use anyhow::{Context as _, Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::Family;
use tests::peer::{self, Transport};
use tests::pod::{Pod, PodKind};
use tests::scene::{Plan, Scene};
use tests::wait::{PATIENCE, until};

fn is_served(scene: &Scene, pod: &Pod) -> Result<()> {
    for family in Family::ALL {
        let target = scene.target(Transport::Tcp, family)?;
        // The agent learns of the interface by netlink, which takes it some milliseconds.
        until("a new pod to be served", PATIENCE, || {
            let answer = peer::ask(pod.place(), &target)?;
            ensure!(answer.is_ok(), "{answer:?}");
            Ok(())
        })
        .with_context(|| format!("{} {family:?}\n{}", pod.name(), scene.agent.log()))?;
    }
    Ok(())
}

fn come_and_go(attach: &'static str) -> Result<()> {
    let plan = Plan::new(PodKind::Ptp, SocketLb::Off, 1).attach(attach);
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    for kind in PodKind::ALL {
        let pod = scene.node.pod(&format!("new-{kind:?}").to_lowercase(), kind)?;
        is_served(&scene, &pod)?;
        pod.replug()?;
        is_served(&scene, &pod).context("after the interface was made anew")?;
    }
    scene.agent.process().kill()?;
    let pod = scene.node.pod("late", PodKind::Ptp)?;
    scene.agent = scene.agent.restart()?;
    is_served(&scene, &pod)?;
    // Interfaces that are gone are no trouble, to the agent or to the cleanup.
    pod.unplug()?;
    scene.agent.terminate()?;
    let output = scene.agent.podnet(&["cleanup"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!scene.agent.log().contains("could not be detached"), "{}", scene.agent.log());
    Ok(())
}

#[test]
fn pods_come_and_go_tcx() -> Result<()> {
    come_and_go("auto")
}

#[test]
fn pods_come_and_go_clsact() -> Result<()> {
    come_and_go("clsact")
}
