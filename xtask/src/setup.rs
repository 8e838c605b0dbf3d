//! `cargo xtask setup`.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Package};
use crate::bpf_toolchain::{Compiler, find_linker, nightlies};
use crate::control_plane::{CONTROL_PLANE, FLANNEL};
use crate::crates::Tool;
use crate::go_module::GoModule;
use crate::process::{command, find, is_root, run};
use crate::workspace;

/// Find or install what building and testing podnet needs.
///
/// Says what it does and why, and does nothing when nothing is missing. Tools that are built from
/// source go to $PODNET_TOOLS, else podnet/tools in the user's cache.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// Leave out the real control plane and flannel, which the cluster's tests and benchmark need and which
    /// take ten minutes to build.
    #[arg(long)]
    without_cluster: bool,
}

/// What compiling and linking needs beside Rust.
const TO_BUILD: [Package; 6] = [
    Package::new("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
    Package::new("g++", "g++"),
    Package::new("gcc", "cc"),
    Package::new("git", "git"),
    Package::new("libc6-dev", "/usr/include/stdio.h"),
    Package::new("make", "make"),
];

/// What the kernel tests, the benchmarks and a failed test's diagnosis run.
const TO_TEST: [Package; 9] = [
    Package::new("bind9-dnsutils", "dig"),
    Package::new("bpftool", "bpftool"),
    Package::new("conntrack", "conntrack"),
    Package::new("ethtool", "ethtool"),
    Package::new("iproute2", "ip"),
    Package::new("iptables", "iptables"),
    Package::new("nftables", "nft"),
    Package::new("procps", "sysctl"),
    Package::new("tcpdump", "tcpdump"),
];

/// Debian's current Rust, with which it builds its browsers: the compiler for eBPF where Rust's own
/// servers cannot be reached.
const DEBIAN_RUST: [Package; 4] = [
    Package::new("cargo-web", "/usr/bin/cargo"),
    Package::new("rust-web-clippy", "/usr/bin/clippy-driver"),
    Package::new("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/Cargo.toml"),
    Package::new("rustc-web", "/usr/bin/rustc"),
];

const BPF_LINKER: Tool = Tool { name: "bpf-linker", version: "0.13.0" };
/// Checks licences, bans and sources of dependencies.
pub(crate) const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };
/// Runs fuzz targets.
pub(crate) const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };

impl Setup {
    pub(crate) fn run(self) -> Result<()> {
        setup(!self.without_cluster)
    }
}

/// Finds or installs everything; the control plane and flannel if `with_cluster`.
pub(crate) fn setup(with_cluster: bool) -> Result<()> {
    let tools = workspace::tools()?;
    fs::create_dir_all(&tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let _lock = lock(&tools)?;
    let mut steps = Steps::default();
    steps.run("packages to build with", || {
        packages(&TO_BUILD, "Rust needs a linker, and some crates a C compiler")
    });
    let compiler = steps.run("a compiler for eBPF", compiler);
    if let Some(compiler) = compiler {
        steps.run("bpf-linker", || linker(&compiler));
    }
    steps.run("packages to test with", || packages(&TO_TEST, "the tests build networks with them"));
    steps.run("cargo-deny", || tool(&CARGO_DENY, "it checks the licences of dependencies"));
    if nightlies().is_empty() {
        steps.say("cargo-fuzz", "left out: fuzzing needs a nightly toolchain of rustup");
    } else {
        steps.run("cargo-fuzz", || tool(&CARGO_FUZZ, "it runs the fuzz targets"));
    }
    steps.run("the BPF file system", bpffs);
    if with_cluster {
        steps.run("a real control plane", || {
            programs(
                &CONTROL_PLANE,
                "the cluster tests run against real ones; building them takes about ten minutes, once",
            )
        });
        steps.run("flannel", || {
            programs(
                &FLANNEL,
                "a cluster test has its nodes wired by it; building it takes a few minutes, once",
            )
        });
    }
    steps.finish()
}

/// What has been tried, and what could not be had.
#[derive(Default)]
struct Steps {
    missing: Vec<String>,
}

/// A thing that is there now, with a word on it.
struct Found<T> {
    thing: T,
    what: String,
}

impl Steps {
    /// Runs a step. One that fails does not keep the others from being tried, so that all that is
    /// missing is named at once.
    fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<Found<T>>) -> Option<T> {
        match step() {
            Ok(found) => {
                self.say(name, &found.what);
                Some(found.thing)
            }
            Err(error) => {
                eprintln!("setup: {name}: MISSING: {error:#}");
                self.missing.push(format!("{name}: {error:#}"));
                None
            }
        }
    }

    fn say(&self, name: &str, what: &str) {
        eprintln!("setup: {name}: {what}");
    }

    fn finish(self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        bail!("setup could not get everything:\n  {}", self.missing.join("\n  "));
    }
}

