//! The API server as a source of objects.

use std::error::Error as StdError;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::runtime::watcher::DefaultBackoff;
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::object::{Kind, Parse};
use super::{Closed, Event, Feed};
use crate::error::chain;

/// How often a lost API server is asked whether it is back, and how long it may take to answer.
const PROBE: Duration = Duration::from_secs(2);

/// How often it is asked for a kind of objects that it does not know: one that is upgraded may.
const UNKNOWN: Duration = Duration::from_secs(60);

/// The API server cannot be talked to, for want of knowing where or as whom.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig that was named cannot be used.
    #[error("the kubeconfig {path} cannot be used: {reason}: name another one with --kubeconfig")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Neither a kubeconfig nor a Pod's surroundings were found.
    #[error(
        "no API server is known: {reason}: run podnet as a Pod with a ServiceAccount, \
         name a kubeconfig with --kubeconfig, or read manifests with --manifests"
    )]
    Nowhere {
        /// What was looked for.
        reason: String,
    },
    /// The address of the API server is the one that stands for it in the shipped manifest.
    #[error(
        "the address of the API server, KUBERNETES_SERVICE_HOST, is still {address}, which is for \
         documentation only: set it to an address or name at which this node reaches the API server \
         without a Service, as `kubectl cluster-info` or the kubelet's kubeconfig tells"
    )]
    Placeholder {
        /// The address.
        address: Ipv4Addr,
    },
    /// What the configuration says makes no client.
    #[error("no client for the API server at {url}: {reason}")]
    Client {
        /// Its URL.
        url: String,
        /// Why.
        reason: String,
    },
}

/// A client by `kubeconfig`, or as a Pod of the cluster, or by the kubeconfig that kubectl would use.
///
/// In a Pod the address is that of `KUBERNETES_SERVICE_HOST`, which is to be overridden where the API
/// server's own Service is routed by podnet.
///
/// # Errors
/// [`ConnectError`]. The API server itself is not asked: it may be away for now.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = config(kubeconfig).await?;
    let url = config.cluster_url.to_string();
    info!(url, "reading Services from the API server");
    client(config).map_err(|error| ConnectError::Client { url, reason: chain(&error) })
}

fn client(mut config: Config) -> kube::Result<Client> {
    // The client would try 15 times before it tells that a request was refused.
    config.default_retry = false;
    Client::try_from(config)
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, ConnectError> {
    match kubeconfig {
        Some(path) => {
            let broken = |error: &dyn StdError| ConnectError::Kubeconfig {
                path: path.to_owned(),
                reason: chain(error),
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| broken(&error))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| broken(&error))
        }
        None if let Some(host) = std::env::var_os("KUBERNETES_SERVICE_HOST") => {
            if let Some(address) = host.to_str().and_then(placeholder) {
                return Err(ConnectError::Placeholder { address });
            }
            Config::incluster_env().map_err(|error| ConnectError::Nowhere { reason: chain(&error) })
        }
        None => Config::infer().await.map_err(|error| ConnectError::Nowhere { reason: chain(&error) }),
    }
}

/// The address if it is of 192.0.2.0/24, where nothing is (RFC 5737): deploy/podnet.yaml has one.
fn placeholder(host: &str) -> Option<Ipv4Addr> {
    host.parse().ok().filter(|address: &Ipv4Addr| address.octets()[..3] == [192, 0, 2])
}

/// What of the cluster is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What is routed.
    Routes,
    /// Whatever has a name too.
    RoutesAndNames,
}

/// Feeds what the API server says until nobody takes it any more: of Nodes that named `node`, and of Pods those
/// on it.
pub async fn run(client: Client, feed: Feed, node: &str, scope: Scope) {
    let contact = Contact::default();
    let all = watcher::Config::default;
    let (services, slices) = match scope {
        // The selectors of kube-proxy, which spare every node the objects of headless Services.
        Scope::Routes => {
            (all().fields("spec.clusterIP!=None"), all().labels("!service.kubernetes.io/headless"))
        }
        Scope::RoutesAndNames => (all(), all()),
    };
    let nodes = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let pods = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let sources = async {
        tokio::join!(
            follow::<Service>(&client, services, &feed, &contact),
            follow::<EndpointSlice>(&client, slices, &feed, &contact),
            follow::<Node>(&client, nodes, &feed, &contact),
            follow::<Pod>(&client, pods, &feed, &contact),
            follow::<ServiceCIDR>(&client, all(), &feed, &contact),
            async {
                match scope {
                    Scope::Routes => Ok(()),
                    Scope::RoutesAndNames => {
                        let namespaces = follow::<Namespace>(&client, all(), &feed, &contact);
                        let policies = follow::<NetworkPolicy>(&client, all(), &feed, &contact);
                        tokio::try_join!(namespaces, policies).map(|_| ())
                    }
                }
            },
        )
    };
    tokio::select! {
        _ = sources => {}
        _ = contact.watch_for_return(&client, &feed) => {}
    }
}

