//! Questions and their answers.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use podnet_common::wire::Protocol;

use super::index::{Index, label};
use super::zone::{Place, SCHEMA_TTL, SCHEMA_VERSION, undashed};
use crate::cluster::object::{Endpoint, EndpointSlice, Key, Port, Service, TargetPort};

/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 10;

/// What there is to say to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// How it ends.
    pub status: Status,
    /// The records that were asked for, after the aliases that lead to them. Those of one kind are in no order.
    pub answers: Vec<Record>,
    /// The SOA record of the zone, in negative answers.
    pub authority: Option<Record>,
    /// Addresses of what the answers name.
    pub additionals: Vec<Record>,
}

/// How an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The records are there.
    Found,
    /// The name is there, without such records.
    NoData,
    /// There is no such name.
    NoName,
    /// Nothing was found, which may be because not all has been listed yet.
    Unsynced,
    /// The aliases lead to this name, which is not of the cluster.
    Alias(Name),
    /// The name asked for is not of the cluster.
    Outside,
}

impl Answer {
    fn new(status: Status) -> Self {
        Self { status, answers: Vec::new(), authority: None, additionals: Vec::new() }
    }

    /// The answer to a question that is none of the cluster's.
    pub(super) fn outside() -> Self {
        Self::new(Status::Outside)
    }

    /// The answer as long as it may be wrong to say more.
    pub(super) fn unsynced() -> Self {
        Self::new(Status::Unsynced)
    }

    /// A negative answer by the zone with this SOA record.
    pub(super) fn negative(status: Status, soa: Record) -> Self {
        Self { authority: Some(soa), ..Self::new(status) }
    }

    /// These records.
    pub(super) fn found(answers: Vec<Record>, additionals: Vec<Record>) -> Self {
        Self { answers, additionals, ..Self::new(Status::Found) }
    }
}

/// What a name stands for.
pub(super) enum Node<'a> {
    /// Nothing.
    Absent,
    /// Something without records of its own.
    Empty,
    /// The zone itself.
    Apex,
    /// The version of the schema.
    Version,
    /// The zone's name server.
    NameServer(&'a Service),
    /// A Service with cluster IPs, or some of its ports.
    ClusterIp(&'a Service, Vec<&'a Port>),
    /// Ready endpoints of a Service, each with some of its ports.
    Endpoints(&'a Key, Vec<Member<'a>>),
    /// Another name, which is not parsed yet.
    Alias(&'a str),
    /// A Pod at this address.
    Pod(IpAddr),
}

/// An endpoint and those of its ports that a name stands for.
pub(super) struct Member<'a> {
    pub(super) endpoint: &'a Endpoint,
    ports: Vec<&'a TargetPort>,
}

impl<'a> Member<'a> {
    fn new((slice, endpoint): (&'a EndpointSlice, &'a Endpoint)) -> Self {
        Self { endpoint, ports: slice.ports.iter().collect() }
    }
}

impl Node<'_> {
    /// The addresses that it has.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::NameServer(service) | Self::ClusterIp(service, _) => service.cluster_ips.clone(),
            Self::Endpoints(_, members) => {
                let mut seen = HashSet::new();
                let ips = members.iter().map(|member| member.endpoint.addr.to_ip());
                ips.filter(|ip| seen.insert(*ip)).collect()
            }
            Self::Pod(ip) => vec![*ip],
            Self::Absent | Self::Empty | Self::Apex | Self::Version | Self::Alias(_) => Vec::new(),
        }
    }
}

