//! What kube-proxy's users rely on beside traffic: semantics §7.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tests::agent::{self, Agent, Settings, SocketLb};
use tests::http;
use tests::lab::Lab;
use tests::manifests::{Manifests, Service};
use tests::node::Node;
use tests::peer;
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

const HEALTH_CHECK: u16 = 32_100;

/// A Service with a health check, and one endpoint on each node in a state.
fn checked_service(port: u16, here: &str, elsewhere: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.10, \
         healthCheckNodePort: {port}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n\
         - {{addresses: [10.244.9.1], nodeName: a, conditions: {{{here}}}}}\n\
         - {{addresses: [10.244.9.2], nodeName: b, conditions: {{{elsewhere}}}}}\n"
    )
}

const READY: &str = "ready: true";
const UNREADY: &str = "ready: false";
const TERMINATING: &str = "ready: false, serving: true, terminating: true";

impl Scene {
    /// Waits until the health check answers a load balancer, at both families' addresses, as it should.
    fn wait_for_health_check(&self, code: u16, endpoints: usize) -> Result<()> {
        let [node, neighbour] = &self.nodes;
        let weight = format!("x-load-balancing-endpoint-weight: {endpoints}");
        let addresses: [SocketAddr; 2] = [(node.v4(), HEALTH_CHECK).into(), (node.v6(), HEALTH_CHECK).into()];
        for address in addresses {
            until(&format!("{endpoints} endpoints at {address}"), PATIENCE, || {
                let answer = http::get(neighbour.place(), address, "/")?;
                answer.is(code, &[JSON[0], JSON[1], &weight])?;
                let body: Value = serde_json::from_str(&answer.body)?;
                let expected = json!({
                    "service": {"namespace": "shop", "name": "web"},
                    "localEndpoints": endpoints,
                    "serviceProxyHealthy": true,
                });
                ensure!(body == expected, "{body}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn wait_until_unanswered(&self) -> Result<()> {
        let [node, neighbour] = &self.nodes;
        until("the port to be closed", PATIENCE, || {
            let answer = http::get(neighbour.place(), (node.v4(), HEALTH_CHECK).into(), "/");
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
    }
}

/// Load balancers send to nodes with ready endpoints only.
#[test]
fn health_check_node_port_follows_local_endpoints() -> Result<()> {
    let Some(scene) = start()? else { return Ok(()) };
    for (here, elsewhere, code, endpoints) in [
        (UNREADY, READY, 503, 0),
        (READY, READY, 200, 1),
        // It may still serve, and is to get nothing new.
        (TERMINATING, UNREADY, 503, 0),
        (READY, UNREADY, 200, 1),
    ] {
        scene.manifests.write("web.yaml", &checked_service(HEALTH_CHECK, here, elsewhere))?;
        scene.wait_for_health_check(code, endpoints)?;
    }
    scene.manifests.write("web.yaml", &checked_service(HEALTH_CHECK + 1, READY, READY))?;
    scene.wait_until_unanswered()?;
    scene.manifests.write("web.yaml", &checked_service(HEALTH_CHECK, READY, READY))?;
    scene.wait_for_health_check(200, 1)?;
    scene.manifests.write("web.yaml", "# nothing\n")?;
    scene.wait_until_unanswered()
}

/// A port that is taken is told once, and taken over when it is free.
#[test]
fn health_check_node_port_that_is_taken() -> Result<()> {
    let Some(scene) = start()? else { return Ok(()) };
    let squatter = peer::Server::at_port(scene.nodes[0].place(), "squatter", HEALTH_CHECK)?;
    scene.manifests.write("web.yaml", &checked_service(HEALTH_CHECK, READY, READY))?;
    scene.agent.wait_for_log("a health check cannot be served")?;
    thread::sleep(Duration::from_secs(3));
    let log = scene.agent.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("health check")).collect();
    ensure!(told.len() == 1 && told[0].contains("shop/web") && told[0].contains("32100"), "{log}");
    drop(squatter);
    scene.wait_for_health_check(200, 1)
}
