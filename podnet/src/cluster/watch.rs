//! The API server as a source of objects.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::object::{Kind, Parse};
use super::{Closed, Event, Feed};

/// How often a lost API server is asked whether it is back, and how long it may take to answer.
const PROBE: Duration = Duration::from_secs(2);

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
    let config = match kubeconfig {
        Some(path) => {
            let broken = |error: &dyn StdError| ConnectError::Kubeconfig {
                path: path.to_owned(),
                reason: causes(error),
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| broken(&error))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| broken(&error))?
        }
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster_env().map_err(|error| ConnectError::Nowhere { reason: causes(&error) })?
        }
        None => Config::infer().await.map_err(|error| ConnectError::Nowhere { reason: causes(&error) })?,
    };
    let url = config.cluster_url.to_string();
    info!(url, "reading Services from the API server");
    Client::try_from(config).map_err(|error| ConnectError::Client { url, reason: causes(&error) })
}

/// Feeds what the API server says until nobody takes it any more.
pub async fn run(client: Client, feed: Feed) {
    let contact = Contact::default();
    // The selectors of kube-proxy, which spare every node the objects of headless Services.
    let services = watcher::Config::default().fields("spec.clusterIP!=None");
    let slices = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let sources = async {
        tokio::join!(
            follow::<Service>(&client, services, &feed, &contact),
            follow::<EndpointSlice>(&client, slices, &feed, &contact),
        )
    };
    tokio::select! {
        _ = sources => {}
        () = contact.watch_for_return(&client) => {}
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
    let mut stream = pin!(watcher(Api::<K>::all(client.clone()), config).backoff(Eager::default()));
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                contact.works(K::KIND);
                if let Some(event) = translate(event) {
                    feed.send(event).await?;
                }
            }
            Err(error) => contact.fails(K::KIND, &error),
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
                warn!(%invalid, "an object cannot be used; what was known of it stays");
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

    fn works(&self, kind: Kind) {
        self.returned();
        let mut state = self.state();
        if state.denied.contains(&kind) {
            state.denied.retain(|&denied| denied != kind);
            info!("podnet may list and watch objects of kind {} now", kind.name());
        }
    }

    fn fails(&self, kind: Kind, error: &watcher::Error) {
        let cause = match error {
            watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => cause,
            // A watch ends now and then; what matters is whether the next one begins.
            other => return debug!(error = causes(other), "the watch of {} ended", kind.name()),
        };
        match cause {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                self.denied(kind, &status.message)
            }
            cause => self.lost(&causes(cause)),
        }
    }

    fn denied(&self, kind: Kind, message: &str) {
        let mut state = self.state();
        if !state.denied.contains(&kind) {
            state.denied.push(kind);
            error!(
                reason = message,
                "the API server does not let podnet list and watch objects of kind {}: bind its \
                 ServiceAccount to the ClusterRole in deploy/podnet.yaml; podnet keeps trying",
                kind.name()
            );
        }
    }

    fn lost(&self, reason: &str) {
        let mut state = self.state();
        if !state.lost {
            state.lost = true;
            self.lost.notify_one();
            warn!(reason, "the API server is out of reach: what is routed stays so, podnet keeps trying");
        }
    }

    fn returned(&self) {
        let mut state = self.state();
        if state.lost {
            state.lost = false;
            info!("the API server is back");
        }
    }

    /// Notes when a lost API server answers again: a watch without news would not show it.
    async fn watch_for_return(&self, client: &Client) {
        loop {
            self.lost.notified().await;
            while self.state().lost {
                sleep(PROBE).await;
                // Any answer will do.
                if let Ok(Ok(_) | Err(kube::Error::Api(_))) = timeout(PROBE, client.apiserver_version()).await
                {
                    self.returned();
                }
            }
        }
    }
}

/// An error with all its causes, in one line.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::object::Key;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_service_that_becomes_none_of_ours_is_deleted() {
        let routed = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        assert!(matches!(translate(watcher::Event::Apply(routed)), Some(Event::Apply(_))));
        let external = service(json!({"type": "ExternalName", "externalName": "example.com"}));
        assert_eq!(
            translate(watcher::Event::Apply(external)),
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

    fn refused() -> watcher::Error {
        watcher::Error::WatchStartFailed(kube::Error::ReadEvents(std::io::Error::other("refused")))
    }

    fn forbidden() -> watcher::Error {
        let status = kube::core::Status::failure("services is forbidden", "Forbidden").with_code(403);
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
}
