//! The same behaviour on kernels without tcx: programs attached by clsact.

use std::fs;

use anyhow::{Result, ensure};
use aya::programs::ProgramInfo;
use podnet_common::abi;
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::peer::{self, Transport};
use tests::pod::{Pod, PodKind};
use tests::scene::{Plan, Scene};
use tests::wait::{PATIENCE, until};

fn clsact(kind: PodKind) -> Result<()> {
    let Some(scene) = Plan::new(kind, SocketLb::Off, 1).attach("clsact").start()? else { return Ok(()) };
    for family in Family::ALL {
        for transport in Transport::ALL {
            for from in [&scene.client, &scene.backends[0]] {
                let answer = peer::ask(from.place(), &scene.target(transport, family)?)?;
                ensure!(
                    answer.as_ref().is_ok_and(|reply| reply.server == "backend-0"),
                    "{transport:?} {family:?} from {}: {answer:?}",
                    from.name()
                );
            }
        }
        peer::transfer(scene.client.place(), scene.frontend(family)?, 8 << 20)?;
    }
    scene.apply(&Service::new("web", 10))?;
    for family in Family::ALL {
        for transport in [Transport::Tcp, Transport::ConnectedUdp] {
            let answer = peer::ask(scene.client.place(), &scene.target(transport, family)?)?;
            ensure!(
                answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused"),
                "{transport:?} {family:?}: {answer:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn clusterip_hairpin_and_refusal_clsact_ptp() -> Result<()> {
    clsact(PodKind::Ptp)
}

#[test]
fn clusterip_hairpin_and_refusal_clsact_bridge() -> Result<()> {
    clsact(PodKind::Bridge)
}

/// How many filters there are at both directions of a pod's interface.
fn filters(scene: &Scene, pod: &Pod) -> Result<[usize; 2]> {
    let netns = &scene.node.place().netns;
    let count = |direction| {
        let listed = netns.tc(&format!("filter show dev {} {direction}", pod.interface()))?;
        anyhow::Ok(listed.lines().filter(|line| line.contains("handle")).count())
    };
    Ok([count("egress")?, count("ingress")?])
}

fn has_qdisc(scene: &Scene, pod: &Pod) -> Result<bool> {
    let listed = scene.node.place().netns.tc(&format!("qdisc show dev {}", pod.interface()))?;
    Ok(listed.contains("clsact"))
}

/// The pins that tell of programs at `pod`'s interface.
fn pins(scene: &Scene, pod: &Pod) -> Result<usize> {
    let index = scene.node.place().netns.run(|| Ok(nix::net::if_::if_nametoindex(pod.interface())?))?;
    let links = scene.node.bpffs().join(format!("v{}/links", abi::LAYOUT));
    let names = fs::read_dir(links)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names.iter().filter(|name| name.split('-').nth(1) == Some(&index.to_string())).count())
}

/// Where only one of the two programs can be attached neither is, nor is anything else left; and somebody else's
/// qdisc outlives podnet.
#[test]
fn half_of_the_programs_is_none() -> Result<()> {
    let plan = Plan::new(PodKind::Ptp, SocketLb::Off, 1).attach("clsact");
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    let netns = scene.node.place().netns.clone();
    // Its interface has podnet's place taken in one direction: by what is for IPv4 only.
    let pod = scene.node.pod("taken", PodKind::Ptp)?;
    until("podnet to be at the new interface", PATIENCE, || {
        ensure!(filters(&scene, &pod)? == [1, 1]);
        Ok(())
    })?;
    scene.agent.terminate()?;
    pod.replug()?;
    let interface = pod.interface();
    netns.tc(&format!("qdisc add dev {interface} clsact"))?;
    netns
        .tc(&format!("filter add dev {interface} ingress protocol ip prio 10 bpf bytecode \"1,6 0 0 0,\""))?;
    scene.agent = scene.agent.restart()?;
    scene.agent.wait_for_log("an interface is not served")?;
    until("nothing of podnet to be left", PATIENCE, || {
        let left = (filters(&scene, &pod)?, pins(&scene, &pod)?);
        ensure!(left == ([0, 1], 0), "{left:?}");
        Ok(())
    })?;
    netns.tc(&format!("filter delete dev {interface} ingress prio 10"))?;
    until("podnet to be at the interface", PATIENCE, || {
        let found = (filters(&scene, &pod)?, pins(&scene, &pod)?);
        ensure!(found == ([1, 1], 2), "{found:?}");
        Ok(())
    })?;
    scene.agent.terminate()?;
    ensure!(scene.agent.podnet(&["cleanup"])?.status.success());
    ensure!(filters(&scene, &pod)? == [0, 0] && has_qdisc(&scene, &pod)?, "the qdisc is somebody else's");
    ensure!(!has_qdisc(&scene, &scene.client)?, "the qdisc is podnet's own");
    Ok(())
}

/// The next layout version takes the filters over, and the qdisc with them, before it removes what the one
/// before it has left.
#[test]
fn filters_survive_a_change_of_layout() -> Result<()> {
    let plan = Plan::new(PodKind::Ptp, SocketLb::Off, 1).attach("clsact");
    let Some(mut scene) = plan.start()? else { return Ok(()) };
    scene.agent.terminate()?;
    let bpffs = scene.node.bpffs().to_owned();
    fs::rename(bpffs.join(format!("v{}", abi::LAYOUT)), bpffs.join("v0"))?;
    scene.agent = scene.agent.restart()?;
    ensure!(!bpffs.join("v0").exists(), "the earlier layout is still there");
    let links = bpffs.join(format!("v{}/links", abi::LAYOUT));
    let inherited: Vec<_> = fs::read_dir(&links)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qdisc-")))
        .collect();
    ensure!(inherited.len() >= 2, "{inherited:?}");
    for mark in inherited {
        let maps = ProgramInfo::from_pin(&mark)?.map_ids()?.unwrap_or_default();
        ensure!(maps.is_empty(), "{} holds maps of the earlier layout: {maps:?}", mark.display());
    }
    for pod in [&scene.client, &scene.backends[0]] {
        ensure!(filters(&scene, pod)? == [1, 1], "at {}", pod.interface());
    }
    let answer = peer::ask(scene.client.place(), &scene.target(Transport::Tcp, Family::V4)?)?;
    ensure!(answer.is_ok(), "{answer:?}");
    scene.agent.terminate()?;
    ensure!(scene.agent.podnet(&["cleanup"])?.status.success());
    ensure!(!has_qdisc(&scene, &scene.client)?, "the qdisc is podnet's own");
    Ok(())
}
