//! podnet against a real Kubernetes control plane: its Services, its EndpointSlices, its rights.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node as KubernetesNode, Pod as KubernetesPod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use tests::agent::{Agent, Settings, SocketLb, Source, service_port};
use tests::control_plane::ControlPlane;
use tests::kubernetes::{self as api, Rights};
use tests::lab::Lab;
use tests::node::Node;
use tests::peer::{self, Load, Server, Target, Transport};
use tests::pod::{Pod, PodKind};
use tests::require;
use tests::wait::{PATIENCE, until};

/// A cluster of two nodes without agents.
struct Cluster {
    plane: ControlPlane,
    admin: PathBuf,
    nodes: [Node; 2],
    client: Pod,
    lab: Lab,
}

impl Cluster {
    fn start() -> Result<Option<Self>> {
        let Some(programs) = require::control_plane() else { return Ok(None) };
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let plane = ControlPlane::start(&lab, &programs)?;
        let admin = plane.admin()?;
        api::wait_for_controllers(&plane, &admin)?;
        let nodes = [lab.node("a")?, lab.node("b")?];
        for node in &nodes {
            plane.run(&admin, async |client| api::register_node(client, node).await)?;
        }
        let client = nodes[0].pod("client", PodKind::Ptp)?;
        Ok(Some(Self { plane, admin, nodes, client, lab }))
    }

    /// The settings of an agent that has exactly the rights of the shipped manifest.
    fn settings(&self, socket_lb: SocketLb) -> Result<Settings> {
        let rights = shipped_rights()?;
        let token = self.plane.run(&self.admin, async |client| rights.grant(client, true).await)?;
        let kubeconfig = self.plane.kubeconfig_with_token("podnet", &token)?;
        Ok(Settings::from(Source::Kubeconfig(kubeconfig), socket_lb))
    }

    /// A pod with a server, known to the API.
    fn run_pod(&self, node: &Node, name: &str, app: &str) -> Result<(Pod, Server)> {
        let pod = node.pod(name, PodKind::Ptp)?;
        let server = Server::start(pod.place(), name)?;
        self.plane.run(&self.admin, async |client| api::run_pod(client, &pod, app).await)?;
        Ok((pod, server))
    }

    fn create_service(&self, app: &str) -> Result<Vec<IpAddr>> {
        self.plane.run(&self.admin, async |client| api::create_service(client, app).await)
    }
}

fn shipped_rights() -> Result<Rights> {
    Rights::of_manifest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/podnet.yaml"))
}

