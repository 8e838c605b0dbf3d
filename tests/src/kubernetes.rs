//! Objects in a real cluster: what a kubelet and a person with kubectl would do.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::differential::objects::Objects;
use crate::node::Node;
use crate::peer::PORT;
use crate::pod::Pod;
use crate::wait::{PATIENCE, until};

/// The namespace that tests work in.
pub const NAMESPACE: &str = "default";

/// The zone of a node: each is in one of its own.
pub fn zone(node: &str) -> String {
    format!("zone-{node}")
}

/// Waits until the controllers have made the ServiceAccount that Pods need.
///
/// # Errors
/// If they do not.
pub fn wait_for_controllers(plane: &ControlPlane, admin: &Path) -> Result<()> {
    until("the controllers to work", PATIENCE, || {
        plane.run(admin, async |client| {
            let accounts: Api<core::ServiceAccount> = Api::namespaced(client, NAMESPACE);
            accounts.get("default").await.context("there is no ServiceAccount yet").map(drop)
        })
    })
}

/// Says that a node exists and is fine, as its kubelet would.
///
/// # Errors
/// Those of the API.
pub async fn register_node(client: Client, node: &Node) -> Result<()> {
    let nodes: Api<core::Node> = Api::all(client);
    let cidrs = node.pod_cidrs();
    nodes
        .create(
            &PostParams::default(),
            &object(json!({
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
                "metadata": {
                    "name": node.name(),
                    "labels": {
                        "kubernetes.io/hostname": node.name(),
                        "topology.kubernetes.io/zone": zone(node.name()),
                    },
                    // flannel takes it for granted that a kubelet has left some.
                    "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
                },
            }))?,
        )
        .await
        .context("cannot create a Node")?;
    let status = json!({"status": {
        "addresses": [
            {"type": "InternalIP", "address": node.v4()},
            {"type": "InternalIP", "address": node.v6()},
        ],
        "conditions": [condition("Ready", true)],
    }});
    nodes
        .patch_status(node.name(), &PatchParams::default(), &Patch::Merge(status))
        .await
        .context("cannot set a Node's status")?;
    Ok(())
}

/// Makes a Pod of a Service and says that it runs, as its kubelet would.
///
/// # Errors
/// Those of the API.
pub async fn run_pod(client: Client, pod: &Pod, app: &str) -> Result<()> {
    let pods: Api<core::Pod> = Api::namespaced(client, NAMESPACE);
    let object = object(json!({
        "metadata": {"name": pod.name(), "labels": {"app": app}},
        "spec": {
            "nodeName": pod.node().name(),
            "containers": [{"name": "server", "image": "server"}],
        },
    }))?;
    pods.create(&PostParams::default(), &object).await.context("cannot create a Pod")?;
    let ips: Vec<_> = pod.addresses().iter().map(|address| json!({"ip": address})).collect();
    let status = json!({"status": {
        "phase": "Running",
        "podIP": pod.v4(),
        "podIPs": ips,
        "conditions": [
            condition("PodReadyToStartContainers", true),
            condition("Initialized", true),
            condition("ContainersReady", true),
            condition("Ready", true),
        ],
    }});
    pods.patch_status(pod.name(), &PatchParams::default(), &Patch::Merge(status))
        .await
        .context("cannot set a Pod's status")?;
    Ok(())
}

/// Sets whether a Pod is ready.
///
/// # Errors
/// Those of the API.
pub async fn set_ready(client: Client, pod: &Pod, ready: bool) -> Result<()> {
    let pods: Api<core::Pod> = Api::namespaced(client, NAMESPACE);
    let status = json!({"status": {"conditions": [condition("Ready", ready)]}});
    pods.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(status))
        .await
        .context("cannot set a Pod's status")?;
    Ok(())
}

/// Deletes a Pod: it is terminating for `grace` seconds, or until [`delete_pod`] is called with 0.
///
/// # Errors
/// Those of the API.
pub async fn delete_pod(client: Client, pod: &Pod, grace: u32) -> Result<()> {
    let pods: Api<core::Pod> = Api::namespaced(client, NAMESPACE);
    pods.delete(pod.name(), &DeleteParams::default().grace_period(grace))
        .await
        .context("cannot delete a Pod")?;
    Ok(())
}

/// Makes a Service of both families for the Pods of an app; returns the addresses it got.
///
/// # Errors
/// Those of the API.
pub async fn create_service(client: Client, app: &str) -> Result<Vec<IpAddr>> {
    let services: Api<core::Service> = Api::namespaced(client, NAMESPACE);
    let object = object(json!({
        "metadata": {"name": app},
        "spec": {
            "selector": {"app": app},
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": PORT},
                {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": PORT},
            ],
        },
    }))?;
    let created =
        services.create(&PostParams::default(), &object).await.context("cannot create a Service")?;
    let addresses = created.spec.and_then(|spec| spec.cluster_ips).context("a Service without addresses")?;
    addresses.iter().map(|address| address.parse().context("an address")).collect()
}

/// Makes a Service of both families that nodes have at `port`, for the Pods of an app.
///
/// # Errors
/// Those of the API.
pub async fn create_node_port(client: Client, app: &str, port: u16, external_policy: &str) -> Result<()> {
    let services: Api<core::Service> = Api::namespaced(client, NAMESPACE);
    let object = object(json!({
        "metadata": {"name": format!("{app}-{port}")},
        "spec": {
            "type": "NodePort",
            "externalTrafficPolicy": external_policy,
            "selector": {"app": app},
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": PORT, "nodePort": port},
                {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": PORT, "nodePort": port},
            ],
        },
    }))?;
    services.create(&PostParams::default(), &object).await.context("cannot create a Service")?;
    Ok(())
}

