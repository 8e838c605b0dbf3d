//! The lab itself: what later tests take for granted, without podnet.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::Lab;
use tests::peer::{self, Load, Server, Target, Transport};
use tests::pod::{Outside, PodKind};
use tests::require;

/// Pods of every kind reach each other, on one node and across two, and an outside client reaches them.
#[test]
fn pods_reach_each_other() -> Result<()> {
    let Some(()) = require::root() else { return Ok(()) };
    let lab = Lab::without_podnet()?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let client = a.pod("client", PodKind::Ptp)?;
    let neighbour = a.pod("neighbour", PodKind::Bridge)?;
    let outside = Outside::create(&lab, "outside", 100, Some(&a))?;
    let pods = [
        a.pod("ptp", PodKind::Ptp)?,
        a.pod("bridge", PodKind::Bridge)?,
        b.pod("ptp", PodKind::Ptp)?,
        b.pod("bridge", PodKind::Bridge)?,
    ];
    for pod in &pods {
        let _server = Server::start(pod.place(), pod.name())?;
        for address in pod.addresses() {
            for transport in Transport::ALL {
                let target = Target::at(transport, address);
                for from in [client.place(), neighbour.place(), outside.place(), a.place()] {
                    let answer = peer::ask(from, &target)?;
                    ensure!(
                        answer.as_ref().is_ok_and(|reply| reply.server == pod.name()
                            && reply.client == reply.local.ip_as_seen(&reply.client)),
                        "{} of {}, {transport:?} {address} from {}: {answer:?}",
                        pod.name(),
                        pod.node().name(),
                        from.netns.name()
                    );
                }
            }
            peer::transfer(client.place(), (address, peer::PORT).into(), 1 << 20)?;
        }
    }
    Ok(())
}

/// An unconnected socket does not know its own address, only its port.
trait AsSeen {
    fn ip_as_seen(&self, seen: &std::net::SocketAddr) -> std::net::SocketAddr;
}

impl AsSeen for std::net::SocketAddr {
    fn ip_as_seen(&self, seen: &std::net::SocketAddr) -> std::net::SocketAddr {
        if self.ip().is_unspecified() { (seen.ip(), self.port()).into() } else { *self }
    }
}

/// Clients tell a refused request from one that nobody answers, and load counts both.
#[test]
fn clients_see_failures_as_they_are() -> Result<()> {
    let Some(()) = require::root() else { return Ok(()) };
    let lab = Lab::without_podnet()?;
    let node = lab.node("a")?;
    let (client, server) = (node.pod("client", PodKind::Ptp)?, node.pod("server", PodKind::Ptp)?);
    for address in server.addresses() {
        for transport in [Transport::Tcp, Transport::ConnectedUdp] {
            let refused = peer::ask(client.place(), &Target::at(transport, address))?;
            ensure!(
                refused.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused"),
                "{transport:?} {address}: {refused:?}"
            );
        }
    }
    let running = Server::start(server.place(), "server")?;
    let mut load = Load::start(client.place(), &Target::at(Transport::Tcp, server.v4()))?;
    while load.so_far()?.ok < 20 {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(running);
    while load.so_far()?.failed < 3 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let summary = load.stop()?;
    ensure!(summary.servers["server"] == summary.ok, "{summary:?}");
    ensure!(summary.failures.contains_key("ConnectionRefused"), "{summary:?}");
    Ok(())
}
