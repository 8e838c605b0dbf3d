//! The cluster's zone: its names, and what it tells about itself.

use std::net::IpAddr;

use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};

use crate::cluster::object::Key;

/// The version of the schema that names follow.
pub(super) const SCHEMA_VERSION: &str = "1.1.0";
/// For how many seconds that holds.
pub(super) const SCHEMA_TTL: u32 = 28_800;

/// The longest time that a SOA record holds, in seconds, as in CoreDNS.
const MAX_SOA_TTL: u32 = 300;
/// Timers of the SOA record, in seconds: no server is a secondary of this zone.
const REFRESH: i32 = 7200;
const RETRY: i32 = 1800;
const EXPIRE: i32 = 86_400;

/// What is to be set about names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's domain, as in `cluster.local`.
    pub domain: Name,
    /// For how many seconds answers hold.
    pub ttl: u32,
    /// The Service of the cluster's DNS: the name server of its zones.
    pub service: Key,
}

impl Default for Settings {
    fn default() -> Self {
        let domain = Name::from_labels(["cluster", "local"].map(str::as_bytes)).unwrap_or_default();
        Self { domain, ttl: 5, service: Key::new("kube-system", "kube-dns") }
    }
}

/// A cluster's zone.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name, in lower case.
    domain: Name,
    /// For how many seconds answers hold.
    pub ttl: u32,
}

/// Where a name is in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// The zone itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `dns`, above the name server's name.
    Dns,
    /// `ns.dns`, by which the zone calls its name server.
    NameServer,
    /// `svc` or `pod`.
    Tree,
    /// A namespace in either.
    Namespace(&'a str),
    /// A Service.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        service: &'a str,
    },
    /// An endpoint of a Service.
    Endpoint {
        /// The Service's namespace.
        namespace: &'a str,
        /// Its name.
        service: &'a str,
        /// The endpoint's name.
        endpoint: &'a str,
    },
    /// A port of a Service, without the underscores.
    Port {
        /// The Service's namespace.
        namespace: &'a str,
        /// Its name.
        service: &'a str,
        /// The port's name.
        port: &'a str,
        /// The protocol's.
        protocol: &'a str,
    },
    /// A Pod by its address.
    Pod {
        /// Its namespace.
        namespace: &'a str,
        /// Its address, with dashes.
        address: &'a str,
    },
    /// Where nothing can be.
    Nowhere,
}

impl Zone {
    /// The zone of `domain`.
    pub fn new(domain: &Name, ttl: u32) -> Self {
        let mut domain = domain.to_lowercase();
        domain.set_fqdn(true);
        Self { domain, ttl }
    }

    /// Its name, in lower case.
    pub const fn domain(&self) -> &Name {
        &self.domain
    }

    /// Whether a name is in it.
    pub fn contains(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    /// Where a name of it, in lower case, is; what is no text is nowhere.
    pub(super) fn place<'a>(&self, name: &'a Name) -> Place<'a> {
        let depth = name.iter().len() - self.domain.iter().len();
        let labels: Option<Vec<&str>> =
            name.iter().take(depth).map(|label| std::str::from_utf8(label).ok()).collect();
        match labels.as_deref() {
            Some([]) => Place::Apex,
            Some(["dns-version"]) => Place::Version,
            Some(["dns"]) => Place::Dns,
            Some(["ns", "dns"]) => Place::NameServer,
            Some(["svc" | "pod"]) => Place::Tree,
            Some([namespace, "svc" | "pod"]) => Place::Namespace(namespace),
            Some([service, namespace, "svc"]) => Place::Service { namespace, service },
            Some([endpoint, service, namespace, "svc"]) => Place::Endpoint { namespace, service, endpoint },
            Some([port, protocol, service, namespace, "svc"]) => {
                let (port, protocol) = (without_underscore(port), without_underscore(protocol));
                Place::Port { namespace, service, port, protocol }
            }
            Some([address, namespace, "pod"]) => Place::Pod { namespace, address },
            _ => Place::Nowhere,
        }
    }

    /// The name of these labels in the zone; `None` if they make none.
    pub(super) fn name(&self, labels: &[&str]) -> Option<Name> {
        let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        name.append_domain(&self.domain).ok()
    }

    /// The record by which `apex`, a zone of the cluster, says since when it is as it is; negative answers have it
    /// (RFC 2308).
    pub(super) fn soa(&self, apex: Name, serial: u32) -> Record {
        let name = |labels: &[&str]| self.name(labels).unwrap_or_default();
        let (server, contact) = (name(&["ns", "dns"]), name(&["hostmaster"]));
        let soa = SOA::new(server, contact, serial, REFRESH, RETRY, EXPIRE, self.ttl);
        Record::from_rdata(apex, self.ttl.min(MAX_SOA_TTL), RData::SOA(soa))
    }
}

fn without_underscore(label: &str) -> &str {
    label.strip_prefix('_').unwrap_or(label)
}

/// The label that an address makes: `.` and `:` are dashes, and the last one is not at the end.
pub(super) fn dashed(ip: IpAddr) -> String {
    let mut label = ip.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address that such a label stands for, in whatever form it is written.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse().ok().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse().ok().map(IpAddr::V6);
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_labels_and_back() {
        for (ip, label) in [
            ("10.244.0.16", "10-244-0-16"),
            ("fd00::1", "fd00--1"),
            ("fd00::", "fd00--0"),
            ("2001:db8:1:2:3:4:5:6", "2001-db8-1-2-3-4-5-6"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(dashed(ip), label);
            assert_eq!(undashed(label), Some(ip));
        }
        for label in ["", "web", "1-2-3", "1-2-3-256", "1-2-3-4-5", "fd00"] {
            assert_eq!(undashed(label), None, "{label}");
        }
    }

    #[test]
    fn names_have_their_place() {
        let zone = Zone::new(&Settings::default().domain, 5);
        let at = |labels: &[&str], expected: Place<'_>| {
            let name = zone.name(labels).unwrap();
            assert!(zone.contains(&name));
            assert_eq!(zone.place(&name), expected, "{labels:?}");
        };
        at(&[], Place::Apex);
        at(&["svc"], Place::Tree);
        at(&["shop", "pod"], Place::Namespace("shop"));
        at(&["web", "shop", "svc"], Place::Service { namespace: "shop", service: "web" });
        for (port, protocol) in [("_http", "_tcp"), ("http", "_tcp"), ("http", "tcp")] {
            let expected = Place::Port { namespace: "shop", service: "web", port: "http", protocol: "tcp" };
            at(&[port, protocol, "web", "shop", "svc"], expected);
        }
        at(&["1-2-3-4", "shop", "pod"], Place::Pod { namespace: "shop", address: "1-2-3-4" });
        at(&["x", "1-2-3-4", "shop", "pod"], Place::Nowhere);
        at(&["x", "_http", "_tcp", "web", "shop", "svc"], Place::Nowhere);
        at(&["*"], Place::Nowhere);
        let bytes = Name::from_labels([&b"\xff"[..], b"shop", b"svc"]).unwrap();
        assert_eq!(zone.place(&bytes.append_domain(zone.domain()).unwrap()), Place::Nowhere);
        assert!(!zone.contains(&Name::from_ascii("cluster.local.example.").unwrap()));
        assert!(!zone.contains(&Name::from_ascii("mycluster.local.").unwrap()));
    }
}
