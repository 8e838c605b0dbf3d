//! Loading the programs, and making or adopting the maps they work on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use podnet_common::abi;
use podnet_common::conntrack::Timeout;
use podnet_common::dns::name::Zone;
use podnet_common::network::ServiceNetworks;
use zerocopy::IntoBytes as _;

use super::attach::{self, INTERFACE_PROGRAMS, Noted, Pin, SOCKET_PROGRAMS, Side, not_in_the_object};
use super::error::Error;
use super::filter::Filter;
use super::names::Names;
use super::next::{NEXT_PROGRAMS, NextPrograms};
use super::pins::Pins;
use super::probe::can_masquerade;
use super::staging::Staging;
use super::tables::{Tables, shapes};
use super::{AttachMode, Driven, Settings, SocketLb, XdpPolicy, XdpTarget, conntrack, sys, xdp};
use crate::changes::{Changes, Snapshot};
use crate::dns::table;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podnet-ebpf.o"));

/// The eBPF object, if this binary was built with one.
pub(super) fn object() -> Result<&'static [u8], Error> {
    if OBJECT.is_empty() { Err(Error::NoObject) } else { Ok(OBJECT) }
}

/// The kernel's side of podnet: loaded programs and open maps.
pub struct Dataplane {
    ebpf: Ebpf,
    tables: Tables,
    filter: Filter,
    names: Names,
    next: NextPrograms,
    /// Tables in whose place others are, until the programs that work on them are replaced.
    replaced: Option<Tables>,
    pins: Pins,
    attach: AttachMode,
    xdp: Option<XdpPolicy>,
    xdp_interfaces: xdp::Interfaces,
    cgroup: Option<PathBuf>,
}

