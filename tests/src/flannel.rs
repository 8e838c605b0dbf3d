//! The real flannel: VXLAN between nodes, and on each a bridge for pods.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;

use crate::node::{Bridge, Node};
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// Whom flannel talks to the API server as.
pub const USER: &str = "flannel";

/// Gives flannel the rights of its own manifest.
///
/// # Errors
/// Those of the API.
pub async fn grant(client: Client) -> Result<()> {
    let create = PostParams::default();
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": USER},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        ],
    }))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": USER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
    }))?;
    Api::all(client.clone()).create(&create, &role).await.context("cannot create the ClusterRole")?;
    Api::all(client).create(&create, &binding).await.context("cannot create the ClusterRoleBinding")?;
    Ok(())
}

/// flannel's daemon on a node. It is killed when it is dropped.
pub struct Flannel(Process);

impl Flannel {
    /// Starts the daemon on a node that is known to the API, and makes the node's bridge as flannel's plugin
    /// has the `bridge` plugin make it: with the subnet and the MTU that the daemon tells.
    ///
    /// # Errors
    /// If the daemon does not get that far.
    pub fn start(node: &Node, program: &Path, kubeconfig: &Path) -> Result<Self> {
        let folder = node.lab().folder(&format!("flannel-{}", node.name()))?;
        let (config, subnet) = (folder.join("net-conf.json"), folder.join("subnet.env"));
        let text = json!({
            "EnableIPv4": true,
            "Network": "10.244.0.0/16",
            "EnableIPv6": true,
            "IPv6Network": "fd00:10:244::/48",
            // The other way needs bridges whose packets iptables sees.
            "EnableNFTables": true,
            "Backend": {"Type": "vxlan"},
        });
        fs::write(&config, text.to_string()).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = node.place().command(program)?;
        command.args(["--kube-subnet-mgr", "--iface=eth0", "--ip-masq=false"]).env("NODE_NAME", node.name());
        command.arg("--kubeconfig-file").arg(kubeconfig).arg("--net-config-path").arg(&config);
        command.arg("--subnet-file").arg(&subnet);
        let log = node.lab().folder("logs")?.join(format!("flannel-{}.log", node.name()));
        let mut process = Process::start(&format!("flannel on node {}", node.name()), command, &log)?;
        let told = until("flannel to tell the subnet", PATIENCE, || {
            if let Some(status) = process.ended()? {
                return Ok(Err(anyhow!("flannel has ended, {status}")));
            }
            Ok(Ok(fs::read_to_string(&subnet).with_context(|| format!("no {}", subnet.display()))?))
        });
        let told = told.and_then(|ended| ended).with_context(|| process.last_words())?;
        node.bridge(bridge(node, &told).with_context(|| told.clone())?)?;
        Ok(Self(process))
    }

    /// The end of its log, for error messages.
    pub fn last_words(&self) -> String {
        self.0.last_words()
    }
}

/// The bridge for what flannel has told in its `subnet.env`.
fn bridge(node: &Node, told: &str) -> Result<Bridge> {
    let told: BTreeMap<_, _> = told.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| told.get(name).copied().with_context(|| format!("flannel tells no {name}"));
    let prefix = |name: &str, address: String| -> Result<u8> {
        let (first, length) = value(name)?.split_once('/').with_context(|| format!("a strange {name}"))?;
        ensure!(first == address, "{name} does not begin at {address}");
        length.parse().with_context(|| format!("a strange {name}"))
    };
    let index = node.index();
    Ok(Bridge {
        prefix_v4: prefix("FLANNEL_SUBNET", format!("10.244.{index}.1"))?,
        prefix_v6: prefix("FLANNEL_IPV6_SUBNET", format!("fd00:10:244:{index:x}::1"))?,
        mtu: value("FLANNEL_MTU")?.parse().context("a strange MTU")?,
    })
}
