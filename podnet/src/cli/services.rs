//! `podnet services`: what the kernel serves right now.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use podnet_common::service::{Algorithm, Backend, BackendId, FrontendFlags, ServiceId, SlotRange};
use podnet_common::wire::Protocol;
use serde::Serialize;

use super::{Bpffs, print};
use crate::changes::Snapshot;
use crate::error::Error;
use crate::kernel::View;
use crate::output;
use crate::plan::PortName;

/// How many backends a table names, as kubectl does with endpoints.
const SHOWN: usize = 3;

/// Show the Services that the kernel serves, from its own tables
#[derive(Debug, Args)]
pub(super) struct Services {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    bpffs: Bpffs,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// The same with all backends, of clients inside (this node's pods and the node itself) and of those outside.
    Wide,
    /// For programs.
    Json,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Frontend {
    /// `namespace/name:port`, if it is known.
    name: Option<String>,
    /// What kind of address it is.
    #[serde(rename = "type")]
    kind: &'static str,
    protocol: String,
    address: IpAddr,
    /// 0 for all ports that are no frontend of their own, of any protocol.
    port: u16,
    inside: Side,
    outside: Side,
    /// For how many seconds a client stays with its backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<u32>,
    /// How clients outside get a backend, if not by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<&'static str>,
    /// Who may use it, if not everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Vec<String>>,
}

impl Frontend {
    fn is_rest(&self) -> bool {
        self.port == 0
    }
}

/// Where connections go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Side {
    backends: Vec<Place>,
    /// What becomes of those that have nowhere to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    otherwise: Option<Otherwise>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Otherwise {
    Dropped,
    Refused,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Place {
    address: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Place {
    fn from(socket: SocketAddr) -> Self {
        Self { address: socket.ip(), port: socket.port() }
    }
}

impl Services {
    pub(super) fn run(self) -> Result<ExitCode, Error> {
        let snapshot = View::open(&self.bpffs.bpffs)?.snapshot()?;
        print(&render(&frontends(&snapshot), self.output))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn frontends(snapshot: &Snapshot) -> Vec<Frontend> {
    let slots: HashMap<u32, BackendId> = snapshot.slots.iter().copied().collect();
    let backends: HashMap<BackendId, Backend> = snapshot.backends.iter().copied().collect();
    let names: HashMap<_, _> =
        snapshot.names.iter().map(|(id, name)| (*id, PortName::decode(name))).collect();
    let side = |range: SlotRange, dropped: bool| {
        let backends = range.indices().filter_map(|slot| backends.get(slots.get(&slot)?));
        let mut backends: Vec<Place> =
            backends.map(|backend| SocketAddr::from(backend.endpoint()).into()).collect();
        backends.sort_unstable();
        backends.dedup();
        let otherwise = if dropped { Otherwise::Dropped } else { Otherwise::Refused };
        Side { otherwise: backends.is_empty().then_some(otherwise), backends }
    };
    let mut frontends: Vec<Frontend> = snapshot
        .frontends
        .iter()
        .map(|(key, frontend)| {
            let (socket, flags) = (SocketAddr::from(key.endpoint()), frontend.flags);
            let restricted = flags.has(FrontendFlags::SOURCE_RANGES);
            Frontend {
                name: names.get(&frontend.service).cloned().flatten().map(|name| name.to_string()),
                kind: frontend.kind.name(),
                protocol: match key.protocol() {
                    Protocol(0) => "any".to_owned(),
                    protocol => format!("{protocol:?}"),
                },
                address: socket.ip(),
                port: socket.port(),
                inside: side(frontend.inside, flags.has(FrontendFlags::INSIDE_DROP)),
                outside: side(frontend.outside, flags.has(FrontendFlags::OUTSIDE_DROP)),
                affinity: (frontend.affinity > 0).then_some(frontend.affinity),
                algorithm: (frontend.algorithm == Algorithm::MAGLEV).then_some("maglev"),
                sources: restricted.then(|| sources(snapshot, frontend.service)),
            }
        })
        .collect();
    frontends.sort_unstable();
    frontends
}

fn sources(snapshot: &Snapshot, service: ServiceId) -> Vec<String> {
    let mut ranges: Vec<_> = snapshot.sources.iter().filter(|range| range.service == service).collect();
    ranges.sort_unstable();
    ranges.into_iter().map(|range| format!("{}/{}", range.addr.to_ip(), range.length)).collect()
}

fn render(frontends: &[Frontend], format: Format) -> String {
    if matches!(format, Format::Json) {
        return output::json(&frontends);
    }
    // What refuses all other ports of an address is no news to people.
    let frontends = frontends.iter().filter(|frontend| !frontend.is_rest());
    let row = |frontend: &Frontend| {
        [
            frontend.name.clone().unwrap_or_else(|| "<unknown>".to_owned()),
            frontend.kind.to_owned(),
            frontend.protocol.clone(),
            SocketAddr::new(frontend.address, frontend.port).to_string(),
        ]
    };
    match format {
        Format::Wide => output::table(
            &["SERVICE", "TYPE", "PROTOCOL", "FRONTEND", "INSIDE", "OUTSIDE"],
            frontends.map(|frontend| {
                let [service, kind, protocol, at] = row(frontend);
                let outside = match frontend.outside == frontend.inside {
                    true => "<same>".to_owned(),
                    false => backends(&frontend.outside, usize::MAX),
                };
                [service, kind, protocol, at, backends(&frontend.inside, usize::MAX), outside]
            }),
        ),
        Format::Table | Format::Json => output::table(
            &["SERVICE", "TYPE", "PROTOCOL", "FRONTEND", "BACKENDS"],
            frontends.map(|frontend| {
                let [service, kind, protocol, at] = row(frontend);
                [service, kind, protocol, at, backends(&frontend.inside, SHOWN)]
            }),
        ),
    }
}

fn backends(side: &Side, shown: usize) -> String {
    let Side { backends, otherwise } = side;
    match otherwise {
        Some(Otherwise::Dropped) => return "<dropped>".to_owned(),
        Some(Otherwise::Refused) => return "<none>".to_owned(),
        None => {}
    }
    let named =
        backends.iter().take(shown).map(|place| SocketAddr::new(place.address, place.port).to_string());
    let mut text = named.collect::<Vec<_>>().join(",");
    if backends.len() > shown {
        text.push_str(&format!(" + {} more", backends.len() - shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use podnet_common::service::{self, BackendFlags, FrontendKey, FrontendKind};

    use super::*;
    use crate::changes::SourceRange;
    use crate::cluster::object::Key;

    fn snapshot() -> Snapshot {
        let key =
            |socket: &str, protocol| FrontendKey::new(socket.parse::<SocketAddr>().unwrap().into(), protocol);
        let frontend =
            |kind, base, count, id| service::Frontend::new(kind, ServiceId(id), SlotRange { base, count });
        let backend = |id: u8| {
            let socket: SocketAddr = ([10, 0, 0, 10 - id], 8080).into();
            (BackendId(id.into()), Backend::new(socket.into(), ServiceId(1), 1, BackendFlags::SERVING))
        };
        let local = |kind, flags: FrontendFlags, outside| {
            let all = SlotRange { base: 0, count: 4 };
            let mut frontend = frontend(kind, 0, 4, 1).with_slots(all, outside);
            frontend.flags = FrontendFlags::OUTSIDE_LOCAL.with(flags);
            frontend.affinity = 10_800;
            frontend
        };
        let cluster_ip = FrontendKind::CLUSTER_IP;
        let name = PortName { service: Key::new("shop", "web"), port: "http".into() };
        let addr = "192.0.2.0".parse::<IpAddr>().unwrap().into();
        Snapshot {
            frontends: vec![
                (key("10.96.0.1:80", Protocol::TCP), frontend(cluster_ip, 0, 4, 1)),
                (
                    FrontendKey::rest_of(key("10.96.0.1:80", Protocol::TCP).endpoint().addr),
                    frontend(cluster_ip, 0, 0, 3),
                ),
                (key("[fd00:10:96::1]:53", Protocol::UDP), frontend(cluster_ip, 0, 0, 2)),
                (
                    key("203.0.113.1:80", Protocol::TCP),
                    local(
                        FrontendKind::LOAD_BALANCER,
                        FrontendFlags::SOURCE_RANGES,
                        SlotRange { base: 4, count: 1 },
                    ),
                ),
                (
                    key("192.0.2.1:30080", Protocol::SCTP),
                    local(FrontendKind::NODE_PORT, FrontendFlags::OUTSIDE_DROP, SlotRange::default()),
                ),
            ],
            slots: (0..5).map(|slot| (slot, BackendId(slot % 4 + 1))).collect(),
            backends: (1..=4).map(backend).collect(),
            names: vec![(ServiceId(1), name.encode())],
            sources: vec![SourceRange { service: ServiceId(1), addr, length: 24 }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_table_names_some_backends() {
        insta::assert_snapshot!(render(&frontends(&snapshot()), Format::Table));
    }

    #[test]
    fn the_wide_table_names_all_backends() {
        insta::assert_snapshot!(render(&frontends(&snapshot()), Format::Wide));
    }

    #[test]
    fn json_is_for_programs() {
        insta::assert_snapshot!(render(&frontends(&snapshot()), Format::Json));
    }
}