impl Dataplane {
    /// Loads the programs over the maps that are pinned, or over new ones. Attaches nothing: traffic goes
    /// on as it does until [`attach_interface`](Self::attach_interface) and
    /// [`attach_sockets`](Self::attach_sockets).
    ///
    /// # Errors
    /// When the directory is not on a bpffs, there is no cgroup, rights are missing, the kernel refuses a
    /// program, or a map cannot get the size asked for.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let cgroup = match settings.socket_lb {
            SocketLb::Off => None,
            SocketLb::All | SocketLb::Host => Some(find_cgroup(settings.cgroup.as_deref())?),
        };
        let pins = Pins::at(&settings.bpffs);
        pins.create()?;
        let staging = Staging::prepare(&pins, &settings.capacity)?;
        let mut ebpf = load(settings, staging.directory())?;
        let tables = Tables::open(staging.directory())?;
        staging.copy_to(&tables)?;
        let names = Names::open(staging.directory())?;
        let mut filter = Filter::open(staging.directory())?;
        if staging.makes(abi::FILTER) {
            filter.fill(&tables)?;
        }
        if staging.makes(abi::NETWORKS) {
            // Zeroes, which a new map holds, are the network of all addresses.
            tables.set_networks(ServiceNetworks::default())?;
        }
        load_interface_programs(&mut ebpf)?;
        let xdp = match settings.xdp.map(|policy| (policy, xdp::load(&mut ebpf, policy))) {
            Some((XdpPolicy::Auto, Err(error))) => {
                tracing::warn!(%error, "packets are not met at network cards");
                None
            }
            Some((policy, loaded)) => {
                loaded?;
                Some(policy)
            }
            None => None,
        };
        let xdp_interfaces = xdp::Interfaces::open(staging.directory(), &pins)?;
        let next = NextPrograms::install(&mut ebpf, staging.directory())?;
        if cgroup.is_some() {
            load_socket_programs(&mut ebpf)?;
        }
        xdp::install_next(&mut ebpf, xdp, staging.directory(), &pins)?;
        staging.finish()?;
        let replaced = staging.into_replaced();
        Ok(Self {
            ebpf,
            tables,
            filter,
            names,
            next,
            replaced,
            pins,
            attach: settings.attach,
            xdp,
            xdp_interfaces,
            cgroup,
        })
    }

    /// Completes the take-over from an earlier agent, once all programs are attached: flows that its
    /// programs have opened in maps of another size are copied, and what is left of those programs and of
    /// other layout versions is removed.
    ///
    /// # Errors
    /// When a map cannot be read or written, or a pin not be removed.
    pub fn take_over(&mut self) -> Result<(), Error> {
        if let Some(old) = self.replaced.take() {
            self.tables.catch_up_with(&old)?;
        }
        self.next.forget_earlier(&self.pins)?;
        self.pins.remove_other_layouts()
    }

    /// Whether the kernel tells programs the addresses of this node that masquerading needs (Linux 6.7).
    ///
    /// # Errors
    /// When that cannot be tried.
    pub fn can_masquerade(&mut self) -> Result<bool, Error> {
        can_masquerade(&mut self.ebpf)
    }

    /// Reads what the maps hold.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        self.tables.snapshot()
    }

    /// Carries out `changes`, in the order of its fields.
    ///
    /// # Errors
    /// When a map is full or cannot be written; what was written before stays.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), Error> {
        self.filter.admit(changes)?;
        self.tables.apply(changes)
    }

    /// Reads what the tables of names hold.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn names(&self) -> Result<table::Snapshot, Error> {
        self.names.snapshot()
    }

    /// Carries out changes of names. What they say of names that are not there holds for [`FRESH`](super::FRESH).
    ///
    /// # Errors
    /// When a map cannot be written; what was written before stays.
    pub fn apply_names(&self, changes: &table::Changes) -> Result<(), Error> {
        self.names.apply(changes)
    }

    /// Takes this node's addresses for what answers may be sent to.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn admit_node(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
        self.filter.admit_node(addresses.into_iter())
    }

    /// Attaches the programs to the interface `name`, or replaces those of an earlier agent.
    ///
    /// # Errors
    /// When the kernel refuses; [`AttachMode::Auto`] has then tried tcx and clsact.
    pub fn attach_interface(&mut self, side: Side, index: u32, name: &str) -> Result<(), Error> {
        self.next.keep(&self.pins)?;
        let attached = attach::attach_interface(&mut self.ebpf, &self.pins, self.attach, side, index, name);
        if attached.is_err() {
            // Answers are translated by those programs. The first error is the one to tell.
            let _ = self.detach_xdp(index);
        }
        attached
    }

    /// Attaches the program at network cards, or replaces that of an earlier agent, which stays nowhere else. How it
    /// is driven; `None` if it is not to be there.
    ///
    /// # Errors
    /// Why it is not there. Packets are met by the programs of [`attach_interface`](Self::attach_interface) then.
    pub fn attach_xdp(&mut self, target: &XdpTarget<'_>) -> Result<Option<Driven>, Error> {
        match self.xdp {
            Some(policy) => self.xdp_interfaces.attach(&mut self.ebpf, &self.pins, policy, target).map(Some),
            None => self.detach_xdp(target.index).map(|()| None),
        }
    }

    /// Detaches that program from an interface; one that is gone is fine.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_xdp(&mut self, index: u32) -> Result<(), Error> {
        self.xdp_interfaces.detach(&self.pins, index)
    }

    /// Detaches the programs from an interface; one that is gone is fine.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_interface(&mut self, index: u32) -> Result<(), Error> {
        let detached = self.detach_xdp(index);
        attach::detach_interface(&self.pins, index).and(detached)
    }

    /// The indexes of the interfaces that this or an earlier agent has attached programs to.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn attached_interfaces(&self) -> Result<Vec<u32>, Error> {
        let mut all: Vec<u32> = attach::pinned(&self.pins)?.iter().filter_map(Pin::interface).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Attaches the socket programs to the cgroup, or replaces those of an earlier agent; removes them
    /// where sockets are to be left alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_sockets(&mut self) -> Result<(), Error> {
        match &self.cgroup {
            Some(cgroup) => attach::attach_sockets(&mut self.ebpf, &self.pins, cgroup),
            None => attach::detach_sockets(&self.pins, None),
        }
    }

    /// Has the kernel's connection tracking bear with flows of which it sees the beginning and the end only, as
    /// they are with short cuts, until [`cleanup`](super::cleanup).
    ///
    /// # Errors
    /// When what was set before cannot be noted, or the setting not be changed.
    pub fn tolerate_short_cuts(&mut self) -> Result<(), Error> {
        let Some(former) = conntrack::strict()? else { return Ok(()) };
        let pin = Pin::Conntrack { former };
        let noted = attach::note(&mut self.ebpf, &self.pins, &pin)?;
        let done = conntrack::tolerate();
        if done.is_err() && noted == Noted::Now {
            // Whoever sets it from now on is somebody else.
            attach::unnote(&self.pins, &pin)?;
        }
        done
    }

    /// The kernel memory of each map, in bytes, the largest first.
    ///
    /// # Errors
    /// When a map's information cannot be read.
    pub fn memory(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.tables.memory()
    }
}

