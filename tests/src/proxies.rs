//! Those who serve Services from one API server: the real kube-proxy, and podnet.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::kubernetes::Rights;
use crate::node::Node;
use crate::process::Process;

/// The addresses of the lab's pods, in the form of kube-proxy's configuration.
const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/48";

/// Whom the proxies talk to the API server as.
pub struct Kubeconfigs {
    /// kube-proxy.
    pub kube_proxy: PathBuf,
    /// podnet, with the rights that its manifest gives it.
    pub podnet: PathBuf,
}

impl Kubeconfigs {
    /// Gives both their rights, as the user whose kubeconfig `admin` is.
    ///
    /// # Errors
    /// Those of the API.
    pub fn create(plane: &ControlPlane, admin: &Path) -> Result<Self> {
        let rights =
            Rights::of_manifest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/podnet.yaml"))?;
        let token = plane.run(admin, async |client| rights.grant(client, true).await)?;
        Ok(Self {
            kube_proxy: plane.kubeconfig_of_user("kube-proxy", "system:kube-proxy")?,
            podnet: plane.kubeconfig_with_token("podnet", &token)?,
        })
    }
}

/// Starts the real kube-proxy in its mode nftables on a node.
///
/// # Errors
/// If it cannot be started.
pub fn kube_proxy(node: &Node, programs: &Path, kubeconfig: &Path) -> Result<Process> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node.name(),
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": POD_CIDRS,
        "detectLocalMode": "ClusterCIDR",
        "nodePortAddresses": ["primary"],
        "nftables": {"minSyncPeriod": "10ms"},
        // The machine's own limits are not kube-proxy's to set here.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s",
        },
    });
    let path = node.lab().folder("kube-proxy")?.join("config.yaml");
    fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = node.place().command(programs.join("kube-proxy"))?;
    command.arg("--config").arg(path);
    Process::start("kube-proxy", command, &node.lab().folder("logs")?.join("kube-proxy.log"))
}