/// Waits until exactly the pods in `expected` answer at all addresses, by TCP and UDP.
fn wait_until_served_by(from: &Pod, addresses: &[IpAddr], expected: &[&Pod]) -> Result<()> {
    let expected: BTreeSet<_> = expected.iter().map(|pod| pod.name().to_owned()).collect();
    for address in addresses {
        for transport in [Transport::Tcp, Transport::ConnectedUdp] {
            let target = Target::new(transport, service_port(*address));
            until(&format!("{address} {transport:?} to be served by {expected:?}"), PATIENCE, || {
                let summary = peer::ask_often(from.place(), &target, 40)?;
                let answered: BTreeSet<_> = summary.servers.keys().cloned().collect();
                ensure!(summary.failed == 0 && answered == expected, "{summary:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Waits until connections are refused: the Service is there, and nobody behind it.
fn wait_until_refused(from: &Pod, addresses: &[IpAddr]) -> Result<()> {
    for address in addresses {
        let target = Target::new(Transport::Tcp, service_port(*address));
        until(&format!("{address} to refuse"), PATIENCE, || {
            let answer = peer::ask(from.place(), &target)?;
            ensure!(answer.as_ref().is_err_and(|failure| failure.kind == "ConnectionRefused"), "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// From the Service's creation over all that happens to its Pods to its deletion.
fn life_of_a_service(socket_lb: SocketLb) -> Result<()> {
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    let [a, b] = &cluster.nodes;
    let (plane, admin, client) = (&cluster.plane, &cluster.admin, &cluster.client);
    let settings = cluster.settings(socket_lb)?;
    let agents = [Agent::start(a, settings.clone())?, Agent::start(b, settings)?];
    let addresses = cluster.create_service("web")?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    wait_until_refused(client, &addresses)?;
    let (first, _first_server) = cluster.run_pod(b, "web-0", "web")?;
    wait_until_served_by(client, &addresses, &[&first])?;
    // Scaled up: on both nodes.
    let (second, _second_server) = cluster.run_pod(a, "web-1", "web")?;
    let (third, _third_server) = cluster.run_pod(b, "web-2", "web")?;
    wait_until_served_by(client, &addresses, &[&first, &second, &third])?;
    // Not ready, and ready again.
    plane.run(admin, async |client| api::set_ready(client, &second, false).await)?;
    wait_until_served_by(client, &addresses, &[&first, &third])?;
    plane.run(admin, async |client| api::set_ready(client, &second, true).await)?;
    wait_until_served_by(client, &addresses, &[&first, &second, &third])?;
    // Terminating: no new connections; and gone.
    plane.run(admin, async |client| api::delete_pod(client, &first, 600).await)?;
    wait_until_served_by(client, &addresses, &[&second, &third])?;
    plane.run(admin, async |client| api::delete_pod(client, &first, 0).await)?;
    wait_until_served_by(client, &addresses, &[&second, &third])?;
    // Scaled down to nothing, and deleted.
    for pod in [&second, &third] {
        plane.run(admin, async |client| api::delete_pod(client, pod, 0).await)?;
    }
    wait_until_refused(client, &addresses)?;
    plane.run(admin, async |client| api::delete_service(client, "web").await)?;
    for agent in &agents {
        until("the Service to be gone", PATIENCE, || {
            let frontends = agent.frontends()?;
            ensure!(frontends.iter().all(|frontend| !addresses.contains(&frontend.address)), "{frontends:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn cluster_life_of_a_service_tc() -> Result<()> {
    life_of_a_service(SocketLb::Off)
}

#[test]
fn cluster_life_of_a_service_socket() -> Result<()> {
    life_of_a_service(SocketLb::All)
}

/// While the API server is away the last state stays; what changed meanwhile is caught up with.
#[test]
fn cluster_outage_of_the_api_server() -> Result<()> {
    let Some(mut cluster) = Cluster::start()? else { return Ok(()) };
    let node = cluster.nodes[0].clone();
    let settings = cluster.settings(SocketLb::Off)?;
    let mut agent = Agent::start(&node, settings)?;
    let addresses = cluster.create_service("web")?;
    let (first, _first_server) = cluster.run_pod(&node, "web-0", "web")?;
    wait_until_served_by(&cluster.client, &addresses, &[&first])?;

    let target = Target::new(Transport::Tcp, service_port(addresses[0]));
    let load = Load::start(cluster.client.place(), &target)?;
    let lines = agent.log().lines().count();
    cluster.plane.kill_api_server()?;
    thread::sleep(Duration::from_secs(6));
    let logged = agent.log().lines().count() - lines;
    ensure!((1..=2).contains(&logged), "{logged} lines in 6 s of outage:\n{}", agent.log());
    ensure!(agent.process().ended()?.is_none(), "the agent gave up:\n{}", agent.log());
    wait_until_served_by(&cluster.client, &addresses, &[&first])?;

    cluster.plane.start_api_server()?;
    let (second, _second_server) = cluster.run_pod(&node, "web-1", "web")?;
    wait_until_served_by(&cluster.client, &addresses, &[&first, &second])?;
    let summary = load.stop()?;
    ensure!(summary.failed == 0 && summary.ok > 100, "{summary:?}\n{}", agent.log());
    Ok(())
}

/// An agent without rights says so, names what it may not do, and goes on once it may.
#[test]
fn cluster_rights_denied_and_granted() -> Result<()> {
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    let (plane, admin) = (&cluster.plane, &cluster.admin);
    let rights = shipped_rights()?;
    let token = plane.run(admin, async |client| rights.grant(client, false).await)?;
    let kubeconfig = plane.kubeconfig_with_token("podnet", &token)?;
    let settings = Settings::from(Source::Kubeconfig(kubeconfig), SocketLb::Off);
    let addresses = cluster.create_service("web")?;
    let node = &cluster.nodes[0];
    let (pod, _server) = cluster.run_pod(node, "web-0", "web")?;
    let agent = Agent::spawn(node, settings)?;
    agent.wait_for_log("services is forbidden").context("it does not say what it may not do")?;
    // One line for each kind, however often it tries.
    thread::sleep(Duration::from_secs(6));
    let told = agent.log().lines().filter(|line| line.contains("forbidden")).count();
    ensure!(told <= 5, "{told} lines in 6 s without rights:\n{}", agent.log());
    ensure!(!agent.log().contains("may list and watch objects"), "it claims rights:\n{}", agent.log());
    plane.run(admin, async |client| rights.bind(client).await)?;
    wait_until_served_by(&cluster.client, &addresses, &[&pod])
        .with_context(|| format!("in lab {}:\n{}", cluster.lab.id(), agent.log()))
}

/// A health check whose port is taken is an Event on its Service, written with the shipped rights.
#[test]
fn cluster_health_check_port_that_is_taken() -> Result<()> {
    const HEALTH_CHECK: u16 = 32_100;
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    let node = &cluster.nodes[0];
    let _squatter = Server::at_port(node.place(), "squatter", HEALTH_CHECK)?;
    let agent = Agent::start(node, cluster.settings(SocketLb::Off)?)?;
    let (plane, admin) = (&cluster.plane, &cluster.admin);
    plane.run(admin, async |client| api::create_checked_service(client, "web", HEALTH_CHECK).await)?;
    until("the Event", PATIENCE, || {
        plane.run(admin, async |client| {
            let events: Api<Event> = Api::namespaced(client, api::NAMESPACE);
            let events = events.list(&ListParams::default()).await?;
            let found = events.iter().find(|event| {
                let about = event.regarding.as_ref().and_then(|about| about.name.as_deref());
                event.reason.as_deref() == Some("FailedToStartServiceHealthcheck") && about == Some("web")
            });
            let event = found.with_context(|| format!("no such Event:\n{}", agent.log()))?;
            let note = event.note.as_deref().unwrap_or_default();
            ensure!(note.contains(node.name()) && note.contains("32100"), "{note}");
            ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
            Ok(())
        })
    })
}

/// The shipped rights are enough to see what podnet reads, and no more.
#[test]
fn cluster_shipped_rights() -> Result<()> {
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    let Source::Kubeconfig(kubeconfig) = cluster.settings(SocketLb::Off)?.source else {
        bail!("an agent of a cluster has a kubeconfig")
    };
    cluster.create_service("web")?;
    let (pod, _server) = cluster.run_pod(&cluster.nodes[1], "web-0", "web")?;
    cluster.plane.run(&kubeconfig, async |client| {
        let everything = ListParams::default();
        let slices: Api<EndpointSlice> = Api::all(client.clone());
        let services: Api<Service> = Api::all(client.clone());
        let nodes: Api<KubernetesNode> = Api::all(client.clone());
        ensure!(services.list(&everything).await?.iter().any(|service| service.name_any() == "web"));
        let address = pod.v4().to_string();
        let deadline = Instant::now() + PATIENCE;
        while !slices.list(&everything).await?.iter().any(|slice| has(slice, &address)) {
            ensure!(Instant::now() < deadline, "no EndpointSlice with {address}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let forbidden =
            |result: kube::Result<()>| matches!(result, Err(kube::Error::Api(status)) if status.code == 403);
        ensure!(!nodes.list(&everything).await?.items.is_empty(), "it sees no Node");
        let deletion = nodes.delete(cluster.nodes[0].name(), &DeleteParams::default()).await;
        ensure!(forbidden(deletion.map(drop)), "it may delete Nodes");
        let cidrs: Api<ServiceCIDR> = Api::all(client.clone());
        ensure!(!cidrs.list(&everything).await?.items.is_empty(), "it sees no ServiceCIDR");
        let secrets: Api<Secret> = Api::all(client.clone());
        ensure!(forbidden(secrets.list(&everything).await.map(drop)), "it may read Secrets");
        let pods: Api<KubernetesPod> = Api::namespaced(client.clone(), api::NAMESPACE);
        let here = ListParams::default().fields(&format!("spec.nodeName={}", cluster.nodes[1].name()));
        ensure!(pods.list(&here).await?.iter().any(|found| found.name_any() == pod.name()));
        let deletion = pods.delete(pod.name(), &DeleteParams::default()).await;
        ensure!(forbidden(deletion.map(drop)), "it may delete Pods");
        let services: Api<Service> = Api::namespaced(client, api::NAMESPACE);
        let deletion = services.delete("web", &DeleteParams::default()).await;
        ensure!(forbidden(deletion.map(drop)), "it may delete Services");
        Ok(())
    })
}

fn has(slice: &EndpointSlice, address: &str) -> bool {
    let endpoints = slice.endpoints.iter().flatten();
    endpoints.flat_map(|endpoint| &endpoint.addresses).any(|found| found == address)
}

/// What `dig` says in a pod: the status of the answer, and its records in short. Resolvers send no cookies, with which a
/// query is not answered in the kernel.
fn dig(from: &Pod, server: IpAddr, question: &str) -> Result<(String, Vec<String>)> {
    let ask = |more: &[&str]| -> Result<String> {
        let mut dig = from.place().command("dig")?;
        dig.arg(format!("@{server}"))
            .args(question.split(' '))
            .args(["+tries=1", "+time=2", "+nocookie"])
            .args(more);
        let output = dig.output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let status = ask(&[])?;
    let status = status.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none");
    let mut records: Vec<String> = ask(&["+short"])?.lines().map(str::to_owned).collect();
    records.sort();
    Ok((status.to_owned(), records))
}

/// Names follow the API server's objects, with the rights of the shipped manifest: in the kernel of the client's node,
/// and by the server of another one.
#[test]
fn cluster_names_follow_its_objects() -> Result<()> {
    let Some(cluster) = Cluster::start()? else { return Ok(()) };
    let [a, b] = &cluster.nodes;
    let (plane, admin, client) = (&cluster.plane, &cluster.admin, &cluster.client);
    plane.run(admin, async |api| api::run_pod(api, client, "client").await)?;
    let dns = plane.run(admin, async |api| {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "dns"},
            "spec": {"ports": [{"name": "dns", "protocol": "UDP", "port": 53}]},
        }))?;
        let created =
            Api::<Service>::namespaced(api, "default").create(&PostParams::default(), &service).await?;
        let address = created.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
        Ok(address.parse::<IpAddr>()?)
    })?;
    let settings = cluster.settings(SocketLb::Off)?;
    let with = |flags: &[&str]| {
        let mut settings = settings.clone();
        settings.further = flags.iter().map(|&flag| flag.to_owned()).collect();
        settings
    };
    let in_kernel = Agent::start(a, with(&["--dns", "assist", "--dns-service", "default/dns"]))?;
    let listen = b.v4().to_string();
    let server =
        Agent::start(b, with(&["--dns", "serve", "--dns-listen", &listen, "--dns-upstream", "192.0.2.53"]))?;
    let addresses = cluster.create_service("web")?;
    let (pod, _serving) = cluster.run_pod(b, "web-0", "web")?;
    let servers = [(dns, &in_kernel), (b.v4().into(), &server)];

    let is = |question: &str, status: &str, records: &[String], who: &[(IpAddr, &Agent)]| -> Result<()> {
        who.iter().try_for_each(|(server, agent)| {
            until(&format!("{question} of {server}"), PATIENCE, || {
                let (said, found) = dig(client, *server, question)?;
                let shown =
                    || agent.podnet(&["status"]).map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
                ensure!(said == status && found == records, "{said} {found:?}\n{}{:?}", agent.log(), shown());
                Ok(())
            })
        })
    };
    let name = "web.default.svc.cluster.local";
    for address in &addresses {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        is(&format!("{name} {kind}"), "NOERROR", &[address.to_string()], &servers)?;
    }
    is(&format!("{name} MX"), "NOERROR", &[], &servers)?;
    is("kube-system.svc.cluster.local A", "NOERROR", &[], &servers)?;
    for absent in
        ["nobody.default.svc.cluster.local", "example.com.nowhere.svc.cluster.local", "x.cluster.local"]
    {
        is(&format!("{absent} A"), "NXDOMAIN", &[], &servers)?;
    }
    let by_server = &servers[1..];
    is(&format!("web-0.{name} A"), "NOERROR", &[pod.v4().to_string()], by_server)?;
    is(&format!("_tcp._tcp.{name} SRV"), "NOERROR", &[format!("0 50 80 {name}.")], by_server)?;
    let reverse = pod.v4().octets().map(|byte| byte.to_string());
    let [first, second, third, fourth] = reverse;
    is(
        &format!("{fourth}.{third}.{second}.{first}.in-addr.arpa PTR"),
        "NOERROR",
        &[format!("web-0.{name}.")],
        by_server,
    )?;
    plane.run(admin, async |api| api::delete_service(api, "web").await)?;
    is(&format!("{name} A"), "NXDOMAIN", &[], &servers)?;
    for agent in [&in_kernel, &server] {
        ensure!(!agent.log().contains("is forbidden"), "{}", agent.log());
    }
    Ok(())
}
