//! Nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, anyhow};

use crate::lab::{GATEWAY_V4, GATEWAY_V6, Lab};
use crate::pod::{Pod, PodKind};
use crate::process::Place;

/// A node of the cluster: a namespace that routes for its pods, with a link to the other nodes.
///
/// Pods on its bridge have addresses in `10.244.N.0/25` and `fd00:10:244:N::/80`, those with a link of
/// their own in `10.244.N.128/25` and `fd00:10:244:N:1::/80`; so neither takes the others for neighbours.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    lab: Lab,
    name: String,
    index: u8,
    place: Place,
    bpffs: PathBuf,
    bridge: OnceLock<Bridge>,
    next_pod: AtomicU8,
}

/// What a node's pods on its bridge are to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    /// The length of the prefix that they share.
    pub(crate) prefix_v4: u8,
    /// The same of IPv6.
    pub(crate) prefix_v6: u8,
    /// What their links carry.
    pub(crate) mtu: u32,
}

impl Bridge {
    /// Where nodes send each other pods' packets as they are.
    const OF_LAB: Self = Self { prefix_v4: 25, prefix_v6: 80, mtu: 1500 };
}

impl Node {
    pub(crate) fn create(lab: &Lab, name: &str, index: u8) -> Result<Self> {
        let node = Self::bare(lab, name, index)?;
        node.bridge(Bridge::OF_LAB)?;
        let mut lines = String::new();
        // Routes to the pods of nodes that may be added later do no harm.
        for other in (1..=4).filter(|other| *other != index) {
            lines.push_str(&format!(
                "route add 10.244.{other}.0/24 via 172.18.0.{other}\n\
                 route add fd00:10:244:{other:x}::/64 via fd00:172:18::{other:x}\n"
            ));
        }
        node.place().netns.batch(&lines)?;
        Ok(node)
    }

    pub(crate) fn bare(lab: &Lab, name: &str, index: u8) -> Result<Self> {
        let place = Place { netns: lab.netns(name)?, cgroup: lab.cgroup(name)? };
        // As the distributions have it: strict source checks; and no waiting for duplicate addresses.
        place.netns.sysctl(&[
            "net/ipv4/ip_forward=1",
            "net/ipv6/conf/all/forwarding=1",
            "net/ipv4/conf/all/rp_filter=1",
            "net/ipv4/conf/default/rp_filter=1",
            "net/ipv6/conf/all/accept_dad=0",
            "net/ipv6/conf/default/accept_dad=0",
        ])?;
        lab.plug_in(&place.netns)?;
        place.netns.batch(&format!(
            "addr add 172.18.0.{index}/24 dev eth0\n\
             addr add fd00:172:18::{index:x}/64 dev eth0 nodad\n\
             route add default via {GATEWAY_V4}\n\
             route add default via {GATEWAY_V6}\n"
        ))?;
        Ok(Self(Arc::new(Inner {
            lab: lab.clone(),
            name: name.to_owned(),
            index,
            place,
            bpffs: lab.bpffs(name)?,
            bridge: OnceLock::new(),
            next_pod: AtomicU8::new(2),
        })))
    }

    /// Makes the bridge for pods, with the first of the node's addresses for pods.
    pub(crate) fn bridge(&self, bridge: Bridge) -> Result<()> {
        let (index, Bridge { prefix_v4, prefix_v6, mtu }) = (self.0.index, bridge);
        // A bridge without an address of its own takes the lowest of its ports: with each pod that comes, the
        // gateway's may change under the others, who go on sending to the one that they know.
        self.0.place.netns.batch(&format!(
            "link add cni0 address 0a:58:0a:f4:{index:02x}:01 mtu {mtu} type bridge\n\
             link set cni0 up\n\
             addr add 10.244.{index}.1/{prefix_v4} dev cni0\n\
             addr add fd00:10:244:{index:x}::1/{prefix_v6} dev cni0 nodad\n"
        ))?;
        self.0.bridge.set(bridge).map_err(|_| anyhow!("{} has a bridge already", self.0.name))
    }

    pub(crate) fn bridged(&self) -> Result<Bridge> {
        self.0.bridge.get().copied().with_context(|| format!("{} has no bridge", self.0.name))
    }

    /// The addresses that its pods have.
    pub fn pod_cidrs(&self) -> [String; 2] {
        let index = self.0.index;
        [format!("10.244.{index}.0/24"), format!("fd00:10:244:{index:x}::/64")]
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn pod(&self, name: &str, kind: PodKind) -> Result<Pod> {
        Pod::create(self, name, kind, self.0.next_pod.fetch_add(1, Ordering::Relaxed))
    }

    /// The lab it belongs to.
    pub fn lab(&self) -> &Lab {
        &self.0.lab
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn index(&self) -> u8 {
        self.0.index
    }

    /// Its address towards the other nodes.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 0, self.0.index)
    }

    /// Its IPv6 address towards the other nodes.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, self.0.index.into())
    }

    /// All its addresses: towards the other nodes, and towards its pods.
    pub fn addresses(&self) -> [IpAddr; 5] {
        let index = self.0.index;
        [
            self.v4().into(),
            self.v6().into(),
            [10, 244, index, 1].into(),
            [0xfd00, 0x10, 0x244, index.into(), 0, 0, 0, 1].into(),
            [169, 254, 1, 1].into(),
        ]
    }

    /// Where the node's own processes run; its pods share the cgroup.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Where its agent pins maps and programs.
    pub fn bpffs(&self) -> &Path {
        &self.0.bpffs
    }
}
