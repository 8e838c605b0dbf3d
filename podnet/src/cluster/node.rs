//! The node that podnet runs on: what its object says, which addresses it has, and the networks of Services.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use podnet_common::wire::Family;
use thiserror::Error;

use super::object::{Algorithm, Invalid, Key, Kind, MAX_NAME, Object, Parse, invalid, label, names};

/// The label that names a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint of a node that the cluster autoscaler is about to take away (KEP-3836).
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its key.
    pub key: Key,
    /// Its zone, if it is in one.
    pub zone: Option<String>,
    /// The address it is known by, one of each family at most.
    pub primary: Vec<IpAddr>,
    /// The networks of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether it is about to leave: load balancers had better send nothing new.
    pub leaving: bool,
}

impl Parse for core::Node {
    const KIND: Kind = Kind::Node;

    fn key(&self) -> Result<Key, Invalid> {
        names(Self::KIND, &self.metadata, MAX_NAME).map(|(_, name)| Key::global(name))
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let spec = self.spec.unwrap_or_default();
        let addresses = self.status.and_then(|status| status.addresses).unwrap_or_default();
        // As `GetNodeHostIPs` in pkg/util/node: internal ones first.
        let of_type = |kind: &'static str| addresses.iter().filter(move |address| address.type_ == kind);
        let mut primary: Vec<IpAddr> = Vec::new();
        for address in of_type("InternalIP").chain(of_type("ExternalIP")) {
            let ip: IpAddr = address.address.parse().map_err(|_| {
                invalid(Self::KIND, &key, "status.addresses", format!("{:?} is not an IP", address.address))
            })?;
            if primary.iter().all(|known| known.is_ipv4() != ip.is_ipv4()) {
                primary.push(ip);
            }
        }
        let pod_cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let tainted = spec.taints.unwrap_or_default().iter().any(|taint| taint.key == LEAVING);
        Ok(Some(Object::Node(Node {
            zone: label(&self.metadata, ZONE).map(str::to_owned),
            primary,
            pod_cidrs: networks(Self::KIND, &key, "spec.podCIDRs", pod_cidrs)?,
            leaving: tainted || self.metadata.deletion_timestamp.is_some(),
            key,
        })))
    }
}

/// A network, or two of either family, that ClusterIPs are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its key.
    pub key: Key,
    /// The networks.
    pub cidrs: Vec<IpNet>,
}

impl Parse for networking::ServiceCIDR {
    const KIND: Kind = Kind::ServiceCidr;

    fn key(&self) -> Result<Key, Invalid> {
        names(Self::KIND, &self.metadata, MAX_NAME).map(|(_, name)| Key::global(name))
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let cidrs = self.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        let cidrs = networks(Self::KIND, &key, "spec.cidrs", cidrs)?;
        Ok(Some(Object::ServiceCidr(ServiceCidr { key, cidrs })))
    }
}

fn networks(kind: Kind, key: &Key, field: &'static str, texts: Vec<String>) -> Result<Vec<IpNet>, Invalid> {
    let parse = |text: String| {
        let network = text.parse::<IpNet>().map(|network| network.trunc());
        network.map_err(|_| invalid(kind, key, field, format!("{text:?} is not a network")))
    };
    texts.into_iter().map(parse).collect()
}

/// How a node is to serve what the cluster wants: settings that change what tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// The name of this node.
    pub node: String,
    /// Which of the node's addresses NodePorts are at.
    pub node_port_addresses: NodePortAddresses,
    /// Whether NodePorts are at the loopback addresses too, for the node's own processes.
    pub localhost_node_ports: bool,
    /// Whether all connections to ClusterIPs get the node's address as their source.
    pub masquerade_all: bool,
    /// What tells the cluster's pods, whose connections to ClusterIPs keep their source, from other clients.
    pub pods: LocalPods,
    /// The primary IP of the node in its family, where it is not to be the Node's.
    pub primary_ip: Option<IpAddr>,
    /// How clients outside get an endpoint where the Service does not say.
    pub algorithm: Algorithm,
    /// How many slots they choose from at the least, by [`Algorithm::Maglev`].
    pub maglev_slots: u32,
}

/// What tells the cluster's pods from other clients of ClusterIPs. A family without a network goes by interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalPods {
    /// The interface by which packets come.
    #[default]
    ByInterface,
    /// Their addresses: the first of these networks in each family.
    Within(Vec<IpNet>),
    /// Their addresses: those that the Node has for its pods.
    OfNode,
}

