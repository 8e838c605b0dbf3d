//! Health checks of Services with `externalTrafficPolicy: Local`: their load balancers ask each node, at the
//! port `healthCheckNodePort`, whether it has endpoints.
//!
//! Answers are those of kube-proxy (`pkg/proxy/healthcheck/service_health.go`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{debug, error};

use crate::admin::{JSON, bind, no_such_family, status};
use crate::cluster::health_check::HealthCheck;
use crate::cluster::object::Key;
use crate::health::Health;

/// A port that cannot be listened at.
#[derive(Debug)]
pub struct Failure {
    /// The health check.
    pub check: HealthCheck,
    /// Why.
    pub error: io::Error,
}

/// The servers of all health checks.
#[derive(Debug)]
pub struct ServiceHealth {
    addresses: BTreeSet<IpAddr>,
    health: Arc<Health>,
    desired: BTreeMap<Key, HealthCheck>,
    open: HashMap<Key, Server>,
    /// Those that could not be opened, which is told once.
    failed: BTreeSet<Key>,
}

impl ServiceHealth {
    /// No servers yet.
    pub fn new(health: Arc<Health>) -> Self {
        Self {
            addresses: BTreeSet::new(),
            health,
            desired: BTreeMap::new(),
            open: HashMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Serves the health checks of these Services as they are now, or not at all, and those of all others as
    /// before, at these addresses of the node. Those whose port cannot be listened at are returned the first
    /// time. Costs time in proportion to what has changed, and to what has failed before.
    pub async fn sync(
        &mut self,
        addresses: BTreeSet<IpAddr>,
        changed: impl IntoIterator<Item = (Key, Option<HealthCheck>)>,
    ) -> Vec<Failure> {
        let mut due = self.failed.clone();
        for (service, check) in changed {
            let port = |check: &Option<HealthCheck>| check.as_ref().map(|check| check.port);
            let before = match check.clone() {
                Some(check) => self.desired.insert(service.clone(), check),
                None => self.desired.remove(&service),
            };
            if port(&before) != port(&check) {
                self.failed.remove(&service);
            }
            due.insert(service);
        }
        let moved = self.addresses != addresses;
        if moved {
            self.addresses = addresses;
            due.extend(self.desired.keys().cloned());
        }
        // All that is closed is closed before anything is opened: a port may change hands.
        for service in &due {
            let port = self.desired.get(service).map(|check| check.port);
            if self.open.get(service).is_some_and(|server| moved || port != Some(server.port))
                && let Some(server) = self.open.remove(service)
            {
                debug!(%service, port = server.port, "the health check is served no more");
                server.close().await;
            }
        }
        due.iter().filter_map(|service| self.serve(service)).collect()
    }

    /// Whether there are ports that could not be listened at.
    pub fn is_behind(&self) -> bool {
        !self.failed.is_empty()
    }

    fn serve(&mut self, service: &Key) -> Option<Failure> {
        let check = self.desired.get(service)?;
        if let Some(server) = self.open.get(service) {
            server.local_endpoints.store(check.local_endpoints, Ordering::Relaxed);
            return None;
        }
        match Server::open(&self.addresses, check, &self.health) {
            Ok(server) => {
                debug!(%service, port = check.port, "the health check is served");
                self.failed.remove(service);
                self.open.insert(service.clone(), server);
                None
            }
            Err(error) => {
                let new = self.failed.insert(service.clone());
                new.then(|| Failure { check: check.clone(), error })
            }
        }
    }
}

/// The server of one Service.
#[derive(Debug)]
struct Server {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    listeners: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    fn open(addresses: &BTreeSet<IpAddr>, check: &HealthCheck, health: &Arc<Health>) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for address in addresses {
            match bind(SocketAddr::new(*address, check.port), true) {
                Ok(listener) => listeners.push(listener),
                Err(error) if address.is_unspecified() && no_such_family(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let local_endpoints = Arc::new(AtomicUsize::new(check.local_endpoints));
        let asked = Asked {
            service: check.service.clone(),
            local_endpoints: local_endpoints.clone(),
            health: health.clone(),
        };
        let listeners = listeners.into_iter().map(|listener| serve(listener, asked.clone())).collect();
        Ok(Self { port: check.port, local_endpoints, listeners })
    }

    /// Ends; the port is free then. Connections end after the answer they are at.
    async fn close(self) {
        for (stop, task) in self.listeners {
            drop(stop);
            task.abort();
            // It ends as cancelled, which is what was asked for.
            let _ = task.await;
        }
    }
}

fn serve(listener: TcpListener, asked: Asked) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let service = asked.service.clone();
    let router = Router::new().fallback(answer).with_state(asked);
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // The other end is only ever dropped.
        let _ = stopped.await;
    });
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            error!(%service, %error, "the health check is served no more");
        }
    });
    (stop, task)
}

