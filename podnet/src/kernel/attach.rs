//! Attaching programs where packets and sockets pass, in a way that outlives the agent.
//!
//! A tcx or cgroup link is pinned, and its program replaced in place by the next agent. A clsact filter
//! (kernels before 6.6) needs no pin to live; its program is pinned nevertheless, under the name of the
//! interface and direction, so that the next agent and `podnet cleanup` know whose it is; likewise the qdisc.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use aya::Ebpf;
use aya::programs::links::{FdLink, Link, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
};

use super::error::Error;
use super::pins::{Pins, remove_file};
use super::{AttachMode, Driven, conntrack, qdisc, sys};
use crate::error::chain;
use nix::libc;

/// What an interface faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// A pod of this node.
    Pod,
    /// Other machines.
    Net,
}

impl Side {
    /// The programs at such an interface. The way back is there before anything is sent on it.
    const fn programs(self) -> [(&'static str, TcAttachType); 2] {
        match self {
            Self::Pod => [("to_pod", TcAttachType::Egress), ("from_pod", TcAttachType::Ingress)],
            Self::Net => [("to_net", TcAttachType::Egress), ("from_net", TcAttachType::Ingress)],
        }
    }
}

/// All programs at interfaces.
pub(super) const INTERFACE_PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "from_net", "to_net"];

/// The programs at the cgroup; each one's name is that of its hook.
pub(super) const SOCKET_PROGRAMS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

/// The program that is pinned where a pin only says something: one that holds no map in the kernel.
pub(super) const MARK: &str = "can_masquerade";

/// Where podnet's clsact filters stand among others at the same interface.
const FILTER_PRIORITY: u16 = 10;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// The name of a pin in the directory of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// A tcx link.
    Tcx { index: u32, direction: TcAttachType },
    /// The program of a clsact filter.
    Filter { index: u32, direction: TcAttachType },
    /// A program too, which says that podnet has made the clsact qdisc.
    Qdisc { index: u32 },
    /// An XDP link.
    Xdp { index: u32, driven: Driven },
    /// A program too, which says how connection tracking was set before podnet changed that.
    Conntrack { former: u8 },
    /// A cgroup link.
    Cgroup { hook: String, cgroup: u64 },
}

impl Pin {
    /// The interface that it belongs to.
    pub(super) const fn interface(&self) -> Option<u32> {
        match self {
            Self::Tcx { index, .. }
            | Self::Filter { index, .. }
            | Self::Qdisc { index }
            | Self::Xdp { index, .. } => Some(*index),
            Self::Conntrack { .. } | Self::Cgroup { .. } => None,
        }
    }
}

pub(super) const fn direction_name(direction: TcAttachType) -> &'static str {
    match direction {
        TcAttachType::Ingress => "ingress",
        _ => "egress",
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcx { index, direction } => write!(f, "tcx-{index}-{}", direction_name(*direction)),
            Self::Filter { index, direction } => write!(f, "clsact-{index}-{}", direction_name(*direction)),
            Self::Qdisc { index } => write!(f, "qdisc-{index}-clsact"),
            Self::Xdp { index, driven } => write!(f, "xdp-{index}-{}", driven.label()),
            Self::Conntrack { former } => write!(f, "conntrack-{former}-liberal"),
            Self::Cgroup { hook, cgroup } => write!(f, "cgroup-{hook}-{cgroup}"),
        }
    }
}

impl FromStr for Pin {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut parts = name.split('-');
        let (Some(kind), Some(first), Some(second), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let direction = || match second {
            "ingress" => Ok(TcAttachType::Ingress),
            "egress" => Ok(TcAttachType::Egress),
            _ => Err(()),
        };
        let index = || first.parse().map_err(drop);
        match kind {
            "tcx" => Ok(Self::Tcx { index: index()?, direction: direction()? }),
            "clsact" => Ok(Self::Filter { index: index()?, direction: direction()? }),
            "qdisc" if second == "clsact" => Ok(Self::Qdisc { index: index()? }),
            "xdp" => {
                let driven = Driven::ALL.into_iter().find(|driven| driven.label() == second).ok_or(())?;
                Ok(Self::Xdp { index: index()?, driven })
            }
            "conntrack" if second == "liberal" => {
                Ok(Self::Conntrack { former: first.parse().map_err(drop)? })
            }
            "cgroup" => Ok(Self::Cgroup { hook: first.to_owned(), cgroup: second.parse().map_err(drop)? }),
            _ => Err(()),
        }
    }
}

