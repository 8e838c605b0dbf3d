//! Many short requests at the same time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::protocol::{Findings, Greeting, Question};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Answers each line of questions with a line of findings.
pub(crate) fn probe() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ports = Ports::default();
    for line in io::stdin().lines() {
        let questions: Vec<Question> = serde_json::from_str(&line.context("cannot read the input")?)?;
        let findings = runtime.block_on(ask_all(questions, &ports))?;
        println!("{}", serde_json::to_string(&findings)?);
    }
    Ok(())
}

async fn ask_all(questions: Vec<Question>, ports: &Ports) -> Result<Vec<Findings>> {
    let mut findings = vec![Findings::default(); questions.len()];
    let mut tasks = JoinSet::new();
    for (index, question) in questions.into_iter().enumerate() {
        let ports = ports.clone();
        tasks.spawn(async move { (index, ask(&question, &ports).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (index, found) = done?;
        findings[index] = found;
    }
    Ok(findings)
}

async fn ask(question: &Question, ports: &Ports) -> Findings {
    let mut findings = Findings::default();
    while findings.sent < question.times && (findings.sent < question.give_up || !findings.servers.is_empty())
    {
        findings.sent += 1;
        let request =
            async { if question.tcp { by_tcp(question.to).await } else { by_udp(question.to, ports).await } };
        let answer = timeout(Duration::from_millis(question.patience), request).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((server, client)) => _ = findings.servers.insert((server, client)),
            Err(error) => _ = findings.failures.insert(format!("{:?}", error.kind())),
        }
    }
    findings
}

async fn by_tcp(to: SocketAddr) -> io::Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"who\n").await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    greeting(line.as_bytes())
}

async fn by_udp(to: SocketAddr, ports: &Ports) -> io::Result<(String, IpAddr)> {
    let socket = ports.socket(to).await?;
    socket.connect(to).await?;
    socket.send(b"who\n").await?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).await?;
    greeting(&buffer[..length])
}

fn greeting(bytes: &[u8]) -> io::Result<(String, IpAddr)> {
    // Behind the line a datagram comes back.
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Greeting { server, client } = serde_json::from_slice(line)?;
    Ok((server, client.ip()))
}

/// The ports that datagrams were sent from. A flow of before would tell what was true then, so none is used
/// again for a destination while somebody may remember it.
#[derive(Clone, Default)]
struct Ports(Arc<Mutex<HashMap<(SocketAddr, u16), Instant>>>);

impl Ports {
    async fn socket(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        const MEMORY: Duration = Duration::from_secs(200);
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        loop {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
            let port = socket.local_addr()?.port();
            let before = {
                let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                used.insert((to, port), Instant::now())
            };
            if before.is_none_or(|before| before.elapsed() > MEMORY) {
                return Ok(socket);
            }
        }
    }
}