async fn follow<K>(
    client: &Client,
    config: watcher::Config,
    feed: &Feed,
    contact: &Contact,
) -> Result<(), Closed>
where
    K: Parse + Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    let mut stream = pin!(watcher(Api::<K>::all(client.clone()), config));
    let mut pauses = Eager::default();
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                // A list that begins has not been answered yet, and one that goes on may still break off.
                if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                    if contact.works(K::KIND) {
                        feed.send(Event::Away(false)).await?;
                    }
                    pauses.reset();
                }
                if let Some(event) = translate(event) {
                    feed.send(event).await?;
                }
            }
            Err(error) => {
                let failure = contact.fails(K::KIND, &error);
                if matches!(failure, Failure::Denied | Failure::Unknown) {
                    feed.send(Event::Refused(K::KIND)).await?;
                }
                if contact.is_lost() {
                    feed.send(Event::Away(true)).await?;
                }
                // Not `StreamBackoff`, which any event resets, the beginning of a list included.
                let pause = if failure == Failure::Unknown { None } else { pauses.next() };
                sleep(pause.unwrap_or(UNKNOWN)).await;
            }
        }
    }
    Ok(())
}

/// The pauses between attempts at a watch: those of Kubernetes' own clients, jitter included, but a sixth
/// as long, so that 5 to 10 seconds are the longest. Endpoints move while the API server restarts, and a
/// node that learns of it a minute later sends connections to where nobody is.
#[derive(Default)]
struct Eager(DefaultBackoff);

impl Iterator for Eager {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause / 6)
    }
}

impl Backoff for Eager {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// An event of a watch as podnet needs it.
fn translate<K: Parse>(event: watcher::Event<K>) -> Option<Event> {
    let applied = |object: K| {
        let key = object.key();
        match object.parse() {
            Ok(Some(object)) => Some(Event::Apply(object)),
            Ok(None) => key.ok().map(|key| Event::Delete(K::KIND, key)),
            Err(invalid) => {
                warn!(%invalid, "an object cannot be used: what is known of it holds until all are listed anew");
                None
            }
        }
    };
    match event {
        watcher::Event::Init => Some(Event::Listing(K::KIND)),
        watcher::Event::InitDone => Some(Event::Listed(K::KIND)),
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => applied(object),
        watcher::Event::Delete(object) => object.key().ok().map(|key| Event::Delete(K::KIND, key)),
    }
}

/// Why objects cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// podnet may not read them.
    Denied,
    /// The API server does not know the kind, and podnet can do without.
    Unknown,
    /// Another reason, which is to pass.
    Other,
}

/// What podnet does without objects of a kind, if it can.
const fn without(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Service | Kind::EndpointSlice => None,
        Kind::Node => Some("NodePorts are at all addresses of this node, and its zone is unknown"),
        Kind::Pod => Some("ports of Pods on this node (hostPort) are not served"),
        Kind::ServiceCidr => Some("addresses that no Service has are not dropped"),
        Kind::Namespace => Some("the names of Namespaces without Services are denied"),
        Kind::NetworkPolicy => Some("no queries for names are answered in the kernel"),
    }
}

/// What is wrong between podnet and the API server, if anything: told once, and once when it is over.
#[derive(Debug, Default)]
struct Contact {
    state: Mutex<State>,
    lost: Notify,
}

#[derive(Debug, Default)]
struct State {
    lost: bool,
    denied: Vec<Kind>,
}

