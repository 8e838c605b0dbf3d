//! podnet's agent on a node of the lab.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::manifests::{Manifests, SERVICE_PORT, Service};
use crate::node::Node;
use crate::process::Process;
use crate::require;
use crate::wait::{PATIENCE, until};

/// Which sockets are led to backends when they connect; the packets of all others are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLb {
    /// Those of the node's own processes and of its pods.
    All,
    /// Those of the node's own processes.
    Host,
    /// None.
    Off,
}

impl SocketLb {
    fn argument(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// Where the agent reads Services from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From a folder of YAML.
    Manifests(Manifests),
    /// From a cluster.
    Kubeconfig(PathBuf),
}

/// How the agent is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Services come from.
    pub source: Source,
    /// The socket layer.
    pub socket_lb: SocketLb,
    /// How the programs are attached to interfaces.
    pub attach: &'static str,
    /// Further flags, each with its value as a word of its own.
    pub further: Vec<String>,
    /// Which of several installations on one node.
    pub installation: &'static str,
}

impl Settings {
    /// An agent that reads YAML.
    pub fn new(manifests: &Manifests, socket_lb: SocketLb) -> Self {
        Self::from(Source::Manifests(manifests.clone()), socket_lb)
    }

    /// An agent that reads Services from `source`.
    pub fn from(source: Source, socket_lb: SocketLb) -> Self {
        Self { source, socket_lb, attach: "auto", further: Vec::new(), installation: "" }
    }
}

/// A frontend as `podnet services` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Frontend {
    /// The Service's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Namespace, name and port's name of the Service.
    pub name: Option<String>,
    /// What kind of address it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where connections of this node's pods, and of the node itself, go.
    pub inside: Side,
    /// Where those of others go.
    pub outside: Side,
}

/// One side of a frontend as `podnet services` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Side {
    /// Where connections go.
    pub backends: Vec<Backend>,
}

/// A backend as `podnet services` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// The pod's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Frontend {
    fn is(&self, at: SocketAddr, protocol: &str) -> bool {
        self.address == at.ip() && self.port == at.port() && self.protocol.eq_ignore_ascii_case(protocol)
    }
}

impl Side {
    /// The backends' addresses and ports.
    fn endpoints(&self) -> BTreeSet<SocketAddr> {
        self.backends.iter().map(|backend| SocketAddr::new(backend.address, backend.port)).collect()
    }
}

/// A running agent. It is killed when it is dropped.
pub struct Agent {
    node: Node,
    settings: Settings,
    podnet: PathBuf,
    process: Process,
}

impl Agent {
    /// Starts an agent and waits until the kernel serves what its source has.
    ///
    /// # Errors
    /// If it does not get that far.
    pub fn start(node: &Node, settings: Settings) -> Result<Self> {
        let mut agent = Self::spawn(node, settings)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent and does not wait.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(node: &Node, settings: Settings) -> Result<Self> {
        let podnet = require::podnet().context("there is no podnet binary")?;
        let command = command(&podnet, node, &settings)?;
        let log =
            node.lab().folder("logs")?.join(format!("agent-{}{}.log", node.name(), settings.installation));
        let process = Process::start(&format!("podnet agent on node {}", node.name()), command, &log)?;
        Ok(Self { node: node.clone(), settings, podnet, process })
    }

    /// Starts the agent anew, after it has ended.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn restart(self) -> Result<Self> {
        let (node, settings) = (self.node.clone(), self.settings.clone());
        drop(self);
        Self::start(&node, settings)
    }

