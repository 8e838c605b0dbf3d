//! The objects podnet reads, with the fields it needs: parsed once, valid from then on.
//!
//! The rules are those of kube-proxy (`pkg/proxy/servicechangetracker.go`, `endpointslicecache.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podnet_common::wire::{Addr, Family, Protocol};
use thiserror::Error;

/// The label that hands a Service to the proxy it names (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The value of [`PROXY_NAME`] that means podnet.
const OUR_NAME: &str = "podnet";
/// The label of headless Services, which the endpoint slice controller copies to their slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The longest name of a namespace, a Service or a port: that of a DNS label (RFC 1123).
const MAX_LABEL: usize = 63;

/// SCTP (RFC 9260).
const SCTP: Protocol = Protocol(132);

/// `namespace/name` of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of objects podnet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Service, Self::EndpointSlice];

    /// The name in messages and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// Some endpoints of a Service.
    EndpointSlice(EndpointSlice),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
        }
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        match self {
            Self::Service(service) => &service.key,
            Self::EndpointSlice(slice) => &slice.key,
        }
    }
}

/// A Service with at least one cluster IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its key.
    pub key: Key,
    /// When it was created, in seconds of the Unix epoch; `None` for one that no API server has seen.
    pub created: Option<i64>,
    /// Its cluster IPs, one of each family at most.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port of a Service, or of a slice's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, empty if it has none. Slices name the port of the Service that theirs is for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, not 0.
    pub number: u16,
}

/// Some endpoints of a Service, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its key.
    pub key: Key,
    /// The Service.
    pub service: Key,
    /// The family of the endpoints.
    pub family: Family,
    /// The ports that each endpoint has.
    pub ports: Vec<Port>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub addr: Addr,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it answers, be it about to leave or not.
    pub serving: bool,
    /// Whether it is about to leave.
    pub terminating: bool,
}

/// Why an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {key}: {field}: {reason}")]
pub struct Invalid {
    /// The object's kind.
    pub kind: &'static str,
    /// `namespace/name`, as far as it is known.
    pub key: String,
    /// The path of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// A Kubernetes type that podnet reads.
pub trait Parse {
    /// The kind of the objects it is parsed into.
    const KIND: Kind;

    /// The object's key.
    ///
    /// # Errors
    /// [`Invalid`] if it has no name, or one that Kubernetes would not take.
    fn key(&self) -> Result<Key, Invalid>;

    /// The object as podnet needs it; `None` if it is not podnet's business.
    ///
    /// # Errors
    /// [`Invalid`] naming the field that breaks a rule of the API.
    fn parse(self) -> Result<Option<Object>, Invalid>;
}

impl Parse for core::Service {
    const KIND: Kind = Kind::Service;

    fn key(&self) -> Result<Key, Invalid> {
        key(Self::KIND, &self.metadata, MAX_LABEL)
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let invalid = |field, reason| invalid(Self::KIND, &key, field, reason);
        let spec = self.spec.unwrap_or_default();
        let other_proxy = label(&self.metadata, PROXY_NAME).is_some_and(|name| name != OUR_NAME);
        if other_proxy || spec.type_.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        let mut cluster_ips = Vec::new();
        for text in spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect()) {
            if text.is_empty() || text == "None" {
                continue;
            }
            let ip: IpAddr =
                text.parse().map_err(|_| invalid("spec.clusterIPs", format!("{text:?} is not an IP")))?;
            cluster_ips.push(ip);
        }
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let mut ports = Vec::new();
        for port in spec.ports.unwrap_or_default() {
            let number = number(port.port).ok_or_else(|| {
                invalid("spec.ports[].port", format!("{} is not between 1 and 65535", port.port))
            })?;
            ports.push(Port {
                name: port_name(port.name).map_err(|reason| invalid("spec.ports[].name", reason))?,
                protocol: protocol(port.protocol.as_deref())
                    .map_err(|reason| invalid("spec.ports[].protocol", reason))?,
                number,
            });
        }
        let created = self.metadata.creation_timestamp.map(|time| time.0.as_second());
        Ok(Some(Object::Service(Service { key, created, cluster_ips, ports })))
    }
}

impl Parse for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn key(&self) -> Result<Key, Invalid> {
        // A subdomain name: the controller appends to the Service's.
        key(Self::KIND, &self.metadata, 253)
    }

    fn parse(self) -> Result<Option<Object>, Invalid> {
        let key = self.key()?;
        let invalid = |field, reason| invalid(Self::KIND, &key, field, reason);
        let service = match label(&self.metadata, SERVICE_NAME) {
            Some(name) if !name.is_empty() && label(&self.metadata, HEADLESS).is_none() => {
                Key::new(namespace(&self.metadata), name)
            }
            _ => return Ok(None),
        };
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return Ok(None),
            other => {
                return Err(invalid("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN")));
            }
        };
        let mut ports = Vec::new();
        for port in self.ports.unwrap_or_default() {
            // No number means "any", which a Service cannot use.
            let Some(number) = port.port.and_then(number) else { continue };
            ports.push(Port {
                name: port_name(port.name).map_err(|reason| invalid("ports[].name", reason))?,
                protocol: protocol(port.protocol.as_deref())
                    .map_err(|reason| invalid("ports[].protocol", reason))?,
                number,
            });
        }
        let mut endpoints = Vec::new();
        for endpoint in into_vec(self.endpoints) {
            // The API says of further addresses that they are fungible, and proxies ignore them.
            let Some(text) = endpoint.addresses.first() else { continue };
            let addr = text.parse::<IpAddr>().ok().map(Addr::from).filter(|addr| addr.family() == family);
            let addr = addr.ok_or_else(|| {
                invalid("endpoints[].addresses", format!("{text:?} is not an {} address", self.address_type))
            })?;
            let conditions = endpoint.conditions.unwrap_or_default();
            endpoints.push(Endpoint {
                addr,
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
            });
        }
        Ok(Some(Object::EndpointSlice(EndpointSlice { key, service, family, ports, endpoints })))
    }
}

