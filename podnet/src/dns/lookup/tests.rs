//! A test for each row of what the cluster's DNS must answer, by the numbers of the contract.

use super::*;
use crate::cluster::Event;
use crate::cluster::manifests;
use crate::cluster::object::Kind;
use crate::dns::zone::Settings;

/// Namespaces with a Service of each sort.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ports: [{name: http, port: 80}, {port: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.0.16], targetRef: {kind: Pod, name: web-7d4b9}}
- {addresses: [10.244.0.17], targetRef: {kind: Pod, name: web-x2k5p}, conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-1
  namespace: shop
  labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: ''}
addressType: IPv4
ports: [{name: sql, port: 5432}, {name: admin, port: 8080}]
endpoints:
- {addresses: [10.244.1.1], hostname: db-0, targetRef: {kind: Pod, name: db-0}}
- {addresses: [10.244.1.2], hostname: db-0, targetRef: {kind: Pod, name: db-other}}
- {addresses: [10.244.1.3], targetRef: {kind: Pod, name: db-2}}
- {addresses: [10.244.1.4]}
- {addresses: [10.244.1.5], hostname: db-5, conditions: {ready: false}}
- {addresses: [10.244.1.3], targetRef: {kind: Pod, name: db-2}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-2
  namespace: shop
  labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: ''}
