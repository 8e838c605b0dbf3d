//! IP fragments of a translated flow reach the backend, and those of its answers the client, first fragment first or
//! not: semantics §6.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder};
use tests::agent::{Agent, Settings, SocketLb, service_port};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, Service};
use tests::pod::{Pod, PodKind};
use tests::raw;
use tests::scene::address_of;

const PORT: u16 = 9999;
const UNIT: usize = 8;

/// A datagram of `payload` in packets of two fragments, each from its IP header on.
fn fragments(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("a datagram has one family"),
    };
    builder.udp(from.port(), to.port()).write(&mut whole, payload).unwrap();
    let header = if from.is_ipv4() { Ipv4Header::MIN_LEN } else { Ipv6Header::LEN };
    let datagram = whole.split_off(header);
    let half = datagram.len() / 2 / UNIT * UNIT;
    [(0, &datagram[..half], true), (half, &datagram[half..], false)]
        .map(|(start, part, more)| {
            let offset = IpFragOffset::try_new(u16::try_from(start / UNIT).unwrap()).unwrap();
            let mut packet = Vec::new();
            if from.is_ipv4() {
                let mut header = Ipv4Header::from_slice(&whole).unwrap().0;
                header.set_payload_len(part.len()).unwrap();
                header.identification = 77;
                header.dont_fragment = false;
                header.more_fragments = more;
                header.fragment_offset = offset;
                header.write(&mut packet).unwrap();
            } else {
                let mut header = Ipv6Header::from_slice(&whole).unwrap().0;
                header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                header.set_payload_length(part.len() + Ipv6FragmentHeader::LEN).unwrap();
                header.write(&mut packet).unwrap();
                Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 77).write(&mut packet).unwrap();
            }
            packet.extend_from_slice(part);
            packet
        })
        .to_vec()
}

fn bind(pod: &Pod, at: SocketAddr) -> Result<UdpSocket> {
    let socket = pod.place().netns.run(|| Ok(UdpSocket::bind(at)?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn fragments_arrive(kind: PodKind) -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let (client, backend) = (node.pod("client", kind)?, node.pod("backend", kind)?);
    let manifests = Manifests::new(lab.folder("manifests")?);
    let service = Service::new("web", 10).with([&backend]).target_port(PORT);
    manifests.apply(&service)?;
    let agent = Agent::start(&node, Settings::new(&manifests, SocketLb::Off))?;
    agent.wait_for(&service)?;

    let payload: Vec<u8> = (0..1200_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    for family in Family::ALL {
        let at = SocketAddr::new(address_of(&backend, family), PORT);
        let server = bind(&backend, at)?;
        for (port, backwards) in [(40_000, false), (40_001, true)] {
            let from = SocketAddr::new(address_of(&client, family), port);
            let to = service_port(service.address(family)?);
            let socket = bind(&client, from)?;
            for (sender, sent, receiver, seen) in
                [(&client, (from, to), &server, from), (&backend, (at, from), &socket, to)]
            {
                let case = || format!("{sent:?}, the first fragment comes last: {backwards}");
                let mut packets = fragments(sent.0, sent.1, &payload);
                if backwards {
                    packets.reverse();
                }
                raw::send(sender.place(), &packets, sent.1.ip())?;
                let mut received = [0; 2000];
                let (length, source) = receiver.recv_from(&mut received).with_context(case)?;
                ensure!(received[..length] == payload[..] && source == seen, "{}: {source}", case());
            }
        }
    }
    Ok(())
}

#[test]
fn fragments_in_any_order_reach_a_pod_with_a_link_of_its_own() -> Result<()> {
    fragments_arrive(PodKind::Ptp)
}

#[test]
fn fragments_in_any_order_reach_a_pod_on_a_bridge() -> Result<()> {
    fragments_arrive(PodKind::Bridge)
}
