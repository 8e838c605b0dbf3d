//! An agent takes over what an earlier one has left in the kernel, whatever state that is in.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, Settings, SocketLb, bpffs};
use tests::manifests::Family;
use tests::peer::{Conversation, Transport};
use tests::pod::PodKind;
use tests::scene::{Plan, Scene};

fn settings(scene: &Scene, flags: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::new(&scene.manifests, SocketLb::Off);
    settings.further =
        flags.iter().flat_map(|(flag, size)| [(*flag).to_owned(), (*size).to_owned()]).collect();
    settings
}

/// Tables of another size are new tables: what the old ones held is in them, flows too.
#[test]
fn flows_survive_a_change_of_sizes() -> Result<()> {
    let Some(mut scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 2).start()? else { return Ok(()) };
    let mut flows = Vec::new();
    for family in Family::ALL {
        for transport in [Transport::Tcp, Transport::ConnectedUdp] {
            let target = scene.target(transport, family)?.kept();
            let mut conversation = Conversation::start(scene.client.place(), &target)?;
            let server = conversation.reply()?.server;
            flows.push((conversation, server));
        }
    }
    let sizes = ["--max-frontends", "--max-slots", "--max-flows", "--max-sockets"];
    for size in ["1000", "500"] {
        scene.agent.terminate()?;
        scene.agent = Agent::start(&scene.node, settings(&scene, &sizes.map(|flag| (flag, size))))?;
        scene.agent.wait_for(&scene.service)?;
        for (conversation, server) in &mut flows {
            let reply = conversation.reply().with_context(|| format!("with {size} entries"))?;
            ensure!(reply.server == *server, "with {size} entries: moved from {server} to {}", reply.server);
        }
    }
    Ok(())
}

/// A table cannot become smaller than what is in it, and nothing is lost by the attempt.
#[test]
fn too_small_a_size_is_refused() -> Result<()> {
    let Some(mut scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 2).start()? else { return Ok(()) };
    scene.agent.terminate()?;
    let mut agent = Agent::spawn(&scene.node, settings(&scene, &[("--max-frontends", "1")]))?;
    agent.wait_for_log("--max-frontends")?;
    ensure!(agent.log().contains("cannot shrink"), "{}", agent.log());
    ensure!(
        !agent.process().terminate(std::time::Duration::from_secs(5)).is_ok_and(|status| status.success())
    );
    for family in Family::ALL {
        Conversation::start(scene.client.place(), &scene.target(Transport::Tcp, family)?)?.reply()?;
    }
    Ok(())
}

/// An agent that was killed while it made its maps, or that had no memory for one of them, leaves some.
#[test]
fn missing_tables_are_made_anew() -> Result<()> {
    let Some(mut scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 2).start()? else { return Ok(()) };
    for missing in [&["FLOWS"][..], &["FRONTENDS", "COUNTERS"], &["FILTER"], &["SLOTS", "BACKENDS", "NAMES"]]
    {
        scene.agent.terminate()?;
        let maps =
            bpffs(&scene.node, &settings(&scene, &[])).join(format!("v{}/maps", podnet_common::abi::LAYOUT));
        for name in missing {
            fs::remove_file(maps.join(name)).with_context(|| format!("{}", maps.display()))?;
        }
        scene.agent = scene.agent.restart()?;
        scene.agent.wait_for(&scene.service)?;
        for family in Family::ALL {
            let target = scene.target(Transport::Tcp, family)?;
            Conversation::start(scene.client.place(), &target)?
                .reply()
                .with_context(|| format!("without {missing:?}"))?;
        }
    }
    Ok(())
}
