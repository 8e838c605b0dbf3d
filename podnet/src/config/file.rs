//! A `KubeProxyConfiguration`, as text.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;
use thiserror::Error;

use super::{ClusterCidr, GoDuration, Idle, Listen, LocalMode, NodePorts, OomScoreAdj, Options};
use crate::cluster::manifests::{self, Broken};

/// A configuration that cannot be used.
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
    /// It lacks what another setting needs.
    #[error("detectLocalMode {mode} needs {field}: name one, or choose another mode")]
    Missing {
        /// The value of `detectLocalMode`.
        mode: String,
        /// The field that is not set.
        field: &'static str,
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
    iptables: Option<IpTables>,
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

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpTables {
    localhost_node_ports: Option<bool>,
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
        let iptables = self.iptables.unwrap_or_default();
        let masquerade_all = [iptables.masquerade_all, self.nftables.and_then(|it| it.masquerade_all)];
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
            localhost_node_ports: iptables.localhost_node_ports,
            masquerade_all: masquerade_all.into_iter().flatten().max(),
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
pub(super) fn is_set(value: &Value) -> bool {
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
pub(super) mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::super::Timeouts;
    use super::*;
    use crate::cluster::node::LocalPods;
    use crate::interfaces::PodInterfaces;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    pub(in crate::config) fn parse(fields: &str) -> Result<File, String> {
        File::parse(&format!("{HEAD}{fields}")).map_err(|broken| broken.to_string())
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
        assert_eq!(file.options.without_effect(), [""; 0]);
        assert_eq!(file.options.healthz(), Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(file.options.metrics(), Some("127.0.0.1:10249".parse().unwrap()));
    }

    #[test]
    fn fields_mean_what_they_mean_to_kube_proxy() {
        let file = parse(
            "hostnameOverride: Node-A\nbindAddress: fd00::1\nhealthzBindAddress: 10.0.0.1\n\
             metricsBindAddress: '[::]:9999'\ndetectLocalMode: BridgeInterface\n\
             detectLocal: {bridgeInterface: cni0}\nnodePortAddresses: [localhost, 10.0.0.0/8]\n\
             oomScoreAdj: -998\nnftables: {masqueradeAll: true}\niptables: {localhostNodePorts: true}\n\
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
        let expected = Timeouts {
            tcp_established: seconds(86_400),
            tcp_close_wait: seconds(3600),
            udp: None,
            udp_stream: seconds(90),
        };
        assert_eq!(options.timeouts(), expected);
        assert_eq!(options.node_ports(), "localhost,10.0.0.0/8".parse().unwrap());
        let bridge = PodInterfaces::PortsOf("cni0".to_owned());
        assert_eq!(options.pod_interfaces().unwrap(), Some(bridge));
        let proxy = options.proxy("node-a".to_owned());
        assert_eq!(
            (proxy.pods, proxy.primary_ip),
            (LocalPods::ByInterface, Some("fd00::1".parse().unwrap()))
        );
        assert!(proxy.masquerade_all && proxy.localhost_node_ports);
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
}
