//! Processes in the lab.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::{require, wait};

/// A place where a process can run: a namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    /// The network namespace.
    pub netns: Netns,
    /// The cgroup.
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that will run `program` here.
    ///
    /// # Errors
    /// If the lab's helper binary has not been built.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = helper()?;
        command.arg("enter").arg("--netns").arg(self.netns.path()).arg("--cgroup").arg(&self.cgroup);
        command.arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// Starts the lab's helper binary here with pipes to talk to it.
    pub(crate) fn peer(&self, arguments: &[String]) -> Result<Child> {
        self.command(helper_path()?)?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a peer")
    }
}

/// The lab's helper binary.
pub(crate) fn helper() -> Result<Command> {
    Ok(Command::new(helper_path()?))
}

fn helper_path() -> Result<PathBuf> {
    let path = require::binaries().join("lab-peer");
    if !path.is_file() {
        bail!("{} is not there: `cargo build -p tests` makes it", path.display());
    }
    Ok(path)
}

/// A process that writes to a log file and ends with this value.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints is added to the file `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let errors = file.try_clone().context("cannot clone a file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// If the kernel will not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Ends it the hard way: SIGKILL.
    ///
    /// # Errors
    /// If that fails.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        }
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end, by SIGTERM, and waits until it has.
    ///
    /// # Errors
    /// If it does not end within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.pid()).context("a pid")?);
            kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop {}", self.name))?;
        }
        let name = self.name.clone();
        wait::until(&format!("{name} to end after SIGTERM"), patience, || {
            self.ended()?.ok_or_else(|| anyhow!("{name} is still running"))
        })
    }

    /// The end of its log, for error messages.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(60);
        format!("--- {} printed:\n{}\n---", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        let _ = self.kill();
    }
}
