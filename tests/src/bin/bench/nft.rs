//! Rules of the shape that kube-proxy's nftables mode writes (Kubernetes 1.37): a verdict map from addresses
//! to a chain for each service port, which picks an endpoint at random; marks and masquerading, checks of
//! new connections, and the sets that go with them, empty where a cluster without such services has them so.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tests::process::Place;

use crate::services::{PORT, Service};

const TABLE: &str = "ip kube-proxy";

/// All that does not depend on the services.
pub(crate) const BASE: &str = "\
add table ip kube-proxy
add set ip kube-proxy cluster-ips { type ipv4_addr; }
add set ip kube-proxy nodeport-ips { type ipv4_addr; }
add set ip kube-proxy hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict; }
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110; }
add chain ip kube-proxy filter-input { type filter hook input priority 0; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0; }
add chain ip kube-proxy filter-output { type filter hook output priority 0; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
add chain ip kube-proxy nat-output { type nat hook output priority -100; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy firewall-check
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy services
add chain ip kube-proxy masquerading
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy cluster-ips-check ip daddr { 10.96.0.0/12 } drop
add rule ip kube-proxy services ip daddr @cluster-ips ip saddr != 10.244.0.0/16 mark set mark or 0x4000
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy masquerading mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
add rule ip kube-proxy masquerading ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
";

/// The commands that add `services`; their endpoints are on this node if `local`.
pub(crate) fn add<'a>(services: impl IntoIterator<Item = &'a Service>, local: bool) -> String {
    let mut text = String::new();
    for service in services {
        let address = service.address();
        let _ = writeln!(text, "add element {TABLE} cluster-ips {{ {} }}", address.ip());
        for (_, protocol) in service.protocols() {
            let chain = chain(service, protocol);
            let _ = writeln!(text, "add chain {TABLE} {chain}");
            text.push_str(&rule(service, protocol));
            let _ = writeln!(
                text,
                "add element {TABLE} service-ips {{ {} . {protocol} . {PORT} : goto {chain} }}",
                address.ip()
            );
            for endpoint in service.endpoints.iter().filter(|_| local) {
                let (ip, port) = (endpoint.ip(), endpoint.port());
                let _ = writeln!(
                    text,
                    "add element {TABLE} hairpin-connections {{ {ip} . {ip} . {protocol} . {port} }}"
                );
            }
        }
    }
    text
}

/// The commands that give `service` the endpoints it has now.
pub(crate) fn replace(service: &Service) -> String {
    let mut text = String::new();
    for (_, protocol) in service.protocols() {
        let _ = writeln!(text, "flush chain {TABLE} {}", chain(service, protocol));
        text.push_str(&rule(service, protocol));
    }
    text
}

fn chain(service: &Service, protocol: &str) -> String {
    format!("service-{:08X}-bench/{}/{protocol}/", service.number, service.name())
}

fn rule(service: &Service, protocol: &str) -> String {
    let chain = chain(service, protocol);
    let mut text = format!(
        "add rule {TABLE} {chain} meta l4proto {protocol} dnat ip addr . port to numgen random mod {} map {{ ",
        service.endpoints.len()
    );
    for (place, endpoint) in service.endpoints.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{place} : {} . {}", endpoint.ip(), endpoint.port());
    }
    text.push_str(" }\n");
    text
}

/// Carries out `text` as one transaction, and says how long that took.
///
/// # Errors
/// What `nft` complains of.
pub(crate) fn run(place: &Place, text: &str) -> Result<Duration> {
    let mut command = place.command("nft")?;
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("cannot run nft")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).context("cannot write to nft")?;
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("nft: {}", complaint.lines().take(8).collect::<Vec<_>>().join("\n"));
    }
    Ok(start.elapsed())
}

/// How many service ports with endpoints kube-proxy has written here.
///
/// # Errors
/// If `nft` cannot be run; not if there is no such table.
pub(crate) fn service_ports(place: &Place) -> Result<usize> {
    let mut command = place.command("nft")?;
    let output = command.args(["list", "map", "ip", "kube-proxy", "service-ips"]).output();
    let output = output.context("cannot run nft")?;
    Ok(String::from_utf8_lossy(&output.stdout).matches(" : goto ").count())
}
