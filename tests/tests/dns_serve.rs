//! The cluster's names as real resolvers see them, from pods: `podnet agent --dns serve`.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, Settings, SocketLb};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, Service};
use tests::node::Node;
use tests::pod::{Pod, PodKind};
use tests::process::Place;
use tests::scene::address_of;
use tests::wait::{PATIENCE, until};

/// Two clusters: podnet on the first one's node serves its names to the pod, and asks the second one's for theirs.
struct Names {
    agent: Agent,
    _other: Agent,
    lab: Lab,
    node: Node,
    pod: Pod,
    manifests: Manifests,
}

/// The domain of the other cluster.
const OTHER: &str = "other.test";

impl Names {
    /// `None` if the test is to be skipped.
    fn start() -> Result<Option<Self>> {
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let (node, other) = (lab.node("a")?, lab.node("b")?);
        let pod = node.pod("client", PodKind::Ptp)?;

        let others = Manifests::new(lab.folder("others")?);
        others.apply(&Service::new("far", 77))?;
        let serve = |manifests, more: &[String]| {
            let mut settings = Settings::new(manifests, SocketLb::Off);
            settings.further = ["--dns", "serve"].map(str::to_owned).to_vec();
            settings.further.extend(more.iter().cloned());
            settings
        };
        let flag = |name: &str, value: String| [name.to_owned(), value];
        let nobody = flag("--dns-upstream", "192.0.2.53".to_owned());
        let flags = [
            flag("--dns-listen", other.v4().to_string()),
            flag("--cluster-domain", OTHER.to_owned()),
            nobody,
        ];
        let far = Agent::start(&other, serve(&others, &flags.concat()))?;

        let manifests = Manifests::new(lab.folder("manifests")?);
        manifests.apply(&Service::new("web", 10).with([&pod]))?;
        manifests.write("more.yaml", &more())?;
        let flags = [
            flag("--dns-listen", format!("{},{}", node.v4(), node.v6())),
            flag("--dns-upstream", other.v4().to_string()),
        ];
        let agent = Agent::start(&node, serve(&manifests, &flags.concat()))?;
        Ok(Some(Self { agent, _other: far, lab, node, pod, manifests }))
    }

    /// What `dig` prints in the pod, asking the node at its address of a family.
    fn dig_by(&self, family: Family, words: &str) -> Result<String> {
        let server = match family {
            Family::V4 => self.node.v4().to_string(),
            Family::V6 => self.node.v6().to_string(),
        };
        let words = words.split(' ').map(str::to_owned);
        output(self.pod.place(), "dig", words.chain([format!("@{server}"), "+tries=1".to_owned()]))
    }

    fn dig(&self, words: &str) -> Result<String> {
        self.dig_by(Family::V4, words)
    }

    /// The lines that `dig +short` prints, sorted.
    fn short(&self, words: &str) -> Result<Vec<String>> {
        let mut lines: Vec<String> =
            self.dig(&format!("+short {words}"))?.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }

    /// What `getent` prints in the pod, for which the node is the DNS server, as the kubelet writes it.
    fn getent(&self, words: &str) -> Result<String> {
        let path = self.lab.folder("files")?.join("resolv.conf");
        let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
        let text = format!("nameserver {}\n{search}\noptions ndots:5\n", self.node.v4());
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let script = format!("mount --bind {} /etc/resolv.conf && exec getent {words}", path.display());
        let arguments = ["--mount", "sh", "-c", &script].map(str::to_owned);
        output(self.pod.place(), "unshare", arguments)
    }
}

/// A headless Service with many endpoints, one with names, and an alias.
fn more() -> String {
    let mut yaml = headless("many", (1..=200).map(|host| format!("{{addresses: [10.244.50.{host}]}}")));
    let named = ["db-0", "db-1"].into_iter().zip(1..);
    yaml += &headless(
        "db",
        named.map(|(name, host)| {
            format!(
                "{{addresses: [10.244.60.{host}], hostname: {name}, targetRef: {{kind: Pod, name: {name}}}}}"
            )
        }),
    );
    yaml + &format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: alias, namespace: default}}\n\
         spec: {{type: ExternalName, externalName: far.default.svc.{OTHER}}}\n"
    )
}

