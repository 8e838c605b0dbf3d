//! Servers and clients in pods, seen from a test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::process::Place;
use crate::protocol::{Answer, Complaint, Findings, Question, Reply, Summary};

/// The port of all servers.
pub const PORT: u16 = 8080;

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP, each datagram with its destination.
    Udp,
    /// UDP after `connect()`.
    ConnectedUdp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::ConnectedUdp];

    fn argument(self) -> String {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::ConnectedUdp => "connected-udp",
        }
        .to_owned()
    }
}

/// Whom a client talks to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    transport: Transport,
    to: SocketAddr,
    from: Option<SocketAddr>,
    keep: bool,
    size: usize,
    patience: Duration,
}

impl Target {
    /// Requests to a server: each by a connection or socket of its own.
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self { transport, to, from: None, keep: false, size: 4, patience: Duration::from_secs(3) }
    }

    /// The same at an address and the usual port.
    pub fn at(transport: Transport, address: impl Into<IpAddr>) -> Self {
        Self::new(transport, SocketAddr::new(address.into(), PORT))
    }

    /// All requests by one connection or socket.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { keep: true, ..self }
    }

    /// From an address and port of the client's choice.
    #[must_use]
    pub fn from(self, from: SocketAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    /// With datagrams of `size` bytes, which are to come back as they are.
    #[must_use]
    pub fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With another limit on the time until an answer.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn arguments(&self, command: &str) -> Vec<String> {
        let mut arguments = vec![command.to_owned(), self.transport.argument(), self.to.to_string()];
        arguments.push(format!("--patience={}", self.patience.as_millis()));
        arguments.push(format!("--size={}", self.size));
        arguments.extend(self.from.map(|from| format!("--from={from}")));
        if self.keep {
            arguments.push("--keep".to_owned());
        }
        arguments
    }
}

/// A helper process: it ends when its input does, so also when the test is no more.
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(place: &Place, arguments: &[String]) -> Result<Self> {
        let mut child = place.peer(arguments)?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a peer has an output")?);
        Ok(Self { child, input, output })
    }

    fn poke(&mut self) -> Result<()> {
        self.say("")
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the peer's input has been closed")?;
        input.write_all(format!("{line}\n").as_bytes()).context("the peer has ended")
    }

    fn line<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read from a peer")?;
        if line.is_empty() {
            bail!("the peer has ended; its complaint is above");
        }
        serde_json::from_str(&line).with_context(|| format!("a peer printed {line:?}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server. It ends when it is dropped.
pub struct Server(Peer);

impl Server {
    /// Starts a server that listens at [`PORT`].
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start(place: &Place, name: &str) -> Result<Self> {
        Self::at_port(place, name, PORT)
    }

    /// Starts a server that listens at `port`.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn at_port(place: &Place, name: &str, port: u16) -> Result<Self> {
        let arguments = ["serve".to_owned(), format!("--name={name}"), format!("--port={port}")];
        let mut peer = Peer::start(place, &arguments)?;
        let mut line = String::new();
        peer.output.read_line(&mut line).context("cannot read from a server")?;
        if line != "ready\n" {
            bail!("server {name} did not get ready; its complaint is above");
        }
        Ok(Self(peer))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }
}

/// A client that sends requests when it is told to.
pub struct Conversation(Peer);

impl Conversation {
    /// Starts a client.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(place: &Place, target: &Target) -> Result<Self> {
        Ok(Self(Peer::start(place, &target.arguments("converse"))?))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the client is gone; not if the request fails.
    pub fn ask(&mut self) -> Result<Answer> {
        self.0.poke()?;
        self.0.line()
    }

    /// Sends a request that is expected to be answered.
    ///
    /// # Errors
    /// If it is not.
    pub fn reply(&mut self) -> Result<Reply> {
        match self.ask()? {
            Ok(reply) => Ok(reply),
            Err(failure) => bail!("no answer: {failure:?}"),
        }
    }
}

/// A client that sends many requests at the same time.
pub struct Prober(Peer);

impl Prober {
    /// Starts the client.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(place: &Place) -> Result<Self> {
        Ok(Self(Peer::start(place, &["probe".to_owned()])?))
    }

    /// Has all questions asked at the same time; [`findings`](Self::findings) has the answers.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn ask(&mut self, questions: &[Question]) -> Result<()> {
        self.0.say(&serde_json::to_string(questions)?)
    }

    /// What became of each of the questions.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn findings(&mut self) -> Result<Vec<Findings>> {
        self.0.line()
    }
}

/// Sends one request.
///
/// # Errors
/// If the client cannot be started; not if the request fails.
pub fn ask(place: &Place, target: &Target) -> Result<Answer> {
    Conversation::start(place, target)?.ask()
}

/// Sends `count` requests, one after the other.
///
/// # Errors
/// If the client cannot be started; not if requests fail.
pub fn ask_often(place: &Place, target: &Target, count: usize) -> Result<Summary> {
    let mut conversation = Conversation::start(place, target)?;
    let mut summary = Summary::default();
    for _ in 0..count {
        summary.add(&conversation.ask()?, 0);
    }
    Ok(summary)
}

/// Sends a stream of bytes to a server and receives another.
///
/// # Errors
/// If a byte is lost or wrong.
pub fn transfer(place: &Place, to: SocketAddr, bytes: u64) -> Result<()> {
    let arguments = ["transfer".to_owned(), to.to_string(), format!("--bytes={bytes}")];
    match Peer::start(place, &arguments)?.line::<Option<String>>()? {
        None => Ok(()),
        Some(failure) => bail!("transfer of {bytes} bytes with {to}: {failure}"),
    }
}

/// Sends a datagram that may pass `hops` routers; the ICMP error that comes of it, if one does.
///
/// # Errors
/// If the client cannot be started.
pub fn trace(place: &Place, to: SocketAddr, hops: u8, patience: Duration) -> Result<Option<Complaint>> {
    let arguments = [
        "trace".to_owned(),
        to.to_string(),
        format!("--hops={hops}"),
        format!("--patience={}", patience.as_millis()),
    ];
    Peer::start(place, &arguments)?.line()
}

/// A client that sends requests all the time.
pub struct Load(Peer);

impl Load {
    /// Starts the requests: by two workers, with pauses of 2 ms.
    ///
    /// # Errors
    /// If the client cannot be started.
    pub fn start(place: &Place, target: &Target) -> Result<Self> {
        Ok(Self(Peer::start(place, &target.arguments("load"))?))
    }

    /// What became of the requests until now.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn so_far(&mut self) -> Result<Summary> {
        self.0.poke()?;
        self.0.line()
    }

    /// Ends the requests.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn stop(mut self) -> Result<Summary> {
        drop(self.0.input.take());
        self.0.line()
    }
}
