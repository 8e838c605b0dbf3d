//! Pods, and clients outside of the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::lab::Lab;
use crate::node::{Bridge, Node};
use crate::process::Place;

/// How a pod is linked to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// By a veth of its own, with routes for single addresses: as the `ptp` plugin, Calico or Cilium do.
    Ptp,
    /// By a veth that is a port of the node's bridge: as the `bridge` plugin, kubenet or flannel do.
    Bridge,
}

impl PodKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ptp, Self::Bridge];
}

/// A pod: a namespace with one interface, `eth0`.
#[derive(Clone)]
pub struct Pod {
    name: String,
    node: Node,
    kind: PodKind,
    place: Place,
    interface: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Pod {
    pub(crate) fn create(node: &Node, name: &str, kind: PodKind, number: u8) -> Result<Self> {
        let netns = node.lab().netns(&format!("{}-{name}", node.name()))?;
        netns.sysctl(&["net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0"])?;
        let index = node.index();
        let net = |block: u16, last: u16| Ipv6Addr::new(0xfd00, 0x10, 0x244, index.into(), block, 0, 0, last);
        let (v4, v6) = match kind {
            PodKind::Bridge => (Ipv4Addr::new(10, 244, index, number), net(0, number.into())),
            PodKind::Ptp => (Ipv4Addr::new(10, 244, index, 128 + number), net(1, number.into())),
        };
        let pod = Self {
            name: name.to_owned(),
            node: node.clone(),
            kind,
            place: Place { netns, cgroup: node.place().cgroup.clone() },
            interface: format!("veth{number}"),
            v4,
            v6,
        };
        pod.plug_in()?;
        Ok(pod)
    }

    /// Links the pod to its node.
    ///
    /// # Errors
    /// If it is linked already.
    pub fn plug_in(&self) -> Result<()> {
        let Self { interface, v4, v6, .. } = self;
        let (netns, host, index) = (&self.place.netns, &self.node.place().netns, self.node.index());
        let link = |mtu| {
            let netns = netns.name();
            format!("link add {interface} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\n")
        };
        match self.kind {
            PodKind::Bridge => {
                let Bridge { prefix_v4, prefix_v6, mtu } = self.node.bridged()?;
                host.batch(&format!("{}link set {interface} master cni0 up", link(mtu)))?;
                netns.batch(&format!(
                    "link set eth0 up\n\
                     addr add {v4}/{prefix_v4} dev eth0\n\
                     addr add {v6}/{prefix_v6} dev eth0 nodad\n\
                     route add default via 10.244.{index}.1\n\
                     route add default via fd00:10:244:{index:x}::1"
                ))
            }
            PodKind::Ptp => {
                let (node_v4, node_v6) = (self.node.v4(), self.node.v6());
                host.batch(&format!(
                    "{}link set {interface} up\n\
                     addr add 169.254.1.1/32 dev {interface} scope link\n\
                     addr add fe80::1/64 dev {interface} nodad\n\
                     route add {v4} dev {interface} src {node_v4}\n\
                     route add {v6} dev {interface} src {node_v6}",
                    link(1500)
                ))?;
                netns.batch(&format!(
                    "link set eth0 up\n\
                     addr add {v4}/32 dev eth0\n\
                     addr add {v6}/128 dev eth0 nodad\n\
                     route add 169.254.1.1 dev eth0 scope link\n\
                     route add default via 169.254.1.1 dev eth0\n\
                     route add default via fe80::1 dev eth0"
                ))
            }
        }
    }

    /// Whether the bridge may send back to the pod what came from it: `hairpin_mode`, which it does not by default.
    ///
    /// # Errors
    /// If the pod is not on a bridge.
    pub fn hairpin_mode(&self, on: bool) -> Result<()> {
        let (interface, mode) = (&self.interface, if on { "on" } else { "off" });
        self.node.place().netns.batch(&format!("link set {interface} type bridge_slave hairpin {mode}"))
    }

    /// Removes the pod's link.
    ///
    /// # Errors
    /// If that fails.
    pub fn unplug(&self) -> Result<()> {
        self.node.place().netns.batch(&format!("link delete {}", self.interface))
    }

    /// Removes the pod's link and makes another of the same name.
    ///
    /// # Errors
    /// If that fails.
    pub fn replug(&self) -> Result<()> {
        self.unplug()?;
        self.plug_in()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The node's end of its link.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Its addresses of both families.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// A machine that is not part of the cluster, in the network of the nodes.
#[derive(Clone)]
pub struct Outside {
    place: Place,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Outside {
    /// Makes the machine with the address `172.18.0.LAST`; it reaches pods and Services through `gateway`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(lab: &Lab, name: &str, last: u8, gateway: Option<&Node>) -> Result<Self> {
        let place = Place { netns: lab.netns(name)?, cgroup: lab.cgroup(name)? };
        place.netns.sysctl(&["net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0"])?;
        lab.plug_in(&place.netns)?;
        let v4 = Ipv4Addr::new(172, 18, 0, last);
        let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, last.into());
        let mut lines = format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
        if let Some(node) = gateway {
            lines.push_str(&format!(
                "route add default via {}\nroute add default via {}\n",
                node.v4(),
                node.v6()
            ));
        }
        place.netns.batch(&lines)?;
        Ok(Self { place, v4, v6 })
    }

    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }
}