addressType: IPv6
ports: [{name: sql, port: 5432}]
endpoints:
- {addresses: ['fd00::'], conditions: {}}
---
apiVersion: v1
kind: Service
metadata: {name: down, namespace: shop}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: down-1, namespace: shop, labels: {kubernetes.io/service-name: down}}
addressType: IPv4
endpoints: [{addresses: [10.244.2.1], conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: inside, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: nowhere, namespace: shop}
spec: {type: ExternalName, externalName: none.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: self, namespace: shop}
spec: {type: ExternalName, externalName: self.shop.svc.cluster.local.}
---
apiVersion: v1
kind: Service
metadata: {name: numbered, namespace: shop}
spec: {type: ExternalName, externalName: 192.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {name: local, namespace: shop}
spec: {nodeName: here, containers: [{name: a}]}
status: {podIPs: [{ip: 10.244.3.1}, {ip: 'fd00::3:1'}]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12, 'fd00:96::/112']}
"#;

fn of(text: &str) -> Index {
    let mut index = Index::new(&Settings::default(), 1_000);
    for object in manifests::parse(text).unwrap() {
        index.handle(&Event::Apply(object), 2_000);
    }
    index
}

fn list(index: &mut Index, text: &str) {
    Kind::ALL.into_iter().for_each(|kind| index.handle(&Event::Listing(kind), 2_000));
    for object in manifests::parse(text).unwrap() {
        index.handle(&Event::Apply(object), 2_000);
    }
    Kind::ALL.into_iter().for_each(|kind| index.handle(&Event::Listed(kind), 2_000));
}

fn cluster() -> Index {
    let mut index = of("");
    list(&mut index, CLUSTER);
    assert!(index.synced());
    index
}

/// A name under the zone, or an absolute one.
fn name(text: &str) -> Name {
    let text = if text.ends_with('.') { text.to_owned() } else { format!("{text}.cluster.local.") };
    Name::from_ascii(text.trim_start_matches("@.")).unwrap()
}

/// The data of records, as text, in order.
fn data(records: &[Record]) -> Vec<String> {
    let mut data: Vec<String> =
        records.iter().map(|it| format!("{} {}", it.record_type(), it.data)).collect();
    data.sort();
    data
}

fn ask(index: &Index, question: &str, kind: RecordType) -> Answer {
    index.lookup(&name(question), kind)
}

/// What is found, which has nothing of a negative answer.
#[track_caller]
fn found(index: &Index, question: &str, kind: RecordType) -> Vec<String> {
    let answer = ask(index, question, kind);
    assert_eq!((&answer.status, &answer.authority), (&Status::Found, &None), "{question} {kind}");
    data(&answer.answers)
}

#[track_caller]
fn denied(index: &Index, question: &str, kind: RecordType, status: Status) {
    let answer = ask(index, question, kind);
    assert_eq!(answer.status, status, "{question} {kind}: {answer:?}");
    assert_eq!(answer.answers, [], "{question} {kind}");
    let soa = answer.authority.expect("a SOA record");
    assert_eq!(soa.record_type(), RecordType::SOA);
    assert!(soa.name.zone_of(&name(question)));
}

use RecordType::{A as IP4, AAAA as IP6};

#[test]
fn row_1_the_schema_has_a_version() {
    let answer = ask(&cluster(), "dns-version", RecordType::TXT);
    assert_eq!(data(&answer.answers), ["TXT 1.1.0"]);
    assert_eq!(answer.answers[0].ttl, 28_800);
}

#[test]
fn row_2_a_service_has_its_cluster_ips() {
    let index = cluster();
    assert_eq!(found(&index, "web.shop.svc", IP4), ["A 10.96.0.1"]);
    assert_eq!(found(&index, "web.shop.svc", IP6), ["AAAA fd00:96::1"]);
}

#[test]
fn row_3_case_does_not_matter_and_is_kept() {
    let index = cluster();
    let asked = name("wEb.SHOP.svc.Cluster.LOCAL.");
    let answer = index.lookup(&asked, IP4);
    assert_eq!(data(&answer.answers), ["A 10.96.0.1"]);
    assert!(answer.answers[0].name.eq_case(&asked));
    let reverse = index.lookup(&name("1.0.96.10.IN-addr.ARPA."), RecordType::PTR);
    assert_eq!(data(&reverse.answers), ["PTR web.shop.svc.cluster.local."]);
    let srv = index.lookup(&name("_HTTP._Tcp.web.shop.svc"), RecordType::SRV);
    assert_eq!(data(&srv.answers), ["SRV 0 50 80 web.shop.svc.cluster.local."]);
}

#[test]
fn row_4_a_named_port_has_a_srv_record_and_its_targets_addresses() {
    let answer = ask(&cluster(), "_dns._udp.kube-dns.kube-system.svc", RecordType::SRV);
    assert_eq!(data(&answer.answers), ["SRV 0 100 53 kube-dns.kube-system.svc.cluster.local."]);
    assert_eq!(data(&answer.additionals), ["A 10.96.0.10"]);
    assert_eq!(answer.additionals[0].name, name("kube-dns.kube-system.svc"));
    let answer = ask(&cluster(), "_http._tcp.web.shop.svc", RecordType::SRV);
    assert_eq!(data(&answer.additionals), ["A 10.96.0.1", "AAAA fd00:96::1"]);
}

#[test]
fn row_5_a_bare_name_has_a_srv_record_for_each_port() {
    let index = cluster();
    let target = "web.shop.svc.cluster.local.";
    assert_eq!(
        found(&index, "web.shop.svc", RecordType::SRV),
        [format!("SRV 0 25 80 {target}"), format!("SRV 0 25 9000 {target}")]
    );
    denied(&index, "_._tcp.web.shop.svc", RecordType::SRV, Status::NoName);
}

#[test]
fn row_6_weights_are_shares_of_a_hundred_and_never_nothing() {
    assert_eq!([1, 2, 3, 100, 101, 70_000].map(weight), [100, 50, 33, 1, 1, 1]);
}

#[test]
fn row_7_underscores_may_be_left_out_and_ports_have_the_services_address() {
    let index = cluster();
    for form in ["_http._tcp", "http.tcp", "_http.tcp", "http._tcp"] {
        assert_eq!(found(&index, &format!("{form}.web.shop.svc"), IP4), ["A 10.96.0.1"]);
    }
    for wrong in ["_http._udp", "_https._tcp", "_tcp._http"] {
        for kind in [RecordType::SRV, IP4] {
            denied(&index, &format!("{wrong}.web.shop.svc"), kind, Status::NoName);
        }
    }
}

#[test]
fn row_8_a_cluster_ip_has_its_services_name() {
    let index = cluster();
    assert_eq!(
        found(&index, "1.0.96.10.in-addr.arpa.", RecordType::PTR),
        ["PTR web.shop.svc.cluster.local."]
    );
    let reverse = Name::from("fd00:96::1".parse::<IpAddr>().unwrap()).to_string();
    assert_eq!(found(&index, &reverse, RecordType::PTR), ["PTR web.shop.svc.cluster.local."]);
}

#[test]
fn row_9_a_headless_service_has_its_ready_endpoints_each_once() {
    let index = cluster();
    let all = ["A 10.244.1.1", "A 10.244.1.2", "A 10.244.1.3", "A 10.244.1.4"];
    assert_eq!(found(&index, "db.shop.svc", IP4), all);
    assert_eq!(found(&index, "db.shop.svc", IP6), ["AAAA fd00::"]);
}

#[test]
fn row_10_a_headless_service_without_ready_endpoints_is_denied() {
    denied(&cluster(), "down.shop.svc", IP4, Status::NoName);
}

#[test]
fn row_11_what_is_published_before_it_is_ready_is_ready_in_slices() {
    // The endpoint slice controller says so for such Services, and says nothing for others' unknown readiness.
    assert_eq!(found(&cluster(), "db.shop.svc", IP6), ["AAAA fd00::"], "no condition is ready");
}

#[test]
fn row_12_endpoints_have_their_hostname_or_address() {
    let index = cluster();
    assert_eq!(found(&index, "db-0.db.shop.svc", IP4), ["A 10.244.1.1", "A 10.244.1.2"]);
    assert_eq!(found(&index, "10-244-1-4.db.shop.svc", IP4), ["A 10.244.1.4"]);
    assert_eq!(found(&index, "fd00--0.db.shop.svc", IP6), ["AAAA fd00::"]);
    denied(&index, "fd00--0.db.shop.svc", IP4, Status::NoData);
    denied(&index, "db-5.db.shop.svc", IP4, Status::NoName);
    denied(&index, "10-244-1-5.db.shop.svc", IP4, Status::NoName);
}

#[test]
fn row_13_endpoints_have_the_name_of_their_pod() {
    let index = cluster();
    assert_eq!(found(&index, "db-2.db.shop.svc", IP4), ["A 10.244.1.3"]);
    assert_eq!(found(&index, "db-other.db.shop.svc", IP4), ["A 10.244.1.2"], "the hostname is another");
    assert_eq!(found(&index, "10-244-1-3.db.shop.svc", IP4), ["A 10.244.1.3"]);
    let reverse = found(&index, "3.1.244.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse, ["PTR db-2.db.shop.svc.cluster.local."]);
}

#[test]
fn row_14_endpoints_of_services_with_cluster_ips_have_names_too() {
    let index = cluster();
    for label in ["10-244-0-16", "web-7d4b9"] {
        assert_eq!(found(&index, &format!("{label}.web.shop.svc"), IP4), ["A 10.244.0.16"]);
        let srv = found(&index, &format!("{label}.web.shop.svc"), RecordType::SRV);
        assert_eq!(srv, ["SRV 0 100 8080 web-7d4b9.web.shop.svc.cluster.local."]);
    }
    denied(&index, "web-x2k5p.web.shop.svc", IP4, Status::NoName);
}

#[test]
fn row_15_a_headless_service_has_a_srv_record_for_each_endpoint_and_port() {
    let answer = ask(&cluster(), "_sql._tcp.db.shop.svc", RecordType::SRV);
    let srv = |label: &str| format!("SRV 0 16 5432 {label}.db.shop.svc.cluster.local.");
    assert_eq!(
        data(&answer.answers),
        [srv("10-244-1-4"), srv("db-0"), srv("db-2"), srv("fd00--0")],
        "each once, as all with this hostname are one"
    );
    let addresses = ["A 10.244.1.1", "A 10.244.1.2", "A 10.244.1.3", "A 10.244.1.4", "AAAA fd00::"];
    assert_eq!(data(&answer.additionals), addresses);
    let all = ask(&cluster(), "db.shop.svc", RecordType::SRV);
    assert_eq!(all.answers.len(), 7);
}

#[test]
fn row_16_a_ready_endpoint_has_a_name_by_each_service_that_selects_it() {
    let index = cluster();
    let ptr =
        |ip: &str| found(&index, &Name::from(ip.parse::<IpAddr>().unwrap()).to_string(), RecordType::PTR);
    assert_eq!(ptr("10.244.1.1"), ["PTR db-0.db.shop.svc.cluster.local."]);
    assert_eq!(ptr("10.244.0.16"), ["PTR web-7d4b9.web.shop.svc.cluster.local."]);
    assert_eq!(ptr("fd00::"), ["PTR fd00--0.db.shop.svc.cluster.local."]);
    for unready in ["5.1.244.10.in-addr.arpa.", "17.0.244.10.in-addr.arpa.", "9.9.9.9.in-addr.arpa."] {
        assert_eq!(ask(&index, unready, RecordType::PTR).status, Status::Outside, "{unready}");
    }
    let second = "
apiVersion: v1
kind: Service
metadata: {name: second, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: second-1, namespace: shop, labels: {kubernetes.io/service-name: second}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.1], hostname: db-0}, {addresses: [10.96.0.1]}]
";
    let index = {
        let mut index = cluster();
        for object in manifests::parse(second).unwrap() {
            index.handle(&Event::Apply(object), 2_000);
        }
        index
    };
    let both = ["PTR db-0.db.shop.svc.cluster.local.", "PTR db-0.second.shop.svc.cluster.local."];
    assert_eq!(found(&index, "1.1.244.10.in-addr.arpa.", RecordType::PTR), both);
    let cluster_ip = found(&index, "1.0.96.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(cluster_ip, ["PTR web.shop.svc.cluster.local."], "cluster IPs go first");
}

#[test]
fn reverse_names_of_cluster_ips_are_the_clusters() {
    let index = cluster();
    denied(&index, "9.0.96.10.in-addr.arpa.", RecordType::PTR, Status::NoName);
    denied(&index, "1.0.96.10.in-addr.arpa.", IP4, Status::NoData);
    denied(&index, "001.0.96.10.in-addr.arpa.", RecordType::PTR, Status::NoName);
    denied(&index, "0.96.10.in-addr.arpa.", RecordType::PTR, Status::NoData);
    denied(&index, "1.1.244.10.in-addr.arpa.", IP4, Status::NoData);
    let soa = ask(&index, "97.10.in-addr.arpa.", RecordType::SOA);
    assert_eq!((soa.status, soa.answers.len()), (Status::Found, 1), "a zone of 10.96.0.0/12");
    let ns = found(&index, "97.10.in-addr.arpa.", RecordType::NS);
    assert_eq!(ns, ["NS kube-dns.kube-system.svc.cluster.local."]);
    for outside in ["10.in-addr.arpa.", "in-addr.arpa.", "x.96.10.in-addr.arpa.", "1.2.0.192.in-addr.arpa."] {
        assert_eq!(ask(&index, outside, RecordType::PTR).status, Status::Outside, "{outside}");
    }
}

#[test]
fn row_17_an_external_name_is_an_alias_for_addresses() {
    let index = cluster();
    for kind in [IP4, IP6] {
        let answer = ask(&index, "outside.shop.svc", kind);
        assert_eq!(answer.status, Status::Alias(name("www.example.com.")));
        assert_eq!(data(&answer.answers), ["CNAME www.example.com."]);
    }
    assert_eq!(found(&index, "outside.shop.svc", RecordType::CNAME), ["CNAME www.example.com."]);
    denied(&index, "outside.shop.svc", RecordType::SRV, Status::NoData);
    denied(&index, "_p._tcp.outside.shop.svc", RecordType::SRV, Status::NoName);
    denied(&index, "x.outside.shop.svc", IP4, Status::NoName);
    denied(&index, "numbered.shop.svc", IP4, Status::NoName);
}

#[test]
fn row_18_aliases_inside_are_followed_and_loops_are_not() {
    let index = cluster();
    let answer = ask(&index, "inside.shop.svc", IP4);
    assert_eq!(answer.status, Status::Found);
    assert_eq!(data(&answer.answers), ["A 10.96.0.1", "CNAME web.shop.svc.cluster.local."]);
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME, "it comes first");
    assert_eq!(answer.answers[1].name, name("web.shop.svc"));
    denied(&index, "self.shop.svc", IP4, Status::NoData);
    let nowhere = ask(&index, "nowhere.shop.svc", IP4);
    assert_eq!(nowhere.status, Status::NoName, "which is the target's (RFC 6604)");
    assert_eq!(data(&nowhere.answers), ["CNAME none.shop.svc.cluster.local."]);

    let mut chain = cluster();
    for number in 0..12 {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: a{number}, namespace: shop}}, spec: \
             {{type: ExternalName, externalName: a{}.shop.svc.cluster.local}}}}",
            number + 1
        );
        chain.handle(&Event::Apply(manifests::parse(&text).unwrap().remove(0)), 2_000);
    }
    let answer = ask(&chain, "a0.shop.svc", IP4);
    assert_eq!((answer.status, answer.answers.len()), (Status::NoData, MAX_ALIASES));
}

