//! Settings of names, as they are typed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use hickory_proto::rr::Name;
use hickory_resolver::system_conf::parse_resolv_conf;
use thiserror::Error;

use super::zone::Settings;
use crate::cluster::object::Key;

/// The port of DNS.
const PORT: u16 = 53;
/// Where the node's own resolver is told whom to ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What podnet does about the cluster's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing.
    #[default]
    Off,
    /// Queries of pods that are asked of the cluster's DNS are answered in the kernel, as far as the answer is known for
    /// certain; all others go on to it.
    Assist,
    /// It is a DNS server of the node, at the addresses of --dns-listen.
    Serve,
}

/// Flags of names.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The cluster's names (DNS)")]
pub struct Flags {
    /// Whether to answer for the cluster's names
    ///
    /// With `assist`, NetworkPolicies have no say in what is answered at pods' interfaces: so pods of namespaces with a
    /// NetworkPolicy of type Egress are not answered, nor pods with the annotation `podnet.io/dns: "off"`. Names of the
    /// domain that the cluster's DNS has been given otherwise than by Services are denied. NetworkPolicies that say who
    /// may ask the cluster's DNS, and those of a CNI's own kinds, are not known.
    #[arg(long, value_enum, env = "PODNET_DNS", default_value_t)]
    dns: Mode,

    /// Where to answer: addresses of this node, with a port if it is not 53
    #[arg(long, value_name = "ADDRESSES", env = "PODNET_DNS_LISTEN", value_delimiter = ',', value_parser = address)]
    dns_listen: Vec<SocketAddr>,

    /// The domain that the cluster's names end in
    #[arg(long, value_name = "DOMAIN", env = "PODNET_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = domain)]
    cluster_domain: Name,

    /// The Service of the cluster's DNS, which is the zone's name server
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        env = "PODNET_DNS_SERVICE",
        default_value = "kube-system/kube-dns",
        value_parser = service
    )]
    dns_service: Key,

    /// For how many seconds clients may keep answers
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PODNET_DNS_TTL",
        default_value_t = Settings::default().ttl,
        value_parser = RangedU64ValueParser::<u32>::new().range(0..=3600)
    )]
    dns_ttl: u32,

    /// Whom to ask for other names, in this order [default: whom /etc/resolv.conf names]
    #[arg(long, value_name = "ADDRESSES", env = "PODNET_DNS_UPSTREAM", value_delimiter = ',', value_parser = address)]
    dns_upstream: Vec<SocketAddr>,

    /// Whom to ask for the names of a domain, as in corp.example=192.0.2.53; a domain may be there again for another
    /// address
    #[arg(long, value_name = "DOMAIN=ADDRESS", env = "PODNET_DNS_STUB", value_delimiter = ',')]
    dns_stub: Vec<Stub>,
}

/// A domain and a server that is asked for its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stub {
    domain: Name,
    address: SocketAddr,
}

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, at) = text.split_once('=').ok_or_else(|| format!("{text:?} is not DOMAIN=ADDRESS"))?;
        Ok(Self { domain: domain(name)?, address: address(at)? })
    }
}

/// How names are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// Where.
    pub listen: Vec<SocketAddr>,
    /// Who is asked for names outside, in this order.
    pub upstreams: Vec<SocketAddr>,
    /// Who is asked for the names of domains.
    pub stubs: Vec<(Name, SocketAddr)>,
}

impl Serve {
    /// Whom to ask for which domain; the root's is all others'.
    pub(super) fn domains(&self) -> Vec<(Name, Vec<SocketAddr>)> {
        let mut domains = vec![(Name::root(), self.upstreams.clone())];
        for (domain, address) in &self.stubs {
            match domains.iter_mut().find(|(known, _)| known == domain) {
                Some((_, addresses)) => addresses.push(*address),
                None => domains.push((domain.clone(), vec![*address])),
            }
        }
        domains
    }
}