#[derive(Clone)]
struct Asked {
    service: Key,
    local_endpoints: Arc<AtomicUsize>,
    health: Arc<Health>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

async fn answer(State(asked): State<Asked>) -> impl IntoResponse {
    let local_endpoints = asked.local_endpoints.load(Ordering::Relaxed);
    let service_proxy_healthy = asked.health.is_healthy(Instant::now());
    let (namespace, name) = asked.service.parts();
    let body = Body { service: Name { namespace, name }, local_endpoints, service_proxy_healthy };
    let weight = [("x-load-balancing-endpoint-weight", local_endpoints.to_string())];
    (status(local_endpoints > 0 && service_proxy_healthy), JSON, weight, body.encode())
}

impl Body<'_> {
    /// Indented by tabs, as kube-proxy writes it.
    fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut encoded, PrettyFormatter::with_indent(b"\t"));
        // Writing to memory cannot fail.
        let _ = self.serialize(&mut serializer);
        encoded
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use podnet_common::wire::Family;
    use tokio::net::TcpStream;

    use super::*;
    use crate::admin::tests::{ask, check};
    use crate::health::{Moment, TIMEOUT};

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn checks(health: &Arc<Health>) -> ServiceHealth {
        ServiceHealth::new(health.clone())
    }

    async fn sync(checks: &mut ServiceHealth, desired: Vec<HealthCheck>) -> Vec<Failure> {
        checks.sync([LOCALHOST].into(), all(desired)).await
    }

    /// What is desired of each Service.
    fn all(desired: Vec<HealthCheck>) -> Vec<(Key, Option<HealthCheck>)> {
        let of = |name| {
            let service = Key::new("shop", name);
            let check = desired.iter().find(|check| check.service == service).cloned();
            (service, check)
        };
        ["web", "api"].map(of).to_vec()
    }

    /// A port that is free.
    fn port() -> u16 {
        let listener = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    }

    fn of(service: &str, port: u16, local_endpoints: usize) -> HealthCheck {
        HealthCheck { service: Key::new("shop", service), port, local_endpoints }
    }

    async fn set(checks: &mut ServiceHealth, port: u16, local_endpoints: usize) {
        let failures = sync(checks, vec![of("web", port, local_endpoints)]).await;
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn body(endpoints: usize, healthy: bool) -> String {
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t}},\n\
             \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        )
    }

    const HEADERS: [&str; 2] = ["Content-Type: application/json", "X-Content-Type-Options: nosniff"];

    #[tokio::test]
    async fn the_answer_is_kube_proxys() {
        let (health, port) = (Arc::new(Health::default()), port());
        let address = SocketAddr::new(LOCALHOST, port);
        let mut checks = checks(&health);
        set(&mut checks, port, 0).await;
        let weight = |weight: &'static str| [HEADERS[0], HEADERS[1], weight];
        let none = weight("X-Load-Balancing-Endpoint-Weight: 0");
        check(&ask(address, "/").await, 503, &none, &body(0, true));
        set(&mut checks, port, 2).await;
        let two = weight("X-Load-Balancing-Endpoint-Weight: 2");
        check(&ask(address, "/healthz?at=all").await, 200, &two, &body(2, true));
        health.updated(Family::V4, Moment::now().time);
        health.queued(Family::V4, Instant::now() - TIMEOUT);
        check(&ask(address, "/").await, 503, &two, &body(2, false));
    }

    #[tokio::test]
    async fn servers_come_and_go_with_their_services() {
        let (health, ports) = (Arc::new(Health::default()), [port(), port()]);
        let [first, second] = ports.map(|port| SocketAddr::new(LOCALHOST, port));
        let mut checks = checks(&health);
        set(&mut checks, ports[0], 1).await;
        set(&mut checks, ports[1], 1).await;
        assert!(TcpStream::connect(first).await.is_err(), "the port has changed");
        check(&ask(second, "/").await, 200, &[], &body(1, true));
        // The port changes hands.
        assert!(sync(&mut checks, vec![of("api", ports[1], 3)]).await.is_empty());
        assert!(ask(second, "/").await.contains("\"name\": \"api\""));
        assert!(checks.sync([LOCALHOST].into(), []).await.is_empty(), "nothing has changed");
        assert!(ask(second, "/").await.contains("\"name\": \"api\""));
        sync(&mut checks, Vec::new()).await;
        assert!(TcpStream::connect(second).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_once_and_tried_again() {
        let squatter = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
        let address = squatter.local_addr().unwrap();
        let mut checks = checks(&Arc::new(Health::default()));
        let port = address.port();
        let failures = sync(&mut checks, vec![of("web", port, 1)]).await;
        assert_eq!(failures[0].check, of("web", port, 1));
        assert_eq!(failures[0].error.kind(), io::ErrorKind::AddrInUse);
        assert!(
            sync(&mut checks, vec![of("web", port, 2)]).await.is_empty() && checks.is_behind(),
            "told once"
        );
        drop(squatter);
        assert!(checks.sync([LOCALHOST].into(), []).await.is_empty());
        assert!(!checks.is_behind());
        check(&ask(address, "/").await, 200, &[], &body(2, true));
        // Another port is another matter.
        let other = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
        let taken = of("web", other.local_addr().unwrap().port(), 2);
        assert_eq!(sync(&mut checks, vec![taken]).await.len(), 1);
        sync(&mut checks, Vec::new()).await;
        assert!(!checks.is_behind());
    }

    #[tokio::test]
    async fn servers_are_at_the_addresses_of_the_node() {
        let port = port();
        let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let mut checks = ServiceHealth::new(Arc::new(Health::default()));
        assert!(checks.sync(everywhere.into(), all(vec![of("web", port, 1)])).await.is_empty());
        check(&ask((LOCALHOST, port).into(), "/").await, 200, &[], &body(1, true));
        if bind("[::1]:0".parse().unwrap(), true).is_ok() {
            check(&ask((Ipv6Addr::LOCALHOST, port).into(), "/").await, 200, &[], &body(1, true));
        }
        // The same Service elsewhere.
        let other = Ipv4Addr::new(127, 0, 0, 2).into();
        assert!(checks.sync([other].into(), []).await.is_empty());
        assert!(TcpStream::connect((LOCALHOST, port)).await.is_err());
        check(&ask((other, port).into(), "/").await, 200, &[], &body(1, true));
    }
}
