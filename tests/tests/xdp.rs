//! Clients outside are served at the network card: semantics §2, rows NodePort, LoadBalancer and externalIPs, and §5,
//! row external traffic.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podnet::kernel::View;
use podnet_common::verdict::{Layer, Reason};
use tests::agent::{Agent, Settings, SocketLb};
use tests::cards::{Cards, Idle};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests};
use tests::node::Node;
use tests::north_south::{frontends, is_served, service};
use tests::peer::transfer;
use tests::pod::PodKind;
use tests::scene::{Cluster, node_address};
use tests::wait::{PATIENCE, until};

/// Enough for many segments of every size, and little enough to be quick.
const BYTES: u64 = 32 << 20;

/// How often `reason` was given at the network cards of `node`.
fn at_card(node: &Node, reason: Reason) -> Result<u64> {
    View::open(node.bpffs())?
        .counters()?
        .into_iter()
        .find_map(|of| (of.layer == Layer::Xdp && of.reason == reason).then_some(of.count))
        .context("no such counter")
}

/// What an agent's node shows.
fn status(agent: &Agent) -> String {
    agent.podnet(&["status"]).map_or_else(
        |error| error.to_string(),
        |status| String::from_utf8_lossy(&status.stdout).into_owned() + &agent.last_words(),
    )
}

/// Backends on the node see the client, others the node; what comes in is met at the card.
fn from_outside(kind: PodKind, cards: Cards) -> Result<()> {
    let Some(cluster) = Cluster::start_with(kind, SocketLb::Off, &[], cards)? else { return Ok(()) };
    let first = &cluster.nodes[0];
    for (server, here) in [(&cluster.here, true), (&cluster.there, false)] {
        cluster.apply(&service().with([server]))?;
        for family in Family::ALL {
            let seen = if here { cluster.outside_address(family) } else { node_address(first, family) };
            let before =
                [Reason::NewFlow, Reason::Established, Reason::Reply].map(|reason| at_card(first, reason));
            for at in frontends(&cluster, family) {
                is_served(cluster.outside.place(), at, server, Some(seen))
                    .with_context(|| status(&cluster.agents[0]))?;
            }
            transfer(cluster.outside.place(), cluster.node_port(family), BYTES)?;
            let [opened, requests, replies] = before;
            ensure!(at_card(first, Reason::NewFlow)? > opened?, "{family:?} {}: no flow", server.name());
            let met = at_card(first, Reason::Established)? - requests?;
            ensure!(met > 1000, "{family:?} {}: {met} packets at the card", server.name());
            let met = at_card(first, Reason::Reply)? - replies?;
            ensure!((met > 1000) != here, "{family:?} {}: {met} answers at the card", server.name());
        }
    }
    Ok(())
}

#[test]
fn clients_outside_are_served_at_the_card_generic_ptp() -> Result<()> {
    from_outside(PodKind::Ptp, Cards::Generic)
}

#[test]
fn clients_outside_are_served_at_the_card_generic_bridge() -> Result<()> {
    from_outside(PodKind::Bridge, Cards::Generic)
}

#[test]
fn clients_outside_are_served_at_the_card_native_ptp() -> Result<()> {
    from_outside(PodKind::Ptp, Cards::Native)
}

#[test]
fn clients_outside_are_served_at_the_card_native_bridge() -> Result<()> {
    from_outside(PodKind::Bridge, Cards::Native)
}

/// Somebody else's program stays, and is named; podnet serves behind it.
#[test]
fn another_program_at_the_card_stays() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let mut idle = Idle::load(&lab)?;
    node.place().netns.run(|| idle.attach(&["eth0".to_owned()]))?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    settings.further = ["--xdp", "native", "--xdp-interfaces", "eth*"].map(str::to_owned).to_vec();
    let agent = Agent::start(&node, settings)?;
    ensure!(agent.log().contains("another XDP program, from_net_xdp, is there"), "{}", agent.log());
    let status = status(&agent);
    ensure!(status.contains("tcx ingress") && !status.contains("xdp native"), "{status}");
    Ok(())
}

/// What `ip` tells of the card of `node`: `xdp` if the program is in the driver, `xdpgeneric` if it is behind it.
fn mode_of_card(node: &Node) -> Result<Option<String>> {
    let shown = node.place().command("ip")?.args(["link", "show", "eth0"]).output()?;
    ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    Ok(shown.split_whitespace().find(|word| word.starts_with("xdp")).map(str::to_owned))
}

/// An agent takes over from another one, whatever the mode; without `--xdp` nothing stays at the card, and nothing
/// after the clean-up.
#[test]
fn the_card_is_taken_over() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    for modes in [["native", "native"], ["generic", "generic"], ["native", "generic"], ["generic", "off"]] {
        for mode in modes {
            settings.further = ["--xdp", mode, "--xdp-interfaces", "eth*"].map(str::to_owned).to_vec();
            let mut agent = Agent::start(&node, settings.clone())?;
            let status = status(&agent);
            for other in ["native", "generic"] {
                let there = status.contains(&format!("xdp {other}"));
                ensure!(there == (other == mode), "{modes:?}: {mode}:\n{status}");
            }
            let known = [("native", "xdp"), ("generic", "xdpgeneric")];
            let expected = known.into_iter().find_map(|(name, word)| (name == mode).then(|| word.to_owned()));
            ensure!(mode_of_card(&node)? == expected, "{modes:?}: {mode}: {:?}", mode_of_card(&node)?);
            agent.process().kill()?;
            if mode == "generic" {
                ensure!(agent.podnet(&["cleanup"])?.status.success());
                ensure!(mode_of_card(&node)?.is_none(), "something stays after the clean-up");
            }
        }
    }
    Ok(())
}

/// Network cards are the interfaces that a default route leaves by, from then on, unless others are named; another name
/// makes no difference then, and one where names tell.
#[test]
fn cards_are_where_a_default_route_leaves() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    settings.further = ["--xdp", "native"].map(str::to_owned).to_vec();
    let ip = |arguments: &str| -> Result<()> {
        let ran = node.place().command("ip")?.args(arguments.split(' ')).output()?;
        ensure!(ran.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(())
    };
    let is_met = |met: bool, case: &str| {
        until(case, PATIENCE, || {
            let mode = mode_of_card(&node)?;
            ensure!(mode.is_some() == met, "{mode:?}");
            Ok(())
        })
    };
    for family in ["-4", "-6"] {
        ip(&format!("{family} route del default"))?;
    }
    for (family, via) in [("-4", "172.18.0.99"), ("-6", "fd00:172:18::63")] {
        let agent = Agent::start(&node, settings.clone())?;
        is_met(false, "without a default route, whatever was before")?;
        ip(&format!("{family} route add default via {via} dev eth0"))?;
        is_met(true, "with a default route")?;
        ip(&format!("{family} route del default"))?;
        // To take a program away may reset a card.
        sleep(Duration::from_millis(500));
        is_met(true, "once it is gone")?;
        drop(agent);
    }
    settings.further = ["--xdp", "native", "--xdp-interfaces", "uplink*"].map(str::to_owned).to_vec();
    let _agent = Agent::start(&node, settings)?;
    ensure!(mode_of_card(&node)?.is_none(), "by another name");
    ip("link set eth0 name uplink0")?;
    let met = || {
        let shown = node.place().command("ip")?.args(["link", "show", "uplink0"]).output()?;
        ensure!(String::from_utf8_lossy(&shown.stdout).contains("xdp"), "by that name");
        Ok(())
    };
    until("by that name", PATIENCE, met)
}
