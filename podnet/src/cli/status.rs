//! `podnet status`: what is attached, how full the tables are, what became of packets.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use podnet_common::abi;
use podnet_common::verdict::{Layer, Reason};
use serde::Serialize;

use super::{Bpffs, print};
use crate::changes::{Capacity, Snapshot};
use crate::error::Error;
use crate::kernel::{Attachment, Count, View};
use crate::output;

/// Show what is attached, how full the tables are, and what became of packets
///
/// The exit code is 1 when podnet is not set up on this machine.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// How to print it
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
    /// For programs.
    Json,
}

#[derive(Debug, Serialize)]
struct Report {
    attachments: Vec<Place>,
    tables: Vec<Table>,
    /// By the labels of layers and reasons.
    counters: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Serialize)]
struct Place {
    hook: String,
    target: String,
}

#[derive(Debug, Serialize)]
struct Table {
    name: &'static str,
    /// Only the tables that the agent writes are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<u32>,
    /// In bytes.
    memory: u64,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode, Error> {
        let view = View::open(&self.bpffs.bpffs)?;
        let report = Report {
            attachments: places(view.attachments()?),
            tables: tables(&view.snapshot()?, &view.capacity(), view.memory()?),
            counters: counters(&view.counters()?),
        };
        print(&render(&report, self.output))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn places(attachments: Vec<Attachment>) -> Vec<Place> {
    let mut places: Vec<Place> =
        attachments.into_iter().map(|Attachment { hook, target }| Place { hook, target }).collect();
    places.sort_unstable_by(|a, b| (&a.target, &a.hook).cmp(&(&b.target, &b.hook)));
    places
}

fn counters(all: &[Count]) -> BTreeMap<&'static str, BTreeMap<&'static str, u64>> {
    let mut counters: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for Count { layer, reason, count } in all {
        counters.entry(layer.label()).or_default().insert(reason.label(), *count);
    }
    counters
}

fn tables(snapshot: &Snapshot, capacity: &Capacity, memory: Vec<(&'static str, u64)>) -> Vec<Table> {
    let serving = snapshot.backends.iter().filter(|(_, backend)| backend.serving()).count();
    let usage = |name| match name {
        abi::FRONTENDS => (Some(snapshot.frontends.len()), Some(capacity.frontends)),
        abi::SLOTS => (Some(snapshot.slots.len()), Some(capacity.slots)),
        abi::BACKENDS => (Some(serving), Some(capacity.slots)),
        abi::NAMES => (Some(snapshot.names.len()), None),
        _ => (None, None),
    };
    memory
        .into_iter()
        .map(|(name, memory)| {
            let (used, capacity) = usage(name);
            Table { name, used, capacity, memory }
        })
        .collect()
}

fn render(report: &Report, format: Format) -> String {
    if let Format::Json = format {
        return output::json(report);
    }
    let count = |count: Option<String>| count.unwrap_or_else(|| "-".to_owned());
    let attachments = output::table(
        &["ATTACHED TO", "HOOK"],
        report.attachments.iter().map(|place| [place.target.clone(), place.hook.clone()]),
    );
    let tables = output::table(
        &["TABLE", "USED", "CAPACITY", "MEMORY"],
        report.tables.iter().map(|table| {
            [
                table.name.to_owned(),
                count(table.used.map(|used| used.to_string())),
                count(table.capacity.map(|capacity| capacity.to_string())),
                output::bytes(table.memory),
            ]
        }),
    );
    let places = Layer::ALL.iter().flat_map(|layer| Reason::ALL.iter().map(move |reason| (layer, reason)));
    let seen = places.filter_map(|(layer, reason)| {
        let count = *report.counters.get(layer.label())?.get(reason.label())?;
        let [layer, label] = [layer.label(), reason.label()].map(str::to_owned);
        (count > 0).then(|| [count.to_string(), layer, label, reason.text().trim().to_owned()])
    });
    let counters = output::table(&["COUNT", "LAYER", "REASON", "MEANING"], seen);
    [attachments, tables, counters].join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let attachment = |hook: &str, target: &str| Attachment { hook: hook.into(), target: target.into() };
        Report {
            attachments: places(vec![
                attachment("tcx ingress", "veth1"),
                attachment("tcx egress", "veth1"),
                attachment("connect4", "/sys/fs/cgroup"),
            ]),
            tables: tables(
                &Snapshot::default(),
                &Capacity::default(),
                vec![(abi::FLOWS, 218 << 20), (abi::FRONTENDS, 5 << 20)],
            ),
            counters: counters(
                &[
                    (Layer::Stack, Reason::Fragment, 0),
                    (Layer::Stack, Reason::Established, 71),
                    (Layer::Stack, Reason::NoEndpoints, 3),
                    (Layer::Xdp, Reason::Established, 5),
                ]
                .map(|(layer, reason, count)| Count { layer, reason, count }),
            ),
        }
    }

    #[test]
    fn the_table_has_what_was_seen() {
        insta::assert_snapshot!(render(&report(), Format::Table));
    }

    #[test]
    fn json_is_for_programs() {
        insta::assert_snapshot!(render(&report(), Format::Json));
    }
}