/// All pins of links that podnet has made.
pub(super) fn pinned(pins: &Pins) -> Result<Vec<Pin>, Error> {
    Ok(pins.link_names()?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Attaches both programs to an interface, or replaces those that an earlier agent has left there. After an
/// error neither is attached: one without the other would translate one way only.
pub(super) fn attach_interface(
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: AttachMode,
    side: Side,
    index: u32,
    name: &str,
) -> Result<(), Error> {
    let attached = attach_both(ebpf, pins, mode, side, index, name);
    if attached.is_err() {
        // The first error is the one to tell.
        let _ = detach_interface(pins, index);
    }
    attached
}

fn attach_both(
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: AttachMode,
    side: Side,
    index: u32,
    name: &str,
) -> Result<(), Error> {
    for (program, direction) in side.programs() {
        let classifier: &mut SchedClassifier = program_mut(ebpf, program)?;
        let failed = |reason: String| Error::Attach { program, target: name.to_owned(), reason };
        let tcx = match mode {
            AttachMode::Clsact => None,
            AttachMode::Tcx | AttachMode::Auto => Some(attach_tcx(classifier, pins, index, name, direction)),
        };
        match tcx {
            Some(Ok(())) => forget(pins, &Pin::Filter { index, direction })?,
            Some(Err(error)) if mode == AttachMode::Tcx || !unsupported(&error) => {
                return Err(failed(chain(&error)));
            }
            Some(Err(_)) | None => {
                make_qdisc(ebpf, pins, index, name)?;
                attach_filter(program_mut(ebpf, program)?, pins, index, name, direction)
                    .map_err(|error| failed(chain(&error)))?;
                forget(pins, &Pin::Tcx { index, direction })?;
            }
        }
    }
    // Packets are served all the same.
    if !has_filter(pins, index)
        && let Err(error) = forget(pins, &Pin::Qdisc { index })
    {
        tracing::warn!("{}", chain(&error));
    }
    Ok(())
}

/// Detaches both programs from an interface, which may be gone already.
pub(super) fn detach_interface(pins: &Pins, index: u32) -> Result<(), Error> {
    for direction in DIRECTIONS {
        forget(pins, &Pin::Tcx { index, direction })?;
        forget(pins, &Pin::Filter { index, direction })?;
    }
    forget(pins, &Pin::Qdisc { index })
}

const DIRECTIONS: [TcAttachType; 2] = [TcAttachType::Egress, TcAttachType::Ingress];

/// Whether a program is attached to an interface by clsact.
pub(super) fn has_filter(pins: &Pins, index: u32) -> bool {
    DIRECTIONS
        .iter()
        .any(|direction| pins.links().join(Pin::Filter { index, direction: *direction }.to_string()).exists())
}

/// Whether an error says that this kernel has no tcx (Linux 6.6).
fn unsupported(error: &ProgramError) -> bool {
    os_error(error) == Some(libc::EINVAL)
}

/// The error number of the system call that is at the bottom of an error.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(number) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = cause.source();
    }
    None
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    index: u32,
    name: &str,
    direction: TcAttachType,
) -> Result<(), ProgramError> {
    let path = pins.links().join(Pin::Tcx { index, direction }.to_string());
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(wrapped)?;
        if let Ok(id) = program.attach_to_link(link) {
            drop(program.take_link(id)?);
            return Ok(());
        }
        // The interface it was attached to is gone, and another one has got its index.
        fs::remove_file(&path).map_err(ProgramError::IOError)?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(name, direction, options)?;
    let link = FdLink::try_from(program.take_link(id)?).map_err(wrapped)?;
    link.pin(&path).map_err(wrapped)?;
    Ok(())
}

