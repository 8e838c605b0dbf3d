//! What podnet says when something is wrong: the thing, the reason and the fix; and its exit codes.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use tests::agent::{self, Agent, Settings, SocketLb};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, Service};
use tests::node::Node;
use tests::peer::{self, Transport};
use tests::pod::PodKind;
use tests::require;
use tests::scene::Plan;

/// Runs `podnet` on a node.
fn podnet(node: &Node, arguments: &[&str]) -> Result<Output> {
    let podnet = require::podnet().context("there is no podnet binary")?;
    node.place().command(podnet)?.args(arguments).output().context("cannot run podnet")
}

fn fails(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{} in place of {code}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "no {word:?} in: {text}");
    }
    ensure!(!text.contains("panicked"), "{text}");
    Ok(())
}

fn lab() -> Result<Option<(Lab, Node, Manifests)>> {
    let Some(lab) = Lab::start()? else { return Ok(None) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    Ok(Some((lab, node, manifests)))
}

#[test]
fn wrong_usage_is_exit_code_2() -> Result<()> {
    let Some((_lab, node, _)) = lab()? else { return Ok(()) };
    fails(&podnet(&node, &["agent", "--no-such-flag"])?, 2, &["--no-such-flag"])?;
    fails(&podnet(&node, &["no-such-command"])?, 2, &["no-such-command"])
}

#[test]
fn without_an_agent_there_is_nothing_to_show() -> Result<()> {
    let Some((_lab, node, _)) = lab()? else { return Ok(()) };
    let bpffs = node.bpffs().to_string_lossy().into_owned();
    for command in ["services", "status"] {
        let output = podnet(&node, &[command, "--bpffs", &bpffs])?;
        fails(&output, 1, &["podnet agent", &bpffs]).with_context(|| command.to_owned())?;
    }
    Ok(())
}

#[test]
fn no_root() -> Result<()> {
    let Some((lab, node, manifests)) = lab()? else { return Ok(()) };
    // A copy where another user can read it.
    let copy = lab.folder("bin")?.join("podnet");
    fs::copy(require::podnet().context("there is no podnet binary")?, &copy)?;
    let mut command = Command::new(&copy);
    command.uid(65_534).gid(65_534);
    command.args(agent::arguments(&node, &Settings::new(&manifests, SocketLb::Off)));
    fails(&command.output()?, 1, &["root"])
}

/// The capabilities that the manifest for clusters adds, and no fewer, are what the agent needs.
#[test]
fn the_manifests_capabilities_are_enough_and_all_needed() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    let _pod = node.pod("pod", PodKind::Ptp)?;
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/podnet.yaml"))?;
    let (_, added) = manifest.split_once("              add:\n").context("no capabilities are added")?;
    let capabilities: Vec<String> = added
        .lines()
        .map(str::trim)
        .take_while(|line| line.starts_with(['-', '#']))
        .filter_map(|line| line.strip_prefix("- "))
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    ensure!(!capabilities.is_empty(), "no capabilities are added");
    let settings = Settings::new(&manifests, SocketLb::All);
    let podnet = require::podnet().context("there is no podnet binary")?;
    let agent_with = |capabilities: &[&String]| {
        let mut command = node.place().command("setpriv")?;
        let list: String = capabilities.iter().map(|name| name.as_str()).collect();
        command.arg(format!("--bounding-set=-all{list}")).arg(&podnet);
        command.args(agent::arguments(&node, &settings)).arg("--once").output().context("cannot run setpriv")
    };
    for missing in &capabilities {
        let others: Vec<&String> = capabilities.iter().filter(|name| *name != missing).collect();
        let output = agent_with(&others)?;
        ensure!(!output.status.success(), "the agent does without {missing}");
    }
    let output = agent_with(&capabilities.iter().collect::<Vec<_>>())?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !log.contains("WARN"), "{log}");
    let status = agent::run(&podnet, &node, &settings, &["status"])?;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.contains("tcx ingress") && status.contains("connect4"), "{status}");
    Ok(())
}

#[test]
fn bad_cgroup() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    let mut settings = Settings::new(&manifests, SocketLb::All);
    let nowhere = manifests.folder().join("no-cgroup").to_string_lossy().into_owned();
    let here = manifests.folder().to_string_lossy().into_owned();
    for path in [nowhere, here] {
        settings.further = vec!["--cgroup".to_owned(), path.clone()];
        fails(&run_agent(&node, &settings)?, 1, &[&path, "--cgroup"]).with_context(|| path.clone())?;
    }
    Ok(())
}

#[test]
fn no_bpffs() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    let elsewhere = manifests.folder().join("pins").to_string_lossy().into_owned();
    settings.further = vec!["--bpffs".to_owned(), elsewhere];
    fails(&run_agent(&node, &settings)?, 1, &["mount -t bpf", "--bpffs"])
}

#[test]
fn no_manifests() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    let nowhere = Manifests::new(manifests.folder().join("nowhere"));
    let settings = Settings::new(&nowhere, SocketLb::Off);
    fails(&run_agent(&node, &settings)?, 1, &["nowhere"])
}

