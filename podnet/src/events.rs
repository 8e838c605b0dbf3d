//! Events: what people see of a Service's trouble with `kubectl describe`.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::warn;

use crate::cluster::object::Key;
use crate::error::chain;

/// Where events go: to the API server, if there is one.
#[derive(Clone)]
pub struct Events(Option<Recorder>);

impl Events {
    /// Events by podnet on `node`.
    pub fn new(client: Option<Client>, node: &str) -> Self {
        let reporter = Reporter { controller: "podnet".to_owned(), instance: Some(node.to_owned()) };
        Self(client.map(|client| Recorder::new(client, reporter)))
    }

    /// Tells of trouble with a Service. Nobody waits for it to arrive.
    pub fn warn(&self, service: &Key, reason: &'static str, action: &'static str, note: String) {
        let Some(recorder) = self.0.clone() else { return };
        let service = service.clone();
        tokio::spawn(async move {
            let (event, about) = (warning(reason, action, note), reference(&service));
            if let Err(error) = recorder.publish(&event, &about).await {
                warn!(%service, reason, error = chain(&error), "an Event could not be written");
            }
        });
    }
}

fn warning(reason: &str, action: &str, note: String) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}

fn reference(service: &Key) -> ObjectReference {
    let (namespace, name) = service.parts();
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_about_its_service() {
        let about = reference(&Key::new("shop", "web"));
        assert_eq!((about.api_version.as_deref(), about.kind.as_deref()), (Some("v1"), Some("Service")));
        assert_eq!((about.namespace.as_deref(), about.name.as_deref()), (Some("shop"), Some("web")));
    }
}
