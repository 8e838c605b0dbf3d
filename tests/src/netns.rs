//! Network namespaces.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its namespaces.
pub(crate) const FOLDER: &str = "/run/netns";

/// A named network namespace. It lives as long as the lab.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback interface up.
    ///
    /// # Errors
    /// If `ip` fails.
    pub(crate) fn create(name: String) -> Result<Self> {
        batch(&format!("netns add {name}"))?;
        let netns = Self { name };
        netns.batch("link set lo up")?;
        Ok(netns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Runs `ip -batch` with `lines` inside.
    ///
    /// # Errors
    /// What `ip` complains of.
    pub fn batch(&self, lines: &str) -> Result<()> {
        ip(&["-n", &self.name, "-batch", "-"], lines)
    }

    /// Calls `f` on a thread that is in the namespace: sockets it opens belong there.
    ///
    /// # Errors
    /// If the namespace cannot be entered, and what `f` returns.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&path)?;
                f()
            });
            inside.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// What `tc -batch` prints that runs inside with `line`.
    ///
    /// # Errors
    /// What `tc` complains of.
    pub fn tc(&self, line: &str) -> Result<String> {
        run("tc", &["-netns", &self.name, "-batch", "-"], line)
    }

    /// Sets kernel parameters such as `net/ipv4/ip_forward=1`.
    ///
    /// # Errors
    /// If one cannot be set.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        self.run(|| {
            for setting in settings {
                let (name, value) = setting.split_once('=').context("a setting is name=value")?;
                fs::write(Path::new("/proc/sys").join(name), value)
                    .with_context(|| format!("cannot set {setting}"))?;
            }
            Ok(())
        })
    }
}

/// Moves the calling thread into the namespace that `path` stands for.
///
/// # Errors
/// If there is none, or the kernel refuses.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", path.display()))
}

/// Runs `ip -batch` with `lines` outside of all namespaces.
fn batch(lines: &str) -> Result<()> {
    ip(&["-batch", "-"], lines)
}

fn ip(arguments: &[&str], input: &str) -> Result<()> {
    run("ip", arguments, input).map(drop)
}

/// Runs a program of Debian's package iproute2; what it prints.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program} (Debian's package iproute2)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("cannot write to {program}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}:\n{input}\n{errors}", arguments.join(" "));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Removes the namespace of this name; one that is not there is fine.
pub(crate) fn remove(name: &str) -> Result<()> {
    match batch(&format!("netns delete {name}")) {
        Err(error) if Path::new(FOLDER).join(name).exists() => Err(error),
        _ => Ok(()),
    }
}