/// Why names cannot be served as the settings say.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DnsError {
    /// Programs in the kernel have no room for it.
    #[error(
        "--dns assist: programs in the kernel have no room for {domain}, of more than 5 labels or 62 characters: use \
         --dns serve, or leave --dns off"
    )]
    Domain {
        /// The cluster's domain.
        domain: String,
    },
    /// Nobody could ask.
    #[error("--dns serve needs an address to answer at: name one of this node's with --dns-listen")]
    Nowhere,
    /// Answers would come from another address than the one that was asked.
    #[error(
        "--dns-listen {address}: answers may leave by another address than was asked: name each address by itself"
    )]
    Everywhere {
        /// The address.
        address: SocketAddr,
    },
    /// podnet would ask itself.
    #[error(
        "{source_of} names {address}, which is where podnet is to answer, so that it would ask itself: name other \
         servers with --dns-upstream"
    )]
    Loop {
        /// Where the address is from.
        source_of: String,
        /// The address.
        address: SocketAddr,
    },
    /// A domain is the cluster's.
    #[error(
        "--dns-stub {domain}: the names of {cluster} are the cluster's, and no other server is asked for them"
    )]
    Stub {
        /// The domain.
        domain: String,
        /// The cluster's.
        cluster: String,
    },
    /// The file that names upstreams cannot be used.
    #[error("{path}: {reason}: name the servers to ask for other names with --dns-upstream")]
    ResolvConf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Other servers cannot be asked.
    #[error("other DNS servers cannot be asked: {reason}")]
    Forward {
        /// Why.
        reason: String,
    },
}

impl Flags {
    /// The settings of names, if there is to be anything about them.
    pub fn names(&self) -> Option<Settings> {
        let Self { dns, cluster_domain, dns_ttl, dns_service, .. } = self;
        (*dns != Mode::Off).then(|| Settings {
            domain: cluster_domain.clone(),
            ttl: *dns_ttl,
            service: dns_service.clone(),
        })
    }

    /// The cluster's domain for the kernel's programs, if they are to answer.
    ///
    /// # Errors
    /// [`DnsError::Domain`] if they have no room for it.
    pub fn kernel_zone(&self) -> Result<Option<podnet_common::dns::name::Zone>, DnsError> {
        if self.dns != Mode::Assist {
            return Ok(None);
        }
        let domain = self.cluster_domain.to_ascii();
        match podnet_common::dns::name::Zone::new(&domain, self.dns_ttl) {
            Some(zone) => Ok(Some(zone)),
            None => Err(DnsError::Domain { domain }),
        }
    }

    /// The settings of the server, if there is to be one.
    ///
    /// # Errors
    /// [`DnsError`] if they make no sense together.
    pub fn serve(&self) -> Result<Option<Serve>, DnsError> {
        if self.dns != Mode::Serve {
            return Ok(None);
        }
        self.serve_by(Path::new(RESOLV_CONF)).map(Some)
    }

    fn serve_by(&self, resolv_conf: &Path) -> Result<Serve, DnsError> {
        if self.dns_listen.is_empty() {
            return Err(DnsError::Nowhere);
        }
        if let Some(address) = self.dns_listen.iter().find(|address| address.ip().is_unspecified()) {
            return Err(DnsError::Everywhere { address: *address });
        }
        for stub in &self.dns_stub {
            if self.cluster_domain.zone_of(&stub.domain) {
                let (domain, cluster) = (stub.domain.to_string(), self.cluster_domain.to_string());
                return Err(DnsError::Stub { domain, cluster });
            }
        }
        let (source_of, upstreams) = if self.dns_upstream.is_empty() {
            (resolv_conf.display().to_string(), nameservers(resolv_conf)?)
        } else {
            ("--dns-upstream".to_owned(), self.dns_upstream.clone())
        };
        let looping = |address: &&SocketAddr| self.dns_listen.contains(*address);
        if let Some(address) = upstreams.iter().find(looping) {
            return Err(DnsError::Loop { source_of, address: *address });
        }
        if let Some(address) = self.dns_stub.iter().map(|stub| &stub.address).find(looping) {
            return Err(DnsError::Loop { source_of: "--dns-stub".to_owned(), address: *address });
        }
        let stubs = self.dns_stub.iter().map(|stub| (stub.domain.clone(), stub.address)).collect();
        Ok(Serve { listen: self.dns_listen.clone(), upstreams, stubs })
    }
}

