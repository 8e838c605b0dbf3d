//! Names of the cluster, answered in the kernel: the contract's rows, by real resolvers in real pods, with no DNS server
//! anywhere unless a test says so.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tests::agent::{Agent, Settings, SocketLb};
use tests::lab::Lab;
use tests::manifests::Manifests;
use tests::node::Node;
use tests::pod::{Pod, PodKind};
use tests::wait::{PATIENCE, until};

/// The cluster's DNS, in both families.
const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// How long a client waits for an answer that is to come, and for one that is not.
const ANSWER: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);

/// A node with a pod that asks, and one that the cluster's DNS would be in.
struct Scene {
    agent: Agent,
    client: Pod,
    dns: Pod,
    manifests: Manifests,
    resolv_conf: PathBuf,
    _node: Node,
    _lab: Lab,
}

impl Scene {
    fn start(kind: PodKind, socket_lb: SocketLb) -> Result<Option<Self>> {
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let node = lab.node("a")?;
        let (client, dns) = (node.pod("client", kind)?, node.pod("dns", kind)?);
        let manifests = Manifests::new(lab.folder("manifests")?);
        let namespaces = ["kube-system", "shop", "park"]
            .map(|name| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
        manifests.write("namespaces.yaml", &namespaces.concat())?;
        manifests.write("dns.yaml", &dns_service(&dns))?;
        manifests.write("client.yaml", &pod(&client, ""))?;
        manifests.write("web.yaml", &service("web", &["10.96.0.20", "fd00:10:96::20"]))?;
        manifests.write("db.yaml", &headless("db", &["10.244.9.1", "10.244.9.2", "10.244.9.3"]))?;
        let resolv_conf = lab.folder("etc")?.join("resolv.conf");
        let search = "shop.svc.cluster.local svc.cluster.local cluster.local";
        let text = format!("nameserver {}\nsearch {search}\noptions ndots:5 timeout:1 attempts:1\n", DNS[0]);
        fs::write(&resolv_conf, text)?;
        let mut settings = Settings::new(&manifests, socket_lb);
        settings.further = ["--dns", "assist", "--dns-ttl", "17"].map(str::to_owned).to_vec();
        let agent = Agent::start(&node, settings)?;
        Ok(Some(Self { agent, client, dns, manifests, resolv_conf, _node: node, _lab: lab }))
    }

    /// A socket of the client's.
    fn socket(&self, server: &str) -> Result<UdpSocket> {
        let server: SocketAddr = (server.parse::<IpAddr>()?, 53).into();
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        self.client.place().netns.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(ANSWER))?;
            Ok(socket)
        })
    }

    /// What the client is told.
    fn ask(&self, name: &str, kind: RecordType) -> Result<Message> {
        let socket = self.socket(DNS[0])?;
        socket.send(&query(name, kind)?)?;
        receive(&socket).with_context(|| format!("{name} {kind}"))
    }

    /// Waits until the client is told the addresses of a name.
    fn wait_for(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let expected =
            addresses.iter().map(|address| Ok(address.parse()?)).collect::<Result<BTreeSet<_>>>()?;
        until(&format!("{name} to be {addresses:?}"), PATIENCE, || {
            let answer = self.ask(name, RecordType::A)?;
            ensure!(answer.metadata.authoritative, "the cluster's DNS has answered");
            let found = addresses_in(&answer);
            ensure!(found == expected, "it is {found:?}");
            Ok(())
        })
        .with_context(|| self.agent.last_words())
    }

    /// Whether it is the cluster's DNS that answers.
    fn is_left_alone(&self, name: &str, kind: RecordType) -> Result<bool> {
        Ok(self.ask(name, kind)?.metadata.response_code == ResponseCode::Refused)
    }

    /// What the C library finds for a name.
    fn getent(&self, database: &str, name: &str) -> Result<BTreeSet<IpAddr>> {
        let script = "mount --bind \"$1\" /etc/resolv.conf && exec getent \"$2\" \"$3\"";
        let mut command = self.client.place().command("unshare")?;
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&self.resolv_conf).args([database, name]);
        let output = command.output().context("cannot run getent")?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
    }

    /// How often something was counted where queries are answered.
    fn count(&self, reason: &str) -> Result<u64> {
        let output = self.agent.podnet(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        status["counters"]["dns"][reason].as_u64().with_context(|| format!("no count of {reason}: {status}"))
    }
}

