//! Names of addresses: `in-addr.arpa` and `ip6.arpa`.
//!
//! The cluster has the names of its addresses: of cluster IPs and of ready endpoints, and whatever else is in the
//! networks that cluster IPs are taken from (ServiceCIDRs). All others are outside, since it does not know of all
//! addresses in a Pod's network whose they are.

use std::net::IpAddr;

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use super::index::{Index, Owner, label};
use super::lookup::{Answer, Status};
use crate::cluster::object::Key;

impl Index {
    /// What there is to say of the name of an address, or of a network that is written as one.
    pub(super) fn reverse(&self, name: &Name, network: IpNet, kind: RecordType) -> Answer {
        let ip = network.addr();
        let whole = network.prefix_len() == network.max_prefix_len() && Name::from(ip) == *name;
        let names = if whole { self.names_of(ip) } else { Vec::new() };
        let apex = self.service_network(ip).map(|cidr| apex(cidr, ip));
        if !names.is_empty() {
            if kind != RecordType::PTR {
                return Answer::negative(Status::NoData, self.soa(apex.unwrap_or_else(|| Name::from(ip))));
            }
            let record = |target| Record::from_rdata(name.clone(), self.zone.ttl, RData::PTR(PTR(target)));
            return Answer::found(names.into_iter().map(record).collect(), Vec::new());
        }
        // Whose it is may not be known yet.
        if !self.synced() {
            return Answer::unsynced();
        }
        let Some(apex) = apex.filter(|apex| apex.zone_of(name)) else { return Answer::outside() };
        let (answers, additionals) = match kind {
            RecordType::SOA if apex == *name => (vec![self.soa(name.clone())], Vec::new()),
            RecordType::NS if apex == *name => self.name_servers(name),
            _ => (Vec::new(), Vec::new()),
        };
        if !answers.is_empty() {
            return Answer::found(answers, additionals);
        }
        let status =
            if network.prefix_len() == network.max_prefix_len() { Status::NoName } else { Status::NoData };
        Answer::negative(status, self.soa(apex))
    }

    /// The names that an address has: its Service's, else those of the endpoint by each Service that selects it.
    fn names_of(&self, ip: IpAddr) -> Vec<Name> {
        let service = self.owners_of(ip).find_map(|owner| match owner {
            Owner::Service(key) => self.service_name(key),
            Owner::Slice(_) | Owner::Pod(_) => None,
        });
        if let Some(name) = service {
            return vec![name];
        }
        let slices = self.owners_of(ip).filter_map(|owner| match owner {
            Owner::Slice(key) => self.slice(key),
            Owner::Service(_) | Owner::Pod(_) => None,
        });
        let mut names: Vec<Name> = Vec::new();
        for slice in slices.filter(|slice| self.has_endpoints(&slice.service)) {
            let (namespace, service) = slice.service.parts();
            let endpoints = slice.endpoints.iter().filter(|it| it.ready && it.addr.to_ip() == ip);
            for endpoint in endpoints {
                let name = self.zone.name(&[&label(endpoint), service, namespace, "svc"]);
                names.extend(name.filter(|name| !names.contains(name)));
            }
        }
        names
    }

    /// Whether there is such a Service, and it is not a name for something outside.
    fn has_endpoints(&self, key: &Key) -> bool {
        let (namespace, name) = key.parts();
        self.service(namespace, name).is_some_and(|service| service.external_name.is_none())
    }
}

/// The zone of a network that an address of it is in: the largest that names can tell, since there is a label for
/// each byte of an IPv4 address and for each half of one of an IPv6 address.
fn apex(network: IpNet, ip: IpAddr) -> Name {
    let bits = if ip.is_ipv4() { 8 } else { 4 };
    let labels = usize::from(network.prefix_len().div_ceil(bits));
    Name::from(ip).trim_to(labels + 2)
}
