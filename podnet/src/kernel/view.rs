//! Reading a dataplane from outside: for the commands that only look.

use std::path::Path;

use podnet_common::verdict::{Layer, Reason};

use super::attach::{self, Pin};
use super::error::Error;
use super::pins::Pins;
use super::tables::Tables;
use crate::changes::{Capacity, Snapshot};

/// The maps and links that are pinned, whether an agent runs or not.
pub struct View {
    tables: Tables,
    pins: Pins,
}

/// A program at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The hook: `tcx ingress`, `clsact egress`, `xdp native`, `connect4`, ...
    pub hook: String,
    /// The interface or cgroup.
    pub target: String,
}

/// A counter of the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Where a verdict was given.
    pub layer: Layer,
    /// Why.
    pub reason: Reason,
    /// How often.
    pub count: u64,
}

impl View {
    /// Opens what is pinned under `bpffs`.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if nothing is; others when rights are missing.
    pub fn open(bpffs: &Path) -> Result<Self, Error> {
        let pins = Pins::at(bpffs);
        if !pins.exist()? {
            return Err(Error::NotRunning { path: bpffs.to_owned() });
        }
        Ok(Self { tables: Tables::open(&pins.maps())?, pins })
    }

    /// Reads what the maps hold.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        self.tables.snapshot()
    }

    /// How often each reason was given where.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counters(&self) -> Result<Vec<Count>, Error> {
        self.tables.counters()
    }

    /// The maps' sizes.
    pub const fn capacity(&self) -> Capacity {
        self.tables.capacity()
    }

    /// The kernel memory of each map, in bytes, the largest first.
    ///
    /// # Errors
    /// When a map's information cannot be read.
    pub fn memory(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.tables.memory()
    }

    /// Where programs are attached.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        Ok(attach::pinned(&self.pins)?.into_iter().filter_map(attachment).collect())
    }
}

/// The program that a pin stands for, if one does.
fn attachment(pin: Pin) -> Option<Attachment> {
    let interface =
        |index: u32| attach::interface_name(index).unwrap_or_else(|| format!("interface {index} (gone)"));
    let (hook, target) = match pin {
        Pin::Tcx { index, direction } => {
            (format!("tcx {}", attach::direction_name(direction)), interface(index))
        }
        Pin::Filter { index, direction } => {
            (format!("clsact {}", attach::direction_name(direction)), interface(index))
        }
        Pin::Xdp { index, driven } => (format!("xdp {}", driven.label()), interface(index)),
        Pin::Cgroup { hook, cgroup } => (hook, format!("cgroup {cgroup}")),
        Pin::Qdisc { .. } | Pin::Conntrack { .. } => return None,
    };
    Some(Attachment { hook, target })
}