fn headless(name: &str, endpoints: impl Iterator<Item = String>) -> String {
    let endpoints: String = endpoints.map(|endpoint| format!("- {endpoint}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{clusterIP: None, ports: [{{name: sql, port: 5432}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: {name}, service.kubernetes.io/headless: ''}}\naddressType: IPv4\n\
         ports: [{{name: sql, port: 5432}}]\nendpoints:\n{endpoints}---\n"
    )
}

/// What a program prints at a place, in which it must succeed.
fn output(place: &Place, program: &str, arguments: impl IntoIterator<Item = String>) -> Result<String> {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let output = place.command(program)?.args(&arguments).output().context("cannot run it")?;
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {arguments:?}: {}\n{printed}{errors}", output.status);
    Ok(printed.into_owned())
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// Rows 2, 4, 8, 9, 12, 15, 16, 19, 21 and 23.
#[test]
fn dns_serve_names_are_answered_by_udp_and_tcp_of_both_families() -> Result<()> {
    let Some(names) = Names::start()? else { return Ok(()) };
    for transport in ["+notcp", "+tcp"] {
        for family in Family::ALL {
            let answer = names.dig_by(family, &format!("{transport} web.default.svc.cluster.local AAAA"))?;
            contains(&answer, &["status: NOERROR", "flags: qr aa rd;", "fd00:10:96::10"]);
        }
        let short = |question: &str| names.short(&format!("{transport} {question}"));
        assert_eq!(short("web.default.svc.cluster.local A")?, ["10.96.0.10"]);
        assert_eq!(short("db.default.svc.cluster.local A")?, ["10.244.60.1", "10.244.60.2"]);
        assert_eq!(short("db-1.db.default.svc.cluster.local A")?, ["10.244.60.2"]);
        assert_eq!(
            short("_tcp._tcp.web.default.svc.cluster.local SRV")?,
            ["0 50 80 web.default.svc.cluster.local."]
        );
        assert_eq!(
            short("_sql._tcp.db.default.svc.cluster.local SRV")?,
            ["0 50 5432 db-0.db.default.svc.cluster.local.", "0 50 5432 db-1.db.default.svc.cluster.local."]
        );
        assert_eq!(short("-x 10.96.0.10")?, ["web.default.svc.cluster.local."]);
        assert_eq!(short("-x fd00:10:96::10")?, ["web.default.svc.cluster.local."]);
        assert_eq!(short("-x 10.244.60.1")?, ["db-0.db.default.svc.cluster.local."]);
        let pod = address_of(&names.pod, Family::V4).to_string();
        let label = pod.replace('.', "-");
        assert_eq!(short(&format!("{label}.default.pod.cluster.local A"))?, [pod]);
        let absent = names.dig(&format!("{transport} none.default.svc.cluster.local A"))?;
        contains(&absent, &["status: NXDOMAIN", "SOA\tns.dns.cluster.local. hostmaster.cluster.local."]);
        let no_data = names.dig(&format!("{transport} web.default.svc.cluster.local MX"))?;
        contains(&no_data, &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1"]);
    }
    Ok(())
}

/// Rows 33 to 35.
#[test]
fn dns_serve_a_large_answer_is_truncated_and_whole_by_tcp() -> Result<()> {
    let Some(names) = Names::start()? else { return Ok(()) };
    let question = "many.default.svc.cluster.local A";
    let cut = names.dig(&format!("+noedns +ignore {question}"))?;
    contains(&cut, &["flags: qr aa tc rd;", "ANSWER: 29,"]);
    let whole = names.dig(&format!("+noedns {question}"))?;
    contains(&whole, &["ANSWER: 200,", "(TCP)"]);
    let large = names.dig(&format!("+bufsize=4096 {question}"))?;
    contains(&large, &["ANSWER: 200,", "(UDP)"]);
    contains(&names.dig(&format!("+edns=1 +noednsnegotiation {question}"))?, &["status: BADVERS"]);
    contains(&names.dig("-c CH version.bind TXT")?, &["status: REFUSED"]);
    contains(&names.dig("+opcode=STATUS web.default.svc.cluster.local")?, &["status: NOTIMP"]);
    Ok(())
}

/// Row 39: what a program in a pod does.
#[test]
fn dns_serve_glibc_finds_services_by_the_search_list() -> Result<()> {
    let Some(names) = Names::start()? else { return Ok(()) };
    for name in ["web", "web.default", "web.default.svc.cluster.local"] {
        contains(&names.getent(&format!("ahosts {name}"))?, &["10.96.0.10 ", "fd00:10:96::10 "]);
    }
    let far = names.getent(&format!("ahostsv4 far.default.svc.{OTHER}"))?;
    contains(&far, &["10.96.0.77 "]);
    contains(&names.getent("hosts 10.96.0.10")?, &["web.default.svc.cluster.local"]);
    ensure!(names.getent("ahosts none.default").is_err(), "there is no such name");
    Ok(())
}

/// Rows 17 and 28.
#[test]
fn dns_serve_asks_others_for_names_outside() -> Result<()> {
    let Some(names) = Names::start()? else { return Ok(()) };
    let far = format!("far.default.svc.{OTHER}");
    let outside = names.dig(&format!("{far} A"))?;
    contains(&outside, &["status: NOERROR", "flags: qr rd ra;", "10.96.0.77"]);
    let absent = names.dig(&format!("none.default.svc.{OTHER} A"))?;
    contains(&absent, &["status: NXDOMAIN", &format!("SOA\tns.dns.{OTHER}.")]);
    let alias = names.dig("alias.default.svc.cluster.local A")?;
    contains(&alias, &[&format!("CNAME\t{far}."), "10.96.0.77"]);
    Ok(())
}

#[test]
fn dns_serve_a_name_follows_its_service() -> Result<()> {
    let Some(names) = Names::start()? else { return Ok(()) };
    let wait = |expected: &[&str]| {
        until(&format!("{expected:?}"), PATIENCE, || {
            let found = names.short("new.default.svc.cluster.local A")?;
            ensure!(found == expected, "found {found:?}");
            Ok(())
        })
        .with_context(|| names.agent.last_words())
    };
    wait(&[])?;
    names.manifests.apply(&Service::new("new", 20))?;
    wait(&["10.96.0.20"])?;
    names
        .manifests
        .write("new.yaml", &headless("new", ["{addresses: [10.244.60.9]}".to_owned()].into_iter()))?;
    wait(&["10.244.60.9"])?;
    names.manifests.delete(&Service::new("new", 20))?;
    wait(&[])
}

#[test]
fn dns_serve_keeps_away_from_others_addresses() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let taken = SocketAddr::new(node.v4().into(), 53);
    let _socket = node.place().netns.run(|| std::net::UdpSocket::bind(taken).context("cannot bind"))?;
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    let flags = ["--dns", "serve", "--dns-upstream", "192.0.2.53", "--dns-listen"];
    settings.further = flags.into_iter().map(str::to_owned).chain([taken.to_string()]).collect();
    let Err(error) = Agent::start(&node, settings) else { panic!("it took an address that is another's") };
    contains(&format!("{error:#}"), &[&format!("listening on {taken}"), "--dns-listen"]);
    Ok(())
}
