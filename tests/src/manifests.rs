//! Kubernetes objects as YAML, in the folder that an agent watches.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::kubernetes::zone;
use crate::node::Node;
use crate::peer::PORT;
use crate::pod::Pod;

/// A Service with the port 80 for TCP and UDP in each family, if not told otherwise, and the slices of its
/// endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    addresses: Vec<IpAddr>,
    protocols: Vec<&'static str>,
    endpoints: Vec<Endpoint>,
    draining: Vec<Endpoint>,
    hinted: bool,
    target_port: u16,
    node_port: Option<u16>,
    balancers: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    annotations: Vec<String>,
    more: Vec<String>,
}

/// The port of all Services.
pub const SERVICE_PORT: u16 = 80;
/// The port of Services on nodes.
pub const NODE_PORT: u16 = 30_080;

#[derive(Clone, Debug)]
struct Endpoint {
    addresses: [IpAddr; 2],
    node: String,
    name: String,
}

impl Endpoint {
    fn of(pod: &Pod) -> Self {
        Self { addresses: pod.addresses(), node: pod.node().name().to_owned(), name: pod.name().to_owned() }
    }
}

impl Service {
    /// A Service of both families without endpoints: `10.96.0.NUMBER` and `fd00:10:96::NUMBER`.
    pub fn new(name: &str, number: u8) -> Self {
        // Written in hexadecimal it looks as the other one does in decimal.
        let last = u16::from(number / 10) << 4 | u16::from(number % 10);
        let v6 = [0xfd00, 0x10, 0x96, 0, 0, 0, 0, last];
        Self {
            name: name.to_owned(),
            addresses: vec![[10, 96, 0, number].into(), v6.into()],
            protocols: vec!["TCP", "UDP"],
            endpoints: Vec::new(),
            draining: Vec::new(),
            hinted: false,
            target_port: PORT,
            node_port: None,
            balancers: Vec::new(),
            external_ips: Vec::new(),
            annotations: Vec::new(),
            more: Vec::new(),
        }
    }

    /// The same with one address only.
    #[must_use]
    pub fn only(self, family: Family) -> Self {
        let addresses = self.addresses.into_iter().filter(|address| family.has(*address)).collect();
        Self { addresses, ..self }
    }

    /// The same with one protocol only: `TCP` or `UDP`.
    #[must_use]
    pub fn only_protocol(self, protocol: &'static str) -> Self {
        Self { protocols: vec![protocol], ..self }
    }