impl ProxySettings {
    /// The primary IPs of a node whose object has these.
    pub fn primary(&self, of_node: Vec<IpAddr>) -> Vec<IpAddr> {
        let Some(ip) = self.primary_ip else { return of_node };
        let others = of_node.into_iter().filter(|other| family_of(*other) != family_of(ip));
        [ip].into_iter().chain(others).collect()
    }
}

/// Which of a node's addresses NodePorts are at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those the node is known by: one of each family.
    #[default]
    Primary,
    /// Those in these networks. A family without a network has all of its addresses.
    Cidrs(Vec<IpNet>),
}

/// What was given as addresses of NodePorts is neither `primary` nor a list of networks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is neither a network, as 192.0.2.0/24, nor `primary`")]
pub struct NoAddresses(String);

impl FromStr for NodePortAddresses {
    type Err = NoAddresses;

    fn from_str(text: &str) -> Result<Self, NoAddresses> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        let parse = |text: &str| {
            let network = text.trim().parse::<IpNet>().map(|network| network.trunc());
            network.map_err(|_| NoAddresses(text.to_owned()))
        };
        Ok(Self::Cidrs(text.split(',').map(parse).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Cidrs(networks) => {
                let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

impl NodePortAddresses {
    /// The networks of a family: all of it if there is none.
    fn networks(&self, family: Family) -> Vec<IpNet> {
        let Self::Cidrs(networks) = self else { return Vec::new() };
        let found: Vec<IpNet> =
            networks.iter().copied().filter(|it| family_of(it.addr()) == family).collect();
        if found.is_empty() { vec![all(family)] } else { found }
    }

    /// Whether a network of loopback addresses was asked for by name.
    fn name_loopback(&self, family: Family) -> bool {
        self.networks(family).iter().any(|network| network.addr().is_loopback())
    }
}

fn all(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

/// The family of an address.
pub(super) const fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The addresses of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Those it is known by; empty while its object is unknown.
    pub primary: Vec<IpAddr>,
    /// Those of its interfaces.
    pub local: BTreeSet<IpAddr>,
}

impl NodeAddresses {
    /// The addresses of NodePorts. A node whose object is unknown has them at all of its addresses.
    pub fn of_node_ports(&self, family: Family, which: &NodePortAddresses) -> Vec<IpAddr> {
        let primary = || self.primary.iter().copied().filter(|ip| family_of(*ip) == family).collect();
        match which {
            NodePortAddresses::Primary if self.primary.is_empty() => self.reachable(family).collect(),
            NodePortAddresses::Primary => primary(),
            NodePortAddresses::Cidrs(_) => {
                let networks = which.networks(family);
                let within = |ip: &IpAddr| networks.iter().any(|network| network.contains(ip));
                self.reachable(family).filter(within).collect()
            }
        }
    }

    /// The loopback addresses of NodePorts, if there are to be any.
    pub fn of_loopback(family: Family, settings: &ProxySettings) -> Option<IpAddr> {
        (settings.localhost_node_ports || settings.node_port_addresses.name_loopback(family))
            .then_some(loopback(family))
    }

    /// Those that others reach: not those of the loopback interface, and not the link-local ones of IPv6, of
    /// which every pod's link has one.
    pub fn reachable(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let here = move |ip: &IpAddr| family_of(*ip) == family && !ip.is_loopback() && !link_local(ip);
        self.local.iter().copied().filter(here)
    }

    /// Whether `range` holds the address that the node is known by.
    pub fn any_primary_in(&self, range: &IpNet) -> bool {
        self.primary.iter().any(|ip| range.contains(ip))
    }
}

/// The loopback address of a family.
pub(super) const fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: serde_json::Value) -> Node {
        match serde_json::from_value::<core::Node>(value).unwrap().parse() {
            Ok(Some(Object::Node(node))) => node,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn objects_node_has_one_primary_address_of_each_family() {
        let found = node(json!({
            "metadata": {"name": "here", "labels": {ZONE: "z"}},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "here"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "ExternalIP", "address": "2001:db8::1"},
            ]},
        }));
        let primary: Vec<String> = found.primary.iter().map(IpAddr::to_string).collect();
        assert_eq!(primary, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!((found.zone.as_deref(), found.pod_cidrs.len(), found.leaving), (Some("z"), 2, false));
    }

    #[test]
    fn node_port_addresses_are_primary_or_networks() {
        assert_eq!("primary".parse(), Ok(NodePortAddresses::Primary));
        let list = "10.0.0.0/8, fd00::1/8".parse::<NodePortAddresses>().unwrap();
        assert_eq!(list.to_string(), "10.0.0.0/8,fd00::/8");
        assert!("10.0.0.1/33".parse::<NodePortAddresses>().is_err());
        assert!("all".parse::<NodePortAddresses>().unwrap_err().to_string().contains("\"all\""));
    }
}
