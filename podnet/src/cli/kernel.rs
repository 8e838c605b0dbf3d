//! The flags about the kernel that commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Bpffs;
use crate::changes::Capacity;
use crate::config::Timeouts;
use crate::kernel::{AttachMode, Settings, SocketLb, XdpPolicy};

/// How the kernel's side is set up.
#[derive(Clone, Debug, Args)]
pub(super) struct Kernel {
    #[command(flatten)]
    bpffs: Bpffs,

    /// The cgroup whose sockets are led to backends [default: the root of the mounted cgroup2 hierarchy]
    #[arg(long, value_name = "DIR", env = "PODNET_CGROUP")]
    cgroup: Option<PathBuf>,

    /// Whose sockets are led to backends when they connect; packets of the others are translated
    #[arg(long, value_enum, env = "PODNET_SOCKET_LB", default_value_t)]
    socket_lb: SocketLb,

    /// Hand packets of established flows between pods of this node to the receiver's interface, past the node's
    /// stack
    ///
    /// The stack, its NetworkPolicies included, still decides about a flow's first packets both ways, and sees
    /// how it ends. A policy that changes afterwards does not end the flow, and the stack's counters miss it.
    /// For pods linked by veth. The kernel's connection tracking is told to be liberal with TCP's windows until
    /// `podnet cleanup`.
    #[arg(long, env = "PODNET_SHORT_CUTS")]
    short_cuts: bool,

    /// Whether packets of clients outside are met at network cards too, before the kernel has made an skb of them
    #[arg(long, value_enum, env = "PODNET_XDP", default_value_t)]
    xdp: Xdp,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Xdp {
    /// They are met behind them only.
    #[default]
    Off,
    /// Where the driver has XDP; not at one end of a veth, whose other end would need a program as well, and whose
    /// checksums are not whole.
    Auto,
    /// By the driver's XDP, which also has to take frames that programs at the other cards send.
    Native,
    /// By the kernel's, which does without the driver's help and is slower; for cards without VLANs, and that give whole
    /// checksums.
    Generic,
}

impl Xdp {
    const fn policy(self) -> Option<XdpPolicy> {
        match self {
            Self::Off => None,
            Self::Auto => Some(XdpPolicy::Auto),
            Self::Native => Some(XdpPolicy::Native),
            Self::Generic => Some(XdpPolicy::Generic),
        }
    }
}

impl Kernel {
    pub(super) fn settings(self, attach: AttachMode, capacity: Capacity, timeouts: Timeouts) -> Settings {
        Settings {
            bpffs: self.bpffs.bpffs,
            cgroup: self.cgroup,
            socket_lb: self.socket_lb,
            short_cuts: self.short_cuts,
            timeouts,
            attach,
            xdp: self.xdp.policy(),
            zone: None,
            capacity,
        }
    }
}