    /// The same with these pods as endpoints, and no others.
    #[must_use]
    pub fn with<'a>(self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        Self { endpoints: pods.into_iter().map(Endpoint::of).collect(), ..self }
    }

    /// The same with these pods as endpoints that are about to end: terminating, and serving until they have.
    #[must_use]
    pub fn draining<'a>(self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        Self { draining: pods.into_iter().map(Endpoint::of).collect(), ..self }
    }

    /// The same with a hint for each endpoint that it is for clients in the zone of its node.
    #[must_use]
    pub fn hinted(self) -> Self {
        Self { hinted: true, ..self }
    }

    /// The same by another number: with another name and other addresses.
    #[must_use]
    pub fn numbered(self, number: u8) -> Self {
        let other = Self::new(&format!("{}-{number}", self.name), number);
        Self { name: other.name, addresses: other.addresses, ..self }
    }

    /// The same with `count` endpoints where there are no pods.
    #[must_use]
    pub fn with_nobody(self, count: u8) -> Self {
        let endpoints = (1..=count)
            .map(|number| Endpoint {
                addresses: [
                    [10, 244, 99, number].into(),
                    [0xfd00, 0x10, 0x244, 99, 0, 0, 0, number.into()].into(),
                ],
                node: "nowhere".to_owned(),
                name: format!("nobody-{number}"),
            })
            .collect();
        Self { endpoints, ..self }
    }

    /// The same with another port at the pods.
    #[must_use]
    pub fn target_port(self, target_port: u16) -> Self {
        Self { target_port, ..self }
    }

    /// The same with the port [`NODE_PORT`] on each node.
    #[must_use]
    pub fn node_port(self) -> Self {
        Self { node_port: Some(NODE_PORT), ..self }
    }

    /// The same with these addresses of a load balancer.
    #[must_use]
    pub fn balancers(self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { balancers: addresses.into_iter().collect(), ..self }
    }

    /// The same with these external addresses.
    #[must_use]
    pub fn external_ips(self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { external_ips: addresses.into_iter().collect(), ..self }
    }

    /// The same with a further line of its `spec`, such as `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn spec(mut self, line: &str) -> Self {
        self.more.push(line.to_owned());
        self
    }

    /// The same with a further annotation, such as `podnet.io/algorithm: maglev`.
    #[must_use]
    pub fn annotation(mut self, line: &str) -> Self {
        self.annotations.push(line.to_owned());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its protocols.
    pub fn protocols(&self) -> &[&'static str] {
        &self.protocols
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// All that it is reached at on `node`.
    pub fn frontends(&self, node: &Node) -> Vec<SocketAddr> {
        let of_service = self.addresses.iter().chain(&self.balancers).chain(&self.external_ips);
        let mut all: Vec<_> = of_service.map(|address| SocketAddr::new(*address, SERVICE_PORT)).collect();
        if let Some(port) = self.node_port {
            let nodes = [node.v4().into(), node.v6().into()];
            let served =
                |address: &IpAddr| self.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
            all.extend(nodes.into_iter().filter(served).map(|address| SocketAddr::new(address, port)));
        }
        all
    }

    /// Its address of this family.
    ///
    /// # Errors
    /// If it has none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| family.has(**address));
        found.copied().with_context(|| format!("{} has no {family:?} address", self.name))
    }

    /// The addresses and port of the pods behind `address`.
    pub fn backends(&self, address: IpAddr) -> impl Iterator<Item = SocketAddr> {
        self.endpoints
            .iter()
            .flat_map(|endpoint| endpoint.addresses)
            .filter(move |backend| backend.is_ipv4() == address.is_ipv4())
            .map(|backend| SocketAddr::new(backend, self.target_port))
    }

    /// The Service and its slices.
    fn yaml(&self) -> String {
        let Self { name, addresses, target_port, balancers, external_ips, .. } = self;
        let kind = match (self.node_port, balancers.is_empty()) {
            (_, false) => "LoadBalancer",
            (Some(_), true) => "NodePort",
            (None, true) => "ClusterIP",
        };
        let families: Vec<_> = addresses.iter().map(|address| Family::of(*address).name()).collect();
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: default\n  name: {name}\n  \
             annotations: {{{}}}\nspec:\n  type: {kind}\n  clusterIP: \"{}\"\n  clusterIPs: {addresses:?}\n  ipFamilies: {families:?}\n  \
             externalIPs: {external_ips:?}\n",
            self.annotations.join(", "),
            addresses[0]
        );
        for line in &self.more {
            let _ = writeln!(yaml, "  {line}");
        }
        yaml.push_str("  ports:\n");
        let node_port = self.node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
        for protocol in &self.protocols {
            let port = protocol.to_lowercase();
            let _ = writeln!(
                yaml,
                "  - {{name: {port}, protocol: {protocol}, port: {SERVICE_PORT}, targetPort: {target_port}{node_port}}}"
            );
        }
        if !balancers.is_empty() {
            let ingress: Vec<_> = balancers.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
            let _ = writeln!(yaml, "status: {{loadBalancer: {{ingress: [{}]}}}}", ingress.join(", "));
        }
        for family in addresses.iter().map(|address| Family::of(*address)) {
            yaml.push_str(&self.slice(family));
        }
        yaml
    }

    fn slice(&self, family: Family) -> String {
        let Self { name, target_port, .. } = self;
        let kind = family.name();
        let suffix = kind.to_lowercase();
        let mut yaml = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: default\n  \
             name: {name}-{suffix}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {kind}\n\
             ports:\n"
        );
        for protocol in &self.protocols {
            let port = protocol.to_lowercase();
            let _ = writeln!(yaml, "- {{name: {port}, protocol: {protocol}, port: {target_port}}}");
        }
        let ready = self.endpoints.iter().map(|endpoint| (endpoint, true));
        let all: Vec<_> = ready.chain(self.draining.iter().map(|endpoint| (endpoint, false))).collect();
        yaml.push_str(if all.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
        for (endpoint, ready) in all {
            for address in endpoint.addresses.iter().filter(|address| family.has(**address)) {
                let zone = zone(&endpoint.node);
                let hints = if self.hinted { format!("forZones: [{{name: {zone}}}]") } else { String::new() };
                let _ = writeln!(
                    yaml,
                    "- addresses: [\"{address}\"]\n  conditions: {{ready: {ready}, serving: true, terminating: {}}}\n  \
                     nodeName: {}\n  hints: {{{hints}}}\n  targetRef: {{kind: Pod, namespace: default, name: {}}}",
                    !ready, endpoint.node, endpoint.name
                );
            }
        }
        yaml
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Whether `address` is of this family.
    pub fn has(self, address: IpAddr) -> bool {
        self == Self::of(address)
    }

    /// Kubernetes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A folder of manifests.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// The manifests in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a Service and its slices, in place of what there was by this name.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.write(&format!("{}.yaml", service.name), &service.yaml())
    }

    /// Writes a Node, with its addresses and a zone of its own.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn apply_node(&self, node: &Node) -> Result<()> {
        let (name, v4, v6) = (node.name(), node.v4(), node.v6());
        let yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {}}}}}\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: \"{v4}\"}}\n  - {{type: InternalIP, address: \"{v6}\"}}\n",
            zone(name)
        );
        self.write(&format!("node-{name}.yaml"), &yaml)
    }

    /// Writes many Services as one file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn apply_all(&self, file: &str, services: &[Service]) -> Result<()> {
        let documents: Vec<_> = services.iter().map(Service::yaml).collect();
        self.write(file, &documents.join("---\n"))
    }

    /// Removes a Service and its slices.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn delete(&self, service: &Service) -> Result<()> {
        let path = self.folder.join(format!("{}.yaml", service.name));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Writes a file, whatever is in it: whoever reads it sees the old content or the new.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let (path, partial) = (self.folder.join(name), self.folder.join(format!(".{name}.partial")));
        fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}