impl Index {
    /// What there is to say to a question for records of type `kind`. Owners of records are written as the name
    /// was asked for.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Answer {
        if self.zone.contains(name) {
            return self.in_zone(name, kind, &mut Vec::new());
        }
        match name.parse_arpa_name() {
            Ok(network) => self.reverse(name, network, kind),
            Err(_) => Answer::outside(),
        }
    }

    /// The SOA record of one of the cluster's zones.
    pub(super) fn soa(&self, apex: Name) -> Record {
        self.zone.soa(apex, self.serial())
    }

    fn in_zone(&self, name: &Name, kind: RecordType, aliases: &mut Vec<Name>) -> Answer {
        let lower = name.to_lowercase();
        let node = self.node(&lower);
        if let Node::Alias(target) = node {
            return self.follow(name, &lower, target, kind, aliases);
        }
        let (answers, additionals) = self.records(name, kind, &node);
        if !answers.is_empty() {
            return Answer::found(answers, additionals);
        }
        let status = match node {
            Node::Absent | Node::Endpoints(..) if !self.synced() => return Answer::unsynced(),
            Node::Absent => Status::NoName,
            _ => Status::NoData,
        };
        Answer::negative(status, self.soa(self.zone.domain().clone()))
    }

    /// What a name in lower case stands for.
    pub(super) fn node(&self, name: &Name) -> Node<'_> {
        match self.zone.place(name) {
            Place::Apex => Node::Apex,
            Place::Version => Node::Version,
            Place::Tree => Node::Empty,
            Place::Dns => self.name_server().map_or(Node::Absent, |_| Node::Empty),
            Place::NameServer => self.name_server().map_or(Node::Absent, Node::NameServer),
            Place::Namespace(namespace) if self.has_namespace(namespace) => Node::Empty,
            Place::Service { namespace, service } => match self.service(namespace, service) {
                Some(service) => self.service_node(service),
                None => Node::Absent,
            },
            Place::Endpoint { namespace, service, endpoint } => match self.service(namespace, service) {
                Some(service) => self.endpoint_node(service, endpoint),
                None => Node::Absent,
            },
            Place::Port { namespace, service, port, protocol } => match self.service(namespace, service) {
                Some(service) => self.port_node(service, port, protocol),
                None => Node::Absent,
            },
            Place::Pod { namespace, address } => match undashed(address) {
                Some(ip) if self.has_pod(namespace, ip) => Node::Pod(ip),
                _ => Node::Absent,
            },
            Place::Namespace(_) | Place::Nowhere => Node::Absent,
        }
    }

    /// The Service that is the name server, if it has addresses.
    pub(super) fn name_server(&self) -> Option<&Service> {
        let (namespace, name) = self.nameserver.parts();
        self.service(namespace, name).filter(|service| !service.cluster_ips.is_empty())
    }

    /// What a Service's name stands for.
    pub(super) fn service_node<'a>(&'a self, service: &'a Service) -> Node<'a> {
        match service.external_name.as_deref() {
            // An address is no name (and would be its own, if it were one).
            Some(name) if name.parse::<IpAddr>().is_ok() => Node::Absent,
            Some(name) => Node::Alias(name),
            None if service.is_headless() => {
                endpoints(&service.key, self.ready_endpoints(&service.key).map(Member::new).collect())
            }
            None => Node::ClusterIp(service, service.ports.iter().collect()),
        }
    }

    fn endpoint_node<'a>(&'a self, service: &'a Service, name: &str) -> Node<'a> {
        if service.external_name.is_none() {
            let called = self.endpoints_called(&service.key, name);
            if !called.is_empty() {
                return endpoints(&service.key, called.into_iter().map(Member::new).collect());
            }
            // Above the names of the Service's ports there must be something (RFC 8020).
            let protocol = name.strip_prefix('_').unwrap_or_default();
            if self.protocols(service).any(|its| its.eq_ignore_ascii_case(protocol)) {
                return Node::Empty;
            }
        }
        Node::Absent
    }

    /// The protocols of a Service's ports that have names.
    fn protocols<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'static str> {
        let own = service.ports.iter().filter(|port| !port.name.is_empty()).map(|port| port.protocol);
        let endpoints = service.is_headless().then(|| self.ready_endpoints(&service.key));
        let ports = endpoints.into_iter().flatten().flat_map(|(slice, _)| &slice.ports);
        let theirs = ports.filter(|port| !port.name.is_empty()).map(|port| port.protocol);
        own.chain(theirs).map(protocol_name)
    }

    fn port_node<'a>(&'a self, service: &'a Service, port: &str, protocol: &str) -> Node<'a> {
        let is_it = |its_name: &str, its_protocol: Protocol| {
            its_name.eq_ignore_ascii_case(port) && protocol_name(its_protocol).eq_ignore_ascii_case(protocol)
        };
        // A port without a name has none here either, whatever it may be called.
        if service.external_name.is_some() || port.is_empty() {
            return Node::Absent;
        }
        if service.is_headless() {
            let members = self.ready_endpoints(&service.key).map(Member::new).filter_map(|mut member| {
                member.ports.retain(|it| is_it(&it.name, it.protocol));
                (!member.ports.is_empty()).then_some(member)
            });
            return endpoints(&service.key, members.collect());
        }
        let ports: Vec<&Port> = service.ports.iter().filter(|it| is_it(&it.name, it.protocol)).collect();
        if ports.is_empty() { Node::Absent } else { Node::ClusterIp(service, ports) }
    }

    /// The records of a node, and addresses of what they name.
    fn records(&self, name: &Name, kind: RecordType, node: &Node<'_>) -> (Vec<Record>, Vec<Record>) {
        let record = |data| Record::from_rdata(name.clone(), self.zone.ttl, data);
        let none = Vec::new;
        match (node, kind) {
            (_, RecordType::A | RecordType::AAAA) => {
                let addresses = node.addresses().into_iter().map(address);
                (addresses.filter(|data| data.record_type() == kind).map(record).collect(), none())
            }
            (Node::Apex, RecordType::SOA) => (vec![self.soa(name.clone())], none()),
            (Node::Apex, RecordType::NS) => self.name_servers(name),
            (Node::Version, RecordType::TXT) => {
                let version = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
                (vec![Record::from_rdata(name.clone(), SCHEMA_TTL, version)], none())
            }
            (Node::ClusterIp(service, ports), RecordType::SRV) => {
                let Some(target) = self.service_name(&service.key) else { return (none(), none()) };
                let weight = weight(ports.len() * service.cluster_ips.len());
                let mut numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
                numbers.sort_unstable();
                numbers.dedup();
                let of_port = |port| record(RData::SRV(SRV::new(0, weight, port, target.clone())));
                let answers = numbers.into_iter().map(of_port).collect();
                (answers, self.addresses_of(&target, service.cluster_ips.iter().copied()))
            }
            (Node::Endpoints(service, members), RecordType::SRV) => {
                self.endpoint_srvs(name, service, members)
            }
            _ => (none(), none()),
        }
    }

    /// The SRV records of endpoints, and their addresses.
    fn endpoint_srvs(
        &self,
        name: &Name,
        service: &Key,
        members: &[Member<'_>],
    ) -> (Vec<Record>, Vec<Record>) {
        let (namespace, service) = service.parts();
        // An endpoint without ports counts too, as in CoreDNS.
        let weight = weight(members.iter().map(|member| member.ports.len().max(1)).sum());
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for Member { endpoint, ports } in members {
            let label = label(endpoint);
            let Some(target) = self.zone.name(&[&label, service, namespace, "svc"]) else { continue };
            for port in ports {
                if seen.insert((label.clone(), None, port.number)) {
                    let data = RData::SRV(SRV::new(0, weight, port.number, target.clone()));
                    answers.push(Record::from_rdata(name.clone(), self.zone.ttl, data));
                }
            }
            let ip = endpoint.addr.to_ip();
            if !ports.is_empty() && seen.insert((label, Some(ip), 0)) {
                additionals.extend(self.addresses_of(&target, [ip]));
            }
        }
        (answers, additionals)
    }

    /// The NS record of a zone: the Service of the cluster's DNS, and where it is.
    pub(super) fn name_servers(&self, apex: &Name) -> (Vec<Record>, Vec<Record>) {
        let server = self.name_server().and_then(|service| Some((service, self.service_name(&service.key)?)));
        let Some((service, name)) = server else { return (Vec::new(), Vec::new()) };
        let additionals = self.addresses_of(&name, service.cluster_ips.iter().copied());
        let data = RData::NS(NS(name));
        (vec![Record::from_rdata(apex.clone(), self.zone.ttl, data)], additionals)
    }

    fn addresses_of(&self, name: &Name, ips: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
        let record = |ip| Record::from_rdata(name.clone(), self.zone.ttl, address(ip));
        ips.into_iter().map(record).collect()
    }

    /// The name of a Service.
    pub(super) fn service_name(&self, service: &Key) -> Option<Name> {
        let (namespace, name) = service.parts();
        self.zone.name(&[name, namespace, "svc"])
    }

    /// Follows an alias to its end, or out of the zone. One that leads back to itself leads to nothing.
    fn follow(
        &self,
        name: &Name,
        lower: &Name,
        target: &str,
        kind: RecordType,
        aliases: &mut Vec<Name>,
    ) -> Answer {
        let no_data = || Answer::negative(Status::NoData, self.soa(self.zone.domain().clone()));
        let Ok(mut target) = Name::from_ascii(target) else { return no_data() };
        target.set_fqdn(true);
        aliases.push(lower.clone());
        if aliases.contains(&target) || aliases.len() > MAX_ALIASES {
            return no_data();
        }
        let alias = Record::from_rdata(name.clone(), self.zone.ttl, RData::CNAME(CNAME(target.clone())));
        match kind {
            RecordType::CNAME => Answer::found(vec![alias], Vec::new()),
            RecordType::A | RecordType::AAAA => {
                let mut answer = if self.zone.contains(&target) {
                    self.in_zone(&target, kind, aliases)
                } else {
                    Answer::new(Status::Alias(target))
                };
                answer.answers.insert(0, alias);
                answer
            }
            _ => no_data(),
        }
    }
}

/// Endpoints, which are nothing if there are none.
fn endpoints<'a>(service: &'a Key, members: Vec<Member<'a>>) -> Node<'a> {
    if members.is_empty() { Node::Absent } else { Node::Endpoints(service, members) }
}

/// The record of an address.
fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The weight of each of so many SRV records, as CoreDNS has it: a share of a hundred, and not nothing.
fn weight(count: usize) -> u16 {
    u16::try_from(100 / count.max(1)).unwrap_or(1).max(1)
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::TCP => "tcp",
        Protocol::UDP => "udp",
        Protocol::SCTP => "sctp",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
