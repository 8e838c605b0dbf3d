//! What the lab's servers and clients say to each other and to the tests.
//!
//! A TCP client sends lines: `who`, `sink BYTES SEED`, `source BYTES SEED`. A UDP client sends anything.
//! The server answers each with one line of JSON, and sends a datagram back behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a server says of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The server's name.
    pub server: String,
    /// The client's address as the server sees it.
    pub client: SocketAddr,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Who answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
    /// Who the client takes the server for: `getpeername()`, or whom an unconnected socket received from.
    pub peer: SocketAddr,
    /// Where the client's packets go: the peer in the kernel's table of TCP sockets.
    pub wire: Option<SocketAddr>,
}

/// A request that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, such as `ConnectionRefused` or `TimedOut`.
    pub kind: String,
    /// The error's text.
    pub text: String,
    /// After how many milliseconds it came.
    pub millis: u64,
}

/// An ICMP error that a socket was told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// Who reported it.
    pub from: Option<IpAddr>,
    /// The ICMP type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// What became of a request.
pub type Answer = Result<Reply, Failure>;

/// What became of many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many were answered.
    pub ok: u64,
    /// How many were not.
    pub failed: u64,
    /// The failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// The answers by server.
    pub servers: BTreeMap<String, u64>,
    /// The longest time that a request took, in milliseconds.
    pub longest_millis: u64,
}

impl Summary {
    /// Counts `answer`, which came after `millis`.
    pub fn add(&mut self, answer: &Answer, millis: u64) {
        self.longest_millis = self.longest_millis.max(millis);
        match answer {
            Ok(reply) => {
                self.ok += 1;
                *self.servers.entry(reply.server.clone()).or_default() += 1;
            }
            Err(failure) => {
                self.failed += 1;
                *self.failures.entry(failure.kind.clone()).or_default() += 1;
            }
        }
    }
}

/// Requests to one address, each by a connection or socket of its own, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// TCP, or UDP after `connect()`.
    pub tcp: bool,
    /// Where to.
    pub to: SocketAddr,
    /// How many.
    pub times: u16,
    /// After how many the client gives up, if none has been answered.
    pub give_up: u16,
    /// Milliseconds to wait for each answer.
    pub patience: u64,
}

/// What became of the requests of a [`Question`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// How many were sent.
    pub sent: u16,
    /// The servers that answered, and whom they took the client for.
    pub servers: BTreeSet<(String, IpAddr)>,
    /// The kinds of failures.
    pub failures: BTreeSet<String>,
}

const CHUNK: usize = 64 * 1024;

/// The bytes of a stream, each determined by its place and the seed: a lost, repeated or swapped piece
/// cannot go unnoticed.
fn fill(chunk: &mut [u8], offset: u64, seed: u64) {
    for (word, bytes) in (offset / 8..).zip(chunk.chunks_mut(8)) {
        let mixed = (word ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        bytes.copy_from_slice(&mixed.to_le_bytes()[..bytes.len()]);
    }
}

/// Writes the first `bytes` bytes of the stream with this seed.
///
/// # Errors
/// Those of `to`.
pub fn send_stream(to: &mut impl Write, bytes: u64, seed: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < bytes {
        let piece = &mut chunk[..piece(bytes - offset)];
        fill(piece, offset, seed);
        to.write_all(piece)?;
        offset += piece.len() as u64;
    }
    to.flush()
}

/// Reads the first `bytes` bytes of the stream with this seed, and compares each.
///
/// # Errors
/// Those of `from`, and the place of the first byte that is not what was sent.
pub fn check_stream(from: &mut impl Read, bytes: u64, seed: u64) -> io::Result<()> {
    let (mut got, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    while offset < bytes {
        let length = piece(bytes - offset);
        from.read_exact(&mut got[..length])?;
        fill(&mut expected[..length], offset, seed);
        if got[..length] != expected[..length] {
            let place = got.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or_default();
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("byte {} is not what was sent", offset + place as u64),
            ));
        }
        offset += length as u64;
    }
    Ok(())
}

/// A datagram of `length` bytes whose pieces cannot be taken for each other.
pub fn datagram(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(&mut bytes, 0, 3);
    bytes
}

fn piece(left: u64) -> usize {
    usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_checked_byte_by_byte() {
        let mut stream = Vec::new();
        send_stream(&mut stream, 200_003, 7).unwrap();
        assert_eq!(stream.len(), 200_003);
        check_stream(&mut stream.as_slice(), 200_003, 7).unwrap();
        stream[150_000] ^= 1;
        let error = check_stream(&mut stream.as_slice(), 200_003, 7).unwrap_err();
        assert!(error.to_string().contains("byte 150000"), "{error}");
        assert!(check_stream(&mut stream.as_slice(), 200_003, 8).is_err());
    }
}
