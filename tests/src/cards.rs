//! What virtual cables lack of network cards, for XDP.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;

use crate::lab::Lab;
use crate::process::Place;

/// Has what leaves `places` by `eth0` carry whole checksums, as what a network card receives does. The kernel leaves
/// them to the receiver otherwise, and programs of XDP are not told.
fn with_checksums(places: &[&Place]) -> Result<()> {
    for place in places {
        let set = place.command("ethtool")?.args(["-K", "eth0", "tx", "off"]).output()?;
        ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    }
    Ok(())
}

/// Where a cluster's nodes meet what comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cards {
    /// At tc, as by default.
    Off,
    /// Behind the drivers.
    Generic,
    /// In the drivers.
    Native,
}

impl Cards {
    /// What `PODNET_XDP` says, by which `cargo xtask test` runs the tests with clients outside several times.
    ///
    /// # Errors
    /// If it says something else.
    pub fn of_environment() -> Result<Self> {
        match std::env::var("PODNET_XDP").as_deref() {
            Err(_) | Ok("" | "off") => Ok(Self::Off),
            Ok("generic") => Ok(Self::Generic),
            Ok("native") => Ok(Self::Native),
            Ok(other) => bail!("PODNET_XDP is {other:?}, and not off, generic or native"),
        }
    }

    /// The agents' flags.
    pub(crate) fn flags(self) -> Vec<String> {
        let mode = match self {
            Self::Off => return Vec::new(),
            Self::Generic => "generic",
            Self::Native => "native",
        };
        ["--xdp", mode, "--xdp-interfaces", "eth0"].map(str::to_owned).to_vec()
    }

    /// Makes the cables between `places` of `lab`, which are plugged in, like those of network cards.
    pub(crate) fn prepare(self, lab: &Lab, places: &[&Place]) -> Result<Option<Idle>> {
        if self != Self::Off {
            with_checksums(places)?;
        }
        (self == Self::Native).then(|| lab.idle_at_ports()).transpose()
    }
}

/// A program that lets all frames pass, at the interfaces of a namespace, until it is dropped: podnet's own, without
/// anything to translate. One end of a cable takes no frames of the other's driver without a program.
pub struct Idle(Ebpf);

impl Idle {
    /// Loads it.
    ///
    /// # Errors
    /// If there is no object, or the kernel refuses.
    pub fn load(lab: &Lab) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/podnet-ebpf.o");
        let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let pins = lab.bpffs("idle")?;
        fs::create_dir_all(&pins).with_context(|| format!("cannot create {}", pins.display()))?;
        let mut ebpf = EbpfLoader::new().btf(None).default_map_pin_directory(&pins).load(&object)?;
        program(&mut ebpf)?.load()?;
        Ok(Self(ebpf))
    }

    /// Attaches it in the drivers of `interfaces` of this thread's namespace.
    ///
    /// # Errors
    /// If one refuses.
    pub fn attach(&mut self, interfaces: &[String]) -> Result<()> {
        for name in interfaces {
            let index = if_nametoindex(name.as_str()).with_context(|| format!("there is no {name}"))?;
            program(&mut self.0)?.attach_to_if_index(index, XdpMode::Driver)?;
        }
        Ok(())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf.program_mut("from_net_xdp").context("the program is not in the object")?.try_into()?)
}