#[test]
fn row_19_pods_are_those_that_are_known() {
    let index = cluster();
    assert_eq!(found(&index, "10-244-3-1.shop.pod", IP4), ["A 10.244.3.1"], "of this node");
    assert_eq!(found(&index, "10-244-0-16.shop.pod", IP4), ["A 10.244.0.16"], "an endpoint");
    assert_eq!(found(&index, "10-244-0-17.shop.pod", IP4), ["A 10.244.0.17"], "ready or not");
    for absent in ["10-244-3-1.empty.pod", "10-244-9-9.shop.pod", "10-244-1-4.shop.pod", "web.shop.pod"] {
        denied(&index, absent, IP4, Status::NoName);
    }
}

#[test]
fn row_20_pods_have_addresses_of_their_family() {
    let index = cluster();
    for form in ["fd00--3-1", "fd00-0-0-0-0-0-3-1"] {
        assert_eq!(found(&index, &format!("{form}.shop.pod"), IP6), ["AAAA fd00::3:1"]);
    }
    denied(&index, "fd00--3-1.shop.pod", IP4, Status::NoData);
    denied(&index, "10-244-3-1.shop.pod", IP6, Status::NoData);
}

#[test]
fn row_21_what_is_there_is_not_denied_for_another_type() {
    let index = cluster();
    let others = [
        RecordType::MX,
        RecordType::TXT,
        RecordType::CNAME,
        RecordType::HTTPS,
        RecordType::ANY,
        RecordType::NS,
    ];
    for name in ["web.shop.svc", "db.shop.svc", "db-0.db.shop.svc", "10-244-3-1.shop.pod", "outside.shop.svc"]
    {
        for kind in others {
            if (name, kind) != ("outside.shop.svc", RecordType::CNAME) {
                denied(&index, name, kind, Status::NoData);
            }
        }
    }
    denied(&index, "plain.shop.svc", IP6, Status::NoData);
    denied(&index, "dns-version", IP4, Status::NoData);
}

