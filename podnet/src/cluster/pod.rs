//! Pods on a node: their addresses, and their ports on it (`hostPort`) with the semantics of the CNI plugin `portmap`.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use podnet_common::wire::Protocol;

use super::object::{Invalid, Key, Kind, MAX_NAME, Object, Parse, created, invalid, names, number, protocol};

/// The annotation by which a Pod has its queries for names left alone: `off`.
const DNS: &str = "podnet.io/dns";

/// A Pod that is on a node and has addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its key.
    pub key: Key,
    /// When it was created, in seconds of the Unix epoch.
    pub created: Option<i64>,
    /// The name of its node.
    pub node: Arc<str>,
    /// Its addresses, one of each family at most.
    pub ips: Vec<IpAddr>,
    /// Its ports on the node; none if it has no network namespace of its own.
    pub ports: Vec<HostPort>,
    /// Whether its queries for names may be answered in the kernel.
    pub answers: bool,
}

/// A port of a pod on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the node that it is at: all of them if there is none, all of a family if it is
    /// unspecified.
    pub ip: Option<IpAddr>,
    /// The number on the node.
    pub host: u16,
    /// The number in the pod.
    pub container: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Parse for core::Pod {
    const KIND: Kind = Kind::Pod;

    fn key(&self) -> Result<Key, Invalid> {
        names(Self::KIND, &self.metadata, MAX_NAME).map(|(namespace, name)| Key::pod(namespace, name))
    }

    /// It is there from the moment it has an address until it has ended: the plugin takes no notice of
    /// readiness, nor do names of Pods.
    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let (spec, status) = (self.spec.unwrap_or_default(), self.status.unwrap_or_default());
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let (Some(node), false) = (spec.node_name, ended) else { return Ok(None) };
        let mut ports = Vec::new();
        let containers = if spec.host_network == Some(true) { Vec::new() } else { spec.containers };
        let declared = containers.into_iter().flat_map(|container| container.ports.unwrap_or_default());
        for port in declared {
            let bad = |field, number: i32| {
                invalid(Self::KIND, &key, field, format!("{number} is not between 1 and 65535"))
            };
            let Some(host) = port.host_port.filter(|&host| host != 0) else { continue };
            let ip = port.host_ip.filter(|ip| !ip.is_empty()).map(|ip| {
                let field = "spec.containers[].ports[].hostIP";
                ip.parse().map_err(|_| invalid(Self::KIND, &key, field, format!("{ip:?} is not an IP")))
            });
            ports.push(HostPort {
                ip: ip.transpose()?,
                host: number(host).ok_or_else(|| bad("spec.containers[].ports[].hostPort", host))?,
                container: number(port.container_port)
                    .ok_or_else(|| bad("spec.containers[].ports[].containerPort", port.container_port))?,
                protocol: protocol(port.protocol.as_deref()).map_err(|reason| {
                    invalid(Self::KIND, &key, "spec.containers[].ports[].protocol", reason)
                })?,
            });
        }
        let listed = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
        let mut ips: Vec<IpAddr> = Vec::new();
        for text in listed.chain(status.pod_ip).filter(|ip| !ip.is_empty()) {
            let ip: IpAddr = text
                .parse()
                .map_err(|_| invalid(Self::KIND, &key, "status.podIPs", format!("{text:?} is not an IP")))?;
            if ips.iter().all(|known| known.is_ipv4() != ip.is_ipv4()) {
                ips.push(ip);
            }
        }
        if ips.is_empty() {
            return Ok(None);
        }
        let annotations = self.metadata.annotations.as_ref();
        let answers = annotations.and_then(|all| all.get(DNS)).is_none_or(|value| value != "off");
        let pod = Pod { created: created(&self.metadata), node: node.into(), ips, ports, key, answers };
        Ok(Some(Object::Pod(pod.into())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value, status: serde_json::Value) -> Option<Pod> {
        let pod = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec, "status": status});
        match serde_json::from_value::<core::Pod>(pod).unwrap().parse().unwrap() {
            Some(Object::Pod(pod)) => Some(Arc::unwrap_or_clone(pod)),
            other => {
                assert_eq!(other, None);
                None
            }
        }
    }

    fn containers() -> serde_json::Value {
        json!([{"name": "a", "ports": [
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "hostIP": "192.0.2.1", "protocol": "UDP"},
            {"containerPort": 9000},
        ]}])
    }

    #[test]
    fn host_port_is_of_pods_with_an_address_of_their_own() {
        let spec = json!({"nodeName": "a", "containers": containers()});
        let status = json!({"phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
        let found = pod(spec.clone(), status.clone()).unwrap();
        assert_eq!(found.key, Key::pod("shop", "web"));
        assert_eq!((&*found.node, found.ips.len()), ("a", 2));
        assert_eq!(
            found.ports,
            [
                HostPort { ip: None, host: 8080, container: 80, protocol: Protocol::TCP },
                HostPort { ip: "192.0.2.1".parse().ok(), host: 53, container: 53, protocol: Protocol::UDP },
            ]
        );
        let host_network = json!({"nodeName": "a", "hostNetwork": true, "containers": containers()});
        assert_eq!(pod(host_network, status.clone()).unwrap().ports, []);
        assert_eq!(pod(json!({"containers": containers()}), status.clone()), None, "it is on no node yet");
        assert_eq!(pod(spec.clone(), json!({"phase": "Pending"})), None, "it has no address yet");
        assert_eq!(pod(json!({"nodeName": "a", "containers": [{"name": "a"}]}), status).unwrap().ports, []);
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(pod(spec.clone(), json!({"phase": phase, "podIP": "10.0.0.1"})), None);
        }
    }
}
