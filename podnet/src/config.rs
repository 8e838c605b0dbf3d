//! kube-proxy's settings: those of its flags, and those of a `KubeProxyConfiguration`.
//!
//! Both are read into [`Options`]; flags win over the file. What has no effect in podnet is accepted and told,
//! so that a kube-proxy's settings can be handed over as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::jiff::SignedDuration;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;
use thiserror::Error;

use crate::cluster::manifests::{self, Broken};
use crate::cluster::node::{NodePortAddresses, ProxySettings};

/// The port of the health server.
pub const HEALTHZ_PORT: u16 = 10_256;
/// The port of the metrics server.
pub const METRICS_PORT: u16 = 10_249;

/// What kube-proxy calls the settings that podnet takes too.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "kube-proxy's flags")]
pub struct Options {
    /// How to reach the API server [default: as a Pod of the cluster, else as kubectl would]
    #[arg(long, value_name = "FILE", env = "PODNET_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", visible_alias = "hostname-override")]
    pub node_name: Option<String>,

    /// This node's primary IP [default: the Node's]; of IPv6, it makes the servers listen at IPv6 addresses
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,

    /// Where to serve /healthz and /livez for load balancers and probes, or `off` [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS", env = "PODNET_HEALTHZ_BIND_ADDRESS")]
    pub healthz_bind_address: Option<Listen>,

    /// Where to serve /metrics, /healthz, /readyz and /proxyMode, or `off` [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS", env = "PODNET_METRICS_BIND_ADDRESS", alias = "metrics-listen")]
    pub metrics_bind_address: Option<Listen>,

    /// How the cluster's pods are told from other clients [default: ClusterCIDR]
    #[arg(long, value_name = "MODE", value_enum)]
    pub detect_local_mode: Option<LocalMode>,

    /// The addresses of the cluster's pods: a CIDR, or one of each family, for ClusterCIDR
    #[arg(long, value_name = "CIDRS")]
    pub cluster_cidr: Option<ClusterCidr>,

    /// The bridge that pods are at, for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How names of interfaces begin that pods are at, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Where NodePorts are served: CIDRs, `primary`, `localhost` or `all` [default: primary]
    #[arg(
        long = "node-port-addresses",
        value_name = "CIDRS",
        env = "PODNET_NODE_PORT_ADDRESSES",
        visible_alias = "nodeport-addresses"
    )]
    pub node_port_addresses: Option<NodePorts>,

    /// Masquerade all that is sent to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,

    /// How long an idle TCP connection is kept, as in 24h or 1h30m; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,

    /// How long a TCP connection is kept that the server has closed; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,

    /// How long a UDP flow is kept that nobody has answered; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_udp_timeout: Option<GoDuration>,

    /// How long an idle UDP flow is kept; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,

    /// How readily the kernel ends the agent when memory is short, from -1000 to 1000
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub oom_score_adj: Option<OomScoreAdj>,

    #[command(flatten)]
    idle: Idle,
}

/// Flags that users of kube-proxy pass, and that mean nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
struct Idle {
    #[arg(long, hide = true)]
    proxy_mode: Option<String>,
    #[arg(long, hide = true)]
    conntrack_max_per_core: Option<String>,
    #[arg(long, hide = true)]
    conntrack_min: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    conntrack_tcp_be_liberal: Option<String>,
    #[arg(long, hide = true)]
    iptables_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
    #[arg(short = 'v', long = "v", hide = true)]
    verbosity: Option<String>,
}

