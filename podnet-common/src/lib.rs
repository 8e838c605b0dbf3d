//! podnet's packet core.
//!
//! Every decision about a packet or a socket is a pure function of this crate. It sees packets only
//! through [`Frame`](frame::Frame) and state only through [`Tables`](tables::Tables), so the same code
//! runs in the kernel (over an skb and BPF maps) and in `cargo test` (over a `Vec<u8>` and hash maps).
//!
//! The way of a packet: [`packet::parse`] reads its headers, [`route::route`] decides or leaves that to
//! [`route::open`], [`route::rest`], [`route::sctp`] or [`dns::answer`] (at a network card [`early::early`] comes first),
//! [`nat::rewrite`] or [`reject::reply`] changes its bytes, and a [`Verdict`](verdict::Verdict) says where it goes.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod affinity;
pub mod checksum;
pub mod conntrack;
pub mod crc32c;
pub mod dns;
pub mod early;
pub mod filter;
pub mod fragment;
pub mod frame;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
mod ip;
pub mod limit;
pub mod maglev;
pub mod nat;
pub mod network;
pub mod origin;
pub mod packet;
pub mod reject;
pub mod route;
pub mod sctp;
pub mod select;
pub mod service;
pub mod socket;
pub mod tables;
pub mod verdict;
pub mod wire;
