//! `podnet agent`: runs on each node.

use std::convert::Infallible;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use super::kernel::Kernel;
use crate::agent::{self, Settings, Source};
use crate::changes::Capacity;
use crate::cluster::node::ProxySettings;
use crate::cluster::object::Algorithm;
use crate::config::{File, Options};
use crate::dns;
use crate::error::Error;
use crate::interfaces::{Patterns, PodInterfaces};
use crate::kernel::{self, AttachMode};
use crate::plan::maglev;

/// Watch Services and keep the kernel's tables up to date
///
/// The agent runs on each node, as root. It reads Services and EndpointSlices from the API server or from
/// a directory of YAML. When it ends, what is in the kernel goes on working; `podnet cleanup` removes it.
#[derive(Debug, Args)]
pub(super) struct Agent {
    /// Read Services from the YAML files in this directory instead of from an API server
    #[arg(long, value_name = "DIR", env = "PODNET_MANIFESTS", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,

    /// Read kube-proxy's settings from this KubeProxyConfiguration; flags win over it
    #[arg(long, value_name = "FILE", env = "PODNET_CONFIG")]
    config: Option<PathBuf>,

    /// The interfaces that face pods: globs, separated by commas [default: those that --detect-local-mode tells
    /// pods by, else veth*,cali*,lxc*,eni*,azv*,gke*]
    #[arg(long, value_name = "GLOBS", env = "PODNET_POD_INTERFACES", value_parser = patterns)]
    pod_interfaces: Option<Patterns>,

    /// The interfaces that face other machines, among those that do not face pods: globs, separated by
    /// commas; bridges and members of bonds never do
    #[arg(
        long,
        value_name = "GLOBS",
        env = "PODNET_NODE_INTERFACES",
        default_value = Patterns::NODES,
        value_parser = patterns
    )]
    node_interfaces: Patterns,

    /// The network cards among those, for --xdp: globs, separated by commas [default: those that a default route
    /// leaves by]
    #[arg(long, value_name = "GLOBS", env = "PODNET_XDP_INTERFACES", value_parser = patterns)]
    xdp_interfaces: Option<Patterns>,

    #[command(flatten)]
    balancing: Balancing,

    #[command(flatten)]
    kernel: Kernel,

    /// How programs are attached to interfaces
    #[arg(long, value_enum, env = "PODNET_ATTACH", default_value_t)]
    attach: AttachMode,

    /// How to log, to standard error; PODNET_LOG sets what, as in `podnet=debug`
    #[arg(long, value_enum, env = "PODNET_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,

    /// End once what is there at the start is in the kernel
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    dns: dns::Flags,

    #[command(flatten)]
    sizes: Sizes,

    #[command(flatten)]
    options: Options,
}

/// How clients outside get an endpoint.
#[derive(Debug, Args)]
struct Balancing {
    /// How clients outside get an endpoint of a Service without the annotation podnet.io/algorithm
    #[arg(long, value_enum, env = "PODNET_ALGORITHM", default_value_t)]
    algorithm: Algorithm,

    /// How many slots maglev has for a Service's endpoints, the same on all nodes: 251, 509, 1021, 2039, 4093, 8191,
    /// 16381, 32749, 65521 or 131071; --max-slots has to have room for them
    #[arg(long, value_name = "N", env = "PODNET_MAGLEV_SLOTS", value_parser = maglev_slots, default_value_t = maglev::USUAL)]
    maglev_slots: u32,
}

fn maglev_slots(text: &str) -> Result<u32, String> {
    let known = text.parse().ok().filter(|slots| maglev::SIZES.contains(slots));
    known.ok_or_else(|| {
        let sizes = maglev::SIZES.map(|size| size.to_string()).join(", ");
        format!("must be a prime of these, so that endpoints get equal shares: {sizes}")
    })
}