impl Options {
    /// These options, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            node_name: self.node_name.or(other.node_name),
            bind_address: self.bind_address.or(other.bind_address),
            healthz_bind_address: self.healthz_bind_address.or(other.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(other.metrics_bind_address),
            detect_local_mode: self.detect_local_mode.or(other.detect_local_mode),
            cluster_cidr: self.cluster_cidr.or(other.cluster_cidr),
            pod_bridge_interface: self.pod_bridge_interface.or(other.pod_bridge_interface),
            pod_interface_name_prefix: self.pod_interface_name_prefix.or(other.pod_interface_name_prefix),
            node_port_addresses: self.node_port_addresses.or(other.node_port_addresses),
            masquerade_all: self.masquerade_all.or(other.masquerade_all),
            conntrack_tcp_timeout_established: self
                .conntrack_tcp_timeout_established
                .or(other.conntrack_tcp_timeout_established),
            conntrack_tcp_timeout_close_wait: self
                .conntrack_tcp_timeout_close_wait
                .or(other.conntrack_tcp_timeout_close_wait),
            conntrack_udp_timeout: self.conntrack_udp_timeout.or(other.conntrack_udp_timeout),
            conntrack_udp_timeout_stream: self
                .conntrack_udp_timeout_stream
                .or(other.conntrack_udp_timeout_stream),
            oom_score_adj: self.oom_score_adj.or(other.oom_score_adj),
            idle: self.idle,
        }
    }

    /// The address of the health server, if there is to be one.
    pub fn healthz(&self) -> Option<SocketAddr> {
        let usual =
            if self.prefers_v6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Listen::address(self.healthz_bind_address, usual, HEALTHZ_PORT)
    }

    /// The address of the metrics server, if there is to be one.
    pub fn metrics(&self) -> Option<SocketAddr> {
        let usual = if self.prefers_v6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        Listen::address(self.metrics_bind_address, usual, METRICS_PORT)
    }

    fn prefers_v6(&self) -> bool {
        self.bind_address.is_some_and(|address| address.is_ipv6())
    }

    /// The name that was given to this node, as Kubernetes writes it.
    pub fn node(&self) -> Option<String> {
        let name = self.node_name.as_ref()?.trim().to_lowercase();
        (!name.is_empty()).then_some(name)
    }

    /// How this node, of this name, serves what the cluster wants.
    pub fn proxy(&self, node: String, localhost_node_ports: bool) -> ProxySettings {
        let (node_port_addresses, localhost) = self.node_ports().settings();
        ProxySettings {
            node,
            node_port_addresses,
            localhost_node_ports: localhost_node_ports || localhost,
            masquerade_all: self.masquerade_all.unwrap_or(false),
        }
    }

    fn node_ports(&self) -> NodePorts {
        self.node_port_addresses.clone().unwrap_or_else(|| NodePorts(vec![NodePortAddress::Primary]))
    }

    /// What is asked of the dataplane besides.
    pub fn datapath(&self) -> Datapath {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let time = |time: Option<GoDuration>| time.map(|time| time.0).filter(|time| !time.is_zero());
        Datapath {
            primary_ip: self.bind_address.filter(|address| !address.is_unspecified()),
            detect_local: match self.detect_local_mode.unwrap_or_default() {
                LocalMode::ClusterCidr => {
                    DetectLocal::ClusterCidr(self.cluster_cidr.clone().unwrap_or_default().0)
                }
                LocalMode::NodeCidr => DetectLocal::NodeCidr,
                LocalMode::BridgeInterface => DetectLocal::BridgeInterface(name(&self.pod_bridge_interface)),
                LocalMode::InterfaceNamePrefix => {
                    DetectLocal::InterfaceNamePrefix(name(&self.pod_interface_name_prefix))
                }
            },
            node_ports: self.node_ports(),
            timeouts: Timeouts {
                tcp_established: time(self.conntrack_tcp_timeout_established),
                tcp_close_wait: time(self.conntrack_tcp_timeout_close_wait),
                udp: time(self.conntrack_udp_timeout),
                udp_stream: time(self.conntrack_udp_timeout_stream),
            },
        }
    }

    /// The settings that have no effect in podnet, or not yet, by the names that they have in a file.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let named = |text: &Option<String>| text.is_some();
        let time = |time: Option<GoDuration>| time.is_some_and(|time| !time.0.is_zero());
        // What is switched off is what podnet does.
        let idle =
            |text: &Option<String>| text.as_ref().is_some_and(|text| is_set(&Value::from(text.as_str())));
        let settings = [
            (self.detect_local_mode.is_some(), "detectLocalMode"),
            (self.cluster_cidr.is_some(), "clusterCIDR"),
            (named(&self.pod_bridge_interface), "detectLocal.bridgeInterface"),
            (named(&self.pod_interface_name_prefix), "detectLocal.interfaceNamePrefix"),
            (time(self.conntrack_tcp_timeout_established), "conntrack.tcpEstablishedTimeout"),
            (time(self.conntrack_tcp_timeout_close_wait), "conntrack.tcpCloseWaitTimeout"),
            (time(self.conntrack_udp_timeout), "conntrack.udpTimeout"),
            (time(self.conntrack_udp_timeout_stream), "conntrack.udpStreamTimeout"),
            (idle(&self.idle.proxy_mode), "mode"),
            (idle(&self.idle.conntrack_max_per_core), "conntrack.maxPerCore"),
            (idle(&self.idle.conntrack_min), "conntrack.min"),
            (idle(&self.idle.conntrack_tcp_be_liberal), "conntrack.tcpBeLiberal"),
            (idle(&self.idle.iptables_sync_period), "iptables.syncPeriod"),
            (idle(&self.idle.iptables_min_sync_period), "iptables.minSyncPeriod"),
            (idle(&self.idle.feature_gates), "featureGates"),
            (idle(&self.idle.verbosity), "logging.verbosity"),
        ];
        settings.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
    }
}

