//! IPv4 options and IPv6 extension headers do not hide the port: semantics §6.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder,
};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::raw;
use tests::scene::{Cluster, address_of};

/// Routers note their addresses in it; there is room for two.
const RECORD_ROUTE: [u8; 12] = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
/// For experiments (RFC 4727); who does not know it skips it.
const EXPERIMENT: [u8; 14] = [0x1e, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A datagram with options in its IP headers.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            header.options = RECORD_ROUTE.into();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                source: from.octets(),
                destination: to.octets(),
                hop_limit: 64,
                ..Ipv6Header::default()
            };
            let options = |bytes: &[u8]| Some(Ipv6RawExtHeader::new_raw(IpNumber::UDP, bytes).unwrap());
            let extensions = Ipv6Extensions {
                hop_by_hop_options: options(&PADDING),
                destination_options: options(&EXPERIMENT),
                ..Ipv6Extensions::default()
            };
            IpHeaders::Ipv6(header, extensions)
        }
        _ => unreachable!("a datagram has one family"),
    };
    let mut packet = Vec::new();
    PacketBuilder::ip(ip).udp(from.port(), to.port()).write(&mut packet, payload).unwrap();
    packet
}

/// The server gets the datagram, and the client its answer.
fn is_served(place: &Place, client: IpAddr, at: SocketAddr, server: &Pod) -> Result<()> {
    let case = format!("{at} from {}", place.netns.name());
    let socket = place.netns.run(|| Ok(UdpSocket::bind(SocketAddr::new(client, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let from = socket.local_addr()?;
    for payload in [&b"first"[..], &[7; 1000]] {
        raw::send(place, &[datagram(from, at, payload)], at.ip())?;
        let mut received = [0; 2000];
        let (length, peer) = socket.recv_from(&mut received).with_context(|| case.clone())?;
        let (who, echo) = received[..length].split_at(length - payload.len());
        let who = String::from_utf8_lossy(who);
        ensure!(peer == at && echo == payload && who.contains(server.name()), "{case}: {peer} {who}");
    }
    Ok(())
}

fn options_do_not_hide_the_port(kind: PodKind) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, &[])? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).node_port().with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let (client, cluster_ip) = (&cluster.client, service_port(service.address(family)?));
            is_served(client.place(), address_of(client, family), cluster_ip, server)?;
            let outside = cluster.outside_address(family);
            is_served(cluster.outside.place(), outside, cluster.node_port(family), server)?;
        }
    }
    Ok(())
}

#[test]
fn options_do_not_hide_the_port_ptp() -> Result<()> {
    options_do_not_hide_the_port(PodKind::Ptp)
}

#[test]
fn options_do_not_hide_the_port_bridge() -> Result<()> {
    options_do_not_hide_the_port(PodKind::Bridge)
}