#[test]
fn row_22_what_is_above_names_is_there() {
    let index = cluster();
    for above in ["@.cluster.local.", "svc", "pod", "shop.svc", "shop.pod", "empty.svc", "empty.pod", "dns"] {
        denied(&index, above, IP4, Status::NoData);
    }
    for above in ["_tcp.web.shop.svc", "_tcp.db.shop.svc"] {
        denied(&index, above, RecordType::NS, Status::NoData);
    }
}

#[test]
fn row_23_what_is_not_there_is_denied() {
    let index = cluster();
    for absent in [
        "none.shop.svc",
        "web.none.svc",
        "none.svc",
        "none.pod",
        "x.web.none.svc",
        "_http._tcp.web.none.svc",
        "foo",
        "x.y.z.web.shop.svc",
        "_udp.web.shop.svc",
        "_tcp.plain.shop.svc",
        "*.shop.svc",
        "*.web.shop.svc",
        "x.10-244-3-1.shop.pod",
        "www.example.com.shop.svc",
    ] {
        for kind in [IP4, IP6, RecordType::SRV] {
            denied(&index, absent, kind, Status::NoName);
        }
    }
}

#[test]
fn row_24_negative_answers_have_the_zones_soa_record() {
    let mut index = cluster();
    let soa = |index: &Index| ask(index, "foo", IP4).authority.unwrap();
    let first = soa(&index);
    assert_eq!((first.name.to_string(), first.ttl), ("cluster.local.".to_owned(), 5));
    let text = "ns.dns.cluster.local. hostmaster.cluster.local. 2000 7200 1800 86400 5";
    assert_eq!(first.data.to_string(), text);
    let mut say = |spec: &str, now| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: plain, namespace: shop}}, spec: {{{spec}}}}}"
        );
        index.handle(&Event::Apply(manifests::parse(&text).unwrap().remove(0)), now);
        index.serial()
    };
    assert_eq!(say("clusterIP: 10.96.0.2, ports: [{port: 80}]", 3_000), 2_000, "it was so before");
    assert_eq!(say("clusterIP: 10.96.0.3, ports: [{port: 80}]", 3_000), 3_000);
    assert_eq!(say("clusterIP: 10.96.0.2, ports: [{port: 80}]", 2_500), 3_000, "it never goes back");
    let long = Index::new(&Settings { ttl: 3_600, ..Settings::default() }, 0).soa(Name::root());
    assert_eq!(long.ttl, 300);
}

