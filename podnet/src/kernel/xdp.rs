//! The program at network cards, which meets packets before there is an skb of them.
//!
//! It is a gain and never a need: where it is not attached, packets meet the programs of [`attach`](super::attach)
//! only.

use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode, loaded_programs};
use nix::libc;
use podnet_common::abi;

use super::attach::{self, Pin, os_error, program_mut, wrapped};
use super::error::Error;
use super::load::load_programs;
use super::pins::{Pins, remove_file};
use super::tables::Table;
use super::{Driven, XdpPolicy, XdpTarget};
use crate::error::chain;

/// The program that is driven so, and the one that it leaves packets to.
const fn programs(driven: Driven) -> [&'static str; 2] {
    match driven {
        Driven::Native => ["from_net_xdp", "from_net_xdp_open"],
        Driven::Generic => ["from_net_xdp_generic", "from_net_xdp_generic_open"],
    }
}

/// Has the kernel verify the programs that `policy` is about.
pub(super) fn load(ebpf: &mut Ebpf, policy: XdpPolicy) -> Result<(), Error> {
    load_programs(ebpf, &programs(policy.driven()), Xdp::load)
}

/// Fills the program array that was loaded with `ebpf`, and is pinned in `made`, and pins it in the place of an earlier
/// agent's, which goes in any case. The kernel empties that: until they are replaced, its programs leave to the stack
/// what they left to others.
pub(super) fn install_next(
    ebpf: &mut Ebpf,
    policy: Option<XdpPolicy>,
    made: &Path,
    pins: &Pins,
) -> Result<(), Error> {
    let place = pins.maps().join(abi::XDP_PROGRAMS);
    if place.exists() {
        remove_file(&place)?;
    }
    let Some(policy) = policy else { return Ok(()) };
    let open = || MapData::from_pin(made.join(abi::XDP_PROGRAMS));
    let mut array = ProgramArray::try_from(Map::from_map_data(open()?)?)?;
    let [_, name] = programs(policy.driven());
    let program: &mut Xdp = program_mut(ebpf, name)?;
    let fd = program.fd().map_err(|source| Error::Load { program: name, source })?;
    array.set(0, fd, 0)?;
    Ok(open()?.pin(place)?)
}

/// The interfaces whose drivers take frames that programs at other interfaces send.
pub(super) struct Interfaces(Table<u32, u32>);

impl Interfaces {
    /// Opens the table pinned in `maps`, and removes what an agent has left in it that was not there to see the
    /// interfaces go.
    pub(super) fn open(maps: &Path, pins: &Pins) -> Result<Self, Error> {
        let table = Table::open(maps, abi::XDP_INTERFACES)?;
        let pinned = attach::pinned(pins)?;
        let mut gone: Vec<u32> = table.entries()?.into_iter().map(|(index, _)| index).collect();
        gone.retain(|index| !pinned.contains(&Pin::Xdp { index: *index, driven: Driven::Native }));
        table.remove(&gone)?;
        Ok(Self(table))
    }

    /// Attaches the program to an interface as `policy` has it, or replaces an earlier agent's there. How it is
    /// driven then; without a need for it, the error is no more than why it is not attached.
    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        policy: XdpPolicy,
        target: &XdpTarget<'_>,
    ) -> Result<Driven, Error> {
        let index = target.index;
        let driven = policy.driven();
        let failed = |reason| {
            let [program, _] = programs(driven);
            Error::Attach { program, target: target.name.to_owned(), reason }
        };
        if policy == XdpPolicy::Auto && target.veth {
            self.detach(pins, index)?;
            return Err(failed("the other end of a veth needs a program too".to_owned()));
        }
        // That a driver runs programs does not say that it takes frames of others': who names the mode vouches for it.
        if policy != XdpPolicy::Native {
            self.0.remove(&[index])?;
        }
        attach::forget(pins, &Pin::Xdp { index, driven: driven.other() })?;
        pins.forget_in_other_layouts(|pin| matches!(pin, Pin::Xdp { index: at, .. } if *at == index))?;
        if let Err(error) = attach_as(ebpf, pins, driven, index) {
            self.detach(pins, index)?;
            return Err(failed(reason(&error, target.there)));
        }
        if policy == XdpPolicy::Native
            && let Err(error) = self.0.insert(&[(index, 1)])
        {
            tracing::warn!(%error, interface = target.name, "other network cards send nothing to this one");
        }
        Ok(driven)
    }

    /// Detaches the program from an interface, which may be gone already.
    pub(super) fn detach(&self, pins: &Pins, index: u32) -> Result<(), Error> {
        self.0.remove(&[index])?;
        for driven in Driven::ALL {
            attach::forget(pins, &Pin::Xdp { index, driven })?;
        }
        Ok(())
    }
}

fn attach_as(ebpf: &mut Ebpf, pins: &Pins, driven: Driven, index: u32) -> Result<(), ProgramError> {
    let [name, _] = programs(driven);
    let program: &mut Xdp =
        program_mut(ebpf, name).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    let path = pins.links().join(Pin::Xdp { index, driven }.to_string());
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let link = XdpLink::try_from(FdLink::from(pinned)).map_err(wrapped)?;
        if let Ok(id) = program.attach_to_link(link) {
            drop(program.take_link(id)?);
            return Ok(());
        }
        // The interface it was attached to is gone, and another one has got its index.
        attach::forget(pins, &Pin::Xdp { index, driven })
            .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    }
    let mode = match driven {
        Driven::Native => XdpMode::Driver,
        Driven::Generic => XdpMode::Skb,
    };
    let id = program.attach_to_if_index(index, mode)?;
    let link = FdLink::try_from(program.take_link(id)?).map_err(wrapped)?;
    link.pin(&path).map_err(wrapped)?;
    Ok(())
}

/// Why the program could not be attached where the program with the id `there` is.
fn reason(error: &ProgramError, there: Option<u32>) -> String {
    match os_error(error) {
        Some(libc::EOPNOTSUPP) => "its driver has no XDP, or not as it is set up".to_owned(),
        Some(libc::EBUSY | libc::EEXIST) => match there.and_then(program_name) {
            Some(name) => format!("another XDP program, {name}, is there"),
            None => "another XDP program is there".to_owned(),
        },
        _ => chain(error),
    }
}

/// The name of the program with this id.
fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}
