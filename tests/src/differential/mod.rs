//! The differential test's parts: histories of Services, what must come of them, and what does.
//!
//! [`generate`] makes histories out of [`objects`], as wide as a [`scope`] says. [`semantics`] says what each
//! packet must meet, straight from the objects. [`world`] has the same objects served by kube-proxy and by
//! podnet, in worlds that have nothing in common but the API server, and sends the packets; [`compare`] says
//! whether what became of them is a difference.

pub mod compare;
pub mod generate;
pub mod objects;
pub mod scope;
pub mod semantics;
pub mod world;