#[test]
fn row_25_the_zone_tells_of_itself_and_its_name_server() {
    let index = cluster();
    let apex = "@.cluster.local.";
    let soa = found(&index, apex, RecordType::SOA);
    assert!(soa[0].starts_with("SOA ns.dns.cluster.local. hostmaster."), "{soa:?}");
    let ns = ask(&index, apex, RecordType::NS);
    assert_eq!(data(&ns.answers), ["NS kube-dns.kube-system.svc.cluster.local."]);
    assert_eq!(data(&ns.additionals), ["A 10.96.0.10"]);
    assert_eq!(found(&index, "ns.dns", IP4), ["A 10.96.0.10"]);
    let mut alone = of("");
    list(&mut alone, "");
    denied(&alone, apex, RecordType::NS, Status::NoData);
    denied(&alone, "ns.dns", IP4, Status::NoName);
}

#[test]
fn row_26_answers_hold_for_as_long_as_is_set() {
    let mut index = Index::new(&Settings { ttl: 30, ..Settings::default() }, 0);
    list(&mut index, CLUSTER);
    assert_eq!(ask(&index, "web.shop.svc", IP4).answers[0].ttl, 30);
    assert_eq!(ask(&index, "none.shop.svc", IP4).authority.unwrap().ttl, 30);
    assert_eq!(Settings::default().ttl, 5);
}