/// The servers that a file in the form of resolv.conf(5) names.
fn nameservers(path: &Path) -> Result<Vec<SocketAddr>, DnsError> {
    let broken = |reason: String| DnsError::ResolvConf { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
    let (config, _) = parse_resolv_conf(text).map_err(|error| broken(error.to_string()))?;
    Ok(config.name_servers().iter().map(|server| SocketAddr::new(server.ip, PORT)).collect())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let ip = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = ip.parse().map_err(|_| format!("{text:?} is not an IP or IP:port"))?;
    Ok(SocketAddr::new(ip, PORT))
}

fn domain(text: &str) -> Result<Name, String> {
    let name = Name::from_ascii(text.trim_matches('.')).ok().filter(|name| name.iter().len() > 0);
    let mut name = name.ok_or_else(|| format!("{text:?} is not a domain"))?.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

fn service(text: &str) -> Result<Key, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Key::new(namespace, name))
        }
        _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn parse(flags: &[&str]) -> Result<Flags, String> {
        let words = ["podnet", "--dns", "serve"].iter().chain(flags);
        Command::try_parse_from(words).map(|it| it.flags).map_err(|error| error.to_string())
    }

    fn serve(flags: &[&str], resolv_conf: &str) -> Result<Serve, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::fs::write(&path, resolv_conf).unwrap();
        parse(flags)?.serve_by(&path).map_err(|error| error.to_string())
    }

    const LISTEN: [&str; 2] = ["--dns-listen", "192.0.2.1,[2001:db8::1]:5353"];

    #[test]
    fn upstreams_are_those_of_resolv_conf_unless_they_are_named() {
        let text = "search example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2\n";
        let found = serve(&LISTEN, text).unwrap();
        let addresses = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(addresses(&found.listen), ["192.0.2.1:53", "[2001:db8::1]:5353"]);
        assert_eq!(addresses(&found.upstreams), ["192.0.2.53:53", "[2001:db8::53]:53"]);
        let named = serve(&[&LISTEN[..], &["--dns-upstream", "198.51.100.1:5300"]].concat(), "").unwrap();
        assert_eq!(addresses(&named.upstreams), ["198.51.100.1:5300"]);
    }

    #[test]
    fn a_server_that_asks_itself_is_refused() {
        let error = serve(&LISTEN, "nameserver 192.0.2.1\n").unwrap_err();
        assert!(
            error.contains("resolv.conf names 192.0.2.1:53") && error.contains("--dns-upstream"),
            "{error}"
        );
        let stub = ["--dns-stub", "corp.example=192.0.2.1", "--dns-upstream", "192.0.2.9"];
        let error = serve(&[&LISTEN[..], &stub].concat(), "").unwrap_err();
        assert!(error.contains("--dns-stub names 192.0.2.1:53"), "{error}");
        assert!(serve(&LISTEN, "nameserver 2001:db8::1\n").is_ok(), "that is another port");
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_flag() {
        for (flags, resolv_conf, part) in [
            (&[][..], "nameserver 192.0.2.53\n", "--dns-listen"),
            (&["--dns-listen", "0.0.0.0"], "nameserver 192.0.2.53\n", "0.0.0.0:53"),
            (&LISTEN, "search example.com\n", "resolv.conf"),
            (&["--dns-listen", "nowhere"], "", "\"nowhere\" is not an IP or IP:port"),
            (&["--dns-service", "kube-dns"], "", "NAMESPACE/NAME"),
            (&["--cluster-domain", "."], "", "\".\" is not a domain"),
            (&["--dns-stub", "corp.example"], "", "DOMAIN=ADDRESS"),
            (&["--dns-ttl", "3601"], "", "3601"),
            (
                &["--dns-listen", "192.0.2.1", "--dns-stub", "svc.cluster.local=192.0.2.9"],
                "",
                "--dns-stub svc.cluster.local.: the names of cluster.local. are the cluster's",
            ),
        ] {
            let error = serve(flags, resolv_conf).unwrap_err();
            assert!(error.contains(part), "no {part} in {error}");
        }
    }

    #[test]
    fn the_kernel_answers_for_domains_that_its_programs_have_room_for() {
        let zone = |flags: &[&str]| {
            let words = ["podnet"].iter().chain(flags);
            Command::try_parse_from(words).unwrap().flags.kernel_zone().map_err(|error| error.to_string())
        };
        assert_eq!(zone(&[]), Ok(None));
        assert_eq!(zone(&["--dns", "serve"]), Ok(None));
        let expected = podnet_common::dns::name::Zone::new("cluster.local", 5);
        assert_eq!(zone(&["--dns", "assist"]), Ok(expected));
        let long = ["--dns", "assist", "--cluster-domain", "a.b.c.d.e.f"];
        assert!(zone(&long).unwrap_err().contains("a.b.c.d.e.f"));
    }

    #[test]
    fn a_domain_may_have_several_servers() {
        let flags = ["--dns-stub", "corp.example=192.0.2.8,corp.example.=192.0.2.9,b.example=192.0.2.8"];
        let found = serve(&[&LISTEN[..], &flags].concat(), "nameserver 192.0.2.53\n").unwrap().domains();
        let counts: Vec<(String, usize)> =
            found.iter().map(|(name, addresses)| (name.to_string(), addresses.len())).collect();
        let expected = [(".", 1), ("corp.example.", 2), ("b.example.", 1)];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)));
    }
}
