//! The client pod's process: it stays on one core, and measures what it is told to.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, send, socket};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tests::process::Place;
use tests::protocol;

use crate::server::{HELLO, ONE, STREAM};
use crate::stats::median;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum What {
    /// A new UDP flow: a socket, `connect()`, one datagram, `close()`.
    New,
    /// A datagram of 64 bytes on a connected socket of a flow that has had an answer.
    Established,
    /// A TCP connection: `connect()`, a request and an answer of one byte each, `close()`.
    Crr,
}

impl What {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::New, Self::Established, Self::Crr];
}

/// A task for a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Measures `chunks` times the time of `size` operations, with the addresses in turn.
    Measure {
        /// What.
        what: What,
        /// With whom.
        to: Vec<SocketAddrV4>,
        /// How many measurements.
        chunks: usize,
        /// How many operations each is of.
        size: usize,
    },
    /// Sends so many bytes and receives as many; each is compared.
    Transfer {
        /// With whom.
        to: SocketAddrV4,
        /// How many.
        bytes: u64,
    },
}

/// Nanoseconds an operation takes. The median of the chunks passes over what interrupts a few of them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The median of the chunks.
    pub(crate) median: f64,
    /// All chunks' mean.
    pub(crate) mean: f64,
}

/// Carries out tasks, one for each line of input, until the input ends.
#[derive(Args)]
pub(crate) struct Measure {
    /// The core to stay on.
    #[arg(long)]
    core: usize,
}

impl Measure {
    pub(crate) fn run(self) -> Result<()> {
        pin(self.core)?;
        for line in io::stdin().lock().lines() {
            let task = serde_json::from_str(&line.context("cannot read the input")?).context("not a task")?;
            let result = carry_out(&task).map_err(|error| format!("{task:?}: {error:#}"));
            println!("{}", serde_json::to_string(&result)?);
        }
        Ok(())
    }
}

/// Keeps this thread, and those it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).context("no such core")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one core")
}

fn carry_out(task: &Task) -> Result<Measured> {
    match task {
        Task::Transfer { to, bytes } => {
            let start = Instant::now();
            transfer(*to, *bytes)?;
            let nanoseconds = start.elapsed().as_nanos() as f64 / (2 * *bytes) as f64;
            Ok(Measured { median: nanoseconds, mean: nanoseconds })
        }
        Task::Measure { what, to, chunks, size } => {
            let mut turn = to.iter().cycle();
            let mut next = || turn.next().copied().context("nobody to talk to");
            match what {
                What::New => chunked(*chunks, *size, || new(&SockaddrIn::from(next()?))),
                What::Crr => chunked(*chunks, *size, || crr(next()?)),
                What::Established => {
                    let socket = greet(next()?)?;
                    chunked(*chunks, *size, || {
                        socket.send(&[0; 64]).context("cannot send")?;
                        Ok(())
                    })
                }
            }
        }
    }
}

/// Times `chunks` times `size` operations, after one tenth as many that are not counted.
fn chunked(chunks: usize, size: usize, mut operation: impl FnMut() -> Result<()>) -> Result<Measured> {
    for _ in 0..(chunks * size).div_ceil(10) {
        operation()?;
    }
    let mut times = Vec::with_capacity(chunks);
    for _ in 0..chunks {
        let start = Instant::now();
        for _ in 0..size {
            operation()?;
        }
        times.push(start.elapsed().as_nanos() as f64 / size as f64);
    }
    Ok(Measured { median: median(&times), mean: times.iter().sum::<f64>() / chunks as f64 })
}

fn new(to: &SockaddrIn) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot make a socket")?;
    connect(socket.as_raw_fd(), to).context("cannot connect")?;
    send(socket.as_raw_fd(), &[0], MsgFlags::empty()).context("cannot send")?;
    Ok(())
}

/// A socket that has sent something and been answered.
fn greet(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
    socket.connect(to).context("cannot connect")?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).context("cannot set a timeout")?;
    socket.send(HELLO).context("cannot send")?;
    socket.recv(&mut [0; 64]).context("the greeting was not answered")?;
    Ok(socket)
}

fn crr(to: SocketAddrV4) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("cannot connect")?;
    stream.write_all(&[ONE]).context("cannot ask")?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(answer == [ONE], "a wrong answer");
    Ok(())
}

fn transfer(to: SocketAddrV4, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("cannot connect")?;
    stream.write_all(&[STREAM]).context("cannot ask")?;
    stream.write_all(&bytes.to_be_bytes()).context("cannot ask")?;
    protocol::send_stream(&mut stream, bytes, bytes).context("cannot send the stream")?;
    protocol::check_stream(&mut stream, bytes, !bytes).context("the stream that came back")
}

/// A process that is told what to do by lines and answers by lines. It ends when this value does.
pub(crate) struct Part {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Part {
    /// Starts this binary with `arguments` in a pod.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Result<Self> {
        let own = std::env::current_exe().context("this binary has no path")?;
        let mut child = place
            .command(own)?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a part of the benchmark")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a process has an output")?);
        Ok(Self { child, input, output })
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If the process is gone.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the process has no input")?;
        writeln!(input, "{line}").context("a part of the benchmark has ended")
    }

    /// Waits for a line.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read from a part of the benchmark")?;
        if line.is_empty() {
            bail!("a part of the benchmark has ended; its complaint is above");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Has a task carried out.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) fn carry_out(&mut self, task: &Task) -> Result<Measured> {
        self.tell(&serde_json::to_string(task)?)?;
        let line = self.hear()?;
        let answer: Result<Measured, String> = serde_json::from_str(&line).context("not an answer")?;
        answer.map_err(|error| anyhow!(error))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
