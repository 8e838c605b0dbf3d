//! Debian's packages.

use std::path::Path;

use anyhow::{Result, bail};

use crate::process::{command, find, is_root, run};

/// A package and how to see, on any distribution, that what it brings is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    /// Its name in Debian.
    pub(crate) name: &'static str,
    /// A program on `PATH`, or the absolute path of a file.
    pub(crate) proof: &'static str,
}

impl Package {
    pub(crate) const fn new(name: &'static str, proof: &'static str) -> Self {
        Self { name, proof }
    }

    fn is_there(&self) -> bool {
        if self.proof.starts_with('/') { Path::new(self.proof).exists() } else { find(self.proof).is_some() }
    }
}

/// Those of `packages` that are not there.
pub(crate) fn missing(packages: &[Package]) -> Vec<Package> {
    packages.iter().copied().filter(|package| !package.is_there()).collect()
}

/// Installs packages, or says why it cannot.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let by_hand = format!("install by hand what your system calls {}", names.join(", "));
    if find("apt-get").is_none() {
        bail!("this system has no apt-get: {by_hand}");
    }
    apt_get(&["update", "-qq"], &by_hand)?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&names);
    apt_get(&words, &by_hand)?;
    let missing = missing(packages);
    if let Some(package) = missing.first() {
        bail!("apt-get installed {}, yet {} is not there", package.name, package.proof);
    }
    Ok(())
}

fn apt_get(words: &[&str], by_hand: &str) -> Result<()> {
    let mut apt = if is_root() {
        command("apt-get")
    } else if find("sudo").is_some() {
        let mut sudo = command("sudo");
        sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        bail!("only root may install packages and there is no sudo: {by_hand}");
    };
    run(apt.args(words).env("DEBIAN_FRONTEND", "noninteractive"))
}
