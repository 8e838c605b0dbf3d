//! `podnet services`: what the kernel serves right now.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use podnet_common::service::{Backend, BackendId};
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
    /// The same with all backends.
    Wide,
    /// For programs.
    Json,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Frontend {
    /// `namespace/name:port`, if it is known.
    name: Option<String>,
    protocol: String,
    address: IpAddr,
    port: u16,
    backends: Vec<Place>,
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
    let mut frontends: Vec<Frontend> = snapshot
        .frontends
        .iter()
        .map(|(key, frontend)| {
            let socket = SocketAddr::from(key.endpoint());
            let range = frontend.inside.indices();
            let backends = range.filter_map(|slot| backends.get(slots.get(&slot)?));
            Frontend {
                name: names.get(&frontend.service).cloned().flatten().map(|name| name.to_string()),
                protocol: format!("{:?}", key.protocol()),
                address: socket.ip(),
                port: socket.port(),
                backends: backends.map(|backend| SocketAddr::from(backend.endpoint()).into()).collect(),
            }
        })
        .collect();
    frontends.iter_mut().for_each(|frontend| frontend.backends.sort_unstable());
    frontends.sort_unstable();
    frontends
}

fn render(frontends: &[Frontend], format: Format) -> String {
    let shown = match format {
        Format::Json => return output::json(&frontends),
        Format::Table => SHOWN,
        Format::Wide => usize::MAX,
    };
    let rows = frontends.iter().map(|frontend| {
        [
            frontend.name.clone().unwrap_or_else(|| "<unknown>".to_owned()),
            frontend.protocol.clone(),
            SocketAddr::new(frontend.address, frontend.port).to_string(),
            backends(&frontend.backends, shown),
        ]
    });
    output::table(&["SERVICE", "PROTOCOL", "FRONTEND", "BACKENDS"], rows)
}

fn backends(backends: &[Place], shown: usize) -> String {
    if backends.is_empty() {
        return "<none>".to_owned();
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
    use podnet_common::service::{self, BackendFlags, FrontendKey, FrontendKind, ServiceId, SlotRange};
    use podnet_common::wire::Protocol;

    use super::*;
    use crate::cluster::object::Key;

    fn snapshot() -> Snapshot {
        let key =
            |socket: &str, protocol| FrontendKey::new(socket.parse::<SocketAddr>().unwrap().into(), protocol);
        let frontend = |base, count, id| {
            service::Frontend::new(FrontendKind::CLUSTER_IP, ServiceId(id), SlotRange { base, count })
        };
        let backend = |id: u8| {
            let socket: SocketAddr = ([10, 0, 0, 10 - id], 8080).into();
            (BackendId(id.into()), Backend::new(socket.into(), ServiceId(1), 1, BackendFlags::SERVING))
        };
        let name = PortName { service: Key::new("shop", "web"), port: "http".into() };
        Snapshot {
            frontends: vec![
                (key("10.96.0.1:80", Protocol::TCP), frontend(0, 4, 1)),
                (key("[fd00:10:96::1]:53", Protocol::UDP), frontend(0, 0, 2)),
            ],
            slots: (0..4).map(|slot| (slot, BackendId(slot + 1))).collect(),
            backends: (1..=4).map(backend).collect(),
            names: vec![(ServiceId(1), name.encode())],
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