/// The sizes of the kernel's tables.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sizes of the kernel's tables")]
struct Sizes {
    /// Frontends: Service addresses times ports
    #[arg(long, value_name = "N", env = "PODNET_MAX_FRONTENDS", value_parser = size(),
          default_value_t = Capacity::default().frontends)]
    max_frontends: u32,

    /// Slots: endpoints, once per service port that they serve, or --maglev-slots for each service port that
    /// clients outside reach by maglev; changes need some to spare
    #[arg(long, value_name = "N", env = "PODNET_MAX_SLOTS", value_parser = size(),
          default_value_t = Capacity::default().slots)]
    max_slots: u32,

    /// Backends: endpoints, once per service port that they serve; changes need some to spare
    #[arg(long, value_name = "N", env = "PODNET_MAX_BACKENDS", value_parser = size(),
          default_value_t = Capacity::default().backends)]
    max_backends: u32,

    /// Flows of packets that are translated
    #[arg(long, value_name = "N", env = "PODNET_MAX_FLOWS", value_parser = size(),
          default_value_t = Capacity::default().flows)]
    max_flows: u32,

    /// Sockets that are led to a backend
    #[arg(long, value_name = "N", env = "PODNET_MAX_SOCKETS", value_parser = size(),
          default_value_t = Capacity::default().sockets)]
    max_sockets: u32,

    /// Clients of Services with session affinity whose backend is remembered
    #[arg(long, value_name = "N", env = "PODNET_MAX_CLIENTS", value_parser = size(),
          default_value_t = Capacity::default().clients)]
    max_clients: u32,

    /// Names of Services and namespaces, where queries for them are answered
    #[arg(long, value_name = "N", env = "PODNET_MAX_NAMES", value_parser = size(),
          default_value_t = Capacity::default().names)]
    max_names: u32,
}

/// The kernel's hash tables have 2^30 entries at most.
fn size() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=1 << 30)
}

fn patterns(text: &str) -> Result<Patterns, Infallible> {
    text.parse()
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    /// For people on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Agent {
    pub(super) fn run(self) -> Result<ExitCode, Error> {
        start_log(self.log_format);
        let settings = self.settings()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Error::system("threads"))?;
        runtime.block_on(agent::run(settings))?;
        Ok(ExitCode::SUCCESS)
    }

    fn settings(self) -> Result<Settings, Error> {
        let file = self.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let options = self.options.or(file.options);
        warn_of_no_effect(&options, &file.unknown);
        let told = options.pod_interfaces()?;
        let node = match options.node() {
            Some(name) => name,
            None => host_name()?,
        };
        let source = match self.manifests {
            Some(directory) => Source::Manifests(directory),
            None => Source::Cluster(options.kubeconfig.clone()),
        };
        let capacity = Capacity {
            frontends: self.sizes.max_frontends,
            slots: self.sizes.max_slots,
            backends: self.sizes.max_backends,
            flows: self.sizes.max_flows,
            sockets: self.sizes.max_sockets,
            clients: self.sizes.max_clients,
            names: self.sizes.max_names,
        };
        Ok(Settings {
            source,
            kernel: kernel::Settings {
                zone: self.dns.kernel_zone()?,
                ..self.kernel.settings(self.attach, capacity, options.timeouts())
            },
            pod_interfaces: self.pod_interfaces.map(PodInterfaces::Named).or(told).unwrap_or_default(),
            node_interfaces: self.node_interfaces,
            xdp_interfaces: self.xdp_interfaces,
            proxy: ProxySettings {
                algorithm: self.balancing.algorithm,
                maglev_slots: self.balancing.maglev_slots,
                ..options.proxy(node)
            },
            node_ports: options.node_ports(),
            healthz: options.healthz(),
            metrics: options.metrics(),
            names: self.dns.names(),
            serve_names: self.dns.serve()?,
            oom_score_adj: options.oom_score_adj,
            once: self.once,
        })
    }
}

fn host_name() -> Result<String, Error> {
    let name = nix::unistd::gethostname().map_err(|error| Error::system("the host's name")(error.into()))?;
    Ok(name.to_string_lossy().to_lowercase())
}

fn warn_of_no_effect(options: &Options, unknown: &[String]) {
    let mut settings = options.without_effect();
    settings.extend(unknown.iter().map(String::as_str));
    if !settings.is_empty() {
        warn!(
            settings = settings.join(", "),
            "settings of kube-proxy without effect in this version of podnet"
        );
    }
}

fn start_log(format: LogFormat) {
    // The client logs every attempt that fails, where one line about an outage will do.
    let usual = || EnvFilter::new("info,kube_client=off,kube_runtime=off");
    let filter = EnvFilter::try_from_env("PODNET_LOG").unwrap_or_else(|_| usual());
    let terminal = stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(terminal);
    match format {
        LogFormat::Auto if !terminal => log.json().flatten_event(true).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Auto | LogFormat::Human => log.with_target(false).init(),
    }
}