impl Contact {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that objects of a kind come; whether the API server was away until then.
    fn works(&self, kind: Kind) -> bool {
        let returned = self.returned();
        let mut state = self.state();
        if state.denied.contains(&kind) {
            state.denied.retain(|&denied| denied != kind);
            info!("podnet may list and watch objects of kind {} now", kind.name());
        }
        returned
    }

    fn is_lost(&self) -> bool {
        self.state().lost
    }

    fn fails(&self, kind: Kind, error: &watcher::Error) -> Failure {
        let cause = match error {
            watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => cause,
            // A watch ends now and then; what matters is whether the next one begins.
            other => {
                debug!(error = chain(other), "the watch of {} ended", kind.name());
                return Failure::Other;
            }
        };
        match (cause, without(kind)) {
            (kube::Error::Api(status), without) if is_denial(status) => {
                self.denied(kind, &status.message, without.unwrap_or("nothing can be changed"));
                Failure::Denied
            }
            (kube::Error::Api(status), Some(without)) if status.code == 404 => {
                self.unknown(kind, without);
                Failure::Unknown
            }
            (cause, _) => {
                self.lost(&chain(cause));
                Failure::Other
            }
        }
    }

    fn denied(&self, kind: Kind, message: &str, without: &str) {
        let mut state = self.state();
        if !state.denied.contains(&kind) {
            state.denied.push(kind);
            error!(
                reason = message,
                "the API server does not let podnet list and watch objects of kind {}: bind its \
                 ServiceAccount to the ClusterRole in deploy/podnet.yaml; podnet keeps trying, and until then \
                 {without}",
                kind.name()
            );
        }
    }

    fn unknown(&self, kind: Kind, without: &str) {
        let mut state = self.state();
        if !state.denied.contains(&kind) {
            state.denied.push(kind);
            warn!("the API server knows no objects of kind {}: {without}", kind.name());
        }
    }

    fn lost(&self, reason: &str) {
        let mut state = self.state();
        if !state.lost {
            state.lost = true;
            self.lost.notify_one();
            warn!(
                reason,
                "objects cannot be read from the API server: what is routed stays so, podnet keeps trying"
            );
        }
    }

    fn returned(&self) -> bool {
        let returned = std::mem::take(&mut self.state().lost);
        if returned {
            info!("objects can be read from the API server again");
        }
        returned
    }

    /// Notes when a lost API server answers again: a watch without news would not show it.
    async fn watch_for_return(&self, client: &Client, feed: &Feed) -> Result<(), Closed> {
        loop {
            self.lost.notified().await;
            while self.is_lost() {
                sleep(PROBE).await;
                if answers::<Service>(client).await
                    && answers::<EndpointSlice>(client).await
                    && self.returned()
                {
                    feed.send(Event::Away(false)).await?;
                }
            }
        }
    }
}

/// Whether the API server can be asked for objects: it answers otherwise even when its store is away.
async fn answers<K>(client: &Client) -> bool
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
{
    match timeout(PROBE, Api::<K>::all(client.clone()).list(&ListParams::default().limit(1))).await {
        Ok(Ok(_)) => true,
        // Rights are another matter.
        Ok(Err(kube::Error::Api(status))) => is_denial(&status),
        Ok(Err(_)) | Err(_) => false,
    }
}

