//! The programs that those at interfaces leave packets to, and the map in which those find them.
//!
//! The kernel empties a program array when the last pin or descriptor of it goes, though programs at hooks
//! still ask it. Each agent fills an array of its own, which is pinned before the first program that asks it is
//! attached; those of earlier agents stay pinned until no program at a hook can ask them any more. A kill at
//! any time therefore leaves every program at a hook with an array that is full.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::SchedClassifier;
use podnet_common::abi::{self, Program};
use podnet_common::route::Hook;

use super::attach::program_mut;
use super::error::Error;
use super::pins::{Pins, names, remove_file};

/// Where each program stands in the array.
pub(super) const NEXT_PROGRAMS: [(Program, &str); 19] = [
    (Program::Rest(Hook::FromPod), "from_pod_rest"),
    (Program::Rest(Hook::ToPod), "to_pod_rest"),
    (Program::Rest(Hook::FromNet), "from_net_rest"),
    (Program::Rest(Hook::ToNet), "to_net_rest"),
    (Program::Sctp(Hook::FromPod), "from_pod_sctp"),
    (Program::Sctp(Hook::ToPod), "to_pod_sctp"),
    (Program::Sctp(Hook::FromNet), "from_net_sctp"),
    (Program::Sctp(Hook::ToNet), "to_net_sctp"),
    (Program::Open(Hook::FromPod), "from_pod_open"),
    (Program::Open(Hook::FromNet), "from_net_open"),
    (Program::Open(Hook::ToNet), "to_net_open"),
    (Program::Complain(Hook::FromPod), "from_pod_complain"),
    (Program::Complain(Hook::FromNet), "from_net_complain"),
    (Program::Complain(Hook::ToNet), "to_net_complain"),
    (Program::Renew(Hook::FromPod), "from_pod_renew"),
    (Program::Renew(Hook::FromNet), "from_net_renew"),
    (Program::Renew(Hook::ToNet), "to_net_renew"),
    (Program::Answer, "from_pod_answer"),
    (Program::Unanswered, "from_pod_unanswered"),
];

/// An agent's own array.
pub(super) struct NextPrograms {
    array: MapData,
    pinned: bool,
}

impl NextPrograms {
    /// Fills the array that was loaded with `ebpf` and is pinned in `maps`.
    pub(super) fn install(ebpf: &mut Ebpf, maps: &Path) -> Result<Self, Error> {
        let open = || MapData::from_pin(maps.join(abi::PROGRAMS));
        let mut array = ProgramArray::try_from(Map::from_map_data(open()?)?)?;
        for (place, name) in NEXT_PROGRAMS {
            let program: &mut SchedClassifier = program_mut(ebpf, name)?;
            let fd = program.fd().map_err(|source| Error::Load { program: name, source })?;
            array.set(place.index(), fd, 0)?;
        }
        Ok(Self { array: open()?, pinned: false })
    }

    /// Pins the array in the place of the earlier agent's, which gets a name of its own. To be called before a
    /// program is attached that asks the array: an agent that comes no further leaves none to keep.
    pub(super) fn keep(&mut self, pins: &Pins) -> Result<(), Error> {
        if self.pinned {
            return Ok(());
        }
        let maps = pins.maps();
        let current = maps.join(abi::PROGRAMS);
        if current.exists() {
            let last = names(&maps)?.iter().filter_map(|name| generation(name)).max();
            let earlier = maps.join(format!("{EARLIER}{}", last.unwrap_or(0) + 1));
            fs::rename(&current, earlier).map_err(|source| Error::File {
                action: "renaming",
                path: current.clone(),
                source,
            })?;
        }
        self.array.pin(&current)?;
        self.pinned = true;
        Ok(())
    }

    /// Removes the arrays of earlier agents, once none of their programs is at a hook: not while this agent's own has
    /// not come to the place of the last one's.
    pub(super) fn forget_earlier(&self, pins: &Pins) -> Result<(), Error> {
        if !self.pinned {
            return Ok(());
        }
        let maps = pins.maps();
        let all = names(&maps)?;
        all.iter()
            .filter(|name| generation(name).is_some())
            .try_for_each(|name| remove_file(&maps.join(name)))
    }
}

/// What the names of earlier agents' arrays begin with; a number follows.
const EARLIER: &str = "PROGRAMS-";

/// The number in the name of an earlier agent's array.
fn generation(name: &str) -> Option<u32> {
    name.strip_prefix(EARLIER)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_earlier_arrays_have_a_number() {
        assert_eq!(generation("PROGRAMS-12"), Some(12));
        for other in [abi::PROGRAMS, "PROGRAMS-", "PROGRAMS-x", "FLOWS-1"] {
            assert_eq!(generation(other), None, "{other}");
        }
        assert_eq!(EARLIER, format!("{}-", abi::PROGRAMS));
    }
}