#[test]
fn row_27_nothing_is_denied_before_all_is_known() {
    let mut index = of(CLUSTER);
    assert_eq!(found(&index, "web.shop.svc", IP4), ["A 10.96.0.1"], "what is known is answered");
    for unknown in ["none.shop.svc", "db.none.svc", "x.db.shop.svc", "foo", "none.svc"] {
        assert_eq!(ask(&index, unknown, IP4).status, Status::Unsynced, "{unknown}");
    }
    assert_eq!(ask(&index, "9.0.96.10.in-addr.arpa.", RecordType::PTR).status, Status::Unsynced);
    let half = ask(&index, "db-0.db.shop.svc", IP6);
    assert_eq!(half.status, Status::Unsynced, "there may be a slice of that family");
    denied(&index, "plain.shop.svc", IP6, Status::NoData);
    for kind in [Kind::Service, Kind::EndpointSlice] {
        assert!(!index.synced());
        index.handle(&Event::Listing(kind), 0);
        for object in manifests::parse(CLUSTER).unwrap() {
            index.handle(&Event::Apply(object), 0);
        }
        index.handle(&Event::Listed(kind), 0);
    }
    for kind in [Kind::Pod, Kind::Namespace] {
        assert!(!index.synced());
        index.handle(&Event::Refused(kind), 0);
    }
    assert!(index.synced(), "it does without Pods and Namespaces where it has to");
    denied(&index, "none.shop.svc", IP4, Status::NoName);
    index.handle(&Event::Listing(Kind::Service), 0);
    denied(&index, "none.shop.svc", IP4, Status::NoName);
}

#[test]
fn row_28_what_is_not_the_clusters_is_outside() {
    let index = cluster();
    for outside in ["www.example.com.", "local.", "2.1.244.11.in-addr.arpa.", "."] {
        assert_eq!(ask(&index, outside, IP4).status, Status::Outside, "{outside}");
    }
}

#[test]
fn row_29_a_service_without_ready_endpoints_keeps_its_address() {
    assert_eq!(found(&cluster(), "plain.shop.svc", IP4), ["A 10.96.0.2"]);
}

#[test]
fn row_30_services_of_all_namespaces_and_proxies_have_names() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: mesh, namespace: other, labels: \
                {service.kubernetes.io/service-proxy-name: mesh}}, spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}}";
    assert_eq!(found(&of(text), "mesh.other.svc", IP4), ["A 10.96.0.8"]);
}
