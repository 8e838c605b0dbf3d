//! The edge to the kernel: loading programs, attaching them, reading and writing maps.
//!
//! Everything that outlives the agent is pinned under one directory of bpffs:
//!
//! ```text
//! <bpffs>/v<LAYOUT>/maps/<NAME>                         the maps of podnet_common::abi
//! <bpffs>/v<LAYOUT>/maps/PROGRAMS-<n>                   what earlier agents' programs need until they are replaced
//! <bpffs>/v<LAYOUT>/links/tcx-<ifindex>-<direction>     programs at an interface
//! <bpffs>/v<LAYOUT>/links/clsact-<ifindex>-<direction>  the same by a filter, which the pin does not hold
//! <bpffs>/v<LAYOUT>/links/qdisc-<ifindex>-clsact        that podnet has made the qdisc of the filters
//! <bpffs>/v<LAYOUT>/links/xdp-<ifindex>-<how>          the program at a network card, `native` or `generic`
//! <bpffs>/v<LAYOUT>/links/cgroup-<hook>-<cgroup id>     programs at a cgroup
//! <bpffs>/v<LAYOUT>/links/conntrack-<n>-liberal         what a setting was that podnet has changed
//! ```
//!
//! Links keep programs attached while no agent runs; the next agent finds them by name and replaces their
//! programs in place.

mod attach;
mod conntrack;
mod error;
mod filter;
mod load;
mod names;
mod next;
mod pins;
mod ports;
mod probe;
mod qdisc;
mod staging;
mod sys;
mod tables;
mod view;
mod xdp;

use std::path::PathBuf;

use podnet_common::dns::name::Zone;

use crate::changes::Capacity;
use crate::config::Timeouts;

pub use attach::Side;
pub use error::Error;
pub use load::Dataplane;
pub use names::FRESH;
pub use pins::cleanup;
pub use ports::{release_ports, reserve_ports};
pub use probe::{Finding, Level, probe};
pub use view::{Attachment, Count, View};

/// How the kernel side is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// podnet's own directory on a bpffs.
    pub bpffs: PathBuf,
    /// The cgroup whose sockets are led to backends; the root of the cgroup2 hierarchy when absent.
    pub cgroup: Option<PathBuf>,
    /// Whose sockets those are.
    pub socket_lb: SocketLb,
    /// Whether packets of established flows between pods of this node go past its stack.
    pub short_cuts: bool,
    /// How long flows are kept.
    pub timeouts: Timeouts,
    /// How programs are attached to interfaces.
    pub attach: AttachMode,
    /// Whether packets are met at network cards too, and how.
    pub xdp: Option<XdpPolicy>,
    /// The cluster's domain, if queries of pods for its names are answered.
    pub zone: Option<Zone>,
    /// The maps' sizes.
    pub capacity: Capacity,
}

/// Whose `connect()` and datagrams are led to backends at the socket layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SocketLb {
    /// All processes' in the cgroup.
    #[default]
    All,
    /// Those of the agent's own network namespace only; pods' packets are translated at their interfaces.
    Host,
    /// Nobody's.
    Off,
}

/// How packets are met at network cards, before there is an skb of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpPolicy {
    /// In the driver where it can; elsewhere not at all.
    Auto,
    /// In the driver.
    Native,
    /// Behind the driver, where there is an skb already: for cards whose drivers have no XDP, and for tests.
    Generic,
}

impl XdpPolicy {
    const fn driven(self) -> Driven {
        match self {
            Self::Auto | Self::Native => Driven::Native,
            Self::Generic => Driven::Generic,
        }
    }
}

/// By whom an XDP program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// The driver.
    Native,
    /// The kernel's stack.
    Generic,
}

impl Driven {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name of the mode.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

/// A network card.
#[derive(Clone, Copy, Debug)]
pub struct XdpTarget<'a> {
    /// The index of its interface.
    pub index: u32,
    /// The interface's name.
    pub name: &'a str,
    /// Whether it is one end of a virtual cable.
    pub veth: bool,
    /// The id of the XDP program that is there.
    pub there: Option<u32>,
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachMode {
    /// By tcx where the kernel has it, else by clsact.
    #[default]
    Auto,
    /// By tcx links (Linux 6.6).
    Tcx,
    /// By filters of the clsact qdisc.
    Clsact,
}
