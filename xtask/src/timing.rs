//! How long the parts of a command take.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The parts run so far and the time each took.
#[derive(Debug, Default)]
pub(crate) struct Timings {
    parts: Vec<(String, Duration)>,
}

impl Timings {
    /// Runs one part, under a heading; its error says which part failed.
    pub(crate) fn run<T>(&mut self, name: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = part();
        let took = start.elapsed();
        self.parts.push((name.to_owned(), took));
        let word = if result.is_ok() { "took" } else { "FAILED after" };
        eprintln!("== {name} {word} {:.1} s", took.as_secs_f64());
        result.with_context(|| format!("{name} failed"))
    }

    /// A table of all parts in seconds, with their sum.
    pub(crate) fn table(&self) -> String {
        let width = self.parts.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max("all".len());
        let all: Duration = self.parts.iter().map(|(_, took)| *took).sum();
        let rows = self.parts.iter().map(|(name, took)| (name.as_str(), *took)).chain([("all", all)]);
        rows.map(|(name, took)| format!("{name:width$} {:>8.1} s\n", took.as_secs_f64())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_part_and_the_sum() {
        let parts = vec![
            ("unit".to_owned(), Duration::from_millis(1500)),
            ("lint: fmt".to_owned(), Duration::from_millis(600)),
        ];
        let table = Timings { parts }.table();
        assert_eq!(table, "unit           1.5 s\nlint: fmt      0.6 s\nall            2.1 s\n");
    }

    #[test]
    fn an_error_says_which_part_failed() {
        let error = Timings::default().run("unit", || -> Result<()> { anyhow::bail!("no") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "unit failed: no");
    }
}
