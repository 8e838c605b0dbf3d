//! SCTP through Services, with the kernel's programs at real interfaces: semantics §2.
//!
//! The kernel may have no SCTP of its own, so that both ends are made up here.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use crc::{CRC_32_ISCSI, Crc};
use nix::errno::Errno;
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, SERVICE_PORT, Service};
use tests::peer::PORT;
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::raw::Sctp;
use tests::scene::{Cluster, Plan, address_of, node_address};

const HEADER: usize = 12;
const CLIENT_PORT: u16 = 5000;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

fn crc(packet: &[u8]) -> [u8; 4] {
    let mut packet = packet.to_vec();
    packet[8..HEADER].fill(0);
    Crc::<u32>::new(&CRC_32_ISCSI).checksum(&packet).to_le_bytes()
}

/// A packet with one chunk, whose value is `length` bytes.
fn packet(ports: [u16; 2], tag: u32, chunk: u8, length: u16) -> Vec<u8> {
    let mut packet = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 3]);
    packet.extend((length + 4).to_be_bytes());
    packet.extend(
        (0..length.next_multiple_of(4)).map(|i| if i < length { i.to_le_bytes()[0] ^ chunk } else { 0 }),
    );
    let crc = crc(&packet);
    packet[8..HEADER].copy_from_slice(&crc);
    packet
}

/// The ports of a packet that is right, and otherwise is what was `sent`.
fn ports(received: &[u8], sent: &[u8]) -> Result<[u16; 2]> {
    ensure!(received.len() == sent.len(), "{} bytes of {}", received.len(), sent.len());
    ensure!(received[4..8] == sent[4..8] && received[HEADER..] == sent[HEADER..], "the content has changed");
    ensure!(received[8..HEADER] == crc(received), "the checksum is wrong");
    Ok([0, 2].map(|at| u16::from_be_bytes([received[at], received[at + 1]])))
}

/// An association of a client in `from` with `server`, by the Service's address and port: its packets arrive
/// both ways as they were sent but for addresses and ports. The server sees `seen`.
fn associate(from: &Place, at: SocketAddr, server: &Pod, seen: IpAddr) -> Result<()> {
    let family = Family::of(at.ip());
    let here = Sctp::open(from, family, Some(at.ip()))?;
    let there = Sctp::open(server.place(), family, None)?;
    let steps = [
        ((0, INIT, 16), (0x0c11, INIT_ACK, 200)),
        ((0x5e4e, COOKIE_ECHO, 180), (0x0c11, COOKIE_ACK, 0)),
        // Not all lengths are multiples of four; the checksum is over the padding too.
        ((0x5e4e, DATA, 13), (0x0c11, DATA, 17)),
        ((0x5e4e, DATA, 1200), (0x0c11, DATA, 1400)),
    ];
    for ((tag, chunk, length), (answer_tag, answer_chunk, answer_length)) in steps {
        let case = format!("chunk {chunk} to {at} from {}", from.netns.name());
        let request = packet([CLIENT_PORT, at.port()], tag, chunk, length);
        here.send(&request, at.ip())?;
        let (received, client) = there.receive().with_context(|| format!("{case}: it does not arrive"))?;
        let [client_port, server_port] = ports(&received, &request).with_context(|| case.clone())?;
        ensure!(client == seen && server_port == PORT, "{case}: {client} to port {server_port}");

        let answer = packet([PORT, client_port], answer_tag, answer_chunk, answer_length);
        there.send(&answer, client)?;
        let (received, peer) = here.receive().with_context(|| format!("{case}: no answer arrives"))?;
        let answered = ports(&received, &answer).with_context(|| format!("the answer to {case}"))?;
        ensure!(peer == at.ip() && answered == [at.port(), CLIENT_PORT], "{case}: {peer}, {answered:?}");
    }
    Ok(())
}

fn service() -> Service {
    Service::new("web", 10).only_protocol("SCTP").node_port()
}

fn of_a_pod(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = service().with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let at = SocketAddr::new(service.address(family)?, SERVICE_PORT);
            associate(cluster.client.place(), at, server, address_of(&cluster.client, family))?;
        }
    }
    Ok(())
}

#[test]
fn associations_of_a_pod_ptp() -> Result<()> {
    of_a_pod(PodKind::Ptp)
}

#[test]
fn associations_of_a_pod_bridge() -> Result<()> {
    of_a_pod(PodKind::Bridge)
}

/// With a backend on the node, which sees the client; and with one elsewhere, which sees the node.
#[test]
fn associations_from_outside() -> Result<()> {
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &[])? else { return Ok(()) };
    let outside = cluster.outside.place();
    for family in Family::ALL {
        let at = cluster.node_port(family);
        cluster.apply(&service().with([&cluster.here]))?;
        associate(outside, at, &cluster.here, cluster.outside_address(family)).context("a backend here")?;
        cluster.apply(&service().with([&cluster.there]))?;
        let node = node_address(&cluster.nodes[0], family);
        associate(outside, at, &cluster.there, node).context("a backend elsewhere")?;
    }
    Ok(())
}

#[test]
fn nobody_serves() -> Result<()> {
    let Some(scene) = Plan::new(PodKind::Ptp, SocketLb::Off, 0).start()? else { return Ok(()) };
    let service = Service::new("sctp", 20).only_protocol("SCTP");
    scene.apply(&service)?;
    for family in Family::ALL {
        let at = service_port(service.address(family)?);
        let client = Sctp::open(scene.client.place(), family, Some(at.ip()))?;
        client.send(&packet([CLIENT_PORT, at.port()], 0, INIT, 16), at.ip())?;
        let error = client.receive().expect_err("nobody is there");
        ensure!(error.downcast_ref() == Some(&Errno::ECONNREFUSED), "{family:?}: {error:#}");
    }
    Ok(())
}