/// What kube-proxy's settings ask of the dataplane, beside what tables are filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// The primary IP of this node, where it is not to be the Node's.
    pub primary_ip: Option<IpAddr>,
    /// How the cluster's pods are told from other clients.
    pub detect_local: DetectLocal,
    /// Where NodePorts are served.
    pub node_ports: NodePorts,
    /// How long flows are kept.
    pub timeouts: Timeouts,
}

/// How the cluster's pods are told from other clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By their addresses. There may be none: then all clients count as pods.
    ClusterCidr(Vec<IpNet>),
    /// By the addresses that the Node has for its pods.
    NodeCidr,
    /// By the bridge that they are at.
    BridgeInterface(String),
    /// By how the names of their interfaces begin.
    InterfaceNamePrefix(String),
}

/// How long flows are kept; `None` is as long as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// An idle TCP connection.
    pub tcp_established: Option<Duration>,
    /// A TCP connection that the server has closed.
    pub tcp_close_wait: Option<Duration>,
    /// A UDP flow that nobody has answered.
    pub udp: Option<Duration>,
    /// An idle UDP flow.
    pub udp_stream: Option<Duration>,
}

/// An address to listen at, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here, at the usual port if none is named.
    At(IpAddr, Option<u16>),
}

impl Listen {
    fn address(this: Option<Self>, usual: IpAddr, port: u16) -> Option<SocketAddr> {
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
pub struct ClusterCidr(Vec<IpNet>);

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
pub struct NodePorts(Vec<NodePortAddress>);

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
    fn settings(&self) -> (NodePortAddresses, bool) {
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
pub struct GoDuration(Duration);

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
pub struct OomScoreAdj(i32);

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

/// A configuration file that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration {path}: {source}: name another one with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no valid `KubeProxyConfiguration`.
    #[error("the configuration {path}:{broken}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where and why.
        broken: Broken,
    },
}

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub struct File {
    /// What podnet takes.
    pub options: Options,
    /// The fields that are set and that podnet does not know.
    pub unknown: Vec<String>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|broken| ConfigError::Broken { path: path.to_owned(), broken })
    }

    fn parse(text: &str) -> Result<Self, Broken> {
        let document: Document = manifests::read(text)?;
        let missing =
            |field: &str| Broken { line: 1, column: 1, reason: format!("the field {field} is missing") };
        document.api_version.0.as_ref().ok_or_else(|| missing("apiVersion"))?;
        document.kind.0.as_ref().ok_or_else(|| missing("kind"))?;
        let unknown = document.unknown();
        Ok(Self { options: document.into_options(), unknown })
    }
}

/// A `KubeProxyConfiguration`: the fields that podnet takes, and all others.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    api_version: Text<ApiVersion>,
    kind: Text<Kind>,
    client_connection: Option<ClientConnection>,
    hostname_override: Text<String>,
    bind_address: Text<IpAddr>,
    healthz_bind_address: Text<Listen>,
    metrics_bind_address: Text<Listen>,
    detect_local_mode: Text<LocalMode>,
    detect_local: Option<DetectLocalFields>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Text<ClusterCidr>,
    node_port_addresses: Option<Texts<NodePorts>>,
    oom_score_adj: Text<OomScoreAdj>,
    conntrack: Option<Conntrack>,
    iptables: Option<Tables>,
    nftables: Option<Tables>,
    #[serde(flatten)]
    others: Others,
}