    /// Waits until the agent says that what its source has is in the kernel.
    fn wait_until_ready(&mut self) -> Result<()> {
        let from = self.process.log().len();
        until("the agent to get ready", PATIENCE, || {
            // An agent that has ended gets no readier.
            if let Some(status) = self.process.ended()? {
                return Ok(Err(anyhow!("the agent has ended, {status}")));
            }
            ensure!(
                self.process.log()[from.min(self.process.log().len())..].contains(READY),
                "no sign of it"
            );
            Ok(Ok(()))
        })
        .and_then(|ended| ended)
        .with_context(|| self.process.last_words())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The end of its log, for error messages.
    pub fn last_words(&self) -> String {
        self.process.last_words()
    }

    /// Asks the agent to end, and waits until it has.
    ///
    /// # Errors
    /// If it does not, or with another exit code than 0.
    pub fn terminate(&mut self) -> Result<()> {
        let status = self.process.terminate(Duration::from_secs(10))?;
        ensure!(status.success(), "the agent ended with {status}\n{}", self.process.last_words());
        Ok(())
    }

    /// Runs another command of podnet against the agent's tables.
    ///
    /// # Errors
    /// If it cannot be run; not if it fails.
    pub fn podnet(&self, arguments: &[&str]) -> Result<Output> {
        run(&self.podnet, &self.node, &self.settings, arguments)
    }

    /// What the kernel serves.
    ///
    /// # Errors
    /// If podnet does not say.
    pub fn frontends(&self) -> Result<Vec<Frontend>> {
        let output = self.podnet(&["services", "-o", "json"])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podnet services: {}: {errors}", output.status);
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("podnet services printed {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Waits until the kernel serves `service` just as it is.
    ///
    /// # Errors
    /// What it serves instead.
    pub fn wait_for(&self, service: &Service) -> Result<()> {
        until(&format!("the kernel to serve {service:?}"), PATIENCE, || {
            let frontends = self.frontends()?;
            for at in service.frontends(&self.node) {
                for protocol in service.protocols() {
                    let backends: BTreeSet<_> = service.backends(at.ip()).collect();
                    let found = frontends.iter().find(|frontend| frontend.is(at, protocol));
                    match found {
                        Some(frontend) if frontend.inside.endpoints() == backends => {}
                        _ => bail!("{protocol} {at}: {found:?} in place of {backends:?}"),
                    }
                }
            }
            Ok(())
        })
        .with_context(|| self.process.last_words())
    }

    /// Waits until connections to `at` go to just these pods: those of this node's pods and of the node
    /// itself, and those of others.
    ///
    /// # Errors
    /// Where they go instead.
    pub fn wait_for_sides(
        &self,
        at: SocketAddr,
        protocol: &str,
        inside: &[SocketAddr],
        outside: &[SocketAddr],
    ) -> Result<()> {
        let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        until(&format!("the kernel to serve {at}"), PATIENCE, || {
            let frontends = self.frontends()?;
            let found = frontends.iter().find(|frontend| frontend.is(at, protocol));
            let found = found.with_context(|| format!("{at} is not served"))?;
            ensure!(
                found.inside.endpoints() == set(inside) && found.outside.endpoints() == set(outside),
                "{found:?} in place of {inside:?} and {outside:?}"
            );
            Ok(())
        })
        .with_context(|| self.process.last_words())
    }

    /// Waits until the kernel knows nothing of `service`.
    ///
    /// # Errors
    /// What it serves still.
    pub fn wait_for_removal(&self, service: &Service) -> Result<()> {
        until(&format!("the kernel to forget {}", service.name()), PATIENCE, || {
            let frontends = self.frontends()?;
            match frontends.iter().find(|frontend| service.addresses().contains(&frontend.address)) {
                Some(frontend) => bail!("{frontend:?} is still there"),
                None => Ok(()),
            }
        })
        .with_context(|| self.process.last_words())
    }

    /// Waits until the agent has logged `text`.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        until(&format!("the agent to log {text:?}"), PATIENCE, || {
            ensure!(self.log().contains(text), "it has not");
            Ok(())
        })
        .with_context(|| self.process.last_words())
    }
}

/// What the agent logs when all that its source had at the start is in the kernel.
const READY: &str = "podnet is ready";

/// Runs a command of podnet on a node.
///
/// # Errors
/// If it cannot be run; not if it fails.
pub fn run(podnet: &Path, node: &Node, settings: &Settings, arguments: &[&str]) -> Result<Output> {
    let mut command = node.place().command(podnet)?;
    command.args(arguments).arg("--bpffs").arg(bpffs(node, settings));
    command.output().context("cannot run podnet")
}

fn command(podnet: &Path, node: &Node, settings: &Settings) -> Result<Command> {
    let mut command = node.place().command(podnet)?;
    command.args(arguments(node, settings));
    Ok(command)
}

/// The arguments of the agent. Further ones take the place of the usual ones.
pub fn arguments(node: &Node, settings: &Settings) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let source = match &settings.source {
        Source::Manifests(manifests) => ("--manifests", path(manifests.folder())),
        Source::Kubeconfig(file) => ("--kubeconfig", path(file)),
    };
    let mut arguments = vec!["agent".to_owned()];
    for (flag, value) in [
        source,
        ("--node-name", node.name().to_owned()),
        ("--bpffs", path(&bpffs(node, settings))),
        ("--cgroup", path(&node.place().cgroup)),
        ("--socket-lb", settings.socket_lb.to_string()),
        ("--attach", settings.attach.to_owned()),
        ("--pod-interfaces", "veth*".to_owned()),
        ("--metrics-bind-address", "off".to_owned()),
        ("--healthz-bind-address", "off".to_owned()),
        ("--log-format", "human".to_owned()),
        // Small tables are made and read quickly.
        ("--max-frontends", "1024".to_owned()),
        ("--max-slots", "8192".to_owned()),
        ("--max-flows", "65536".to_owned()),
        ("--max-sockets", "65536".to_owned()),
    ] {
        // That flag tells pods by interfaces itself.
        let told =
            flag == "--pod-interfaces" && settings.further.iter().any(|it| it == "--detect-local-mode");
        if !told && !settings.further.iter().any(|further| further == flag) {
            arguments.extend([flag.to_owned(), value]);
        }
    }
    arguments.extend(settings.further.iter().cloned());
    arguments
}

/// Where an installation of podnet on a node pins its maps and programs.
pub fn bpffs(node: &Node, settings: &Settings) -> PathBuf {
    let mut name = node.bpffs().as_os_str().to_owned();
    name.push(settings.installation);
    name.into()
}

/// An address and the port of Services.
pub fn service_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, SERVICE_PORT)
}

impl fmt::Display for SocketLb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.argument())
    }
}
