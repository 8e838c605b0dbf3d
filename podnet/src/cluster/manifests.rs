//! Kubernetes objects in YAML (or JSON, which is YAML too).

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tracing::debug;

use super::object::{Invalid, Object, Parse};

/// What is wrong with a manifest, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{line}:{column}: {reason}")]
pub struct Broken {
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
struct TypeMeta {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<serde_json::Value>,
}

/// Parses all documents of a file; those of kinds that podnet does not read are passed over.
///
/// # Errors
/// [`Broken`] at the first document that is not valid YAML or not a valid object.
pub fn parse(text: &str) -> Result<Vec<Object>, Broken> {
    let mut objects = Vec::new();
    for document in documents(text) {
        document.parse(&mut objects)?;
    }
    Ok(objects)
}

/// A document of a file.
struct Document<'a> {
    text: &'a str,
    /// How many lines come before it.
    offset: u64,
}

/// Splits a file at its `---` lines. YAML allows no such line within a document.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut offset, mut position) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace) {
            documents.push(Document { text: &text[start..position], offset });
            (start, offset) = (position + line.len(), number + 1);
        }
        position += line.len();
    }
    documents.push(Document { text: &text[start..], offset });
    documents.retain(|document| {
        let mut lines = document.text.lines().map(str::trim);
        lines.any(|line| !line.is_empty() && !line.starts_with('#'))
    });
    documents
}

impl Document<'_> {
    fn parse(&self, objects: &mut Vec<Object>) -> Result<(), Broken> {
        let TypeMeta { api_version, kind } = self.read()?;
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Service") => objects.extend(self.object::<Service>()?),
            ("v1", "Node") => objects.extend(self.object::<Node>()?),
            ("v1", "Pod") => objects.extend(self.object::<Pod>()?),
            ("v1", "Namespace") => objects.extend(self.object::<Namespace>()?),
            ("discovery.k8s.io/v1", "EndpointSlice") => objects.extend(self.object::<EndpointSlice>()?),
            ("networking.k8s.io/v1", "ServiceCIDR") => objects.extend(self.object::<ServiceCIDR>()?),
            ("networking.k8s.io/v1", "NetworkPolicy") => objects.extend(self.object::<NetworkPolicy>()?),
            (_, kind) if kind.ends_with("List") => {
                for item in self.read::<List>()?.items {
                    self.item(item, objects)?;
                }
            }
            (_, "") => return Err(self.broken("the field kind is missing")),
            (version, kind) => debug!(version, kind, "a kind that podnet does not read"),
        }
        Ok(())
    }

    /// An item of a list: YAML's positions are lost by then, and the list's own has to do.
    fn item(&self, item: serde_json::Value, objects: &mut Vec<Object>) -> Result<(), Broken> {
        let text = |field: &str| item.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
        match (text("apiVersion"), text("kind")) {
            ("v1", "Service") => objects.extend(self.item_object::<Service>(item)?),
            ("v1", "Node") => objects.extend(self.item_object::<Node>(item)?),
            ("v1", "Pod") => objects.extend(self.item_object::<Pod>(item)?),
            ("v1", "Namespace") => objects.extend(self.item_object::<Namespace>(item)?),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                objects.extend(self.item_object::<EndpointSlice>(item)?);
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                objects.extend(self.item_object::<ServiceCIDR>(item)?);
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                objects.extend(self.item_object::<NetworkPolicy>(item)?);
            }
            (version, kind) => debug!(version, kind, "a kind that podnet does not read"),
        }
        Ok(())
    }

    fn object<K: Parse + DeserializeOwned>(&self) -> Result<Option<Object>, Broken> {
        self.read::<K>()?.parse().map_err(|invalid| self.invalid(&invalid))
    }

    fn item_object<K: Parse + DeserializeOwned>(
        &self,
        item: serde_json::Value,
    ) -> Result<Option<Object>, Broken> {
        let object: K = serde_json::from_value(item).map_err(|error| self.broken(&error.to_string()))?;
        object.parse().map_err(|invalid| self.invalid(&invalid))
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Broken> {
        read(self.text).map_err(|broken| Broken { line: self.offset + broken.line, ..broken })
    }

    /// The document as a whole is at fault: its first line with something in it.
    fn broken(&self, reason: &str) -> Broken {
        let mut lines = (1..).zip(self.text.lines().map(str::trim));
        let first = lines.find(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let line = self.offset + first.map_or(1, |(number, _)| number);
        Broken { line, column: 1, reason: reason.to_owned() }
    }

    fn invalid(&self, invalid: &Invalid) -> Broken {
        self.broken(&invalid.to_string())
    }
}

/// Reads a text of one document.
///
/// # Errors
/// [`Broken`] where it is not what is expected.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Broken> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location();
        let mut reason = error.to_string();
        if let Some(end) = place.and_then(|_| reason.rfind(" at line ")) {
            reason.truncate(end);
        }
        let (line, column) = place.map_or((1, 1), |place| (place.line(), place.column()));
        Broken { line, column, reason }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: 80
";

    fn keys(text: &str) -> Vec<String> {
        parse(text).unwrap().iter().map(|object| object.key().to_string()).collect()
    }

    #[test]
    fn a_file_holds_any_number_of_documents() {
        let other = SERVICE.replace("web", "api");
        let text = format!("# head\n---\n{SERVICE}--- # next\n{other}---\n# nothing\n---\nkind: Secret\n");
        assert_eq!(keys(&text), ["shop/web", "shop/api"]);
        assert_eq!(keys(""), [""; 0]);
    }

    #[test]
    fn lists_are_taken_apart() {
        let items: String = SERVICE.lines().map(|line| format!("  {line}\n")).collect();
        let items = items.replacen("  apiVersion", "- apiVersion", 1);
        assert_eq!(keys(&format!("apiVersion: v1\nkind: List\nitems:\n{items}")), ["shop/web"]);
    }

    #[test]
    fn json_is_yaml() {
        let text = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}"#;
        assert_eq!(keys(text), ["default/web"]);
    }

    #[test]
    fn an_error_has_its_place_in_the_file() {
        let text = format!("{SERVICE}---\n{}", SERVICE.replace("port: 80", "port: eighty"));
        let broken = parse(&text).unwrap_err();
        assert_eq!((broken.line, broken.column), (15, 11), "{broken}");
        assert!(!broken.reason.contains(" at line "), "{broken}");

        let broken = parse(&format!("{SERVICE}---\nkind: Service\n  metadata: {{\n")).unwrap_err();
        assert!((9..12).contains(&broken.line), "{broken}");
    }

    #[test]
    fn an_invalid_object_is_at_its_document() {
        let text = format!("{SERVICE}---\n\n# a comment\n{}", SERVICE.replace("10.96.0.1", "10.96.0.256"));
        let broken = parse(&text).unwrap_err();
        assert_eq!(
            broken.to_string(),
            "11:1: Service shop/web: spec.clusterIPs: \"10.96.0.256\" is not an IP"
        );
        assert_eq!(parse("a: b\n").unwrap_err().reason, "the field kind is missing");
    }
}
