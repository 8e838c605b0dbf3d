//! What can go wrong at the kernel: each error names the thing, the reason and the fix.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;

use crate::error::chain;

/// An error at the kernel's edge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without an eBPF object.
    #[error("this podnet has no kernel programs in it: build it with `cargo xtask build`")]
    NoObject,
    /// The pin directory is on some other file system.
    #[error(
        "{path} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`, or name another directory with --bpffs"
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory could not be worked with.
    #[error("{action} {path}: {source}{}", hint(source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The cgroup is not one, or there is none.
    #[error(
        "no cgroup2 hierarchy {place}: run `mount -t cgroup2 none /sys/fs/cgroup`, name a cgroup with --cgroup, or do without sockets by --socket-lb off"
    )]
    NoCgroup {
        /// Where it was looked for.
        place: String,
    },
    /// A map has no room.
    #[error("the table {table} is full with {capacity} entries: raise {flag}; what is in it goes on working")]
    Full {
        /// The map's name.
        table: &'static str,
        /// Its size.
        capacity: u32,
        /// The flag that sets its size.
        flag: &'static str,
    },
    /// A map is to become smaller than what is in it.
    #[error(
        "the table {table} holds {used} entries and cannot shrink to {wanted}: raise {flag}, or start afresh with `podnet cleanup`"
    )]
    Shrink {
        /// The map's name.
        table: &'static str,
        /// How many entries are in use.
        used: u32,
        /// The size asked for.
        wanted: u32,
        /// The flag that sets its size.
        flag: &'static str,
    },
    /// There are no pinned maps.
    #[error(
        "podnet is not set up at {path}: start it with `podnet agent`, or name its directory with --bpffs"
    )]
    NotRunning {
        /// The pin directory.
        path: PathBuf,
    },
    /// A system call on a map failed.
    #[error("{action} the table {table}: {source}{}", hint(source))]
    Table {
        /// What was tried.
        action: &'static str,
        /// The map's name.
        table: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A program could not be loaded.
    #[error("loading the program {program}: {}{}", refusal(source), permission(source))]
    Load {
        /// The program's name.
        program: &'static str,
        /// The reason.
        source: ProgramError,
    },
    /// The object could not be loaded.
    #[error("loading podnet's kernel programs: {}{}", chain(.0), permission(.0))]
    Object(#[from] EbpfError),
    /// A program could not be attached.
    #[error("attaching the program {program} to {target}: {reason}")]
    Attach {
        /// The program's name.
        program: &'static str,
        /// Where to.
        target: String,
        /// The reason.
        reason: String,
    },
    /// A map could not be opened.
    #[error("opening a table: {}{}", chain(.0), permission(.0))]
    Map(#[from] MapError),
    /// A pin could not be made.
    #[error("pinning: {}", chain(.0))]
    Pin(#[from] PinError),
}

/// Why a program was not loaded: the verifier's last word instead of its whole log, which only helps those
/// who write programs, and which `podnet=debug` logs.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return chain(error) };
    let log = verifier_log.to_string();
    tracing::debug!("the verifier's log:\n{log}");
    let statistics = ["verification time", "stack depth", "processed"];
    let last = log.lines().rev().find(|line| {
        !line.trim().is_empty() && !statistics.iter().any(|statistic| line.starts_with(statistic))
    });
    match last {
        Some(line) => format!("the kernel refuses it ({io_error}): {}", line.trim()),
        None => format!("the kernel refuses it: {io_error}"),
    }
}

const RIGHTS: &str = "; podnet needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { RIGHTS } else { "" }
}

/// The same hint where the cause lies deeper.
fn permission(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return RIGHTS;
        }
        next = cause.source();
    }
    ""
}