/// The shipped manifest's address of the API server has to be replaced.
#[test]
fn placeholder_of_the_api_server() -> Result<()> {
    let Some((_lab, node, _)) = lab()? else { return Ok(()) };
    let podnet = require::podnet().context("there is no podnet binary")?;
    let mut command = node.place().command("timeout")?;
    command.arg("20").arg(podnet).arg("agent");
    command.env_remove("PODNET_KUBECONFIG").env("KUBERNETES_SERVICE_HOST", "192.0.2.1");
    command.env("KUBERNETES_SERVICE_PORT", "6443");
    fails(&command.output()?, 1, &["KUBERNETES_SERVICE_HOST", "192.0.2.1", "without a Service"])
}

/// Runs an agent that is expected to end by itself.
fn run_agent(node: &Node, settings: &Settings) -> Result<Output> {
    let podnet = require::podnet().context("there is no podnet binary")?;
    // Should it not end after all, it is made to, which is exit code 124.
    let mut command = node.place().command("timeout")?;
    command.arg("20").arg(podnet).args(agent::arguments(node, settings));
    command.output().context("cannot run podnet")
}

/// A broken file is named with line and reason; the last good state stays, and the other files' changes
/// are carried out.
#[test]
fn broken_yaml() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 1).start()? else { return Ok(()) };
    scene.manifests.write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [}\n")?;
    scene.agent.wait_for_log("broken.yaml")?;
    let log = scene.agent.log();
    let complaint = log.lines().find(|line| line.contains("broken.yaml")).unwrap_or_default();
    ensure!(
        complaint.contains("line 3") || complaint.contains("broken.yaml:3"),
        "no line number: {complaint}"
    );
    let other = Service::new("other", 11).with(&scene.backends);
    scene.apply(&other)?;
    // What was good and gets broken stays as it was.
    scene.manifests.write("web.yaml", "apiVersion: v1\nkind: Service\nspec: {ports: many}\n")?;
    scene.agent.wait_for_log("web.yaml")?;
    scene.agent.wait_for(&scene.service)?;
    let answer = peer::ask(scene.client.place(), &scene.target(Transport::Tcp, Family::V4)?)?;
    ensure!(answer.is_ok(), "{answer:?}");
    Ok(())
}

/// What the commands show while an agent runs.
#[test]
fn services_and_status() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::All, 2).start()? else { return Ok(()) };
    for frontend in scene.agent.frontends()? {
        let name = frontend.name.clone().unwrap_or_default();
        ensure!(name.contains("web") && name.contains("default"), "{frontend:?}");
    }
    for arguments in [vec!["services"], vec!["services", "-o", "wide"], vec!["status"]] {
        let output = scene.agent.podnet(&arguments)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && !text.trim().is_empty(), "{arguments:?}: {output:?}");
        if arguments[0] == "services" {
            for family in Family::ALL {
                let address = scene.service.address(family)?.to_string();
                ensure!(text.contains(&address), "{arguments:?} does not show {address}:\n{text}");
            }
        }
    }
    Ok(())
}

#[test]
fn check_finds_this_machine_fit() -> Result<()> {
    let Some((_lab, node, _)) = lab()? else { return Ok(()) };
    let output = podnet(&node, &["check"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("masquerading"), "{output:?}");
    Ok(())
}

/// A tunnel without Ethernet headers is named by the agent, once, and by `podnet check`.
#[test]
fn interfaces_that_are_not_served_are_named() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    node.place().netns.batch("tuntap add dev tunnel-to-b mode tun\nlink set tunnel-to-b up")?;
    let output = podnet(&node, &["check"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains("tunnel-to-b"), "{output:?}");
    let agent = Agent::start(&node, Settings::new(&manifests, SocketLb::Off))?;
    agent.wait_for_log("tunnel-to-b")?;
    // The agent hears of one after the other.
    node.place().netns.batch(
        "link set tunnel-to-b mtu 1400\ntuntap add dev tunnel-to-c mode tun\nlink set tunnel-to-c up",
    )?;
    agent.wait_for_log("tunnel-to-c")?;
    ensure!(agent.log().matches("tunnel-to-b").count() == 1, "{}", agent.log());
    Ok(())
}

/// The agent's own port is taken: it says which, and how to choose another.
#[test]
fn port_taken() -> Result<()> {
    let Some((_lab, node, manifests)) = lab()? else { return Ok(()) };
    let server = peer::Server::at_port(node.place(), "squatter", 10_249)?;
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    settings.further = vec!["--metrics-bind-address".to_owned(), "127.0.0.1:10249".to_owned()];
    fails(&run_agent(&node, &settings)?, 1, &["127.0.0.1:10249", "--metrics-bind-address"])?;
    drop(server);
    drop(Agent::start(&node, Settings::new(&manifests, SocketLb::Off))?);
    Ok(())
}