fn metadata(name: &str) -> String {
    format!("metadata: {{name: {name}, namespace: shop}}")
}

fn service(name: &str, ips: &[&str]) -> String {
    format!(
        "apiVersion: v1\nkind: Service\n{}\nspec: {{clusterIP: \"{}\", clusterIPs: {ips:?}, ports: [{{port: 80}}]}}\n",
        metadata(name),
        ips[0]
    )
}

fn headless(name: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<_> =
        endpoints.iter().map(|address| format!("{{addresses: [\"{address}\"]}}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\n{}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}, \
         service.kubernetes.io/headless: \"\"}}}}\n\
         addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{}]\n",
        metadata(name),
        endpoints.join(", ")
    )
}

fn dns_service(pod: &Pod) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\n\
         spec: {{clusterIP: {}, clusterIPs: {DNS:?}, ports: [{{name: dns, port: 53, protocol: UDP}}]}}\n",
        DNS[0]
    );
    for (kind, address) in ["IPv4", "IPv6"].iter().zip(pod.addresses()) {
        yaml.push_str(&format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: dns-{}, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
             addressType: {kind}\nports: [{{name: dns, port: 53, protocol: UDP}}]\n\
             endpoints: [{{addresses: [\"{address}\"]}}]\n",
            kind.to_lowercase()
        ));
    }
    yaml
}

fn pod(pod: &Pod, annotations: &str) -> String {
    let ips = pod.addresses().map(|ip| format!("{{ip: \"{ip}\"}}")).join(", ");
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {}, namespace: park, annotations: {{{annotations}}}}}\n\
         spec: {{nodeName: {}, containers: []}}\nstatus: {{podIPs: [{ips}]}}\n",
        pod.name(),
        pod.node().name()
    )
}

fn query(name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::new(0x1234 + u16::from(kind), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    message.set_edns(Edns::new());
    Ok(message.to_vec()?)
}

fn receive(socket: &UdpSocket) -> Result<Message> {
    let mut bytes = [0; 1500];
    let length = socket.recv(&mut bytes).context("no answer")?;
    Ok(Message::from_vec(&bytes[..length])?)
}

fn addresses_in(message: &Message) -> BTreeSet<IpAddr> {
    let of = |data: &RData| match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    };
    message.answers.iter().filter_map(|record| of(&record.data)).collect()
}

