//! podnet's agent: it watches Kubernetes Services and fills the tables that the kernel programs read.
//!
//! Sources of objects ([`cluster`]) feed an index; what it says of a service goes through the planner
//! ([`plan`]), which knows what the kernel holds and answers with changes; [`kernel`] carries them out.
//! Only the ends touch the world. [`agent`] wires them together, and [`cli`] is what people type.

pub mod addresses;
pub mod admin;
pub mod agent;
pub mod changes;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dns;
pub mod error;
pub mod events;
pub mod health;
pub mod interfaces;
pub mod kernel;
pub mod metrics;
mod netlink;
pub mod output;
pub mod plan;
pub mod progress;
pub mod service_health;
