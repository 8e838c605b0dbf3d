//! Questions in streams (RFC 7766): many to a connection, answered as soon as they can be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::message::{Received, Transport};
use super::respond::Responder;

/// How long a connection may be idle, and how long a client may take to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// How many connections there may be; others wait.
const MAX_CONNECTIONS: usize = 1024;
/// How many questions of a connection may wait for their answers; further ones are not read before.
const MAX_WAITING: usize = 64;
/// How long nothing is accepted when that has failed, for want of descriptors as a rule.
const RESPITE: Duration = Duration::from_millis(100);

/// Answers what comes by connections.
pub(super) async fn serve(listener: TcpListener, responder: Arc<Responder>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let responder = responder.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, responder).await {
                        debug!(%client, %error, "a connection for names broke");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "a connection for names could not be accepted");
                sleep(RESPITE).await;
            }
        }
    }
}

/// Answers the questions of a connection until its client has no more, or is silent for too long.
async fn converse(stream: TcpStream, responder: Arc<Responder>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    loop {
        let Ok(length) = timeout(IDLE, reader.read_u16()).await else { return Ok(()) };
        let length = match length {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; usize::from(length)];
        let Ok(read) = timeout(IDLE, reader.read_exact(&mut bytes)).await else { return Ok(()) };
        read?;
        match Received::read(&bytes) {
            // Who sends what is no question does not speak DNS.
            Received::Nothing => return Ok(()),
            Received::Odd(code, answer) => {
                responder.count_odd(code, Transport::Tcp);
                send(&writer, &answer).await?;
            }
            Received::Question(request) => {
                let Ok(permit) = waiting.clone().acquire_owned().await else { return Ok(()) };
                let (writer, responder) = (writer.clone(), responder.clone());
                tokio::spawn(async move {
                    let reply = responder.answer(&request, Transport::Tcp).await;
                    // The reader will see that the connection is broken.
                    let _ = send(&writer, &request.encode(&reply, Transport::Tcp)).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(writer: &Mutex<OwnedWriteHalf>, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), answer].concat();
    let mut writer = writer.lock().await;
    timeout(IDLE, writer.write_all(&framed)).await?
}
