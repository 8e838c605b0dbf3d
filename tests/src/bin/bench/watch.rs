//! A client that waits until Services lead where they are to lead.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tests::pod::Pod;
use tests::process::Place;

use crate::client::Part;
use crate::server::PORTS;

/// How long a connection may take, where nothing is slower than two cores.
const PATIENCE: Duration = Duration::from_millis(50);
/// What is left to others between two connections.
const PAUSE: Duration = Duration::from_micros(300);

/// What is waited for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wanted {
    /// The Services, each with who is to answer.
    answers: Vec<(SocketAddrV4, u8)>,
    /// For how long.
    patience: Duration,
}

/// The time, on a clock that all processes share.
pub(crate) fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC).context("there is no clock")?.into())
}

/// Waits for what each line of input wants, and prints when it was so.
pub(crate) fn run() -> Result<()> {
    for line in io::stdin().lock().lines() {
        let wanted: Wanted = serde_json::from_str(&line.context("cannot read the input")?)?;
        println!("{}", serde_json::to_string(&wait(&wanted)?)?);
    }
    Ok(())
}

/// When all have answered; nothing if they do not.
fn wait(wanted: &Wanted) -> Result<Option<Duration>> {
    let deadline = now()? + wanted.patience;
    for (to, answer) in &wanted.answers {
        while !ask(*to).is_ok_and(|answered| answered == *answer) {
            if now()? > deadline {
                return Ok(None);
            }
            thread::sleep(PAUSE);
        }
    }
    Ok(Some(now()?))
}

fn ask(to: SocketAddrV4) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// Has a pod answer each connection with `answer`, as long as this process lives. It closes first, so that no
/// connection is left over at the client.
///
/// # Errors
/// If it cannot listen.
pub(crate) fn answer(pod: &Pod, answer: u8) -> Result<()> {
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORTS[0])).context("cannot listen");
    let listener = pod.place().netns.run(listen)?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that has gone asks again.
            let _ = stream.write_all(&[answer]);
        }
    });
    Ok(())
}

/// Such a client.
pub(crate) struct Watcher(Part);

impl Watcher {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(place: &Place) -> Result<Self> {
        Part::start(place, &["watch"]).map(Self)
    }

    /// Begins to wait until each of the Services is answered by whom it is said to be.
    ///
    /// # Errors
    /// If the client is gone.
    pub(crate) fn begin(&mut self, answers: Vec<(SocketAddrV4, u8)>, patience: Duration) -> Result<()> {
        self.0.tell(&serde_json::to_string(&Wanted { answers, patience })?)
    }

    /// When it was so; nothing if it did not come to that.
    ///
    /// # Errors
    /// If the client is gone.
    pub(crate) fn seen(&mut self) -> Result<Option<Duration>> {
        let line = self.0.hear()?;
        serde_json::from_str(&line).map_err(|error| anyhow!("{error}: {line}"))
    }
}
