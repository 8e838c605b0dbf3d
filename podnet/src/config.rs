//! kube-proxy's settings: those of its flags, and those of a `KubeProxyConfiguration`.
//!
//! Both are read into [`Options`]; flags win over the file. What has no effect in podnet is accepted and told,
//! so that a kube-proxy's settings can be handed over as they are.

mod file;
mod values;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use podnet_common::conntrack::{REFRESH_BY_OTHER, Timeout};
use serde_json::Value;

pub use file::{ConfigError, File};
pub use values::{ClusterCidr, GoDuration, Listen, LocalMode, NodePortAddress, NodePorts, OomScoreAdj};

use crate::cluster::node::{LocalPods, ProxySettings};
use crate::interfaces::PodInterfaces;
use file::is_set;

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

    /// Have NodePorts at 127.0.0.1 and ::1 too, for the node's own processes
    #[arg(
        long,
        value_name = "BOOL",
        env = "PODNET_LOCALHOST_NODE_PORTS",
        visible_alias = "iptables-localhost-nodeports",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pub localhost_node_ports: Option<bool>,

    /// Masquerade all that is sent to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,

    /// How long an idle TCP connection is kept, as in 24h or 1h30m; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,

    /// How long a TCP connection is kept that one side has closed; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,

    /// How long a UDP flow is kept until the client has sent again after an answer; 0 for the usual time
    #[arg(long, value_name = "TIME")]
    pub conntrack_udp_timeout: Option<GoDuration>,

    /// How long an idle UDP flow is kept after that; 0 for the usual time
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
            localhost_node_ports: self.localhost_node_ports.or(other.localhost_node_ports),
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
    pub fn proxy(&self, node: String) -> ProxySettings {
        let (node_port_addresses, localhost) = self.node_ports().settings();
        ProxySettings {
            node,
            node_port_addresses,
            localhost_node_ports: self.localhost_node_ports.unwrap_or(false) || localhost,
            masquerade_all: self.masquerade_all.unwrap_or(false),
            pods: match (self.local_mode(), &self.cluster_cidr) {
                (LocalMode::ClusterCidr, Some(cidrs)) => LocalPods::Within(cidrs.0.clone()),
                (LocalMode::NodeCidr, _) => LocalPods::OfNode,
                _ => LocalPods::ByInterface,
            },
            primary_ip: self.bind_address.filter(|address| !address.is_unspecified()),
            ..ProxySettings::default()
        }
    }

    fn local_mode(&self) -> LocalMode {
        self.detect_local_mode.unwrap_or_default()
    }

    /// The interfaces that face pods, if that is what tells pods from other clients.
    ///
    /// # Errors
    /// When the name that this takes is missing.
    pub fn pod_interfaces(&self) -> Result<Option<PodInterfaces>, ConfigError> {
        let named = |name: &Option<String>, field| {
            let name = name.clone().filter(|name| !name.trim().is_empty());
            name.ok_or(ConfigError::Missing { mode: self.local_mode().name(), field })
        };
        Ok(match self.local_mode() {
            LocalMode::ClusterCidr | LocalMode::NodeCidr => None,
            LocalMode::BridgeInterface => {
                let bridge = named(&self.pod_bridge_interface, "detectLocal.bridgeInterface")?;
                Some(PodInterfaces::PortsOf(bridge))
            }
            LocalMode::InterfaceNamePrefix => {
                let prefix = named(&self.pod_interface_name_prefix, "detectLocal.interfaceNamePrefix")?;
                Some(PodInterfaces::Prefixed(prefix))
            }
        })
    }

    /// Where NodePorts are served.
    pub fn node_ports(&self) -> NodePorts {
        self.node_port_addresses.clone().unwrap_or_else(|| NodePorts(vec![NodePortAddress::Primary]))
    }

    /// How long flows are kept.
    pub fn timeouts(&self) -> Timeouts {
        let time = |time: Option<GoDuration>| time.map(|time| time.0).filter(|time| !time.is_zero());
        Timeouts {
            tcp_established: time(self.conntrack_tcp_timeout_established),
            tcp_close_wait: time(self.conntrack_tcp_timeout_close_wait),
            udp: time(self.conntrack_udp_timeout),
            udp_stream: time(self.conntrack_udp_timeout_stream),
        }
    }

    /// The settings that have no effect in podnet, or not yet, by the names that they have in a file.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let mode = self.local_mode();
        let within = mode == LocalMode::ClusterCidr;
        // What is switched off is what podnet does.
        let idle =
            |text: &Option<String>| text.as_ref().is_some_and(|text| is_set(&Value::from(text.as_str())));
        let settings = [
            (within && self.detect_local_mode.is_some() && self.cluster_cidr.is_none(), "detectLocalMode"),
            (!within && self.cluster_cidr.is_some(), "clusterCIDR"),
            (
                mode != LocalMode::BridgeInterface && self.pod_bridge_interface.is_some(),
                "detectLocal.bridgeInterface",
            ),
            (
                mode != LocalMode::InterfaceNamePrefix && self.pod_interface_name_prefix.is_some(),
                "detectLocal.interfaceNamePrefix",
            ),
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

/// How long flows are kept; `None` is as long as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// An idle TCP connection.
    pub tcp_established: Option<Duration>,
    /// A TCP connection that one side has closed.
    pub tcp_close_wait: Option<Duration>,
    /// A UDP flow whose client has not sent again after an answer.
    pub udp: Option<Duration>,
    /// One whose client has.
    pub udp_stream: Option<Duration>,
}

