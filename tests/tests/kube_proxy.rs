//! What kube-proxy's users rely on beside traffic: semantics §7.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tests::agent::{self, Agent, Settings, SocketLb};
use tests::http;
use tests::lab::Lab;
use tests::manifests::{Manifests, Service};
use tests::node::Node;
use tests::require;
use tests::wait::{PATIENCE, until};

const HEALTHZ: u16 = 10_256;
const METRICS: u16 = 10_249;
const JSON: [&str; 2] = ["content-type: application/json", "x-content-type-options: nosniff"];
const TEXT: [&str; 2] = ["content-type: text/plain; charset=utf-8", "x-content-type-options: nosniff"];

struct Scene {
    agent: Agent,
    manifests: Manifests,
    nodes: [Node; 2],
    _lab: Lab,
}

/// A node with an agent that has its servers where kube-proxy has them, and a node beside it.
fn start() -> Result<Option<Scene>> {
    let Some(lab) = Lab::start()? else { return Ok(None) };
    let nodes = [lab.node("a")?, lab.node("b")?];
    let manifests = Manifests::new(lab.folder("manifests")?);
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    let servers = ["--healthz-bind-address", "0.0.0.0", "--metrics-bind-address", "127.0.0.1"];
    settings.further = servers.map(str::to_owned).into();
    let agent = Agent::start(&nodes[0], settings)?;
    Ok(Some(Scene { agent, manifests, nodes, _lab: lab }))
}

impl Scene {
    fn metrics(&self, path: &str) -> Result<http::Answer> {
        http::get(self.nodes[0].place(), (Ipv4Addr::LOCALHOST, METRICS).into(), path)
    }

    /// The value of a metric, with its labels as they are written.
    fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics("/metrics")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no {name} in:\n{text}"))?.parse().context("not a number")
    }
}

/// A load balancer, which is elsewhere, asks the node by either family.
#[test]
fn health_is_told_as_kube_proxy_tells_it() -> Result<()> {
    let Some(scene) = start()? else { return Ok(()) };
    let [node, neighbour] = &scene.nodes;
    let addresses: [SocketAddr; 2] = [(node.v4(), HEALTHZ).into(), (node.v6(), HEALTHZ).into()];
    for address in addresses {
        for path in ["/healthz", "/livez"] {
            let answer = http::get(neighbour.place(), address, path)?;
            answer.is(200, &JSON)?;
            let body: Value = serde_json::from_str(&answer.body)?;
            let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
            for times in [&body, &body["status"]["IPv4"], &body["status"]["IPv6"]] {
                ensure!(times["healthy"] == true && time(&times["lastUpdated"]).is_some(), "{body}");
            }
            ensure!(time(&body["currentTime"]).is_some(), "{body}");
            let eligible = body.get("nodeEligible");
            ensure!(eligible == (path == "/healthz").then_some(&Value::Bool(true)), "{body}");
        }
    }
    let metrics: SocketAddr = (node.v4(), METRICS).into();
    ensure!(http::get(neighbour.place(), metrics, "/metrics").is_err(), "metrics are served to others");
    Ok(())
}

#[test]
fn metrics_and_the_mode_are_told_to_the_node() -> Result<()> {
    let Some(scene) = start()? else { return Ok(()) };
    for (path, body) in [("/healthz", "ok"), ("/readyz", "ok"), ("/proxyMode", "ebpf")] {
        let answer = scene.metrics(path)?;
        answer.is(200, &TEXT)?;
        ensure!(answer.body == body, "{path}: {answer:?}");
    }
    scene.metrics("/metrics")?.is(200, &["content-type: text/plain; version=0.0.4; charset=utf-8"])?;
    http::get(scene.nodes[0].place(), (Ipv6Addr::LOCALHOST, HEALTHZ).into(), "/healthz")?.is(200, &JSON)?;
    ensure!(scene.metric("kubeproxy_proxy_healthz_total{code=\"200\"}")? == 1.0);
    Ok(())
}

/// A slice tells when its change began: that is how long the network took to be programmed.
#[test]
fn latency_counts_from_the_trigger() -> Result<()> {
    let Some(scene) = start()? else { return Ok(()) };
    let services = scene.metric("kubeproxy_sync_proxy_rules_service_changes_total")?;
    let service = Service::new("web", 10);
    scene.manifests.apply(&service)?;
    scene.agent.wait_for(&service)?;
    let slice = |trigger: Timestamp| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata:\n  name: more\n  labels: {{kubernetes.io/service-name: web}}\n\
             \x20 annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{trigger}\"}}\n\
             addressType: IPv4\nports: [{{name: tcp, port: 8080}}]\n\
             endpoints: [{{addresses: [10.244.9.9]}}]\n"
        )
    };
    scene.manifests.write("more.yaml", &slice(Timestamp::now()))?;
    const LATENCY: &str = "kubeproxy_network_programming_duration_seconds";
    let count = format!("{LATENCY}_count{{ip_family=\"IPv4\"}}");
    until("the slice to be counted", PATIENCE, || {
        ensure!(scene.metric(&count)? == 1.0, "it is not");
        Ok(())
    })?;
    let seconds = scene.metric(&format!("{LATENCY}_sum{{ip_family=\"IPv4\"}}"))?;
    ensure!(seconds > 0.0 && seconds < PATIENCE.as_secs_f64(), "{seconds} s");
    ensure!(scene.metric("kubeproxy_sync_proxy_rules_service_changes_total")? == services + 1.0);
    for kind in ["service", "endpoint"] {
        ensure!(scene.metric(&format!("kubeproxy_sync_proxy_rules_{kind}_changes_pending"))? == 0.0);
    }
    for moment in ["last", "last_queued"] {
        let at = scene.metric(&format!(
            "kubeproxy_sync_proxy_rules_{moment}_timestamp_seconds{{ip_family=\"IPv4\"}}"
        ))?;
        let ago = Timestamp::now().as_duration().as_secs_f64() - at;
        ensure!((0.0..60.0).contains(&ago), "{moment}: {ago} s ago");
    }
    Ok(())
}

/// A file as kubeadm leaves it is taken; what has no effect is named in one line; flags win.
#[test]
fn a_configuration_of_kube_proxy_is_taken() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let file = lab.folder("config")?.join("config.conf");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let settings = |flags: &[&str]| {
        let mut settings = Settings::new(&manifests, SocketLb::Off);
        let config = ["--config".to_owned(), file.display().to_string()];
        settings.further = config.into_iter().chain(flags.iter().map(|&flag| flag.to_owned())).collect();
        settings
    };
    fs::write(&file, format!("{head}mode: ipvs\nipvs: {{scheduler: lc, strictARP: false}}\n"))?;
    let agent = Agent::start(&node, settings(&["--proxy-mode", "iptables"]))?;
    let log = agent.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("without effect")).collect();
    ensure!(told.len() == 1 && told[0].contains("ipvs.scheduler") && told[0].contains("mode"), "{log}");
    ensure!(!told[0].contains("strictARP"), "{log}");
    drop(agent);
    fs::write(&file, format!("{head}oomScoreAdj: 5000\n"))?;
    let podnet = require::podnet().context("there is no podnet binary")?;
    let mut command = node.place().command("timeout")?;
    let output = command.arg("20").arg(podnet).args(agent::arguments(&node, &settings(&[]))).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let place = format!("{}:3:14", file.display());
    ensure!(output.status.code() == Some(1) && text.contains(&place) && text.contains("5000"), "{text}");
    Ok(())
}