/// A server in the place of the cluster's DNS, which refuses all queries.
struct Server {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(pod: &Pod) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in pod.addresses() {
            let socket = pod.place().netns.run(|| Ok(UdpSocket::bind((address, 53))?))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let end = end.clone();
            threads.push(thread::spawn(move || {
                let mut bytes = [0; 1500];
                while !end.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                    let Some(flags) = bytes.get_mut(2..4) else { continue };
                    flags.copy_from_slice(&[0x81, 0x85]);
                    // A client that is gone is not the server's business.
                    let _ = socket.send_to(&bytes[..length], from);
                }
            }));
        }
        Ok(Self { end, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Rows 2, 9, 21, 23, 26 and 39: no process answers, so the kernel has.
fn answers(kind: PodKind, socket_lb: SocketLb) -> Result<()> {
    let Some(scene) = Scene::start(kind, socket_lb)? else { return Ok(()) };
    scene.wait_for("web.shop.svc.cluster.local.", &["10.96.0.20"])?;
    for server in DNS {
        // What getaddrinfo() does: both families at once, by one socket.
        let socket = scene.socket(server)?;
        for _ in 0..100 {
            let asked = [RecordType::A, RecordType::AAAA];
            for kind in asked {
                socket.send(&query("web.shop.svc.cluster.local.", kind)?)?;
            }
            for (kind, address) in asked.into_iter().zip(["10.96.0.20", "fd00:10:96::20"]) {
                let answer = receive(&socket).with_context(|| format!("{kind} of {server}"))?;
                ensure!(answer.metadata.id == 0x1234 + u16::from(kind), "{answer:?}");
                ensure!(addresses_in(&answer) == BTreeSet::from([address.parse()?]), "{answer:?}");
                ensure!(answer.answers[0].ttl == 17 && answer.metadata.authoritative, "{answer:?}");
            }
        }
    }
    let answer = scene.ask("db.shop.svc.cluster.local.", RecordType::A)?;
    ensure!(answer.answers.len() == 3 && addresses_in(&answer).len() == 3, "{answer:?}");
    for (name, code) in [
        ("db.shop.svc.cluster.local.", ResponseCode::NoError),
        ("park.svc.cluster.local.", ResponseCode::NoError),
        ("absent.shop.svc.cluster.local.", ResponseCode::NXDomain),
        ("example.com.shop.svc.cluster.local.", ResponseCode::NXDomain),
        ("example.com.svc.cluster.local.", ResponseCode::NXDomain),
        ("example.com.cluster.local.", ResponseCode::NXDomain),
    ] {
        let answer = scene.ask(name, RecordType::AAAA)?;
        let soa = answer.authorities.first().map(|record| record.record_type());
        ensure!(answer.metadata.response_code == code && soa == Some(RecordType::SOA), "{name}: {answer:?}");
    }
    // Nobody is there for what the kernel leaves alone.
    let socket = scene.socket(DNS[0])?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.send(&query("example.com.", RecordType::A)?)?;
    ensure!(receive(&socket).is_err(), "somebody has answered");

    let both = BTreeSet::from(["10.96.0.20".parse()?, "fd00:10:96::20".parse()?]);
    for name in ["web", "web.shop", "WEB.shop.svc", "web.shop.svc.cluster.local"] {
        ensure!(scene.getent("ahosts", name)? == both, "{name}: {:?}", scene.getent("ahosts", name));
    }
    ensure!(scene.getent("ahostsv4", "db")?.len() == 3);
    ensure!(scene.count("dns_answered")? >= 400 && scene.count("dns_no_name")? >= 4);
    ensure!(scene.count("dns_other_zone")? == 1 && scene.count("dns_no_data")? >= 2);
    Ok(())
}

#[test]
fn pods_are_answered_tc_ptp() -> Result<()> {
    answers(PodKind::Ptp, SocketLb::Off)
}

#[test]
fn pods_are_answered_tc_bridge() -> Result<()> {
    answers(PodKind::Bridge, SocketLb::Off)
}

/// The socket layer has chosen a backend before there is a packet: getent runs in the pod's cgroup.
#[test]
fn pods_are_answered_socket() -> Result<()> {
    answers(PodKind::Ptp, SocketLb::All)
}

/// What is not known for certain goes to the cluster's DNS, and nothing else does.
#[test]
fn other_queries_go_to_the_clusters_dns() -> Result<()> {
    let Some(scene) = Scene::start(PodKind::Ptp, SocketLb::Off)? else { return Ok(()) };
    let _server = Server::start(&scene.dns)?;
    scene.wait_for("web.shop.svc.cluster.local.", &["10.96.0.20"])?;
    for (name, kind) in [
        ("example.com.", RecordType::A),
        ("web.shop.svc.cluster.local.", RecordType::SRV),
        ("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
        ("10-244-9-1.db.shop.svc.cluster.local.", RecordType::A),
        ("cluster.local.", RecordType::SOA),
        ("1.0.96.10.in-addr.arpa.", RecordType::PTR),
    ] {
        ensure!(scene.is_left_alone(name, kind)?, "{name} {kind}");
    }
    // One socket may be answered by both.
    let socket = scene.socket(DNS[1])?;
    for name in ["example.com.", "web.shop.svc.cluster.local.", "example.com.", "web.shop.svc.cluster.local."]
    {
        socket.send(&query(name, RecordType::A)?)?;
        let answer = receive(&socket)?;
        ensure!(answer.metadata.authoritative == name.starts_with("web"), "{answer:?}");
    }
    Ok(())
}

/// Names come and go with their Services, and who is to be answered with policies and annotations.
#[test]
fn answers_follow_the_cluster() -> Result<()> {
    let Some(scene) = Scene::start(PodKind::Ptp, SocketLb::Off)? else { return Ok(()) };
    let _server = Server::start(&scene.dns)?;
    let (web, new) = ("web.shop.svc.cluster.local.", "new.shop.svc.cluster.local.");
    scene.wait_for(web, &["10.96.0.20"])?;
    scene.wait_for("db.shop.svc.cluster.local.", &["10.244.9.1", "10.244.9.2", "10.244.9.3"])?;
    ensure!(scene.ask(new, RecordType::A)?.metadata.response_code == ResponseCode::NXDomain);
    scene.manifests.write("new.yaml", &service("new", &["10.96.0.30"]))?;
    scene.wait_for(new, &["10.96.0.30"])?;
    scene.manifests.write("new.yaml", &service("new", &["10.96.0.31"]))?;
    scene.wait_for(new, &["10.96.0.31"])?;
    scene.manifests.write("db.yaml", &headless("db", &["10.244.9.2"]))?;
    scene.wait_for("db.shop.svc.cluster.local.", &["10.244.9.2"])?;
    fs::remove_file(scene.manifests.folder().join("new.yaml"))?;
    scene.wait_for(new, &[])?;

    let wait = |what: &str, left_alone: bool| {
        until(what, PATIENCE, || {
            ensure!(scene.is_left_alone(web, RecordType::A)? == left_alone, "not yet");
            Ok(())
        })
        .with_context(|| scene.agent.last_words())
    };
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: deny, namespace: park}\nspec: {podSelector: {}, policyTypes: [Egress]}\n";
    scene.manifests.write("policy.yaml", policy)?;
    wait("pods under a policy to be left alone", true)?;
    scene.manifests.write("policy.yaml", &policy.replace("Egress", "Ingress"))?;
    wait("pods to be answered again", false)?;
    scene.manifests.write("client.yaml", &pod(&scene.client, "podnet.io/dns: \"off\""))?;
    wait("a pod that asks for it to be left alone", true)?;
    scene.manifests.write("client.yaml", &pod(&scene.client, ""))?;
    wait("it to be answered again", false)
}

/// What an agent has said of Services holds on; that there are no others does not.
#[test]
fn answers_outlive_the_agent() -> Result<()> {
    let Some(mut scene) = Scene::start(PodKind::Ptp, SocketLb::Off)? else { return Ok(()) };
    let server = Server::start(&scene.dns)?;
    let (web, absent) = ("web.shop.svc.cluster.local.", "absent.shop.svc.cluster.local.");
    scene.wait_for(web, &["10.96.0.20"])?;
    scene.wait_for(absent, &[])?;
    scene.agent.process().kill()?;
    scene.wait_for(web, &["10.96.0.20"])?;
    ensure!(scene.ask(absent, RecordType::A)?.metadata.response_code == ResponseCode::NXDomain);
    until("names that nobody knows of to be left alone", Duration::from_secs(15), || {
        ensure!(scene.is_left_alone(absent, RecordType::A)?, "not yet");
        Ok(())
    })?;
    drop(server);
    scene.wait_for(web, &["10.96.0.20"])?;
    ensure!(scene.ask("db.shop.svc.cluster.local.", RecordType::AAAA)?.authorities.len() == 1);
    // The next agent goes on where the last one has stopped.
    scene.agent = scene.agent.restart()?;
    scene.wait_for(absent, &[])?;
    if scene.getent("ahosts", "nothing-of-this-name")? != BTreeSet::new() {
        bail!("a name that there is not has addresses");
    }
    Ok(())
}
