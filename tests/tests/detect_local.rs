//! Whose connections to ClusterIPs keep their source: semantics §5, `detectLocalMode`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{SocketLb, service_port};
use tests::manifests::{Family, Service};
use tests::peer::{Conversation, Target, Transport, ask, transfer};
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::{Cluster, address_of, node_address};
use tests::wait::{PATIENCE, until};

/// The networks of the nodes, and of who is outside.
const NODES: [&str; 2] = ["172.18.0.0/24", "fd00:172:18::/64"];
/// The networks of all pods.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
const BYTES: u64 = 4 << 20;

/// Several requests to a Service by each transport: its endpoint sees `own`, or somebody else.
fn is_known(from: &Place, at: SocketAddr, server: &Pod, own: IpAddr, kept: bool) -> Result<()> {
    for transport in Transport::ALL {
        let case = format!("{transport:?} {at} from {} to {}", from.netns.name(), server.name());
        let mut conversation = Conversation::start(from, &Target::new(transport, at).kept())?;
        for _ in 0..3 {
            let reply = conversation.reply().with_context(|| case.clone())?;
            ensure!(reply.server == server.name() && reply.peer == at, "{case}: {reply:?}");
            ensure!((reply.client.ip() == own) == kept, "{case}: kept is to be {kept}: {reply:?}");
        }
    }
    transfer(from, at, BYTES)
}

/// Whether the pod on the first node and who is outside keep their addresses.
fn who_is_known(flags: &[&str], kind: PodKind, pod: bool, outside: bool) -> Result<()> {
    let Some(cluster) = Cluster::start(kind, SocketLb::Off, flags)? else { return Ok(()) };
    for server in [&cluster.here, &cluster.there] {
        let service = Service::new("web", 10).with([server]);
        cluster.apply(&service)?;
        for family in Family::ALL {
            let at = service_port(service.address(family)?);
            let own = address_of(&cluster.client, family);
            is_known(cluster.client.place(), at, server, own, pod)?;
            // Answers of another node's endpoint would not come by this one.
            if !outside || server.name() == cluster.here.name() {
                let own = cluster.outside_address(family);
                is_known(cluster.outside.place(), at, server, own, outside)?;
            }
        }
    }
    Ok(())
}

#[test]
fn pods_are_known_and_others_are_not_without_settings() -> Result<()> {
    who_is_known(&[], PodKind::Ptp, true, false)
}

#[test]
fn cluster_cidr_has_the_pods_ptp() -> Result<()> {
    who_is_known(&["--cluster-cidr", &PODS.join(",")], PodKind::Ptp, true, false)
}

#[test]
fn cluster_cidr_has_the_pods_bridge() -> Result<()> {
    who_is_known(&["--cluster-cidr", &PODS.join(",")], PodKind::Bridge, true, false)
}

/// A client outside counts as a pod then, and a pod of this node as a stranger.
#[test]
fn cluster_cidr_decides_at_both_sides_ptp() -> Result<()> {
    who_is_known(&["--cluster-cidr", &NODES.join(",")], PodKind::Ptp, false, true)
}

#[test]
fn cluster_cidr_decides_at_both_sides_bridge() -> Result<()> {
    who_is_known(&["--cluster-cidr", &NODES.join(",")], PodKind::Bridge, false, true)
}

#[test]
fn interface_name_prefix() -> Result<()> {
    let flags = ["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "veth"];
    who_is_known(&flags, PodKind::Ptp, true, false)
}

#[test]
fn bridge_interface() -> Result<()> {
    let flags = ["--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cni0"];
    who_is_known(&flags, PodKind::Bridge, true, false)?;
    // These are not at the bridge.
    who_is_known(&flags, PodKind::Ptp, false, false)
}

/// The Node's `podCIDRs`, which come and change while the agent runs.
#[test]
fn node_cidr() -> Result<()> {
    let flags = ["--detect-local-mode", "NodeCIDR"];
    let Some(cluster) = Cluster::start(PodKind::Ptp, SocketLb::Off, &flags)? else { return Ok(()) };
    let service = Service::new("web", 10).with([&cluster.here]);
    cluster.apply(&service)?;
    for (cidrs, pod, outside) in
        [(None, true, false), (Some(NODES), false, true), (Some(PODS), true, false), (None, true, false)]
    {
        let spec = cidrs.map(|cidrs| format!("spec: {{podCIDRs: {cidrs:?}}}\n")).unwrap_or_default();
        let [v4, v6] = Family::ALL.map(|family| node_address(&cluster.nodes[0], family));
        cluster.manifests.write(
            "node-a.yaml",
            &format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\n{spec}status:\n  addresses:\n  \
                 - {{type: InternalIP, address: \"{v4}\"}}\n  - {{type: InternalIP, address: \"{v6}\"}}\n"
            ),
        )?;
        for family in Family::ALL {
            let at = service_port(service.address(family)?);
            for (from, own, kept) in [
                (cluster.client.place(), address_of(&cluster.client, family), pod),
                (cluster.outside.place(), cluster.outside_address(family), outside),
            ] {
                let case = format!("{cidrs:?}, {}", from.netns.name());
                let target = Target::new(Transport::Tcp, at).patience(Duration::from_millis(300));
                until(&case, PATIENCE, || {
                    let reply = ask(from, &target)?;
                    let seen = reply.as_ref().is_ok_and(|reply| (reply.client.ip() == own) == kept);
                    ensure!(seen, "kept is to be {kept}: {reply:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}
