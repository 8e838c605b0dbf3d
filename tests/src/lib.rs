//! The lab: a cluster of network namespaces on one machine, and what the tests do in it.
//!
//! Nodes, pods and clients are network namespaces, linked by veths. They have no link to the machine's own
//! namespace, so nothing that a test sends can leave it. Everything a lab makes carries the lab's id and is
//! removed when the lab is dropped; should the test be killed, a janitor process removes it all the same.

pub mod agent;
pub mod cards;
pub mod cgroup;
pub mod control_plane;
pub mod differential;
pub mod flannel;
pub mod http;
pub mod kubernetes;
pub mod lab;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod north_south;
pub mod peer;
pub mod pki;
pub mod pod;
pub mod process;
pub mod protocol;
pub mod proxies;
pub mod raw;
pub mod require;
pub mod scene;
pub mod wait;
