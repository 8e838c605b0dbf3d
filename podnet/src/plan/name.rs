//! Names of service ports as the kernel's name table keeps them.

use std::fmt;
use std::sync::Arc;

use podnet_common::abi::ServiceName;

use crate::cluster::object::Key;

/// `namespace/name:port`, or `namespace/name` for a port without a name, as kube-proxy writes them
/// (`ServicePortName.String` in `pkg/proxy/types.go`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service.
    pub service: Key,
    /// The port's name, empty if it has none.
    pub port: Arc<str>,
}

impl PortName {
    /// The name as the table keeps it. Parsed objects have names that fit.
    pub fn encode(&self) -> ServiceName {
        let mut bytes = [0; size_of::<ServiceName>()];
        let text = self.to_string();
        let length = text.len().min(bytes.len());
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        bytes
    }

    /// The inverse of [`encode`](Self::encode); `None` for bytes that are no name.
    pub fn decode(bytes: &ServiceName) -> Option<Self> {
        let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..length]).ok()?;
        let (namespace, rest) = text.split_once('/')?;
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        Some(Self { service: Key::new(namespace, name), port: port.into() })
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_table() {
        let long = "x".repeat(63);
        for (namespace, name, port) in
            [("shop", "web", "http"), ("shop", "web", ""), (long.as_str(), long.as_str(), long.as_str())]
        {
            let name = PortName { service: Key::new(namespace, name), port: port.into() };
            assert_eq!(PortName::decode(&name.encode()), Some(name));
        }
        assert_eq!(PortName::decode(&[0; 192]), None);
        assert_eq!(PortName::decode(&[0xff; 192]), None);
    }
}
