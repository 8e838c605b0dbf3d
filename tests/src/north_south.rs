//! A Service that is reached from outside of the cluster, by every kind of address that it can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use crate::agent::service_port;
use crate::manifests::{Family, Service};
use crate::peer::{Conversation, Target, Transport};
use crate::pod::Pod;
use crate::process::Place;
use crate::scene::Cluster;

const BALANCER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];
const EXTERNAL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20)),
];
/// A Service with an address of every kind.
pub fn service() -> Service {
    Service::new("web", 10).node_port().balancers(BALANCER).external_ips(EXTERNAL)
}

fn of_family(addresses: [IpAddr; 2], family: Family) -> IpAddr {
    addresses[usize::from(family == Family::V6)]
}

/// Everything that a Service is reached at from outside.
pub fn frontends(cluster: &Cluster, family: Family) -> [SocketAddr; 3] {
    [
        cluster.node_port(family),
        service_port(of_family(BALANCER, family)),
        service_port(of_family(EXTERNAL, family)),
    ]
}

/// Several requests by every transport: answered by `server`, which sees `client`; the client sees whom it
/// asked.
///
/// # Errors
/// If it is not so.
pub fn is_served(from: &Place, at: SocketAddr, server: &Pod, client: Option<IpAddr>) -> Result<()> {
    for transport in Transport::ALL {
        let case = format!("{transport:?} {at} from {}", from.netns.name());
        let mut conversation = Conversation::start(from, &Target::new(transport, at).kept())?;
        for _ in 0..3 {
            let reply = conversation.reply().with_context(|| case.clone())?;
            ensure!(reply.server == server.name(), "{case}: {reply:?}");
            ensure!(reply.peer == at, "{case}: the client sees another peer: {reply:?}");
            let seen = client.unwrap_or(reply.client.ip());
            ensure!(reply.client.ip() == seen, "{case}: the backend does not see {seen}: {reply:?}");
        }
    }
    Ok(())
}