/// A list field that is required in some versions of the API and optional in others.
fn into_vec<T>(list: impl Into<Option<Vec<T>>>) -> Vec<T> {
    list.into().unwrap_or_default()
}

fn invalid(kind: Kind, key: &Key, field: &'static str, reason: String) -> Invalid {
    Invalid { kind: kind.name(), key: key.to_string(), field, reason }
}

fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or("default")
}

fn key(kind: Kind, metadata: &ObjectMeta, max_name: usize) -> Result<Key, Invalid> {
    let (namespace, name) = (namespace(metadata), metadata.name.as_deref().unwrap_or_default());
    let check = |field, text: &str, max| {
        let reason = match text.len() {
            0 => "must be set".to_owned(),
            length if length > max => format!("is longer than {max} characters"),
            _ if text.contains(['/', ':']) => format!("{text:?} is not a name"),
            _ => return Ok(()),
        };
        Err(invalid(kind, &Key::new(namespace, name), field, reason))
    };
    check("metadata.namespace", namespace, MAX_LABEL)?;
    check("metadata.name", name, max_name)?;
    Ok(Key::new(namespace, name))
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let labels: &BTreeMap<String, String> = metadata.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|&number| number != 0)
}

fn port_name(name: Option<String>) -> Result<Arc<str>, String> {
    let name = name.unwrap_or_default();
    if name.len() > MAX_LABEL || name.contains(['/', ':']) {
        return Err(format!("{name:?} is not a port name"));
    }
    Ok(name.into())
}

fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(SCTP),
        Some(other) => Err(format!("{other:?} is not TCP, UDP or SCTP")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Result<Option<Object>, Invalid> {
        serde_json::from_value::<core::Service>(value).unwrap().parse()
    }

    fn slice(value: serde_json::Value) -> Result<Option<Object>, Invalid> {
        serde_json::from_value::<discovery::EndpointSlice>(value).unwrap().parse()
    }

    #[test]
    fn a_service_keeps_its_addresses_and_ports() {
        let parsed = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 80}],
            },
        }));
        let Ok(Some(Object::Service(service))) = parsed else { panic!("{parsed:?}") };
        assert_eq!(service.key, Key::new("shop", "web"));
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.ports[0].protocol, Protocol::UDP);
        assert_eq!((&*service.ports[1].name, service.ports[1].protocol), ("", Protocol::TCP));
    }

    #[test]
    fn services_of_others_are_none_of_ours() {
        let with = |labels: serde_json::Value, spec: serde_json::Value| {
            service(json!({"metadata": {"name": "a", "labels": labels}, "spec": spec})).unwrap()
        };
        let routed = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        assert!(with(json!({}), routed.clone()).is_some());
        assert!(with(json!({PROXY_NAME: "podnet"}), routed.clone()).is_some());
        assert!(with(json!({HEADLESS: ""}), routed.clone()).is_some(), "only slices go by this label");
        assert_eq!(with(json!({PROXY_NAME: "other"}), routed), None);
        assert_eq!(with(json!({}), json!({"clusterIP": "None", "clusterIPs": ["None"]})), None);
        assert_eq!(with(json!({}), json!({"type": "ExternalName", "externalName": "example.com"})), None);
    }

    #[test]
    fn an_invalid_field_is_named() {
        let error = service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 70000}]},
        }));
        assert_eq!(
            error.unwrap_err().to_string(),
            "Service shop/web: spec.ports[].port: 70000 is not between 1 and 65535"
        );
    }

    #[test]
    fn nil_conditions_are_ready_and_serving_and_not_terminating() {
        let parsed = slice(json!({
            "metadata": {"name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": null, "port": 8080}, {"name": "any"}, {"name": "zero", "port": 0}],
            "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}],
        }));
        let Ok(Some(Object::EndpointSlice(slice))) = parsed else { panic!("{parsed:?}") };
        assert_eq!(slice.service, Key::new("default", "web"));
        assert_eq!(slice.ports.len(), 1, "ports without a number are ignored");
        let addr = Addr::from("10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(slice.endpoints, [Endpoint { addr, ready: true, serving: true, terminating: false }]);
    }

    #[test]
    fn slices_that_serve_no_service_ip_are_ignored() {
        let of = |labels: serde_json::Value, kind: &str| {
            slice(json!({
                "metadata": {"name": "s", "labels": labels}, "addressType": kind, "endpoints": [],
            }))
            .unwrap()
        };
        assert!(of(json!({SERVICE_NAME: "web"}), "IPv6").is_some());
        assert_eq!(of(json!({SERVICE_NAME: "web"}), "FQDN"), None);
        assert_eq!(of(json!({}), "IPv4"), None);
        assert_eq!(of(json!({SERVICE_NAME: "web", HEADLESS: ""}), "IPv4"), None);
    }

    #[test]
    fn an_address_of_the_wrong_family_is_an_error() {
        let error = slice(json!({
            "metadata": {"name": "s", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}],
        }));
        assert!(error.unwrap_err().to_string().ends_with("\"10.0.0.1\" is not an IPv6 address"));
    }
}