/// Makes the qdisc that filters stand in, unless there is one, and a mark if podnet has made it. The mark comes
/// first: an agent may be killed at any time.
fn make_qdisc(ebpf: &mut Ebpf, pins: &Pins, index: u32, name: &str) -> Result<(), Error> {
    let made = note(ebpf, pins, &Pin::Qdisc { index })?;
    // An error says that the qdisc is there already, or comes again with the filter.
    if qdisc_add_clsact(name).is_err() && made == Noted::Now {
        unnote(pins, &Pin::Qdisc { index })?;
    }
    Ok(())
}

fn attach_filter(
    program: &mut SchedClassifier,
    pins: &Pins,
    index: u32,
    name: &str,
    direction: TcAttachType,
) -> Result<(), ProgramError> {
    let path = pins.links().join(Pin::Filter { index, direction }.to_string());
    if path.exists() {
        fs::remove_file(&path).map_err(ProgramError::IOError)?;
    }
    let options = NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
    let id = match program.attach_with_options(name, direction, TcAttachOptions::Netlink(options)) {
        // An earlier agent's, with or without a pin: it may have been killed before it made one.
        Err(error) if os_error(&error) == Some(libc::EEXIST) => {
            let old = SchedClassifierLink::attached(name, direction, FILTER_PRIORITY, FILTER_HANDLE, None);
            program.attach_to_link(old.map_err(ProgramError::IOError)?)?
        }
        attached => attached?,
    };
    let link = program.take_link(id)?;
    match program.pin(&path) {
        Ok(()) => {
            // Dropping the link would detach the filter.
            std::mem::forget(link);
            Ok(())
        }
        Err(error) => {
            link.detach()?;
            Err(wrapped(error))
        }
    }
}

/// An error of aya's that is no [`ProgramError`], as one.
pub(super) fn wrapped(error: impl std::error::Error + Send + Sync + 'static) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

/// Removes a pin and with it what it holds in place, if there is one.
pub(super) fn forget(pins: &Pins, pin: &Pin) -> Result<(), Error> {
    let path = pins.links().join(pin.to_string());
    if path.exists() {
        undo(&path)?;
        remove_file(&path)?;
    }
    Ok(())
}

/// The name of the interface with this index, if there is one.
pub(super) fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    // For an index that is nobody's, nix 0.31 gives an empty name instead of an error.
    (!name.is_empty()).then(|| name.to_string_lossy().into_owned())
}

/// Undoes what the pin at `path` stands for: it takes a link's program away, and removes a clsact filter, the qdisc if
/// nobody else has filters in it, or a setting. Other pins, and interfaces that are no more, need nothing.
pub(super) fn undo(path: &Path) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.parse() {
        Ok(Pin::Tcx { .. } | Pin::Xdp { .. } | Pin::Cgroup { .. }) => {
            // One that cannot be detached goes with its pin.
            let _ = sys::open_pin(path).and_then(|link| sys::detach_link(link.as_fd()));
            Ok(())
        }
        Ok(Pin::Filter { index, direction }) => detach_filter(index, direction),
        Ok(Pin::Qdisc { index }) => qdisc::remove_if_unused(index).map_err(|error| Error::Attach {
            program: "filter",
            target: interface_name(index).unwrap_or_else(|| index.to_string()),
            reason: format!("the clsact qdisc cannot be removed: {error}"),
        }),
        Ok(Pin::Conntrack { former }) => conntrack::restore(former),
        _ => Ok(()),
    }
}

/// Since when a pin is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    Before,
    Now,
}

/// Makes a pin that only says something, unless it is there.
pub(super) fn note(ebpf: &mut Ebpf, pins: &Pins, pin: &Pin) -> Result<Noted, Error> {
    let path = pins.links().join(pin.to_string());
    if path.exists() {
        return Ok(Noted::Before);
    }
    let program: &mut SchedClassifier = program_mut(ebpf, MARK)?;
    program.pin(path)?;
    Ok(Noted::Now)
}

/// Takes back what such a pin says.
pub(super) fn unnote(pins: &Pins, pin: &Pin) -> Result<(), Error> {
    remove_file(&pins.links().join(pin.to_string()))
}

