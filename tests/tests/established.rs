//! An established flow keeps its backend: semantics §4.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport};
use tests::pod::PodKind;
use tests::scene::{Cluster, Plan, Scene};

/// A kept flow and who answered it first.
struct Flow {
    case: String,
    transport: Transport,
    conversation: Conversation,
    server: String,
}

impl Flow {
    fn open(scene: &Scene, transport: Transport, family: Family) -> Result<Self> {
        let case = format!("{transport:?} {family:?}");
        let target = scene.target(transport, family)?.kept();
        let mut conversation = Conversation::start(scene.client.place(), &target)?;
        let server = conversation.reply().with_context(|| case.clone())?.server;
        Ok(Self { case, transport, conversation, server })
    }

    fn check(&mut self, after: &str) -> Result<()> {
        let case = format!("{}, after {after}", self.case);
        let reply = self.conversation.reply().with_context(|| case.clone())?;
        ensure!(reply.server == self.server, "{case}: moved from {} to {}", self.server, reply.server);
        Ok(())
    }
}

fn established(socket_lb: SocketLb) -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, socket_lb, 3).start()? else { return Ok(()) };
    let mut flows = Vec::new();
    for family in Family::ALL {
        for transport in Transport::ALL {
            flows.push(Flow::open(&scene, transport, family)?);
        }
    }
    let mut check = |after: &str| flows.iter_mut().try_for_each(|flow| flow.check(after));
    let other = Service::new("other", 11).with(&scene.backends);
    scene.apply(&other)?;
    check("another Service came")?;
    scene.apply(&Service::new("other", 11))?;
    check("another Service lost its endpoints")?;
    scene.manifests.delete(&other)?;
    scene.agent.wait_for_removal(&other)?;
    check("another Service went")?;
    let newcomer = scene.node.pod("newcomer", PodKind::Ptp)?;
    scene.apply(&Service::new("web", 10).with(scene.backends.iter().chain([&newcomer])))?;
    check("an endpoint came")?;
    scene.apply(&Service::new("web", 10).with(&scene.backends))?;
    check("another endpoint went")?;
    // A pod that is about to end leaves the Service first; its connections go on until it has.
    for flow in flows.iter_mut().filter(|flow| flow.transport == Transport::Tcp) {
        let others = scene.backends.iter().filter(|pod| pod.name() != flow.server);
        let leaving = scene.backends.iter().filter(|pod| pod.name() == flow.server);
        scene.apply(&Service::new("web", 10).with(others).draining(leaving))?;
        flow.check("its endpoint is about to end")?;
        scene.apply(&Service::new("web", 10).with(&scene.backends))?;
        flow.check("its endpoint came back")?;
    }
    Ok(())
}

#[test]
fn established_connections_survive_changes_tc() -> Result<()> {
    established(SocketLb::Off)
}

#[test]
fn established_connections_survive_changes_socket() -> Result<()> {
    established(SocketLb::All)
}

/// `conntrack.*Timeout` of kube-proxy's settings: what is silent for longer is forgotten.
#[test]
fn established_connections_are_kept_as_long_as_is_set() -> Result<()> {
    for (flags, kept) in [(&["--conntrack-tcp-timeout-established", "4s"][..], false), (&[], true)] {
        let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, flags)? else { return Ok(()) };
        cluster.apply(&Service::new("web", 10).node_port().with([&cluster.here]))?;
        let mut flows = Vec::new();
        for family in Family::ALL {
            let target = Target::new(Transport::Tcp, cluster.node_port(family)).kept();
            let mut conversation = Conversation::start(cluster.outside.place(), &target)?;
            conversation.reply()?;
            flows.push((family, conversation));
        }
        thread::sleep(Duration::from_secs(6));
        for (family, mut conversation) in flows {
            let answer = conversation.ask()?;
            ensure!(answer.is_ok() == kept, "{family:?} {flags:?}: {answer:?}");
        }
    }
    Ok(())
}