/// Has the kernel verify the programs at interfaces.
pub(super) fn load_interface_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    let next = NEXT_PROGRAMS.iter().map(|(_, name)| *name);
    let names: Vec<_> = INTERFACE_PROGRAMS.into_iter().chain(next).chain([attach::MARK]).collect();
    load_programs(ebpf, &names, SchedClassifier::load)
}

/// Has the kernel verify the programs `names` by `load`, on all cores: each is verified for itself, and that is
/// nearly all of an agent's start.
pub(super) fn load_programs<P>(
    ebpf: &mut Ebpf,
    names: &[&'static str],
    load: impl Fn(&mut P) -> Result<(), ProgramError> + Sync,
) -> Result<(), Error>
where
    P: Send,
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let failed = |name| move |source| Error::Load { program: name, source };
    let mut programs: BTreeMap<String, &mut Program> =
        ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    let mut found = Vec::with_capacity(names.len());
    for &name in names {
        let program = programs.remove(name).ok_or_else(|| failed(name)(not_in_the_object()))?;
        found.push((name, <&mut P>::try_from(program).map_err(failed(name))?));
    }
    let queue = Mutex::new(found);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((name, program)) = next() {
            load(program).map_err(failed(name))?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Has the kernel verify the programs at sockets.
pub(super) fn load_socket_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    load_programs(ebpf, &SOCKET_PROGRAMS, CgroupSockAddr::load)
}

/// Loads the object with the settings' map sizes and variables.
fn load(settings: &Settings, maps: &Path) -> Result<Ebpf, Error> {
    let node = sys::netns_cookie().map_err(|source| Error::Table {
        action: "asking for this network namespace's cookie, for",
        table: abi::NODE_NETNS,
        source,
    })?;
    let short_cuts = u64::from(settings.short_cuts);
    let answers = u64::from(settings.zone.is_some());
    let zone = settings.zone.unwrap_or(Zone::NONE);
    let only = match settings.socket_lb {
        SocketLb::Host => node,
        SocketLb::All | SocketLb::Off => 0,
    };
    let mut loader = EbpfLoader::new();
    // The kernel's own BTF is only needed for relocations, which these programs have none of.
    loader
        .btf(None)
        .default_map_pin_directory(maps)
        .override_global(abi::SHORT_CUTS, &short_cuts, true)
        .override_global(abi::ANSWERS_NAMES, &answers, true)
        .override_global(abi::ZONE, zone.as_bytes(), true)
        .override_global(abi::NODE_NETNS, &node, true)
        .override_global(abi::SOCKET_NETNS, &only, true);
    let timeouts = Timeout::ALL.map(|which| (abi::timeout(which), settings.timeouts.units(which)));
    for (name, units) in &timeouts {
        loader.override_global(name, units, true);
    }
    for shape in shapes(&settings.capacity) {
        loader.map_max_entries(shape.name, shape.entries);
    }
    Ok(loader.load(object()?)?)
}

/// The cgroup asked for, or the root of the cgroup2 hierarchy.
pub(super) fn find_cgroup(asked: Option<&Path>) -> Result<PathBuf, Error> {
    const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
    let is_cgroup2 = |path: &Path| matches!(sys::file_system(path), Ok(CGROUP2_SUPER_MAGIC));
    if let Some(path) = asked {
        return if is_cgroup2(path) {
            Ok(path.to_owned())
        } else {
            Err(Error::NoCgroup { place: format!("at {}", path.display()) })
        };
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        })
        .find(|path| is_cgroup2(path))
        .ok_or_else(|| Error::NoCgroup { place: "in the mount table".to_owned() })
}
