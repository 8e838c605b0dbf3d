//! Figures for people, and for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

/// An aim, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Aim {
    /// What is asked for.
    what: String,
    /// The bound.
    bound: f64,
    /// What was measured.
    measured: f64,
    /// Whether it is met.
    met: bool,
}

impl Aim {
    /// `measured` is to be `bound` at most.
    pub(crate) fn at_most(what: impl Into<String>, bound: f64, measured: f64) -> Self {
        Self { what: what.into(), bound, measured, met: measured <= bound }
    }

    /// `measured` is to be `bound` at least.
    pub(crate) fn at_least(what: impl Into<String>, bound: f64, measured: f64) -> Self {
        Self { what: what.into(), bound, measured, met: measured >= bound }
    }
}

/// A table in Markdown.
pub(crate) fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table
}

/// The aims as a table.
pub(crate) fn aims(aims: &[Aim]) -> Table {
    table(
        &["aim", "bound", "measured", "met"],
        aims.iter().map(|aim| {
            let met = if aim.met { "yes" } else { "**no**" };
            [aim.what.clone(), format!("{:.3}", aim.bound), format!("{:.3}", aim.measured), met.to_owned()]
        }),
    )
}

/// Writes `report` as JSON.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, report: &impl Serialize) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(report)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