/// Whether what the pin called `name` of another layout version stands for is `heir`'s now: filters are known
/// by their place, and a qdisc and a setting are one for all.
pub(super) fn inherits(heir: &Pins, name: &str) -> bool {
    match name.parse() {
        Ok(Pin::Filter { .. }) => heir.links().join(name).exists(),
        Ok(Pin::Qdisc { index }) => has_filter(heir, index),
        Ok(Pin::Conntrack { .. }) => true,
        _ => false,
    }
}

fn detach_filter(index: u32, direction: TcAttachType) -> Result<(), Error> {
    let Some(interface) = interface_name(index) else { return Ok(()) };
    let link = SchedClassifierLink::attached(&interface, direction, FILTER_PRIORITY, FILTER_HANDLE, None);
    let detached = link.map_err(ProgramError::IOError).and_then(Link::detach);
    match detached {
        // No such filter, no qdisc that it could be in, or no interface.
        Err(error) if !matches!(os_error(&error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Err(Error::Attach {
                program: "filter",
                target: interface,
                reason: format!("cannot be detached: {}", chain(&error)),
            })
        }
        _ => Ok(()),
    }
}

/// Attaches all socket programs to `cgroup`, or replaces those that an earlier agent has left there, and
/// removes those at other cgroups.
pub(super) fn attach_sockets(ebpf: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<(), Error> {
    let file = fs::File::open(cgroup).map_err(|source| Error::File {
        action: "opening",
        path: cgroup.to_owned(),
        source,
    })?;
    // A cgroup's id is its directory's inode number.
    let id = file
        .metadata()
        .map_err(|source| Error::File { action: "looking at", path: cgroup.to_owned(), source })?
        .ino();
    for name in SOCKET_PROGRAMS {
        let program: &mut CgroupSockAddr = program_mut(ebpf, name)?;
        let failed =
            |reason: String| Error::Attach { program: name, target: cgroup.display().to_string(), reason };
        let path = pins.links().join(Pin::Cgroup { hook: name.to_owned(), cgroup: id }.to_string());
        if let Ok(link) = sys::open_pin(&path) {
            let fd = program.fd().map_err(|error| failed(chain(&error)))?;
            match sys::replace_program(link.as_fd(), fd) {
                Ok(()) => continue,
                // Somebody has detached it.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => remove_file(&path)?,
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        let id = program.attach(&file, CgroupAttachMode::Single).map_err(|error| failed(chain(&error)))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|error| failed(chain(&error)))?
            .try_into()
            .map_err(|error| failed(chain(&error)))?;
        link.pin(&path)?;
    }
    detach_sockets(pins, Some(id))
}

/// Removes the socket programs from all cgroups but `keep`.
pub(super) fn detach_sockets(pins: &Pins, keep: Option<u64>) -> Result<(), Error> {
    for pin in pinned(pins)? {
        if let Pin::Cgroup { cgroup, .. } = &pin
            && Some(*cgroup) != keep
        {
            forget(pins, &pin)?;
        }
    }
    Ok(())
}

/// The program called `name`, as its type.
pub(super) fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program =
        ebpf.program_mut(name).ok_or_else(|| Error::Load { program: name, source: not_in_the_object() })?;
    program.try_into().map_err(|source| Error::Load { program: name, source })
}

/// What is said of a program that the object should have.
pub(super) fn not_in_the_object() -> ProgramError {
    ProgramError::IOError(io::Error::other("it is not in the object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_tells_what_it_is() {
        for pin in [
            Pin::Tcx { index: 7, direction: TcAttachType::Ingress },
            Pin::Filter { index: 12, direction: TcAttachType::Egress },
            Pin::Qdisc { index: 12 },
            Pin::Xdp { index: 3, driven: Driven::Native },
            Pin::Xdp { index: 3, driven: Driven::Generic },
            Pin::Conntrack { former: 0 },
            Pin::Cgroup { hook: "connect4".to_owned(), cgroup: u64::MAX },
        ] {
            assert_eq!(pin.to_string().parse(), Ok(pin));
        }
        for foreign in
            ["", "tcx", "tcx-x-ingress", "tcx-1-sideways", "tcx-1-ingress-2", "xdp-1-ingress", "qdisc-1-htb"]
        {
            assert_eq!(foreign.parse::<Pin>(), Err(()));
        }
    }
}
