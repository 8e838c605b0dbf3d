//! `--short-cuts`: established flows between pods of a node go past its stack, and come to the same end.

use std::fs;

use anyhow::{Result, ensure};
use tests::agent::service_port;
use tests::agent::{Agent, Settings, SocketLb};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, Service};
use tests::peer::{Conversation, Load, Server, Target, Transport, transfer};
use tests::pod::PodKind;

/// Enough to fill windows and be cut into segments.
const BYTES: u64 = 16 << 20;

/// The setting that `--short-cuts` changes is the node's own again after cleanup, whatever it was; agents that
/// start again, without the flag too, do not make a difference.
#[test]
fn cleanup_restores_what_short_cuts_have_set() -> Result<()> {
    const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let plain = Settings::new(&manifests, SocketLb::Off);
    let mut short = plain.clone();
    short.further = vec!["--short-cuts".to_owned()];
    let netns = &node.place().netns;
    let liberal = || netns.run(|| Ok(fs::read_to_string(LIBERAL)?.trim().to_owned()));
    for former in ["0", "1"] {
        netns.sysctl(&[&format!("net/netfilter/nf_conntrack_tcp_be_liberal={former}")])?;
        for settings in [&short, &short, &plain] {
            let mut agent = Agent::start(&node, settings.clone())?;
            ensure!(liberal()? == "1");
            agent.terminate()?;
        }
        let mut agent = Agent::start(&node, short.clone())?;
        agent.terminate()?;
        let output = agent.podnet(&["cleanup"])?;
        ensure!(output.status.success(), "{output:?}");
        ensure!(liberal()? == former);
    }
    Ok(())
}

fn short_cuts(kind: PodKind) -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let (client, backend) = (node.pod("client", kind)?, node.pod("backend", kind)?);
    let _server = Server::start(backend.place(), backend.name())?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let service = Service::new("web", 10).with([&backend]);
    manifests.apply(&service)?;
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    settings.further = vec!["--short-cuts".to_owned()];
    let agent = Agent::start(&node, settings)?;
    agent.wait_for(&service)?;

    for family in Family::ALL {
        let frontend = service_port(service.address(family)?);
        transfer(client.place(), frontend, BYTES)?;
        for transport in Transport::ALL {
            let target = Target::new(transport, frontend);
            let mut kept = Conversation::start(client.place(), &target.kept())?;
            for _ in 0..10 {
                ensure!(kept.reply()?.server == backend.name());
            }
            let load = Load::start(client.place(), &target)?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            let summary = load.stop()?;
            ensure!(summary.failed == 0 && summary.ok > 0, "{summary:?}");
        }
    }
    Ok(())
}

#[test]
fn short_cuts_between_pods_with_links_of_their_own() -> Result<()> {
    short_cuts(PodKind::Ptp)
}

#[test]
fn short_cuts_between_pods_on_a_bridge() -> Result<()> {
    short_cuts(PodKind::Bridge)
}