fn found(what: impl Into<String>) -> Found<()> {
    Found { thing: (), what: what.into() }
}

/// Says that something is got now, and why.
fn announce(what: &str, why: &str) {
    eprintln!("setup: getting {what}: {why}");
}

/// Keeps two setups from installing the same things at once.
fn lock(tools: &Path) -> Result<File> {
    let path = tools.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("setup: waiting for another setup to end"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn packages(packages: &[Package], why: &str) -> Result<Found<()>> {
    let missing = apt::missing(packages);
    if missing.is_empty() {
        return Ok(found("there"));
    }
    let names = missing.iter().map(|package| package.name).collect::<Vec<_>>().join(", ");
    announce(&names, why);
    apt::install(&missing)?;
    Ok(found(format!("installed {names}")))
}

fn compiler() -> Result<Found<Compiler>> {
    if let Some(compiler) = Compiler::find() {
        return Ok(found_compiler(compiler));
    }
    let mut tried = Vec::new();
    match rust_src_by_rustup() {
        Ok(()) => match Compiler::find() {
            Some(compiler) => return Ok(found_compiler(compiler)),
            None => tried.push("rustup installed rust-src, yet no nightly is new enough".to_owned()),
        },
        Err(error) => tried.push(format!("{error:#}")),
    }
    announce("Debian's rustc-web with its sources", "rustup cannot bring the sources of core");
    match apt::install(&apt::missing(&DEBIAN_RUST)) {
        Ok(()) => match Compiler::find() {
            Some(compiler) => return Ok(found_compiler(compiler)),
            None => tried.push("Debian's compiler is too old".to_owned()),
        },
        Err(error) => tried.push(format!("{error:#}")),
    }
    bail!(
        "eBPF needs a Rust compiler with the sources of core: `rustup toolchain install nightly --component \
         rust-src`, or Debian's rustc-web, cargo-web and rust-web-src (tried: {})",
        tried.join("; ")
    );
}

fn found_compiler(compiler: Compiler) -> Found<Compiler> {
    Found { what: compiler.to_string(), thing: compiler }
}

fn rust_src_by_rustup() -> Result<()> {
    if find("rustup").is_none() {
        bail!("there is no rustup");
    }
    announce("rust-src for rustup's nightly", "core is compiled for the eBPF target");
    let mut rustup = command("rustup");
    match nightlies().first() {
        Some(nightly) => rustup.args(["component", "add", "rust-src", "--toolchain", nightly.as_str()]),
        None => rustup.args([
            "toolchain",
            "install",
            "nightly",
            "--profile=minimal",
            "--component=rust-src,clippy",
        ]),
    };
    // Where Rust's servers cannot be reached, more tries only take time.
    run(rustup.env("RUSTUP_MAX_RETRIES", "1"))
}

fn linker(compiler: &Compiler) -> Result<Found<()>> {
    if let Some(path) = find_linker(compiler)? {
        return Ok(found(path.display().to_string()));
    }
    let llvm = compiler.version.llvm;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    announce(
        &format!("bpf-linker {} on LLVM {llvm}", BPF_LINKER.version),
        "its LLVM has to be the compiler's, or it cannot read what the compiler writes",
    );
    if !Path::new(&prefix).join("bin/llvm-config").exists()
        || !Path::new(&prefix).join("lib/libPolly.a").exists()
    {
        let Some(llvm_packages) = llvm_packages(llvm) else {
            bail!(
                "bpf-linker has to be built on LLVM {llvm}, of which setup knows no packages: put a bpf-linker \
                   built for {compiler} on PATH"
            );
        };
        apt::install(&llvm_packages)?;
    }
    BPF_LINKER.install(|cargo| {
        cargo.args(["--no-default-features", "--features"]).arg(format!("llvm-{llvm}"));
        cargo.env("LLVM_PREFIX", &prefix);
    })?;
    match find_linker(compiler)? {
        Some(path) => Ok(found(format!("installed as {}", path.display()))),
        None => bail!("bpf-linker was built, yet does not link what {compiler} makes"),
    }
}

/// Debian's packages of LLVM, for the versions that `bpf-linker` knows.
fn llvm_packages(llvm: u32) -> Option<[Package; 2]> {
    match llvm {
        21 => Some([
            Package::new("llvm-21-dev", "/usr/lib/llvm-21/bin/llvm-config"),
            Package::new("libpolly-21-dev", "/usr/lib/llvm-21/lib/libPolly.a"),
        ]),
        22 => Some([
            Package::new("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
            Package::new("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
        ]),
        23 => Some([
            Package::new("llvm-23-dev", "/usr/lib/llvm-23/bin/llvm-config"),
            Package::new("libpolly-23-dev", "/usr/lib/llvm-23/lib/libPolly.a"),
        ]),
        _ => None,
    }
}

fn tool(tool: &Tool, why: &str) -> Result<Found<()>> {
    if tool.is_installed()? {
        return Ok(found(format!("{} in {}", tool.version, tool.path()?.display())));
    }
    announce(&format!("{} {}", tool.name, tool.version), why);
    tool.install(|_| ())?;
    Ok(found(format!("installed as {}", tool.path()?.display())))
}

fn bpffs() -> Result<Found<()>> {
    const PLACE: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    if has_bpffs(&mounts, PLACE) {
        return Ok(found(format!("mounted at {PLACE}")));
    }
    if !is_root() {
        return Ok(found(format!("not mounted; as root: mount -t bpf bpf {PLACE}")));
    }
    announce("a BPF file system", "podnet keeps its maps and links there");
    match run(command("mount").args(["-t", "bpf", "bpf", PLACE])) {
        Ok(()) => Ok(found(format!("mounted at {PLACE}"))),
        // Building and the unit tests do without.
        Err(error) => {
            Ok(found(format!("cannot be mounted, so that tests in the kernel will fail: {error:#}")))
        }
    }
}

fn has_bpffs(mounts: &str, place: &str) -> bool {
    mounts.lines().any(|mount| {
        let mut fields = mount.split(' ').skip(1);
        fields.next() == Some(place) && fields.next() == Some("bpf")
    })
}

fn programs(module: &GoModule, why: &str) -> Result<Found<()>> {
    let missing = module.missing()?;
    let folder = module.folder()?;
    if missing.is_empty() {
        return Ok(found(format!("in {}", folder.display())));
    }
    let names = missing.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
    announce(&names, why);
    module.build(&missing)?;
    Ok(found(format!("built {names} in {}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_mount_table() {
        let mounts = "sysfs /sys sysfs rw 0 0\nnone /sys/fs/bpf bpf rw,relatime 0 0\n";
        assert!(has_bpffs(mounts, "/sys/fs/bpf"));
        assert!(!has_bpffs(mounts, "/sys"));
        assert!(!has_bpffs("", "/sys/fs/bpf"));
    }
}
