//! Packets that a test makes itself, sent and received by raw sockets.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::manifests::Family;
use crate::process::Place;

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(5);

fn family_of(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Sends packets from `place` as they are, each from its IP header on.
///
/// # Errors
/// If the kernel does not take one.
pub fn send(place: &Place, packets: &[Vec<u8>], to: IpAddr) -> Result<()> {
    place.netns.run(|| {
        let family = family_of(Family::of(to));
        let socket = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        for packet in packets {
            let sent = sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
            ensure!(sent == packet.len(), "{sent} bytes of {}", packet.len());
        }
        Ok(())
    })
}

/// Sends frames from the interface `name` of `place` as they are, each from its Ethernet header on.
///
/// # Errors
/// If there is no such interface, or the kernel does not take one.
pub fn send_frames(place: &Place, name: &str, frames: &[Vec<u8>]) -> Result<()> {
    place.netns.run(|| {
        let by = link_address(name)?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
        for frame in frames {
            let sent = sendto(socket.as_raw_fd(), frame, &by, MsgFlags::empty())?;
            ensure!(sent == frame.len(), "{sent} bytes of {}", frame.len());
        }
        Ok(())
    })
}

/// The Ethernet address of the interface `name` of `place`.
///
/// # Errors
/// If there is none.
pub fn ethernet_address(place: &Place, name: &str) -> Result<[u8; 6]> {
    place.netns.run(|| link_address(name)?.addr().with_context(|| format!("{name} has no Ethernet address")))
}

/// The interface `name` of this thread's namespace, as sockets address it.
fn link_address(name: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("there is no {name}"))
}

/// An end of SCTP associations that knows nothing of SCTP.
pub struct Sctp {
    socket: OwnedFd,
    family: Family,
}

impl Sctp {
    /// Opens an end in `place`, which receives all SCTP packets that come there; or only those of `peer`, and
    /// then also what ICMP has to say about its own.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(place: &Place, family: Family, peer: Option<IpAddr>) -> Result<Self> {
        place.netns.run(|| {
            let socket = socket(family_of(family), SockType::Raw, SockFlag::empty(), SockProtocol::Sctp)?;
            let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
            if let Some(peer) = peer {
                connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(peer, 0)))?;
            }
            Ok(Self { socket, family })
        })
    }

    /// Sends a packet, from its SCTP header on.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let sent = sendto(self.socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        ensure!(sent == packet.len(), "{sent} bytes of {}", packet.len());
        Ok(())
    }

    /// The next packet, from its SCTP header on, and whom it is from.
    ///
    /// # Errors
    /// If none comes, or an ICMP error.
    pub fn receive(&self) -> Result<(Vec<u8>, IpAddr)> {
        let mut packet = vec![0; 1 << 16];
        let (length, from) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut packet)?;
        packet.truncate(length);
        let from = from.context("a packet from nobody")?;
        let v4 = from.as_sockaddr_in().map(|from| from.ip().into());
        let from = v4.or_else(|| Some(from.as_sockaddr_in6()?.ip().into())).context("a strange address")?;
        if self.family == Family::V4 {
            let header = usize::from(packet.first().context("an empty packet")? & 0x0f) * 4;
            ensure!(length >= header, "a packet of {length} bytes");
            packet.drain(..header);
        }
        Ok((packet, from))
    }
}
