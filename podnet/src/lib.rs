//! podnet's agent: it watches Kubernetes Services and fills the tables that the kernel programs read.

pub mod changes;
pub mod kernel;
