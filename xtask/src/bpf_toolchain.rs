//! What compiles the eBPF programs: a Rust compiler that can build `core` for the BPF target, and
//! a `bpf-linker` whose LLVM reads that compiler's bitcode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, find, is_executable, output};
use crate::workspace;

/// The BPF target of this machine's byte order.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" };

/// A Rust toolchain with the sources of `core`.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// Whose compiler this is, for people.
    pub(crate) label: String,
    /// The folder of `cargo` and `rustc`.
    bin: PathBuf,
    /// What `rustc` says of itself.
    pub(crate) version: Version,
}

impl Compiler {
    /// The compiler to use: a nightly of rustup that has `rust-src`, else the system's with its
    /// sources. The latter is a stable one, which builds `core` when told to behave as a nightly.
    pub(crate) fn find() -> Option<Self> {
        nightlies().into_iter().find_map(|name| Self::of_rustup(&name)).or_else(Self::of_system)
    }

    fn of_rustup(name: &str) -> Option<Self> {
        let sysroot = output(command("rustup").args(["run", name, "rustc", "--print", "sysroot"])).ok()?;
        Self::at(format!("rustup's {name}"), Path::new(sysroot.trim()))
    }

    fn of_system() -> Option<Self> {
        Self::at("the system's".into(), Path::new("/usr"))
    }

    /// The compiler installed under `sysroot`, if there is one that is new enough and has sources.
    fn at(label: String, sysroot: &Path) -> Option<Self> {
        let bin = sysroot.join("bin");
        let has_sources = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists();
        if !has_sources || !is_executable(&bin.join("cargo")) {
            return None;
        }
        let version = Version::of(&bin.join("rustc")).ok()?;
        (version.release >= minimum_rust()).then_some(Self { label, bin, version })
    }

    /// Whether `cargo clippy` works with this compiler.
    pub(crate) fn has_clippy(&self) -> bool {
        ["cargo-clippy", "clippy-driver"].iter().all(|program| is_executable(&self.bin.join(program)))
    }

    /// This toolchain's cargo.
    pub(crate) fn cargo(&self) -> Command {
        self.command("cargo")
    }

    /// This toolchain's `cargo clippy`.
    pub(crate) fn cargo_clippy(&self) -> Command {
        let mut clippy = self.command("cargo-clippy");
        clippy.arg("clippy");
        clippy
    }

    /// A program of this toolchain, set up so that it never meets another one's through `PATH` or
    /// the variables of rustup.
    fn command(&self, program: &str) -> Command {
        let mut command = command(self.bin.join(program));
        command.env("CARGO", self.bin.join("cargo")).env("RUSTC", self.bin.join("rustc"));
        for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(name);
        }
        if !self.version.nightly {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Links an empty crate for the BPF target by `linker`, which fails if its LLVM cannot read
    /// what this compiler's LLVM writes.
    fn check_linker(&self, linker: &Path) -> Result<()> {
        let folder = std::env::temp_dir().join(format!("podnet-bpf-linker-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let source = folder.join("empty.rs");
        let linked = fs::write(&source, "#![feature(no_core)]\n#![no_core]\n")
            .with_context(|| format!("cannot write {}", source.display()))
            .and_then(|()| {
                let mut linker_flag = std::ffi::OsString::from("-Clinker=");
                linker_flag.push(linker);
                output(
                    self.command("rustc")
                        .args(["--target", TARGET, "--crate-type=cdylib", "-o"])
                        .arg(folder.join("empty.o"))
                        .arg(linker_flag)
                        .arg(&source),
                )
            });
        // What is left in the temporary folder does no harm.
        let _ = fs::remove_dir_all(&folder);
        linked.map(drop)
    }
}

/// A compiler and a linker that fit.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// The path of `bpf-linker`.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// What is installed, or what is missing.
    pub(crate) fn find() -> Result<Self> {
        let Some(compiler) = Compiler::find() else {
            bail!("no compiler for eBPF is installed; `cargo xtask setup` gets one");
        };
        let Some(linker) = find_linker(&compiler)? else {
            bail!("no bpf-linker is installed that fits {compiler}; `cargo xtask setup` gets one");
        };
        Ok(Self { compiler, linker })
    }

    /// Makes `cargo` (of [`Self::compiler`]) one that builds package `podnet-ebpf`.
    pub(crate) fn configure(&self, cargo: &mut Command) {
        // What aya's build helper sets: the architecture whose registers probes would read, debug
        // info and the BTF made from it.
        let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
        let flags = [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"];
        let target_variable = TARGET.to_uppercase().replace('-', "_");
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env(format!("CARGO_TARGET_{target_variable}_LINKER"), &self.linker)
            .args(["--package", "podnet-ebpf", "--profile", "bpf", "--target", TARGET])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(workspace::root().join("target/bpf-build"));
    }
}

/// The `bpf-linker` that fits `compiler`: on `PATH` or in the tools folder.
pub(crate) fn find_linker(compiler: &Compiler) -> Result<Option<PathBuf>> {
    let ours = workspace::tools()?.join("bin/bpf-linker");
    let candidates = find("bpf-linker").into_iter().chain(is_executable(&ours).then_some(ours));
    Ok(candidates.into_iter().find(|linker| compiler.check_linker(linker).is_ok()))
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.version.release;
        write!(f, "{} rustc {major}.{minor} (LLVM {})", self.label, self.version.llvm)
    }
}

/// The names of rustup's nightly toolchains.
pub(crate) fn nightlies() -> Vec<String> {
    let listed = output(command("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Major and minor version.
    pub(crate) release: (u32, u32),
    /// Whether unstable features are allowed as it is.
    pub(crate) nightly: bool,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

impl Version {
    fn of(rustc: &Path) -> Result<Self> {
        let printed = output(command(rustc).arg("-vV").env_remove("RUSTUP_TOOLCHAIN"))?;
        Self::parse(&printed).with_context(|| format!("cannot make out the version of {}", rustc.display()))
    }

    fn parse(printed: &str) -> Option<Self> {
        let field = |name| printed.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?;
        Some(Self {
            release: parse_release(release)?,
            nightly: release.ends_with("-nightly") || release.ends_with("-dev"),
            llvm: field("LLVM version:")?.split('.').next()?.parse().ok()?,
        })
    }
}

/// The workspace's `rust-version`.
fn minimum_rust() -> (u32, u32) {
    parse_release(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_stable_version() {
        let printed = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                       host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let expected = Version { release: (1, 96), nightly: false, llvm: 22 };
        assert_eq!(Version::parse(printed), Some(expected));
    }

    #[test]
    fn reads_a_nightly_version() {
        let printed = "release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let expected = Version { release: (1, 97), nightly: true, llvm: 22 };
        assert_eq!(Version::parse(printed), Some(expected));
    }

    #[test]
    fn refuses_what_is_no_version() {
        assert_eq!(Version::parse("release: unknown\nLLVM version: 22.1.4\n"), None);
        assert_eq!(Version::parse("release: 1.96.0\n"), None);
    }

    #[test]
    fn the_workspace_names_a_minimum() {
        assert!(minimum_rust() >= (1, 85));
    }
}
