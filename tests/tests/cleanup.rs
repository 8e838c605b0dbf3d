//! `podnet cleanup` leaves the kernel as it was before podnet, and what is others' alone.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use tests::agent::{self, Agent, Settings, SocketLb};
use tests::manifests::Family;
use tests::node::Node;
use tests::peer::{self, Transport};
use tests::pod::{Pod, PodKind};
use tests::scene::{Plan, Scene};
use tests::wait::until;

/// What is attached to a node, by program id.
#[derive(Debug, PartialEq, Eq)]
struct Attached {
    /// At the pods' interfaces.
    tcx: Vec<u32>,
    /// Filters of the clsact qdisc, as `tc` prints them.
    filters: Vec<String>,
    /// At the node's cgroup.
    sockets: Vec<u64>,
}

impl Attached {
    fn look(node: &Node, pods: &[&Pod]) -> Result<Self> {
        let interfaces: Vec<_> = pods.iter().map(|pod| pod.interface()).collect();
        let netns = &node.place().netns;
        let mut filters = Vec::new();
        for interface in &interfaces {
            for direction in ["ingress", "egress"] {
                let listed = netns.tc(&format!("filter show dev {interface} {direction}"))?;
                filters.extend(listed.lines().filter(|line| line.contains("handle")).map(str::to_owned));
            }
        }
        let tcx = netns.run(|| {
            let mut tcx = Vec::new();
            for interface in interfaces {
                for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                    let (_, programs) = SchedClassifier::query_tcx(interface, direction)?;
                    tcx.extend(programs.iter().map(|program| program.id()));
                }
            }
            Ok(tcx)
        })?;
        let cgroup = node.place().cgroup.to_str().context("a path of ASCII")?.to_owned();
        let listed = output("bpftool", &["--json", "cgroup", "show", &cgroup])?;
        let listed: Vec<serde_json::Value> =
            if listed.trim().is_empty() { Vec::new() } else { serde_json::from_str(&listed)? };
        let sockets = listed.iter().filter_map(|program| program["id"].as_u64()).collect();
        Ok(Self { tcx, filters, sockets })
    }

    /// Waits until what is attached is `expected`: the kernel takes its time to let go of a link whose pin
    /// is removed.
    fn wait(node: &Node, pods: &[&Pod], expected: impl Fn(&Self) -> bool) -> Result<Self> {
        until("programs to be detached", Duration::from_secs(5), || {
            let attached = Self::look(node, pods)?;
            ensure!(expected(&attached), "{attached:?}");
            Ok(attached)
        })
    }

    const fn nothing() -> Self {
        Self { tcx: Vec::new(), filters: Vec::new(), sockets: Vec::new() }
    }
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn is_served(scene: &Scene) -> Result<bool> {
    let target = scene.target(Transport::Tcp, Family::V4)?;
    Ok(peer::ask(scene.client.place(), &target)?.is_ok())
}

fn run_cleanup(agent: &Agent) -> Result<()> {
    let output = agent.podnet(&["cleanup"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "podnet cleanup: {}: {errors}", output.status);
    Ok(())
}

/// Two installations on one node, each a stranger to the other, and a filter that somebody else has made.
fn cleanup(attach: &'static str) -> Result<()> {
    let plan = Plan::new(PodKind::Ptp, SocketLb::All, 1).attach(attach);
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    let pods = [&scene.client, &scene.backends[0]];
    let first = Attached::look(&scene.node, &pods)?;
    let interfaces = pods.len() * 2;
    match attach {
        "clsact" => ensure!(first.filters.len() == interfaces && first.tcx.is_empty(), "{first:?}"),
        _ => ensure!(first.tcx.len() == interfaces && first.filters.is_empty(), "{first:?}"),
    }
    ensure!(first.sockets.len() == 8, "{first:?}");

    scene.agent.terminate()?;
    ensure!(Attached::look(&scene.node, &pods)? == first, "the end of the agent changed something");
    // With clsact two installations would fight for one place; with tcx and cgroups they stand in a row.
    if attach != "clsact" {
        let mut settings = Settings::new(&scene.manifests, SocketLb::All);
        settings.installation = "-other";
        let mut other = Agent::start(&scene.node, settings.clone())?;
        other.wait_for(&scene.service)?;
        let both = Attached::look(&scene.node, &pods)?;
        ensure!(both.tcx.len() == 2 * interfaces && both.sockets.len() == 16, "{both:?}");
        run_cleanup(&scene.agent)?;
        let left = Attached::wait(&scene.node, &pods, |left| {
            left.tcx.len() == interfaces && left.sockets.len() == 8
        })?;
        ensure!(left.tcx.iter().all(|id| !first.tcx.contains(id)), "the stranger's are gone: {left:?}");
        ensure!(is_served(&scene)?, "the other installation no longer works");
        other.terminate()?;
        run_cleanup(&other)?;
        ensure!(!agent::bpffs(&scene.node, &settings).exists(), "pins are left");
    } else {
        let [used, unused] = pods.map(Pod::interface);
        let netns = &scene.node.place().netns;
        let has_qdisc = |interface: &str| {
            anyhow::Ok(netns.tc(&format!("qdisc show dev {interface}"))?.contains("clsact"))
        };
        netns.tc(&format!("filter add dev {used} ingress prio 77 bpf bytecode \"1,6 0 0 0,\""))?;
        run_cleanup(&scene.agent)?;
        let left = Attached::look(&scene.node, &pods)?;
        ensure!(left.filters.len() == 1 && left.filters[0].contains("pref 77"), "{left:?}");
        ensure!(has_qdisc(used)? && !has_qdisc(unused)?, "a qdisc goes with its last filter, and no sooner");
        netns.tc(&format!("filter delete dev {used} ingress prio 77"))?;
    }
    Attached::wait(&scene.node, &pods, |left| *left == Attached::nothing())?;
    ensure!(!scene.node.bpffs().exists(), "pins are left");
    ensure!(!is_served(&scene)?, "the Service is served still");
    // Once more: there is nothing to do, which is no error.
    run_cleanup(&scene.agent)
}

#[test]
fn cleanup_leaves_the_kernel_as_it_was_tcx() -> Result<()> {
    cleanup("auto")
}

#[test]
fn cleanup_leaves_the_kernel_as_it_was_clsact() -> Result<()> {
    cleanup("clsact")
}
