//! Frames of a VLAN: semantics §6.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::{PacketBuilder, VlanId};
use podnet::kernel::View;
use podnet_common::verdict::{Layer, Reason};
use tests::agent::SocketLb;
use tests::manifests::{Family, Service};
use tests::pod::PodKind;
use tests::raw;
use tests::scene::Cluster;
use tests::wait::{PATIENCE, until};

/// A datagram of the VLAN `vlan`, in its frame.
fn tagged(macs: [[u8; 6]; 2], vlan: u16, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let frame = PacketBuilder::ethernet2(macs[0], macs[1]).single_vlan(VlanId::try_new(vlan).unwrap());
    let frame = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => frame.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => frame.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("a datagram has one family"),
    };
    let mut bytes = Vec::new();
    frame.udp(from.port(), to.port()).write(&mut bytes, b"hello").unwrap();
    bytes
}

/// A VLAN is an interface of its own, and its frames come by there without their tag. The uplink, which sees them with
/// it, would send them on with it: it leaves them alone. The number 0 is no VLAN.
#[test]
fn frames_of_a_vlan_are_left_to_its_interface() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    let (node, outside) = (&cluster.nodes[0], cluster.outside.place());
    let macs = [raw::ethernet_address(outside, "eth0")?, raw::ethernet_address(node.place(), "eth0")?];
    let count = |reason: Reason| -> Result<u64> {
        let counters = View::open(node.bpffs())?.counters()?;
        counters
            .into_iter()
            .find_map(|of| (of.layer == Layer::Stack && of.reason == reason).then_some(of.count))
            .context("no such counter")
    };
    for server in [&cluster.here, &cluster.there] {
        cluster.apply(&Service::new("web", 10).node_port().with([server]))?;
        for family in Family::ALL {
            let case = format!("{family:?} {}", server.name());
            let address = SocketAddr::new(cluster.outside_address(family), 0);
            let socket = outside.netns.run(|| Ok(UdpSocket::bind(address)?))?;
            let from = socket.local_addr()?;
            let mut received = [0; 100];
            let before = [count(Reason::Tagged)?, count(Reason::NewFlow)?];
            raw::send_frames(outside, "eth0", &[tagged(macs, 100, from, cluster.node_port(family))])?;
            until("the frame to be seen", PATIENCE, || {
                ensure!(count(Reason::Tagged)? == before[0] + 1, "{case}: not counted");
                Ok(())
            })?;
            ensure!(count(Reason::NewFlow)? == before[1], "{case}: translated");
            socket.set_nonblocking(true)?;
            let answer = socket.recv_from(&mut received);
            ensure!(answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{case}: {answer:?}");
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            raw::send_frames(outside, "eth0", &[tagged(macs, 0, from, cluster.node_port(family))])?;
            let (length, peer) = socket.recv_from(&mut received).with_context(|| case.clone())?;
            let who = String::from_utf8_lossy(&received[..length]);
            ensure!(peer == cluster.node_port(family) && who.contains(server.name()), "{case}: {peer} {who}");
        }
    }
    Ok(())
}