/// Creates a Service whose load balancers ask each node at `port` whether it has endpoints.
///
/// # Errors
/// Those of the API.
pub async fn create_checked_service(client: Client, app: &str, port: u16) -> Result<()> {
    let services: Api<core::Service> = Api::namespaced(client, NAMESPACE);
    let object = object(json!({
        "metadata": {"name": app},
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
            "selector": {"app": app},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }))?;
    services.create(&PostParams::default(), &object).await.context("cannot create a Service")?;
    Ok(())
}

/// Deletes a Service.
///
/// # Errors
/// Those of the API.
pub async fn delete_service(client: Client, name: &str) -> Result<()> {
    let services: Api<core::Service> = Api::namespaced(client, NAMESPACE);
    services.delete(name, &DeleteParams::default()).await.context("cannot delete a Service")?;
    Ok(())
}

/// Makes the API have the objects in `to` where it has those in `from`.
///
/// # Errors
/// Those of the API.
pub async fn reconcile(client: Client, from: &Objects, to: &Objects) -> Result<()> {
    let services: Api<core::Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    remove_missing(&services, &from.services, &to.services).await?;
    for (name, object) in &to.services {
        let unchanged = from.services.get(name) == Some(object);
        if !unchanged {
            put(&services, name, object).await?;
        }
        let status = to.statuses.get(name);
        if let Some(status) = status.filter(|status| !unchanged || from.statuses.get(name) != Some(status)) {
            let patch = Patch::Merge(json!({"status": {"loadBalancer": status}}));
            let patched = services.patch_status(name, &PatchParams::default(), &patch).await;
            patched.with_context(|| format!("cannot set the status of {name}: {status}"))?;
        }
    }
    remove_missing(&slices, &from.slices, &to.slices).await?;
    for (name, object) in &to.slices {
        if from.slices.get(name) != Some(object) {
            put(&slices, name, object).await?;
        }
    }
    Ok(())
}

type Values = BTreeMap<String, Value>;

async fn remove_missing<K: Stored>(api: &Api<K>, from: &Values, to: &Values) -> Result<()> {
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        let deleted = api.delete(name, &DeleteParams::default()).await;
        deleted.with_context(|| format!("cannot delete {name}"))?;
    }
    Ok(())
}

/// Puts an object in the place of one of the same name.
async fn put<K: Stored>(api: &Api<K>, name: &str, value: &Value) -> Result<()> {
    let params = PostParams::default();
    let object: K = object(value.clone())?;
    let replaced = match api.replace(name, &params, &object).await {
        Err(kube::Error::Api(status)) if status.code == 404 => api.create(&params, &object).await,
        // Not all fields can be changed in place.
        Err(kube::Error::Api(status)) if status.code == 422 => {
            let deleted = api.delete(name, &DeleteParams::default()).await;
            deleted.with_context(|| format!("cannot delete {name}, which {status} of"))?;
            api.create(&params, &object).await
        }
        result => result,
    };
    replaced.with_context(|| format!("cannot write {name}: {value}"))?;
    Ok(())
}

/// What the API keeps.
trait Stored: kube::Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {}

impl<K: kube::Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned> Stored for K {}

/// The rights that the shipped manifest gives to podnet.
pub struct Rights {
    account: core::ServiceAccount,
    role: ClusterRole,
    binding: ClusterRoleBinding,
}

impl Rights {
    /// Those of the manifest in `path`.
    ///
    /// # Errors
    /// If the manifest lacks them.
    pub fn of_manifest(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("not YAML")?;
        Ok(Self {
            account: find(&documents, "ServiceAccount")?,
            role: find(&documents, "ClusterRole")?,
            binding: find(&documents, "ClusterRoleBinding")?,
        })
    }

    /// Makes the ServiceAccount with its rights, or without; returns a token of it.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn grant(&self, client: Client, bound: bool) -> Result<String> {
        let create = PostParams::default();
        let namespace = self.account.metadata.namespace.as_deref().context("the account has no namespace")?;
        let name = self.account.metadata.name.as_deref().context("the account has no name")?;
        let accounts: Api<core::ServiceAccount> = Api::namespaced(client.clone(), namespace);
        accounts.create(&create, &self.account).await.context("cannot create the ServiceAccount")?;
        if bound {
            self.bind(client).await?;
        }
        let request: TokenRequest = object(json!({"spec": {"audiences": []}}))?;
        let answer = accounts.create_token_request(name, &create, &request).await.context("no token")?;
        answer.status.and_then(|status| status.token).context("no token")
    }

    /// Gives the ServiceAccount its rights.
    ///
    /// # Errors
    /// Those of the API.
    pub async fn bind(&self, client: Client) -> Result<()> {
        let create = PostParams::default();
        let roles = Api::all(client.clone());
        roles.create(&create, &self.role).await.context("cannot create the ClusterRole")?;
        let bindings = Api::all(client);
        bindings.create(&create, &self.binding).await.context("cannot create the ClusterRoleBinding")?;
        Ok(())
    }
}

fn find<T: DeserializeOwned>(documents: &[Value], kind: &str) -> Result<T> {
    let document = documents.iter().find(|document| document["kind"] == kind);
    let document = document.with_context(|| format!("the manifest has no {kind}"))?;
    T::deserialize(document).with_context(|| format!("a strange {kind}"))
}

fn condition(kind: &str, status: bool) -> Value {
    json!({"type": kind, "status": if status { "True" } else { "False" }})
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("not such an object")
}