impl Timeouts {
    /// The lifetime in units of [`Time`](podnet_common::conntrack::Time): four seconds at least, since packets of a
    /// living flow note only now and then that it lives, and nine years at most.
    pub fn units(&self, which: Timeout) -> u32 {
        let set = match which {
            Timeout::TcpEstablished => self.tcp_established,
            Timeout::TcpCloseWait => self.tcp_close_wait,
            Timeout::Udp => self.udp,
            Timeout::UdpStream => self.udp_stream,
        };
        let units = |time: Duration| u32::try_from(time.as_nanos() >> 26).unwrap_or(u32::MAX);
        set.map_or(which.usual(), |time| units(time).max(2 * REFRESH_BY_OTHER))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use podnet_common::conntrack::Time;

    use super::*;
    use crate::cluster::node::NodePortAddresses;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn flags(flags: &[&str]) -> Result<Options, String> {
        let arguments = ["podnet"].iter().chain(flags);
        Command::try_parse_from(arguments).map(|it| it.options).map_err(|error| error.to_string())
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
        let proxy = k3s.proxy("server-0".to_owned());
        assert!(proxy.masquerade_all && proxy.localhost_node_ports);
        assert_eq!(proxy.node_port_addresses, NodePortAddresses::Primary);
        assert_eq!(k3s.timeouts(), Timeouts::default());
        assert_eq!(proxy.pods, LocalPods::Within(vec!["10.42.0.0/16".parse().unwrap()]));
        let idle = ["mode", "logging.verbosity"];
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
        let file =
            file::tests::parse("metricsBindAddress: 10.0.0.1:1\nhealthzBindAddress: 10.0.0.1:2\n").unwrap();
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
        assert_eq!(options.proxy("a".to_owned()).primary_ip, None);
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
    fn pods_are_told_by_what_the_mode_says() {
        let pods = |list: &[&str]| {
            let options = flags(list).unwrap();
            (options.proxy("a".to_owned()).pods, options.pod_interfaces(), options.without_effect())
        };
        let cidr = || LocalPods::Within(vec!["10.42.0.0/16".parse().unwrap()]);
        let by_interface = LocalPods::ByInterface;
        for (list, expected, interfaces, idle) in [
            (&[][..], &by_interface, None, &[][..]),
            (&["--cluster-cidr=10.42.0.0/16"], &cidr(), None, &[]),
            (&["--detect-local-mode=ClusterCIDR"], &by_interface, None, &["detectLocalMode"]),
            (&["--detect-local-mode=NodeCIDR"], &LocalPods::OfNode, None, &[]),
            (
                &["--detect-local-mode=NodeCIDR", "--cluster-cidr=10.42.0.0/16"],
                &LocalPods::OfNode,
                None,
                &["clusterCIDR"],
            ),
            (
                &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"],
                &by_interface,
                Some(PodInterfaces::PortsOf("cni0".to_owned())),
                &[],
            ),
            (
                &[
                    "--detect-local-mode=InterfaceNamePrefix",
                    "--pod-interface-name-prefix=tap",
                    "--pod-bridge-interface=cni0",
                ],
                &by_interface,
                Some(PodInterfaces::Prefixed("tap".to_owned())),
                &["detectLocal.bridgeInterface"],
            ),
        ] {
            let (pods, found, without_effect) = pods(list);
            assert_eq!((&pods, found.unwrap()), (expected, interfaces), "{list:?}");
            assert_eq!(without_effect, idle, "{list:?}");
        }
        for list in [
            &["--detect-local-mode=BridgeInterface"][..],
            &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface="],
        ] {
            let error = pods(list).1.unwrap_err().to_string();
            assert!(error.contains("BridgeInterface needs detectLocal.bridgeInterface"), "{error}");
        }
    }

    #[test]
    fn timeouts_are_in_the_kernels_units() {
        let options = flags(&[
            "--conntrack-tcp-timeout-established=1h",
            "--conntrack-tcp-timeout-close-wait=500ms",
            "--conntrack-udp-timeout=0s",
            "--conntrack-udp-timeout-stream=1000000h",
        ]);
        let timeouts = options.unwrap().timeouts();
        let expected = [Time::seconds(3600), 2 * REFRESH_BY_OTHER, Time::seconds(30), u32::MAX];
        assert_eq!(Timeout::ALL.map(|which| timeouts.units(which)), expected);
    }
}