type Others = BTreeMap<String, Value>;

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ClientConnection {
    kubeconfig: Text<PathBuf>,
    #[serde(flatten)]
    others: Others,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocalFields {
    bridge_interface: Text<String>,
    interface_name_prefix: Text<String>,
    #[serde(flatten)]
    others: Others,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conntrack {
    tcp_established_timeout: Text<GoDuration>,
    tcp_close_wait_timeout: Text<GoDuration>,
    udp_timeout: Text<GoDuration>,
    udp_stream_timeout: Text<GoDuration>,
    #[serde(flatten)]
    others: Others,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Tables {
    masquerade_all: Option<bool>,
    #[serde(flatten)]
    others: Others,
}

impl Document {
    fn unknown(&self) -> Vec<String> {
        let none = Others::new();
        let mut names = Vec::new();
        for (prefix, others) in [
            ("", &self.others),
            ("clientConnection.", self.client_connection.as_ref().map_or(&none, |it| &it.others)),
            ("detectLocal.", self.detect_local.as_ref().map_or(&none, |it| &it.others)),
            ("conntrack.", self.conntrack.as_ref().map_or(&none, |it| &it.others)),
            ("iptables.", self.iptables.as_ref().map_or(&none, |it| &it.others)),
            ("nftables.", self.nftables.as_ref().map_or(&none, |it| &it.others)),
        ] {
            collect(prefix, others.iter(), &mut names);
        }
        names
    }

    fn into_options(self) -> Options {
        let detect_local = self.detect_local.unwrap_or_default();
        let conntrack = self.conntrack.unwrap_or_default();
        let tables = [self.iptables, self.nftables];
        Options {
            kubeconfig: self.client_connection.and_then(|it| it.kubeconfig.0),
            node_name: self.hostname_override.0,
            bind_address: self.bind_address.0,
            healthz_bind_address: self.healthz_bind_address.0,
            metrics_bind_address: self.metrics_bind_address.0,
            detect_local_mode: self.detect_local_mode.0,
            cluster_cidr: self.cluster_cidr.0,
            pod_bridge_interface: detect_local.bridge_interface.0,
            pod_interface_name_prefix: detect_local.interface_name_prefix.0,
            node_port_addresses: self.node_port_addresses.and_then(|it| it.0),
            masquerade_all: tables.into_iter().flatten().filter_map(|it| it.masquerade_all).max(),
            conntrack_tcp_timeout_established: conntrack.tcp_established_timeout.0,
            conntrack_tcp_timeout_close_wait: conntrack.tcp_close_wait_timeout.0,
            conntrack_udp_timeout: conntrack.udp_timeout.0,
            conntrack_udp_timeout_stream: conntrack.udp_stream_timeout.0,
            oom_score_adj: self.oom_score_adj.0,
            idle: Idle::default(),
        }
    }
}

/// Names the fields that are set, by their paths.
fn collect<'a>(prefix: &str, fields: impl Iterator<Item = (&'a String, &'a Value)>, names: &mut Vec<String>) {
    for (name, value) in fields {
        match value {
            Value::Object(fields) => collect(&format!("{prefix}{name}."), fields.iter(), names),
            value if is_set(value) => names.push(format!("{prefix}{name}")),
            _ => {}
        }
    }
}

/// Whether a value is more than Go's zero value, which kubeadm writes for what nobody has set.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !matches!(value.as_str(), "" | "0" | "0s" | "false"),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => fields.values().any(is_set),
    }
}

/// A field that is written as text or a number; `None` if it is empty, which in Go is not to be set.
struct Text<T>(Option<T>);

impl<T> Default for Text<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Option::<Scalar>::deserialize(deserializer)? {
            None => return Ok(Self(None)),
            Some(Scalar::Number(number)) => number.to_string(),
            Some(Scalar::Text(text)) if text.is_empty() => return Ok(Self(None)),
            Some(Scalar::Text(text)) => text,
        };
        text.parse().map(|value| Self(Some(value))).map_err(D::Error::custom)
    }
}

/// A list of texts, read as if they were one with commas; `None` if it is empty.
struct Texts<T>(Option<T>);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Texts<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts: Vec<String> = Vec::deserialize(deserializer)?;
        if texts.is_empty() {
            return Ok(Self(None));
        }
        texts.join(",").parse().map(|value| Self(Some(value))).map_err(D::Error::custom)
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Text(String),
}

struct ApiVersion;

impl FromStr for ApiVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
        if text == VERSION { Ok(Self) } else { Err(format!("apiVersion is {text}, not {VERSION}")) }
    }
}

