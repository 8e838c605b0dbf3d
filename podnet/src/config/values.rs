//! The values that settings take.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::jiff::SignedDuration;

use crate::cluster::node::NodePortAddresses;

/// An address to listen at, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here, at the usual port if none is named.
    At(IpAddr, Option<u16>),
}

impl Listen {
    pub(super) fn address(this: Option<Self>, usual: IpAddr, port: u16) -> Option<SocketAddr> {
        match this {
            None => Some(SocketAddr::new(usual, port)),
            Some(Self::Off) => None,
            Some(Self::At(ip, named)) => Some(SocketAddr::new(ip, named.unwrap_or(port))),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "off" {
            return Ok(Self::Off);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::At(address.ip(), Some(address.port())));
        }
        let ip = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let ip = ip.parse().map_err(|_| format!("{text:?} is not IP:port, an IP or off"))?;
        Ok(Self::At(ip, None))
    }
}

/// A way to tell the cluster's pods from other clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LocalMode {
    /// By the flag --cluster-cidr.
    #[default]
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By the Node's podCIDRs.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the flag --pod-bridge-interface.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the flag --pod-interface-name-prefix.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

impl LocalMode {
    /// Its name in Kubernetes.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
    }
}

impl FromStr for LocalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| {
            format!("{text:?} is not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
        })
    }
}

/// One CIDR, or one of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterCidr(pub(super) Vec<IpNet>);

impl FromStr for ClusterCidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cidrs = text.split(',').map(|text| cidr(text.trim())).collect::<Result<Vec<_>, _>>()?;
        match cidrs[..] {
            [_] => Ok(Self(cidrs)),
            [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(Self(cidrs)),
            _ => Err(format!("{text:?} is more than one CIDR of each family")),
        }
    }
}

fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("{text:?} is not a CIDR"))
}

/// All places where NodePorts are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePorts(pub(super) Vec<NodePortAddress>);

impl FromStr for NodePorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let these: Vec<_> = text.split(',').map(NodePortAddress::from_str).collect::<Result<_, _>>()?;
        let wide = |it: &NodePortAddress| matches!(it, NodePortAddress::All | NodePortAddress::Cidr(_));
        if these.contains(&NodePortAddress::Primary) && these.iter().any(wide) {
            return Err("podnet does not serve primary and networks together yet".to_owned());
        }
        Ok(Self(these))
    }
}

impl NodePorts {
    /// The same as settings, and whether loopback addresses are asked for beside the primary ones.
    pub(super) fn settings(&self) -> (NodePortAddresses, bool) {
        if self.0.contains(&NodePortAddress::Primary) {
            return (NodePortAddresses::Primary, self.0.contains(&NodePortAddress::Localhost));
        }
        let networks = self.0.iter().flat_map(|it| it.networks(&[])).collect();
        (NodePortAddresses::Cidrs(networks), false)
    }

    /// The addresses to listen at, of a node that has the addresses `local` and the primary IPs `primary`.
    ///
    /// A family that nothing is said of is served at all its addresses, which is what an unspecified address
    /// stands for.
    pub fn listen_at(&self, local: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> BTreeSet<IpAddr> {
        let networks: Vec<IpNet> = self.0.iter().flat_map(|it| it.networks(primary)).collect();
        let mut addresses = BTreeSet::new();
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            let mut of_family = networks.iter().filter(|it| it.addr().is_ipv4() == any.is_ipv4()).peekable();
            if of_family.peek().is_none() || of_family.clone().any(|it| it.prefix_len() == 0) {
                addresses.insert(any);
            } else {
                let within = |ip: &&IpAddr| of_family.clone().any(|network| network.contains(*ip));
                addresses.extend(local.iter().filter(within));
            }
        }
        addresses
    }
}

/// A place where NodePorts are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// At the node's primary IPs.
    Primary,
    /// At its loopback addresses.
    Localhost,
    /// At all its addresses.
    All,
    /// At its addresses of a network.
    Cidr(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            other => cidr(other)
                .map(Self::Cidr)
                .map_err(|_| format!("{other:?} is not a CIDR, primary, localhost or all")),
        }
    }
}

impl NodePortAddress {
    fn networks(self, primary: &[IpAddr]) -> Vec<IpNet> {
        match self {
            Self::Primary => {
                primary.iter().filter(|ip| !ip.is_loopback()).map(|ip| IpNet::from(*ip)).collect()
            }
            Self::Localhost => vec![
                IpNet::new_assert(Ipv4Addr::LOCALHOST.into(), 8).trunc(),
                IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
            ],
            Self::All => vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            Self::Cidr(network) => vec![network],
        }
    }
}

/// A time as Go writes it: `1h30m`, `24h0m0s`, `500ms`, `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub(super) Duration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let time: Option<SignedDuration> = text.parse().ok();
        let time = time.and_then(|time| Duration::try_from(time).ok());
        time.map(Self).ok_or_else(|| format!("{text:?} is not a time like 1h30m"))
    }
}

/// A value of `/proc/PID/oom_score_adj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OomScoreAdj(pub(super) i32);

impl OomScoreAdj {
    /// Gives it to this process.
    ///
    /// # Errors
    /// When the kernel does not allow it: to lower it takes `CAP_SYS_RESOURCE`.
    pub fn apply(self) -> io::Result<()> {
        fs::write("/proc/self/oom_score_adj", self.0.to_string())
    }
}

impl FromStr for OomScoreAdj {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let score = text.parse().ok().filter(|score| (-1000..=1000).contains(score));
        score.map(Self).ok_or_else(|| format!("{text:?} is not between -1000 and 1000"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn node_port_addresses_are_those_of_the_node() {
        let local = ips(&["127.0.0.1", "10.0.0.1", "192.168.0.1", "::1", "fd00::1"]).into_iter().collect();
        let primary = ips(&["10.0.0.1", "fd00::1"]);
        for (addresses, expected) in [
            ("primary", ["10.0.0.1", "fd00::1"].as_slice()),
            ("all", &["0.0.0.0", "::"]),
            ("localhost", &["127.0.0.1", "::1"]),
            ("192.168.0.0/16", &["192.168.0.1", "::"]),
            ("primary,localhost", &["10.0.0.1", "127.0.0.1", "::1", "fd00::1"]),
            ("172.16.0.0/12", &["::"]),
        ] {
            let these: NodePorts = addresses.parse().unwrap();
            assert_eq!(these.listen_at(&local, &primary), ips(expected).into_iter().collect(), "{addresses}");
        }
        let unknown = NodePorts(vec![NodePortAddress::Primary]).listen_at(&local, &[]);
        assert_eq!(unknown, ips(&["0.0.0.0", "::"]).into_iter().collect());
    }
}