fn is_denial(status: &Status) -> bool {
    matches!(status.code, 401 | 403)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cluster::object::Key;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_service_that_loses_its_address_is_deleted() {
        let routed = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        assert!(matches!(translate(watcher::Event::Apply(routed)), Some(Event::Apply(_))));
        assert_eq!(
            translate(watcher::Event::Apply(service(json!({"ports": [{"port": 80}]})))),
            Some(Event::Delete(Kind::Service, Key::new("shop", "web")))
        );
    }

    #[test]
    fn an_invalid_object_changes_nothing() {
        let broken = service(json!({"clusterIP": "10.96.0.999"}));
        assert_eq!(translate(watcher::Event::Apply(broken)), None);
    }

    #[test]
    fn pauses_grow_to_seconds() {
        let pauses: Vec<Duration> = Eager::default().take(20).collect();
        assert!(pauses[0] < Duration::from_millis(300), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(10)), "{pauses:?}");
        assert!(pauses[19] >= Duration::from_secs(5), "{pauses:?}");
    }

    #[test]
    fn the_placeholder_is_no_address() {
        assert_eq!(placeholder("192.0.2.1"), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(placeholder("192.0.3.1"), None);
        assert_eq!(placeholder("api.example.com"), None);
    }

    fn refused() -> watcher::Error {
        watcher::Error::WatchStartFailed(kube::Error::ReadEvents(std::io::Error::other("refused")))
    }

    fn forbidden() -> watcher::Error {
        let status = Status::failure("services is forbidden", "Forbidden").with_code(403);
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn lost_contact_ends_with_any_event() {
        let contact = Contact::default();
        contact.fails(Kind::Service, &refused());
        contact.fails(Kind::EndpointSlice, &refused());
        assert!(contact.state().lost);
        contact.works(Kind::EndpointSlice);
        assert!(!contact.state().lost);
    }

    #[test]
    fn denial_is_a_matter_of_the_kind() {
        let contact = Contact::default();
        contact.fails(Kind::Service, &forbidden());
        contact.fails(Kind::Service, &forbidden());
        contact.works(Kind::EndpointSlice);
        assert_eq!(contact.state().denied, [Kind::Service]);
        assert!(!contact.state().lost);
        contact.works(Kind::Service);
        assert_eq!(contact.state().denied, []);
    }

    /// Where the log of a test goes.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Serves `status` to all requests; how many there have been so far.
    async fn serve(listener: TcpListener, status: u16, requests: Arc<AtomicUsize>) {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                          "reason": "Forbidden", "code": status});
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nConnection: close\r\n");
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            requests.fetch_add(1, Ordering::Relaxed);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    /// What is logged in some seconds with an API server that answers with `status`, if at all; how many requests
    /// it gets; and the kinds of objects that are said to be refused.
    async fn log_of_outage(status: Option<u16>) -> (Vec<String>, usize, BTreeSet<Kind>) {
        let log = Log::default();
        let writer = log.clone();
        // While there is but one subscriber, what a thread without it is the first to log is taken to interest nobody.
        let _another = tracing::Dispatch::new(tracing_subscriber::registry());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("podnet=info")
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        match status {
            Some(status) => drop(tokio::spawn(serve(listener, status, requests.clone()))),
            None => drop(listener),
        }
        let client = client(Config::new(url.parse().unwrap())).unwrap();
        let (feed, mut events) = crate::cluster::feed();
        let refused = tokio::spawn(async move {
            let mut refused = BTreeSet::new();
            while let Some((_, event)) = events.recv().await {
                refused.extend(match event {
                    Event::Refused(kind) => Some(kind),
                    _ => None,
                });
            }
            refused
        });
        timeout(Duration::from_secs(3), run(client, feed, "here", Scope::RoutesAndNames)).await.unwrap_err();
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines = log.lines().map(str::to_owned).collect();
        (lines, requests.load(Ordering::Relaxed), refused.await.unwrap())
    }

    #[tokio::test]
    async fn an_absent_api_server_is_told_of_once() {
        let (log, _, refused) = log_of_outage(None).await;
        assert_eq!(log.len(), 1, "{log:#?}");
        assert_eq!(refused, BTreeSet::new());
    }

    #[tokio::test]
    async fn denied_rights_are_told_of_once_a_kind() {
        let (log, requests, refused) = log_of_outage(Some(403)).await;
        assert_eq!(refused, Kind::ALL.into());
        assert_eq!(log.len(), Kind::ALL.len(), "{log:#?}");
        assert!((12..=42).contains(&requests), "{requests} requests");
    }

    #[test]
    fn kinds_that_the_api_server_does_not_know_are_done_without() {
        let unknown = || {
            let status = Status::failure("not found", "NotFound").with_code(404);
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        let contact = Contact::default();
        assert_eq!(contact.fails(Kind::ServiceCidr, &unknown()), Failure::Unknown);
        assert_eq!(contact.state().denied, [Kind::ServiceCidr]);
        assert!(!contact.state().lost);
        assert_eq!(
            contact.fails(Kind::Service, &unknown()),
            Failure::Other,
            "there is nothing without these"
        );
        assert!(contact.state().lost);
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_serve_is_told_of_once() {
        let (log, requests, refused) = log_of_outage(Some(503)).await;
        assert_eq!(refused, BTreeSet::new());
        assert_eq!(log.len(), 1, "{log:#?}");
        assert!((12..=54).contains(&requests), "{requests} requests");
    }
}
