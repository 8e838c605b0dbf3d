//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The machine, and when.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The date.
    date: String,
    /// The kernel's release.
    kernel: String,
    /// The processor.
    processor: String,
    /// How many of them.
    cores: usize,
    /// Memory in MiB.
    memory: u64,
    /// The version of `nft`.
    nft: String,
    /// How many processes were running or waiting for a processor when it began: the last minute's mean.
    load: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let kibibytes = field(&meminfo, "MemTotal");
        Self {
            date: words("date", &["-u", "+%F"]),
            kernel: file("/proc/sys/kernel/osrelease"),
            processor: field(&cpuinfo, "model name"),
            cores: cores(),
            memory: kibibytes.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024,
            nft: words("nft", &["--version"]),
            load: load(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self { date, kernel, processor, cores, memory, nft, load } = self;
        format!("{date}, Linux {kernel}, {cores} cores of {processor}, {memory} MiB, {nft}, load {load}")
    }
}

/// How many cores there are.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// The last minute's mean load.
pub(crate) fn load() -> String {
    file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()
}

/// The memory of this process that is in RAM, in KiB.
///
/// # Errors
/// If the kernel does not say.
pub(crate) fn resident() -> Result<u64> {
    memory(Path::new("/proc/self/status"), "VmRSS")
}

/// A field of a process's status, in KiB.
///
/// # Errors
/// If the kernel does not say.
pub(crate) fn memory(status: &Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(status).with_context(|| format!("cannot read {}", status.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.with_context(|| format!("there is no {name}"))?;
    value.trim().trim_end_matches(" kB").parse().with_context(|| format!("{name} is no number"))
}

fn file(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn words(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| format!("no {program}"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
