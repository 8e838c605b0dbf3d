//! podnet's agent: it watches Kubernetes Services and fills the tables that the kernel programs read.
//!
//! Sources of objects ([`cluster`]) feed an index; what it says of a service goes through the planner
//! ([`plan`]), which knows what the kernel holds and answers with changes. Only the ends touch the world.

pub mod changes;
pub mod cluster;
pub mod plan;
