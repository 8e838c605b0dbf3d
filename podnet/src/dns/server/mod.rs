//! The node's DNS server: UDP and TCP in front of the index, and of other servers for names outside.

pub(crate) mod message;
mod respond;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tracing::info;

pub(crate) use respond::Responder;

use crate::admin::bind;
use crate::error::Error;

/// The flag that says where to listen.
const FLAG: &str = "--dns-listen";

/// The sockets of a server, which are its already.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<(UdpSocket, TcpListener)>);

impl Sockets {
    /// Takes the addresses.
    ///
    /// # Errors
    /// [`Error::DnsListen`] if one is taken or not this machine's.
    pub(crate) fn open(addresses: &[SocketAddr]) -> Result<Self, Error> {
        let open = |address: &SocketAddr| {
            let both = || -> io::Result<_> {
                let udp = std::net::UdpSocket::bind(address)?;
                udp.set_nonblocking(true)?;
                Ok((UdpSocket::from_std(udp)?, bind(*address, true)?))
            };
            both().map_err(|source| Error::DnsListen { address: *address, flag: FLAG, source })
        };
        addresses.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Answers questions for as long as the agent runs.
    pub(crate) fn serve(self, responder: &Arc<Responder>) {
        for (udp, tcp) in self.0 {
            if let Ok(address) = udp.local_addr() {
                info!(%address, "names are served");
            }
            tokio::spawn(udp::serve(Arc::new(udp), responder.clone()));
            tokio::spawn(tcp::serve(tcp, responder.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