struct Kind;

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KIND: &str = "KubeProxyConfiguration";
        if text == KIND { Ok(Self) } else { Err(format!("kind is {text}, not {KIND}")) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parse(fields: &str) -> Result<File, String> {
        File::parse(&format!("{HEAD}{fields}")).map_err(|broken| broken.to_string())
    }

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn flags(flags: &[&str]) -> Result<Options, String> {
        let arguments = ["podnet"].iter().chain(flags);
        Command::try_parse_from(arguments).map(|it| it.options).map_err(|error| error.to_string())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// What `kubeadm init` leaves in the ConfigMap kube-proxy.
    const KUBEADM: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

    #[test]
    fn kubeadms_file_sets_little() {
        let file = File::parse(KUBEADM).unwrap();
        assert_eq!(file.unknown, [""; 0]);
        let expected = Options {
            kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
            bind_address: Some(Ipv4Addr::UNSPECIFIED.into()),
            cluster_cidr: Some("10.244.0.0/16,fd00:10:244::/56".parse().unwrap()),
            masquerade_all: Some(false),
            conntrack_udp_timeout: Some(GoDuration(Duration::ZERO)),
            conntrack_udp_timeout_stream: Some(GoDuration(Duration::ZERO)),
            ..Options::default()
        };
        assert_eq!(file.options, expected);
        assert_eq!(file.options.without_effect(), ["clusterCIDR"]);
        assert_eq!(file.options.healthz(), Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(file.options.metrics(), Some("127.0.0.1:10249".parse().unwrap()));
    }

    #[test]
    fn fields_mean_what_they_mean_to_kube_proxy() {
        let file = parse(
            "hostnameOverride: Node-A\nbindAddress: fd00::1\nhealthzBindAddress: 10.0.0.1\n\
             metricsBindAddress: '[::]:9999'\ndetectLocalMode: BridgeInterface\n\
             detectLocal: {bridgeInterface: cni0}\nnodePortAddresses: [localhost, 10.0.0.0/8]\n\
             oomScoreAdj: -998\nnftables: {masqueradeAll: true}\n\
             conntrack: {tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h, udpTimeout: 0s, \
             udpStreamTimeout: 1m30s}\n",
        )
        .unwrap();
        let options = file.options;
        assert_eq!(file.unknown, [""; 0]);
        assert_eq!(options.node().as_deref(), Some("node-a"));
        assert_eq!(options.healthz(), Some("10.0.0.1:10256".parse().unwrap()));
        assert_eq!(options.metrics(), Some("[::]:9999".parse().unwrap()));
        assert_eq!(options.oom_score_adj, Some(OomScoreAdj(-998)));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let expected = Datapath {
            primary_ip: Some("fd00::1".parse().unwrap()),
            detect_local: DetectLocal::BridgeInterface("cni0".to_owned()),
            node_ports: "localhost,10.0.0.0/8".parse().unwrap(),
            timeouts: Timeouts {
                tcp_established: seconds(86_400),
                tcp_close_wait: seconds(3600),
                udp: None,
                udp_stream: seconds(90),
            },
        };
        assert_eq!(options.datapath(), expected);
        let proxy = options.proxy("node-a".to_owned(), false);
        assert!(proxy.masquerade_all && !proxy.localhost_node_ports);
        assert_eq!(proxy.node_port_addresses, "127.0.0.0/8,::1/128,10.0.0.0/8".parse().unwrap());
    }

    #[test]
    fn what_is_set_and_not_known_is_named() {
        let file = parse(
            "mode: ipvs\nipvs: {scheduler: lc, strictARP: true, syncPeriod: 30s, excludeCIDRs: []}\n\
             conntrack: {maxPerCore: 1, min: 0}\nfeatureGates: {A: true, B: false}\ntypo: 1\n\
             clientConnection: {qps: 5}\n",
        );
        let expected = [
            "featureGates.A",
            "ipvs.scheduler",
            "ipvs.strictARP",
            "ipvs.syncPeriod",
            "mode",
            "typo",
            "clientConnection.qps",
            "conntrack.maxPerCore",
        ];
        assert_eq!(file.unwrap().unknown, expected);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (fields, complaint) in [
            ("hostnameOverride: [", "3:"),
            ("a: 1\nclusterCIDR: 10.0.0.0", "4:14: \"10.0.0.0\" is not a CIDR"),
            ("clusterCIDR: 10.0.0.0/8,10.0.0.0/9", "3:14: "),
            ("detectLocalMode: Guess", "3:18: \"Guess\" is not ClusterCIDR"),
            ("nodePortAddresses: [primary, here]", ": \"here\" is not a CIDR"),
            ("nodePortAddresses: [primary, all]", "together"),
            ("healthzBindAddress: here", "3:21: \"here\" is not IP:port"),
            ("conntrack:\n  udpTimeout: 1x", "4:15: \"1x\" is not a time"),
            ("conntrack: {udpTimeout: -1s}", "is not a time"),
            ("oomScoreAdj: 1001", "3:14: \"1001\" is not between"),
            ("conntrack: many", "3:12: "),
            ("bindAddress: here", "3:14: "),
        ] {
            let error = parse(fields).unwrap_err();
            assert!(error.contains(complaint), "{fields:?}: {error}");
        }
        let whole = |text: &str| File::parse(text).unwrap_err().to_string();
        assert_eq!(whole("mode: a"), "1:1: the field apiVersion is missing");
        assert_eq!(
            whole("kind: KubeProxyConfiguration\napiVersion: v1"),
            "2:13: apiVersion is v1, not kubeproxy.config.k8s.io/v1alpha1"
        );
        let other = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Other";
        assert_eq!(whole(other), "2:7: kind is Other, not KubeProxyConfiguration");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = File::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(error.contains("/no/such/file") && error.contains("--config"), "{error}");
    }

    #[test]
    fn flags_of_k3s_and_kubeadm_are_taken() {
        let k3s = flags(&[
            "--cluster-cidr=10.42.0.0/16",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-tcp-timeout-established=0s",
            "--healthz-bind-address=127.0.0.1",
            "--hostname-override=server-0",
            "--kubeconfig=/k3s.yaml",
            "--proxy-mode=iptables",
            "-v=2",
            "--masquerade-all",
            "--nodeport-addresses=primary,localhost",
            "--oom-score-adj=-998",
        ])
        .unwrap();
        assert_eq!(k3s.healthz(), Some("127.0.0.1:10256".parse().unwrap()));
        assert_eq!(k3s.node().as_deref(), Some("server-0"));
        let proxy = k3s.proxy("server-0".to_owned(), false);
        assert!(proxy.masquerade_all && proxy.localhost_node_ports);
        assert_eq!(proxy.node_port_addresses, NodePortAddresses::Primary);
        assert_eq!(k3s.datapath().timeouts, Timeouts::default());
        let idle = ["clusterCIDR", "mode", "logging.verbosity"];
        assert_eq!(k3s.without_effect(), idle);
        assert_eq!(flags(&[]).unwrap().without_effect(), [""; 0]);
        for wrong in [
            "--oom-score-adj=5000",
            "--cluster-cidr=a",
            "--detect-local-mode=Guess",
            "--conntrack-udp-timeout=1",
        ] {
            assert!(flags(&[wrong]).unwrap_err().contains(&wrong[..12]), "{wrong}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse("metricsBindAddress: 10.0.0.1:1\nhealthzBindAddress: 10.0.0.1:2\n").unwrap();
        let options = flags(&["--metrics-listen=off", "--masquerade-all=false"]).unwrap().or(file.options);
        assert_eq!(options.metrics(), None);
        assert_eq!(options.healthz(), Some("10.0.0.1:2".parse().unwrap()));
        assert_eq!(options.masquerade_all, Some(false));
    }

    #[test]
    fn servers_of_an_ipv6_node_listen_at_ipv6_addresses() {
        let options = flags(&["--bind-address=::"]).unwrap();
        assert_eq!(options.healthz(), Some("[::]:10256".parse().unwrap()));
        assert_eq!(options.metrics(), Some("[::1]:10249".parse().unwrap()));
        assert_eq!(options.datapath().primary_ip, None);
        for (text, expected) in [
            ("off", Listen::Off),
            ("", Listen::Off),
            ("::1", Listen::At(Ipv6Addr::LOCALHOST.into(), None)),
            ("[::1]", Listen::At(Ipv6Addr::LOCALHOST.into(), None)),
            ("[::1]:80", Listen::At(Ipv6Addr::LOCALHOST.into(), Some(80))),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
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
