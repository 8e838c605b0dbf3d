//! What makes a command fail.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::cluster::files::FilesError;
use crate::cluster::watch::ConnectError;
use crate::config::ConfigError;
use crate::dns::DnsError;
use crate::kernel;

/// An error that ends a command. Each names the thing, the reason and the fix.
#[derive(Debug, Error)]
pub enum Error {
    /// At the kernel's edge.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// On the way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// With the directory of manifests.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// With kube-proxy's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address for one of the agent's servers cannot be had.
    #[error("listening on {address}: {source}: name another address with {flag}, or off")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An address for the server of names cannot be had.
    #[error(
        "listening on {address}: {source}: name an address of this node with {flag}, and a port that no other DNS \
         server has there"
    )]
    DnsListen {
        /// The address.
        address: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Names cannot be served as the settings say.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// What reads Services has ended, which it never should.
    #[error(
        "Services are read no more: {reason}: this is an error in podnet, please report it; what is in the \
         kernel goes on working, start the agent again to go on"
    )]
    Source {
        /// How it ended.
        reason: String,
    },
    /// A resource of the system that podnet cannot do without.
    #[error("{what}: {source}")]
    System {
        /// The resource.
        what: &'static str,
        /// Why it cannot be had.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an error with the name of what could not be had.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
