//! The flags about names.

use clap::{Args, ValueEnum};
use hickory_proto::rr::Name;
use podnet_common::dns::name;

use crate::cluster::object::Key;
use crate::dns::Settings;

/// How names are answered.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Names")]
pub(super) struct Dns {
    /// Whether queries of pods for the cluster's names are answered on their node
    ///
    /// They are answered at pods' interfaces, in the kernel: what is asked of the cluster's DNS by UDP for addresses of
    /// Services, as far as that is known for certain. All else goes on to the cluster's DNS. NetworkPolicies have no say
    /// there, so pods of namespaces with a NetworkPolicy of type Egress are not answered, nor pods with the annotation
    /// `podnet/dns: "off"`. Names that the cluster's DNS has been given otherwise than by Services are denied.
    #[arg(long, value_enum, env = "PODNET_DNS", default_value_t)]
    dns: Mode,

    /// The cluster's domain: one that its DNS answers by Services alone
    #[arg(long, value_name = "NAME", env = "PODNET_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = domain)]
    cluster_domain: Name,

    /// For how many seconds answers may be remembered
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PODNET_DNS_TTL",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(0..=3600)
    )]
    dns_ttl: u32,

    /// The Service of the cluster's DNS
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        env = "PODNET_DNS_SERVICE",
        default_value = "kube-system/kube-dns",
        value_parser = service
    )]
    dns_service: Key,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// All queries go to the cluster's DNS.
    #[default]
    Off,
    /// Those whose answer is known for certain are answered in the kernel.
    Assist,
}

impl Dns {
    /// The settings, if names are to be answered.
    pub(super) fn settings(self) -> Option<Settings> {
        let Self { dns, cluster_domain, dns_ttl, dns_service } = self;
        (dns == Mode::Assist).then_some(Settings {
            domain: cluster_domain,
            ttl: dns_ttl,
            service: dns_service,
        })
    }
}

fn domain(text: &str) -> Result<Name, String> {
    const ADVICE: &str = "give it as the kubelet has it (clusterDomain), as in cluster.local";
    // The kernel's programs have no room for more.
    if name::Zone::new(text, 0).is_none() {
        return Err(format!(
            "it has no label, an empty one, more than 5, or more than 62 characters: {ADVICE}"
        ));
    }
    let mut domain = Name::from_ascii(text).map_err(|error| format!("{error}: {ADVICE}"))?;
    domain.set_fqdn(true);
    Ok(domain)
}

fn service(text: &str) -> Result<Key, String> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(Key::new(namespace, name)),
        _ => Err("it is not NAMESPACE/NAME, as in kube-system/kube-dns".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_those_that_programs_have_room_for() {
        assert_eq!(domain("Cluster.Local").unwrap(), domain("cluster.local.").unwrap());
        for bad in ["", ".", "a..b", "a.b.c.d.e.f", &"a".repeat(63)] {
            let error = domain(bad).unwrap_err();
            assert!(error.contains("clusterDomain"), "{bad}: {error}");
        }
    }

    #[test]
    fn services_have_a_namespace() {
        assert_eq!(service("kube-system/coredns"), Ok(Key::new("kube-system", "coredns")));
        for bad in ["kube-dns", "/kube-dns", "kube-system/", "a/b/c"] {
            assert!(service(bad).unwrap_err().contains("NAMESPACE/NAME"), "{bad}");
        }
    }
}
